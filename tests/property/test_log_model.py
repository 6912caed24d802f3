"""A stateful model of log, cursors, trimming, disconnect and resume.

Each reader sees an exact prefix of the entries, in order and each once, or an explicit refusal.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from holdfast.core.entries import EndBody, Position, encode_end
from holdfast.core.log import ENTRY_OVERHEAD, Cursor, Log
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.errors import AheadOfLog, LogTrimmed, UnknownEpoch

END = EndBody("completed")
PAYLOAD = encode_end(END)
EPOCH = 3


class Reader:
    """A client: it keeps what it received over all its connections."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.consumed = -1  # on this connection
        self.cursor: Cursor | None = None

    @property
    def after(self) -> int:
        return len(self.received) - 1


class LogModel(RuleBasedStateMachine):
    readers = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.log = Log("st_1", epoch=EPOCH, max_bytes=400)
        self.entries: list[bytes] = []
        self.first = 0
        self.all_readers: list[Reader] = []

    # -- the provider --

    @precondition(lambda self: self.log.end is None)
    @rule(sizes=st.lists(st.integers(1, 60), max_size=8))
    def append(self, sizes: list[int]) -> None:
        payloads = [b"%0*d" % (size, 0) if size == 1 else b"1" * size for size in sizes]
        before = self.log.bytes
        added = self.log.append(payloads)
        self.entries += payloads
        assert self.log.bytes - before == added

    @precondition(lambda self: self.log.end is None)
    @rule()
    def seal(self) -> None:
        self.log.seal(END)
        self.entries.append(PAYLOAD)

    @precondition(lambda self: self.log.end is not None)
    @rule()
    def append_after_the_end(self) -> None:
        with pytest.raises(RuntimeError):
            self.log.append([b"1"])

    @rule()
    def trim(self) -> None:
        before = self.log.bytes
        freed = self.log.trim()
        assert before - self.log.bytes == freed
        attached = [reader.consumed for reader in self.all_readers if reader.cursor is not None]
        if attached:
            # Nothing goes that an attached reader might still ask for, and nothing stays that none will.
            is_sealed = self.log.end is not None
            self.first = max(self.first, min(min(attached) + 1, len(self.entries) - is_sealed))
        assert self.log.first == self.first

    # -- the readers --

    @rule(target=readers, credit=st.none() | st.integers(0, 120))
    def arrive(self, credit: int | None) -> Reader:
        reader = Reader()
        self.all_readers.append(reader)
        self.connect(reader, credit, None)
        return reader

    @rule(reader=readers, credit=st.none() | st.integers(0, 120), epoch=st.none() | st.integers(1, EPOCH))
    def reconnect(self, reader: Reader, credit: int | None, epoch: int | None) -> None:
        self.disconnect(reader)
        self.connect(reader, credit, epoch)

    def connect(self, reader: Reader, credit: int | None, epoch: int | None) -> None:
        if reader.after + 1 < self.first:
            with pytest.raises(LogTrimmed):
                self.log.cursor(Position(reader.after, epoch), credit=credit)
        else:
            reader.cursor = self.log.cursor(Position(reader.after, epoch), credit=credit)
            reader.consumed = reader.after

    @rule(beyond=st.integers(0, 5), epoch=st.sampled_from([-1, 0, EPOCH + 1]))
    def ask_for_the_impossible(self, beyond: int, epoch: int) -> None:
        count = len(self.log.cursors)
        with pytest.raises(AheadOfLog):
            self.log.cursor(Position(len(self.entries) + beyond))
        with pytest.raises(UnknownEpoch):
            self.log.cursor(Position(len(self.entries) - 1, epoch))
        assert len(self.log.cursors) == count

    @rule(reader=readers)
    def disconnect(self, reader: Reader) -> None:
        if reader.cursor is not None:
            reader.cursor.close()
            reader.cursor = None

    @rule(reader=consumes(readers))
    def leave_for_good(self, reader: Reader) -> None:
        self.disconnect(reader)

    @rule(reader=readers, max_bytes=st.integers(1, 200), is_lost=st.booleans())
    def read(self, reader: Reader, max_bytes: int, is_lost: bool) -> None:
        cursor = reader.cursor
        if cursor is None:
            return
        was_ready, credit = cursor.is_ready, cursor.credit
        message = cursor.read(SESSION_FRAMING, max_bytes)
        assert (message is not None) == was_ready
        if message is None:
            return
        seq, payloads = self.parse(message)
        assert seq == reader.after + 1
        assert len(message) <= max_bytes + 80 or len(payloads) == 1
        if credit is not None and payloads != [PAYLOAD]:
            assert credit > 0
            assert cursor.credit == credit - sum(map(len, payloads))
            assert len(payloads) == 1 or cursor.credit >= 0
        if is_lost:
            self.disconnect(reader)
        else:
            reader.received += payloads

    @rule(reader=readers, max_bytes=st.integers(1, 200))
    def read_payloads(self, reader: Reader, max_bytes: int) -> None:
        if reader.cursor is not None:
            reader.received += reader.cursor.read_payloads(max_bytes)

    @rule(reader=readers, bytes_=st.integers(1, 100))
    def grant(self, reader: Reader, bytes_: int) -> None:
        if reader.cursor is not None and reader.cursor.credit is not None:
            reader.cursor.credit += bytes_

    @rule(reader=readers, seq=st.integers(-1, 30))
    def acknowledge(self, reader: Reader, seq: int) -> None:
        # A client acknowledges what it has, an unruly one anything: what was not read is not dropped for it.
        if reader.cursor is not None:
            reader.cursor.acknowledge(seq)
            reader.consumed = max(reader.consumed, min(seq, reader.after))

    @rule(reader=readers)
    def acknowledge_all(self, reader: Reader) -> None:
        if reader.cursor is not None:
            reader.cursor.consume()
            reader.consumed = reader.after

    def parse(self, message: bytes) -> tuple[int, list[bytes]]:
        """Take a message apart without knowing how it was made."""
        fields = json.loads(message)
        assert fields["stream"] == "st_1"
        if fields["type"] == "end":
            assert fields["status"] == "completed"
            return fields["seq"], [PAYLOAD]
        values = fields["data"] if fields["type"] == "events" else [fields["data"]]
        assert len(values) > 1 or fields["type"] == "event"
        return fields["seq"], [str(value).encode() for value in values]

    # -- what always holds --

    @invariant()
    def every_reader_has_an_exact_prefix(self) -> None:
        for reader in self.all_readers:
            assert reader.received == self.entries[: len(reader.received)]

    @invariant()
    def sizes_are_exact(self) -> None:
        kept = self.entries[self.log.first :]
        assert self.log.next == len(self.entries)
        assert self.log.bytes == sum(map(len, kept)) + ENTRY_OVERHEAD * len(kept)

    @invariant()
    def attached_readers_are_never_trimmed_away(self) -> None:
        for reader in self.all_readers:
            if reader.cursor is not None:
                assert reader.after + 1 >= self.log.first
                assert reader.cursor.consumed == reader.consumed
                assert reader.cursor.is_done == (
                    self.log.end is not None and reader.after == len(self.entries) - 1
                )


LogModel.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLogModel = LogModel.TestCase
