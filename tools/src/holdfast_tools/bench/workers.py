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

from holdfast_tools.bench.plan import Begin, Plan, Ready
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
    """Running workers. First `wait_until_ready`, then `windows`, each once."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self._workers = workers

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def wait_until_ready(self) -> Tally:
        """Wait until each stream has begun or failed; return what was counted until then.

        Raises `WorkerError` if a worker ends or hangs, as `windows` does.
        """
        total = Tally()
        for worker in self._workers:
            ready = msgspec.json.decode(worker.read_line(_PATIENCE), type=Ready)
            total.merge(msgspec.json.decode(ready.tally, type=Tally))
        return total

    def windows(self, count: int, seconds: float, *, warm_up: float = 0.0) -> Iterator[Tally]:
        """Give the tally of each window of all workers, as soon as it is over.

        The first window begins after `warm_up` seconds. A first, empty tally comes at that moment, so that the
        caller can read whatever else is to be compared.
        """
        at = time.monotonic() + warm_up + _LEAD
        for worker in self._workers:
            worker.tell(Begin(at=at, windows=count, seconds=seconds))
        time.sleep(max(0.0, at - time.monotonic()))
        yield Tally()
        for _ in range(count):
            total = Tally()
            for worker in self._workers:
                line = worker.read_line(seconds + _PATIENCE)
                total.merge(msgspec.json.decode(line, type=Tally))
            yield total


@contextlib.contextmanager
def started(plan: Plan, *, processes: int = 1, prefix: Sequence[str] = ()) -> Iterator[Workers]:
    """Run the plan in so many processes, its streams and sockets dealt out among them; they end with the block.

    `prefix` is put before each command, such as `taskset -c 1`.
    """
    processes = min(processes, plan.streams)
    workers: list[_Worker] = []
    try:
        for number in range(processes):
            share = msgspec.structs.replace(
                plan,
                streams=len(range(number, plan.streams, processes)),
                sockets=max(1, len(range(number, plan.sockets, processes))) if plan.sockets else 0,
                first=plan.first + number * _NUMBERS,
            )
            workers.append(_Worker(share, prefix))
        yield Workers(workers)
    finally:
        for worker in workers:
            worker.close()
