"""Counting in a sliding window of time, in constant space."""

from __future__ import annotations

import math


class SlidingCounts:
    """Two counts over the last `window` seconds, exact to a tenth of that. `now` must not run backwards."""

    __slots__ = ("_first", "_second", "_slot", "_width")

    SLOTS = 10

    def __init__(self, window: float) -> None:
        self._width = window / self.SLOTS
        self._slot = -math.inf  # the number of the newest slot
        self._first = [0] * self.SLOTS
        self._second = [0] * self.SLOTS

    def add(self, now: float, first: int = 0, second: int = 0) -> None:
        self._move(now)
        self._first[0] += first
        self._second[0] += second

    def totals(self, now: float) -> tuple[int, int]:
        self._move(now)
        return sum(self._first), sum(self._second)

    def clear(self) -> None:
        self._first = [0] * self.SLOTS
        self._second = [0] * self.SLOTS

    def _move(self, now: float) -> None:
        slot = now // self._width
        passed = slot - self._slot
        if passed <= 0:
            return
        self._slot = slot
        if passed >= self.SLOTS:
            self.clear()
            return
        fresh = [0] * int(passed)
        self._first = (fresh + self._first)[: self.SLOTS]
        self._second = (fresh + self._second)[: self.SLOTS]
