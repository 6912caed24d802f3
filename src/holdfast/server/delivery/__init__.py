"""How a stream gets to a client. Each is a reader of logs that holds cursors and writes once per turn of the loop.

sse             one stream as Server-Sent Events, in the form of a dialect or of `/v1/streams`
waiter          one stream that is answered whole, or at its next entry
outlet          any number of streams in turn over one WebSocket, between control messages
client_socket   what every conversation over a WebSocket has: an outlet, leases, its place among the peers
flusher         collects who has something to write, and flushes each once per turn

Delivery knows no protocol: a `Framing` says how entries look. There is no task and no queue per reader, and a
client that does not read holds nothing but its cursors.
"""
