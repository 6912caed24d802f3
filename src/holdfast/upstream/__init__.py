"""The way to the providers: connections, their pool, health and capacity. It knows HTTP, and no API on top of it.

    call              what the caller and the pool say to each other about one request
    pool              the connections to one origin, as `core.pool` decides
    connection        the I/O of one connection
    connection_owner  what a connection tells its pool
    http_call         one request on a connection, as its caller steers it
    unsent            whether a socket has still something to send
    dial              makes connections: addresses, proxies, TLS
    fetch             small documents, such as an issuer's keys
    health            the breaker, retry budget and active probe of one provider
    capacity          how many requests a provider has in flight
    provider          all of these for one configured provider
    statistics        what they show of themselves

What a request and an answer mean is `dialects`' matter; when a request is tried again, `generation`'s.
"""
