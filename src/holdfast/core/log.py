"""The append-only log of one generation, and the cursors that read it.

A log holds entries numbered from 0; the last one is its end. It decides what fits, what may be trimmed and which
cursors are still whole. How entries look on a wire is a `Framing`'s matter; waking readers and pausing the
provider are left to `holdfast.streams`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from holdfast.core.entries import START, EndBody, Position, encode_end
from holdfast.errors import AheadOfLog, LogTrimmed, UnknownEpoch

#: What an entry costs beside its payload: the bytes object's header and a list slot, rounded up.
ENTRY_OVERHEAD = 48

#: Most entries that one read looks at, so that one turn of a far-behind reader stays short.
_READ_ENTRIES = 512


class Framing(Protocol):
    """How a batch of a log looks on one wire. Stateless: what it makes is shared by all readers of one form.

    What has no form there is empty bytes, and nothing is sent of it.
    """

    def entry(self, stream: bytes, epoch: int, seq: int, payload: bytes) -> bytes:
        """Write one entry: what `entries` writes for it alone. It is the usual case, at the live tail."""

    def entries(self, stream: bytes, epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
        """Write consecutive entries, at least one; the first has the number `first`."""

    def end(self, stream: bytes, epoch: int, seq: int, payload: bytes, end: EndBody) -> bytes:
        """Write the end entry; `payload` is `end` as it stands in the log."""


class Log:
    """Entries of one stream: appended once, never changed, dropped only from the front.

    `max_bytes` bounds the kept entries (payloads and overhead). The log itself never refuses an append: the
    caller stops the provider at the bound, so a log overshoots by at most what was already on its way.
    """

    __slots__ = (
        "_entries",
        "_framing",
        "_older",
        "_rendered",
        "_rendered_span",
        "bytes",
        "cursors",
        "end",
        "epoch",
        "first",
        "max_bytes",
        "next",
        "stream",
    )

    def __init__(self, stream: str, *, epoch: int = 1, max_bytes: int) -> None:
        self.stream = stream.encode("ascii")
        self.epoch = epoch
        self.max_bytes = max_bytes
        #: Sequence number of the oldest entry that is kept, and of the next one to be appended.
        self.first = 0
        self.next = 0
        self.bytes = 0
        #: The end, whose payload is the last entry; None while the log is open.
        self.end: EndBody | None = None
        self.cursors: set[Cursor] = set()
        self._entries: list[bytes] = []
        # Earlier epochs, each with the number of the entry that followed its last one.
        self._older: tuple[tuple[int, int], ...] = ()
        # The newest batch as one framing has written it, shared by all cursors that stand at the same place. It
        # counts in no bound, so it is kept only while the log is open and has several readers.
        self._framing: Framing | None = None
        self._rendered = b""
        self._rendered_span = (-1, -1)

    def append(self, payloads: Sequence[bytes]) -> int:
        """Append entries, each one JSON text, and return the bytes that were added.

        Raises RuntimeError on a sealed log: the end is the last entry, whatever the provider still says.
        """
        if self.end is not None:
            raise RuntimeError("append to a sealed log")
        count = len(payloads)
        if count == 1:  # the usual case: one token at a time
            payload = payloads[0]
            self._entries.append(payload)
            added = len(payload) + ENTRY_OVERHEAD
        else:
            self._entries.extend(payloads)
            added = sum(map(len, payloads)) + ENTRY_OVERHEAD * count
        self.next += count
        self.bytes += added
        return added

    def seal(self, end: EndBody) -> int:
        """Append the end entry and return the bytes that were added."""
        added = self.append((encode_end(end),))
        self.end = end
        self._forget_rendered()
        return added

    def begin_epoch(self, epoch: int) -> None:
        """Another owner carries the log on: entries from `next` on belong to its epoch.

        Raises RuntimeError for an epoch that is not newer, and on a sealed log.
        """
        if epoch <= self.epoch or self.end is not None:
            raise RuntimeError(f"epoch {epoch} cannot follow epoch {self.epoch} of this log")
        self._older = (*self._older, (self.epoch, self.next))
        self.epoch = epoch
        # Framings write the epoch that is in force, also for entries before it.
        self._forget_rendered()

    def _forget_rendered(self) -> None:
        self._rendered, self._rendered_span = b"", (-1, -1)

    def trim(self) -> int:
        """Drop what every cursor has consumed, and return the bytes that were freed.

        A log without cursors keeps everything: whoever comes back first finds it whole. The end entry stays.
        """
        if not self.cursors:
            return 0
        upto = min(cursor.consumed for cursor in self.cursors) + 1
        upto = min(upto, self.next - 1 if self.end is not None else self.next)
        count = upto - self.first
        if count <= 0:
            return 0
        freed = sum(map(len, self._entries[:count])) + ENTRY_OVERHEAD * count
        del self._entries[:count]
        self.first = upto
        self.bytes -= freed
        return freed

    def slice(self, start: int, max_bytes: int) -> list[bytes]:
        """Return entries from `start` on that fit into `max_bytes`, but at least one where there is one."""
        index = start - self.first
        entries = self._entries[index : index + _READ_ENTRIES]
        if sum(map(len, entries)) <= max_bytes:
            return entries
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry)
            if size > max_bytes:
                return entries[: max(count, 1)]
        raise AssertionError("unreachable")  # pragma: no cover

    def check(self, position: Position) -> None:
        """Raise unless a reader at this position can be served whole.

        Raises `UnknownEpoch`, `AheadOfLog` or `LogTrimmed`: resume is whole or refused, never a silent gap.
        """
        after, epoch = position
        if epoch is not None and epoch != self.epoch:
            if not 1 <= epoch <= self.epoch:
                raise UnknownEpoch(f"the log is in epoch {self.epoch}; epoch {epoch} is unknown", param="epoch")
            # What an earlier owner wrote behind the place where a later one took over is no part of this log.
            stop = next((stop for older, stop in self._older if older >= epoch), self.next)
            if after >= stop:
                raise AheadOfLog(f"epoch {epoch} ended with entry {stop - 1}; `after` is {after}", param="after")
        if after >= self.next:
            raise AheadOfLog(f"the log's last entry is {self.next - 1}; `after` is {after}", param="after")
        if after + 1 < self.first:
            raise LogTrimmed(
                f"entries {after + 1} to {self.first - 1} were trimmed; the log now starts at {self.first}",
                param="after",
            )

    def cursor(self, position: Position = START, *, credit: int | None = None) -> Cursor:
        """Attach a cursor that continues after the position; raises like `check`."""
        self.check(position)
        cursor = Cursor(self, position.seq, credit)
        self.cursors.add(cursor)
        return cursor

    def render(self, framing: Framing, start: int, max_bytes: int) -> tuple[int, bytes]:
        """Return the position after a batch from `start`, and the batch as the framing writes it.

        The end entry is written by itself. Readers of one form at the same place share one rendering.
        """
        span, rendered = self._rendered_span, self._rendered
        if span[0] == start and span[1] == self.next and framing is self._framing and len(rendered) <= max_bytes:
            return span[1], rendered
        if self.end is not None and start == self.next - 1:
            return self.next, framing.end(self.stream, self.epoch, start, self._entries[-1], self.end)
        entries = self.slice(start, max_bytes)
        stop = start + len(entries)
        if self.end is not None and stop == self.next:
            entries.pop()
            stop -= 1
        message = framing.entries(self.stream, self.epoch, start, entries)
        if len(self.cursors) > 1 and self.end is None:
            self._framing, self._rendered_span, self._rendered = framing, (start, stop), message
        return stop, message


class Cursor:
    """Where one reader stands in one log.

    `position` is the next entry to read. `consumed` is the last entry that the reader will not ask for again:
    it holds back trimming. `credit` is how many bytes of payload may still be sent, None without flow control; the
    end entry needs none.
    """

    __slots__ = ("consumed", "credit", "log", "position")

    def __init__(self, log: Log, after: int, credit: int | None) -> None:
        self.log = log
        self.position = after + 1
        self.consumed = after
        self.credit = credit

    @property
    def is_ready(self) -> bool:
        """Whether `read` would return something now."""
        log = self.log
        if self.position >= log.next:
            return False
        return self.credit is None or self.credit > 0 or self._is_at_end

    @property
    def _is_at_end(self) -> bool:
        return self.log.end is not None and self.position == self.log.next - 1

    @property
    def is_done(self) -> bool:
        """Whether the end entry was read."""
        return self.log.end is not None and self.position >= self.log.next

    def read(self, framing: Framing, max_bytes: int) -> bytes | None:
        """Return the next entries, about `max_bytes` of them, as the framing writes them; None where none is due.

        A single larger entry is returned whole, and may take the credit below zero.
        """
        log, credit, start = self.log, self.credit, self.position
        behind = log.next - start
        if behind <= 0:
            return None
        if behind == 1 and log.end is None and (credit is None or credit > 0):
            # The usual case: at the live tail, one new entry.
            entry = log._entries[-1]
            self.position = start + 1
            if credit is not None:
                self.credit = credit - len(entry)
            return framing.entry(log.stream, log.epoch, start, entry)
        if credit is None or self._is_at_end:
            self.position, message = log.render(framing, start, max_bytes)
            return message
        if credit <= 0:
            return None
        entries = log.slice(start, min(max_bytes, credit))
        if log.end is not None and start + len(entries) == log.next:
            entries.pop()
        self.position = start + len(entries)
        self.credit = credit - sum(map(len, entries))
        return framing.entries(log.stream, log.epoch, start, entries)

    def read_payloads(self, max_bytes: int) -> list[bytes]:
        """Return the payloads of the next entries, the end entry's included; for readers outside the protocol."""
        payloads = self.log.slice(self.position, max_bytes)
        self.position += len(payloads)
        return payloads

    def acknowledge(self, seq: int) -> None:
        """Record that the reader keeps everything up to `seq`; cumulative, older numbers change nothing."""
        if seq > self.consumed:
            self.consumed = min(seq, self.position - 1)

    def consume(self) -> None:
        """Record that whatever was read is consumed; for readers that cannot acknowledge."""
        self.consumed = self.position - 1

    def close(self) -> None:
        """Leave the log; the cursor must not be read afterwards. Idempotent."""
        log = self.log
        log.cursors.discard(self)
        if log._rendered and len(log.cursors) < 2:
            log._forget_rendered()
