"""HTTP/2 framing (RFC 9113 sections 4, 6 and 7): constants, and frames as bytes."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = 0x5, 0x6, 0x7
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_SIZE = 16_384
MAX_WINDOW = 0x7FFF_FFFF

_pack_header = struct.Struct(">HBBBL").pack
unpack_header = struct.Struct(">HBBBL").unpack_from


class Http2Error(Exception):
    """A breach of the protocol. Without `stream_id` it ends the connection."""

    def __init__(self, code: int, reason: str, stream_id: int = 0) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.stream_id = stream_id


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    return _pack_header(length >> 8, length & 0xFF, kind, flags, stream_id)


def header_frames(stream_id: int, block: bytes, first_size: int, next_size: int) -> bytes:
    """Return HEADERS and as many CONTINUATION frames as the sizes require (RFC 9113 sections 6.2 and 6.10)."""
    pieces = [block[:first_size]]
    pieces += [block[at : at + next_size] for at in range(first_size, len(block), next_size)]
    frames = b""
    for number, piece in enumerate(pieces):
        flags = END_HEADERS if number == len(pieces) - 1 else 0
        frames += frame_header(len(piece), CONTINUATION if number else HEADERS, flags, stream_id) + piece
    return frames


def settings_frame(values: dict[int, int]) -> bytes:
    body = b"".join(struct.pack(">HL", key, value) for key, value in values.items())
    return frame_header(len(body), SETTINGS, 0, 0) + body


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    return frame_header(4, RST_STREAM, 0, stream_id) + code.to_bytes(4, "big")


def window_update_frame(stream_id: int, increment: int) -> bytes:
    return frame_header(4, WINDOW_UPDATE, 0, stream_id) + increment.to_bytes(4, "big")


def goaway_frame(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    body = struct.pack(">LL", last_stream_id, code) + debug
    return frame_header(len(body), GOAWAY, 0, 0) + body


def unpadded(payload: bytes, flags: int) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding (RFC 9113 section 6.1)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1 : len(payload) - payload[0]]
