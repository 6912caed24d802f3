"""The clients' side: from a socket to a stream, and back.

listener/    bytes of HTTP/1.1 and WebSocket frames, one object per connection; knows no path
router       the one table of paths: handlers, sockets, guards, and how errors look
handshakes   opens WebSockets
peers        every open connection, whatever it speaks: counted, told to leave, revoked, closed
delivery/    brings a stream to a client: SSE, a whole answer, or one of many on a WebSocket
surfaces/    what clients can speak with; each makes the routes of its paths
services     what a surface is given
drain        the end of a process, in order

A request goes from listener to router to surface; entries go from a stream's log to delivery to listener. Streams
are started by `holdfast.generation` and kept by `holdfast.streams`; `holdfast.admission` says who may call.
"""
