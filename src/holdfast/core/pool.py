"""Which connections to one origin are opened, lent, drained and closed, and who waits for them.

Decides only: each method returns the actions that the shell carries out, in order and in the same turn. Sockets,
timers and requests are the shell's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import Final, TypeAlias

from msgspec import Struct

#: A member that refused a request is lent again after this, unless there is no other.
REFUSAL_REST: Final = 1.0
#: Pause before a dial that nobody waits for is tried again, doubled with each failure.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
#: A connection is given up so long before its peer would, or after a half of its time where that is shorter.
KEEP_ALIVE_MARGIN: Final = 1.0
#: The share of `max_age` over which retirements are spread.
AGE_JITTER: Final = 0.2


class PoolLimits(Struct, frozen=True):
    """Times in seconds.

    `streams_per_connection` bounds what one failure can take. Requests are spread over `spread` connections
    before any of them is filled. `max_connections` counts those that are connecting or lent from; draining ones
    end by themselves. A dial that has not ended after `patience` covers nobody any more, so that one hung
    handshake keeps nobody waiting; each further one is given twice as long as the last.
    """

    streams_per_connection: int = 32
    spread: int = 4
    max_connections: int = 1024
    min_warm: int = 0
    max_age: float = 1800.0
    idle_timeout: float = 60.0
    wait_timeout: float = 30.0
    patience: float = 1.0


class State(Enum):
    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


class Member:
    """One connection as the pool sees it; `used` slots of `capacity` are lent."""

    __slots__ = (
        "capacity",
        "idle_since",
        "is_patient",
        "keep_until",
        "overdue_at",
        "ready_at",
        "retire_at",
        "shunned_until",
        "state",
        "ticket",
        "used",
    )

    def __init__(self, ticket: int, overdue_at: float) -> None:
        self.state = State.CONNECTING
        self.ticket = ticket
        self.used = 0
        self.capacity = 0
        self.is_patient = True
        self.overdue_at = overdue_at
        self.ready_at = 0.0
        self.retire_at = math.inf
        self.idle_since = 0.0
        self.keep_until = math.inf
        self.shunned_until = 0.0


class Waiter:
    """One request that wants a slot. The shell derives its own kind, with what it needs to send the request."""

    __slots__ = ("deadline", "ticket")

    def __init__(self) -> None:
        self.ticket = 0
        self.deadline = math.inf


class Open(Struct, gc=False):
    """Connect; then call `opened` or `open_failed`."""

    member: Member


class Lend(Struct, gc=False):
    """Send the waiter's request on this connection now; call `released` when it has ended in any way."""

    waiter: Waiter
    member: Member


class Fail(Struct, gc=False):
    """Tell the waiter that the dial which it waited for has failed."""

    waiter: Waiter


class Expire(Struct, gc=False):
    """Tell the waiter that no slot came free in time."""

    waiter: Waiter


class Close(Struct, gc=False):
    """Close the connection, or stop its dial; no request is on it and the pool has forgotten it."""

    member: Member


Action: TypeAlias = Open | Lend | Fail | Expire | Close


