"""The memory that all logs share: counts it, and says what one log may take while it is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

#: Even when memory is short a running stream may keep this much, so that it moves at all.
MIN_SHARE = 64 * 1024
#: Memory counts as short until use has fallen below this part of the bound.
_ENOUGH = 0.9


class Waiting(Protocol):
    def resume_source(self) -> None:
        """Memory is free again: go on."""


class LogMemory:
    """Counts the bytes of all logs, `used`, against `limit`; whoever adds to it calls `check` where it is reached.

    While use is at the limit, `is_short` is true: logs keep only what their readers have yet to read, and a
    running log may grow to its `share` only. `evict` frees an ended log and says whether there was one.
    """

    def __init__(self, limit: int, evict: Callable[[], bool]) -> None:
        self.limit = limit
        self.used = 0
        self.running = 0
        self.is_short = False
        self._evict = evict
        #: Streams that let their provider wait until there is room.
        self.waiting: set[Waiting] = set()

    @property
    def share(self) -> int:
        return max(MIN_SHARE, self.limit // max(self.running, 1))

    def check(self) -> None:
        """Look at the bound after `used` has grown: ended logs go first."""
        if self.used >= self.limit:
            while self.used >= self.limit and self._evict():
                pass
            self.is_short = self.used >= self.limit

    def free(self, size: int) -> None:
        self.used -= size
        if self.is_short and self.used < self.limit * _ENOUGH:
            self.is_short = False
            for stream in list(self.waiting):
                stream.resume_source()
