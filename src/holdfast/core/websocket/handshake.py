"""The server's side of the opening handshake (RFC 6455): judges an upgrade request and writes the 101 answer.

Headers are a list of (lower-case name, value) pairs, as an HTTP/1.1 parser returns them. Others judge the origin,
the path and the credentials. Extensions are never accepted: permessage-deflate alone would cost 34 KB of memory
per idle connection.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha1
from typing import Final, TypeAlias

from msgspec import Struct

Header: TypeAlias = tuple[bytes, bytes]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION: Final = b"13"
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_FIELD_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 section 5.5

#: The headers that a 426 answer must have: RFC 9110 section 15.5.22 and RFC 6455 section 4.4.
_UPGRADE_HEADERS: Final[tuple[Header, ...]] = (
    (b"upgrade", b"websocket"),
    (b"connection", b"upgrade"),
    (b"sec-websocket-version", _VERSION),
)

_RESERVED_NAMES: Final = frozenset({b"upgrade", b"connection", b"content-length", b"transfer-encoding"})


class UpgradeAccepted(Struct, frozen=True):
    """The request is valid. `switching_protocols` needs `key`; `subprotocols` is what the client offers."""

    key: bytes
    subprotocols: list[str]


class UpgradeRejected(Struct, frozen=True):
    """The request is not a valid WebSocket handshake; answer with this HTTP status, message and headers."""

    status: int
    message: str
    headers: tuple[Header, ...] = ()


def is_upgrade_request(headers: Sequence[Header]) -> bool:
    """Whether the client asks for WebSocket at all. `check_upgrade` says whether it does so correctly."""
    return b"websocket" in _lower_tokens(headers, b"upgrade")


def check_upgrade(
    method: bytes, http_version: str, headers: Sequence[Header]
) -> UpgradeAccepted | UpgradeRejected:
    """Judge an upgrade request by RFC 6455 section 4.2.1. `http_version` is "1.1" and the like."""
    if method != b"GET":
        return UpgradeRejected(405, "WebSocket needs the method GET", ((b"allow", b"GET"),))
    if http_version != "1.1":
        return UpgradeRejected(400, f"WebSocket needs HTTP/1.1, not HTTP/{http_version}")
    if not is_upgrade_request(headers) or b"upgrade" not in _lower_tokens(headers, b"connection"):
        return UpgradeRejected(
            426,
            "this path needs a WebSocket upgrade; if the client sent one, "
            "a proxy on the way has removed its Upgrade and Connection headers",
            _UPGRADE_HEADERS,
        )
    if len(_values(headers, b"host")) != 1:
        return UpgradeRejected(400, "the request needs exactly one Host header")
    if _values(headers, b"transfer-encoding") or any(v != b"0" for v in _values(headers, b"content-length")):
        # The body would be taken for the first WebSocket frame.
        return UpgradeRejected(400, "an upgrade request must not have a body")
    versions = _values(headers, b"sec-websocket-version")
    if len(versions) > 1:
        return UpgradeRejected(400, "the request has more than one Sec-WebSocket-Version header")
    if versions != [_VERSION]:
        return UpgradeRejected(426, "the only supported WebSocket version is 13", _UPGRADE_HEADERS)
    keys = _values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not _is_key(keys[0]):
        return UpgradeRejected(400, "Sec-WebSocket-Key must be there once and hold 16 bytes in base64")
    subprotocols = _elements(headers, b"sec-websocket-protocol")
    if any(_TOKEN.fullmatch(name) is None for name in subprotocols):
        return UpgradeRejected(400, "Sec-WebSocket-Protocol must be a list of tokens")
    if len(set(subprotocols)) != len(subprotocols):
        return UpgradeRejected(400, "Sec-WebSocket-Protocol names a subprotocol twice")
    return UpgradeAccepted(keys[0], [name.decode("ascii") for name in subprotocols])


def offered_subprotocols(headers: Sequence[Header]) -> list[str]:
    """Return the client's offer without judging it: the caller looks for entries that it knows."""
    return [name.decode("latin-1") for name in _elements(headers, b"sec-websocket-protocol")]


def accept_token(key: bytes) -> bytes:
    """Compute `Sec-WebSocket-Accept` from `Sec-WebSocket-Key` (RFC 6455 section 4.2.2)."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def switching_protocols(
    request: UpgradeAccepted, *, subprotocol: str | None = None, headers: Iterable[Header] = ()
) -> bytes:
    """Build the 101 answer to a request that `check_upgrade` accepted.

    Raises `ValueError` for a subprotocol that was not offered, and for extra headers that are malformed or that
    the handshake itself sets.
    """
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept_token(request.key),
    ]
    if subprotocol is not None:
        if subprotocol not in request.subprotocols:
            raise ValueError(f"subprotocol {subprotocol!r} was not offered by the client")
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode("ascii"))
    for name, value in headers:
        lower = name.lower()
        if lower in _RESERVED_NAMES or lower.startswith(b"sec-websocket-"):
            raise ValueError(f"header {name!r} belongs to the handshake")
        if _TOKEN.fullmatch(name) is None or _FIELD_VALUE.fullmatch(value) is None:
            raise ValueError(f"header {name!r} is malformed")
        lines.append(name + b": " + value)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _values(headers: Sequence[Header], name: bytes) -> list[bytes]:
    return [value.strip(b" \t") for key, value in headers if key == name]


def _elements(headers: Sequence[Header], name: bytes) -> list[bytes]:
    """Return the elements of a list header, without empty ones (RFC 9110 section 5.6.1.2)."""
    parts = b",".join(_values(headers, name)).split(b",")
    return [part for part in (part.strip(b" \t") for part in parts) if part]


def _lower_tokens(headers: Sequence[Header], name: bytes) -> list[bytes]:
    return [element.lower() for element in _elements(headers, name)]


def _is_key(key: bytes) -> bool:
    try:
        return len(b64decode(key, validate=True)) == 16
    except ValueError:
        return False
