"""One generation: its log, its readers, and what happens when the last of them is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from holdfast.core.entries import START, AttemptRecord, EndBody, EndStatus, Owner, Position, Usage, error_body
from holdfast.core.log import Cursor, Log
from holdfast.core.session.messages import StreamStatus
from holdfast.errors import Cancelled, HoldfastError
from holdfast.generation.ticket import Caller
from holdfast.streams.memory import LogMemory
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")


class Reader(Protocol):
    """Whoever holds a cursor. `wake` is called from the pump's turn: it notes the cursor and returns."""

    def wake(self, cursor: Cursor) -> None: ...

    def moved(self, cursor: Cursor) -> None:
        """The stream still waits for its turn, and its `queue_position` has changed."""


@dataclass(slots=True, frozen=True)
class Origin:
    """Who asked for a generation, and for what. `digest` tells a repeated request from another one."""

    owner: Owner
    request_id: str
    model: str
    digest: bytes


class Stream:
    """A log, the cursors on it with their readers, and the state of its generation.

    All calls are synchronous and belong to the loop's thread. `on_end` is called once, when the end entry is in
    the log; `on_relief` when a full log has room again; `on_abandoned` when the grace period passed without a
    reader or the owner cancelled.
    """

    __slots__ = (
        "_grace",
        "_is_awaited",
        "_memory",
        "_parked",
        "_readers",
        "_timers",
        "caller",
        "created",
        "detach_grace",
        "ended_at",
        "expiry",
        "id",
        "keeps_running",
        "log",
        "on_abandoned",
        "on_end",
        "on_relief",
        "origin",
        "queue_position",
    )

    def __init__(
        self,
        *,
        stream_id: str,
        origin: Origin,
        log: Log,
        memory: LogMemory,
        detach_grace: float,
        timers: Timers,
    ) -> None:
        self.id = stream_id
        self.origin = origin
        self.log = log
        self._memory = memory
        #: Who asked, for the log.
        self.caller: Caller | None = None
        self.created = timers.now()
        self.ended_at: float | None = None
        # It ended while its reader was lost, who has not come back since.
        self._is_awaited = False
        #: Seconds that the generation goes on without a reader.
        self.detach_grace = detach_grace
        #: Set where the generation shall go on without any reader.
        self.keeps_running = False
        self.on_end: Callable[[Stream], None] = _ignore
        self.on_relief: Callable[[], None] = _nothing
        self.on_abandoned: Callable[[], None] = _nothing
        #: How many will be served before this stream; None unless it waits for its turn.
        self.queue_position: int | None = None
        #: The registry's retention timer.
        self.expiry: Deadline | None = None
        self._timers = timers
        self._readers: dict[Cursor, Reader] = {}
        # Cursors of lost connections: until the grace period ends they hold back trimming, so that their client
        # finds the log whole.
        self._parked: list[Cursor] = []
        self._grace: Deadline | None = None

    @property
    def is_ended(self) -> bool:
        return self.log.end is not None

    @property
    def reader_count(self) -> int:
        return len(self._readers)

    # -- readers --

    def attach(self, reader: Reader, position: Position = START, *, credit: int | None = None) -> Cursor:
        """Give a reader a cursor that continues after the position. Raises like `Log.check`: whole or refused."""
        cursor = self.log.cursor(position, credit=credit)
        self._readers[cursor] = reader
        self._is_awaited = False
        # A reader that comes back at or behind its old cursor's acknowledged place takes over from it.
        for parked in [parked for parked in self._parked if parked.consumed <= position.seq]:
            self._parked.remove(parked)
            parked.close()
        if not self._parked:
            self._stop_grace()
        self.relieve()  # the place that it took over may have been what held the provider
        return cursor

    def detach(self, cursor: Cursor) -> None:
        """A reader leaves on purpose: the generation goes on, with nobody reading if need be."""
        if self._readers.pop(cursor, None) is None:
            return
        cursor.close()
        if not self._readers:
            self.keeps_running = True
        self.relieve()

    def release(self, cursor: Cursor) -> None:
        """A reader is done with this cursor, and its place need not be kept."""
        if self._readers.pop(cursor, None) is None:
            return
        cursor.close()
        if self._readers:
            self.relieve()
        else:
            self._reader_left()

    def lose(self, cursor: Cursor) -> None:
        """A reader's connection is gone: keep its place for the grace period, then give the stream up."""
        if self._readers.pop(cursor, None) is None:
            return
        if self.detach_grace > 0 and not self.is_ended:
            self._parked.append(cursor)
        else:
            cursor.close()
            self._is_awaited = self.is_ended and not self._readers
        self._reader_left()

    def _reader_left(self) -> None:
        if self.is_ended:
            return
        is_abandoned = not self._readers and not self.keeps_running
        if is_abandoned and self.detach_grace <= 0:
            self.cancel()
        elif is_abandoned or self._parked:
            # Anew, even if it runs for an earlier one: each reader that is lost has the whole of it.
            self._stop_grace()
            self._grace = self._timers.after(self.detach_grace, self._grace_over)
        self.relieve()

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _grace_over(self) -> None:
        self._grace = None
        for cursor in self._parked:
            cursor.close()
        self._parked.clear()
        if not self._readers and not self.keeps_running and not self.is_ended:
            logger.info("stream %s: nobody read it for %g s; cancelled", self.id, self.detach_grace)
            self.cancel()
        else:
            self.relieve()

    # -- the queue's side --

    @property
    def status(self) -> StreamStatus:
        if self.is_ended:
            return "ended"
        return "running" if self.queue_position is None else "queued"

    def move(self, position: int) -> None:
        """Tell the readers that the stream's place in the queue has changed."""
        self.queue_position = position
        for cursor, reader in self._readers.items():
            reader.moved(cursor)

    # -- the pump's side --

    def append(self, payloads: list[bytes]) -> None:
        """Append entries and wake the readers. Does nothing on an ended stream."""
        log = self.log
        if log.end is not None:
            return
        memory = self._memory
        memory.used += log.append(payloads)
        if memory.used >= memory.limit:
            memory.check()
            memory.free(log.trim())
        for cursor, reader in self._readers.items():
            reader.wake(cursor)

    @property
    def _has_room(self) -> bool:
        bound = self.log.max_bytes
        if self._memory.is_short:
            bound = min(bound, self._memory.share)
        return self.log.bytes < bound

    @property
    def is_full(self) -> bool:
        """Whether the provider has to wait: the log is at its bound and nothing more can be trimmed."""
        log = self.log
        if log.bytes >= log.max_bytes or self._memory.is_short:
            self._memory.free(log.trim())
            if not self._has_room:
                self._memory.waiting.add(self)
                return True
        return False

    def relieve(self) -> None:
        """A reader moved, or memory is free again: let the provider go on where the log has room."""
        memory = self._memory
        if self in memory.waiting:
            memory.free(self.log.trim())
            if self._has_room and self in memory.waiting:
                memory.waiting.discard(self)
                self.on_relief()

    def finish(
        self,
        status: EndStatus,
        *,
        error: HoldfastError | None = None,
        finish_reason: str | None = None,
        usage: Usage | None = None,
        attempts: list[AttemptRecord] | None = None,
    ) -> None:
        """Seal the log with its end entry. The first end counts; a stream has exactly one."""
        if self.log.end is not None:
            return
        end = EndBody(
            status=status,
            finish_reason=finish_reason,
            usage=usage,
            error=None if error is None else error_body(error),
            attempts=attempts or [],
        )
        self.queue_position = None
        self.ended_at = self._timers.now()
        self._is_awaited = bool(self._parked) and not self._readers and status != "cancelled"
        self._memory.waiting.discard(self)
        self._memory.used += self.log.seal(end)
        self._memory.check()
        for cursor in self._parked:
            cursor.close()
        self._parked.clear()
        self._stop_grace()
        for cursor, reader in self._readers.items():
            reader.wake(cursor)
        self.on_end(self)

    def is_awaited(self, now: float) -> bool:
        """Whether the stream has ended and a lost reader may still come for the rest, within its grace period."""
        return self._is_awaited and self.ended_at is not None and now < self.ended_at + self.detach_grace

    def cancel(self, reason: str = "") -> None:
        """Stop the generation; its end is `cancelled`. Idempotent."""
        if self.log.end is None:
            self.finish("cancelled", error=Cancelled(reason))
            self.on_abandoned()

    @property
    def end(self) -> EndBody | None:
        return self.log.end


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass
