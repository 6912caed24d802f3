"""The health of one provider: its breaker, its retry budget, its counters, and the active probe."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from weakref import WeakSet

from holdfast.config import BreakerConfig, ProbeConfig, RetryBudgetConfig
from holdfast.core.breaker import Breaker, BreakerLimits, BreakerState, Permit
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.core.retry import RetryBudget
from holdfast.errors import (
    PoolTimeout,
    TotalTimeout,
    UpstreamError,
    UpstreamRefused,
    UpstreamReset,
    UpstreamTimeout,
)
from holdfast.timers import Deadline, Timers
from holdfast.upstream.call import Call, Upstream
from holdfast.upstream.statistics import HealthStatistics

logger = logging.getLogger("holdfast")


class Health:
    """The health of one provider, shared by all models that it serves. `name` is the provider's, for the log."""

    def __init__(
        self, breaker: BreakerConfig | None = None, budget: RetryBudgetConfig | None = None, *, name: str = ""
    ) -> None:
        self._name = name
        limits = breaker or BreakerConfig()
        allowed = budget or RetryBudgetConfig()
        self.breaker = Breaker(
            BreakerLimits(
                failures=limits.failures,
                error_rate=limits.error_rate,
                min_requests=limits.min_requests,
                window=limits.window,
                open_for=limits.open_for,
                max_open_for=limits.max_open_for,
            )
        )
        self._refused_for = limits.refused_for
        #: Why the breaker has opened, or would next.
        self.reason: str | None = None
        # What was counted already, as long as anybody may tell of it.
        self._incidents: WeakSet[object] = WeakSet()
        # Attempts without a byte of an answer, in the order of their beginning, and since when.
        self._waiting: dict[object, float] = {}
        self.budget = RetryBudget(ratio=allowed.ratio, floor=allowed.floor, window=allowed.window)
        self.attempts = 0
        self.retries = 0
        self.resent_unprocessed = 0
        self.resent_stale = 0
        self.failovers = 0
        self.budget_refusals = 0
        self.probes = 0
        self.probe_failures = 0
        self.failures: Counter[str] = Counter()

    def count_attempt(
        self,
        *,
        is_repetition: bool,
        is_first_here: bool,
        is_failover: bool,
        after: UpstreamError | None,
        now: float,
    ) -> None:
        """Count an attempt that begins, and what it is a consequence of: the error of the attempt before it."""
        self.attempts += 1
        if is_repetition:
            self.budget.withdraw(now)
            self.retries += 1
        elif is_first_here:
            self.budget.count_request(now)
        if is_failover:
            self.failovers += 1
        elif isinstance(after, UpstreamReset) and not after.processed:
            self.resent_unprocessed += 1
        elif isinstance(after, UpstreamReset) and after.is_stale and not is_repetition:
            self.resent_stale += 1

    def allows_repetition(self, now: float) -> bool:
        """Whether the budget has room for one more repetition; counts where it has none."""
        if self.budget.has_room(now):
            return True
        self.budget_refusals += 1
        return False

    def record(
        self,
        permit: Permit,
        error: UpstreamError | None,
        now: float,
        *,
        is_suspect: bool = False,
        has_answered: bool = False,
    ) -> None:
        """Count how an attempt ended; None is success. A suspect request's failure is not the endpoint's.

        `has_answered`: a part of the answer was delivered.
        """
        breaker = self.breaker
        if error is not None:
            self.failures[error.code] += 1
        if isinstance(error, UpstreamRefused) and error.is_certain:
            self._refused(permit, error, now)
            return
        verdict = is_failure(error, has_answered=has_answered)
        if verdict is False:
            breaker.succeed(permit, now)
        elif error is None or verdict is None or is_suspect or (self._is_counted(error) and not permit.is_trial):
            breaker.release(permit)
        else:
            self.reason = error.code
            breaker.fail(permit, now)

    def _is_counted(self, error: UpstreamError) -> bool:
        """Whether what has happened was counted before: a connection is lost once, with all its requests.

        Those that waited for a connection which could not be made have the same error.
        """
        incident = error if error.incident is None else error.incident
        if incident in self._incidents:
            return True
        self._incidents.add(incident)
        return False

    def _refused(self, permit: Permit, error: UpstreamRefused, now: float) -> None:
        if self.breaker.refuse(permit, now, self._refused_for):
            self.reason = error.reason
            logger.error(
                "provider %s refuses this gateway: %s; it is left alone for %g s, check its api_key and account",
                self._name,
                error.reason,
                self._refused_for,
            )

    def begin_wait(self, attempt: object, now: float) -> None:
        """An attempt begins, whose answer has yet to come."""
        self._waiting[attempt] = now

    def end_wait(self, attempt: object) -> None:
        """The attempt has a byte of its answer, or is over. Idempotent."""
        self._waiting.pop(attempt, None)

    def statistics(self, now: float) -> HealthStatistics:
        return HealthStatistics(
            breaker=self.breaker.state.value,
            retry_after=round(self.breaker.retry_after(now), 3),
            opened=self.breaker.opened,
            attempts=self.attempts,
            failures=dict(self.failures),
            retries=self.retries,
            resent_unprocessed=self.resent_unprocessed,
            resent_stale=self.resent_stale,
            failovers=self.failovers,
            budget_refusals=self.budget_refusals,
            probes=self.probes,
            probe_failures=self.probe_failures,
            reason=None if self.breaker.state is BreakerState.CLOSED else self.reason,
            waiting=len(self._waiting),
            oldest_wait=round(max(0.0, now - next(iter(self._waiting.values()), now)), 3),
        )


