"""`StoredStream` and `StoreWriter`: accepted and visible apart. The test lets the store's answers through."""

from __future__ import annotations

import pytest

from holdfast.config import StreamsConfig
from holdfast.core.entries import EndBody, Position
from holdfast.core.limits.budget import Budget
from holdfast.core.log import ENTRY_OVERHEAD
from holdfast.errors import HoldfastError, UnknownEpoch
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.streams.store import Batch, Claimed
from holdfast.streams.stored import StoredStream
from holdfast.streams.stream import Stream
from holdfast.streams.writer import StoreWriter
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import ACME, COMPLETED, Reading, ScriptedSource
from tests.support.stores import LateStore, Line


class Script:
    """One stored stream. `turn` ends a turn of the loop, `answer` lets the store do and say everything."""

    def __init__(self, clock: Clock, timers: Timers, *, log_bytes: int = 1 << 16, memory: int = 1 << 20) -> None:
        self.memory_store = MemoryStore(timers, is_shared=True)
        self.line = Line()
        self.lost: list[tuple[StoredStream, HoldfastError]] = []
        store = LateStore(self.memory_store, self.line)
        writer = StoreWriter(store, clock, lambda stream, error: self.lost.append((stream, error)))
        config = StreamsConfig(log_bytes=log_bytes)
        self.budget = Budget(memory)
        self.directory = Directory(config, timers, store, self.budget, writer=writer)
        self.turn = clock.settle
        self.answer = self.line.settle
        self.stream = self.add("r-1")
        self.source = ScriptedSource(self.stream)

    def add(self, request_id: str) -> Stream:
        claims: list[Claimed | HoldfastError] = []
        self.directory.claim(ACME, request_id, model="demo", digest=b"", done=claims.append)
        self.answer()
        (claimed,) = claims
        assert isinstance(claimed, Claimed)
        stream = self.directory.add(claimed, detach_grace=60.0)
        self.answer()  # it listens to what readers elsewhere say
        return stream

    def stored(self) -> Batch:
        batches: list[Batch | HoldfastError] = []
        self.memory_store.read(self.stream.id, Position(-1), 1 << 20, batches.append)
        assert isinstance(batches[0], Batch)
        return batches[0]


@pytest.fixture
def script(clock: Clock, timers: Timers) -> Script:
    return Script(clock, timers)


def test_entry_is_accepted_at_once_and_visible_when_it_is_stored(script: Script) -> None:
    reading = Reading(script.stream)
    script.stream.offer([b"0"])
    script.turn()
    assert (script.stream.accepted, script.stream.log.next, reading.entries) == (1, 0, [])
    script.line.step()  # it has reached the store, which has not said so yet
    assert (list(script.stored().payloads), reading.entries) == ([b"0"], [])
    script.line.step()
    assert (script.stream.accepted, script.stream.log.next, reading.entries) == (1, 1, [b"0"])


def test_what_one_turn_brings_is_one_batch(script: Script) -> None:
    script.stream.offer([b"0"])
    script.stream.offer([b"1", b"2"])
    script.stream.seal(COMPLETED)
    script.turn()
    assert len(script.line) == 1
    script.answer()
    assert (list(script.stored().payloads), script.stored().end) == ([b"0", b"1", b"2"], COMPLETED)


def test_next_batch_is_written_when_the_one_before_it_is_stored(script: Script) -> None:
    reading = Reading(script.stream)
    for number in range(5):
        script.stream.offer([b"%d" % number])
        script.turn()
        assert len(script.line) == 1
    script.answer()
    assert reading.entries == [b"0", b"1", b"2", b"3", b"4"]
    assert reading.told == ["entries", "entries"]


def test_end_is_visible_last(script: Script) -> None:
    reading = Reading(script.stream)
    script.stream.offer([b"0"])
    script.turn()
    script.stream.offer([b"1"])
    script.stream.seal(COMPLETED)
    script.turn()
    assert (script.stream.is_sealed, script.stream.is_ended, script.stream.status) == (True, False, "running")
    while not script.stream.is_ended:
        assert reading.told == ["entries"] * (script.stream.log.next > 0)
        script.line.step()
    assert (reading.entries, reading.end) == ([b"0", b"1"], COMPLETED)
    assert reading.told[-1] == "end"


