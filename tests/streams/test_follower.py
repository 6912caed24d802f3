"""Two directories on one shared store are two processes: what the one owns the other follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.config import StreamsConfig
from holdfast.core.entries import START, EndBody, Owner, Position
from holdfast.core.limits.budget import Budget
from holdfast.errors import AheadOfLog, HoldfastError, Overloaded, UnknownStream
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.streams.store import Batch, Cancel, Claimed, Done, LogStore, Signal, Sink, Subscription
from holdfast.streams.stream import Stream
from holdfast.streams.writer import StoreWriter
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import ACME, COMPLETED, Reading, ScriptedSource
from tests.support.stores import LateStore


class Failing(MemoryStore):
    """A shared store that cannot be reached while `error` is set."""

    def __init__(self, timers: Timers) -> None:
        super().__init__(timers, is_shared=True)
        self.error: HoldfastError | None = None
        self.sinks: list[Sink] = []

    def read(self, stream: str, after: Position, max_bytes: int, done: Done[Batch | HoldfastError]) -> None:
        if self.error is not None:
            done(self.error)
        else:
            super().read(stream, after, max_bytes, done)

    def follow(self, stream: str, after: Position, sink: Sink) -> Subscription:
        self.sinks.append(sink)
        return super().follow(stream, after, sink)


class Process:
    """One process: a directory, and what it is asked."""

    def __init__(self, clock: Clock, timers: Timers, store: LogStore, config: StreamsConfig) -> None:
        self.store = store
        self._clock = clock
        writer = StoreWriter(store, clock, lambda stream, error: stream.show_end(EndBody("incomplete")))
        self.directory = Directory(config, timers, store, Budget(1 << 30), writer=writer)

    def create(self, request_id: str = "r-1", owner: Owner = ACME) -> Stream:
        claims: list[Claimed | HoldfastError] = []
        self.directory.claim(owner, request_id, model="demo", digest=b"", done=claims.append)
        self._clock.settle()
        (claimed,) = claims
        assert isinstance(claimed, Claimed)
        if not claimed.is_new:
            return self.directory.follow(claimed)
        return self.directory.add(claimed, detach_grace=60.0)

    def ask(self, stream_id: str, owner: Owner = ACME) -> Stream | HoldfastError:
        answers: list[list[Stream | HoldfastError]] = []
        self.directory.open(owner, [stream_id], answers.append)
        self._clock.settle()
        (answer,) = answers
        return answer[0]

    def open(self, stream_id: str) -> Stream:
        stream = self.ask(stream_id)
        assert isinstance(stream, Stream)
        return stream


class Script:
    """`owner` has the stream, `edge` is asked for it."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        store: LogStore,
        *,
        edge: StreamsConfig = StreamsConfig(),  # noqa: B008
    ) -> None:
        self.settle = clock.settle
        self.owner = Process(clock, timers, store, StreamsConfig())
        self.edge = Process(clock, timers, store, edge)
        self.stream = self.owner.create()
        self.source = ScriptedSource(self.stream)

    def offer(self, *payloads: bytes) -> None:
        self.stream.offer(list(payloads))
        self.settle()

    def seal(self) -> None:
        self.stream.seal(COMPLETED)
        self.settle()


def memory(clock: Clock, timers: Timers) -> LogStore:
    return Failing(timers)


def late(clock: Clock, timers: Timers) -> LogStore:
    return LateStore(Failing(timers), clock.call_soon)


@pytest.fixture(params=[memory, late])
def store(request: pytest.FixtureRequest, clock: Clock, timers: Timers) -> LogStore:
    make: Callable[[Clock, Timers], LogStore] = request.param
    return make(clock, timers)


@pytest.fixture
def script(clock: Clock, timers: Timers, store: LogStore) -> Script:
    return Script(clock, timers, store)


@pytest.fixture
def failing(clock: Clock, timers: Timers) -> tuple[Script, Failing]:
    """A script whose store can fail, and answers in the same turn."""
    store = Failing(timers)
    return Script(clock, timers, store), store


def test_reader_elsewhere_has_the_replay_and_the_live_tail(script: Script) -> None:
    script.offer(b"0", b"1")
    reading = Reading(script.edge.open(script.stream.id))
    assert reading.entries == [b"0", b"1"]
    script.offer(b"2")
    script.offer(b"3", b"4")
    script.seal()
    assert reading.entries == [b"0", b"1", b"2", b"3", b"4"]
    assert reading.end == COMPLETED
    assert reading.told[-2:] == ["entries", "end"]


def test_position_of_a_reader_that_comes_from_the_owner_is_valid_at_once(script: Script) -> None:
    """Its entries are in the store, so a directory that was never asked before must not say that it is ahead."""
    script.offer(b"0", b"1", b"2")
    stream = script.edge.open(script.stream.id)
    assert Reading(stream, Position(1, 1)).entries == [b"2"]
    with pytest.raises(AheadOfLog):
        Reading(stream, Position(3, 1))


