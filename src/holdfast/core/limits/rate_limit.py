"""Limits for one key or tenant: on amounts per window of time, and on things held at a time.

They count and decide. `admission` knows whom a limit is for, and words the refusal.
"""

from __future__ import annotations

import math
from collections import deque


class _Slot:
    """The amounts granted within a short time. They count until the newest grant, at `last`, is a window old."""

    __slots__ = ("amount", "begun", "is_live", "last")

    def __init__(self, now: float) -> None:
        self.begun = self.last = now
        self.amount = 0
        self.is_live = True


class Reservation:
    """An amount that is set aside. It does not expire while it is held; its window begins with `start`.

    `settle` or `release` ends it. Only the first such call counts.
    """

    __slots__ = ("_limit", "_slot", "amount")

    def __init__(self, limit: RateLimit, amount: int) -> None:
        self._limit: RateLimit | None = limit
        self._slot: _Slot | None = None
        self.amount = amount

    def start(self, now: float) -> None:
        """Begin the use: the amount counts for one window from now on."""
        limit = self._limit
        if limit is not None and self._slot is None:
            limit._held -= self.amount
            limit._open -= 1
            self._slot = limit._count(now, self.amount)

    def settle(self, now: float, used: int) -> None:
        """Replace the amount by what was used.

        The use beyond the amount counts from now on, even if it exceeds the limit. Like any use, it is forgotten
        after one window.
        """
        limit, self._limit = self._limit, None
        if limit is None:
            return
        if used < 0:
            used = 0  # what a provider says must not give others more than the limit
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
        """End the reservation: nothing was used."""
        self.settle(now, 0)


class RateLimit:
    """Grants at most `limit` within any `window` seconds, whenever the calls come.

    It is a sliding window and not GCRA's single arrival time, for two reasons. A GCRA that can grant its limit at
    once grants nearly twice as much in the worst window. And GCRA cannot take an amount back exactly, since it has
    forgotten how much of it has leaked away; here the amount is taken from the slot where it was counted.

    Grants within a 60th of the window share a slot, and expire with the newest of them. So a limit needs at most
    62 slots, and may grant a 60th of a window too late, but never too early. `now` must not run backwards.
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
        """The amount that counts now: granted within the window, or reserved."""
        self._forget(now)
        return self._sum + self._held

    @property
    def held(self) -> int:
        """The number of reservations whose use has not begun."""
        return self._open

    def remaining(self, now: float) -> int:
        return max(self.limit - self.used(now), 0)

    def reset_after(self, now: float) -> float:
        """Seconds until nothing counts any more, provided that nothing is granted until then."""
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
        return self.window  # the rest is reserved, and its window has not begun

    def take(self, now: float, amount: int = 1) -> bool:
        """Use `amount` at once, or not at all."""
        if self.used(now) + amount > self.limit:
            return False
        self._count(now, amount)
        return True

    def reserve(self, now: float, amount: int) -> Reservation | None:
        """Set `amount` aside for a use that has not begun; None if that exceeds the limit."""
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
    """One thing held, of those that a `Concurrency` counts."""

    __slots__ = ("_held",)

    def __init__(self, concurrency: Concurrency) -> None:
        self._held: Concurrency | None = concurrency

    def release(self) -> None:
        """Give it back. Idempotent."""
        held, self._held = self._held, None
        if held is not None:
            held.used -= 1


class Concurrency:
    """Bounds how many of something may be held at a time. With `limit` None it only counts."""

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
    """A rate limit for each of any number of sources. It remembers only those of the last two windows."""

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
            # A source in neither generation was granted nothing for a whole window: its limit would be unused.
            self._old = self._young if now - self._turned < 2 * self._window else {}
            self._young = {}
            self._turned = now
        rate = self._young.get(source)
        if rate is None:
            rate = self._old.pop(source, None) or RateLimit(self._limit, window=self._window)
            self._young[source] = rate
        return rate.take(now)
