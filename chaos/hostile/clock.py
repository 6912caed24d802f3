"""Time stamps that leave out how long a process was ready to run and had no core."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

#: Readings so close together belong to one turn of the event loop, whose wait was noticed by the first of them.
_ONE_TURN_NS = 1_000_000


@dataclass(frozen=True)
class Stamp:
    """In ns. `at` is when this process could have looked, `raw` when it did; `stolen`: what the gateway waited."""

    at: int
    raw: int
    stolen: int


class Clock:
    """Reads the monotonic clock together with the scheduler's account of this process and of the gateway."""

    def __init__(self, gateway: int) -> None:
        self._own = os.open("/proc/self/schedstat", os.O_RDONLY)
        self._gateway = os.open(f"/proc/{gateway}/schedstat", os.O_RDONLY)
        self._waited = _waited(self._own)
        self._last = 0
        self._wait = 0
        self.own = 0

    def stamp(self) -> Stamp:
        raw, waited = time.monotonic_ns(), _waited(self._own)
        wait = waited - self._waited
        self.own += wait
        if raw - self._last < _ONE_TURN_NS:
            wait += self._wait
        self._waited, self._last, self._wait = waited, raw, wait
        return Stamp(raw - wait, raw, _waited(self._gateway))


def _waited(descriptor: int) -> int:
    """Return how long the process was ready and did not run: the second number of schedstat, in ns."""
    try:
        return int(os.pread(descriptor, 100, 0).split()[1])
    except (OSError, IndexError):
        return 0  # the process has ended, which others notice
