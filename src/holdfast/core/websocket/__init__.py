"""The server's side of a WebSocket connection (RFC 6455), without I/O.

    frames      opcodes, headers, masks
    handshake   judges an upgrade request, and writes the 101 answer
    connection  `WebSocketConnection`: frames, messages, the closing handshake
    events      what it reports of the peer

There are no extensions. The shell checks origin and credentials, pings, and closes the socket. The SDK uses the
client of the package `websockets` instead.
"""
