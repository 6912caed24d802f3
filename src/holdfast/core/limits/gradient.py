"""Learns how many requests an endpoint should have in flight, from how soon it begins to answer.

It is a gradient limiter on the time to first token (TTFT), after Netflix's `Gradient2Limit` (concurrency-limits)
and Envoy's adaptive concurrency filter: the limit follows the ratio of a long-term baseline to the present TTFT.
It decides only; the caller tells the time and keeps the queue of requests that wait for a slot.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from holdfast.core.backoff import UniformRandom

#: A window takes as many samples as the limit has slots, within these bounds: one request must not set its median.
_MIN_SAMPLES: Final = 3
_MAX_SAMPLES: Final = 20
#: One window never lowers the limit below this share of it, however late the answers are.
_MIN_GRADIENT: Final = 0.5
#: One window takes this share of the step down that the gradient asks for.
_SMOOTHING: Final = 0.5
#: A TTFT within so many seconds of the baseline is not late: the difference is our event loop's and the network's.
_NOISE: Final = 0.01
#: An overload signal lowers the limit to this share of what was in flight: CUBIC's factor (RFC 9438 section 4.6).
_OVERLOAD_SHARE: Final = 0.7
#: A window within the tolerance moves the baseline by this share of the difference, up to so many times the
#: measured baseline. Without that bound, lateness that our load causes would become the baseline, step by step.
_BASELINE_SHARE: Final = 0.05
_BASELINE_DRIFT: Final = 1.1
#: With at most this share of the limit in flight, lateness is not caused by our load.
_LIGHT_LOAD: Final = 0.5
#: While a measurement lowers the load, the ceiling goes down by so much with each request that ends.
_RAMP: Final = 0.5
#: The time between two measurements is at least so many times the length of the last one, which is minutes where
#: answers run for minutes.
_REST: Final = 9.0
#: The share of the interval by which measurements are spread at random, so that processes do not measure together.
_JITTER: Final = 0.2


class GradientLimits(Struct, frozen=True):
    """`min`, `max` and `initial` are numbers of requests in flight.

    A median TTFT of up to `tolerance` times the baseline is not late. After `baseline_interval` seconds without a
    window under light load, the limit lowers the load to measure the baseline.
    """

    min: int = 4
    max: int = 1000
    initial: int = 20
    tolerance: float = 1.5
    baseline_interval: float = 300.0


class Flight:
    """One request in flight. `begin` and `answered` are for streamed requests; `release` ends any, once."""

    __slots__ = ("_begun_at", "_is_sampled", "_limit", "_window")

    def __init__(self, limit: GradientLimit, window: int) -> None:
        self._limit: GradientLimit | None = limit
        self._window = window
        self._begun_at: float | None = None
        self._is_sampled = False

    def begin(self, now: float) -> None:
        """The request has been sent: its TTFT starts now."""
        if self._limit is not None:
            self._begun_at = now
            self._window = self._limit._window

    def answered(self, now: float) -> None:
        """The first token has come. Only the first call after `begin` counts."""
        begun_at, self._begun_at = self._begun_at, None
        if self._limit is not None and begun_at is not None:
            self._is_sampled = True
            self._limit._sample(now - begun_at, self._window, now)

    def release(self, now: float, *, is_overload: bool = False, is_complete: bool = False) -> None:
        """The request has ended. Idempotent.

        `is_complete`: with its whole answer. `is_overload`: refused because the endpoint has too many requests.
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
    """The limit is going down because of the median TTFT that was seen at `limit`."""

    median: float
    limit: float


class _Measurement(Struct):
    """The load is lowered to `goal`, to see whether the median `before` was caused by our load.

    `ceiling` is the limit meanwhile. It starts at what is in flight and goes down to `goal`.
    """

    before: float
    goal: float
    ceiling: float
    begun_at: float


