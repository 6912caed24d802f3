"""A worker: a process of its own that carries a load, and says what it counted.

    python -m holdfast_tools.bench.worker

On standard input it gets lines of JSON: a `Plan`, then any number of orders, one after the other. It answers the
plan and each order with a `Tally` on standard output, `Begin` with one more for each window. The plan comes this
way because it holds the credential, which a command line would show to everybody on the machine.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import cast

import msgspec
import uvloop

from holdfast_tools.bench.countdown import Countdown
from holdfast_tools.bench.http import SseReader
from holdfast_tools.bench.load import Load, Reader, Resumable
from holdfast_tools.bench.plan import Add, Begin, Cut, Finish, Order, Plan
from holdfast_tools.bench.poll import PollReader
from holdfast_tools.bench.session import SessionReader
from holdfast_tools.bench.tally import Tally


def make_readers(load: Load, add: Add) -> list[Reader]:
    """Make the readers of so much load; none of them is started."""
    plan = load.plan
    idle: list[Reader] = [SessionReader(load, 0) for _ in range(add.idle)]
    if plan.transport == "sse":
        return [*idle, *(SseReader(load) for _ in range(add.streams))]
    if plan.transport in ("long-poll", "short-poll"):
        return [*idle, *(PollReader(load, number) for number in range(add.streams))]
    sockets = min(add.sockets or add.streams, add.streams)
    return [*idle, *(SessionReader(load, len(range(at, add.streams, sockets))) for at in range(sockets))]


class _Windows:
    """Cuts what a load counts into windows."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._at, self._cpu_ns = time.monotonic(), time.process_time_ns()

    def cut(self) -> Tally:
        """Return what was counted since the last cut."""
        now, cpu_ns = time.monotonic(), time.process_time_ns()
        tally, self._load.tally = self._load.tally, Tally()
        tally.seconds, tally.cpu_ns = now - self._at, cpu_ns - self._cpu_ns
        tally.busiest = tally.cpu_ns / 1e9 / tally.seconds if tally.seconds else 0.0
        self._at, self._cpu_ns = now, cpu_ns
        return tally


class Worker:
    """Carries out a plan and the orders that follow it, and answers each by `say`."""

    def __init__(self, plan: Plan, say: Callable[[Tally], None]) -> None:
        self._plan = plan
        self._load = Load(plan)
        self._windows = _Windows(self._load)
        self._readers: list[Reader] = []
        self._say = say

    async def carry(self, lines: asyncio.StreamReader) -> None:
        """Put the plan's load on the gateway, and carry out orders until `lines` ends."""
        plan = self._plan
        try:
            await self._add(Add(plan.streams, plan.sockets, plan.idle))
            while line := await lines.readline():
                await self._carry_out(msgspec.json.decode(line, type=Order))
        finally:
            await self._load.stop(self._readers)

    async def _carry_out(self, order: Order) -> None:
        match order:
            case Begin():
                await self._measure(order)
            case Add():
                await self._add(order)
            case Cut():
                await self._cut(order)
            case Finish(timeout=timeout):
                self._load.tally.failed += await self._wait(self._load.unended, timeout, "streams had not ended")
                self._answer()

    def _answer(self) -> None:
        self._say(self._windows.cut())

    async def _measure(self, begin: Begin) -> None:
        for number in range(begin.windows + 1):
            await asyncio.sleep(begin.at + number * begin.seconds - time.monotonic())
            self._answer()

    async def _add(self, add: Add) -> None:
        load = self._load
        load.unsettled.expect(add.streams + add.idle)
        if self._plan.once:
            load.unended.expect(add.streams)
        readers = make_readers(load, add)
        self._readers += readers
        for reader in readers:
            reader.start()
        await self._wait(load.unsettled, self._plan.settle_timeout, "streams had not begun")
        self._answer()

    async def _cut(self, cut: Cut) -> None:
        # A reader that polls holds no connection whose loss would matter: `Workers.cut` refuses it.
        readers = cast(list[Resumable], self._readers)
        for reader in readers:
            reader.cut()
        begun = asyncio.get_running_loop().time() + cut.away
        for number, reader in enumerate(readers):
            asyncio.get_running_loop().call_at(begun + cut.over * number / len(readers), reader.come_back)
        timeout = cut.away + cut.over + self._plan.settle_timeout
        failed = await self._wait(self._load.unsettled, timeout, "streams had not come back")
        self._load.tally.failed += failed
        self._answer()

    async def _wait(self, countdown: Countdown, timeout: float, what: str) -> int:
        """Wait until nothing is left of it; return how much is, and note it, where that takes too long."""
        try:
            await countdown.wait(timeout)
        except TimeoutError:
            self._load.tally.note(f"{countdown.left} {what} after {timeout:g} s")
        return countdown.left


async def _main() -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_give_up)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await Worker(msgspec.json.decode(await lines.readline(), type=Plan), _say).carry(lines)


def _give_up(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """A fault of our own: what was counted is worth nothing, and each stream would say it again."""
    loop.default_exception_handler(context)
    if not isinstance(context.get("exception"), OSError):
        os._exit(70)


def _say(record: Tally) -> None:
    os.write(sys.stdout.fileno(), msgspec.json.encode(record) + b"\n")


def main() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_main())
    except KeyboardInterrupt:  # as the process that started this one; it says so
        sys.exit(130)


if __name__ == "__main__":
    main()
