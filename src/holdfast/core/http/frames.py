"""HTTP/2 frames (RFC 9113 sections 4 and 6): their numbers, and functions that write them.

The connection reads frames itself, since its loop over them is the hot path.
"""

from __future__ import annotations

from struct import Struct as Packing
from typing import Final

from holdfast.core.http.connection import ErrorCode

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

HEADER_SIZE: Final = 9
MIN_FRAME_SIZE: Final = 16_384
MAX_FRAME_SIZE: Final = 16_777_215
DEFAULT_WINDOW: Final = 65_535
#: The largest window and the largest stream id. It also masks the reserved bit in front of either.
MAX_31_BITS: Final = 0x7FFF_FFFF

# Length and type share the first word, since unpacking three numbers is cheaper than unpacking four.
_HEADER: Final = Packing(">IBI")
#: Returns (length << 8 | type, flags, stream id with the reserved bit).
unpack_header: Final = _HEADER.unpack_from
_pack_header: Final = _HEADER.pack
_pack_update: Final = Packing(">IBII").pack
_pack_goaway: Final = Packing(">II").pack
_pack_setting: Final = Packing(">HI").pack


class ConnectionFault(Exception):
    """The peer's fault ends the whole connection. It is raised and caught within the HTTP/2 core only."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def frame_header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """Write a frame header alone, for a payload that follows without being copied."""
    return _pack_header(length << 8 | kind, flags, stream_id)


def settings_frame(settings: dict[int, int]) -> bytes:
    """Write a SETTINGS frame (section 6.5)."""
    payload = b"".join(_pack_setting(key, value) for key, value in settings.items())
    return _pack_header(len(payload) << 8 | SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = _pack_header(SETTINGS, ACK, 0)


def ping_frame(payload: bytes, flags: int = 0) -> bytes:
    """Write a PING frame (section 6.7)."""
    return _pack_header(8 << 8 | PING, flags, 0) + payload


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """Write a WINDOW_UPDATE frame (section 6.9)."""
    return _pack_update(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    """Write a RST_STREAM frame (section 6.4)."""
    return _pack_update(4 << 8 | RST_STREAM, 0, stream_id, code)


def goaway_frame(code: int, debug: bytes) -> bytes:
    """Write a GOAWAY frame (section 6.8). Its last stream id is 0, since the peer opens no streams."""
    return _pack_header((8 + len(debug)) << 8 | GOAWAY, 0, 0) + _pack_goaway(0, code) + debug


def header_frames(stream_id: int, block: bytes, *, end_stream: bool, max_frame_size: int) -> bytes:
    """Write a field block as HEADERS and, if it is too long for one frame, CONTINUATION (section 6.10)."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return _pack_header(len(block) << 8 | HEADERS, flags | END_HEADERS, stream_id) + block
    frames = [_pack_header(max_frame_size << 8 | HEADERS, flags, stream_id), block[:max_frame_size]]
    for start in range(max_frame_size, len(block), max_frame_size):
        part = block[start : start + max_frame_size]
        last = END_HEADERS if start + max_frame_size >= len(block) else 0
        frames += (_pack_header(len(part) << 8 | CONTINUATION, last, stream_id), part)
    return b"".join(frames)


def unpad(flags: int, payload: bytes) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding (sections 6.1 and 6.2)."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame has no pad length")
    end = len(payload) - payload[0]
    # "If the length of the padding is the length of the frame payload or greater, the recipient MUST treat this
    # as a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
    if end < 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1:end]


def require_size(payload: bytes, size: int, name: str) -> None:
    """Raise `ConnectionFault` unless a frame of fixed size has that size (section 4.2)."""
    if len(payload) != size:
        raise ConnectionFault(
            ErrorCode.FRAME_SIZE_ERROR, f"a {name} frame of {len(payload)} bytes; {size} are right"
        )