def test_ended_stream_is_replayed_with_its_end(script: Script) -> None:
    script.offer(*[b"%d" % number for number in range(2000)])
    script.seal()
    stream = script.edge.open(script.stream.id)
    reading = Reading(stream)
    assert reading.entries == [b"%d" % number for number in range(2000)]
    assert (reading.end, stream.source) == (COMPLETED, None)


def test_stream_is_followed_once_for_all_its_readers(script: Script) -> None:
    script.offer(b"0")
    answers: list[list[Stream | HoldfastError]] = []
    for _ in range(2):
        script.edge.directory.open(ACME, [script.stream.id] * 2, answers.append)
    script.settle()
    assert len({id(stream) for answer in answers for stream in answer}) == 1
    script.offer(b"1")
    assert script.edge.open(script.stream.id).log.next == 2
    assert script.edge.directory.budget.used == script.stream.charged


def test_foreign_stream_of_another_process_is_unknown_and_not_followed(script: Script) -> None:
    for owner in (Owner("other"), Owner("acme", "bob")):
        assert isinstance(script.edge.ask(script.stream.id, owner), UnknownStream)
    assert isinstance(script.edge.ask("st_none"), UnknownStream)
    assert script.edge.directory.statistics().streams == 0


def test_same_request_elsewhere_gets_the_owners_stream(script: Script) -> None:
    script.offer(b"0")
    stream = script.edge.create()
    assert stream.id == script.stream.id
    reading = Reading(stream)
    script.settle()
    script.offer(b"1")
    assert reading.entries == [b"0", b"1"]
    found: list[Stream | HoldfastError | None] = []
    script.edge.directory.find_request(ACME, "r-1", found.append)
    script.settle()
    assert found == [stream]


def test_gap_is_asked_for_anew(failing: tuple[Script, Failing]) -> None:
    script, store = failing
    script.offer(b"0")
    reading = Reading(script.edge.open(script.stream.id))
    (sink,) = store.sinks
    store._streams[script.stream.id].followers.clear()  # type: ignore[union-attr] # the store loses its message
    script.offer(b"1")
    script.offer(b"2")
    sink.batch_received(Batch(script.stream.id, 1, 2, [b"2"]))
    assert reading.entries == [b"0", b"1", b"2"]
    script.seal()
    assert (reading.end, reading.told.count("end")) == (COMPLETED, 1)


def test_repeated_batch_changes_nothing(failing: tuple[Script, Failing]) -> None:
    script, store = failing
    script.offer(b"0", b"1")
    reading = Reading(script.edge.open(script.stream.id))
    store.sinks[0].batch_received(Batch(script.stream.id, 1, 0, [b"0", b"1"]))
    script.offer(b"2")
    store.sinks[0].batch_received(Batch(script.stream.id, 1, 1, [b"1", b"2"]))
    assert reading.entries == [b"0", b"1", b"2"]


def test_full_local_log_pauses_the_following_and_its_readers_resume_it(
    clock: Clock, timers: Timers, store: LogStore
) -> None:
    script = Script(clock, timers, store, edge=StreamsConfig(log_bytes=2000))
    slow = Reading(script.edge.open(script.stream.id), is_slow=True)
    sent = [b"%03d" % number + b"x" * 97 for number in range(200)]
    for payload in sent:
        script.offer(payload)
    local = slow.stream.log
    assert local.bytes < 3000
    while local.next < 200:
        before = local.next
        slow.advance()
        script.settle()
        assert local.next > before
        assert local.bytes < 3000
    script.seal()
    slow.advance()
    script.settle()
    slow.read()
    assert (slow.entries, slow.end) == (sent, COMPLETED)


def test_cancel_goes_to_the_owner_and_the_end_comes_back(script: Script) -> None:
    received: list[Signal] = []
    script.owner.store.listen(script.stream.id, received.append)
    reading = Reading(script.edge.open(script.stream.id))
    reading.stream.cancel("enough")
    script.settle()
    assert received == [Cancel("enough")]
    assert not reading.stream.is_ended
    script.stream.seal(EndBody("cancelled"))
    script.settle()
    assert reading.end == EndBody("cancelled")
    reading.stream.cancel("again")
    script.settle()
    assert len(received) == 1


def test_owner_is_told_to_cancel_by_a_reader_elsewhere(script: Script) -> None:
    source = ScriptedSource(script.stream)
    reading = Reading(script.edge.open(script.stream.id))
    reading.stream.cancel("enough")
    script.settle()
    assert source.told == ["cancel enough"]


def test_takeover_reaches_the_readers_before_the_first_entry_of_its_epoch(script: Script) -> None:
    script.offer(b"0", b"1")
    reading = Reading(script.edge.open(script.stream.id))
    store = script.edge.store
    store.take_over(script.stream.id, 2, lambda _: None)
    script.settle()
    assert reading.told[-1] == ("epoch", 2)
    store.write(Batch(script.stream.id, 2, 2, [b"2"], COMPLETED), lambda _: None)
    script.settle()
    assert (reading.entries, reading.end) == ([b"0", b"1", b"2"], COMPLETED)
    # A reader of the former owner that comes here now has all that it showed, and no more.
    assert Reading(reading.stream, Position(1, 1)).entries == [b"2"]
    with pytest.raises(AheadOfLog):
        Reading(reading.stream, Position(2, 1))


