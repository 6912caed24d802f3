"""A stream whose log is in a shared store: its entries are visible when the store has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from holdfast.core.entries import EndBody
from holdfast.core.log import ENTRY_OVERHEAD
from holdfast.streams.stream import Stream


class Writer(Protocol):
    """Takes what a stream has accepted to a store, and shows it when the store has it."""

    def add(self, stream: StoredStream, payloads: Sequence[bytes], end: EndBody | None = None) -> None: ...


class StoredStream(Stream):
    """What is accepted counts in memory at once and is visible later; what is pending holds the source back."""

    __slots__ = ("_is_sealed", "_pending", "_size", "_writer")

    def __init__(self, *, writer: Writer, **options: Any) -> None:
        super().__init__(**options)
        self._writer = writer
        # Accepted entries that are not visible yet, and the bytes that they will take in the log.
        self._pending = 0
        self._size = 0
        self._is_sealed = False

    @property
    def accepted(self) -> int:
        return self.log.next + self._pending

    @property
    def is_sealed(self) -> bool:
        return self._is_sealed or self.log.end is not None

    @property
    def _pending_bytes(self) -> int:
        return self._size

    def offer(self, payloads: Sequence[bytes]) -> None:
        if self.is_sealed:
            return
        size = _size_of(payloads)
        self._pending += len(payloads)
        self._size += size
        held = self.held
        if held > self.charged:
            self._charge(held)
        self._writer.add(self, payloads)

    def seal(self, end: EndBody) -> None:
        if not self.is_sealed:
            self._is_sealed = True
            self._writer.add(self, (), end)

    def show(self, payloads: Sequence[bytes]) -> None:
        if self.log.end is None:
            size = _size_of(payloads)
            self._pending -= len(payloads)
            self._size -= size
        super().show(payloads)

    def stop_accepting(self) -> None:
        """The store has refused what is pending, and would refuse what follows.

        `accepted` stays: the entries were generated, and nobody may have them generated again here.
        """
        self._is_sealed = True
        self._size = 0
        self._settle(self.held)

    @property
    def is_full(self) -> bool:
        log = self.log
        return (log.bytes + self._size >= log.max_bytes or self.account.is_short) and self._must_wait()


def _size_of(payloads: Sequence[bytes]) -> int:
    return sum(map(len, payloads)) + ENTRY_OVERHEAD * len(payloads)
