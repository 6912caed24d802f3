"""A TCP relay that cuts connections where a test says, resets them all at once, or falls silent."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

_T = TypeVar("_T")

Direction = Literal["up", "down"]  # from the client, or to it


@dataclass(frozen=True)
class Cut:
    """Where one connection ends: behind `messages` WebSocket messages, or behind `offset` bytes, of one direction.

    What lies before the cut is delivered. `fin` then ends both sockets in order, `rst` resets them, so that what
    was delivered may still be lost before it is read.
    """

    direction: Direction
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


class Relay:
    """Forwards to `port`; `plan` says where each connection, by its number from 0, is cut."""

    def __init__(self, port: int, plan: Callable[[int], Cut | None] = lambda _: None) -> None:
        #: Where new connections lead.
        self.target = port
        #: While this is set, what comes is taken and not passed on; the sockets stay open.
        self.is_black_hole = False
        self.connections = 0
        #: Cuts of the plan that were carried out.
        self.cuts = 0
        #: Messages that were forwarded, by direction.
        self.messages = {"up": 0, "down": 0}
        #: Bytes that were forwarded, by direction.
        self.bytes = {"up": 0, "down": 0}
        self._plan = plan
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> int:
        """Reset all connections, as a NAT that lost its state does; return how many there were."""
        pairs, self._open = self._open, set()
        for pair in pairs:
            for end in pair:
                _reset(end)
        return len(pairs)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = self._plan(self.connections)
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, cut))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Cut | None) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        pair = (writer, far_writer)
        self._open.add(pair)
        ways = [
            asyncio.create_task(self._forward("up", reader, far_writer, cut)),
            asyncio.create_task(self._forward("down", far_reader, writer, cut)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(pair)
            for way in ways:
                way.cancel()
            was_cut = any(result is True for result in await asyncio.gather(*ways, return_exceptions=True))
            self.cuts += was_cut
            for end in pair:
                if was_cut and cut is not None and cut.how == "rst":
                    _reset(end)
                end.close()  # what was written still arrives: an abort would move the cut
            for end in pair:
                try:
                    await end.wait_closed()
                except OSError:
                    pass

    async def _forward(
        self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Cut | None
    ) -> bool:
        """Forward until the end, or until the cut: then return True."""
        counter, forwarded = MessageCounter(), 0
        mine = cut if cut is not None and cut.direction == direction else None
        try:
            while mine is None or mine.offset is None or forwarded < mine.offset:
                data = await reader.read(1 << 16)
                if not data:
                    return False
                if self.is_black_hole:
                    continue
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
            return True
        except OSError:
            return False


class ThreadedRelay:
    """A relay for programs without an event loop: its own runs in a thread until `close`."""

    def __init__(self, port: int) -> None:
        self._relay = Relay(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._relay.__aenter__())
        self.port = self._relay.port

    def reset(self) -> int:
        """Reset all connections; return how many there were."""

        async def reset() -> int:
            return self._relay.reset()

        return self._run(reset())

    def close(self) -> None:
        self._run(self._relay.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the socket end with a TCP reset."""
    handle = writer.get_extra_info("socket")
    if handle is not None:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
