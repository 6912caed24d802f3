"""A hashed timing wheel: one clock for very many deadlines, most of which are cancelled before they pass.

It is scheme 6 of Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987). It says what is due; the
shell reads the clock and wakes up at `next_deadline`.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

T = TypeVar("T")

_NOT_PENDING = 0  # the ticks of pending timers begin at 1


class Timer(Generic[T]):
    """The handle of one scheduled item. The wheel refers to it only while it is pending."""

    __slots__ = ("_item", "_tick", "_wheel")

    def __init__(self, wheel: TimingWheel[T], item: T, tick: int) -> None:
        self._wheel: TimingWheel[T] | None = wheel
        self._item = item
        self._tick = tick

    def cancel(self) -> None:
        """Never return the item, and drop the reference to it. Idempotent, also after the item was returned."""
        if self._wheel is not None:
            if self._tick != _NOT_PENDING:
                self._wheel._remove(self)
            # An item often owns its timer: breaking the cycle here spares a garbage collection.
            self._wheel = None
            del self._item


class TimingWheel(Generic[T]):
    """Schedules items at deadlines and cancels them, both in O(1).

    Time is any clock that does not run backwards, in seconds. It is counted in ticks of `resolution`: an item is
    due at the first tick boundary at or after its deadline (or, if that one has been passed already, at the next
    boundary), so it is never early and at most one tick late. `slots` ticks make one rotation; an item with a
    deadline beyond it is looked at once per rotation.
    """

    __slots__ = ("_count", "_earliest", "_limit", "_now", "_resolution", "_slots")

    def __init__(self, *, resolution: float = 0.1, slots: int = 1024) -> None:
        if not 0 < resolution < math.inf:
            raise ValueError(f"resolution must be a positive number of seconds, not {resolution}")
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self._resolution = resolution
        # Timers by tick modulo the number of slots, each slot in order of scheduling.
        self._slots: list[dict[Timer[T], None]] = [{} for _ in range(slots)]
        self._now = 0  # the tick of the last `advance`; all pending timers lie after it
        self._earliest = 1  # no pending timer lies before this tick
        self._count = 0
        self._limit = resolution * 2**51  # up to here a tick and its neighbours are exact as floats

    def __len__(self) -> int:
        """Return the number of pending timers."""
        return self._count

    def schedule(self, item: T, deadline: float) -> Timer[T]:
        """Make `advance` return `item` once `deadline` has passed."""
        self._check(deadline)
        tick = math.ceil(deadline / self._resolution)
        if tick * self._resolution < deadline:
            tick += 1
        if tick <= self._now:
            tick = self._now + 1
        timer = Timer(self, item, tick)
        self._slots[tick % len(self._slots)][timer] = None
        if not self._count or tick < self._earliest:
            self._earliest = tick
        self._count += 1
        return timer

    def advance(self, now: float) -> list[T]:
        """Return the items that are due at `now`, by tick, and within one tick in the order of scheduling.

        They are no longer pending: cancelling one of them does not take it off the returned list. A `now` before
        the last one returns nothing. The work is at most one rotation, however much time has passed.
        """
        self._check(now)
        resolution = self._resolution
        tick = math.floor(now / resolution)
        # The quotient is rounded, so the product decides, here as in `schedule` and `next_deadline`: then no item
        # is early by a rounding error, and `advance(next_deadline())` always returns something.
        if tick * resolution > now:
            tick -= 1
        elif (tick + 1) * resolution <= now:
            tick += 1
        if tick <= self._now:
            return []
        self._now = tick
        due: list[Timer[T]] = []
        span = tick - self._earliest + 1
        slots = self._slots
        if self._count:
            for passed in range(self._earliest, self._earliest + min(span, len(slots))):
                slot = slots[passed % len(slots)]
                if slot:
                    due += [timer for timer in slot if timer._tick <= tick]
                    # A new dict, since an emptied one keeps its memory.
                    slots[passed % len(slots)] = {timer: None for timer in slot if timer._tick > tick}
        if span > len(slots):
            due.sort(key=_tick_of)  # one slot gave several ticks
        self._earliest = max(self._earliest, tick + 1)
        self._count -= len(due)
        for timer in due:
            timer._tick = _NOT_PENDING
        return [timer._item for timer in due]

    def next_deadline(self) -> float | None:
        """Return the time at which `advance` will have something to return; None if nothing is pending.

        The search starts where the last one ended, so calling this after each change costs little.
        """
        if not self._count:
            return None
        slots = self._slots
        for tick in range(self._earliest, self._earliest + len(slots)):
            for timer in slots[tick % len(slots)]:
                if timer._tick == tick:
                    self._earliest = tick
                    return tick * self._resolution
        # All pending timers lie beyond one rotation.
        self._earliest = min(timer._tick for slot in slots for timer in slot)
        return self._earliest * self._resolution

    def _remove(self, timer: Timer[T]) -> None:
        slot = self._slots[timer._tick % len(self._slots)]
        del slot[timer]
        if not slot:
            slot.clear()  # frees the memory that a dict keeps when its items are deleted
        timer._tick = _NOT_PENDING
        self._count -= 1

    def _check(self, time: float) -> None:
        if not -self._limit < time < self._limit:  # False for NaN too
            raise ValueError(f"a time must be a finite number of seconds within {self._limit:g}, not {time}")


def _tick_of(timer: Timer[T]) -> int:
    return timer._tick
