"""The configuration of streams and their logs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from holdfast.config.units import Count, Grace, Size


class StreamsConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[streams]`: the logs of streams, and how long they are kept."""

    log_bytes: Annotated[
        Size,
        Meta(
            description="The largest log. Beyond it, entries that all readers have are dropped; if there are "
            "none, the provider waits."
        ),
    ] = 8 * 1024 * 1024
    max_streams: Annotated[
        Count,
        Meta(
            description="How many streams are kept, running and ended ones. One tenant alone may run four fifths."
        ),
    ] = 100_000
    retention: Annotated[Grace, Meta(description="How long an ended stream can still be read.")] = 600.0
    retention_acknowledged: Annotated[
        Grace, Meta(description="How long it can be read once its creator has acknowledged its end.")
    ] = 30.0
    detach_grace: Annotated[
        Grace,
        Meta(description="A stream without a reader, whose last one was a WebSocket, is cancelled after this."),
    ] = 60.0
    detach_grace_http: Annotated[
        Grace,
        Meta(
            description="The same if the last reader used HTTP, unless the request says "
            "`holdfast-on-disconnect: continue`."
        ),
    ] = 0.0
