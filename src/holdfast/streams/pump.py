"""The pump: asks the endpoints of a model's route, until one has answered or there is nobody left to ask.

A request is tried again only while its log is empty: what a reader may have seen is never generated a second time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from holdfast.core.messages import AttemptRecord
from holdfast.core.retry import RoutePlan, Step
from holdfast.errors import (
    Cancelled,
    CircuitOpen,
    ConnectTimeout,
    InternalError,
    PoolTimeout,
    UpstreamConnectError,
    UpstreamError,
    UpstreamReset,
    UpstreamStatus,
    UpstreamTimeout,
)
from holdfast.streams.attempt import Attempt
from holdfast.streams.request_log import attempt_failed
from holdfast.streams.route import Route, Target
from holdfast.streams.stream import Stream
from holdfast.timers import Timers
from holdfast.upstream.providers.openai import ChatRequest

logger = logging.getLogger("holdfast")

_NOT_SENT_AGAIN: Final = (
    "; the provider may have processed the request, so it was not sent again (retry.at_most_once)"
)


class Pump:
    """Runs one stream's generation to its end, over as many attempts as the route allows."""

    def __init__(self, stream: Stream, request: ChatRequest, route: Route, timers: Timers) -> None:
        self._stream = stream
        self._request = request
        self._route = route
        self._timers = timers
        self._attempts: list[AttemptRecord] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._stream.on_abandoned = self.cancel
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"pump {self._stream.id}")
        return self._task

    def cancel(self) -> None:
        """Stop the generation within this turn of the loop and the next."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        stream = self._stream
        try:
            await self._try_route()
        except asyncio.CancelledError:
            stream.finish("cancelled", error=Cancelled(), attempts=self._attempts)
            raise
        except Exception:
            logger.exception("stream %s: the pump failed", stream.id)
            stream.finish("failed", error=InternalError(), attempts=self._attempts)
        finally:
            stream.on_abandoned = _nothing

    async def _try_route(self) -> None:
        stream, route, timers = self._stream, self._route, self._timers
        deadline = timers.now() + max(target.timeouts.total for target in route.targets)
        plan = route.plan(deadline=deadline)
        previous: Target | None = None
        error: UpstreamError | None = None
        while (step := plan.next(timers.now(), self._can_try)) is not None:
            if step.delay:
                await asyncio.sleep(step.delay)
                if not self._can_try(step.place, step.is_repetition):
                    continue
            target = route.targets[step.place]
            self._count(step, target, previous, error)
            plan.begin(step)
            attempt, error = await self._try_target(target, deadline)
            delivered = stream.log.next > 0
            if error is None or delivered or not _may_repeat(error):
                self._finish(attempt, error)
                return
            if route.at_most_once and self._attempts[-1].unconfirmed:
                error.retryable = False
                error.message += _NOT_SENT_AGAIN
                self._finish(attempt, error)
                return
            self._note_failure(plan, step.place, error)
            previous = target
        if error is None:
            error = CircuitOpen(retry_after=route.retry_after(timers.now()))
        stream.finish("failed", error=error, attempts=self._attempts)

    async def _try_target(self, target: Target, deadline: float) -> tuple[Attempt, UpstreamError | None]:
        health, timers = target.health, self._timers
        granted = health.breaker.acquire(timers.now())
        if granted is None:
            raise RuntimeError("a target was chosen that is left alone")
        deadline = min(deadline, timers.now() + target.timeouts.total)
        attempt = Attempt(self._stream, self._request, target, timers, granted=granted, deadline=deadline)
        try:
            error = await attempt.run(self._request)
        except BaseException:
            health.breaker.release(granted)
            self._record(target, attempt, "cancelled", unconfirmed=False)
            raise
        health.record(granted, error, timers.now())
        unconfirmed = self._stream.log.next == 0 and _may_be_processed(error, attempt.status)
        self._record(target, attempt, None if error is None else error.code, unconfirmed=unconfirmed)
        if error is not None:
            attempt_failed(self._stream, self._attempts[-1], error)
        return attempt, error

    def _can_try(self, place: int, is_repetition: bool) -> bool:
        health, now = self._route.targets[place].health, self._timers.now()
        if not health.breaker.can_pass(now):
            return False
        if is_repetition and not health.budget.has_room(now):
            health.budget_refusals += 1
            return False
        return True

    def _count(self, step: Step, target: Target, previous: Target | None, error: UpstreamError | None) -> None:
        health, now = target.health, self._timers.now()
        health.attempts += 1
        if step.is_repetition:
            health.budget.withdraw(now)
            health.retries += 1
        elif previous is not target:
            health.budget.count_request(now)
        if previous is not None and previous is not target:
            health.failovers += 1
        elif isinstance(error, UpstreamReset) and not error.processed:
            health.resent_unprocessed += 1
        elif isinstance(error, UpstreamReset) and error.is_stale and not step.is_repetition:
            health.resent_stale += 1

    def _note_failure(self, plan: RoutePlan, place: int, error: UpstreamError) -> None:
        now = self._timers.now()
        if isinstance(error, UpstreamReset) and not error.processed:
            plan.unprocessed(place, now)
        elif isinstance(error, UpstreamReset) and error.is_stale:
            plan.met_end(place, now)
        elif isinstance(error, UpstreamTimeout) and not isinstance(error, ConnectTimeout):
            # The provider has the request, and may be charging for it; or there is no room to ask it again.
            plan.exclude(place)
        else:
            plan.failed(place, now, retry_after=error.retry_after)

    def _finish(self, attempt: Attempt, error: UpstreamError | None) -> None:
        reader, stream = attempt.reader, self._stream
        if error is None:
            stream.finish(
                "completed", finish_reason=reader.finish_reason, usage=reader.usage, attempts=self._attempts
            )
            return
        stream.finish(
            "incomplete" if stream.log.next > 0 else "failed",
            error=error,
            finish_reason=reader.finish_reason,
            usage=reader.usage,
            attempts=self._attempts,
        )

    def _record(self, target: Target, attempt: Attempt, error: str | None, *, unconfirmed: bool) -> None:
        self._attempts.append(
            AttemptRecord(
                provider=target.provider,
                model=target.model,
                started_ms=round((attempt.started - self._stream.created) * 1000),
                duration_ms=round((self._timers.now() - attempt.started) * 1000),
                status=attempt.status,
                error=error,
                unconfirmed=unconfirmed,
            )
        )


def _may_repeat(error: UpstreamError) -> bool:
    """Whether another try may do better: not where the request itself was refused."""
    if isinstance(error, UpstreamStatus):
        return error.status in (408, 429) or error.status >= 500
    return error.retryable


def _may_be_processed(error: UpstreamError | None, status: int | None) -> bool:
    """Whether the provider may have acted on a request that failed with this error before its first entry.

    An answer that refuses the request is taken at its word. After a 200 the provider has certainly begun.
    """
    if error is None or isinstance(error, (UpstreamStatus, UpstreamConnectError, ConnectTimeout, PoolTimeout)):
        return False
    if isinstance(error, UpstreamReset) and not error.processed:
        return False
    return status is None or status < 300


def _nothing() -> None:
    pass