class ConnectionPool:
    """The connections to one origin and the queue for their slots, first come, first served.

    `expected_capacity` is what a new connection will take: 1 for HTTP/1.1, `streams_per_connection` for HTTP/2.
    It is learned from each connection that opens.
    """

    def __init__(self, limits: PoolLimits, *, expected_capacity: int) -> None:
        self._limits = limits
        self._expected = expected_capacity
        self._tickets = 0
        self._waiters: dict[Waiter, None] = {}
        self._dials: dict[Member, None] = {}
        self._ready: dict[Member, None] = {}
        self._free: dict[Member, None] = {}  # ready ones with a slot, the last one released at the end
        self._draining: dict[Member, None] = {}
        self._used = 0
        self._patient = 0  # dials that are not overdue
        # Lower bounds: looked at in passing, made exact when they have come.
        self._next_overdue = math.inf
        self._next_upkeep = math.inf
        self._spare_from = 0.0
        self._pause = FIRST_PAUSE
        self._is_closed = False

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def connecting(self) -> int:
        return len(self._dials)

    @property
    def used(self) -> int:
        """Slots that are lent, those of draining connections included."""
        return self._used

    @property
    def members(self) -> Iterator[Member]:
        """All connections but those that are connecting."""
        yield from self._ready
        yield from self._draining

    def next_deadline(self) -> float:
        """When `handle_timeout` has something to do, or a little before; infinity if never."""
        deadline = self._next_upkeep
        if self._waiters:
            deadline = min(deadline, self._next_overdue, next(iter(self._waiters)).deadline)
        if self._missing_spares() > 0:
            deadline = min(deadline, self._spare_from)
        return deadline

    # -- requests ------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Open the warm connections."""
        return self._arrange(now)

    def request(self, waiter: Waiter, now: float) -> list[Action]:
        """Ask for a slot; without anybody ahead a free one is lent at once."""
        waiter.ticket = self._next_ticket()
        waiter.deadline = now + self._limits.wait_timeout
        had_waiters = bool(self._waiters)
        self._waiters[waiter] = None
        if had_waiters:
            return self._arrange(now)
        member = self._best(now)
        if member is None:
            return self._arrange(now)
        actions: list[Action] = [self._lend(waiter, member)]
        if self._missing_spares() > 0:
            actions += self._arrange(now)
        return actions

    def cancel(self, waiter: Waiter) -> None:
        """Leave the queue. Afterwards, and for one that was served, it does nothing."""
        self._waiters.pop(waiter, None)

    def released(self, member: Member, now: float, *, keep_alive: float | None = None) -> list[Action]:
        """A lent slot is free again. `keep_alive`: how long the peer keeps the connection, if it has said so."""
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
        return self._arrange(now) if self._waiters else []

    def lend_failed(self, waiter: Waiter, member: Member, now: float) -> list[Action]:
        """The connection that was lent is closed, and nothing was sent: the waiter has its place back."""
        self._waiters = {waiter: None, **self._waiters}
        return self.closed(member, now)

    def met_end(self, now: float) -> list[Action]:
        """The peer closed a kept-alive connection as a request was sent on it.

        The last one used is lent first, so all that are idle have been so for longer, and will be closed as well.
        """
        actions: list[Action] = []
        for member in [member for member in self._free if member.capacity == 1 and member.used == 0]:
            actions += self.drain(member, now)
        return actions

    def refused(self, member: Member, now: float) -> None:
        """The peer refused a request unprocessed: for a moment others are better."""
        member.shunned_until = now + REFUSAL_REST

    # -- connections ---------------------------------------------------------------------------------------

    def opened(self, member: Member, now: float, *, capacity: int, lifetime: float = 1.0) -> list[Action]:
        """A dial has succeeded. `capacity` is what the peer takes; `lifetime`, from 0 to 1, is drawn at random."""
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
        """A dial has failed: so have those who have waited since before it began, as many as it was for."""
        if member.state is State.GONE:
            return []
        self._end_dial(member)
        member.state = State.GONE
        self._spare_from = now + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        concerned = list(islice(self._waiters, max(1, self._expected)))
        actions: list[Action] = []
        for waiter in concerned:
            if waiter.ticket <= member.ticket:
                del self._waiters[waiter]
                actions.append(Fail(waiter))
        return actions + self._arrange(now)

    def resized(self, member: Member, now: float, capacity: int) -> list[Action]:
        """The peer has changed how many requests it takes at a time."""
        if member.state is not State.READY:
            return []
        member.capacity = self._expected = min(capacity, self._limits.streams_per_connection)
        self._note_slots(member)
        return self._arrange(now)

    def drain(self, member: Member, now: float) -> list[Action]:
        """Lend no more of this connection, and close it when what is on it has ended."""
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
        """The connection is gone, and with it whatever was on it."""
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
        """Close all connections, whatever is on them; those who wait are told that it is over."""
        self._is_closed = True
        actions: list[Action] = [Expire(waiter) for waiter in self._waiters]
        for member in (*self._dials, *self._ready, *self._draining):
            member.state = State.GONE
            member.used = 0
            actions.append(Close(member))
        for registered in (self._waiters, self._dials, self._ready, self._free, self._draining):
            registered.clear()
        self._used = self._patient = 0
        self._next_overdue = self._next_upkeep = math.inf
        return actions

    # -- time ----------------------------------------------------------------------------------------------

    def handle_timeout(self, now: float) -> list[Action]:
        """Do what is due by now."""
        actions: list[Action] = []
        for waiter in list(self._waiters):
            if waiter.deadline > now:
                break  # all wait equally long, so the first in the queue is the first to give up
            del self._waiters[waiter]
            actions.append(Expire(waiter))
        if now >= self._next_overdue:
            self._look_at_dials(now)
        if now >= self._next_upkeep:
            actions += self._look_after(now)
        return actions + self._arrange(now)

    def _look_at_dials(self, now: float) -> None:
        self._next_overdue = math.inf
        for member in self._dials:
            if member.is_patient and member.overdue_at <= now:
                member.is_patient = False
                self._patient -= 1
            elif member.is_patient:
                self._next_overdue = min(self._next_overdue, member.overdue_at)

    def _look_after(self, now: float) -> list[Action]:
        """Retire what has reached its age, and close what nobody has used, the newest first."""
        actions: list[Action] = []
        for member in [member for member in self._ready if member.retire_at <= now or _has_expired(member, now)]:
            actions += self.drain(member, now)
        surplus = len(self._ready) - self._wanted()
        for member in reversed(list(self._ready)):
            if surplus > 0 and member.used == 0 and member.idle_since + self._limits.idle_timeout <= now:
                actions += self.drain(member, now)
                surplus -= 1
        self._next_upkeep = min(
            (self._upkeep_of(member, now) for member in self._ready),
            default=math.inf,
        )
        return actions

    def _upkeep_of(self, member: Member, now: float) -> float:
        if member.used:
            return member.retire_at
        idle_until = member.idle_since + self._limits.idle_timeout
        # One that is kept beyond its idle time is looked at again after as long.
        again = idle_until if idle_until > now else now + self._limits.idle_timeout
        return min(member.retire_at, member.keep_until, again)

    # -- arranging -----------------------------------------------------------------------------------------

    def _arrange(self, now: float) -> list[Action]:
        """Lend what can be lent in the order of the queue, and open what is missing."""
        actions: list[Action] = []
        while self._waiters:
            member = self._best(now)
            if member is None or (self._is_about_to_grow and member.used >= self._fair_share()):
                break
            actions.append(self._lend(next(iter(self._waiters)), member))
        if self._is_closed:
            return actions
        count = self._missing()
        if now >= self._spare_from:
            count = max(count, self._missing_spares())
        room = self._limits.max_connections - len(self._ready) - len(self._dials)
        for _ in range(min(count, room)):
            actions.append(Open(self._begin_dial(now)))
        return actions

    def _lend(self, waiter: Waiter, member: Member) -> Lend:
        del self._waiters[waiter]
        member.used += 1
        self._used += 1
        self._note_slots(member)
        return Lend(waiter, member)

    def _best(self, now: float) -> Member | None:
        """Choose among the connections with a free slot.

        HTTP/1.1: the last one used, so that surplus ones grow idle. HTTP/2: of the oldest connections, as many as
        the load wants, the one with the fewest requests, so that the load is even and surplus ones grow idle too.
        """
        if not self._free:
            return None
        if next(reversed(self._free)).capacity == 1:
            return next((member for member in reversed(self._free) if not _has_expired(member, now)), None)
        wanted = self._wanted()
        best: Member | None = None
        for number, member in enumerate(self._ready):
            if number >= wanted and best is not None and best.shunned_until <= now:
                break
            if member in self._free and (best is None or _rank(member, now) < _rank(best, now)):
                best = member
        return best

    @property
    def _is_about_to_grow(self) -> bool:
        return 0 < self._patient == len(self._dials)

    def _fair_share(self) -> int:
        """What one connection should take of a queue while others are about to open."""
        return math.ceil((self._used + len(self._waiters)) / max(1, self._wanted()))

    def _wanted(self) -> int:
        """How many connections the present load wants."""
        limits, capacity = self._limits, self._expected
        load = self._used + len(self._waiters)
        if capacity > 1:
            spread = min(limits.spread, math.ceil(load * limits.spread / capacity))
            return max(limits.min_warm, math.ceil(load / capacity), spread)
        if capacity == 1:
            # What drains will not be followed by another request on the same connection.
            return max(limits.min_warm, load - sum(member.used for member in self._draining))
        return max(limits.min_warm, min(load, 1))

    def _missing(self) -> int:
        """How many dials those who wait need beyond those that are under way."""
        if not self._waiters:
            return 0
        if self._expected == 0:
            # The peer takes no requests at the moment, and would not on a new connection either.
            return 0 if self._ready else 1 - self._patient
        return math.ceil((len(self._waiters) - self._patient * self._expected) / self._expected)

    def _missing_spares(self) -> int:
        """How many connections the load wants beyond those that there are; nobody waits for them."""
        if self._is_closed or not (self._used or self._waiters or self._limits.min_warm):
            return 0
        room = self._limits.max_connections - len(self._ready) - len(self._dials)
        return min(room, self._wanted() - len(self._ready) - len(self._dials))

    # -- records -------------------------------------------------------------------------------------------

    def _next_ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _begin_dial(self, now: float) -> Member:
        overdue = len(self._dials) - self._patient
        member = Member(self._next_ticket(), now + self._limits.patience * 2 ** min(overdue, 10))
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
    """Whether its peer is about to close it for idleness."""
    return member.used == 0 and member.keep_until <= now


def _rank(member: Member, now: float) -> tuple[bool, int]:
    return member.shunned_until > now, member.used
