"""Decides which connections to one origin are opened, lent, drained and closed, and which requests wait for them.

Each method returns actions, which the shell carries out in order and in the same turn of the loop. Sockets, timers
and the requests themselves are the shell's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Final, TypeAlias

from msgspec import Struct

from holdfast.core.pool_member import Member, State

#: After a member has refused a request, others are preferred to it for so many seconds.
REFUSAL_REST: Final = 1.0
#: Seconds before a dial that nobody waits for is repeated after a failure, doubled with each further one.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
#: A connection is closed so many seconds before its peer would, or after half of its time if that is shorter.
KEEP_ALIVE_MARGIN: Final = 1.0
#: The share of `max_age` over which retirements are spread.
AGE_JITTER: Final = 0.2


class PoolLimits(Struct, frozen=True):
    """Times in seconds.

    `streams_per_connection` bounds how many requests the failure of one connection can break. Requests are spread
    over `spread` connections before any of them is filled. `max_connections` counts connecting and ready members;
    draining ones end by themselves. A dial that is not done after `patience` seconds is overdue: the pool opens
    another for the requests that it was to serve, so that a hung handshake holds up none of them. Each further
    dial gets twice the patience of the one before.
    """

    streams_per_connection: int = 32
    spread: int = 4
    max_connections: int = 1024
    min_warm: int = 0
    max_age: float = 1800.0
    idle_timeout: float = 60.0
    wait_timeout: float = 30.0
    patience: float = 1.0


class PoolRequest:
    """A request for one slot. The shell derives its own class, with what it needs to send the request."""

    __slots__ = ("deadline", "number")

    def __init__(self) -> None:
        self.number = 0
        self.deadline = math.inf


class Open(Struct, gc=False):
    """Connect; then call `opened` or `open_failed`."""

    member: Member


class Lend(Struct, gc=False):
    """Send the request on this connection now; call `released` when it has ended in any way."""

    request: PoolRequest
    member: Member


class Fail(Struct, gc=False):
    """Fail the request: the dial that it waited for has failed."""

    request: PoolRequest


class Expire(Struct, gc=False):
    """Fail the request: no slot came free in time."""

    request: PoolRequest


class Close(Struct, gc=False):
    """Close the connection, or stop its dial. No request is on it, and the pool has forgotten it."""

    member: Member


Action: TypeAlias = Open | Lend | Fail | Expire | Close


# Invariants:
# - A member is in that one of `_dials`, `_ready` and `_draining` which its state says, or GONE and in none.
# - `_free` holds exactly the members of `_ready` with `used < capacity`. The last one to get a slot back is last.
# - `_used` is the sum of `used` over `_ready` and `_draining`; a dial has no slots. `used > capacity` is possible
#   only after resized() has lowered the capacity.
# - `_patient` is the number of dials that are not overdue (`is_patient`).
# - `len(_ready) + len(_dials) <= max_connections`.
# - `_next_overdue` and `_next_upkeep` are never later than the first dial that grows overdue and the first member
#   that is to be retired; they may be too early, and are made exact when they have come.
# - While a request waits and no slot is free, a dial is under way, or the limit of connections is reached, or the
#   peer takes no requests.


class ConnectionPool:
    """The connections to one origin, and the queue for their slots: first come, first served.

    `expected_capacity` is how many requests a new connection is assumed to take at a time: 1 for HTTP/1.1,
    `streams_per_connection` for HTTP/2. Each connection that opens corrects it.
    """

    def __init__(self, limits: PoolLimits, *, expected_capacity: int) -> None:
        self._limits = limits
        self._expected = expected_capacity
        self._numbers = 0
        self._queue: dict[PoolRequest, None] = {}
        self._dials: dict[Member, None] = {}
        self._ready: dict[Member, None] = {}
        self._free: dict[Member, None] = {}
        self._draining: dict[Member, None] = {}
        self._used = 0
        self._patient = 0
        self._next_overdue = math.inf
        self._next_upkeep = math.inf
        self._spare_from = 0.0
        self._pause = FIRST_PAUSE
        self._is_closed = False

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def connecting(self) -> int:
        return len(self._dials)

    @property
    def used(self) -> int:
        """Slots that are lent, those of draining connections included."""
        return self._used

    @property
    def members(self) -> Iterator[Member]:
        """The connections that are ready or draining."""
        yield from self._ready
        yield from self._draining

    def next_deadline(self) -> float:
        """When `handle_timeout` is due next, or a little before that; infinity if never."""
        deadline = self._next_upkeep
        if self._queue:
            deadline = min(deadline, self._next_overdue, next(iter(self._queue)).deadline)
        if self._missing_spares() > 0:
            deadline = min(deadline, self._spare_from)
        return deadline

    # -- requests ------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Open the warm connections."""
        return self._arrange(now)

    def request(self, request: PoolRequest, now: float) -> list[Action]:
        """Ask for a slot. If no request waits and a slot is free, it is lent at once."""
        request.number = self._next_number()
        request.deadline = now + self._limits.wait_timeout
        had_queue = bool(self._queue)
        self._queue[request] = None
        if had_queue:
            return self._arrange(now)
        member = self._best(now)
        if member is None:
            return self._arrange(now)
        actions: list[Action] = [self._lend(request, member)]
        if self._missing_spares() > 0:
            actions += self._arrange(now)
        return actions

    def cancel(self, request: PoolRequest) -> None:
        """Remove a request from the queue. It does nothing to one that has left the queue."""
        self._queue.pop(request, None)

    def released(self, member: Member, now: float, *, keep_alive: float | None = None) -> list[Action]:
        """A lent slot is free again. `keep_alive`: seconds for which the peer keeps the connection, if known."""
        if member.state is State.GONE:
            return []
        member.used -= 1
        self._used -= 1
        if member.used == 0:
            member.idle_since = now
            if member.state is State.DRAINING:
                return self._close(member)
            member.keep_until = (
                math.inf if keep_alive is None else now + keep_alive - min(KEEP_ALIVE_MARGIN, keep_alive / 2)
            )
            self._next_upkeep = min(self._next_upkeep, now + self._limits.idle_timeout, member.keep_until)
        if member.state is State.READY:
            self._note_slots(member)
        return self._arrange(now) if self._queue else []

    def lend_failed(self, request: PoolRequest, member: Member, now: float) -> list[Action]:
        """The lent connection was closed before anything was sent: put the request back at the front."""
        self._queue = {request: None, **self._queue}
        return self.closed(member, now)

    def found_stale(self, now: float) -> list[Action]:
        """The peer closed a kept-alive connection as a request was sent on it: drain all that are idle.

        The connection that was used last is lent first, so all others have been idle for longer, and the peer will
        have closed them too.
        """
        actions: list[Action] = []
        for member in [member for member in self._free if member.capacity == 1 and member.used == 0]:
            actions += self.drain(member, now)
        return actions

    def refused(self, member: Member, now: float) -> None:
        """The peer refused a request without processing it: prefer other members for `REFUSAL_REST` seconds."""
        member.avoid_until = now + REFUSAL_REST

    # -- connections ---------------------------------------------------------------------------------------

    def opened(self, member: Member, now: float, *, capacity: int, lifetime: float = 1.0) -> list[Action]:
        """A dial has succeeded.

        `capacity` is how many requests the peer takes at a time. `lifetime`, drawn at random from 0 to 1, spreads
        the retirement of connections that open together.
        """
        if member.state is State.GONE:
            return []
        self._end_dial(member)
        member.state = State.READY
        member.capacity = self._expected = min(capacity, self._limits.streams_per_connection)
        member.ready_at = member.idle_since = now
        member.retire_at = now + self._limits.max_age * (1 - AGE_JITTER * (1 - lifetime))
        self._next_upkeep = min(self._next_upkeep, member.retire_at, now + self._limits.idle_timeout)
        self._pause = FIRST_PAUSE
        self._ready[member] = None
        self._note_slots(member)
        return self._arrange(now)

    def open_failed(self, member: Member, now: float) -> list[Action]:
        """A dial has failed: fail the requests that it was to serve, the first ones if they are older than it."""
        if member.state is State.GONE:
            return []
        self._end_dial(member)
        member.state = State.GONE
        self._spare_from = now + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        concerned = list(islice(self._queue, max(1, self._expected)))
        actions: list[Action] = []
        for request in concerned:
            if request.number <= member.number:
                del self._queue[request]
                actions.append(Fail(request))
        return actions + self._arrange(now)

    def resized(self, member: Member, now: float, capacity: int) -> list[Action]:
        """The peer has changed how many requests the connection takes at a time."""
        if member.state is not State.READY:
            return []
        member.capacity = self._expected = min(capacity, self._limits.streams_per_connection)
        self._note_slots(member)
        return self._arrange(now)

    def drain(self, member: Member, now: float) -> list[Action]:
        """Lend no more slots of this member, and close it when its last request has ended."""
        if member.state is not State.READY:
            return []
        self._forget_ready(member)
        if member.used == 0:
            member.state = State.GONE
            return [Close(member), *self._arrange(now)]
        member.state = State.DRAINING
        self._draining[member] = None
        return self._arrange(now)

    def closed(self, member: Member, now: float) -> list[Action]:
        """The connection is lost, with all requests on it."""
        if member.state is State.READY:
            self._forget_ready(member)
        elif member.state is State.DRAINING:
            del self._draining[member]
        else:
            return []
        self._used -= member.used
        member.used = 0
        member.state = State.GONE
        return self._arrange(now)

    def close(self) -> list[Action]:
        """Close all connections, with all requests on them, and expire all requests that wait."""
        self._is_closed = True
        actions: list[Action] = [Expire(request) for request in self._queue]
        for member in (*self._dials, *self._ready, *self._draining):
            member.state = State.GONE
            member.used = 0
            actions.append(Close(member))
        for registered in (self._queue, self._dials, self._ready, self._free, self._draining):
            registered.clear()
        self._used = self._patient = 0
        self._next_overdue = self._next_upkeep = math.inf
        return actions

    # -- time ----------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> list[Action]:
        """Expire requests and retire members that are due by now."""
        actions: list[Action] = []
        for request in list(self._queue):
            if request.deadline > now:
                break  # all may wait equally long, so the first in the queue expires first
            del self._queue[request]
            actions.append(Expire(request))
        if now >= self._next_overdue:
            self._note_overdue_dials(now)
        if now >= self._next_upkeep:
            actions += self._retire(now)
        return actions + self._arrange(now)

    def _note_overdue_dials(self, now: float) -> None:
        self._next_overdue = math.inf
        for member in self._dials:
            if member.is_patient and member.overdue_at <= now:
                member.is_patient = False
                self._patient -= 1
            elif member.is_patient:
                self._next_overdue = min(self._next_overdue, member.overdue_at)

    def _retire(self, now: float) -> list[Action]:
        """Drain the members that have reached their age, and idle ones that the load does not need."""
        actions: list[Action] = []
        for member in [member for member in self._ready if member.retire_at <= now or _has_expired(member, now)]:
            actions += self.drain(member, now)
        surplus = len(self._ready) - self._wanted()
        for member in reversed(list(self._ready)):
            if surplus > 0 and member.used == 0 and member.idle_since + self._limits.idle_timeout <= now:
                actions += self.drain(member, now)
                surplus -= 1
        self._next_upkeep = min(
            (self._next_upkeep_of(member, now) for member in self._ready),
            default=math.inf,
        )
        return actions

    def _next_upkeep_of(self, member: Member, now: float) -> float:
        if member.used:
            return member.retire_at
        idle_until = member.idle_since + self._limits.idle_timeout
        # A member that is kept beyond its idle time is looked at again after another one.
        again = idle_until if idle_until > now else now + self._limits.idle_timeout
        return min(member.retire_at, member.keep_until, again)

    # -- arranging -----------------------------------------------------------------------------------------

    def _arrange(self, now: float) -> list[Action]:
        """Lend free slots in the order of the queue, and dial for the requests that are left.

        There are three cases: a slot is free, and is lent; none is, and there is room for a connection, so one is
        opened; or the request waits.
        """
        actions: list[Action] = []
        while self._queue:
            member = self._best(now)
            if member is None or (self._is_about_to_grow and member.used >= self._fair_share()):
                break
            actions.append(self._lend(next(iter(self._queue)), member))
        if self._is_closed:
            return actions
        count = self._missing()
        if now >= self._spare_from:
            count = max(count, self._missing_spares())
        room = self._limits.max_connections - len(self._ready) - len(self._dials)
        for _ in range(min(count, room)):
            actions.append(Open(self._begin_dial(now)))
        return actions

    def _lend(self, request: PoolRequest, member: Member) -> Lend:
        del self._queue[request]
        member.used += 1
        self._used += 1
        self._note_slots(member)
        return Lend(request, member)

    def _best(self, now: float) -> Member | None:
        """Choose the best member with a free slot; None if there is none.

        HTTP/1.1: the one that was used last, so that surplus ones become idle. HTTP/2: of the oldest members, as
        many as the load needs, the one with the fewest requests, so that the load is even among them and the
        others become idle.
        """
        if not self._free:
            return None
        if next(reversed(self._free)).capacity == 1:
            return next((member for member in reversed(self._free) if not _has_expired(member, now)), None)
        wanted = self._wanted()
        best: Member | None = None
        for number, member in enumerate(self._ready):
            if number >= wanted and best is not None and best.avoid_until <= now:
                break
            if member in self._free and (best is None or _rank(member, now) < _rank(best, now)):
                best = member
        return best

    @property
    def _is_about_to_grow(self) -> bool:
        return 0 < self._patient == len(self._dials)

    def _fair_share(self) -> int:
        """How many requests one connection should carry while others are about to open."""
        return math.ceil((self._used + len(self._queue)) / max(1, self._wanted()))

    def _wanted(self) -> int:
        """How many connections the present load needs."""
        limits, capacity = self._limits, self._expected
        load = self._used + len(self._queue)
        if capacity > 1:
            spread = min(limits.spread, math.ceil(load * limits.spread / capacity))
            return max(limits.min_warm, math.ceil(load / capacity), spread)
        if capacity == 1:
            # A draining connection still carries its request, but takes no further one.
            return max(limits.min_warm, load - sum(member.used for member in self._draining))
        return max(limits.min_warm, min(load, 1))

    def _missing(self) -> int:
        """How many more dials the waiting requests need."""
        if not self._queue:
            return 0
        if self._expected == 0:
            # The peer takes no requests at the moment, and would take none on a new connection either.
            return 0 if self._ready else 1 - self._patient
        return math.ceil((len(self._queue) - self._patient * self._expected) / self._expected)

    def _missing_spares(self) -> int:
        """How many more connections the load needs; no request waits for them."""
        if self._is_closed or not (self._used or self._queue or self._limits.min_warm):
            return 0
        room = self._limits.max_connections - len(self._ready) - len(self._dials)
        return min(room, self._wanted() - len(self._ready) - len(self._dials))

    # -- records -------------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _begin_dial(self, now: float) -> Member:
        overdue = len(self._dials) - self._patient
        member = Member(self._next_number(), now + self._limits.patience * 2 ** min(overdue, 10))
        self._dials[member] = None
        self._patient += 1
        self._next_overdue = min(self._next_overdue, member.overdue_at)
        return member

    def _end_dial(self, member: Member) -> None:
        del self._dials[member]
        if member.is_patient:
            self._patient -= 1

    def _note_slots(self, member: Member) -> None:
        if member.used < member.capacity:
            self._free.setdefault(member)
        else:
            self._free.pop(member, None)

    def _forget_ready(self, member: Member) -> None:
        del self._ready[member]
        self._free.pop(member, None)

    def _close(self, member: Member) -> list[Action]:
        del self._draining[member]
        member.state = State.GONE
        return [Close(member)]


def _has_expired(member: Member, now: float) -> bool:
    """Whether the peer is about to close this idle connection."""
    return member.used == 0 and member.keep_until <= now


def _rank(member: Member, now: float) -> tuple[bool, int]:
    return member.avoid_until > now, member.used
