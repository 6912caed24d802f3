"""Fair turns of the event loop: no client's bytes keep the others waiting for longer than a few milliseconds.

What comes on a socket is handled at once while the turn of the loop has time for clients' input. A socket whose
bytes take longer than its share is read no further, and its rest waits with those of others until its turn comes.
Tenants take turns as well, and all callers without a credential as one: many sockets get no more than one.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections import OrderedDict
from collections.abc import Callable

from holdfast.core.fair_turns import UserTurns
from holdfast.core.limits.budget import LONG_STEP, Account, Kind

logger = logging.getLogger("holdfast")

#: Seconds that the bytes of one socket take at a time, about, and those of all in one turn of the loop: once as
#: they come, and once of what has waited.
SHARE = 0.0005
TURN = 0.002
#: Seconds that it takes to read a byte and to copy it, about: what kernel and event loop do before we are called.
PER_BYTE = 3e-10
#: Seconds that it takes to look through a byte of a large body, about, which is done after the socket's turn.
PER_BODY_BYTE = 1e-9

#: What has so many bytes may take a long step of the loop once it is whole.
LARGE = 256 * 1024
#: Seconds between two sockets of an account that are read on when nothing is owed any more, and between two looks
#: at those that wait for that.
_APART = 0.1
_LOOK = 1.0
#: What the kernel says of a peer that has gone, also to those who do not read; nothing where it cannot.
_GONE = getattr(select, "POLLRDHUP", 0)

# Why a socket is not read. Plain numbers: an enum's flags would cost more than what they guard.
#: Others come first.
TURN_OVER = 1
#: It does not take what it is sent.
NOT_WRITABLE = 2
#: So much waits for an answer, or for a lookup, that no more may come.
BACKLOG = 4
#: The keys are being fetched that its credential needs.
KEYS = 8
#: It has sent too much that serves nothing.
SLOWED = 16
#: Its tenant has taken the loop for too long at a time, and this is the middle of something large.
OWING = 32


class Turns:
    """Shares the time of one event loop between the sockets of clients. `clock` gives seconds."""

    __slots__ = ("_fair", "_is_due", "_is_reset_due", "_left", "_left_of_queue", "_loop", "_owing", "clock")

    def __init__(
        self, loop: asyncio.AbstractEventLoop | None = None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self.clock = clock
        self._fair: UserTurns[Account, FairProtocol] = UserTurns(SHARE)
        self._is_due = False
        # What this turn of the loop has left for bytes as they come.
        self._left = TURN
        self._is_reset_due = False
        # What it has left for what has waited.
        self._left_of_queue = TURN
        # The sockets of each account that owes time, in the order in which they came to wait for that.
        self._owing: dict[Account, OrderedDict[FairProtocol, None]] = {}

    def __len__(self) -> int:
        """Count the sockets of which something waits."""
        return len(self._fair)

    def received(self, socket: FairProtocol, size: int) -> None:
        """So many bytes have come on a socket: handle them now, or have them wait."""
        if self._left <= 0 or (self._is_due and socket in self._fair):
            socket.read_cost += size * PER_BYTE
            self.enter(socket)
            socket.count_waiting()
            return
        clock = self.clock
        begun = clock()
        has_more = socket.take(begun + SHARE)
        cost = clock() - begun + size * PER_BYTE
        self._left -= cost
        if self._left < TURN / 2:
            if not self._is_reset_due:
                # Until it is half a turn's, work of several turns counts as one's: a quiet loop has less to call.
                self._is_reset_due = True
                self._loop.call_soon(self._reset)
            if cost > LONG_STEP:
                socket.account.owe(cost, self._loop.time())
        if has_more:
            self.enter(socket)

    def read_later(self, size: int) -> None:
        """A body of this size is complete, and looked through behind its socket's turn: others have to wait."""
        seconds = size * PER_BODY_BYTE
        self._left -= seconds
        self._left_of_queue -= seconds

    def enter(self, socket: FairProtocol) -> None:
        """Something waits of a socket. It is read no further until that was handled. Idempotent."""
        socket.pause(TURN_OVER)
        self._fair.enter(socket, socket.account)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._run)

    def leave(self, socket: FairProtocol) -> None:
        """Forget a socket. Idempotent."""
        self._fair.leave(socket)
        waiting = self._owing.get(socket.account)
        if waiting is not None:
            waiting.pop(socket, None)

    def repay(self, socket: FairProtocol) -> bool:
        """Return whether the socket's account owes time. Then it is not read until that is paid back."""
        account = socket.account
        wait = account.owes_until - self._loop.time()
        if wait <= 0:
            return False
        socket.pause(OWING)
        waiting = self._owing.get(account)
        if waiting is None:
            waiting = self._owing[account] = OrderedDict()
            self._loop.call_later(min(wait, _LOOK), self._paid, account)
        waiting[socket] = None
        return True

    def _paid(self, account: Account) -> None:
        """Read one socket on, unless the account owes more by now: all at once would be long steps in a row."""
        wait = account.owes_until - self._loop.time()
        waiting = self._owing[account]
        for socket in [socket for socket in waiting if socket.peer_has_left]:
            socket.abort()
            self.leave(socket)
        if wait <= 0 and waiting:
            socket, _ = waiting.popitem(last=False)
            socket.resume(OWING)
        if waiting:
            self._loop.call_later(min(max(wait, _APART), _LOOK), self._paid, account)
        else:
            del self._owing[account]

    def _reset(self) -> None:
        self._is_reset_due = False
        self._left = TURN

    def _run(self) -> None:
        """Serve those that wait, as many as one turn of the loop has time for."""
        fair, clock = self._fair, self.clock
        now = clock()
        self._left_of_queue = TURN
        while self._left_of_queue > 0 and (socket := fair.next()) is not None:
            try:
                has_more = socket.take(now + SHARE)
            except Exception:
                # The supervisor of one connection: others go on.
                logger.exception("a client's connection failed")
                fair.leave(socket)
                socket.abort()
                begun, now = now, clock()
                self._left_of_queue -= now - begun
                continue
            begun, now = now, clock()
            if now - begun > LONG_STEP:
                socket.account.owe(now - begun, self._loop.time())
            cost = now - begun + socket.read_cost
            socket.read_cost = 0.0
            self._left_of_queue -= cost
            fair.served(socket, socket.account, cost, has_more=has_more)
            if not has_more:
                socket.resume(TURN_OVER)
        self._is_due = len(fair) > 0
        if self._is_due:
            self._loop.call_soon(self._run)