def is_failure(error: UpstreamError | None, *, has_answered: bool = False) -> bool | None:
    """Whether an outcome counts against the endpoint; None if it says nothing about it."""
    if error is None:
        return False
    if has_answered or error.is_own_bound or isinstance(error, (PoolTimeout, TotalTimeout)):
        # Who delivers is not down, whatever we think of the rest; and our own bounds say nothing about others.
        return None
    if isinstance(error, UpstreamRefused):
        return None  # of this request; a certain one is judged by itself
    if error.status is not None:
        # 429 (a limit is used up), 408 and 409 say nothing about the endpoint's health. Other refusals of the
        # request show that the endpoint works.
        return None if error.status in (408, 409, 425, 429) else error.status >= 500
    if isinstance(error, UpstreamReset) and (error.is_stale or not error.processed):
        return None  # closing an idle connection, or refusing one request too many, is normal
    return True


def may_be_of_the_request(error: UpstreamError | None) -> bool:
    """Whether the request itself may be to blame: some servers answer 500 where 400 would be right."""
    return error is not None and error.status == 500


def is_overload(error: UpstreamError | None, *, has_answered: bool) -> bool:
    """Whether an outcome shows that the endpoint has more requests than it can take."""
    if error is not None and error.status is not None:
        return error.status in (429, 503, 529)
    if isinstance(error, UpstreamReset):
        return error.is_refused
    if isinstance(error, (PoolTimeout, TotalTimeout)):
        return False  # our own bounds
    return isinstance(error, UpstreamTimeout) and not has_answered


class Probe:
    """Checks a provider's health at each interval. A check runs in one task."""

    def __init__(
        self, config: ProbeConfig, request: HttpRequest, upstream: Upstream, health: Health, timers: Timers
    ) -> None:
        self._request = request
        self._config = config
        self._upstream = upstream
        self._health = health
        self._timers = timers
        self._timer: Deadline | None = None
        self._check: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._timer = self._timers.after(self._config.interval, self._begin)

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._check is not None:
            self._check.cancel()
            await asyncio.gather(self._check, return_exceptions=True)

    def _begin(self) -> None:
        self.start()
        if self._check is None or self._check.done():
            self._check = asyncio.get_running_loop().create_task(self._run(), name="health check")

    async def _run(self) -> None:
        health = self._health
        health.probes += 1
        answer = _ProbeAnswer()
        call: Call | None = None
        try:
            async with asyncio.timeout(self._config.timeout):
                call = await self._upstream.send(self._request, answer)
                failed = await answer.outcome
        except (TimeoutError, UpstreamError):
            failed = True
        finally:
            if call is not None:
                call.cancel()
        if failed is None:
            return
        if not failed:
            health.breaker.probe_succeeded(self._timers.now())
        else:
            health.probe_failures += 1
            if not health.breaker.is_refused:
                health.reason = "a health check failed"
            health.breaker.probe_failed(self._timers.now())


class _ProbeAnswer:
    """The sink of a health check. `outcome` is whether it failed: by its status, or as `is_failure` says."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._status = 0

    def response_received(self, status: int, headers: Headers) -> None:
        self._status = status

    def data_received(self, chunks: list[bytes]) -> None:
        pass

    def response_ended(self) -> None:
        self._settle(not 0 < self._status < 500)

    def response_failed(self, error: UpstreamError) -> None:
        self._settle(is_failure(error))

    def _settle(self, failed: bool | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(failed)