def test_process_that_is_asked_after_a_takeover_knows_where_the_former_epoch_ended(script: Script) -> None:
    script.offer(b"0", b"1")
    store = script.edge.store
    store.take_over(script.stream.id, 2, lambda _: None)
    store.write(Batch(script.stream.id, 2, 2, [b"2", b"3"]), lambda _: None)
    script.settle()
    stream = script.edge.open(script.stream.id)
    assert stream.log.epoch == 2
    assert Reading(stream, Position(1, 1)).entries == [b"2", b"3"]
    assert Reading(stream, Position(2, 2)).entries == [b"3"]
    with pytest.raises(AheadOfLog):
        Reading(stream, Position(2, 1))


def test_takeover_while_the_local_log_is_full_keeps_positions_of_the_former_epoch_valid(
    clock: Clock, timers: Timers, store: LogStore
) -> None:
    script = Script(clock, timers, store, edge=StreamsConfig(log_bytes=500))
    slow = Reading(script.edge.open(script.stream.id), is_slow=True)
    for number in range(10):
        script.offer(b"%d" % number + b"x" * 99)
    store.take_over(script.stream.id, 2, lambda _: None)
    script.settle()
    assert slow.stream.log.next < 10
    for _ in range(10):
        slow.advance()
        script.settle()
    assert slow.stream.log.next == 10
    assert slow.told.count(("epoch", 2)) == 1
    assert Reading(slow.stream, Position(9, 1)).entries == []


def test_stream_that_nobody_reads_here_is_followed_no_more(script: Script, clock: Clock) -> None:
    script.offer(b"0")
    reading = Reading(script.edge.open(script.stream.id))
    reading.stream.lose(reading.cursor)
    clock.pass_by(60.0)
    directory = script.edge.directory
    assert directory.statistics().streams == 0
    assert (directory.budget.used, directory.budget.running) == (0, 0)
    script.offer(b"1")
    assert directory.budget.used == 0
    assert not script.stream.is_ended  # whether it goes on is the owner's matter
    again = Reading(script.edge.open(script.stream.id), Position(0))
    assert again.entries == [b"1"]
    script.offer(b"2")
    assert again.entries == [b"1", b"2"]


def test_stream_that_was_asked_for_and_never_read_is_followed_no_more(script: Script, clock: Clock) -> None:
    script.edge.open(script.stream.id)
    assert script.edge.directory.statistics().streams == 1
    clock.pass_by(60.0)
    assert script.edge.directory.statistics().streams == 0


def test_followed_stream_is_forgotten_here_and_stays_the_owners(script: Script, clock: Clock) -> None:
    script.offer(b"0")
    script.seal()
    script.edge.open(script.stream.id)
    script.edge.directory.aclose()
    script.settle()
    assert script.edge.directory.budget.used == 0
    assert Reading(script.edge.open(script.stream.id)).end == COMPLETED


def test_owner_that_forgets_an_unended_stream_ends_it_for_readers_elsewhere(script: Script) -> None:
    script.offer(b"0")
    reading = Reading(script.edge.open(script.stream.id))
    script.owner.directory.aclose()
    script.settle()
    assert reading.entries == [b"0"]
    assert reading.end is not None
    assert (reading.end.status, reading.end.error and reading.end.error.code) == ("incomplete", "unknown_stream")


def test_store_that_cannot_be_reached_refuses_who_asks_and_leaves_nothing(failing: tuple[Script, Failing]) -> None:
    script, store = failing
    store.error = Overloaded()
    assert isinstance(script.edge.ask(script.stream.id), Overloaded)
    assert script.edge.directory.statistics().streams == 0
    store.error = None
    assert Reading(script.edge.open(script.stream.id)).entries == []


def test_store_that_comes_back_is_followed_again(failing: tuple[Script, Failing], clock: Clock) -> None:
    script, store = failing
    script.offer(b"0")
    reading = Reading(script.edge.open(script.stream.id))
    store.error = Overloaded(retry_after=2.0)
    (following,) = store._streams[script.stream.id].followers  # type: ignore[union-attr]
    following.close()
    store.sinks[0].following_lost(Overloaded())
    script.offer(b"1")
    clock.advance(5.0)
    assert (reading.entries, reading.stream.is_ended) == ([b"0"], False)
    store.error = None
    clock.pass_by(2.0)
    script.seal()
    assert (reading.entries, reading.end) == ([b"0", b"1"], COMPLETED)


def test_reader_at_the_start_of_a_stream_that_is_not_here_yet_waits_for_it(clock: Clock, timers: Timers) -> None:
    script = Script(clock, timers, late(clock, timers))
    script.offer(b"0")
    claims: list[Claimed | HoldfastError] = []
    script.edge.directory.claim(ACME, "r-1", model="demo", digest=b"", done=claims.append)
    script.settle()
    assert isinstance(claims[0], Claimed)
    reading = Reading(script.edge.directory.follow(claims[0]), START)
    assert reading.entries == []
    script.settle()
    assert reading.entries == [b"0"]
