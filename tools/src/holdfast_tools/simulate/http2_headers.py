"""Which header lists make a well-formed request (RFC 9113 section 8)."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast_tools.simulate.http2_frames import PROTOCOL_ERROR, Http2Error

_PSEUDO = {":method", ":path", ":scheme", ":authority"}
_FORBIDDEN = {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"}


def request_headers(stream_id: int, fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the fields of a request, or raise the stream error of a malformed one (section 8.1.1)."""
    found: dict[str, str] = {}
    has_regular = False
    for name, value in fields:
        if name != name.lower():
            raise _malformed(stream_id, f"upper case in {name!r}")
        if name.startswith(":"):
            if name not in _PSEUDO or name in found or has_regular:
                raise _malformed(stream_id, f"unknown, repeated or late pseudo-header {name!r}")
        else:
            has_regular = True
            if name in _FORBIDDEN or (name == "te" and value != "trailers"):
                raise _malformed(stream_id, f"connection-specific field {name!r}")
        found[name] = value
    for name in (":method", ":path", ":scheme"):
        if not found.get(name):
            raise _malformed(stream_id, f"no {name}")
    return found


def check_trailers(stream_id: int, fields: Iterable[tuple[str, str]]) -> None:
    """Raise the stream error of trailers with pseudo-header fields (section 8.1)."""
    for name, _ in fields:
        if name.startswith(":"):
            raise _malformed(stream_id, "pseudo-header in trailers")


def _malformed(stream_id: int, reason: str) -> Http2Error:
    return Http2Error(PROTOCOL_ERROR, reason, stream_id)
