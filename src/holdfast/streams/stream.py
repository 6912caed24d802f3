"""One stream: its log, its readers, and what happens when the last of them is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from holdfast.core.entries import START, EndBody, Position
from holdfast.core.limits.budget import Account, Kind
from holdfast.core.log import Cursor, Log
from holdfast.core.session.messages import StreamStatus
from holdfast.errors import HoldfastError
from holdfast.streams.attendance import Attendance
from holdfast.streams.source import Source
from holdfast.streams.store import Claim
from holdfast.timers import Timers

logger = logging.getLogger("holdfast")

#: A running log takes so much of the budget at a time, so that the budget is not asked for each entry: at first
#: the small grain, and of more the large one.
_GRAIN = 4096
_LARGE_GRAIN = 4 * _GRAIN


class Retrying(NamedTuple):
    """The source waits `delay` seconds before its next attempt, since the one before has failed with `code`."""

    attempt: int
    delay: float
    code: str


class Reader(Protocol):
    """Whoever holds a cursor. Calls come from the source's turn: they note the cursor and return."""

    def wake(self, cursor: Cursor) -> None:
        """There is more to read."""

    def position_changed(self, cursor: Cursor) -> None:
        """The stream waits: its `queue_position` in the queue, or what it is `retrying`, has changed."""

    def epoch_changed(self, cursor: Cursor) -> None:
        """Another owner carries the log on, in the epoch that it now has."""

    def forgotten(self, cursor: Cursor, error: HoldfastError) -> None:
        """The log goes behind this call, and with it what the reader has yet to read: tell it the error.

        The cursor has left the stream already, and can be read until this returns.
        """


