"""Admits requests: at once, after a wait in the queue, or not at all. It counts exactly, for one process.

A request is checked against the limits of its key and tenant. It then takes a stream of its model's and its
tenant's capacity, and a slot at a provider of its route if the providers have limits. A request that lacks one of
them waits in a queue that is fair between tenants, and is told its position. It is checked once; a request whose
provider has failed may wait again.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

from holdfast.admission.limiter import Account, BothAccounts, Limiter
from holdfast.config.limits import LimitConfig, LimitsConfig, QueueConfig
from holdfast.core.entries import Usage
from holdfast.core.limits.fair_queue import FairQueue, Slot, Waiter
from holdfast.core.limits.rate_limit import Concurrency, Lease, Reservation
from holdfast.core.sliding import SlidingCounts
from holdfast.dialects.ask import Ask, RateLeft
from holdfast.errors import HoldfastError, QueueFull, QueueTimeout, RateLimited
from holdfast.timers import Deadline, Timers
from holdfast.upstream.capacity import Endpoints, ProviderLease

#: Positions are told at most this often, in seconds, since all of them are looked at for it.
_POSITION_INTERVAL = 1.0
#: The pace of the queue is counted over so many seconds.
_PACE_WINDOW = 10.0


class Ticket:
    """What one request holds, from the check of its limits until its stream has ended.

    | state | holds | what moves it there |
    |---|---|---|
    | waiting | its key's stream, reserved tokens, a slot in the queue | `enter` or `wait_again` without room |
    | admitted | also a stream of model and tenant; a provider's slot until that is taken | `begin`, by the queue |
    | closed | nothing | `close`, by the launcher; the queue, when its deadline has passed |
    """

    __slots__ = (
        "_admission",
        "_capacity",
        "_is_closed",
        "_key_lease",
        "_lease",
        "_prompt",
        "_reservations",
        "charged",
        "endpoints",
        "key",
        "model",
        "pool",
        "position",
        "slot",
        "tenant",
        "waiter",
    )

    def __init__(
        self,
        admission: Admission,
        model: str,
        accounts: BothAccounts,
        reservations: list[Reservation],
        *,
        prompt: int,
    ) -> None:
        self._admission = admission
        self._reservations = reservations
        # A stream of the model and one of the tenant; a slot at a provider until the pump takes it over.
        self._capacity: list[Lease] = []
        self._lease: ProviderLease | None = None
        self._prompt = prompt
        self._is_closed = False
        self.model = model
        self.key, self.tenant = accounts
        self.tenant.tickets += 1
        #: The endpoints that it waits for; None for any of its model.
        self.endpoints: Endpoints | None = None
        self.pool = model
        self.slot: Slot[Ticket] | None = None
        #: The slot with which it was served first, whose cost its tenant was charged.
        self.charged: Slot[Ticket] | None = None
        self.position: int | None = None
        self.waiter: Waiter | None = None
        self._key_lease = _held(self.key.streams)

    def begin(self, model: Concurrency, endpoints: Endpoints | None, now: float) -> None:
        """Take what admission gives: a stream of model and tenant, a slot; the reserved tokens begin to count."""
        if self.charged is None:
            self.charged = self.slot
        self.position = None
        self._capacity = [_held(model), _held(self.tenant.streams)]
        if endpoints is not None:
            self._lease = endpoints.reserve(now)
        for reservation in self._reservations:
            reservation.start(now)

    def pause(self) -> None:
        """Give back what `begin` took; its tokens count on."""
        for lease in self._capacity:
            lease.release()
        self._capacity = []
        slot = self.take_lease()
        if slot is not None:
            slot.release()

    def take_lease(self) -> ProviderLease | None:
        """Take over the slot at a provider that came with the admission; None where there is none, or no more."""
        lease, self._lease = self._lease, None
        return lease

    def wait(self, waiter: Waiter) -> None:
        """Name who waits. Call it before the next turn of the loop if the ticket has a position."""
        self.waiter = waiter

    def wait_again(self, endpoints: Endpoints, waiter: Waiter) -> bool:
        """Wait in the queue once more, for a slot at one of these endpoints alone.

        Returns False, with nothing given back, if the queue has no room.
        """
        return not self._is_closed and self._admission.readmit(self, endpoints, waiter)

    async def wait_for(
        self, endpoints: Endpoints, position_changed: Callable[[int | None], None]
    ) -> ProviderLease | None:
        """Wait as `wait_again` does, and take the slot.

        `position_changed` is told where the request stands meanwhile, and None when it waits no more.
        Returns None if the endpoint that is free has no limit. Raises `QueueFull`, with nothing given back, if the
        queue has no room, and `QueueTimeout`. Cancellation-safe: `close` gives back what it has taken.
        """
        again = _Again(position_changed)
        if not self.wait_again(endpoints, again):
            raise QueueFull
        if self.position is not None:
            again.position_changed(self.position)
        await again.outcome
        return self.take_lease()

    def close(self, usage: Usage | None, units: int) -> None:
        """Give everything back, and settle what was used. Idempotent.

        `units` is what the answer counts if the provider has not told its `usage`; 0 if nothing was delivered.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self.waiter = None
        used = 0
        if usage is not None:
            used = usage.billed
        elif units:
            used = self._prompt + units
        self._admission.leave(self, used)

    def give_back(self, used: int, now: float) -> None:
        """Release every lease, and settle the reserved tokens with those that were used."""
        self.tenant.tickets -= 1
        self._key_lease.release()
        self.pause()
        for reservation in self._reservations:
            reservation.settle(now, used)


