"""A WebSocket client's frames, as cheap as they get: masked with zeros on the way out, split on the way in."""

from __future__ import annotations

from collections.abc import Iterator

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A

#: The opening handshake for a session of Holdfast's own protocol; `%b` is further header lines.
HANDSHAKE = (
    b"GET /v1/ws/stream HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-protocol: holdfast.v1\r\n%b\r\n"
)


def client_frame(payload: bytes, first: int = TEXT) -> bytes:
    """Write a frame of at most 65,535 bytes, masked with zeros.

    RFC 6455 section 5.3 wants a random mask to guard proxies, not servers; this one costs neither side anything.
    """
    size = len(payload)
    if size > 65_535:
        raise ValueError(f"a benchmark's frame holds at most 65535 bytes, not {size}")
    head = bytes((first, 0x80 | size)) if size < 126 else bytes((first, 0xFE)) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


class FrameSplitter:
    """Splits what a server sends into frames: its first byte and its payload. Servers do not mask."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the frames that are complete with these bytes; to be exhausted before the next call."""
        data = self._held + data if self._held else data
        at, size = 0, len(data)
        while size - at >= 2:
            length = data[at + 1]
            start = at + 2
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if start > size or start + length > size:
                break
            yield data[at], data[start : start + length]
            at = start + length
        self._held = data[at:]
