"""The SDK: a client of the gateway that keeps its streams over broken connections. `holdfast` exports it.

    aio, sync      what an application calls, asynchronous or not
    streams        what it holds of one generation: an iterator over text or events
    events         the typed events of a stream
    config         what a client is told about its gateway
    runner         keeps one session connected: reconnects, backs off, gives up
    connections, conversation, link   which connection is used, one connection's part of a session, its WebSocket

What a session says and expects is `core.session`'s matter. The SDK imports `core` and `errors`, and nothing else.
"""
