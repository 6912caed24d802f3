"""A blocking WebSocket client that can send any bytes and takes nothing but correct frames from a server."""

from __future__ import annotations

import base64
import hashlib
import socket
from types import TracebackType

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
MASK = b"\x37\xfa\x21\x3d"
DEADLINE = 20.0

Frame = tuple[int, bytes]


def xor(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    stream = int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ stream).to_bytes(size, "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, width: int | None = None) -> bytes:
    """Build a masked client frame; `width` (0, 2 or 8 bytes) forces a length field that need not be minimal."""
    size = len(payload)
    if width is None:
        width = 0 if size < 126 else 2 if size < 65536 else 8
    marker = {0: size, 2: 126, 8: 127}[width]
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode, 0x80 | marker)) + size.to_bytes(8, "big")[8 - width :]
    return head + MASK + xor(payload, MASK)


def fragments(opcode: int, pieces: list[bytes]) -> list[bytes]:
    last = len(pieces) - 1
    return [
        frame(opcode if index == 0 else CONTINUATION, piece, fin=index == last)
        for index, piece in enumerate(pieces)
    ]


def close_frame(code: int | None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


class RawClient:
    """One connection. Every wait has a deadline, so that a server that does not answer fails the test."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, content: bytes, chop: int | None = None) -> None:
        """Write `content`, `chop` bytes at a time; a server that has cut the connection ends that silently."""
        step = chop or max(len(content), 1)
        pieces = [content[start : start + step] for start in range(0, len(content), step)]
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # what the server said before that is still to be read

    def shake_hands(self, *, after: bytes = b"", chop: int | None = None) -> None:
        self.send(handshake_request() + after, chop)
        status, headers = self.read_response()
        assert status == 101
        token = hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        assert headers[b"sec-websocket-accept"] == base64.b64encode(token)
        assert headers[b"upgrade"].lower() == b"websocket"
        assert headers[b"connection"].lower() == b"upgrade"
        assert b"sec-websocket-extensions" not in headers

    def read_response(self) -> tuple[int, dict[bytes, bytes]]:
        while b"\r\n\r\n" not in self.received:
            self.received += self._read_some()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        fields = (line.partition(b": ") for line in lines)
        return int(status_line.split(b" ")[1]), {name.lower(): value for name, _, value in fields}

    def read_frame(self) -> Frame:
        """Read one frame and hold it against the rules for a server that uses no extension and no fragments."""
        first, second = self._read_exactly(2)
        opcode, size = first & 0x0F, second & 0x7F
        assert first & 0xF0 == 0x80, "FIN must be set and the reserved bits must not"
        assert second < 0x80, "a server's frame is not masked"
        if size == 126:
            size = int.from_bytes(self._read_exactly(2), "big")
            assert size > 125, "the length field is longer than it needs to be"
        elif size == 127:
            size = int.from_bytes(self._read_exactly(8), "big")
            assert size > 65535, "the length field is longer than it needs to be"
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        assert opcode < CLOSE or size < 126
        return opcode, self._read_exactly(size)

    def read_to_close(self) -> tuple[list[Frame], bytes]:
        """Read frames up to the Close frame and return them apart from its payload."""
        frames = []
        while (received := self.read_frame())[0] != CLOSE:
            frames.append(received)
        return frames, received[1]

    def read_eof(self) -> None:
        """Expect that the server, having sent its Close frame, sends nothing more and ends the connection."""
        try:
            assert self.received + self.socket.recv(1) == b""
        except ConnectionResetError:
            pass  # bytes of ours came after it had closed the socket; nothing was lost by that

    def _read_some(self) -> bytes:
        piece = self.socket.recv(1 << 18)
        assert piece, "the server ended the connection without a Close frame"
        return piece

    def _read_exactly(self, size: int) -> bytes:
        pieces, missing = [self.received], size - len(self.received)
        while missing > 0:
            pieces.append(self._read_some())
            missing -= len(pieces[-1])
        content = b"".join(pieces)
        self.received = content[size:]
        return content[:size]


def handshake_request(method: bytes = b"GET", **changes: bytes | None) -> bytes:
    """Build an upgrade request; a keyword changes the header of that name, None leaves it out."""
    headers: dict[str, bytes | None] = {
        "host": b"127.0.0.1",
        "upgrade": b"websocket",
        "connection": b"keep-alive, Upgrade",
        "sec_websocket_key": KEY,
        "sec_websocket_version": b"13",
        "sec_websocket_extensions": b"permessage-deflate; client_max_window_bits",
    }
    headers.update(changes)
    lines = [
        name.replace("_", "-").encode() + b": " + value for name, value in headers.items() if value is not None
    ]
    return b"\r\n".join([method + b" / HTTP/1.1", *lines]) + b"\r\n\r\n"
