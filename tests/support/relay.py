"""A TCP proxy that cuts connections where a test says: behind so many messages, or at an exact byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True)
class Cut:
    """Where one connection ends: behind `messages` WebSocket messages, or behind `offset` bytes, of one direction.

    What lies before the cut is delivered. `fin` then ends both sockets in order, `rst` resets them, so that what
    was delivered may still be lost before it is read.
    """

    direction: Literal["up", "down"]  # from the client, or to it
    messages: int | None = None
    offset: int | None = None
    how: Literal["fin", "rst"] = "fin"


class MessageCounter:
    """Counts whole WebSocket messages behind an HTTP head, unfragmented as the two ends send them."""

    def __init__(self) -> None:
        self.messages = 0
        self.head = b""
        self._buffer = bytearray()
        self._payload = 0  # bytes still to come of the frame
        self._is_data = False

    def feed(self, data: bytes, *, limit: int | None = None) -> int:
        """Take bytes up to the end of message `limit`; return how many were taken."""
        taken = 0
        while taken < len(data):
            if limit is not None and self.messages >= limit and self._has_head:
                break
            taken += self._take(data[taken:])
        return taken

    @property
    def _has_head(self) -> bool:
        return self.head.endswith(b"\r\n\r\n")

    def _take(self, data: bytes) -> int:
        if not self._has_head:
            self.head += data[:1]
            return 1
        if self._payload:
            size = min(self._payload, len(data))
            self._payload -= size
        else:
            size = 1
            self._buffer += data[:1]
            length = self._length()
            if length is None:
                return 1
            self._is_data = self._buffer[0] & 0x0F < 8
            self._payload = length
            self._buffer.clear()
        if not self._payload and self._is_data:
            self.messages += 1
        return size

    def _length(self) -> int | None:
        """The length of the payload, once its header is complete."""
        header = self._buffer
        if len(header) < 2:
            return None
        short = header[1] & 0x7F
        extended = {126: 2, 127: 8}.get(short, 0)
        if len(header) < 2 + extended + (4 if header[1] & 0x80 else 0):
            return None
        return int.from_bytes(header[2 : 2 + extended], "big") if extended else short


class Proxy:
    """Forwards to `port`; `plan` says where each connection, by its number from 0, is cut."""

    def __init__(self, port: int, plan: Callable[[int], Cut | None] = lambda _: None) -> None:
        self._port = port
        self._plan = plan
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        #: Cuts that were carried out.
        self.cuts = 0
        #: Messages that were forwarded, by direction.
        self.messages = {"up": 0, "down": 0}
        #: Bytes that were forwarded, by direction.
        self.bytes = {"up": 0, "down": 0}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self._plan(self.connections)
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, cut))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Cut | None) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        relays = [
            asyncio.create_task(self._relay("up", reader, up_writer, cut)),
            asyncio.create_task(self._relay("down", up_reader, writer, cut)),
        ]
        try:
            await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for relay in relays:
                relay.cancel()
            was_cut = [r is True for r in await asyncio.gather(*relays, return_exceptions=True)]
            self.cuts += any(was_cut)
            for end in (writer, up_writer):
                if any(was_cut) and cut is not None and cut.how == "rst":
                    _reset(end)
                end.close()
            for end in (writer, up_writer):
                try:
                    await end.wait_closed()
                except OSError:
                    pass

    async def _relay(
        self,
        direction: Literal["up", "down"],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        cut: Cut | None,
    ) -> bool:
        """Forward until the end, or until the cut: then return True."""
        counter, forwarded = MessageCounter(), 0
        mine = cut if cut is not None and cut.direction == direction else None
        try:
            while True:
                if mine is not None and mine.offset is not None and forwarded >= mine.offset:
                    return True
                data = await reader.read(1 << 16)
                if not data:
                    return False
                size = len(data)
                if mine is not None and mine.offset is not None:
                    size = min(size, mine.offset - forwarded)
                before = counter.messages
                taken = counter.feed(data[:size], limit=None if mine is None else mine.messages)
                forwarded += taken
                self.messages[direction] += counter.messages - before
                self.bytes[direction] += taken
                writer.write(data[:taken])
                await writer.drain()
                if mine is not None and mine.messages is not None and taken < size:
                    return True
                if mine is not None and counter.messages == mine.messages and counter.head.endswith(b"\r\n\r\n"):
                    return True
        except OSError:
            return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the socket end with a TCP reset."""
    handle = writer.get_extra_info("socket")
    if handle is not None:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
