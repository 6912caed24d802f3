"""A circuit breaker: it stops requests to an endpoint that fails, and lets them through again when it recovers.

It decides only. The caller says what counts as a failure, and tells the time.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from holdfast.core.sliding import SlidingCounts


class BreakerLimits(Struct, frozen=True):
    """Times in seconds.

    The breaker opens after `failures` in a row, and when, of at least `min_requests` outcomes within `window`, the
    share `error_rate` were failures. It stays open for `open_for`, doubled with each trial that fails, but for no
    longer than `max_open_for`.
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


class Permit:
    """Permission to try the endpoint once. Its holder calls one of `Breaker.succeed`, `fail` and `release`."""

    __slots__ = ("is_trial", "number")

    def __init__(self, number: int, *, is_trial: bool) -> None:
        self.number = number
        self.is_trial = is_trial


# The states of a breaker, and what moves it.
#
#   state     | what it permits       | moved by                                                       | to
#   ----------+-----------------------+----------------------------------------------------------------+----------
#   CLOSED    | every try             | fail() or probe_failed(), where it is one failure too many     | OPEN
#   CLOSED    |                       | refuse(): at once, and for as long as that says                | OPEN
#   OPEN      | no try until `_until` | acquire() after `_until`: the try that it permits is the trial | HALF_OPEN
#   OPEN      |                       | probe_succeeded()                                              | CLOSED
#   OPEN      |                       | probe_failed(): `_until` is put off                            | OPEN
#   HALF_OPEN | one trial at a time   | answered() or succeed() of the trial, probe_succeeded()        | CLOSED
#   HALF_OPEN |                       | fail() of the trial, which doubles the time; probe_failed()    | OPEN
#   HALF_OPEN |                       | refuse() of the trial                                          | OPEN
#   HALF_OPEN |                       | release() of the trial, or `_trial_until`: the next one may go | HALF_OPEN
#
# The holder of a permit reports its try; the active probe, which needs no permit, reports what it has found.
#
# Invariants:
# - after refuse(), probes move nothing until a try has succeeded: they say nothing about a credential or a quota.
# - `_trial` is a permit only in HALF_OPEN, and only the last one that was given there.
# - `_number` grows whenever the breaker opens or closes. A permit with an earlier number moves nothing: a try that
#   began before the change says nothing about the endpoint after it.


class Breaker:
    """The circuit breaker of one endpoint."""

    __slots__ = (
        "_counts",
        "_duration",
        "_failures",
        "_limits",
        "_number",
        "_trial",
        "_trial_until",
        "_until",
        "is_refused",
        "opened",
        "state",
    )

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._counts = SlidingCounts(limits.window)  # outcomes, failures
        self._failures = 0
        self._duration = limits.open_for
        self._until = 0.0
        self._number = 0
        self._trial: Permit | None = None
        self._trial_until = 0.0
        self.state = BreakerState.CLOSED
        #: It was opened by `refuse`, and no try has succeeded since.
        self.is_refused = False
        #: How often it has opened.
        self.opened = 0

    def can_pass(self, now: float) -> bool:
        """Whether `acquire` would return a permit."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            return now >= self._until
        # A trial that never reports must not keep the breaker half-open for ever.
        return self._trial is None or now >= self._trial_until

    def retry_after(self, now: float) -> float:
        """Seconds until `acquire` may return a permit; 0 if it would now."""
        if self.can_pass(now):
            return 0.0
        return (self._until if self.state is BreakerState.OPEN else self._trial_until) - now

    def acquire(self, now: float) -> Permit | None:
        """Ask for a permit to try the endpoint; None while the breaker permits no try."""
        if self.state is BreakerState.CLOSED:
            return Permit(self._number, is_trial=False)
        if not self.can_pass(now):
            return None
        self.state = BreakerState.HALF_OPEN
        self._trial = Permit(self._number, is_trial=True)
        self._trial_until = now + self._duration
        return self._trial

    def answered(self, permit: Permit) -> None:
        """The endpoint has begun to answer. A trial need not wait for the end of a long answer."""
        if permit is self._trial:
            self._close()
            permit.number = self._number  # its outcome still counts, as an ordinary try's

    def succeed(self, permit: Permit, now: float) -> None:
        """The try succeeded."""
        if permit is self._trial:
            self._close()
        elif permit.number == self._number and self.state is BreakerState.CLOSED:
            self._failures = 0
            self._counts.add(now, 1, 0)

    def fail(self, permit: Permit, now: float) -> None:
        """The try failed, and the endpoint is to blame."""
        if permit is self._trial:
            self._duration = min(self._duration * 2, self._limits.max_open_for)
            self._open(now)
        elif permit.number == self._number and self.state is BreakerState.CLOSED:
            self._count_failure(now)

    def refuse(self, permit: Permit, now: float, duration: float) -> bool:
        """The endpoint refuses whatever is asked of it: no try for `duration` seconds. Whether that is news."""
        if permit is not self._trial and (permit.number != self._number or self.state is not BreakerState.CLOSED):
            return False
        self._open(now, duration)
        self.is_refused = True
        return True

    def release(self, permit: Permit) -> None:
        """The try says nothing about the endpoint: it was cancelled, or it failed on our side."""
        if permit is self._trial:
            self._trial = None

    # -- active probes --

    def probe_succeeded(self, now: float) -> None:
        """A health check succeeded."""
        if self.is_refused:
            return
        if self.state is not BreakerState.CLOSED:
            self._close()
        else:
            self._failures = 0

    def probe_failed(self, now: float) -> None:
        """A health check failed. While the breaker is not closed, this puts off the next trial."""
        if self.is_refused:
            return
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

    def _open(self, now: float, duration: float | None = None) -> None:
        if self.state is BreakerState.CLOSED:
            self.opened += 1
        self.state = BreakerState.OPEN
        self.is_refused = False
        self._until = now + (self._duration if duration is None else duration)
        self._trial = None
        self._number += 1

    def _close(self) -> None:
        self.state = BreakerState.CLOSED
        self.is_refused = False
        self._trial = None
        self._failures = 0
        self._counts.clear()
        self._duration = self._limits.open_for
        self._number += 1
