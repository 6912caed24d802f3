"""A bounded queue that is fair between tenants by the tokens that they were served.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24): each tenant has
a counter of the tokens that it was served; who has the lowest is served next; who comes anew is lifted to where
the others are, so that nobody saves up for later. It decides who is next; capacity, clocks and starting are the
shell's.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Literal, Protocol, TypeVar

from holdfast.errors import HoldfastError

T = TypeVar("T")
Priority = Literal["high", "normal", "low"]

#: What a token of this class counts: a tenant that waits with high priority alone gets four times the share.
WEIGHTS: dict[Priority, float] = {"high": 4.0, "normal": 1.0, "low": 0.25}
_CLASSES: tuple[Priority, ...] = ("high", "normal", "low")
#: Idle tenants of one pool that are remembered before those are looked for that need not be.
_MAX_IDLE = 256


class Turn(Protocol):
    """A request that waits. One of `start` and `expire` is called, unless it gives its place up before."""

    def start(self) -> None: ...

    def expire(self, error: HoldfastError) -> None: ...

    def move(self, position: int) -> None: ...


class Place(Generic[T]):
    """A place in the queue, or once there; it has left as soon as `is_waiting` is false."""

    __slots__ = ("_lane", "cost", "deadline", "is_waiting", "item", "number", "priority")

    def __init__(
        self, lane: _Lane[T], item: T, *, number: int, cost: float, priority: Priority, deadline: float
    ) -> None:
        self._lane = lane
        self.item = item
        self.number = number
        self.cost = cost
        self.priority = priority
        self.deadline = deadline
        self.is_waiting = True

    def charge(self) -> None:
        """It is served: its tenant is charged the cost."""
        lane = self._lane
        lane.pool.floor = max(lane.pool.floor, lane.counter)
        lane.counter += self.cost / WEIGHTS[self.priority]


class _Lane(Generic[T]):
    """One tenant in one pool: what it was served, and who waits."""

    __slots__ = ("classes", "counter", "entry", "pool", "tenant", "waiting")

    def __init__(self, pool: _Pool[T], tenant: _Tenant[T], counter: float) -> None:
        self.pool = pool
        self.tenant = tenant
        self.counter = counter
        self.waiting = 0
        # Ordered dicts, since places leave from the front and from anywhere, both in constant time.
        self.classes: dict[Priority, OrderedDict[Place[T], None]] = {name: OrderedDict() for name in _CLASSES}
        #: Number of this lane's entry in the pool's heap, 0 for none.
        self.entry = 0

    @property
    def head(self) -> Place[T]:
        return next(iter(next(places for places in self.classes.values() if places)))

    def places(self) -> Iterator[Place[T]]:
        for places in self.classes.values():
            yield from places

    def ahead_of(self, place: Place[T]) -> int:
        """How many wait before the last of a class."""
        index = _CLASSES.index(place.priority)
        return sum(len(self.classes[name]) for name in _CLASSES[: index + 1]) - 1


class _Pool(Generic[T]):
    __slots__ = ("floor", "heap", "lanes", "prune_at", "waiting")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, _Lane[T]]] = []
        self.lanes: dict[str, _Lane[T]] = {}
        #: The counter of who was served last, which was the lowest: newcomers start from there.
        self.floor = 0.0
        self.waiting = 0
        self.prune_at = _MAX_IDLE


class _Tenant(Generic[T]):
    __slots__ = ("is_held", "lanes", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lanes: dict[str, _Lane[T]] = {}  # those where it waits
        self.waiting = 0
        self.is_held = False


class FairQueue(Generic[T]):
    """Places for what waits on one of several pools (a model's capacity), fair within each.

    `timeout` is how long a place may be kept, in seconds. Among the places of one tenant in one pool higher
    priority goes first, and the first come within one priority. All work is logarithmic in the number of tenants
    and does not depend on how many wait, `positions` excepted.
    """

    def __init__(self, *, max_waiting: int, max_waiting_per_tenant: int | None = None, timeout: float) -> None:
        self.max_waiting = max_waiting
        self.max_waiting_per_tenant = max_waiting_per_tenant
        self.timeout = timeout
        self._pools: dict[str, _Pool[T]] = {}
        self._tenants: dict[str, _Tenant[T]] = {}
        self._arrivals: OrderedDict[Place[T], None] = OrderedDict()
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    # -- room --

    @property
    def is_full(self) -> bool:
        return len(self._arrivals) >= self.max_waiting

    def is_full_for(self, tenant: str) -> bool:
        """Whether the tenant has all the places that one tenant may have."""
        limit = self.max_waiting_per_tenant
        return limit is not None and self.waiting_of(tenant) >= limit

    def waiting_of(self, tenant: str) -> int:
        known = self._tenants.get(tenant)
        return known.waiting if known is not None else 0

    @property
    def most_waiting(self) -> int:
        """How many wait of the tenant of which most wait."""
        return max((tenant.waiting for tenant in self._tenants.values()), default=0)

    def waiting_in(self, pool: str) -> int:
        known = self._pools.get(pool)
        return known.waiting if known is not None else 0

    # -- coming and going --

    def push(
        self, pool: str, tenant: str, item: T, *, now: float, cost: float, priority: Priority = "normal"
    ) -> Place[T]:
        """Take a place. `cost` is how many tokens the item will take at least. Raises RuntimeError when full."""
        if self.is_full or self.is_full_for(tenant):
            raise RuntimeError("push to a full queue")
        lane = self._lane(pool, tenant)
        place = Place(lane, item, number=self._number(), cost=cost, priority=priority, deadline=now + self.timeout)
        lane.classes[priority][place] = None
        self._arrivals[place] = None
        lane.waiting += 1
        lane.pool.waiting += 1
        lane.tenant.waiting += 1
        lane.tenant.lanes[pool] = lane
        self._tenants[tenant] = lane.tenant
        if not lane.entry and not lane.tenant.is_held:
            self._enter(lane)
        return place

    def cancel(self, place: Place[T]) -> None:
        """Give a place up. Idempotent."""
        if place.is_waiting:
            self._leave(place)

    def peek(self, pool: str) -> Place[T] | None:
        """Say whom `pop` would serve."""
        known = self._pools.get(pool)
        lane = self._lowest(known) if known is not None else None
        return None if lane is None else lane.head

    def pop(self, pool: str) -> Place[T] | None:
        """Serve the next of a pool, and charge its cost; None where nobody may be served."""
        place = self.peek(pool)
        if place is not None:
            place.charge()
            self._leave(place)
        return place

    def serve(
        self, pool: str, tenant: str, item: T, *, now: float, cost: float, priority: Priority = "normal"
    ) -> Place[T]:
        """Charge what is served without waiting, since nobody waits who could be served instead."""
        place = Place(
            self._lane(pool, tenant), item, number=self._number(), cost=cost, priority=priority, deadline=now
        )
        place.is_waiting = False
        place.charge()
        return place

    def settle(self, place: Place[T], tokens: float) -> None:
        """Charge what was served beyond the cost; once for each place that was served.

        Nothing is given back: others may have been lifted to what was charged, and would then have to wait until
        this tenant has used it up again.
        """
        place._lane.counter += max(tokens - place.cost, 0.0) / WEIGHTS[place.priority]

    def expire(self, now: float) -> list[Place[T]]:
        """Take out and return the places whose deadline has passed."""
        gone = []
        while self._arrivals and (place := next(iter(self._arrivals))).deadline <= now:
            self._leave(place)
            gone.append(place)
        return gone

    def next_deadline(self) -> float | None:
        return next(iter(self._arrivals)).deadline if self._arrivals else None

    # -- tenants that may not be served for now --

    def hold(self, tenant: str) -> None:
        """Serve nobody of this tenant until `resume`. For a tenant that does not wait it has no effect."""
        known = self._tenants.get(tenant)
        if known is not None:
            known.is_held = True

    def resume(self, tenant: str) -> list[str]:
        """Serve the tenant again; return the pools where it waits, the longest wait first."""
        known = self._tenants.get(tenant)
        if known is None:
            return []
        known.is_held = False
        for lane in known.lanes.values():
            if not lane.entry:
                self._enter(lane)
        return sorted(known.lanes, key=lambda pool: known.lanes[pool].head.number)

    # -- where one stands --

    def position(self, place: Place[T]) -> int:
        """How many will probably be served before one that has just come; 0 is next."""
        lane = place._lane
        ahead = lane.ahead_of(place)
        rank = (lane.counter, lane.head.number)
        before = ahead
        for other in lane.pool.lanes.values():
            if other.waiting and other is not lane:
                before += min(other.waiting, ahead + ((other.counter, other.head.number) < rank))
        return before

    def positions(self, pool: str) -> Iterator[tuple[Place[T], int]]:
        """Everybody in a pool with their position: round by round, as if all asked for the same.

        It looks at the whole pool; call it at a bounded rate.
        """
        known = self._pools.get(pool)
        if known is None:
            return
        lanes = [lane for lane in known.lanes.values() if lane.waiting]
        lanes.sort(key=lambda lane: (lane.counter, lane.head.number))
        rounds = [lane.places() for lane in lanes]
        position = 0
        while rounds:
            left = []
            for places in rounds:
                place = next(places, None)
                if place is not None:
                    yield place, position
                    position += 1
                    left.append(places)
            rounds = left

    # -- inside --

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _lane(self, pool: str, tenant: str) -> _Lane[T]:
        known = self._pools.get(pool)
        if known is None:
            known = self._pools[pool] = _Pool()
        lane = known.lanes.get(tenant)
        if lane is None:
            if len(known.lanes) >= known.prune_at:
                _prune(known)
            owner = self._tenants.get(tenant) or _Tenant(tenant)
            lane = known.lanes[tenant] = _Lane(known, owner, known.floor)
        elif not lane.waiting:
            lane.counter = max(lane.counter, known.floor)
            lane.tenant = self._tenants.get(tenant) or lane.tenant
        return lane

    def _enter(self, lane: _Lane[T]) -> None:
        pool = lane.pool
        lane.entry = self._number()
        heapq.heappush(pool.heap, (lane.counter, lane.entry, lane))

    def _lowest(self, pool: _Pool[T]) -> _Lane[T] | None:
        heap = pool.heap
        while heap:
            counter, number, lane = heap[0]
            if not lane.waiting or lane.tenant.is_held:
                heapq.heappop(heap)
                lane.entry = 0
            elif counter < lane.counter:  # counters only grow, so what is on top is the lowest once it is right
                heapq.heapreplace(heap, (lane.counter, number, lane))
            else:
                return lane
        return None

    def _leave(self, place: Place[T]) -> None:
        place.is_waiting = False
        lane = place._lane
        del lane.classes[place.priority][place]
        del self._arrivals[place]
        lane.waiting -= 1
        lane.pool.waiting -= 1
        tenant = lane.tenant
        tenant.waiting -= 1
        if not lane.waiting:
            tenant.lanes = {name: other for name, other in tenant.lanes.items() if other is not lane}
        if not tenant.waiting:
            tenant.is_held = False
            del self._tenants[tenant.name]


def _prune(pool: _Pool[T]) -> None:
    """Forget the idle tenants that would be lifted to the floor anyway."""
    for name in [name for name, lane in pool.lanes.items() if not lane.waiting and lane.counter <= pool.floor]:
        del pool.lanes[name]
    pool.prune_at = max(2 * len(pool.lanes), _MAX_IDLE)
