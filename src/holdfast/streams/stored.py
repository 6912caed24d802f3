"""A stream whose log is in a shared store: its entries are visible when the store has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from holdfast.core.entries import EndBody
from holdfast.streams.stream import Stream


class Writer(Protocol):
    """Takes what a stream has accepted to a store, and shows it when the store has it."""

    def add(self, stream: StoredStream, payloads: Sequence[bytes], end: EndBody | None = None) -> None: ...


class StoredStream(Stream):
    """What is accepted counts in memory at once and is visible later; what is pending holds the source back."""

    __slots__ = ("_pending", "_size", "_writer")

    def __init__(self, *, writer: Writer, **options: Any) -> None:
        super().__init__(**options)
        self._writer = writer
        # Accepted entries that are not visible yet, and their bytes.
        self._pending = 0
        self._size = 0

    @property
    def accepted(self) -> int:
        return self.log.next + self._pending

    @property
    def _pending_bytes(self) -> int:
        return self._size

    def offer(self, payloads: Sequence[bytes]) -> None:
        if self.log.end is None:
            self._pend(len(payloads), sum(map(len, payloads)))
            self._writer.add(self, payloads)

    def seal(self, end: EndBody) -> None:
        if self.log.end is None:
            self._writer.add(self, (), end)

    def show(self, payloads: Sequence[bytes]) -> None:
        self._pend(-len(payloads), -sum(map(len, payloads)))
        super().show(payloads)

    def show_end(self, end: EndBody) -> None:
        if self.log.end is None:
            self._pend(-self._pending, -self._size)
        super().show_end(end)

    @property
    def is_full(self) -> bool:
        log = self.log
        return (log.bytes + self._size >= log.max_bytes or self._memory.is_short) and self._must_wait()

    def _pend(self, count: int, size: int) -> None:
        self._pending += count
        self._size += size
        self._memory.used += size
