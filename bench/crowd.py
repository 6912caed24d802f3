"""A process of clients for the suites `scale` and `resume`: takes one command per line, answers with one.

    python -m bench.crowd PORT

Not for people: `bench.children.crowd` starts it. Commands and answers are JSON objects; see the methods of `Crowd`
for what can be done and what is answered. A command that fails is answered with `error`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from typing import Any

import uvloop

from bench.children import raise_descriptor_limit
from bench.readers import Reading, SessionReader, SseReader, Tally, sse_request, sse_resume
from bench.spread import percentile

#: Addresses of ours that take turns. One has about 28,000 ephemeral ports, and the fewer are left, the longer the
#: kernel looks for one: at 20,000 clients were stuck in it until the gateway lost patience with them.
_ADDRESSES = 50
_BATCH = 100


class Crowd:
    def __init__(self, port: int) -> None:
        self._port = port
        self._tally = Tally()
        self._idle: list[SessionReader] = []
        self._sessions: list[tuple[SessionReader, dict[str, Reading]]] = []
        self._opened = itertools.count()
        self._requests = itertools.count()

    # -- idle connections --

    async def open(self, count: int) -> dict[str, Any]:
        """Open idle sessions, 100 at a time; answers how many are open."""
        for start in range(0, count, _BATCH):
            batch = [self._connect({}) for _ in range(min(_BATCH, count - start))]
            self._idle += await asyncio.gather(*batch)
        return {"open": len(self._idle)}

    async def pings(self) -> dict[str, Any]:
        """Answers how many Pings came so far, and how many idle connections were lost."""
        lost = sum(client.is_lost for client in self._idle)
        return {"pings": sum(client.pings for client in self._idle), "lost": lost}

    async def storm(self, seconds: float) -> dict[str, Any]:
        """Cut all idle connections, and make them again at moments spread evenly over `seconds`.

        Answers the time from the connection to its `welcome`, and how many are not there at the end.
        """
        count = len(self._idle)
        for client in self._idle:
            client.cut()
        self._idle.clear()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        waits: list[float] = []

        async def come_back(number: int) -> None:
            await asyncio.sleep(begun + seconds * number / count - loop.time())
            try:
                client = await self._connect({})
            except OSError as exc:
                self._tally.fault(f"a connection of the storm failed: {exc}")
            else:
                waits.append(await client.welcomed)
                self._idle.append(client)

        await asyncio.gather(*(come_back(number) for number in range(count)))
        took = loop.time() - begun
        lost = count - sum(not client.is_lost for client in self._idle)
        return {"seconds": took, "lost": lost, "errors": self._tally.errors, **_milliseconds("welcome", waits)}

    # -- streams --

    async def create(self, count: int, sockets: int, sim: dict[str, object], spread_ms: float) -> dict[str, Any]:
        """Start streams on new sockets, and wait until each has its first entry.

        They begin at moments spread evenly over `spread_ms`, as streams of real clients would.
        """
        tally = self._tally
        begun = tally.begun
        sessions = [await self._open_session() for _ in range(sockets)]
        for number in range(count):
            session, _ = sessions[number % sockets]
            pace = {**sim, "seed": number, "ttft_ms": spread_ms * number / count}
            session.create(f"r{next(self._requests)}", pace)
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)  # let what was created be read meanwhile
        self._sessions += sessions
        await tally.until(begun=begun + count)
        return {"streams": tally.begun}

    async def tally(self) -> dict[str, Any]:
        """Answers what was received so far, and the time of it."""
        tally = self._tally
        counts = {
            name: getattr(tally, name) for name in ("entries", "ended", "lost", "doubled", "faults", "errors")
        }
        return {"time": time.perf_counter(), **counts}

    async def cut_all(self, away: float) -> dict[str, Any]:
        """Reset all sessions at once, stay away for `away` seconds, and come back all at once.

        Answers the times from the beginning of the connection to the next token, of each session.
        """
        running = [(session, readings) for session, readings in self._sessions if _are_running(readings)]
        if len(running) < len(self._sessions):
            raise RuntimeError("streams had ended before their connections were cut: they are too short")
        for session, _ in self._sessions:
            session.cut()
        await asyncio.sleep(away)
        returned = await asyncio.gather(*(self._resume(session, readings) for session, readings in running))
        self._sessions = [
            (session, readings) for (session, _), (_, readings) in zip(returned, running, strict=True)
        ]
        return {"resume": [wait * 1e3 for _, wait in returned]}

    async def finish(self, tokens: int) -> dict[str, Any]:
        """Wait for the end of all streams, check that each has all its tokens, and close; answers the tally."""
        readings = [reading for _, readings in self._sessions for reading in readings.values()]
        await self._until_ended(readings)
        self._check_complete(readings, tokens)
        for session, _ in self._sessions:
            session.cut()
        self._sessions.clear()
        return await self.tally()

    async def sse(self, cuts: int, away: float, sim: dict[str, object]) -> dict[str, Any]:
        """Read one answer over SSE to its end, cut so many times on the way; answers as `cut_all`."""
        loop = asyncio.get_running_loop()
        reading = Reading(self._tally)
        request = sse_request(f"r{next(self._requests)}", sim)
        _, reader = await loop.create_connection(lambda: SseReader(reading, request), "127.0.0.1", self._port)
        await reader.on_first
        waits = []
        for _ in range(cuts):
            if reading.is_ended:
                raise RuntimeError("the stream had ended before it was cut: it is too short")
            reader.cut()
            await asyncio.sleep(away)
            request = sse_resume(reading)
            begun = time.perf_counter()
            _, reader = await loop.create_connection(lambda: SseReader(reading, request), "127.0.0.1", self._port)  # noqa: B023
            waits.append(await reader.on_first - begun)
        await self._until_ended([reading])
        self._check_complete([reading], int(str(sim["tokens"])))
        reader.cut()
        return {"resume": [wait * 1e3 for wait in waits]}

    # -- inside --

    async def _connect(self, readings: dict[str, Reading], token: str | None = None) -> SessionReader:
        # Linux answers for all of 127.0.0.0/8.
        address = f"127.0.0.{2 + next(self._opened) % _ADDRESSES}"
        _, client = await asyncio.get_running_loop().create_connection(
            lambda: SessionReader(self._tally, readings, token), "127.0.0.1", self._port, local_addr=(address, 0)
        )
        await client.welcomed
        return client

    async def _open_session(self) -> tuple[SessionReader, dict[str, Reading]]:
        readings: dict[str, Reading] = {}
        return await self._connect(readings), readings

    async def _resume(self, session: SessionReader, readings: dict[str, Reading]) -> tuple[SessionReader, float]:
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: SessionReader(self._tally, readings, session.token), "127.0.0.1", self._port
        )
        client.on_first = loop.create_future()
        if client.first_entries:  # it came in the turn in which the connection was handed over
            client.on_first.set_result(min(client.first_entries.values()))
        return client, await client.on_first - begun

    async def _until_ended(self, readings: list[Reading]) -> None:
        left = sum(not reading.is_ended for reading in readings)
        await self._tally.until(ended=self._tally.ended + left)

    def _check_complete(self, readings: list[Reading], tokens: int) -> None:
        for reading in readings:
            if reading.next_token != tokens:
                self._tally.fault(f"stream {reading.id}: has {reading.next_token} tokens of {tokens}")


def _are_running(readings: dict[str, Reading]) -> bool:
    return all(not reading.is_ended for reading in readings.values())


def _milliseconds(name: str, waits: list[float]) -> dict[str, float]:
    return {f"{name}_p50_ms": percentile(waits, 0.5) * 1e3, f"{name}_p99_ms": percentile(waits, 0.99) * 1e3}


async def serve(port: int) -> None:
    crowd = Crowd(port)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_end)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = await getattr(crowd, command.pop("do"))(**command)
        except Exception as exc:  # noqa: BLE001 - the supervisor of a command: its fault is the answer
            answer = {"error": f"{type(exc).__name__}: {exc}; {crowd._tally.errors}"}
        print(json.dumps(answer), flush=True)


def _end(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A fault in a client's callback would leave a command waiting for ever: end, so that the suite fails."""
    loop.default_exception_handler(context)
    os._exit(1)


if __name__ == "__main__":
    raise_descriptor_limit()
    uvloop.run(serve(int(sys.argv[1])))
