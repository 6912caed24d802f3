"""The configuration of the listening socket."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from holdfast.config.units import Count, Grace, Seconds, Size


class ServerConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[server]`: the listening socket, and the limits of its connections."""

    host: Annotated[
        str, Meta(description="Address to listen on. An address other than loopback needs `[keys]` or `[auth]`.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port; 0 takes a free one.")] = 8080
    allowed_origins: Annotated[
        list[str],
        Meta(
            description='Origins of web pages that may call, such as `"https://app.example"`; `"*"` allows all. '
            "Pages that the gateway itself serves may always call."
        ),
    ] = []
    tls_cert: Annotated[str | None, Meta(description="PEM file with the certificate chain; enables TLS.")] = None
    tls_key: Annotated[str | None, Meta(description="PEM file with the private key.")] = None
    max_body: Annotated[
        Size,
        Meta(
            description="The largest HTTP body, and the largest WebSocket message. An image of 6 MB fits into the "
            "default. At worst a request stops the event loop for 3 ms for each MiB."
        ),
    ] = 8 * 1024 * 1024
    memory_bytes: Annotated[
        Size,
        Meta(
            description="All that clients can make the gateway hold: logs, requests, bodies and messages in "
            "flight, answers that sockets have not taken. One tenant alone may hold three quarters, callers "
            "without a credential a sixteenth together. Ended logs of the largest user are dropped first; who is "
            "over is paused or refused as `overloaded`, nobody else. At least four times `max_body`."
        ),
    ] = 1024 * 1024 * 1024
    max_connections: Annotated[
        Count,
        Meta(
            description="Open connections. Where all are taken, the oldest idle one without a credential is "
            "closed for a new one; where there is none, 16 more may ask `/healthz` and `/readyz`, and others "
            "are refused with 503. No more than two thirds of what `ulimit -n` allows are used."
        ),
    ] = 20_000
    max_connections_per_second_per_address: Annotated[
        Count | None,
        Meta(
            description="New connections per second from one IPv4 address or IPv6 /64; further ones get 429. "
            "Do not set it behind a load balancer, whose address all connections share. Default: no limit."
        ),
    ] = None
    max_connections_per_address: Annotated[
        Count | None,
        Meta(
            description="Open connections from one IPv4 address or IPv6 /64; further ones get 429. Do not set it "
            "behind a load balancer, whose address all connections share. Default: no limit."
        ),
    ] = None
    header_timeout: Annotated[
        Seconds,
        Meta(
            description="From the connection, its TLS handshake included, or from the first byte of a further "
            "request, to a complete head."
        ),
    ] = 10.0
    body_timeout: Annotated[Seconds, Meta(description="From a complete head to a complete body.")] = 60.0
    keep_alive_timeout: Annotated[Seconds, Meta(description="An idle HTTP connection is closed after this.")] = (
        75.0
    )
    hello_timeout: Annotated[
        Seconds, Meta(description="A WebSocket client must send its first message within this.")
    ] = 10.0
    ping_interval: Annotated[Seconds, Meta(description="A WebSocket that is silent for so long is pinged.")] = 20.0
    ping_timeout: Annotated[
        Seconds, Meta(description="A WebSocket that stays silent for so long after a ping is closed.")
    ] = 10.0
    sse_keep_alive: Annotated[
        Seconds, Meta(description="A silent SSE response gets a comment at this interval.")
    ] = 15.0
    max_hold: Annotated[
        float,
        Meta(
            ge=0,
            le=0.01,
            description="Under load, two turns of the event loop begin up to so long apart; 0 switches that off.",
        ),
    ] = 0.001
    drain_timeout: Annotated[
        Grace,
        Meta(description="After SIGTERM, running streams may go on for so long; then they end as `incomplete`."),
    ] = 600.0
    drain_window: Annotated[
        Grace,
        Meta(
            description="After SIGTERM, WebSocket clients are told to reconnect, spread over this time; with "
            "fewer than 1,000 of them, over a share of it."
        ),
    ] = 30.0
    max_streams_per_session: Annotated[
        Count, Meta(description="How many streams one session may read at a time.")
    ] = 1024
