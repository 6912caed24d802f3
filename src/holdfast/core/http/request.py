"""A request as the shell gives it to a connection, for either version of HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

#: Names in lower case, in the order received; names and values are never split, joined or decoded.
Headers: TypeAlias = list[tuple[bytes, bytes]]


@dataclass(slots=True, frozen=True)
class HttpRequest:
    """A request to an origin. Header names are lower case; the connection sets `host` and `content-length`."""

    method: str
    path: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False, default=b"")
