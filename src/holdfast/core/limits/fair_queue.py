"""A bounded queue that shares capacity fairly between tenants, by the tokens that each was served.

It implements the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24).
Each tenant has a counter of the tokens that it was served, and the tenant with the lowest counter is served next.
The counter of a tenant that was idle is raised to the level of the others, so that nobody saves up idle time. The
queue decides who is next; the shell knows the capacity and the time, and starts the requests.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Literal, Protocol, TypeVar

from holdfast.errors import HoldfastError

T = TypeVar("T")
Priority = Literal["high", "normal", "low"]

#: A served token is divided by its class's weight: a tenant with only high priority gets four times the share.
WEIGHTS: dict[Priority, float] = {"high": 4.0, "normal": 1.0, "low": 0.25}
_CLASSES: tuple[Priority, ...] = ("high", "normal", "low")
#: How many tenants a pool remembers before it looks for idle ones that it can forget.
_MAX_IDLE = 256


class Waiter(Protocol):
    """What the shell calls about a request that waits.

    Exactly one of `admitted` and `expired` is called, unless the request gives up its slot first.
    """

    def admitted(self) -> None:
        """The request has left the queue, and may start."""

    def expired(self, error: HoldfastError) -> None:
        """The request has waited for as long as it may; it has left the queue."""

    def position_changed(self, position: int) -> None:
        """`position` requests will probably be served before this one; 0 is next."""


class Slot(Generic[T]):
    """The slot of one item. It is in the queue for as long as `is_waiting` is true."""

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
        """Charge the cost to the tenant, which is served now."""
        lane = self._lane
        lane.pool.floor = max(lane.pool.floor, lane.counter)
        lane.counter += self.cost / WEIGHTS[self.priority]


class _Lane(Generic[T]):
    """One tenant in one pool: its counter, and its waiting slots."""

    __slots__ = ("classes", "counter", "entry", "pool", "tenant", "waiting")

    def __init__(self, pool: _Pool[T], tenant: _Tenant[T], counter: float) -> None:
        self.pool = pool
        self.tenant = tenant
        self.counter = counter
        self.waiting = 0
        # Ordered dicts remove from the front and from anywhere in constant time.
        self.classes: dict[Priority, OrderedDict[Slot[T], None]] = {name: OrderedDict() for name in _CLASSES}
        #: The number of this lane's entry in the pool's heap; 0 if it has none.
        self.entry = 0

    @property
    def head(self) -> Slot[T]:
        return next(iter(next(slots for slots in self.classes.values() if slots)))

    def slots(self) -> Iterator[Slot[T]]:
        for slots in self.classes.values():
            yield from slots

    def ahead_of(self, slot: Slot[T]) -> int:
        """How many slots of this lane will be served before a new one of the same priority."""
        index = _CLASSES.index(slot.priority)
        return sum(len(self.classes[name]) for name in _CLASSES[: index + 1]) - 1


class _Pool(Generic[T]):
    __slots__ = ("floor", "heap", "lanes", "prune_at", "waiting")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, _Lane[T]]] = []
        self.lanes: dict[str, _Lane[T]] = {}
        #: The counter of the tenant that was served last, which was the lowest: newcomers start from there.
        self.floor = 0.0
        self.waiting = 0
        self.prune_at = _MAX_IDLE


class _Tenant(Generic[T]):
    __slots__ = ("is_paused", "lanes", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lanes: dict[str, _Lane[T]] = {}  # by pool, those with waiting slots
        self.waiting = 0
        self.is_paused = False


# The states of a slot, and what moves it. Only the queue's owner calls these; each is one turn, without I/O.
#
#   state    | moved by                                        | to
#   ---------+-------------------------------------------------+--------------------------------
#   -        | push(), where the queue has room                | WAITING
#   -        | serve(), where nobody has to wait               | SERVED, charged its cost
#   WAITING  | pop() of its pool, if it is the next            | SERVED, charged its cost
#   WAITING  | cancel(); expire(now) after its deadline        | GONE, charged nothing
#   SERVED   | settle(), once                                  | GONE, charged what exceeded the cost
#
# A tenant is ACTIVE or PAUSED: pause() moves it to PAUSED while it waits, resume() and the end of its last waiting
# slot move it back. A slot of a paused tenant can be cancelled and can expire, but `pop` passes it over.
#
# Invariants:
# - len(queue) is the sum of `waiting` over the pools, and over the tenants; a lane's `waiting` is the number of
#   its slots. Each of them is in `_arrivals`, in the order of arrival.
# - `_tenants` holds exactly the tenants that wait, and a tenant's `lanes` exactly the pools where it waits.
# - A lane has at most one entry in its pool's heap. Every lane that waits and is not paused has one; an entry
#   without a reason to be there is dropped when it comes to the top.
# - Counters only grow. An entry's counter may therefore be too low, never too high, and the top of the heap is
#   the next lane as soon as its own counter is up to date.
# - A pool's `floor` only grows, and no lane starts, or starts again, below it.


class FairQueue(Generic[T]):
    """Holds the requests that wait for one of several pools (a model's capacity), and is fair within each pool.

    `timeout` is how long a slot may wait, in seconds. Within one tenant and pool, higher priority goes first, and
    within one priority the earliest. Every operation is logarithmic in the number of tenants, and independent of
    the number of slots, except `positions`.
    """

    def __init__(self, *, max_waiting: int, max_waiting_per_tenant: int | None = None, timeout: float) -> None:
        self.max_waiting = max_waiting
        self.max_waiting_per_tenant = max_waiting_per_tenant
        self.timeout = timeout
        self._pools: dict[str, _Pool[T]] = {}
        self._tenants: dict[str, _Tenant[T]] = {}
        self._arrivals: OrderedDict[Slot[T], None] = OrderedDict()
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    # -- room --

    @property
    def is_full(self) -> bool:
        return len(self._arrivals) >= self.max_waiting

    def is_full_for(self, tenant: str) -> bool:
        """Whether the tenant has as many waiting slots as one tenant may have."""
        limit = self.max_waiting_per_tenant
        return limit is not None and self.waiting_of(tenant) >= limit

    def waiting_of(self, tenant: str) -> int:
        known = self._tenants.get(tenant)
        return known.waiting if known is not None else 0

    @property
    def most_waiting(self) -> int:
        """The number of waiting slots of the tenant that has the most."""
        return max((tenant.waiting for tenant in self._tenants.values()), default=0)

    def waiting_in(self, pool: str) -> int:
        known = self._pools.get(pool)
        return known.waiting if known is not None else 0

    # -- enqueue and dequeue --

    def push(
        self, pool: str, tenant: str, item: T, *, now: float, cost: float, priority: Priority = "normal"
    ) -> Slot[T]:
        """Enqueue an item. `cost` is the least number of tokens that it will take.

        Raises RuntimeError if the queue is full, for everybody or for this tenant.
        """
        if self.is_full or self.is_full_for(tenant):
            raise RuntimeError("push to a full queue")
        lane = self._lane(pool, tenant)
        slot = Slot(
            lane, item, number=self._next_number(), cost=cost, priority=priority, deadline=now + self.timeout
        )
        lane.classes[priority][slot] = None
        self._arrivals[slot] = None
        lane.waiting += 1
        lane.pool.waiting += 1
        lane.tenant.waiting += 1
        lane.tenant.lanes[pool] = lane
        self._tenants[tenant] = lane.tenant
        if not lane.entry and not lane.tenant.is_paused:
            self._schedule(lane)
        return slot

    def cancel(self, slot: Slot[T]) -> None:
        """Give up a slot. Idempotent."""
        if slot.is_waiting:
            self._remove(slot)

    def peek(self, pool: str) -> Slot[T] | None:
        """Return the slot that `pop` would serve; None where it would serve nobody."""
        known = self._pools.get(pool)
        lane = self._next_lane(known) if known is not None else None
        return None if lane is None else lane.head

    def pop(self, pool: str) -> Slot[T] | None:
        """Dequeue the next slot of a pool and charge its cost; None where only paused tenants wait, or nobody."""
        slot = self.peek(pool)
        if slot is not None:
            slot.charge()
            self._remove(slot)
        return slot

    def serve(
        self, pool: str, tenant: str, item: T, *, now: float, cost: float, priority: Priority = "normal"
    ) -> Slot[T]:
        """Charge an item that is served without waiting; for when nobody waits who could be served instead."""
        slot = Slot(
            self._lane(pool, tenant), item, number=self._next_number(), cost=cost, priority=priority, deadline=now
        )
        slot.is_waiting = False
        slot.charge()
        return slot

    def settle(self, slot: Slot[T], tokens: float) -> None:
        """Charge what a served slot took beyond its cost. Call it once for each.

        A request that took less gets nothing back: other counters may have been raised to this one since, and
        those tenants would have to wait until this one has used up the difference.
        """
        slot._lane.counter += max(tokens - slot.cost, 0.0) / WEIGHTS[slot.priority]

    def expire(self, now: float) -> list[Slot[T]]:
        """Remove and return the slots whose deadline has passed, the earliest first."""
        gone = []
        while self._arrivals and (slot := next(iter(self._arrivals))).deadline <= now:
            self._remove(slot)
            gone.append(slot)
        return gone

    def next_deadline(self) -> float | None:
        return next(iter(self._arrivals)).deadline if self._arrivals else None

    # -- tenants at a limit of their own --

    def pause(self, tenant: str) -> None:
        """Serve no slot of this tenant until `resume`. No effect on a tenant that does not wait."""
        known = self._tenants.get(tenant)
        if known is not None:
            known.is_paused = True

    def resume(self, tenant: str) -> list[str]:
        """Serve this tenant again, and return the pools where it waits, the longest wait first."""
        known = self._tenants.get(tenant)
        if known is None:
            return []
        known.is_paused = False
        for lane in known.lanes.values():
            if not lane.entry:
                self._schedule(lane)
        return sorted(known.lanes, key=lambda pool: known.lanes[pool].head.number)

    # -- positions --

    def position(self, slot: Slot[T]) -> int:
        """How many slots will probably be served before one that was just pushed; 0 is next."""
        lane = slot._lane
        ahead = lane.ahead_of(slot)
        rank = (lane.counter, lane.head.number)
        before = ahead
        for other in lane.pool.lanes.values():
            if other.waiting and other is not lane:
                before += min(other.waiting, ahead + ((other.counter, other.head.number) < rank))
        return before

    def positions(self, pool: str) -> Iterator[tuple[Slot[T], int]]:
        """Yield every slot of a pool with its position, round by round, as if all slots had the same cost.

        The time is linear in the size of the pool: call it at a bounded rate.
        """
        known = self._pools.get(pool)
        if known is None:
            return
        lanes = [lane for lane in known.lanes.values() if lane.waiting]
        lanes.sort(key=lambda lane: (lane.counter, lane.head.number))
        rounds = [lane.slots() for lane in lanes]
        position = 0
        while rounds:
            left = []
            for slots in rounds:
                slot = next(slots, None)
                if slot is not None:
                    yield slot, position
                    position += 1
                    left.append(slots)
            rounds = left

    # -- inside --

    def _next_number(self) -> int:
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

    def _schedule(self, lane: _Lane[T]) -> None:
        pool = lane.pool
        lane.entry = self._next_number()
        heapq.heappush(pool.heap, (lane.counter, lane.entry, lane))

    def _next_lane(self, pool: _Pool[T]) -> _Lane[T] | None:
        heap = pool.heap
        while heap:
            counter, number, lane = heap[0]
            if not lane.waiting or lane.tenant.is_paused:
                heapq.heappop(heap)
                lane.entry = 0
            elif counter < lane.counter:  # counters only grow, so an up-to-date entry on top is the lowest
                heapq.heapreplace(heap, (lane.counter, number, lane))
            else:
                return lane
        return None

    def _remove(self, slot: Slot[T]) -> None:
        slot.is_waiting = False
        lane = slot._lane
        del lane.classes[slot.priority][slot]
        del self._arrivals[slot]
        lane.waiting -= 1
        lane.pool.waiting -= 1
        tenant = lane.tenant
        tenant.waiting -= 1
        if not lane.waiting:
            tenant.lanes = {name: other for name, other in tenant.lanes.items() if other is not lane}
        if not tenant.waiting:
            tenant.is_paused = False
            del self._tenants[tenant.name]


def _prune(pool: _Pool[T]) -> None:
    """Forget the idle tenants whose counters would be raised to the floor anyway."""
    for name in [name for name, lane in pool.lanes.items() if not lane.waiting and lane.counter <= pool.floor]:
        del pool.lanes[name]
    pool.prune_at = max(2 * len(pool.lanes), _MAX_IDLE)
