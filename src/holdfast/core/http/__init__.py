"""Client connections over HTTP/1.1 (RFC 9112) and HTTP/2 (RFC 9113), without I/O.

    connection  what both have in common: events, calls, the rules for requests
    request     a request, whatever version carries it
    http1       `Http1Connection`, on the parser of `httptools`
    http2       `Http2Connection`: the loop over frames, settings, PING, GOAWAY
    streams     HTTP/2's streams: their responses, and the errors that end one of them alone
    fields      HTTP/2's header fields, on the compression of `hpack`
    flow        HTTP/2's windows for what we send, and the bound of useless frames
    frames, settings   HTTP/2's frames as they are written, and the peer's settings

`upstream.connection` moves the bytes; `core.pool` decides which connection carries a request. The server's side of
HTTP is `server.listener`.
"""
