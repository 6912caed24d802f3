"""`Attendance`: places that are kept, the grace period, and readers in other processes."""

from __future__ import annotations

import pytest

from holdfast.core.entries import Position
from holdfast.core.log import Cursor, Log
from holdfast.streams.attendance import Attendance
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import COMPLETED, Reading, ScriptedSource, World


class Script:
    """An attendance of a log with ten entries; `over` counts how often the period was said to be over."""

    def __init__(self, timers: Timers, grace: float = 10.0) -> None:
        self.log = Log("st_1", max_bytes=1000)
        self.log.append([b"x"] * 10)
        self.attendance = Attendance(timers, grace=grace)
        self.over = 0

    def park(self, consumed: int) -> Cursor:
        cursor = self.log.cursor(Position(consumed))
        self.attendance.park(cursor)
        self.begin()
        return cursor

    def begin(self) -> None:
        self.attendance.begin(self._over)

    def elsewhere(self, seconds: float) -> None:
        self.attendance.elsewhere(seconds, self._over)

    def _over(self) -> None:
        self.over += 1


@pytest.fixture
def script(timers: Timers) -> Script:
    return Script(timers)


def test_parked_place_holds_back_trimming_until_the_period_is_over(script: Script, clock: Clock) -> None:
    script.park(4)
    reader = script.log.cursor(Position(9))
    assert script.attendance.is_awaiting
    script.log.trim()
    assert script.log.first == 5
    clock.pass_by(10.0)
    assert (script.over, script.attendance.is_awaiting, script.log.cursors) == (1, False, {reader})


def test_returning_reader_takes_over_from_places_behind_its_own(
    script: Script, clock: Clock, timers: Timers
) -> None:
    cursors = [script.park(2), script.park(5), script.park(7)]
    script.attendance.returned(5)
    assert script.log.cursors == {cursors[2]}
    assert script.attendance.is_awaiting
    script.attendance.returned(9)
    assert not script.log.cursors
    assert not script.attendance.is_awaiting
    assert timers.pending == 0
    clock.pass_by(100.0)
    assert script.over == 0


def test_end_closes_places_and_stops_the_period(script: Script, clock: Clock, timers: Timers) -> None:
    script.park(2)
    script.attendance.end()
    script.attendance.end()
    assert (script.log.cursors, timers.pending) == (set(), 0)
    clock.pass_by(100.0)
    assert script.over == 0


def test_reader_elsewhere_lasts_as_long_as_it_said_and_no_shorter_than_the_period(
    script: Script, clock: Clock
) -> None:
    script.elsewhere(20.0)
    clock.advance(19.0)
    assert (script.attendance.is_elsewhere, script.over) == (True, 0)
    clock.pass_by(1.0)
    assert (script.attendance.is_elsewhere, script.over) == (False, 1)
    script.elsewhere(1.0)
    clock.advance(9.0)
    assert script.over == 1
    clock.pass_by(1.0)
    assert script.over == 2


def test_reader_elsewhere_that_says_so_again_lasts_on(script: Script, clock: Clock) -> None:
    for _ in range(10):
        script.elsewhere(15.0)
        clock.advance(10.0)
        assert script.attendance.is_elsewhere
    clock.pass_by(5.0)
    assert not script.attendance.is_elsewhere
    assert script.over > 0


def test_reader_elsewhere_does_not_lengthen_the_hold_of_a_place_here(script: Script, clock: Clock) -> None:
    """Otherwise a reader that is lost for good would stop the provider for as long as somebody reads elsewhere."""
    script.park(4)
    for _ in range(3):
        script.elsewhere(60.0)
        clock.advance(5.0)
    assert not script.attendance.is_awaiting
    assert not script.log.cursors


# -- with a stream --


def test_stream_that_is_read_elsewhere_is_not_abandoned_here(world: World, clock: Clock) -> None:
    stream = world.stream(grace=0.0)
    source = ScriptedSource(stream)
    reading = Reading(stream)
    stream.attended(30.0)
    stream.lose(reading.cursor)
    clock.advance(29.0)
    assert source.told == []
    clock.pass_by(1.0)
    assert source.told == ["abandon"]


def test_local_reader_that_leaves_does_not_shorten_what_was_said_elsewhere(world: World, clock: Clock) -> None:
    stream = world.stream(grace=5.0)
    source = ScriptedSource(stream)
    stream.attended(30.0)
    reading = Reading(stream)
    clock.advance(1.0)
    stream.lose(reading.cursor)
    clock.advance(28.0)
    assert source.told == []
    clock.pass_by(1.0)
    assert source.told == ["abandon"]


def test_reader_elsewhere_is_of_no_matter_to_an_ended_stream(world: World, timers: Timers) -> None:
    stream = world.stream()
    stream.seal(COMPLETED)
    stream.attended(30.0)
    assert timers.pending == 0
