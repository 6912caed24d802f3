"""The source of a stream that another process owns: what the store has of it comes into the log of this one."""

from __future__ import annotations

from holdfast.core.entries import Position
from holdfast.errors import HoldfastError
from holdfast.streams.store import Batch, Cancel, LogStore, Subscription
from holdfast.streams.stream import Stream


class Follower:
    """Readers stand on the local log, so that replay and live tail are one path here as at the owner.

    | state | what moves it there |
    |---|---|
    | following | `start`; `resume` |
    | paused | the local log is full: its readers are slower than the owner's |
    | closed | the end came, nobody reads it here, or the store is lost |

    To cancel is the owner's to do: the end comes back through the store.
    """

    def __init__(self, stream: Stream, store: LogStore) -> None:
        self._stream = stream
        self._store = store
        self._subscription: Subscription | None = None
        self._is_closed = False

    def start(self) -> None:
        self._stream.source = self
        self.resume()

    # -- the source's side --

    def cancel(self, reason: str) -> None:
        self._store.signal(self._stream.id, Cancel(reason))

    def abandon(self) -> None:
        self._is_closed = True
        self._pause()

    def resume(self) -> None:
        if self._subscription is None and not self._is_closed:
            log = self._stream.log
            self._subscription = self._store.follow(self._stream.id, Position(log.next - 1, log.epoch), self)
            if self._is_closed or self._stream.is_full:
                self._pause()  # the first batch came before the subscription was known

    def _pause(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    # -- the store's side --

    def batch_received(self, batch: Batch) -> None:
        stream = self._stream
        log = stream.log
        if batch.first > log.next:
            # Never a gap: what is missing is asked for anew.
            self._pause()
            self.resume()
            return
        if batch.epoch > log.epoch:
            stream.begin_epoch(batch.epoch)
        payloads = batch.payloads[log.next - batch.first :]
        if payloads:
            stream.show(payloads)
        if batch.end is not None:
            self._is_closed = True
            self._pause()
            stream.show_end(batch.end)
        elif stream.is_full:
            self._pause()

    def following_lost(self, error: HoldfastError) -> None:
        self._subscription = None
