"""How many requests a provider has in flight, against a limit; it tells when there is room again.

The limit is fixed (`max_concurrency` of a provider), or follows how soon the provider answers
(`adaptive_concurrency`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from holdfast.config import ProviderConfig
from holdfast.core.limits.gradient import GradientLimit, GradientLimits
from holdfast.timers import Timers
from holdfast.upstream.statistics import ConcurrencyStatistics


class Flight(Protocol):
    """One request that a limit counts. `release` is called in every case, and is idempotent."""

    def begin(self, now: float) -> None:
        """A streamed request is on its way."""

    def answered(self, now: float) -> None:
        """The first entry of its answer is here. Only the first call counts."""

    def release(self, now: float, *, is_overload: bool = False, is_complete: bool = False) -> None: ...


class Limit(Protocol):
    """Decides how many requests at a time a provider is given. Pure: the clock is the caller's."""

    @property
    def limit(self) -> int: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def is_full(self) -> bool: ...

    def acquire(self) -> Flight | None:
        """Count one more request; None at the limit."""

    def statistics(self) -> ConcurrencyStatistics: ...


class FixedLimit:
    """A number that the operator has set."""

    __slots__ = ("in_flight", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0

    @property
    def is_full(self) -> bool:
        return self.in_flight >= self.limit

    def acquire(self) -> Flight | None:
        if self.is_full:
            return None
        self.in_flight += 1
        return _FixedFlight(self)

    def statistics(self) -> ConcurrencyStatistics:
        return ConcurrencyStatistics(self.limit, self.in_flight)


class _FixedFlight:
    __slots__ = ("_limit",)

    def __init__(self, limit: FixedLimit) -> None:
        self._limit: FixedLimit | None = limit

    def begin(self, now: float) -> None: ...

    def answered(self, now: float) -> None: ...

    def release(self, now: float, *, is_overload: bool = False, is_complete: bool = False) -> None:
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.in_flight -= 1


class _AdaptiveLimit(GradientLimit):
    """The gradient limit, with what it shows of itself."""

    def statistics(self) -> ConcurrencyStatistics:
        return ConcurrencyStatistics(
            limit=self.limit,
            in_flight=self.in_flight,
            baseline_ttft=_rounded(self.baseline),
            recent_ttft=_rounded(self.recent),
            is_measuring=self.is_measuring,
            overloads=self.overloads,
        )


class ProviderLease:
    """The right to one request at a provider. Whoever has it calls `release`, in every case."""

    __slots__ = ("_flight", "capacity")

    def __init__(self, capacity: Capacity, flight: Flight) -> None:
        self.capacity = capacity
        self._flight = flight

    def begin(self) -> None:
        """A streamed request is on its way."""
        self._flight.begin(self.capacity.timers.now())

    def answered(self) -> None:
        """The first entry of its answer is here. Only the first call counts."""
        self._flight.answered(self.capacity.timers.now())
        if not self.capacity.is_full:  # the limit may have grown
            self.capacity.tell()

    def release(self, *, is_overload: bool = False, is_complete: bool = False) -> None:
        """Give the slot back: `is_complete` with the whole answer, `is_overload` where the provider has too many.

        Idempotent.
        """
        self._flight.release(self.capacity.timers.now(), is_overload=is_overload, is_complete=is_complete)
        self.capacity.tell()


class Capacity:
    """One provider's slots. `on_room` is called in the turn in which one comes free, or is added."""

    __slots__ = ("_limit", "on_room", "timers")

    def __init__(self, limit: Limit, timers: Timers) -> None:
        self._limit = limit
        self.timers = timers
        self.on_room: Callable[[], None] | None = None

    @property
    def is_full(self) -> bool:
        return self._limit.is_full

    def acquire(self) -> ProviderLease | None:
        """Take a slot; None at the limit."""
        flight = self._limit.acquire()
        return None if flight is None else ProviderLease(self, flight)

    def tell(self) -> None:
        """There may be room."""
        if self.on_room is not None:
            self.on_room()

    def statistics(self) -> ConcurrencyStatistics:
        return self._limit.statistics()


def capacity_of(config: ProviderConfig, timers: Timers, *, rng: random.Random | None = None) -> Capacity | None:
    """Return a provider's capacity as it is configured; None where it is given all requests at once."""
    adaptive = config.adaptive_concurrency
    if adaptive.enabled:
        limits = GradientLimits(
            min=adaptive.min,
            max=adaptive.max,
            initial=adaptive.first,
            tolerance=adaptive.tolerance,
            baseline_interval=adaptive.baseline_interval,
        )
        return Capacity(_AdaptiveLimit(limits, rng=rng or random.SystemRandom()), timers)
    if config.max_concurrency is not None:
        return Capacity(FixedLimit(config.max_concurrency), timers)
    return None


class Endpoints(Protocol):
    """Where a request may go, as far as capacity is concerned."""

    @property
    def key(self) -> str:
        """The same for all that may go to the same places."""

    def has_room(self, now: float) -> bool:
        """Whether a request need not wait: for a slot, or since waiting would not help."""

    def reserve(self, now: float) -> ProviderLease | None:
        """Take a slot; None where none is needed, or where there is no room."""

    def opens_in(self, now: float) -> float:
        """Seconds until a breaker lets requests through again by time alone; infinity if none will."""


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
