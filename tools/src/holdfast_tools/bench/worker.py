"""A worker: a process of its own that carries a load, and says what it counted.

    python -m holdfast_tools.bench.worker

On standard input it gets two lines of JSON: a `Plan` and, once it has said that it is ready, a `Begin`. On
standard output it says `Ready`, and a `Tally` for each window. The plan comes this way because it holds the
credential, which a command line would show to everybody on the machine.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time

import msgspec
import uvloop

from holdfast_tools.bench.http import SseReader
from holdfast_tools.bench.load import Load, Reader
from holdfast_tools.bench.plan import Begin, Plan, Ready
from holdfast_tools.bench.poll import PollReader
from holdfast_tools.bench.session import SessionReader
from holdfast_tools.bench.tally import Tally


def make_readers(load: Load) -> list[Reader]:
    """Make the readers of a plan; none of them is started."""
    plan = load.plan
    if plan.transport == "sse":
        return [SseReader(load) for _ in range(plan.streams)]
    if plan.transport in ("long-poll", "short-poll"):
        return [PollReader(load, number) for number in range(plan.streams)]
    sockets = min(plan.sockets or plan.streams, plan.streams)
    return [SessionReader(load, len(range(at, plan.streams, sockets))) for at in range(sockets)]


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


async def carry(plan: Plan, lines: asyncio.StreamReader) -> None:
    """Carry the load until its last window is over, or `lines` ends."""
    load = Load(plan)
    readers = make_readers(load)
    windows = _Windows(load)
    for reader in readers:
        reader.start()
    try:
        try:
            async with asyncio.timeout(plan.settle_timeout):
                await load.settled.wait()
        except TimeoutError:
            load.tally.note(f"some streams had not begun after {plan.settle_timeout:g} s")
        _say(Ready(tally=msgspec.Raw(msgspec.json.encode(windows.cut()))))
        line = await lines.readline()
        if not line:
            return
        begin = msgspec.json.decode(line, type=Begin)
        await asyncio.sleep(begin.at - time.monotonic())
        windows.cut()
        for number in range(1, begin.windows + 1):
            await asyncio.sleep(begin.at + number * begin.seconds - time.monotonic())
            _say(windows.cut())
    finally:
        await load.stop(readers)


async def _main() -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_give_up)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await carry(msgspec.json.decode(await lines.readline(), type=Plan), lines)


def _give_up(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """A fault of our own: what was counted is worth nothing, and each stream would say it again."""
    loop.default_exception_handler(context)
    if not isinstance(context.get("exception"), OSError):
        os._exit(70)


def _say(record: msgspec.Struct) -> None:
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
