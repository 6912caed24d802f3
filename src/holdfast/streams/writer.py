"""Takes what the streams of a process accept to a shared store, and shows it when the store has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from holdfast.core.entries import EndBody
from holdfast.errors import HoldfastError
from holdfast.streams.store import Batch, LogStore
from holdfast.streams.stored import StoredStream

logger = logging.getLogger("holdfast")


class StoreWriter:
    """Writes one batch for each stream and turn of the loop, however many entries the turn has brought.

    A stream's batches are written in order, each when the one before it is stored. `on_lost` is told of a stream
    whose batch the store has refused: another owner has it, or the store is gone. The stream accepts nothing more
    then; whoever is told gives it its end, by `show_end`.
    """

    def __init__(
        self,
        store: LogStore,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[StoredStream, HoldfastError], None],
    ) -> None:
        self._store = store
        self._loop = loop
        self._on_lost = on_lost
        self._waiting: dict[StoredStream, _Lane] = {}
        self._is_scheduled = False

    def add(self, stream: StoredStream, payloads: Sequence[bytes], end: EndBody | None = None) -> None:
        """Take entries, and the end behind them where it is there; nothing follows an end."""
        lane = self._waiting.get(stream)
        if lane is None:
            lane = self._waiting[stream] = _Lane(stream.log.next)
        lane.payloads += payloads
        lane.end = end
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        for stream, lane in list(self._waiting.items()):
            if not lane.is_writing:
                self._write(stream, lane)

    def _write(self, stream: StoredStream, lane: _Lane) -> None:
        if not lane.payloads and lane.end is None:
            del self._waiting[stream]
            return
        batch = Batch(stream.id, stream.log.epoch, lane.next, lane.payloads, lane.end)
        lane.payloads = []
        lane.next = batch.next
        lane.is_writing = True
        self._store.write(batch, lambda error: self._written(stream, lane, batch, error))

    def _written(self, stream: StoredStream, lane: _Lane, batch: Batch, error: HoldfastError | None) -> None:
        lane.is_writing = False
        if error is not None:
            del self._waiting[stream]
            logger.warning("stream %s: the store refused entry %d: %s", stream.id, batch.first, error.message)
            stream.stop_accepting()
            self._on_lost(stream, error)
            return
        if batch.payloads:
            stream.show(batch.payloads)
        if batch.end is not None:
            del self._waiting[stream]
            stream.show_end(batch.end)
        else:
            self._write(stream, lane)


class _Lane:
    """What one stream has accepted since its last batch; `next` is the number of the first of it."""

    __slots__ = ("end", "is_writing", "next", "payloads")

    def __init__(self, next_: int) -> None:
        self.next = next_
        self.payloads: list[bytes] = []
        self.end: EndBody | None = None
        self.is_writing = False
