"""The decisions of Holdfast, without I/O: no asyncio, no sockets, no clock, no randomness. Time comes in as `now`.

    http          client connections over HTTP/1.1 and HTTP/2
    websocket     the server's side of a WebSocket connection
    session       the protocol between clients and the gateway, both sides
    limits        rate limits, the fair queue, adaptive concurrency
    log, entries  the log of one generation, and its records that are stored and sent
    pool          which connections to a provider are opened, lent and closed; `pool_member` is one of them
    retry, breaker, backoff   whether, where and when a failed request is tried again
    sse           Server-Sent Events, read and written
    json_object   the members of a JSON object, to the letter
    sliding, timing_wheel, moderation   counting in a window, many deadlines, how often a busy loop reads

The shells (`upstream`, `streams`, `generation`, `server`, `client`) do what the core decides. A peer's fault is a
value here; a caller's misuse raises.
"""
