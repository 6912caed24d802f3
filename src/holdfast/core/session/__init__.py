"""The session protocol of PROTOCOL.md, for both sides.

    messages        the messages as structs, and their strict decoding
    framing         how entries of a log are written as messages, without decoding them
    server          a client's conversation as the server sees it: states, cursors, holding
    client          a client's streams over its connections: resume, acknowledgement, liveness
    client_stream   one stream of a client, and the events that its session reports
    outbox          what a client session has to send
    refusals        streams that are refused for the time being, and when to ask for them again

The shells are the gateway's `server.surfaces` and the SDK, `client`.
"""
