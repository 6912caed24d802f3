"""How many requests an endpoint is given at a time, learned from how soon it begins to answer.

A gradient limiter on the time to first token (TTFT), after Netflix's `Gradient2Limit` (concurrency-limits) and
Envoy's adaptive concurrency filter: the limit follows the ratio of a long-term baseline to what is measured now.
Decides only; the clock, and who waits for a place, are the caller's.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from holdfast.core.backoff import UniformRandom

#: A window takes as many samples as the limit has places, within these bounds: its median is not one request's.
_MIN_SAMPLES: Final = 3
_MAX_SAMPLES: Final = 20
#: One window shrinks the limit to no less than this share of it, however late the answers are.
_MIN_GRADIENT: Final = 0.5
#: Of the step down that the gradient asks for, the share that one window takes.
_SMOOTHING: Final = 0.5
#: Seconds that no answer is late by: in so short a time it is our own turns and the network that are measured.
_NOISE: Final = 0.01
#: An overload signal leaves this share of what was in flight: the factor of CUBIC (RFC 9438 section 4.6).
_OVERLOAD_SHARE: Final = 0.7
#: What a window within the tolerance moves the baseline by, and how far above its measurement that may take it:
#: else lateness of our own making would become, step by step, what should be.
_BASELINE_SHARE: Final = 0.05
_BASELINE_DRIFT: Final = 1.1
#: With at most this share of the limit in flight, lateness is not of our making.
_LIGHT_LOAD: Final = 0.5
#: While a measurement lowers the load, a place is given out for every second one that comes free.
_RAMP: Final = 0.5
#: The time between two measurements is at least so many times what the last one took: where answers run for
#: minutes the load takes as long to fall.
_REST: Final = 9.0
#: Measurements of several processes do not fall together: the share of the interval by which they are spread.
_JITTER: Final = 0.2


class GradientLimits(Struct, frozen=True):
    """`min`, `max` and `initial` are requests at a time.

    A median TTFT of up to `tolerance` times the baseline is as it should be. After `baseline_interval` seconds
    without a window under light load, the load is lowered for one.
    """

    min: int = 4
    max: int = 1000
    initial: int = 20
    tolerance: float = 1.5
    baseline_interval: float = 300.0


class Flight:
    """One request in flight. `begin` and `answered` are for streamed ones; `release` ends it, once."""

    __slots__ = ("_begun_at", "_is_sampled", "_limit", "_window")

    def __init__(self, limit: GradientLimit, window: int) -> None:
        self._limit: GradientLimit | None = limit
        self._window = window
        self._begun_at: float | None = None
        self._is_sampled = False

    def begin(self, now: float) -> None:
        """The request is on its way: its TTFT counts from here."""
        if self._limit is not None:
            self._begun_at = now
            self._window = self._limit._window

    def answered(self, now: float) -> None:
        """Its first token is here. Only the first call of a flight that has begun counts."""
        begun_at, self._begun_at = self._begun_at, None
        if self._limit is not None and begun_at is not None:
            self._is_sampled = True
            self._limit._sample(now - begun_at, self._window, now)

    def release(self, now: float, *, is_overload: bool = False, is_complete: bool = False) -> None:
        """The request has ended: `is_complete` with its whole answer, `is_overload` since there are too many.

        Idempotent.
        """
        limit, self._limit = self._limit, None
        if limit is None:
            return
        if is_overload:
            limit._overloaded(self._window, now)
        limit._release(now)
        if is_complete and not self._is_sampled:
            limit._completed(self._window)


class _Throttling(Struct):
    """Why the limit is going down: the median TTFT when it was at `limit`."""

    median: float
    limit: float


class _Measurement(Struct):
    """The load is on its way down to `goal`, to see whether the median of `before` is of our making."""

    before: float
    goal: float
    ceiling: float
    begun_at: float


class GradientLimit:
    """The limit of one endpoint.

    Samples are taken in windows of requests that were begun since the window opened, so each one shows what the
    last step of the limit has done, as a round trip does to TCP. After each:

    - within the tolerance, the limit grows by its square root, provided that it was used to the full;
    - beyond it, it goes down by the gradient, `tolerance * baseline / median`, but not under light load;
    - where halving it has made the answers no sooner, the slowness is not of our making: that is the new baseline.

    Answers without a first token, since they are not streamed, make windows in which nothing is late, where there
    are no others.

    An overload signal lowers it at once, and once per window. The baseline follows slowly what is within the
    tolerance and is measured anew whenever the load is light. Where it never is, the load is lowered for it in
    each `baseline_interval`, by halves for as long as that makes the answers begin sooner.
    """

    __slots__ = (
        "_due",
        "_limit",
        "_limits",
        "_measured",
        "_measurement",
        "_peak",
        "_rng",
        "_samples",
        "_throttling",
        "_whole",
        "_window",
        "_window_of_overload",
        "baseline",
        "in_flight",
        "overloads",
        "recent",
    )

    def __init__(self, limits: GradientLimits, *, rng: UniformRandom) -> None:
        """Raises ValueError unless 1 <= min <= initial <= max and tolerance >= 1."""
        if not (1 <= limits.min <= limits.initial <= limits.max and limits.tolerance >= 1):
            raise ValueError(f"expected 1 <= min <= initial <= max and tolerance >= 1, got {limits}")
        self._limits = limits
        self._rng = rng
        self._limit = float(limits.initial)
        self._window = 0
        self._window_of_overload = 0
        self._samples: list[float] = []
        self._whole = 0  # complete answers without a first token
        self._peak = 0
        self._due = -math.inf
        self._measured = 0.0
        self._throttling: _Throttling | None = None
        self._measurement: _Measurement | None = None
        self.in_flight = 0
        #: TTFT in seconds: what it should be, and the median of the last window; None before the first.
        self.baseline: float | None = None
        self.recent: float | None = None
        #: How often an overload signal has lowered the limit.
        self.overloads = 0

    @property
    def limit(self) -> int:
        measurement = self._measurement
        return int(self._limit if measurement is None else min(self._limit, measurement.ceiling))

    @property
    def is_full(self) -> bool:
        return self.in_flight >= self.limit

    @property
    def is_measuring(self) -> bool:
        """Whether the limit is lowered for the sake of the baseline."""
        return self._measurement is not None

    def acquire(self) -> Flight | None:
        """Count one more request in flight; None at the limit."""
        if self.is_full:
            return None
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        return Flight(self, self._window)

    # -- what flights tell --

    def _sample(self, ttft: float, window: int, now: float) -> None:
        measurement = self._measurement
        if window != self._window or (measurement is not None and measurement.ceiling > measurement.goal):
            return
        self._samples.append(ttft)
        if len(self._samples) >= self._window_size:
            self._close_window(now)

    @property
    def _window_size(self) -> int:
        return min(max(self.limit, _MIN_SAMPLES), _MAX_SAMPLES)

    def _completed(self, window: int) -> None:
        if window != self._window or self._samples or self._measurement is not None:
            return
        self._whole += 1
        if self._whole >= self._window_size:
            self._grow()
            self._open_window()

    def _release(self, now: float) -> None:
        self.in_flight -= 1
        measurement = self._measurement
        if measurement is None:
            return
        if now >= measurement.begun_at + self._limits.baseline_interval:
            self._end_measurement(measurement, now)  # for want of answers that are streamed
            self._open_window()
        elif measurement.ceiling > measurement.goal:
            measurement.ceiling = max(measurement.goal, measurement.ceiling - _RAMP)
            self._open_window()

    def _overloaded(self, window: int, now: float) -> None:
        if window < self._window_of_overload:
            return
        limits = self._limits
        self.overloads += 1
        # What the endpoint had too much of is what was in flight, not what would have been allowed. But a refusal
        # under light load may be about a quota: it takes no more than half of the limit into account.
        beyond = min(self._limit, max(float(self.in_flight), self._limit * _LIGHT_LOAD))
        self._limit = max(float(limits.min), beyond * _OVERLOAD_SHARE)
        self._throttling = None
        if self._measurement is not None:
            self._end_measurement(self._measurement, now)
        self._open_window()
        self._window_of_overload = self._window

    # -- windows --

    def _open_window(self) -> None:
        self._window += 1
        self._samples = []
        self._whole = 0
        self._peak = self.in_flight

    def _close_window(self, now: float) -> None:
        median = sorted(self._samples)[len(self._samples) // 2]
        self.recent = median
        if self.baseline is None:
            # Perhaps under too much load already, so a measurement follows at once.
            self.baseline = self._measured = median
        elif self._measurement is not None:
            self._weigh(self._measurement, median, now)
        elif self._peak <= self._limit * _LIGHT_LOAD:
            self._throttling = None
            self._set_baseline(median, now)
        else:
            self._adjust(median, self.baseline, now)
            if now >= self._due:
                self._begin_measurement(median, now)
        self._open_window()

    def _adjust(self, median: float, baseline: float, now: float) -> None:
        limits = self._limits
        expected = max(limits.tolerance * baseline, baseline + _NOISE)
        if median <= expected:
            self._throttling = None
            # Much sooner than it should be, it is not the endpoint that the baseline was measured of any more.
            share = 1.0 if median * limits.tolerance < baseline else _BASELINE_SHARE
            self.baseline = min(baseline + share * (median - baseline), self._measured * _BASELINE_DRIFT)
            self._grow()
            return
        throttling = self._throttling
        if throttling is None:
            self._throttling = _Throttling(median, self._limit)
        elif self._limit > max(throttling.limit / 2, limits.min):
            # What was late for a part of the first window only is late all through the next.
            throttling.median = max(throttling.median, median)
        else:
            if median * limits.tolerance >= throttling.median:
                self._limit = throttling.limit
                self._throttling = None
                self._set_baseline(median, now)
                return
            self._throttling = _Throttling(median, self._limit)
        # The allowance for a queue is left out on the way down: of a limit of 4 it would be half.
        step = self._limit * (max(expected / median, _MIN_GRADIENT) - 1.0)
        self._limit = max(self._limit + _SMOOTHING * step, float(limits.min))

    def _grow(self) -> None:
        if self._peak >= int(self._limit):
            self._limit = min(self._limit + math.sqrt(self._limit), float(self._limits.max))

    # -- the baseline --

    def _set_baseline(self, median: float, now: float) -> None:
        self.baseline = self._measured = median
        self._schedule(now)

    def _schedule(self, now: float, *, spent: float = 0.0) -> None:
        interval = max(self._limits.baseline_interval, _REST * spent)
        self._due = now + interval * self._rng.uniform(1.0, 1.0 + _JITTER)

    def _begin_measurement(self, median: float, now: float) -> None:
        goal = self._half_of(min(self._peak, self.limit))
        ceiling = max(float(min(self.in_flight, self.limit)), goal)
        self._measurement = _Measurement(median, goal, ceiling, now)

    def _end_measurement(self, measurement: _Measurement, now: float) -> None:
        self._measurement = None
        self._schedule(now, spent=now - measurement.begun_at)

    def _half_of(self, load: float) -> float:
        return float(max(self._limits.min, int(load / 2)))

    def _weigh(self, measurement: _Measurement, median: float, now: float) -> None:
        """A window has passed at the goal of a measurement."""
        limits, goal = self._limits, measurement.goal
        if median * limits.tolerance < measurement.before:
            # At twice this load it was late, and that was our doing.
            self._limit = max(min(self._limit, 2 * goal), float(limits.min))
            if goal > limits.min:
                measurement.before = median
                measurement.goal = self._half_of(goal)
                return
        self._throttling = None
        self.baseline = self._measured = median
        self._end_measurement(measurement, now)
