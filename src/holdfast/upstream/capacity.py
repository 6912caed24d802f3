"""How many requests a provider has in flight, against a limit that adapts; it tells when there is room again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from holdfast.config.limits import AdaptiveConcurrencyConfig
from holdfast.core.limits.gradient import Flight, GradientLimit, GradientLimits
from holdfast.timers import Timers
from holdfast.upstream.statistics import ConcurrencyStatistics


class EndpointLease:
    """Leave for one request at a provider. Whoever has it calls `release`, in every case."""

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
            self.capacity.on_room()

    def release(self, *, is_overload: bool = False, is_complete: bool = False) -> None:
        """Give the place back: `is_complete` with the whole answer, `is_overload` where the provider has too many.

        Idempotent.
        """
        self._flight.release(self.capacity.timers.now(), is_overload=is_overload, is_complete=is_complete)
        self.capacity.on_room()


class Capacity:
    """One provider's limit. `on_room` is called in the turn in which a place comes free, or is added."""

    __slots__ = ("_limit", "on_room", "timers")

    def __init__(
        self, config: AdaptiveConcurrencyConfig, timers: Timers, *, rng: random.Random | None = None
    ) -> None:
        limits = GradientLimits(
            min=config.min,
            max=config.max,
            initial=config.first,
            tolerance=config.tolerance,
            baseline_interval=config.baseline_interval,
        )
        self._limit = GradientLimit(limits, rng=rng or random.SystemRandom())
        self.timers = timers
        self.on_room: Callable[[], None] = _nothing

    @property
    def is_full(self) -> bool:
        return self._limit.is_full

    def acquire(self) -> EndpointLease | None:
        """Take a place; None at the limit."""
        flight = self._limit.acquire()
        return None if flight is None else EndpointLease(self, flight)

    def statistics(self) -> ConcurrencyStatistics:
        limit = self._limit
        return ConcurrencyStatistics(
            limit=limit.limit,
            in_flight=limit.in_flight,
            baseline_ttft=_rounded(limit.baseline),
            recent_ttft=_rounded(limit.recent),
            is_measuring=limit.is_measuring,
            overloads=limit.overloads,
        )


class Endpoints(Protocol):
    """Where a request may go, as far as capacity is concerned."""

    @property
    def key(self) -> str:
        """The same for all that may go to the same places."""

    def has_room(self, now: float) -> bool:
        """Whether a request need not wait: for a place, or since waiting would not help."""

    def reserve(self, now: float) -> EndpointLease | None:
        """Take a place; None where none is needed, or where there is no room."""

    def opens_in(self, now: float) -> float:
        """Seconds until a breaker lets requests through again by time alone; infinity if none will."""


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _nothing() -> None:
    pass
