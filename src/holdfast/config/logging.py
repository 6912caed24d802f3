"""The configuration of the log. What is in it is told in `docs/how-to/operations.md`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class LoggingConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[logging]`: the log, which is written to standard error."""

    format: Annotated[Literal["console", "json"], Meta(description="For people, or one JSON object per line.")] = (
        "console"
    )
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="`info` has a line for each request and each WebSocket, at its end."),
    ] = "info"
    content: Annotated[bool, Meta(description="Also log prompts and answers.")] = False
