"""The honest callers: `python -m chaos.hostile.honest`, steered by one line of JSON on its standard input.

One streams over a session, one over SSE, one generation after another of a token each 20 ms; one asks `/healthz`
each 10 ms, and one each 250 ms on a new connection. What came is in a journal that `chaos.checker` can judge; how
long it took is written as one line of JSON at the end. None of them tries anything twice: they have done no wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.processes import raise_descriptor_limit
from chaos.clients.entries import text_of
from chaos.hostile.clock import Clock, Stamp
from chaos.hostile.wire import TEXT, Arena, Line, Tally, trusting
from chaos.journal import Journal, StreamJournal

PACE_MS = 20.0
PROBE_MS = 10.0
DOOR_MS = 250.0
TTFT_MS = 20.0
#: Seconds of one generation.
_STREAM = 2.0
#: Seconds beyond its time after which a stream hangs, and those that a probe may take.
_HANGS = 10.0
_PRIORITY = -10


class _TimedReader(asyncio.StreamReader):
    """Remembers when the last bytes came."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(limit=1 << 20)
        self._clock = clock
        self.stamp = clock.stamp()

    def feed_data(self, data: Any) -> None:
        self.stamp = self._clock.stamp()
        super().feed_data(data)


@dataclass
class _TimedArena(Arena):
    """Makes connections whose reader knows when bytes came."""

    clock: Clock = field(kw_only=True)

    async def connect(self) -> Line:
        loop = asyncio.get_running_loop()
        reader = _TimedReader(self.clock)
        protocol = asyncio.StreamReaderProtocol(reader)
        context = trusting() if self.tls else None
        transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", self.port, ssl=context)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return Line(reader, writer, self.tally)


def _stamp_of(line: Line) -> Stamp:
    reader = line.reader
    if not isinstance(reader, _TimedReader):
        raise TypeError("this connection has no clock")
    return reader.stamp


