"""Starts workers as processes, and adds up what they counted in each window."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import msgspec

from holdfast_tools.bench.plan import Add, Begin, Cut, Finish, Order, Plan
from holdfast_tools.bench.tally import Tally

#: Answers that one worker may begin: the numbers of different workers do not meet.
_NUMBERS = 10_000_000
#: Seconds beyond what a worker was given, after which it counts as hung.
_PATIENCE = 60.0
#: Seconds that a worker has to cancel its streams and leave.
_LEAVE_TIMEOUT = 15.0
#: Seconds until a window begins, so that all workers know when.
_LEAD = 0.05


class WorkerError(Exception):
    """A worker ended, or hung; the message says which."""


class _Worker:
    def __init__(self, plan: Plan, prefix: Sequence[str]) -> None:
        command = [*prefix, sys.executable, "-m", "holdfast_tools.bench.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        self._input = cast(BinaryIO, self._process.stdin)
        self._output = cast(BinaryIO, self._process.stdout)
        self._rest = b""
        self.tell(plan)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, record: msgspec.Struct) -> None:
        try:
            self._input.write(msgspec.json.encode(record) + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise WorkerError(f"a load worker ended with status {self._process.wait()}") from None

    def read_line(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            if not select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise WorkerError(f"a load worker has said nothing for {timeout:.0f} s")
            data = os.read(self._output.fileno(), 1 << 20)
            if not data:
                raise WorkerError(f"a load worker ended with status {self._process.wait()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(_LEAVE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


class Workers:
    """Running workers. First `wait_until_ready`, then orders, one after the other.

    Whatever is counted is in exactly one of the tallies that these return. All raise `WorkerError` if a worker
    ends or hangs.
    """

    def __init__(self, plan: Plan, workers: Sequence[_Worker]) -> None:
        self._plan = plan
        self._workers = workers

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def wait_until_ready(self) -> Tally:
        """Wait until each stream and each idle session has begun or failed."""
        return self._read(self._plan.settle_timeout)

    def windows(self, count: int, seconds: float, *, warm_up: float = 0.0) -> Iterator[Tally]:
        """Give the tally of each window of all workers, as soon as it is over.

        The first window begins after `warm_up` seconds. A first tally comes at that moment, of what was counted
        until then, so that the caller can read whatever else is to be compared.
        """
        at = time.monotonic() + warm_up + _LEAD
        self._tell(Begin(at=at, windows=count, seconds=seconds))
        yield self._read(warm_up)
        for _ in range(count):
            yield self._read(seconds)

    def add(self, *, streams: int = 0, sockets: int = 0, idle: int = 0) -> Tally:
        """Put more on the gateway, and wait until each of it has begun or failed."""
        count = len(self._workers)
        for number, worker in enumerate(self._workers):
            worker.tell(Add(*_share(streams, sockets, idle, number, count)))
        return self._read(self._plan.settle_timeout)

    def cut(self, *, away: float = 0.0, over: float = 0.0) -> Tally:
        """Reset all connections at once, stay away, and come back at moments spread evenly over `over` seconds.

        Returns when each stream has brought its next text, and each idle session is open, or has failed; `resume`
        and `setup` say how long that took. Raises ValueError for a load that polls.
        """
        if self._plan.transport not in ("ws", "sse"):
            raise ValueError(f"a load by {self._plan.transport} holds no connection that could be cut")
        self._tell(Cut(away=away, over=over))
        return self._read(away + over + self._plan.settle_timeout)

    def finish(self, *, timeout: float = 60.0) -> Tally:
        """Wait until the streams of a plan with `once` have ended; those that have not in time count as failed."""
        self._tell(Finish(timeout))
        return self._read(timeout)

    def _tell(self, order: Order) -> None:
        for worker in self._workers:
            worker.tell(order)

    def _read(self, timeout: float) -> Tally:
        total = Tally()
        for worker in self._workers:
            total.merge(msgspec.json.decode(worker.read_line(timeout + _PATIENCE), type=Tally))
        return total


def _share(streams: int, sockets: int, idle: int, number: int, workers: int) -> tuple[int, int, int]:
    """Deal out a load; return what one of the workers gets."""
    some, few, still = (len(range(number, count, workers)) for count in (streams, sockets, idle))
    return some, max(1, few) if sockets else 0, still


@contextlib.contextmanager
def started(plan: Plan, *, processes: int = 1, prefix: Sequence[str] = ()) -> Iterator[Workers]:
    """Run the plan in so many processes, its streams and sockets dealt out among them; they end with the block.

    `prefix` is put before each command, such as `taskset -c 1`.
    """
    processes = min(processes, max(plan.streams, plan.idle, 1))
    workers: list[_Worker] = []
    try:
        for number in range(processes):
            streams, sockets, idle = _share(plan.streams, plan.sockets, plan.idle, number, processes)
            first = plan.first + number * _NUMBERS
            share = msgspec.structs.replace(plan, streams=streams, sockets=sockets, idle=idle, first=first)
            workers.append(_Worker(share, prefix))
        yield Workers(plan, workers)
    finally:
        for worker in workers:
            worker.close()
