"""Lets requests in: at once, when their turn comes, or not at all. For one process, and exact.

A request is checked against the limits of its key and tenant, then takes a stream of its model's and its tenant's
capacity; where there is none it waits, fairly, and is told where it stands. All of it happens once per request.
"""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.admission.limiter import Account, Headers, Limiter
from holdfast.config_limits import LimitsConfig, QueueConfig
from holdfast.core.fair_queue import FairQueue, Place, Turn
from holdfast.core.messages import Usage
from holdfast.core.rate_limit import Concurrency, Lease, Reservation
from holdfast.core.sliding import SlidingCounts
from holdfast.errors import QueueFull, QueueTimeout, RateLimited
from holdfast.timers import Deadline, Timers
from holdfast.upstream.providers.openai import ChatRequest

#: Positions are told at most this often, in seconds, since all of them are looked at for it.
_POSITION_INTERVAL = 1.0
#: Over which it is counted how fast the queue moves, in seconds.
_PACE_WINDOW = 10.0


class Ticket:
    """What one request holds, from its admission until its stream has ended."""

    __slots__ = (
        "_admission",
        "_has_begun",
        "_is_closed",
        "_leases",
        "_prompt",
        "_reservations",
        "key",
        "model",
        "place",
        "position",
        "tenant",
        "turn",
    )

    def __init__(
        self,
        admission: Admission,
        model: str,
        accounts: tuple[Account, Account],
        reservations: list[Reservation],
        *,
        prompt: int,
    ) -> None:
        self._admission = admission
        self._reservations = reservations
        self._leases: list[Lease] = []
        self._prompt = prompt
        self._has_begun = False
        self._is_closed = False
        self.model = model
        self.key, self.tenant = accounts
        self.place: Place[Ticket] | None = None
        self.position: int | None = None
        self.turn: Turn | None = None
        self.hold(self.key.streams)

    def hold(self, concurrency: Concurrency) -> None:
        lease = concurrency.acquire()
        if lease is None:
            raise RuntimeError("a lease was taken without looking for room")
        self._leases.append(lease)

    def begin(self, model: Concurrency, now: float) -> None:
        """Its turn is here: take of the capacity, and let the reserved tokens count."""
        self._has_begun = True
        self.position = None
        self.hold(model)
        self.hold(self.tenant.streams)
        for reservation in self._reservations:
            reservation.start(now)

    def wait(self, turn: Turn) -> None:
        self.turn = turn

    def close(self, usage: Usage | None, entries: int) -> None:
        """Give everything back, and settle what was used. Idempotent.

        Without `usage` an entry counts as a token; where nothing was delivered nothing was used.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self.turn = None
        used = 0
        if usage is not None:
            used = usage.total_tokens or usage.prompt_tokens + usage.completion_tokens
        elif entries:
            used = self._prompt + entries
        self._admission.leave(self, used, has_begun=self._has_begun)

    def give_back(self, used: int, now: float) -> None:
        for lease in self._leases:
            lease.release()
        for reservation in self._reservations:
            reservation.settle(now, used)


class Admission:
    """The door of one process. `models` gives each model its bound of streams at a time, None for none."""

    def __init__(
        self, limits: LimitsConfig, queue: QueueConfig, models: Mapping[str, int | None], timers: Timers
    ) -> None:
        self.limiter = Limiter(limits)
        self.models = {name: Concurrency(limit) for name, limit in models.items()}
        self.queue: FairQueue[Ticket] = FairQueue(
            max_waiting=queue.max_waiting,
            max_waiting_per_tenant=queue.max_waiting_per_tenant,
            timeout=queue.deadline,
        )
        self._timers = timers
        self._pace = SlidingCounts(_PACE_WINDOW)
        self._deadline: Deadline | None = None
        # The models whose queue has moved since positions were told.
        self._moved: dict[str, None] = {}
        self._telling: Deadline | None = None
        self._told = -_POSITION_INTERVAL
        self.refused = 0
        self.expired = 0

    def enter(self, tenant: str, key: str | None, request: ChatRequest) -> Ticket:
        """Let a request in, or give it a place in the queue.

        Raises `RateLimited`, `QueueFull`, or `InvalidRequest` (beyond the token limit on its own); then nothing is
        counted or held.
        """
        now = self._timers.now()
        accounts = self.limiter.accounts(tenant, key, now)
        prompt, cost = self.limiter.estimate(accounts, request)
        model = self.models[request.model]
        own_full = accounts[1].streams.is_full
        waits = model.is_full or own_full
        try:
            self.limiter.check(accounts, cost, now)
            if waits:
                self._check_room(accounts[1], own_full=own_full, now=now)
        except (RateLimited, QueueFull):
            self.refused += 1
            raise
        ticket = Ticket(self, request.model, accounts, self.limiter.take(accounts, cost, now), prompt=prompt)
        priority = accounts[0].limits.priority or "normal"
        queue = self.queue
        if waits:
            ticket.place = queue.push(request.model, tenant, ticket, now=now, cost=prompt, priority=priority)
            ticket.position = queue.position(ticket.place)
            if own_full:
                queue.hold(tenant)
            self._watch_deadline(now)
        else:
            ticket.place = queue.serve(request.model, tenant, ticket, now=now, cost=prompt, priority=priority)
            ticket.begin(model, now)
            if accounts[1].streams.is_full:
                queue.hold(tenant)  # it may be waiting for another model, with room of its own until now
        return ticket

    def configure(self, limits: LimitsConfig, queue: QueueConfig, models: Mapping[str, int | None]) -> None:
        """Use new settings from now on. Who runs or waits stays; who can be let in now is let in.

        Models that are gone are kept for what still runs on them.
        """
        now = self._timers.now()
        self.limiter.configure(limits)
        self.queue.max_waiting = queue.max_waiting
        self.queue.max_waiting_per_tenant = queue.max_waiting_per_tenant
        self.queue.timeout = queue.deadline
        for name, limit in models.items():
            self.models.setdefault(name, Concurrency()).limit = limit
        for account in self.limiter.tenants:
            if account.streams.is_full:
                self.queue.hold(account.name)
            else:
                self.queue.resume(account.name)
        for name in self.models:
            self._serve(name, now)

    def connect(self, tenant: str, key: str | None) -> list[Lease]:
        """Count a WebSocket; the leases are to be released with it. Raises `RateLimited`."""
        return self.limiter.connect(tenant, key, self._timers.now())

    def headers(self, tenant: str, key: str | None) -> Headers:
        """The `x-ratelimit-*` headers of an answer to this caller; none where it has no limits."""
        return self.limiter.headers(tenant, key, self._timers.now())

    def leave(self, ticket: Ticket, used: int, *, has_begun: bool) -> None:
        """A ticket was closed: give back what it held, and let in who can be let in now."""
        now = self._timers.now()
        ticket.give_back(used, now)
        place = ticket.place
        if place is None:
            return
        if has_begun:
            self.queue.settle(place, used)
        elif place.is_waiting:
            self.queue.cancel(place)
            self._has_moved(ticket.model, now)
        self._let_in(ticket.model, ticket.tenant, now)

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

    def _check_room(self, tenant: Account, *, own_full: bool, now: float) -> None:
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
        """About when a place will be free, by how many have left the queue of late."""
        left, _ = self._pace.totals(now)
        return min(max(_PACE_WINDOW / left, 1.0), self.queue.timeout) if left else self.queue.timeout

    def _let_in(self, model: str, tenant: Account, now: float) -> None:
        if not tenant.streams.is_full:
            for pool in self.queue.resume(tenant.name):
                self._serve(pool, now)
        self._serve(model, now)

    def _serve(self, pool: str, now: float) -> None:
        """Start whoever is next, for as long as the model has room."""
        model, queue = self.models[pool], self.queue
        while not model.is_full and (place := queue.pop(pool)) is not None:
            ticket = place.item
            ticket.begin(model, now)
            if ticket.tenant.streams.is_full:
                queue.hold(ticket.tenant.name)
            self._pace.add(now, 1)
            self._has_moved(pool, now)
            if ticket.turn is not None:
                ticket.turn.start()

    def _watch_deadline(self, now: float) -> None:
        deadline = self.queue.next_deadline()
        if self._deadline is None and deadline is not None:
            self._deadline = self._timers.after(max(deadline - now, 0.0), self._expire)

    def _expire(self) -> None:
        self._deadline = None
        now = self._timers.now()
        for place in self.queue.expire(now):
            ticket = place.item
            self.expired += 1
            self._has_moved(ticket.model, now)
            if ticket.turn is not None:
                ticket.turn.expire(QueueTimeout(retry_after=self._retry_after(now)))
            ticket.close(None, 0)
        self._watch_deadline(now)

    # -- positions --

    def _has_moved(self, pool: str, now: float) -> None:
        if self.queue.waiting_in(pool):
            self._moved[pool] = None
            if self._telling is None:
                self._telling = self._timers.after(
                    max(self._told + _POSITION_INTERVAL - now, 0.0), self._tell_positions
                )

    def _tell_positions(self) -> None:
        self._telling = None
        self._told = self._timers.now()
        moved, self._moved = self._moved, {}
        for pool in moved:
            for place, position in list(self.queue.positions(pool)):
                ticket = place.item
                if ticket.position != position:
                    ticket.position = position
                    if ticket.turn is not None:
                        ticket.turn.move(position)
