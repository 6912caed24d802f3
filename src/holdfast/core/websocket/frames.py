"""Frames of RFC 6455 as bytes: opcodes, headers, masks, and the payload of a Close frame."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Packing
from typing import Final

OP_CONTINUATION: Final = 0x0
OP_TEXT: Final = 0x1
OP_BINARY: Final = 0x2
OP_CLOSE: Final = 0x8
OP_PING: Final = 0x9
OP_PONG: Final = 0xA

CLOSE_NORMAL: Final = 1000
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_NO_STATUS: Final = 1005  # never on the wire: the peer's Close frame had no code
CLOSE_ABNORMAL: Final = 1006  # never on the wire: the connection ended without a Close frame
CLOSE_INVALID_TEXT: Final = 1007
CLOSE_TOO_BIG: Final = 1009

#: RFC 6455 section 5.5: "All control frames MUST have a payload length of 125 bytes or less".
MAX_CONTROL_PAYLOAD: Final = 125

# RFC 6455 section 7.4.1 and the IANA registry (1012-1014). 1004 is reserved; 1005, 1006 and 1015 are never sent.
_ASSIGNED_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})

_pack_medium: Final = Packing("!BBH").pack
_pack_long: Final = Packing("!BBQ").pack


class PeerFault(Exception):
    """Carries the peer's fault from the check that found it to `receive_data`, and no further."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def xor_mask(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask a payload with a 4-byte key (RFC 6455 section 5.3). It is used without the C routine."""
    size = len(payload)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(stream, "little")).to_bytes(size, "little")


unmask: Callable[[bytes, bytes], bytes]
# The C routine of `websockets`, on which we depend anyway, unmasks ten to a hundred times faster. It is no public
# part of that package and is not built on every platform: without it, `xor_mask` does the same.
try:
    from websockets.speedups import apply_mask
except ImportError:
    unmask = xor_mask
else:
    unmask = apply_mask


def frame_header(opcode: int, length: int) -> bytes:
    """Build the header of an unmasked, unfragmented frame with the shortest length field (section 5.2)."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65536:
        return _pack_medium(0x80 | opcode, 126, length)
    return _pack_long(0x80 | opcode, 127, length)


_TEXT_HEADERS: Final = tuple(frame_header(OP_TEXT, length) for length in range(1024))


def text_frame(payload: bytes) -> bytes:
    """Build a whole text frame. `payload` must be valid UTF-8; that is not checked here."""
    length = len(payload)
    if length < 1024:
        return _TEXT_HEADERS[length] + payload
    return frame_header(OP_TEXT, length) + payload


def is_sendable_close_code(code: int) -> bool:
    """Say whether a Close frame may carry this code (RFC 6455 section 7.4)."""
    return code in _ASSIGNED_CLOSE_CODES or 3000 <= code <= 4999


def check_length(length: int, width: int) -> None:
    # RFC 6455 section 5.2: "in all cases, the minimal number of bytes MUST be used to encode the length".
    if length < (126 if width == 2 else 65536):
        raise PeerFault(CLOSE_PROTOCOL_ERROR, "frame length is not in its shortest form")
    # Section 5.2: "the most significant bit MUST be 0".
    if length >> 63:
        raise PeerFault(CLOSE_PROTOCOL_ERROR, "frame length has its top bit set")


def parse_close(payload: bytes) -> tuple[int, str]:
    """Parse the payload of a Close frame into its code and reason."""
    if not payload:
        return CLOSE_NO_STATUS, ""
    # RFC 6455 section 5.5.1: "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned
    # integer (in network byte order) representing a status code with value /code/ defined in Section 7.4."
    if len(payload) == 1:
        raise PeerFault(CLOSE_PROTOCOL_ERROR, "Close frame with half a code")
    code = int.from_bytes(payload[:2], "big")
    if not is_sendable_close_code(code):
        raise PeerFault(CLOSE_PROTOCOL_ERROR, f"close code {code} must not be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise PeerFault(CLOSE_INVALID_TEXT, "close reason is not valid UTF-8") from None