def test_end_alone_is_stored_before_it_is_seen(script: Script) -> None:
    script.stream.seal(COMPLETED)
    script.turn()
    assert not script.stream.is_ended
    script.answer()
    assert script.stream.end == script.stored().end == COMPLETED


def test_nothing_is_accepted_behind_the_end_also_while_it_is_not_visible(script: Script) -> None:
    script.stream.offer([b"0"])
    script.stream.seal(EndBody("cancelled"))
    held = script.budget.used
    script.stream.offer([b"1"])
    script.stream.seal(COMPLETED)
    assert (script.stream.accepted, script.budget.used) == (1, held)
    script.turn()
    script.answer()
    assert (list(script.stored().payloads), script.stream.end) == ([b"0"], EndBody("cancelled"))


def test_memory_counts_an_entry_once_from_its_acceptance_on(script: Script) -> None:
    stream = script.stream
    stream.offer([b"x" * 100, b"y"])
    held = 101 + 2 * ENTRY_OVERHEAD
    assert stream.held == held
    assert script.budget.used == stream.charged >= held
    script.turn()
    script.answer()
    assert stream.held == stream.log.bytes == held
    assert script.budget.used == stream.charged >= held
    stream.offer([b"x" * 10_000])
    grown = stream.held
    assert script.budget.used == stream.charged >= grown
    script.turn()
    script.answer()
    assert script.budget.used == stream.charged >= stream.held == grown


def test_pending_entries_hold_the_source_back(clock: Clock, timers: Timers) -> None:
    script = Script(clock, timers, log_bytes=200)
    reading = Reading(script.stream)
    script.stream.offer([b"x" * 160])
    assert script.stream.is_full
    script.turn()
    script.answer()
    assert reading.entries == [b"x" * 160]
    script.stream.resume_source()
    assert script.source.told == ["resume"]


def test_pending_entries_make_memory_short(clock: Clock, timers: Timers) -> None:
    script = Script(clock, timers, memory=1 << 17)
    script.stream.offer([b"x" * (1 << 17)])
    assert script.stream.account.is_short
    assert script.stream.is_full


def test_refused_batch_ends_the_writing_and_is_told_once(script: Script) -> None:
    reading = Reading(script.stream)
    script.stream.offer([b"0"])
    script.turn()
    script.answer()
    script.memory_store.take_over(script.stream.id, 2, lambda _: None)
    script.stream.offer([b"lost"])
    script.turn()
    script.stream.offer([b"lost too"])
    script.answer()
    ((stream, error),) = script.lost
    assert stream is script.stream
    assert isinstance(error, UnknownEpoch)
    script.stream.offer([b"2"])
    script.stream.seal(COMPLETED)
    script.turn()
    script.answer()
    assert len(script.lost) == 1
    assert reading.entries == list(script.stored().payloads) == [b"0"]
    assert script.stream.accepted > 1  # so that its source does not ask again
    assert script.budget.used == script.stream.log.bytes
    stream.show_end(EndBody("incomplete"))
    assert reading.end == EndBody("incomplete")
    assert script.budget.used == script.stream.log.bytes


def test_what_a_refused_batch_took_of_the_memory_others_may_have(clock: Clock, timers: Timers) -> None:
    script = Script(clock, timers, log_bytes=1 << 20, memory=1 << 17)
    other = script.add("r-2")
    source = ScriptedSource(other)
    script.memory_store.take_over(script.stream.id, 2, lambda _: None)
    other.offer([b"y" * 70_000])
    script.turn()
    script.answer()
    script.stream.offer([b"x" * (1 << 17)])
    assert other.is_full
    script.turn()
    script.answer()
    assert not script.stream.account.is_short
    assert source.told == ["resume"]


def test_forgotten_stream_leaves_no_byte_and_no_claim(script: Script, clock: Clock) -> None:
    script.stream.offer([b"0"])
    script.stream.seal(COMPLETED)
    script.turn()
    script.answer()
    clock.pass_by(StreamsConfig().retention)
    script.answer()
    assert script.budget.used == script.budget.running == 0
    found: list[object] = []
    script.memory_store.find(script.stream.id, found.append)
    assert found == [None]
