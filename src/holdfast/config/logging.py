"""The configuration of the log. `docs/how-to/operations.md` describes its lines."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class LoggingConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[logging]`: the log, which is written to standard error."""

    format: Annotated[
        Literal["console", "json"],
        Meta(description="`console` is for people; `json` is one JSON object per line."),
    ] = "console"
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(
            description="The lowest level that is logged. `info` has a line at the end of each request and "
            "WebSocket."
        ),
    ] = "info"
    content: Annotated[bool, Meta(description="Also log prompts and answers, up to 64 KiB and 16 KiB.")] = False
