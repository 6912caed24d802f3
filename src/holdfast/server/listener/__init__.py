"""Sockets: what clients send becomes requests and messages, what the gateway answers becomes bytes.

listening   the listening socket: address, TLS, the kernel's keep-alive
http        one HTTP/1.1 connection, bounded in time and size, with pipelining
exchange    one request and its answer, whole or in pieces, and the form of errors
websocket   one WebSocket after its handshake: frames, heartbeat, closing

Everything here is bounded and nothing blocks: who produces much asks whether the socket takes more. What paths and
messages mean is decided above, in `router` and `surfaces/`.
"""
