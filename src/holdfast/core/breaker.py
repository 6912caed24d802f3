"""A circuit breaker: when an endpoint is left alone, and how it comes back.

Closed: everything passes. Open: nothing does, for a time that doubles with each failed return. Half-open: one
trial at a time, whose outcome decides. What counts as a failure is the caller's to say.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from holdfast.core.sliding import SlidingCounts


class BreakerLimits(Struct, frozen=True):
    """Times in seconds.

    Opens after `failures` in a row, or where of at least `min_requests` outcomes within `window` the share
    `error_rate` were failures.
    """

    failures: int = 5
    error_rate: float = 0.5
    min_requests: int = 20
    window: float = 30.0
    open_for: float = 5.0
    max_open_for: float = 60.0


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Pass:
    """Leave to try the endpoint once. `Breaker.succeed`, `fail` or `release` ends it."""

    __slots__ = ("is_trial", "number")

    def __init__(self, number: int, *, is_trial: bool) -> None:
        self.number = number
        self.is_trial = is_trial


class Breaker:
    """The breaker of one endpoint."""

    __slots__ = (
        "_counts",
        "_duration",
        "_failures",
        "_limits",
        "_number",
        "_trial",
        "_trial_until",
        "_until",
        "opened",
        "state",
    )

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._counts = SlidingCounts(limits.window)  # outcomes, failures
        self._failures = 0
        self._duration = limits.open_for
        self._until = 0.0
        self._number = 0  # passes of an earlier period say nothing about this one
        self._trial: Pass | None = None
        self._trial_until = 0.0
        self.state = BreakerState.CLOSED
        #: How often it has opened.
        self.opened = 0

    def can_pass(self, now: float) -> bool:
        """Whether `acquire` would give a pass."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            return now >= self._until
        # A trial without an outcome does not hold up the return for ever.
        return self._trial is None or now >= self._trial_until

    def retry_after(self, now: float) -> float:
        """Seconds until the next trial may begin; 0 where it may now."""
        if self.can_pass(now):
            return 0.0
        return (self._until if self.state is BreakerState.OPEN else self._trial_until) - now

    def acquire(self, now: float) -> Pass | None:
        """Ask for leave to try the endpoint; None while it is left alone."""
        if self.state is BreakerState.CLOSED:
            return Pass(self._number, is_trial=False)
        if not self.can_pass(now):
            return None
        self.state = BreakerState.HALF_OPEN
        self._trial = Pass(self._number, is_trial=True)
        self._trial_until = now + self._duration
        return self._trial

    def answered(self, granted: Pass) -> None:
        """The endpoint has begun to answer: a trial's outcome need not wait for the end of a long answer."""
        if granted is self._trial:
            self._close()
            granted.number = self._number  # what follows counts as an ordinary try's

    def succeed(self, granted: Pass, now: float) -> None:
        """The try was answered as it should be."""
        if granted is self._trial:
            self._close()
        elif granted.number == self._number and self.state is BreakerState.CLOSED:
            self._failures = 0
            self._counts.add(now, 1, 0)

    def fail(self, granted: Pass, now: float) -> None:
        """The try failed through the endpoint's fault."""
        if granted is self._trial:
            self._duration = min(self._duration * 2, self._limits.max_open_for)
            self._open(now)
        elif granted.number == self._number and self.state is BreakerState.CLOSED:
            self._count_failure(now)

    def release(self, granted: Pass) -> None:
        """The try says nothing about the endpoint: it was cancelled, or failed through ourselves."""
        if granted is self._trial:
            self._trial = None

    # -- active probes --

    def probe_succeeded(self, now: float) -> None:
        """A health check, which needs no pass, was answered well."""
        if self.state is not BreakerState.CLOSED:
            self._close()
        else:
            self._failures = 0

    def probe_failed(self, now: float) -> None:
        """A health check failed. While the breaker is not closed, this puts off the next trial."""
        if self.state is BreakerState.CLOSED:
            self._count_failure(now)
        else:
            self._open(now)

    # -- inside --

    def _count_failure(self, now: float) -> None:
        limits = self._limits
        self._failures += 1
        self._counts.add(now, 1, 1)
        outcomes, failures = self._counts.totals(now)
        if self._failures >= limits.failures or (
            outcomes >= limits.min_requests and failures >= limits.error_rate * outcomes
        ):
            self._open(now)

    def _open(self, now: float) -> None:
        if self.state is BreakerState.CLOSED:
            self.opened += 1
        self.state = BreakerState.OPEN
        self._until = now + self._duration
        self._trial = None
        self._number += 1

    def _close(self) -> None:
        self.state = BreakerState.CLOSED
        self._trial = None
        self._failures = 0
        self._counts.clear()
        self._duration = self._limits.open_for
        self._number += 1
