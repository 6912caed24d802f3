"""The configuration of streams and their logs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from holdfast.config.units import Count, Grace, Size


class StreamsConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[streams]`: the logs and how long they live."""

    log_bytes: Annotated[
        Size,
        Meta(description="Bound of one log. Beyond it what all readers have is trimmed, else the provider waits."),
    ] = 8 * 1024 * 1024
    memory_bytes: Annotated[
        Size,
        Meta(description="Bound of all logs. Ended streams go first, then new work is refused as `overloaded`."),
    ] = 512 * 1024 * 1024
    max_streams: Annotated[Count, Meta(description="Streams that are kept, running and ended.")] = 100_000
    retention: Annotated[Grace, Meta(description="How long an ended stream can be read.")] = 600.0
    retention_acknowledged: Annotated[
        Grace, Meta(description="The same once its creator has acknowledged the end.")
    ] = 30.0
    detach_grace: Annotated[
        Grace, Meta(description="A stream that lost its last WebSocket reader is cancelled after this.")
    ] = 60.0
    detach_grace_http: Annotated[
        Grace,
        Meta(description="The same for HTTP readers, unless the request says `holdfast-on-disconnect: continue`."),
    ] = 0.0
