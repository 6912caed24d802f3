"""What attackers speak: raw HTTP/1.1 and WebSocket (RFC 6455) over asyncio, with a tally of all that they did."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Seconds that an attacker waits before it comes back after it was thrown out.
_COME_BACK = 0.05
TEXT, BINARY, CLOSE, PING = 0x1, 0x2, 0x8, 0x9
CONTINUATION = 0x0


class Refused(OSError):
    """The gateway did not take what was begun, such as a handshake."""


@dataclass
class Tally:
    """What an attack did; by this the judge knows that it took place."""

    connections: int = 0
    sent: int = 0
    received: int = 0
    lost: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def shown(self) -> dict[str, Any]:
        return {
            "connections": self.connections,
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost,
            "notes": dict(self.notes),
        }


@dataclass
class Arena:
    """Whom an attack is made on, and with which credential."""

    port: int
    credential: str | None
    tls: bool
    tally: Tally

    async def connect(self) -> Line:
        """Open a connection, through TLS where the gateway has it."""
        context = trusting() if self.tls else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        self.tally.connections += 1
        return Line(reader, writer, self.tally)

    async def connect_raw(self) -> Line:
        """Open a connection without TLS, whatever the gateway wants."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.tally.connections += 1
        return Line(reader, writer, self.tally)

    def head(
        self, method: str, path: str, headers: Mapping[str, str | int] | Mapping[str, str] | None = None
    ) -> bytes:
        """Write the head of a request, with the credential if there is one."""
        fields: dict[str, str | int] = {"host": f"127.0.0.1:{self.port}", **(headers or {})}
        if self.credential is not None:
            fields.setdefault("authorization", f"Bearer {self.credential}")
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def post(self, body: bytes, headers: Mapping[str, str | int] | Mapping[str, str] | None = None) -> bytes:
        """Write a whole request for a completion."""
        own: dict[str, str | int] = {"content-type": "application/json", "content-length": len(body)}
        fields = {**own, **(headers or {})}
        return self.head("POST", "/v1/chat/completions", fields) + body

    async def websocket(self, *, hello: bool = True, subprotocol: str = "holdfast.v1") -> Line:
        """Open a WebSocket, and a session on it with `hello`. Raises `Refused` where the gateway does not."""
        line = await self.connect()
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13"}
        fields |= {"sec-websocket-key": key, "sec-websocket-protocol": subprotocol}
        try:
            await line.send(self.head("GET", "/v1/ws/stream", fields))
            if await line.answer() != 101:
                raise Refused("no WebSocket")
            if hello:
                await line.say(type="hello", version=1)
                await line.hear("welcome")
        except BaseException:
            line.abort()
            raise
        return line

    async def crowd(self, count: int, visit: Callable[[], Awaitable[None]]) -> None:
        """Let so many guests visit at a time, over and over, until this is cancelled."""

        async def guest() -> None:
            while True:
                try:
                    await visit()
                except (OSError, EOFError, asyncio.LimitOverrunError, ssl.SSLError):
                    self.tally.lost += 1
                    await asyncio.sleep(_COME_BACK)
                # A visit that never had to wait must not keep the others out.
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as guests:
            for _ in range(count):
                guests.create_task(guest())


class Line:
    """One connection of an attacker. Leaving the block cuts it off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally) -> None:
        self.reader = reader
        self.writer = writer
        self._tally = tally

    async def __aenter__(self) -> Line:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()

    def abort(self) -> None:
        self.writer.transport.abort()

    def half_close(self) -> None:
        self.writer.write_eof()

    async def send(self, data: bytes) -> None:
        """Send, and wait while the other side takes nothing. Only what it could take is counted."""
        self.writer.write(data)
        await self.writer.drain()
        self._tally.sent += len(data)
        if self.writer.transport.is_closing():
            raise ConnectionResetError("the gateway has closed the connection")

    async def answer(self) -> int:
        """Read one answer whole; return and count its status."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        self._tally.notes[str(status)] += 1
        self._tally.received += len(head)
        for name, _, value in (row.partition(b":") for row in head.lower().split(b"\r\n")):
            if name == b"content-length" and status not in (101, 204, 304):
                self._tally.received += len(await self.reader.readexactly(int(value)))
            elif name == b"transfer-encoding":
                while await self.chunk():
                    pass
        return status

    async def chunk(self) -> bytes:
        """Read one chunk of an answer (RFC 9112 section 7.1); the last one is empty."""
        size = int((await self.reader.readuntil(b"\r\n")).partition(b";")[0], 16)
        data = await self.reader.readexactly(size + 2)
        self._tally.received += len(data)
        return data[:-2]

    async def discard(self) -> None:
        """Read and forget until the other side ends."""
        while data := await self.reader.read(65536):
            self._tally.received += len(data)

    async def sip(self, pause: float) -> None:
        """Read one byte at a time."""
        while data := await self.reader.read(1):
            self._tally.received += len(data)
            await asyncio.sleep(pause)

    async def gone(self) -> None:
        """Wait until the other side has ended, and read nothing before; it may send next to nothing."""
        while not self.reader.at_eof() and not self.writer.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # without reading, nobody tells
        raise ConnectionResetError("the gateway has closed the connection")

    # -- WebSocket --

    async def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        await self.send(frame(opcode, payload, fin=fin))

    async def say(self, **message: Any) -> None:
        await self.frame(TEXT, json.dumps(message).encode())

    async def message(self) -> tuple[int, bytes]:
        """Read one frame of the gateway, which sends whole messages."""
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length > 125:
            length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8))
        payload = await self.reader.readexactly(length)
        self._tally.received += 2 + length
        if first & 0x0F == CLOSE:
            code = int.from_bytes(payload[:2])
            self._tally.notes[f"close {code}"] += 1
            raise Refused(f"closed with {code}")
        return first & 0x0F, payload

    async def hear(self, kind: str) -> dict[str, Any]:
        """Read messages until one of this type, or an error, has come; return it."""
        while True:
            opcode, payload = await self.message()
            if opcode == TEXT:
                message: dict[str, Any] = json.loads(payload)
                if message["type"] in (kind, "error"):
                    self._tally.notes[message["type"]] += 1
                    return message


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Write a client's frame (RFC 6455 section 5.2). A mask of zeros leaves the payload as it is."""
    size = len(payload)
    first = opcode | (0x80 if fin else 0)
    if size < 126:
        return bytes((first, 0x80 | size)) + b"\0\0\0\0" + payload
    if size < 65536:
        return bytes((first, 0x80 | 126)) + size.to_bytes(2) + b"\0\0\0\0" + payload
    return bytes((first, 0x80 | 127)) + size.to_bytes(8) + b"\0\0\0\0" + payload


def open_frame(opcode: int, size: int) -> bytes:
    """Write only the head of a frame of `size` bytes that is not the last of its message."""
    return bytes((opcode, 0x80 | 127)) + size.to_bytes(8) + b"\0\0\0\0"


@functools.cache
def trusting() -> ssl.SSLContext:
    """Take any certificate: the gateway's is its own. Nothing is loaded, which would hold the event loop up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
