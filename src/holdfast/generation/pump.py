"""The pump: asks the endpoints of a model's route, until one has answered or there is nobody left to ask.

A request is tried again only while its log is empty: what a reader may have seen is never generated a second time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from holdfast.core.entries import AttemptRecord
from holdfast.core.retry import RoutePlan, Step
from holdfast.dialects.ask import Ask
from holdfast.errors import (
    Cancelled,
    CircuitOpen,
    ConnectTimeout,
    HoldfastError,
    InternalError,
    PoolTimeout,
    UpstreamConnectError,
    UpstreamError,
    UpstreamReset,
    UpstreamStatus,
    UpstreamTimeout,
)
from holdfast.generation.attempt import Attempt
from holdfast.generation.route import Route, Target
from holdfast.generation.ticket import Ticket
from holdfast.streams.request_log import attempt_failed
from holdfast.streams.stream import Stream
from holdfast.timers import Timers
from holdfast.upstream.capacity import EndpointLease
from holdfast.upstream.health import is_overload, may_be_of_the_request

logger = logging.getLogger("holdfast")

_NOT_SENT_AGAIN: Final = (
    "; the provider may have processed the request, so it was not sent again (retry.at_most_once)"
)


class Pump:
    """Runs one stream's generation to its end, over as many attempts as the route allows."""

    def __init__(self, stream: Stream, ask: Ask, route: Route, timers: Timers, ticket: Ticket) -> None:
        self._stream = stream
        self._ask = ask
        self._route = route
        self._timers = timers
        self._ticket = ticket
        # A place at one of the targets, which is the next one then.
        self._lease: EndpointLease | None = None
        # It got a 500 before.
        self._is_suspect = False
        # The targets that would do, were they not at their limit.
        self._crowded: list[Target] = []
        # Why the queue was left without a place.
        self._expired: HoldfastError | None = None
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
            self._release()
            stream.on_abandoned = _nothing
            # A cancelled task keeps its exception, and that this frame and the log: no cycle may keep the task.
            self._task = None

    async def _try_route(self) -> None:
        stream, route, timers = self._stream, self._route, self._timers
        deadline = timers.now() + max(target.timeouts.total for target in route.targets)
        plan = route.plan(deadline=deadline)
        previous: Target | None = None
        error: UpstreamError | None = None
        self._lease = self._ticket.take_lease()
        while (step := await self._next_step(plan)) is not None:
            if step.delay:
                await asyncio.sleep(step.delay)
                if not self._can_try(step.index, step.is_repetition):
                    continue
            target = route.targets[step.index]
            if self._lease is None and target.capacity is not None:
                self._lease = target.capacity.acquire()
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
            self._note_failure(plan, step.index, error)
            previous = target
        # Said of what was tried, if anything was; else of the wait that has come to nothing.
        reason: HoldfastError | None = error or self._expired
        if reason is None:
            reason = CircuitOpen(retry_after=route.retry_after(timers.now()))
        stream.finish("failed", error=reason, attempts=self._attempts)

    async def _next_step(self, plan: RoutePlan) -> Step | None:
        """Choose the next try; where what is left of the route is at its limit, wait for a place there."""
        while True:
            self._crowded = []
            step = plan.next(self._timers.now(), self._can_try)
            if step is not None:
                return step
            # A place that came with the turn may be of no use any more, where the breaker has opened since.
            had_lease = self._release()
            if not had_lease and not (self._crowded and await self._wait_for_place()):
                return None

    def _release(self, *, is_overload: bool = False, is_complete: bool = False) -> bool:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(is_overload=is_overload, is_complete=is_complete)
        return lease is not None

    async def _wait_for_place(self) -> bool:
        """Wait in the queue for one of the crowded targets; False where there is no room or it took too long."""
        turn = _Return(self._stream)
        if not self._ticket.rejoin(self._route.narrowed(self._crowded), turn):
            return False
        position = self._ticket.position
        if position is not None:
            self._stream.move(position)
        self._expired = await turn.outcome
        self._lease = self._ticket.take_lease()
        return self._expired is None

    async def _try_target(self, target: Target, deadline: float) -> tuple[Attempt, UpstreamError | None]:
        health, timers = target.health, self._timers
        permit = health.breaker.acquire(timers.now())
        if permit is None or (self._lease is None and target.capacity is not None):
            raise RuntimeError("a target was chosen that is left alone, or full")
        deadline = min(deadline, timers.now() + target.timeouts.total)
        attempt = Attempt(
            self._stream, self._ask, target, timers, permit=permit, lease=self._lease, deadline=deadline
        )
        try:
            error = await attempt.run()
        except BaseException:
            health.breaker.release(permit)
            self._record(target, attempt, "cancelled", unconfirmed=False)
            raise
        # A request that has got a 500 before may get one everywhere, through its own fault: only the first one
        # counts, so that one caller's bad request cannot open the breakers of the whole route for all.
        is_500 = may_be_of_the_request(error)
        health.record(permit, error, timers.now(), is_suspect=is_500 and self._is_suspect)
        self._is_suspect |= is_500
        # After the breaker knows: whoever waits for this place is let in, or told that it is of no use.
        self._release(is_overload=is_overload(error, has_answered=attempt.has_answered), is_complete=error is None)
        unconfirmed = self._stream.log.next == 0 and _may_be_processed(error, attempt.status)
        self._record(target, attempt, None if error is None else error.code, unconfirmed=unconfirmed)
        if error is not None:
            attempt_failed(self._stream, self._attempts[-1], error)
        return attempt, error

    def _can_try(self, index: int, is_repetition: bool) -> bool:
        target = self._route.targets[index]
        health, lease, now = target.health, self._lease, self._timers.now()
        if not health.breaker.can_pass(now) or (lease is not None and lease.capacity is not target.capacity):
            return False
        if is_repetition and not health.budget.has_room(now):
            health.budget_refusals += 1
            return False
        if lease is None and target.capacity is not None and target.capacity.is_full:
            self._crowded.append(target)
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

    def _note_failure(self, plan: RoutePlan, index: int, error: UpstreamError) -> None:
        now = self._timers.now()
        if isinstance(error, UpstreamReset) and not error.processed:
            plan.unprocessed(index, now)
        elif isinstance(error, UpstreamReset) and error.is_stale:
            plan.stale_connection(index, now)
        elif isinstance(error, UpstreamTimeout) and not isinstance(error, ConnectTimeout):
            # The provider has the request, and may be charging for it; or there is no room to ask it again.
            plan.exclude(index)
        else:
            plan.failed(index, now, retry_after=error.retry_after)

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


class _Return:
    """A request that was let in before and waits once more, for a place where it may still be tried."""

    __slots__ = ("_stream", "outcome")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        #: None when its turn has come, or why it waits no more.
        self.outcome: asyncio.Future[HoldfastError | None] = asyncio.get_running_loop().create_future()

    def admitted(self) -> None:
        self._stream.queue_position = None
        self._settle(None)

    def expired(self, error: HoldfastError) -> None:
        self._settle(error)

    def position_changed(self, position: int) -> None:
        self._stream.move(position)

    def _settle(self, outcome: HoldfastError | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


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