# What the limit is doing, and what moves it:
#
#   doing     | known by                         | moved by                                             | to
#   ----------+----------------------------------+------------------------------------------------------+----------
#   ADJUSTING | no `_measurement`                | a window closes, and `_due` has passed               | LOWERING
#   LOWERING  | `_measurement`, ceiling > goal   | release(), step by step; no sample counts            | MEASURING
#   MEASURING | `_measurement`, ceiling == goal  | a window closes: half of the load helped, and there  | LOWERING
#             |                                  | is more to halve                                     |
#   MEASURING |                                  | a window closes otherwise                            | ADJUSTING
#   the two   |                                  | an overload signal, or `baseline_interval` is over   | ADJUSTING
#
# Invariants:
# - min <= limit <= max, also while the limit is lowered for a measurement.
# - `in_flight` is the number of flights that are not released. It is above `limit` only after that has gone down.
# - A sample counts only in the window in which its request began: it shows the effect of the present limit. Every
#   change of the limit opens a window.
# - Only the first overload signal of a window counts: the others are about the same excess of requests.
# - `baseline` is at most `_BASELINE_DRIFT` times `_measured`, what it was when it was last measured.


class GradientLimit:
    """The limit of one endpoint.

    It takes samples in windows of requests that began since the window opened, so that each window shows the
    effect of the last change, as a round trip does for TCP. When a window closes:

    - if its median is within the tolerance, the limit grows by its square root, provided that it was fully used;
    - if it is beyond, and the load is not light, the limit goes down by the gradient,
      `tolerance * baseline / median`;
    - if halving the limit has made the answers begin no sooner, our load is not the cause, and the median becomes
      the new baseline.

    Answers that are not streamed have no first token. Windows of such answers alone count as within the tolerance.

    An overload signal lowers the limit at once, once per window. The baseline slowly follows medians within the
    tolerance, and is measured whenever the load is light. If it never is, the limit lowers the load once in each
    `baseline_interval`, and halves it for as long as that makes the answers begin sooner.
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
        #: TTFT in seconds: the baseline, and the median of the last window; None before the first window.
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
        """Whether the limit is lowered to measure the baseline."""
        return self._measurement is not None

    def acquire(self) -> Flight | None:
        """Count one more request in flight; None if the limit is reached."""
        if self.is_full:
            return None
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        return Flight(self, self._window)

    # -- called by flights --

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
            self._end_measurement(measurement, now)  # too few streamed answers to fill a window
            self._open_window()
        elif measurement.ceiling > measurement.goal:
            measurement.ceiling = max(measurement.goal, measurement.ceiling - _RAMP)
            self._open_window()

    def _overloaded(self, window: int, now: float) -> None:
        if window < self._window_of_overload:
            return
        limits = self._limits
        self.overloads += 1
        # The endpoint had too much in flight, whatever the limit was: the new limit is a share of that. But a
        # refusal under light load may be about a quota, so the basis is never less than half of the limit.
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
            # It may have been under too much load already, so `_due` stays: a measurement follows at once.
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
            # Answers that come so much sooner than the baseline mean that the endpoint itself has changed.
            share = 1.0 if median * limits.tolerance < baseline else _BASELINE_SHARE
            self.baseline = min(baseline + share * (median - baseline), self._measured * _BASELINE_DRIFT)
            self._grow()
            return
        throttling = self._throttling
        if throttling is None:
            self._throttling = _Throttling(median, self._limit)
        elif self._limit > max(throttling.limit / 2, limits.min):
            # In the first window perhaps only some requests were late; a later window shows the whole lateness.
            throttling.median = max(throttling.median, median)
        else:
            if median * limits.tolerance >= throttling.median:
                self._limit = throttling.limit
                self._throttling = None
                self._set_baseline(median, now)
                return
            self._throttling = _Throttling(median, self._limit)
        # Gradient2's allowance for a queue is left out on the way down: of a limit of 4 it would be half.
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
        """Judge a window that was measured at the goal."""
        limits, goal = self._limits, measurement.goal
        if median * limits.tolerance < measurement.before:
            # At twice this load the answers were late: our load was the cause.
            self._limit = max(min(self._limit, 2 * goal), float(limits.min))
            if goal > limits.min:
                measurement.before = median
                measurement.goal = self._half_of(goal)
                return
        self._throttling = None
        self.baseline = self._measured = median
        self._end_measurement(measurement, now)