@dataclass
class Honest:
    """All honest callers of one row. Times are pairs: in ms as they are judged, and as they were."""

    arena: _TimedArena
    journal: Journal
    seconds: float
    gaps: list[tuple[float, float]] = field(default_factory=list)
    probes: list[tuple[float, float]] = field(default_factory=list)
    doors: list[tuple[float, float]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    async def run(self) -> dict[str, Any]:
        clock = self.arena.clock
        first = clock.stamp()
        asking = [asyncio.create_task(self._probe()), asyncio.create_task(self._knock())]
        await asyncio.gather(self._generations("session"), self._generations("sse"))
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        last = clock.stamp()
        return {
            "gaps": self.gaps,
            "probes": self.probes,
            "doors": self.doors,
            "refused": self.refused[:20],
            "seconds": (last.raw - first.raw) / 1e9,
            "gateway_waited": (last.stolen - first.stolen) / 1e9,
            "own_waited": clock.own / 1e9,
        }

    # -- streams --

    async def _generations(self, kind: str) -> None:
        count = max(1, round(self.seconds / _STREAM))
        for number in range(count):
            tokens = int(self.seconds / count * 1000 / PACE_MS)
            seed = number + (1000 if kind == "sse" else 0)
            sim = {"tokens": tokens, "interval_ms": PACE_MS, "ttft_ms": TTFT_MS, "seed": seed, "timestamps": True}
            plan: dict[str, Any] = {"id": f"{kind}-{os.urandom(6).hex()}", "model": "honest", "sim": sim}
            journal = StreamJournal(self.journal, plan["id"])
            journal.begin(kind, plan)
            over = time.monotonic() + tokens * PACE_MS / 1000
            try:
                async with asyncio.timeout(tokens * PACE_MS / 1000 + _HANGS):
                    await (self._over_session if kind == "session" else self._over_sse)(plan, journal)
            except TimeoutError:
                journal.end("failed", "hangs")
            except (OSError, EOFError) as exc:
                journal.end("failed", "connection", message=repr(exc))
            if journal.after < 0:
                # It was refused: the others still have their time.
                await asyncio.sleep(max(0.0, over - time.monotonic()))

    def _request(self, plan: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": "hi"}]
        return {"model": plan["model"], "stream": True, "messages": messages, "sim": plan["sim"]}

    async def _over_session(self, plan: dict[str, Any], journal: StreamJournal) -> None:
        async with await self.arena.websocket() as line:
            gaps = _Gaps(self.gaps, self.arena.clock)
            await line.say(type="create", request_id=plan["id"], request=self._request(plan))
            acknowledged = time.monotonic()
            while not journal.is_over:
                opcode, payload = await line.message()
                if opcode != TEXT:
                    continue
                message = json.loads(payload)
                kind = message["type"]
                if kind == "accepted":
                    journal.identify(message["stream"])
                    journal.read_from(-1)
                elif kind in ("event", "events"):
                    entries = message["data"] if kind == "events" else [message["data"]]
                    gaps.take(_stamp_of(line), entries)
                    journal.got(message["seq"], [text_of(entry) for entry in entries])
                elif kind == "end":
                    code = (message.get("error") or {}).get("code")
                    journal.end(message["status"], code, message["seq"], str(message.get("error")))
                elif kind == "error":
                    journal.end("failed", message["code"], message=message["message"])
                if journal.stream_id and (journal.is_over or time.monotonic() - acknowledged > 1):
                    acknowledged = time.monotonic()
                    await line.say(type="ack", streams={journal.stream_id: journal.after + journal.is_over})

    async def _over_sse(self, plan: dict[str, Any], journal: StreamJournal) -> None:
        body = json.dumps(self._request(plan)).encode()
        async with await self.arena.connect() as line:
            gaps = _Gaps(self.gaps, self.arena.clock)
            await line.send(self.arena.post(body, {"holdfast-request-id": plan["id"]}))
            head = await line.reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                journal.end(
                    "failed", f"http_{head[9:12].decode()}", message=(await line.reader.read(500)).decode()
                )
                return
            _, _, behind = head.partition(b"holdfast-stream-id: ")
            journal.identify(behind.partition(b"\r\n")[0].decode())
            journal.read_from(-1)
            text = b""
            while not journal.is_over:
                chunk = await line.chunk()
                if not chunk:
                    raise EOFError("the answer ended without its end")
                text += chunk
                *events, text = text.split(b"\n\n")
                for event in events:
                    _take_event(event, journal, gaps, _stamp_of(line))

    # -- probes --

    async def _probe(self) -> None:
        """Ask on one connection, in time or as soon as the answer before has come.

        A gateway may close a connection between two requests. Then the request is sent again on a new one, as
        clients do (RFC 9112 section 9.3.1), and its time is counted from the first.
        """
        request = replace(self.arena, credential=None).head("GET", "/healthz")
        due, begun = time.monotonic(), None
        while True:
            asked = 0
            try:
                async with await self.arena.connect() as line:
                    while True:
                        begun = begun or self.arena.clock.stamp()
                        async with asyncio.timeout(_HANGS):
                            await self._ask(line, request, self.probes, begun)
                        asked, begun = asked + 1, None
                        due = max(due + PROBE_MS / 1000, time.monotonic())
                        await asyncio.sleep(max(0.0, due - time.monotonic()))
            except (OSError, EOFError, TimeoutError) as exc:
                if asked and not isinstance(exc, TimeoutError):
                    continue
                begun = None
                self.refused.append(f"probe: {exc!r}")
                await asyncio.sleep(0.05)

    async def _knock(self) -> None:
        """Ask on a new connection each time."""
        request = replace(self.arena, credential=None).head("GET", "/healthz", {"connection": "close"})
        while True:
            try:
                async with asyncio.timeout(_HANGS):
                    begun = self.arena.clock.stamp()
                    async with await self.arena.connect() as line:
                        await self._ask(line, request, self.doors, begun)
            except (OSError, EOFError, TimeoutError) as exc:
                self.refused.append(f"door: {exc!r}")
            await asyncio.sleep(DOOR_MS / 1000)

    async def _ask(self, line: Line, request: bytes, times: list[tuple[float, float]], begun: Stamp) -> None:
        await line.send(request)
        status = await line.answer()
        came = _stamp_of(line)
        if status != 200:
            raise ConnectionError(f"status {status}")
        waited = came.stolen - begun.stolen
        times.append((max(0, came.at - begun.raw - waited) / 1e6, (came.raw - begun.raw) / 1e6))


class _Gaps:
    """Measures the gaps of one stream; made at the moment in which it is asked for."""

    def __init__(self, gaps: list[tuple[float, float]], clock: Clock) -> None:
        self._gaps = gaps
        self._last = clock.stamp()
        self._is_first = True

    def take(self, stamp: Stamp, entries: list[Any]) -> None:
        for entry in entries:
            if not text_of(entry):
                continue
            if self._is_first:
                # As if a token had come one pace before this one was due.
                begun = self._last.raw + int((TTFT_MS - PACE_MS) * 1e6)
            else:
                begun = max(self._last.at, entry["sim_sent_ns"] - int(PACE_MS * 1e6))
            self._is_first = False
            waited = stamp.stolen - self._last.stolen
            gap = max(0, stamp.at - begun)
            # Within the pace the gateway had nothing to deliver, so whatever it waited then has made nobody late.
            judged = max(gap - waited, min(gap, int(PACE_MS * 1e6)))
            self._gaps.append((judged / 1e6, (stamp.raw - self._last.raw) / 1e6))
            self._last = stamp


def _take_event(event: bytes, journal: StreamJournal, gaps: _Gaps, stamp: Stamp) -> None:
    fields = dict(row.split(b": ", 1) for row in event.split(b"\n") if b": " in row and not row.startswith(b":"))
    data = fields.get(b"data")
    if data is None or journal.is_over:
        return
    seq = int(fields.get(b"id", b"-1").rpartition(b"-")[2])
    if data == b"[DONE]":
        journal.end("completed", seq=seq)
        return
    body = json.loads(data)
    if "error" in body:
        journal.end("failed", str(body["error"].get("code")), seq=seq, message=str(body))
        return
    gaps.take(stamp, [body])
    journal.got(seq, [text_of(body)])


def main() -> None:
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    raise_descriptor_limit()
    order = json.loads(sys.stdin.readline())
    clock = Clock(order["gateway"])
    arena = _TimedArena(order["port"], order["key"], order["tls"], Tally(), clock=clock)
    honest = Honest(arena, Journal(Path(order["journal"])), order["seconds"])
    print("ready", flush=True)
    print(json.dumps(asyncio.run(honest.run())), flush=True)


if __name__ == "__main__":
    main()