class _Again:
    """A request that was admitted before and waits once more."""

    __slots__ = ("_told", "outcome")

    def __init__(self, told: Callable[[int | None], None]) -> None:
        self._told = told
        #: Done when it is admitted; fails with `QueueTimeout`.
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def admitted(self) -> None:
        self._told(None)
        if not self.outcome.done():
            self.outcome.set_result(None)

    def expired(self, error: HoldfastError) -> None:
        self._told(None)
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def position_changed(self, position: int) -> None:
        self._told(position)


class Admission:
    """Admits the requests of one process. `models` bounds the streams of each model; None is no bound.

    `routes` are the endpoints of each model. Whoever makes room at one of them calls `admit_waiting`.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        queue: QueueConfig,
        models: Mapping[str, int | None],
        timers: Timers,
        routes: Mapping[str, Endpoints] | None = None,
        *,
        own_limits: Callable[[str], LimitConfig | None] | None = None,
    ) -> None:
        """`own_limits` gives the limits that a key brings along."""
        self.limiter = Limiter(limits, own_limits)
        self.models = {name: Concurrency(limit) for name, limit in models.items()}
        self.queue: FairQueue[Ticket] = FairQueue(
            max_waiting=queue.max_waiting,
            max_waiting_per_tenant=queue.max_waiting_per_tenant,
            timeout=queue.deadline,
        )
        self._routes: Mapping[str, Endpoints] = {} if routes is None else routes
        # The pools where somebody waits; the pool that was served last is at the end.
        self._rotation: OrderedDict[str, None] = OrderedDict()
        self._timers = timers
        self._pace = SlidingCounts(_PACE_WINDOW)
        self._deadline: Deadline | None = None
        # When the first breaker of the endpoints that are waited for lets requests through again.
        self._opening: Deadline | None = None
        self._opening_at = math.inf
        # The pools whose positions have changed since they were told.
        self._changed: dict[str, None] = {}
        self._telling: Deadline | None = None
        self._told = -_POSITION_INTERVAL
        self.refused = 0
        self.expired = 0

    def check_size(self, tenant: str, key: str | None, least_text: int) -> None:
        """Check what is known of a request before it is decoded: that it has so many bytes of text, or more.

        Raises what `enter` would: `RateLimited` or `InvalidRequest`.
        """
        now = self._timers.now()
        accounts = self.limiter.accounts(tenant, key, now)
        try:
            self.limiter.check(accounts, self.limiter.tokens_of(least_text), None, now)
        except RateLimited:
            self.refused += 1
            raise

    def enter(self, tenant: str, key: str | None, ask: Ask) -> Ticket:
        """Admit a request, or give it a slot in the queue.

        Raises `RateLimited`, `QueueFull`, or `InvalidRequest` (beyond the token limit on its own); then nothing is
        counted or held.
        """
        now = self._timers.now()
        accounts = self.limiter.accounts(tenant, key, now)
        prompt, cost = self.limiter.estimate(accounts, ask.bounds)
        model = self.models[ask.model]
        own_full = accounts[1].streams.is_full
        waits = model.is_full or own_full or not self._has_room(self._routes.get(ask.model), now)
        try:
            self.limiter.check(accounts, cost, ask.bounds.output_field, now)
            if waits:
                self._check_room(accounts[1], own_full=own_full, now=now)
        except (RateLimited, QueueFull):
            self.refused += 1
            raise
        ticket = Ticket(self, ask.model, accounts, self.limiter.take(accounts, cost, now), prompt=prompt)
        priority = accounts[0].limits.priority or "normal"
        queue = self.queue
        if waits:
            self._push(ticket, cost=prompt, now=now)
        else:
            ticket.slot = queue.serve(ask.model, tenant, ticket, now=now, cost=prompt, priority=priority)
            ticket.begin(model, self._routes.get(ask.model), now)
            if accounts[1].streams.is_full:
                queue.pause(tenant)  # it may wait for another model, and had room until now
        return ticket

    def configure(
        self, limits: LimitsConfig, queue: QueueConfig, models: Mapping[str, int | None], *, admits: bool = True
    ) -> None:
        """Use new settings from now on. Running and waiting requests stay; every one that fits now is admitted.

        Without `admits` that is left to `admit_waiting`, for whoever has more to change before. Models that are
        gone are kept for what still runs on them.
        """
        self.limiter.configure(limits)
        self.queue.max_waiting = queue.max_waiting
        self.queue.max_waiting_per_tenant = queue.max_waiting_per_tenant
        self.queue.timeout = queue.deadline
        for name, limit in models.items():
            self.models.setdefault(name, Concurrency()).limit = limit
        for account in self.limiter.tenants:
            if account.streams.is_full:
                self.queue.pause(account.name)
            else:
                self.queue.resume(account.name)
        if admits:
            self.admit_waiting()

    def connect(self, tenant: str, key: str | None) -> list[Lease]:
        """Count a connection that lasts; the leases are to be released with it. Raises `RateLimited`."""
        return self.limiter.connect(tenant, key, self._timers.now())

    def rates(self, tenant: str, key: str | None) -> list[RateLeft]:
        """Return what is left of this caller's rates; none where it has no limits."""
        return self.limiter.rates(tenant, key, self._timers.now())

    def readmit(self, ticket: Ticket, endpoints: Endpoints, waiter: Waiter) -> bool:
        """Let an admitted request wait for these endpoints. Returns False if the queue has no room."""
        now, queue = self._timers.now(), self.queue
        if queue.is_full or queue.is_full_for(ticket.tenant.name):
            return False
        ticket.pause()
        ticket.endpoints = endpoints
        # Each choice of endpoints has a pool of its own, so that if anybody in it can be served, the first can. No
        # model's name holds a line feed.
        ticket.pool = f"{ticket.model}\n{endpoints.key}"
        ticket.waiter = waiter
        self._push(ticket, cost=0, now=now)  # what it costs was charged when it was served first
        self._admit_after(ticket, now)
        return True

    def leave(self, ticket: Ticket, used: int) -> None:
        """Give back what a closed ticket held, and admit every waiting request that fits."""
        now = self._timers.now()
        ticket.give_back(used, now)
        if ticket.charged is not None:
            self.queue.settle(ticket.charged, used)
        if ticket.slot is not None and ticket.slot.is_waiting:
            self.queue.cancel(ticket.slot)
            self._positions_changed(ticket.pool, now)
        ticket.charged = ticket.slot = None  # they know the ticket: no cycle may remain
        self._admit_after(ticket, now)

    def admit_waiting(self) -> None:
        """Admit waiting requests while there is room, of all models in turn."""
        now = self._timers.now()
        while any(self._serve_one(pool, now) for pool in list(self._rotation)):
            pass
        self._watch_breakers(now)

    def waiting_for(self, model: str) -> int:
        """How many requests of a model wait, for whatever endpoint."""
        return sum(self.queue.waiting_in(pool) for pool in self._rotation if pool.partition("\n")[0] == model)

    @property
    def held(self) -> dict[str, int]:
        """What is held now, by its kind: all zero when nothing runs, waits or is connected."""
        accounts = [*self.limiter.keys, *self.limiter.tenants]
        return {
            "models": sum(model.used for model in self.models.values()),
            "streams": sum(account.streams.used for account in accounts),
            "connections": sum(account.connections.used for account in accounts),
            "reservations": sum(account.tokens.held for account in accounts if account.tokens is not None),
            "places": len(self.queue),
        }

    # -- the queue --

    def _check_room(self, tenant: Account[str], *, own_full: bool, now: float) -> None:
        queue = self.queue
        if queue.is_full:
            if own_full and not queue.max_waiting:
                what = "have {} streams at a time"
                raise tenant.refuse(what, tenant.limits.concurrent_streams, "concurrent_streams", 1.0)
            raise QueueFull(retry_after=self._retry_after(now))
        if queue.is_full_for(tenant.name):
            raise RateLimited(
                f"the tenant has {queue.max_waiting_per_tenant} requests waiting (queue.max_waiting_per_tenant)",
                retry_after=self._retry_after(now),
            )

    def _retry_after(self, now: float) -> float:
        """Estimate when a slot will be free, from how many requests have left the queue of late."""
        left, _ = self._pace.totals(now)
        return min(max(_PACE_WINDOW / left, 1.0), self.queue.timeout) if left else self.queue.timeout

    def _admit_after(self, ticket: Ticket, now: float) -> None:
        """Admit what fits after a ticket has given back what it held."""
        if not self.queue:
            return
        if not ticket.tenant.streams.is_full:
            for pool in self.queue.resume(ticket.tenant.name):
                while self._serve_one(pool, now):
                    pass
        self.admit_waiting()

    def _push(self, ticket: Ticket, *, cost: int, now: float) -> None:
        queue, tenant = self.queue, ticket.tenant
        priority = ticket.key.limits.priority or "normal"
        ticket.slot = queue.push(ticket.pool, tenant.name, ticket, now=now, cost=cost, priority=priority)
        ticket.position = queue.position(ticket.slot)
        self._rotation.setdefault(ticket.pool)
        if tenant.streams.is_full:
            queue.pause(tenant.name)
        self._watch_deadline(now)
        self._watch_breakers(now)

    def _has_room(self, endpoints: Endpoints | None, now: float) -> bool:
        return endpoints is None or endpoints.has_room(now)

    def _endpoints_of(self, ticket: Ticket) -> Endpoints | None:
        return ticket.endpoints or self._routes.get(ticket.model)

    def _serve_one(self, pool: str, now: float) -> bool:
        """Admit the next request of a pool if there is room; return whether there was."""
        queue = self.queue
        slot = queue.peek(pool)
        if slot is None:
            if not queue.waiting_in(pool):
                self._rotation.pop(pool, None)
            return False
        ticket = slot.item
        model = self.models[ticket.model]
        endpoints = self._endpoints_of(ticket)
        if model.is_full or not self._has_room(endpoints, now):
            return False
        queue.pop(pool)
        self._rotation.move_to_end(pool)
        ticket.begin(model, endpoints, now)
        if ticket.tenant.streams.is_full:
            queue.pause(ticket.tenant.name)
        self._pace.add(now, 1)
        self._positions_changed(pool, now)
        if ticket.waiter is not None:
            ticket.waiter.admitted()
        return True

    def _watch_deadline(self, now: float) -> None:
        deadline = self.queue.next_deadline()
        if self._deadline is None and deadline is not None:
            self._deadline = self._timers.after(max(deadline - now, 0.0), self._expire)

    def _watch_breakers(self, now: float) -> None:
        """Look again when a breaker half-opens: that alone makes room without a call of `admit_waiting`."""
        soonest = math.inf
        for pool in self._rotation:
            slot = self.queue.peek(pool)
            endpoints = None if slot is None else self._endpoints_of(slot.item)
            if endpoints is not None:
                soonest = min(soonest, endpoints.opens_in(now))
        if now + soonest < self._opening_at:
            if self._opening is not None:
                self._opening.cancel()
            self._opening_at = now + soonest
            self._opening = self._timers.after(soonest, self._opened)

    def _opened(self) -> None:
        self._opening = None
        self._opening_at = math.inf
        self.admit_waiting()

    def _expire(self) -> None:
        self._deadline = None
        now = self._timers.now()
        for slot in self.queue.expire(now):
            ticket = slot.item
            self.expired += 1
            self._positions_changed(ticket.pool, now)
            if ticket.waiter is not None:
                ticket.waiter.expired(QueueTimeout(retry_after=self._retry_after(now)))
            ticket.close(None, 0)
        self._watch_deadline(now)

    # -- positions --

    def _positions_changed(self, pool: str, now: float) -> None:
        if self.queue.waiting_in(pool):
            self._changed[pool] = None
            if self._telling is None:
                self._telling = self._timers.after(
                    max(self._told + _POSITION_INTERVAL - now, 0.0), self._tell_positions
                )

    def _tell_positions(self) -> None:
        self._telling = None
        self._told = self._timers.now()
        changed, self._changed = self._changed, {}
        for pool in changed:
            for slot, position in list(self.queue.positions(pool)):
                ticket = slot.item
                if ticket.position != position:
                    ticket.position = position
                    if ticket.waiter is not None:
                        ticket.waiter.position_changed(position)


def _held(concurrency: Concurrency) -> Lease:
    lease = concurrency.acquire()
    if lease is None:
        raise RuntimeError("a lease was taken without looking for room")
    return lease