class Stream:
    """A log, the cursors on it with their readers, and the source that feeds it.

    | state | what moves it there | who |
    |---|---|---|
    | queued | created with a `queue_position` | launcher |
    | running | admitted: `queue_position` is None | source |
    | ended | `seal` | source |

    Entries are *accepted* when the source offers them and *visible* when readers may have them. Here, with the
    store of one process, the two are one; a `StoredStream` shows an entry when its store has it. Whether a request
    may be tried again is asked of `accepted`: what a reader may yet see is never generated a second time.

    Invariants: what is visible was accepted; the end is the last entry, and there is exactly one; a stream that
    waits for room is in `account.waiting`; the account is charged with what it holds at least. All calls are
    synchronous and belong to the loop's thread.
    """

    __slots__ = (
        "_attendance",
        "_is_awaited",
        "_on_end",
        "_readers",
        "_timers",
        "account",
        "charged",
        "created",
        "ended_at",
        "id",
        "log",
        "origin",
        "queue_position",
        "retrying",
        "source",
    )

    def __init__(
        self,
        *,
        origin: Claim,
        log: Log,
        account: Account,
        detach_grace: float,
        timers: Timers,
        on_end: Callable[[Stream], None],
    ) -> None:
        """`on_end` is called once, when the end is visible. `detach_grace` is in seconds."""
        self.id = origin.stream
        #: Who asked for it, and for what.
        self.origin = origin
        self.log = log
        self.created = timers.now()
        self.ended_at: float | None = None
        #: How many will be served before this stream; None unless it waits in the queue.
        self.queue_position: int | None = None
        #: What it waits for before it is tried again; None unless it does.
        self.retrying: Retrying | None = None
        #: Who feeds it; None before it begins and after its end.
        self.source: Source | None = None
        #: Who is charged with what it holds, and how much that is: in grains while it runs.
        self.account = account
        self.charged = 0
        self._timers = timers
        self._on_end = on_end
        self._readers: dict[Cursor, Reader] = {}
        self._attendance = Attendance(timers, grace=detach_grace)
        # It ended while its reader was lost, who has not come back since.
        self._is_awaited = False

    @property
    def is_ended(self) -> bool:
        return self.log.end is not None

    @property
    def end(self) -> EndBody | None:
        return self.log.end

    @property
    def is_sealed(self) -> bool:
        """Whether the source has given its end, which may not be visible yet."""
        return self.log.end is not None

    @property
    def status(self) -> StreamStatus:
        if self.is_ended:
            return "ended"
        return "running" if self.queue_position is None else "queued"

    @property
    def accepted(self) -> int:
        """How many entries the source has offered."""
        return self.log.next

    @property
    def held(self) -> int:
        """Bytes of its log, and of what is not visible yet."""
        return self.log.bytes + self._pending_bytes

    @property
    def reader_count(self) -> int:
        return len(self._readers)

    # -- readers --

    def attach(
        self, reader: Reader, position: Position = START, *, credit: int | None = None, is_onlooker: bool = False
    ) -> Cursor:
        """Give a reader a cursor that continues after the position. Raises like `Log.check`: whole or refused.

        An onlooker, who reads a stream of somebody else, does not take the place of a reader that was lost.
        """
        cursor = self.log.cursor(position, credit=credit)
        self._readers[cursor] = reader
        if not is_onlooker:
            self._is_awaited = False
            self._attendance.returned(position.seq)
        self.resume_source()  # the place that it took over may have been what held the provider
        return cursor

    def detach(self, cursor: Cursor) -> None:
        """A reader leaves on purpose: the generation goes on, with nobody reading if need be."""
        if self._readers.pop(cursor, None) is None:
            return
        cursor.close()
        if not self._readers:
            self._attendance.keeps_running = True
        self.resume_source()

    def release(self, cursor: Cursor) -> None:
        """A reader is done with this cursor, and its place need not be kept."""
        if self._readers.pop(cursor, None) is None:
            return
        cursor.close()
        if self._readers:
            self.resume_source()
        else:
            self._reader_left()

    def lose(self, cursor: Cursor) -> None:
        """A reader's connection is gone: keep its place for the grace period, then give the stream up."""
        if self._readers.pop(cursor, None) is None:
            return
        if self._attendance.grace > 0 and not self.is_ended:
            self._attendance.park(cursor)
        else:
            cursor.close()
            self._is_awaited = self.is_ended and not self._readers
        self._reader_left()

    def keep_running(self) -> None:
        """The generation shall go on without any reader."""
        self._attendance.keeps_running = True

    def attended(self, seconds: float) -> None:
        """Somebody reads it in another process, for so long unless that is said again."""
        if not self.is_ended:
            self._attendance.elsewhere(seconds, self._grace_over)

    def is_awaited(self, now: float) -> bool:
        """Whether the stream has ended and a lost reader may still come for the rest, within its grace period."""
        return self._is_awaited and now < self.awaited_until

    @property
    def awaited_until(self) -> float:
        """When the grace period of an ended stream is over, by the timers' clock."""
        return (self.ended_at or 0.0) + self._attendance.grace

    def cancel(self, reason: str = "") -> None:
        """Stop the generation; its end is `cancelled`. Idempotent."""
        if self.source is not None:
            self.source.cancel(reason)

    def _reader_left(self) -> None:
        if self.is_ended:
            return
        attendance = self._attendance
        if self._is_unattended and attendance.grace <= 0:
            self._abandon()
        elif not (self._readers or attendance.keeps_running) or attendance.is_awaiting:
            attendance.begin(self._grace_over)
        self.resume_source()

    def _grace_over(self) -> None:
        if self._is_unattended and not self.is_ended:
            logger.info("stream %s: nobody read it for %g s; cancelled", self.id, self._attendance.grace)
            self._abandon()
        else:
            self.resume_source()

    @property
    def _is_unattended(self) -> bool:
        """Whether nobody reads it, here or elsewhere, and it shall not go on by itself."""
        attendance = self._attendance
        return not (self._readers or attendance.keeps_running or attendance.is_elsewhere)

    def _abandon(self) -> None:
        if self.source is not None:
            self.source.abandon()

    # -- the source's side --

    def wait_at(self, position: int | None) -> None:
        """Note the position in the queue where the stream waits, and tell its readers; None: it waits no more."""
        self.queue_position = position
        if position is not None:
            for cursor, reader in self._readers.items():
                reader.position_changed(cursor)

    def retry_in(self, retrying: Retrying | None) -> None:
        """Note that the source waits before it tries again, and tell the readers; None: it waits no more."""
        self.retrying = retrying
        if retrying is not None:
            for cursor, reader in self._readers.items():
                reader.position_changed(cursor)

    def show(self, payloads: Sequence[bytes]) -> None:
        """Make entries visible: readers may have them now. Does nothing on an ended stream."""
        log = self.log
        if log.end is not None:
            return
        log.append(payloads)
        if log.bytes > self.charged:
            self._charge(log.bytes)
        for cursor, reader in self._readers.items():
            reader.wake(cursor)

    def show_end(self, end: EndBody) -> None:
        """Make the end visible. The first one counts; a stream has exactly one."""
        if self.log.end is not None:
            return
        self.queue_position = self.retrying = None
        self.source = None
        self.ended_at = self._timers.now()
        self._is_awaited = self._attendance.is_awaiting and not self._readers and end.status != "cancelled"
        self.account.waiting.discard(self)
        self.log.seal(end)
        self._settle(self.held)
        self._attendance.end()
        for cursor, reader in self._readers.items():
            reader.wake(cursor)
        self._on_end(self)

    # How the source gives entries and the end; they are visible at once.
    offer = show
    seal = show_end

    def begin_epoch(self, epoch: int) -> None:
        """Another owner carries the log on. Readers are told before its first entry."""
        self.log.begin_epoch(epoch)
        for cursor, reader in self._readers.items():
            reader.epoch_changed(cursor)

    @property
    def is_full(self) -> bool:
        """Whether the source has to wait: the log is at its bound and nothing more can be trimmed."""
        log = self.log
        return (log.bytes >= log.max_bytes or self.account.is_short) and self._must_wait()

    def _must_wait(self) -> bool:
        if self.is_sealed:  # nothing more comes of it that could wait
            return False
        self._trim()
        if self._has_room:
            return False
        self.account.waiting.add(self)
        return True

    @property
    def _has_room(self) -> bool:
        bound = self.log.max_bytes
        if self.account.is_short:
            bound = min(bound, self.account.least_log)
        return self.held < bound

    @property
    def _pending_bytes(self) -> int:
        """Bytes that are accepted and not visible yet."""
        return 0

    def resume_source(self) -> None:
        """Let a waiting source go on where the log has room: a reader has advanced, or memory is free."""
        waiting = self.account.waiting
        if self in waiting:
            self._trim()
            if self._has_room and self in waiting:
                waiting.discard(self)
                if self.source is not None:
                    self.source.resume()

    # -- memory --

    def _charge(self, held: int) -> None:
        """Take what the log has grown by, in grains; where memory is short, drop what all readers have."""
        account = self.account
        self._settle(_in_grains(held))
        if account.is_short:
            self._trim()

    def _trim(self) -> None:
        if self.log.trim():
            self._settle(_in_grains(self.held))

    def _settle(self, size: int) -> None:
        # Noted first: to make room for it may bring the stream back here.
        grown, self.charged = size - self.charged, size
        if grown > 0:
            self.account.add(Kind.LOGS, grown)
        elif grown < 0:
            self.account.free(Kind.LOGS, -grown)

    def forget(self, error: HoldfastError | None = None) -> None:
        """Give back the memory: nobody finds the stream any more. Readers that are left are told the error.

        Without one there is nobody to tell, since the process ends.
        """
        readers, self._readers = self._readers, {}
        for cursor, reader in readers.items():
            if error is not None:
                reader.forgotten(cursor, error)
            cursor.close()
        self.account.waiting.discard(self)
        self._settle(0)


def _in_grains(size: int) -> int:
    grain = _GRAIN if size <= _LARGE_GRAIN else _LARGE_GRAIN
    return -(-size // grain) * grain
