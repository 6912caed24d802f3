"""A TCP relay in a process of its own that makes one link go wrong as it is told, by JSON lines on standard input.

    {"kind": "target", "port": 4711}                          where new connections go to
    {"kind": "cut"}                                           all connections end with FIN
    {"kind": "reset"}                                         the same with RST
    {"kind": "reset_at", "direction": "down", "offset": 900, "count": 2}
                                                              each of the next connections, after so many bytes
    {"kind": "black_hole", "direction": "up", "seconds": 3, "then": "go_on" or "reset"}
                                                              nothing passes, also on new connections; afterwards
                                                              what was held arrives, or those connections are reset
    {"kind": "throttle", "bytes_per_second": 9000, "seconds": 3}     together for all connections and directions
    {"kind": "delay", "ms": 200, "seconds": 3}
    {"kind": "heal"}                                          end all that lasts

TCP promises that what arrives is whole and in order, so a black hole holds bytes back, as lost packets that are
sent again do, and never takes some out of the middle.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import uvloop

from chaos.journal import Journal

_CHUNK = 16 * 1024
_DIRECTIONS = ("up", "down")


class Pair:
    """One connection and its far side."""

    def __init__(self, near: asyncio.StreamWriter, limit: tuple[str, int] | None) -> None:
        self.writers = [near]
        self.limit = limit
        self.tasks: list[asyncio.Task[None]] = []

    def end(self, *, reset: bool) -> None:
        for writer in self.writers:
            handle = writer.get_extra_info("socket")
            if reset and handle is not None:
                try:
                    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                except OSError:
                    pass  # closed already
            # `abort` without the option: what was not sent yet is dropped, then FIN.
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class FaultProxy:
    """The relay. `order` is called with one of the faults above; the journal is told of each when it happens."""

    def __init__(self, name: str, journal: Journal) -> None:
        self.name = name
        self.target = 0
        self._journal = journal
        self.pairs: set[Pair] = set()
        self._server: asyncio.Server | None = None
        self._limits: deque[tuple[str, int]] = deque()
        self._open = {direction: asyncio.Event() for direction in _DIRECTIONS}
        self._rate: int | None = None
        self._is_unthrottled = asyncio.Event()
        self._free_at = 0.0
        self._delay = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        for event in self._open.values():
            event.set()

    async def start(self) -> int:
        """Listen; return the port."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=_CHUNK)
        return int(self._server.sockets[0].getsockname()[1])

    # -- faults --

    def order(self, fault: dict[str, Any]) -> None:
        kind = fault["kind"]
        if kind not in ("target", "heal", "reset_at"):
            until = time.monotonic() + fault.get("seconds", 0.0)
            self._journal.write(target=self.name, kind=kind, until=until, connections=len(self.pairs))
        getattr(self, "_do_" + kind)(fault)

    def _do_target(self, fault: dict[str, Any]) -> None:
        self.target = fault["port"]

    def _do_cut(self, fault: dict[str, Any]) -> None:
        self._end_all(reset=False)

    def _do_reset(self, fault: dict[str, Any]) -> None:
        self._end_all(reset=True)

    def _do_reset_at(self, fault: dict[str, Any]) -> None:
        self._limits.extend([(fault["direction"], fault["offset"])] * fault["count"])

    def _do_black_hole(self, fault: dict[str, Any]) -> None:
        for direction in _DIRECTIONS if fault["direction"] == "both" else (fault["direction"],):
            self._open[direction].clear()
        self._later(fault["seconds"], lambda: self._end_black_hole(reset=fault["then"] == "reset"))

    def _end_black_hole(self, *, reset: bool) -> None:
        if reset:
            self._end_all(reset=True)
        for event in self._open.values():
            event.set()

    def _do_throttle(self, fault: dict[str, Any]) -> None:
        self._rate = fault["bytes_per_second"]
        self._is_unthrottled.clear()
        self._later(fault["seconds"], self._end_throttle)

    def _end_throttle(self) -> None:
        self._rate = None
        self._free_at = 0.0
        self._is_unthrottled.set()

    def _do_delay(self, fault: dict[str, Any]) -> None:
        self._delay = fault["ms"] / 1000
        self._later(fault["seconds"], self._end_delay)

    def _end_delay(self) -> None:
        self._delay = 0.0

    def _do_heal(self, fault: dict[str, Any]) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._limits.clear()
        self._end_throttle()
        self._end_delay()
        self._end_black_hole(reset=False)

    def _later(self, seconds: float, then: Any) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, then))

    def _end_all(self, *, reset: bool) -> None:
        for pair in list(self.pairs):
            pair.end(reset=reset)

    # -- relaying --

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = Pair(writer, self._limits.popleft() if self._limits else None)
        self.pairs.add(pair)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=_CHUNK)
            pair.writers.append(far_writer)
            if pair not in self.pairs:
                return
            pair.tasks = [
                asyncio.ensure_future(self._relay("up", reader, far_writer, pair)),
                asyncio.ensure_future(self._relay("down", far_reader, writer, pair)),
            ]
            await asyncio.wait(pair.tasks)
        except OSError:
            pass  # nobody listens: the gateway is down
        finally:
            self.pairs.discard(pair)
            pair.end(reset=False)

    async def _relay(
        self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: Pair
    ) -> None:
        left = pair.limit[1] if pair.limit is not None and pair.limit[0] == direction else None
        try:
            # With a low rate in small pieces, so that all connections move.
            while data := await reader.read(_CHUNK if self._rate is None else max(256, self._rate // 20)):
                if self._delay:
                    await asyncio.sleep(self._delay)
                if self._rate is not None:
                    await self._wait_for_line(len(data), self._rate)
                await self._open[direction].wait()
                if left is not None:
                    data, left = data[:left], left - len(data)
                writer.write(data)
                await writer.drain()
                if left is not None and left <= 0:
                    # What lies before the offset is to arrive; a reset at once could drop it on this side.
                    await asyncio.sleep(0.02)
                    self._journal.write(target=self.name, kind="reset_at", connections=1)
                    pair.end(reset=True)
                    return
            await self._open[direction].wait()
            writer.write_eof()
        except OSError:
            pair.end(reset=True)

    async def _wait_for_line(self, size: int, rate: int) -> None:
        """Wait until so many bytes have passed the line, which all connections share, or the throttle ends."""
        self._free_at = max(self._free_at, asyncio.get_running_loop().time()) + size / rate
        try:
            async with asyncio.timeout_at(self._free_at):
                await self._is_unthrottled.wait()
        except TimeoutError:
            pass  # the bytes have passed


async def _main() -> None:
    proxy = FaultProxy(sys.argv[1], Journal(Path(sys.argv[2])))
    print(await proxy.start(), flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # The end of the input is the end of whoever gives the orders.
    while line := await reader.readline():
        proxy.order(json.loads(line))


if __name__ == "__main__":
    try:
        uvloop.run(_main())
    except KeyboardInterrupt:
        pass
