"""What one key or tenant may use: amounts per window of time, and things that it may hold at a time.

It counts and decides. Who the limits are for, and what a refusal looks like, is `holdfast.admission`'s matter.
"""

from __future__ import annotations

import math
from collections import deque


class _Slot:
    """What was granted in a short time. It counts until `last`, its newest grant, is a window old."""

    __slots__ = ("amount", "begun", "is_live", "last")

    def __init__(self, now: float) -> None:
        self.begun = self.last = now
        self.amount = 0
        self.is_live = True


class Reservation:
    """An amount that was set aside. While it is held it never grows old; `start` lets its window begin.

    It ends with `settle` or `release`, the first of which counts.
    """

    __slots__ = ("_limit", "_slot", "amount")

    def __init__(self, limit: RateLimit, amount: int) -> None:
        self._limit: RateLimit | None = limit
        self._slot: _Slot | None = None
        self.amount = amount

    def start(self, now: float) -> None:
        """The use begins: from now on the amount counts for one window."""
        limit = self._limit
        if limit is not None and self._slot is None:
            limit._held -= self.amount
            limit._open -= 1
            self._slot = limit._count(now, self.amount)

    def settle(self, now: float, used: int) -> None:
        """Replace the amount by what was used. What was used beyond it counts from now on, above the limit if
        need be: a debt that, as everything else, is forgotten after one window.
        """
        limit, self._limit = self._limit, None
        if limit is None:
            return
        saved = max(self.amount - used, 0)
        slot = self._slot
        if slot is None:
            limit._held -= self.amount
            limit._open -= 1
            if used:
                limit._count(now, used)
            return
        if slot.is_live:
            slot.amount -= saved
            limit._sum -= saved
        if used > self.amount:
            limit._count(now, used - self.amount)

    def release(self, now: float) -> None:
        """Nothing was used."""
        self.settle(now, 0)


class RateLimit:
    """Grants at most `limit` within any `window` seconds, however the calls fall.

    A sliding window rather than GCRA's single arrival time, for two reasons. GCRA that grants its limit at once
    grants nearly twice as much in the worst window. And an amount cannot be given back to it exactly, since it has
    forgotten how much of that has leaked away; here it goes back to where it was counted.

    Grants within a 60th of the window share a slot and grow old with the newest of them, so a limit costs at most
    62 slots, and a grant may come that much later than it could, never earlier. `now` must not run backwards.
    """

    __slots__ = ("_held", "_open", "_slots", "_sum", "_width", "limit", "window")

    SLOTS = 60

    def __init__(self, limit: int, *, window: float = 60.0) -> None:
        self.limit = limit
        self.window = window
        self._width = window / self.SLOTS
        self._slots: deque[_Slot] = deque()
        self._sum = 0
        self._held = 0
        self._open = 0

    def used(self, now: float) -> int:
        """What counts now: granted within the window, or held."""
        self._forget(now)
        return self._sum + self._held

    @property
    def held(self) -> int:
        """Reservations whose use has not begun."""
        return self._open

    def remaining(self, now: float) -> int:
        return max(self.limit - self.used(now), 0)

    def reset_after(self, now: float) -> float:
        """Seconds until nothing counts any more, if nothing is granted until then."""
        self._forget(now)
        if self._held:
            return self.window
        return self._slots[-1].last + self.window - now if self._slots else 0.0

    def retry_after(self, now: float, amount: int = 1) -> float:
        """Seconds until `amount` could be granted: 0.0 means now, infinity never."""
        if amount > self.limit:
            return math.inf
        excess = self.used(now) + amount - self.limit
        if excess <= 0:
            return 0.0
        for slot in self._slots:
            excess -= slot.amount
            if excess <= 0:
                return slot.last + self.window - now
        return self.window  # what is held has to begin first

    def take(self, now: float, amount: int = 1) -> bool:
        """Use `amount` at once, or not at all."""
        if self.used(now) + amount > self.limit:
            return False
        self._count(now, amount)
        return True

    def reserve(self, now: float, amount: int) -> Reservation | None:
        """Set `amount` aside for a use that has not begun; None where there is not as much."""
        if self.used(now) + amount > self.limit:
            return None
        self._held += amount
        self._open += 1
        return Reservation(self, amount)

    def _count(self, now: float, amount: int) -> _Slot:
        self._forget(now)
        slot = self._slots[-1] if self._slots else None
        if slot is None or now - slot.begun >= self._width:
            slot = _Slot(now)
            self._slots.append(slot)
        slot.last = now
        slot.amount += amount
        self._sum += amount
        return slot

    def _forget(self, now: float) -> None:
        slots = self._slots
        while slots and slots[0].last + self.window <= now:
            slot = slots.popleft()
            slot.is_live = False
            self._sum -= slot.amount


class Lease:
    """One thing held of a `Concurrency`."""

    __slots__ = ("_held",)

    def __init__(self, concurrency: Concurrency) -> None:
        self._held: Concurrency | None = concurrency

    def release(self) -> None:
        """Give it back. Idempotent."""
        held, self._held = self._held, None
        if held is not None:
            held.used -= 1


class Concurrency:
    """How many of something may be held at a time; None is no limit, and still counts."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    def acquire(self) -> Lease | None:
        if self.is_full:
            return None
        self.used += 1
        return Lease(self)


class ArrivalRates:
    """A rate for each of any number of sources, with memory for those of the last two windows only."""

    __slots__ = ("_limit", "_old", "_turned", "_window", "_young")

    def __init__(self, limit: int, *, window: float = 1.0) -> None:
        self._limit = limit
        self._window = window
        self._young: dict[str, RateLimit] = {}
        self._old: dict[str, RateLimit] = {}
        self._turned = -math.inf

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def take(self, source: str, now: float) -> bool:
        """Count one arrival, or refuse it."""
        if now - self._turned >= self._window:
            # What is in neither generation has granted nothing for a whole window: it would be empty.
            self._old = self._young if now - self._turned < 2 * self._window else {}
            self._young = {}
            self._turned = now
        rate = self._young.get(source)
        if rate is None:
            rate = self._old.pop(source, None) or RateLimit(self._limit, window=self._window)
            self._young[source] = rate
        return rate.take(now)
