"""The source of a stream that another process owns: what the store has of it comes into the log of this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from holdfast.core.entries import EndBody, Position, error_body
from holdfast.errors import HoldfastError
from holdfast.streams.store import Batch, Cancel, LogStore, Subscription
from holdfast.streams.stream import Stream
from holdfast.timers import Deadline, Timers

#: What is read at a time is this part of the log's bound, so that a full log is not much overfilled.
_PAGES = 16
#: Seconds until a store that could not be reached is asked again, where it does not say.
_RETRY = 1.0

_State = Literal["reading", "following", "paused", "unreachable", "closed"]


class Follower:
    """Readers stand on the local log, so that replay and live tail are one path here as at the owner.

    | state | what moves it there |
    |---|---|
    | reading | `start`, `resume`, a gap: what is stored is read page by page |
    | following | everything that was stored is here |
    | paused | the local log is full: its readers are slower than the owner's |
    | unreachable | the store cannot be reached; it is asked again in a while |
    | closed | the end came, nobody reads it here, or the store has forgotten the stream |

    To cancel is the owner's to do: the end comes back through the store.
    """

    def __init__(
        self, stream: Stream, store: LogStore, timers: Timers, on_abandoned: Callable[[Stream], None]
    ) -> None:
        """`on_abandoned` is called when nobody has read the stream here for its grace period."""
        self._stream = stream
        self._store = store
        self._timers = timers
        self._on_abandoned = on_abandoned
        self._state: _State = "paused"
        self._subscription: Subscription | None = None
        self._retry: Deadline | None = None
        # Who waits until what is stored is here; None once it has been.
        self._waiting: list[Callable[[HoldfastError | None], None]] | None = []

    def start(self) -> None:
        self._stream.source = self
        self._read()

    def when_ready(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Call `done` as soon as a position of a reader can be checked against the log.

        That is in this turn where everything that was stored is here. With an error nothing comes of this stream.
        """
        if self._waiting is None:
            done(None)
        else:
            self._waiting.append(done)

    def close(self, error: HoldfastError | None = None) -> None:
        """Follow no more. Idempotent."""
        self._leave("closed")
        self._ready(error)

    # -- the source's side --

    def cancel(self, reason: str) -> None:
        self._store.signal(self._stream.id, Cancel(reason))

    def abandon(self) -> None:
        self._on_abandoned(self._stream)

    def resume(self) -> None:
        if self._state == "paused":
            self._read()

    # -- reading what is stored --

    def _read(self) -> None:
        self._leave("reading")
        size = max(self._stream.log.max_bytes // _PAGES, 1)
        self._store.read(self._stream.id, self._position, size, self._page_read)

    @property
    def _position(self) -> Position:
        log = self._stream.log
        return Position(log.next - 1, log.epoch)

    def _page_read(self, answer: Batch | HoldfastError) -> None:
        if self._state != "reading":
            return
        if isinstance(answer, HoldfastError):
            self._lost(answer)
        elif answer.next == answer.first and answer.epoch <= self._stream.log.epoch:
            self._follow()
        else:
            self._take(answer)
            if self._state == "reading":
                self._read()

    def _take(self, batch: Batch) -> None:
        stream = self._stream
        log = stream.log
        if batch.epoch > log.epoch:
            stream.begin_epoch(batch.epoch)
        payloads = batch.payloads[log.next - batch.first :]
        if payloads:
            stream.show(payloads)
        if batch.end is not None:
            self._leave("closed")
            stream.show_end(batch.end)
            self._ready(None)
        elif stream.is_full:
            self._leave("paused")
            self._ready(None)

    # -- following what will be --

    def _follow(self) -> None:
        self._leave("following")
        subscription = self._store.follow(self._stream.id, self._position, self)
        # What came in this very turn may have ended the following, and even begun another one.
        if self._state == "following" and self._subscription is None:
            self._subscription = subscription
            self._ready(None)
        else:
            subscription.close()

    def batch_received(self, batch: Batch) -> None:
        if self._state != "following":
            return
        if batch.first > self._stream.log.next:
            self._read()  # never a gap: what is missing is asked for anew
        else:
            self._take(batch)

    def following_lost(self, error: HoldfastError) -> None:
        if self._state == "following":
            self._lost(error)

    # -- the end --

    def _lost(self, error: HoldfastError) -> None:
        self._leave("unreachable")
        if self._waiting:
            # They may ask again; only who reads already waits for the store.
            waiting, self._waiting = self._waiting, []
            for done in waiting:
                done(error)
            if not self._stream.reader_count:
                self._on_abandoned(self._stream)
                return
        if error.retryable:
            self._retry = self._timers.after(error.retry_after or _RETRY, self._read)
        else:
            self.close()
            self._stream.show_end(EndBody("incomplete", error=error_body(error)))

    def _leave(self, state: _State) -> None:
        """Let go of whatever the state before stands on."""
        self._state = state
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
        retry, self._retry = self._retry, None
        if retry is not None:
            retry.cancel()

    def _ready(self, error: HoldfastError | None) -> None:
        waiting, self._waiting = self._waiting, None
        for done in waiting or ():
            done(error)