class FairProtocol(asyncio.Protocol):
    """A client's socket that takes part in the turns, and is read only while nothing speaks against it.

    Subclasses keep what has come and handle it by `take`. A socket is read while no reason to pause is set.
    """

    __slots__ = ("_output", "_pauses", "account", "is_writable", "read_cost", "transport", "turns")

    def __init__(self, turns: Turns, account: Account) -> None:
        self.turns = turns
        #: Whose memory its bytes are.
        self.account = account
        self.transport: asyncio.Transport | None = None
        self.is_writable = True
        #: Seconds that it took to read what has waited, and that are not counted yet.
        self.read_cost = 0.0
        self._pauses = 0
        # Bytes that the socket has not taken, as they were charged, and to whom.
        self._output: tuple[Account, int] | None = None

    # -- for subclasses --

    def take(self, until: float) -> bool:
        """Handle what has come until the clock shows so much; return whether more could be handled now."""
        raise NotImplementedError

    def count_waiting(self) -> None:
        """Charge what has come and is not handled yet: there may be a read's worth of it on every socket."""
        raise NotImplementedError

    @property
    def can_go_on(self) -> bool:
        """Whether something waits that could be handled, were it the socket's turn. Then it is entered."""
        raise NotImplementedError

    def abort(self) -> None:
        """Cut the connection."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def address(self) -> str:
        """The peer's address without its port; empty if the transport has none."""
        peer = None if self.transport is None else self.transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    @property
    def descriptor(self) -> int | None:
        """The number of its socket's descriptor; None if the transport has none."""
        own = None if self.transport is None else self.transport.get_extra_info("socket")
        return None if own is None else int(own.fileno())

    @property
    def peer_has_left(self) -> bool:
        """Whether the peer has closed the connection, which a socket that is not read is not told."""
        descriptor = self.descriptor
        if descriptor is None or descriptor < 0 or not _GONE:
            return False
        poll = select.poll()
        poll.register(descriptor, _GONE)
        return bool(poll.poll(0))

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def write_eof(self) -> None:
        """Send nothing more, but read on: unread input would reset the connection, and what was sent be lost."""
        transport = self.transport
        if transport is None:
            return
        try:
            if transport.can_write_eof():
                transport.write_eof()
        except OSError:  # the peer has reset it
            transport.abort()

    # -- reading --

    @property
    def is_paused(self) -> bool:
        """Whether anything but other sockets' turns keeps this one from being read."""
        return bool(self._pauses & ~TURN_OVER)

    def pause(self, reason: int) -> None:
        """Read no further for this reason. Idempotent."""
        if not self._pauses and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses |= reason

    def resume(self, reason: int) -> None:
        """The reason is gone: go on with what waits, and read on, unless there is another one."""
        if not self._pauses & reason:
            return
        self._pauses &= ~reason
        if self._pauses & TURN_OVER:
            return
        if self.can_go_on:
            # Not `pause`: the socket is not read yet.
            self._pauses |= TURN_OVER
            self.turns.enter(self)
        elif not self._pauses and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    # -- asyncio.BaseProtocol --

    def pause_writing(self) -> None:
        """Nothing is read from a peer that does not read us."""
        self.is_writable = False
        transport = self.transport
        if transport is None:
            return
        size = transport.get_write_buffer_size()
        self.free_output()
        if not self.account.take(Kind.OUTPUT, size):
            self.abort()
            return
        self._output = self.account, size
        self.pause(NOT_WRITABLE)

    def resume_writing(self) -> None:
        self.is_writable = True
        self.free_output()
        self.resume(NOT_WRITABLE)

    def free_output(self) -> None:
        """Give back what unsent output was charged. Idempotent."""
        output, self._output = self._output, None
        if output is not None:
            account, size = output
            account.free(Kind.OUTPUT, size)
