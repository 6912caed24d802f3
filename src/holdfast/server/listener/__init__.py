"""Sockets: what clients send becomes requests and messages, what the gateway answers becomes bytes.

listening   the listening socket: address, TLS, the kernel's keep-alive
turns       fair turns of the event loop between sockets, and why one is not read
charge      what a connection holds of its user's memory
requests    HTTP/1.1 requests out of bytes
admitted    what the application makes of a request's head
http        one HTTP/1.1 connection, bounded in time and size, with pipelining
exchange    one request and its answer, whole or in pieces, and the form of errors
websocket   one WebSocket after its handshake: frames, heartbeat, closing

Everything here is bounded and nothing blocks: who produces much asks whether the socket takes more. What paths and
messages mean is decided above, in `router` and `surfaces/`.
"""
