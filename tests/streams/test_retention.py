"""`Retention`: which ended streams go, when, and what that makes room for."""

from __future__ import annotations

from holdfast.config import StreamsConfig
from holdfast.errors import HoldfastError
from holdfast.streams.retention import READERS_STAY, Retention
from holdfast.streams.stream import Stream
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import COMPLETED, Reading, World

CONFIG = StreamsConfig(retention=100.0, retention_acknowledged=10.0)


class Script:
    def __init__(self, timers: Timers, config: StreamsConfig = CONFIG, *, memory: int = 1 << 20) -> None:
        self.world = World(timers, memory=memory)
        self.forgotten: list[int] = []
        self.retention = Retention(config, timers, self.world.budget, self._forget)

    def ended(self, number: int, *, size: int = 1) -> Stream:
        stream = self.world.stream(number=number)
        stream.offer([b"x" * size])
        stream.seal(COMPLETED)
        self.retention.ended(stream)
        return stream

    def _forget(self, stream: Stream, error: HoldfastError | None) -> None:
        self.forgotten.append(int(stream.id.removeprefix("st_")))
        stream.forget(error)


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
    assert script.world.budget.used == 0


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
    clock.advance(150.0)
    assert script.forgotten == []
    stream.release(reading.cursor)
    clock.pass_by(10.0)
    assert script.forgotten == [1]


def test_reader_that_stays_is_told_when_its_time_is_over(timers: Timers, clock: Clock) -> None:
    script = Script(timers)
    reading = Reading(script.ended(1), is_slow=True)
    clock.advance(199.0)
    assert (script.forgotten, reading.told) == ([], [])
    clock.pass_by(1.0)
    assert (script.forgotten, reading.told, timers.pending) == ([1], ["log_trimmed"], 0)


def test_reader_has_a_while_also_where_nothing_is_retained(timers: Timers, clock: Clock) -> None:
    script = Script(timers, StreamsConfig(retention=0.0))
    reading = Reading(script.ended(1), is_slow=True)
    clock.advance(READERS_STAY - 1.0)
    assert reading.told == []
    clock.pass_by(1.0)
    assert reading.told == ["log_trimmed"]


def test_oldest_end_is_evicted_first_read_or_not(timers: Timers) -> None:
    script = Script(timers)
    streams = {number: script.ended(number) for number in (3, 1, 2)}
    reading = Reading(streams[3], is_slow=True)
    script.retention.acknowledged(streams[2])
    assert script.retention.evict()
    assert (script.forgotten, reading.told) == ([3], ["log_trimmed"])
    assert script.retention.evict()
    assert script.retention.evict()
    assert not script.retention.evict()
    assert (script.forgotten, timers.pending, script.world.budget.used) == ([3, 1, 2], 0, 0)


def test_reload_changes_what_ends_from_now_on(timers: Timers, clock: Clock) -> None:
    script = Script(timers)
    script.ended(1)
    script.retention.configure(StreamsConfig(retention=20.0))
    script.ended(2)
    clock.pass_by(20.0)
    assert script.forgotten == [2]


def test_ended_logs_go_when_a_running_one_needs_the_memory(timers: Timers) -> None:
    script = Script(timers)
    for number in (1, 2, 3):
        script.ended(number, size=200_000)
    running = script.world.stream(number=4)
    Reading(running)
    running.offer([b"x" * 300_000])
    assert script.forgotten == [1]
    assert not script.world.account.is_short
