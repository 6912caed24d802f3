"""`Retention` and `LogMemory`: which ended streams go, when, and what that makes room for."""

from __future__ import annotations

from holdfast.config import StreamsConfig
from holdfast.streams.memory import MIN_SHARE, LogMemory
from holdfast.streams.retention import Retention
from holdfast.streams.stream import Stream
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import COMPLETED, Reading, World

CONFIG = StreamsConfig(retention=100.0, retention_acknowledged=10.0)


class Script:
    def __init__(self, timers: Timers, config: StreamsConfig = CONFIG) -> None:
        self.world = World(timers)
        self.forgotten: list[int] = []
        self.retention = Retention(config, timers, self._forget)
        self.world.memory = self.retention.memory

    def ended(self, number: int, *, size: int = 1) -> Stream:
        stream = self.world.stream(number=number)
        stream.offer([b"x" * size])
        stream.seal(COMPLETED)
        self.retention.ended(stream)
        return stream

    def _forget(self, stream: Stream) -> None:
        self.forgotten.append(int(stream.id.removeprefix("st_")))
        self.retention.memory.free(stream.held)


def test_ended_stream_is_kept_for_the_retention(timers: Timers, clock: Clock) -> None:
    script = Script(timers)
    script.ended(1)
    clock.advance(50.0)
    script.ended(2)
    clock.advance(49.0)
    assert script.forgotten == []
    clock.pass_by(1.0)
    assert script.forgotten == [1]
    clock.pass_by(50.0)
    assert (script.forgotten, len(script.retention), timers.pending) == ([1, 2], 0, 0)
    assert script.retention.memory.used == 0


def test_acknowledged_stream_is_kept_for_less(timers: Timers, clock: Clock) -> None:
    script = Script(timers)
    first, _ = script.ended(1), script.ended(2)
    script.retention.acknowledged(first)
    clock.pass_by(10.0)
    assert script.forgotten == [1]
    script.retention.acknowledged(first)  # it is gone
    assert timers.pending == 1


def test_acknowledgement_never_lengthens_the_retention(timers: Timers, clock: Clock) -> None:
    script = Script(timers, StreamsConfig(retention=5.0, retention_acknowledged=30.0))
    stream = script.ended(1)
    script.retention.acknowledged(stream)
    clock.pass_by(5.0)
    assert script.forgotten == [1]


def test_stream_that_is_read_outlives_its_retention_until_the_reader_is_gone(timers: Timers, clock: Clock) -> None:
    script = Script(timers)
    stream = script.ended(1)
    reading = Reading(stream)
    clock.advance(200.0)
    assert script.forgotten == []
    stream.release(reading.cursor)
    clock.pass_by(10.0)
    assert script.forgotten == [1]


def test_oldest_end_without_a_reader_is_evicted_first(timers: Timers) -> None:
    script = Script(timers)
    streams = {number: script.ended(number) for number in (3, 1, 2)}
    reading = Reading(streams[3])
    script.retention.acknowledged(streams[2])
    assert script.retention.evict()
    assert script.retention.evict()
    assert script.forgotten == [1, 2]
    assert not script.retention.evict()
    streams[3].release(reading.cursor)
    assert script.retention.evict()
    assert (script.forgotten, timers.pending) == ([1, 2, 3], 0)


def test_reload_changes_what_ends_from_now_on(timers: Timers, clock: Clock) -> None:
    script = Script(timers)
    script.ended(1)
    script.retention.configure(StreamsConfig(retention=20.0, memory_bytes=1 << 22))
    script.ended(2)
    clock.pass_by(20.0)
    assert script.forgotten == [2]
    assert script.retention.memory.limit == 1 << 22


def test_ended_logs_go_when_a_running_one_needs_the_memory(timers: Timers) -> None:
    script = Script(timers, StreamsConfig(memory_bytes=1 << 20))
    for number in (1, 2, 3):
        script.ended(number, size=300_000)
    running = script.world.stream(number=4)
    Reading(running)
    running.offer([b"x" * 400_000])
    assert script.forgotten == [1]
    assert not script.retention.memory.is_short


# -- the memory alone --


class Waiting:
    def __init__(self) -> None:
        self.resumed = 0

    def resume_source(self) -> None:
        self.resumed += 1


def test_memory_is_short_from_the_limit_until_it_is_well_below() -> None:
    memory = LogMemory(1000, evict=lambda: False)
    waiting = Waiting()
    memory.waiting.add(waiting)
    memory.used += 999
    memory.check()
    assert not memory.is_short
    memory.used += 1
    memory.check()
    assert memory.is_short
    memory.free(100)
    assert (memory.is_short, waiting.resumed) == (True, 0)
    memory.free(1)
    assert (memory.is_short, waiting.resumed) == (False, 1)


def test_memory_evicts_only_as_much_as_it_needs() -> None:
    evicted = 0

    def evict() -> bool:
        nonlocal evicted
        evicted += 1
        memory.free(200)
        return True

    memory = LogMemory(1000, evict)
    memory.used = 1300
    memory.check()
    assert (evicted, memory.used, memory.is_short) == (2, 900, False)


def test_share_is_that_of_each_running_stream_and_never_too_small_to_move() -> None:
    memory = LogMemory(1 << 20, evict=lambda: False)
    assert memory.share == 1 << 20
    memory.running = 4
    assert memory.share == 1 << 18
    memory.running = 1000
    assert memory.share == MIN_SHARE
