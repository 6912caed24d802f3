"""The configuration of the listening socket."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from holdfast.config.units import Count, Grace, Seconds, Size


class ServerConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[server]`: the listening socket and what a connection may do."""

    host: Annotated[
        str, Meta(description="Address to listen on. Other than loopback only with `[keys]` or `[auth]`.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port; 0 takes a free one.")] = 8080
    allowed_origins: Annotated[
        list[str],
        Meta(
            description='Origins of web pages that may call, `"https://app.example"`; `"*"` for all. Pages that '
            "the gateway itself serves may always."
        ),
    ] = []
    tls_cert: Annotated[str | None, Meta(description="PEM file with the certificate chain; enables TLS.")] = None
    tls_key: Annotated[str | None, Meta(description="PEM file with the private key.")] = None
    max_body: Annotated[Size, Meta(description="Largest HTTP body and WebSocket message.")] = 16 * 1024 * 1024
    max_connections: Annotated[Count, Meta(description="Open connections; more are refused with 503.")] = 20_000
    max_connections_per_second_per_address: Annotated[
        Count | None,
        Meta(
            description="New connections from one IPv4 address or IPv6 /64; more get 429. Not behind a load "
            "balancer, whose address all share. Default: no limit."
        ),
    ] = None
    header_timeout: Annotated[
        Seconds, Meta(description="From connecting (or the previous answer's first new byte) to a complete head.")
    ] = 10.0
    body_timeout: Annotated[Seconds, Meta(description="From a complete head to a complete body.")] = 60.0
    keep_alive_timeout: Annotated[Seconds, Meta(description="Idle HTTP connections are closed after this.")] = 75.0
    hello_timeout: Annotated[Seconds, Meta(description="A WebSocket must send its first message within this.")] = (
        10.0
    )
    ping_interval: Annotated[Seconds, Meta(description="A WebSocket silent for this long is pinged.")] = 20.0
    ping_timeout: Annotated[Seconds, Meta(description="A pinged WebSocket that stays silent is dropped.")] = 10.0
    sse_keep_alive: Annotated[Seconds, Meta(description="A silent SSE response gets a comment this often.")] = 15.0
    max_hold: Annotated[
        float,
        Meta(
            ge=0, le=0.01, description="Under load turns of the event loop begin up to this far apart; 0: at once."
        ),
    ] = 0.001
    drain_timeout: Annotated[
        Grace, Meta(description="After SIGTERM running streams have this long; then they end as `incomplete`.")
    ] = 600.0
    drain_window: Annotated[
        Grace,
        Meta(
            description="After SIGTERM clients are told to leave within this; with fewer than 1,000 WebSockets "
            "within a share of it."
        ),
    ] = 30.0
    max_streams_per_session: Annotated[Count, Meta(description="Streams that one session may read at a time.")] = (
        1024
    )
