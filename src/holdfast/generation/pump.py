"""The pump: asks the endpoints of a model's route, until one has answered or there is nobody left to ask.

A request is tried again only while its stream has accepted nothing: what a reader may see is never generated a
second time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from holdfast.core.breaker import Permit
from holdfast.core.entries import AttemptRecord, EndBody, EndStatus, Usage, error_body
from holdfast.core.retry import RoutePlan, Step
from holdfast.errors import (
    Cancelled,
    CircuitOpen,
    ConnectTimeout,
    HoldfastError,
    InternalError,
    PoolTimeout,
    QueueFull,
    QueueTimeout,
    UpstreamConnectError,
    UpstreamError,
    UpstreamRefused,
    UpstreamReset,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamTruncated,
)
from holdfast.generation.attempt import Attempt
from holdfast.generation.generation import Generation
from holdfast.generation.route import Route, Target
from holdfast.observe.events import AttemptEnded, Observer
from holdfast.streams.stream import Retrying
from holdfast.timers import Timers
from holdfast.upstream.capacity import ProviderLease
from holdfast.upstream.health import Health, is_failure, is_overload, may_be_of_the_request

logger = logging.getLogger("holdfast")

#: Readers are told of delays from so many seconds on.
_TOLD_DELAY: Final = 0.5

_NOT_SENT_AGAIN: Final = (
    "; the provider may have processed the request, so it was not sent again (retry.at_most_once)"
)


class Pump:
    """Runs one stream's generation to its end, over as many attempts as the route allows.

    | state | what moves it there |
    |---|---|
    | choosing | `start`; an attempt that failed and may be repeated |
    | waiting | every target that would do is at its limit, so the ticket waits in the queue for one |
    | trying | a target was chosen: an `Attempt` is under way |
    | ended | an answer, an error that no other try can better, no target left, or a cancellation |

    Invariants: it holds a provider lease only while it chooses or tries, and at most one; every attempt that began
    is recorded; the stream gets its end before the task ends.
    """

    __slots__ = (
        "_ask",
        "_attempt",
        "_attempts",
        "_crowded",
        "_expired",
        "_failed_at",
        "_generation",
        "_is_suspect",
        "_lease",
        "_observer",
        "_route",
        "_stream",
        "_task",
        "_ticket",
        "_timers",
        "units",
        "usage",
    )

    def __init__(self, generation: Generation, route: Route, timers: Timers, observer: Observer) -> None:
        self._generation = generation
        self._stream = generation.stream
        self._ask = generation.ask
        self._ticket = generation.ticket
        self._route = route
        self._timers = timers
        self._observer = observer
        # A slot at one of the targets, which is the next one then.
        self._lease: ProviderLease | None = None
        # It got a 500 before.
        self._is_suspect = False
        # Who has failed it: one request counts once.
        self._failed_at: set[Health] = set()
        # The targets that would do, were they not at their limit.
        self._crowded: tuple[Target, ...] = ()
        # Why the queue was left without a slot.
        self._expired: HoldfastError | None = None
        self._attempts: tuple[AttemptRecord, ...] = ()
        self._attempt: Attempt | None = None
        self._task: asyncio.Task[None] | None = None
        #: About how many tokens the newest attempt has brought, and the usage where it told that at its end.
        self.units = 0
        self.usage: Usage | None = None

    def start(self) -> asyncio.Task[None]:
        """Become the stream's source, and begin."""
        self._stream.source = self
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"pump {self._stream.id}")
        return self._task

    # -- the stream's side --

    def cancel(self, reason: str) -> None:
        """End the stream at once, and let go of the provider in the next turn of the loop.

        The end names the attempt that is under way: who gives up wants to know whom the request has waited for.
        """
        attempts = list(self._attempts)
        if self._attempt is not None:
            attempts.append(self._record_of(self._attempt, "cancelled"))
        self._stream.seal(EndBody("cancelled", error=error_body(Cancelled(reason)), attempts=attempts))
        # A task that is cancelled before its first step keeps this object, as an exception's traceback does.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def abandon(self) -> None:
        self.cancel("")

    def resume(self) -> None:
        if self._attempt is not None:
            self._attempt.resume()

    # -- the way along the route --

    async def _run(self) -> None:
        stream = self._stream
        try:
            await self._try_route()
        except asyncio.CancelledError:
            self._seal("cancelled", Cancelled())
            raise
        except HoldfastError as exc:
            self._seal("failed", exc)
        except Exception:
            logger.exception("stream %s: the pump failed", stream.id)
            self._seal("failed", InternalError())
        finally:
            self._release()
            # A cancelled task keeps its exception, and that this frame and the log: no cycle may keep the task.
            self._task = None

    async def _try_route(self) -> None:
        stream, route, timers = self._stream, self._route, self._timers
        deadline = timers.now() + max(target.timeouts.total for target in route.targets)
        plan = route.plan(deadline=deadline)
        previous: Target | None = None
        error: UpstreamError | None = None
        told: UpstreamError | None = None
        self._lease = self._ticket.take_lease()
        while (step := await self._next_step(plan)) is not None:
            if step.delay:
                await self._wait(plan, step.delay, error)
                if not self._can_try(step.index, step.is_repetition):
                    continue
            target = route.targets[step.index]
            if self._lease is None:
                self._lease = target.acquire()
            target.health.count_attempt(
                is_repetition=step.is_repetition,
                is_first_here=previous is not target,
                is_failover=previous is not None and previous is not target,
                after=error,
                now=timers.now(),
            )
            plan.begin(step)
            attempt, error = await self._try_target(target, deadline)
            if error is None or stream.accepted > 0 or not (_may_help(error) or error.retryable):
                self._finish(attempt, error)
                return
            if route.at_most_once and self._attempts[-1].unconfirmed:  # neither here nor by the caller
                self._finish(attempt, error.with_note(_NOT_SENT_AGAIN, retryable=False))
                return
            if not _may_help(error):
                self._finish(attempt, error)
                return
            self._note_failure(plan, step.index, error)
            previous = target
            if told is None or error.retryable or not told.retryable:
                told = error
        # Said of what was tried, if anything was, and rather of what asking again may better; else of the wait.
        reason: HoldfastError | None = told or self._expired
        if reason is None:
            reason = CircuitOpen(retry_after=route.retry_after(timers.now()))
        self._seal("failed", reason)

    async def _wait(self, plan: RoutePlan, delay: float, error: UpstreamError | None) -> None:
        """Wait before the next try, and have the readers told where it takes long."""
        if delay >= _TOLD_DELAY and error is not None:
            self._stream.retry_in(Retrying(len(self._attempts) + 1, delay, error.code))
        await asyncio.sleep(delay)
        self._stream.retry_in(None)
        plan.waited(delay)

    async def _next_step(self, plan: RoutePlan) -> Step | None:
        """Choose the next try; where what is left of the route is at its limit, wait for a slot there."""
        while True:
            self._crowded = ()
            step = plan.next(self._timers.now(), self._can_try)
            if step is not None:
                return step
            # A slot that came with the admission may be of no use any more, where the breaker has opened since.
            if self._release():
                continue
            if not self._crowded:
                return None
            try:
                self._lease = await self._ticket.wait_for(
                    self._route.narrowed(self._crowded), self._generation.position_changed
                )
            except QueueFull:
                return None
            except QueueTimeout as exc:
                self._expired = exc
                return None

    def _can_try(self, index: int, is_repetition: bool) -> bool:
        target, now = self._route.targets[index], self._timers.now()
        if not target.endpoint.accepts(self._ask.dialect) or not target.health.breaker.can_pass(now):
            return False
        if self._lease is not None and self._lease.capacity is not target.capacity:
            return False
        if is_repetition and not target.health.allows_repetition(now):
            return False
        if self._lease is None and target.is_full:
            self._crowded += (target,)
            return False
        return True

    def _release(self, *, is_overload: bool = False, is_complete: bool = False) -> bool:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(is_overload=is_overload, is_complete=is_complete)
        return lease is not None

    def _note_failure(self, plan: RoutePlan, index: int, error: UpstreamError) -> None:
        now = self._timers.now()
        if not error.same_endpoint_retry or isinstance(error, (UpstreamRefused, UpstreamTruncated)):
            # It would be refused again; or the endpoint has taken an empty answer for an answer, and would again.
            plan.exclude(index)
        elif isinstance(error, UpstreamReset) and not error.processed:
            plan.unprocessed(index, now)
        elif isinstance(error, UpstreamReset) and error.is_stale:
            plan.stale_connection(index, now)
        elif isinstance(error, UpstreamTimeout) and not isinstance(error, ConnectTimeout):
            # The provider has the request, and may be charging for it; or there is no room to ask it again.
            plan.exclude(index)
        else:
            plan.failed(index, now, retry_after=error.retry_after)

    # -- one attempt --

    async def _try_target(self, target: Target, deadline: float) -> tuple[Attempt, UpstreamError | None]:
        health, timers = target.health, self._timers
        permit = health.breaker.acquire(timers.now())
        if permit is None or (self._lease is None and target.capacity is not None):
            raise RuntimeError("a target was chosen that is left alone, or full")
        deadline = min(deadline, timers.now() + target.timeouts.total)
        try:
            attempt = Attempt(
                self._stream, self._ask, target, timers, self._observer, lease=self._lease, deadline=deadline
            )
        except BaseException:  # most likely the request asks for what this provider's API has no form for
            health.breaker.release(permit)
            raise
        self._attempt = attempt
        health.begin_wait(attempt, timers.now())
        try:
            error = await attempt.run(permit)
        except BaseException:
            health.breaker.release(permit)
            self._record(attempt, None, "cancelled", unconfirmed=False)
            raise
        finally:
            self._attempt = None
            attempt.let_go()
            health.end_wait(attempt)
            self.units = attempt.reader.units
        if error is not None:
            error.provider_request_id = error.provider_request_id or attempt.provider_request_id
            self._route.masking.mask_error(error)
        self._judge(target, permit, error, has_answered=attempt.has_answered)
        # After the breaker knows: whoever waits for this slot is admitted, or told that it is of no use.
        self._release(is_overload=is_overload(error, has_answered=attempt.has_answered), is_complete=error is None)
        unconfirmed = self._stream.accepted == 0 and _may_be_processed(error, attempt.status)
        code = None if error is None else error.code
        self._record(attempt, error, code, unconfirmed=unconfirmed)
        return attempt, error

    def _judge(self, target: Target, permit: Permit, error: UpstreamError | None, *, has_answered: bool) -> None:
        """Have the endpoint's health know how the attempt has ended. One request counts once against it."""
        health = target.health
        # A request that has got a 500 before may get one everywhere, through its own fault: only the first one
        # counts, so that one caller's bad request cannot open the breakers of the whole route for all.
        is_500 = may_be_of_the_request(error)
        is_counted = health in self._failed_at and not permit.is_trial
        health.record(
            permit,
            error,
            self._timers.now(),
            is_suspect=is_counted or (is_500 and self._is_suspect),
            has_answered=has_answered,
        )
        self._is_suspect |= is_500
        if is_failure(error, has_answered=has_answered):
            self._failed_at.add(health)

    def _record_of(self, attempt: Attempt, code: str | None, *, unconfirmed: bool = False) -> AttemptRecord:
        request_id = attempt.provider_request_id
        return AttemptRecord(
            provider=attempt.target.provider,
            model=attempt.target.model,
            started_ms=round((attempt.started - self._stream.created) * 1000),
            duration_ms=round((self._timers.now() - attempt.started) * 1000),
            status=attempt.status,
            error=code,
            unconfirmed=unconfirmed,
            provider_request_id=None if request_id is None else self._route.masking.mask(request_id),
        )

    def _record(
        self, attempt: Attempt, error: UpstreamError | None, code: str | None, *, unconfirmed: bool
    ) -> None:
        stream = self._stream
        record = self._record_of(attempt, code, unconfirmed=unconfirmed)
        self._attempts += (record,)
        self._observer.observe(
            AttemptEnded(
                stream.id,
                stream.origin.request_id,
                self._generation.caller,
                record,
                error,
                attempt.reader.usage,
                attempt.reader.units,
                attempt.first_entry,
                record.provider_request_id,
            )
        )

    # -- the end --

    def _finish(self, attempt: Attempt, error: UpstreamError | None) -> None:
        if error is None:
            self._seal("completed", None, attempt)
        else:
            self._seal("incomplete" if self._stream.accepted > 0 else "failed", error, attempt)

    def _seal(self, status: EndStatus, error: HoldfastError | None, attempt: Attempt | None = None) -> None:
        reader = None if attempt is None else attempt.reader
        self.usage = None if reader is None else reader.usage
        self._stream.seal(
            EndBody(
                status,
                finish_reason=None if reader is None else reader.finish_reason,
                usage=self.usage,
                error=None if error is None else error_body(error),
                attempts=list(self._attempts),
            )
        )


def _may_help(error: UpstreamError) -> bool:
    """Whether another try may do better, here or elsewhere: not where the request itself was refused."""
    if error.is_own_bound:
        # An answer that is too large is so again; for want of a descriptor another endpoint may have a connection.
        return isinstance(error, UpstreamConnectError)
    return error.retryable or not error.same_endpoint_retry or isinstance(error, UpstreamRefused)


def _may_be_processed(error: UpstreamError | None, status: int | None) -> bool:
    """Whether the provider may have acted on a request that failed with this error before its first entry.

    An answer that refuses the request is taken at its word. After a 200 the provider has certainly begun.
    """
    if error is None or isinstance(
        error, (UpstreamStatus, UpstreamRefused, UpstreamConnectError, ConnectTimeout, PoolTimeout)
    ):
        return False
    if isinstance(error, UpstreamReset) and not error.processed:
        return False
    return status is None or status < 300
