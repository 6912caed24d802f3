"""A WebSocket client's frames (RFC 6455 section 5), as cheap as they get: they are part of what a load costs."""

from __future__ import annotations

from collections.abc import Iterator

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A


def client_frame(payload: bytes, first: int = TEXT) -> bytes:
    """Write a frame. Its mask is zeros: random ones protect proxies from web pages (RFC 6455 section 10.3)."""
    size = len(payload)
    if size < 126:
        return bytes((first, 0x80 | size)) + b"\0\0\0\0" + payload
    if size < 65_536:
        return bytes((first, 0x80 | 126)) + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return bytes((first, 0x80 | 127)) + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


class FrameSplitter:
    """Splits what a server sends into frames. Servers do not mask (RFC 6455 section 5.1)."""

    __slots__ = ("_needed", "_parts", "_received")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._received = 0
        #: Bytes that have to be there before it is worth looking again: a message may come in many reads.
        self._needed = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the first byte and the payload of each frame that is complete with these bytes.

        Exhaust it before the next call.
        """
        if self._parts:
            self._parts.append(data)
            self._received += len(data)
            if self._received < self._needed:
                return
            data = b"".join(self._parts)
        at, size = 0, len(data)
        self._needed = 0
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[start : start + 2], "big"), start + 2
            elif length == 127:
                length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            end = start + length
            if start > size or end > size:
                self._needed = end - at if start <= size else start - at
                break
            yield data[at], data[start:end]
            at = end
        self._parts = [data[at:]] if at < size else []
        self._received = size - at
