"""`Stream` with the store of one process: readers, the end, and room."""

from __future__ import annotations

import pytest

from holdfast.core.entries import EndBody, Position, encode_end
from holdfast.core.limits.budget import Kind
from holdfast.core.log import ENTRY_OVERHEAD
from holdfast.errors import AheadOfLog, LogTrimmed, UnknownEpoch
from tests.support.clock import Clock
from tests.support.reading import COMPLETED, Reading, ScriptedSource, World


def test_entries_are_visible_in_the_turn_in_which_they_are_offered(world: World) -> None:
    stream = world.stream()
    reading = Reading(stream)
    stream.offer([b"0"])
    assert (reading.entries, stream.accepted, stream.status) == ([b"0"], 1, "running")
    stream.offer([b"1", b"2"])
    stream.seal(COMPLETED)
    assert reading.entries == [b"0", b"1", b"2"]
    assert reading.told == ["entries", "entries", "end"]
    assert (stream.status, stream.end) == ("ended", COMPLETED)


def test_reader_continues_behind_its_position(world: World) -> None:
    stream = world.stream()
    stream.offer([b"0", b"1", b"2"])
    reading = Reading(stream, Position(1, 1))
    assert reading.entries == [b"2"]


def test_position_that_cannot_be_served_whole_is_refused_and_leaves_no_reader(world: World) -> None:
    stream = world.stream(log_bytes=2 * (ENTRY_OVERHEAD + 1))
    reading = Reading(stream)
    stream.offer([b"0", b"1"])
    assert not stream.is_full  # what was read is trimmed
    for position, error in ((Position(5), AheadOfLog), (Position(0, 2), UnknownEpoch), (Position(-1), LogTrimmed)):
        with pytest.raises(error):
            Reading(stream, position)
    assert stream.reader_count == 1
    assert stream.log.cursors == {reading.cursor}


def test_first_end_counts_and_nothing_follows_it(world: World) -> None:
    stream = world.stream()
    stream.offer([b"0"])
    stream.seal(COMPLETED)
    used = world.budget.used
    stream.seal(EndBody("failed"))
    stream.offer([b"1"])
    assert world.ended == [stream]
    assert (stream.end, stream.log.next, world.budget.used) == (COMPLETED, 2, used)


def test_source_is_let_go_at_the_end(world: World) -> None:
    stream = world.stream()
    source = ScriptedSource(stream)
    stream.cancel("enough")
    assert source.told == ["cancel enough"]
    stream.seal(EndBody("cancelled"))
    stream.cancel()
    assert (source.told, stream.source) == (["cancel enough"], None)


def test_queued_stream_tells_its_readers_where_it_stands(world: World) -> None:
    stream = world.stream()
    stream.wait_at(4)
    reading = Reading(stream)
    assert stream.status == "queued"
    stream.wait_at(2)
    stream.wait_at(None)
    assert reading.told == [("position", 2)]
    assert stream.status == "running"


def test_queue_position_goes_with_the_end(world: World) -> None:
    stream = world.stream()
    stream.wait_at(4)
    stream.seal(EndBody("cancelled"))
    assert (stream.status, stream.queue_position) == ("ended", None)


def test_readers_are_told_of_a_new_epoch_before_its_first_entry(world: World) -> None:
    stream = world.stream()
    stream.offer([b"0"])
    reading = Reading(stream)
    stream.begin_epoch(2)
    stream.offer([b"1"])
    assert reading.told == [("epoch", 2), "entries"]
    assert Reading(stream, Position(0, 1)).entries == [b"1"]
    with pytest.raises(AheadOfLog):
        Reading(stream, Position(1, 1))  # the former owner never showed that


# -- room --


def test_full_log_holds_the_source_until_a_reader_advances(world: World) -> None:
    stream = world.stream(log_bytes=100)
    source = ScriptedSource(stream)
    slow = Reading(stream, is_slow=True)
    stream.offer([b"x" * 60])
    assert stream.is_full
    assert world.budget.waiting == {stream}
    stream.resume_source()
    assert source.told == []
    slow.advance()
    assert source.told == ["resume"]
    assert not world.budget.waiting
    assert stream.log.bytes == stream.charged == world.budget.used == 0


def test_slowest_reader_decides_and_its_leaving_makes_room(world: World) -> None:
    stream = world.stream(log_bytes=100)
    source = ScriptedSource(stream)
    slow = Reading(stream, is_slow=True)
    Reading(stream)
    stream.offer([b"x" * 60])
    assert stream.is_full
    stream.detach(slow.cursor)
    assert source.told == ["resume"]


def test_log_without_readers_keeps_everything(world: World) -> None:
    stream = world.stream(log_bytes=100)
    ScriptedSource(stream)
    stream.offer([b"x" * 60])
    assert stream.is_full
    reading = Reading(stream, is_slow=True)
    assert reading.cursor.position == 0


def test_ended_stream_waits_for_no_room(world: World) -> None:
    """Its source may ask in the same turn, before it has heard of the end."""
    stream = world.stream(log_bytes=100)
    ScriptedSource(stream)
    Reading(stream, is_slow=True)
    stream.offer([b"x" * 60])
    assert stream.is_full
    stream.seal(EndBody("cancelled"))
    stream.offer([b"y" * 60])
    assert not stream.is_full
    assert not world.budget.waiting


def test_short_memory_holds_every_source_at_the_least_share(world: World) -> None:
    world.budget.configure(1 << 17)
    first, second = world.stream(number=1), world.stream(number=2)
    sources = [ScriptedSource(first), ScriptedSource(second)]
    slow = Reading(first, is_slow=True)
    Reading(second)
    first.offer([b"x" * 70_000, b"y" * 70_000])
    assert world.account.is_short
    assert first.is_full
    second.offer([b"z"])
    assert not second.is_full  # so little it may always hold
    slow.advance()
    assert not world.account.is_short
    assert sources[0].told == ["resume"]
    assert world.budget.used == first.charged + second.charged


def test_short_memory_drops_what_all_readers_have(world: World) -> None:
    world.budget.configure(1 << 17)
    stream = world.stream()
    Reading(stream)
    world.account.add(Kind.BODIES, 1 << 17)
    for _ in range(10):
        stream.offer([b"x" * 5000])
    assert stream.log.first >= 9
    assert stream.charged <= 2 * 8192


def test_memory_is_charged_in_grains_and_exactly_at_the_end(world: World) -> None:
    stream = world.stream()
    charged = []
    for _ in range(100):
        stream.offer([b"x" * 100])
        charged.append(stream.charged)
        assert stream.charged == world.budget.used >= stream.held
    assert len(set(charged)) == 4
    stream.seal(COMPLETED)
    assert stream.charged == world.budget.used == stream.held


def test_charge_is_right_where_making_room_for_it_resumes_the_stream_itself(world: World) -> None:
    """What was on its way when the source was paused still comes."""
    world.budget.configure(1 << 17)
    world.budget.let_go = lambda _: world.account.free(Kind.LOGS, 60_000)
    stream = world.stream()
    source = ScriptedSource(stream)
    slow = Reading(stream, is_slow=True)
    stream.offer([b"x" * 50_000])
    world.account.add(Kind.LOGS, 60_000)
    assert stream.is_full
    world.account.may_go("an ended log", 60_000)
    slow.read()
    stream.offer([b"y" * 20_000])
    assert source.told == ["resume"]
    assert stream.charged == world.budget.used >= stream.held


# -- a log that is let go of --


def test_readers_of_a_forgotten_stream_are_told_and_may_take_what_is_left(world: World) -> None:
    stream = world.stream()
    first, second = Reading(stream, is_slow=True), Reading(stream, is_slow=True)
    stream.offer([b"0"])
    stream.seal(COMPLETED)
    stream.forget(LogTrimmed("gone"))
    assert (first.told[-1], second.told[-1]) == ("log_trimmed", "log_trimmed")
    assert (stream.reader_count, stream.log.cursors, world.budget.used) == (0, set(), 0)
    stream.release(first.cursor)
    stream.lose(second.cursor)


def test_readers_of_a_stream_that_goes_with_its_process_are_told_nothing(world: World) -> None:
    stream = world.stream()
    reading = Reading(stream)
    stream.forget()
    assert (reading.told, stream.log.cursors) == ([], set())


# -- who leaves --


def test_lost_reader_finds_the_log_whole_within_the_grace_period(world: World, clock: Clock) -> None:
    stream = world.stream(log_bytes=200, grace=10.0)
    source = ScriptedSource(stream)
    reading = Reading(stream)
    stream.offer([b"0"])
    stream.lose(reading.cursor)
    stream.offer([b"x" * 200])
    assert stream.is_full
    clock.advance(9.0)
    assert source.told == []
    back = Reading(stream, Position(0))
    assert back.entries == [b"x" * 200]
    stream.resume_source()
    assert source.told == ["resume"]
    clock.pass_by(60.0)
    assert source.told == ["resume"]


def test_stream_is_abandoned_when_the_grace_period_is_over(world: World, clock: Clock) -> None:
    stream = world.stream(grace=10.0)
    source = ScriptedSource(stream)
    stream.lose(Reading(stream).cursor)
    clock.pass_by(10.0)
    assert source.told == ["abandon"]
    assert not stream.log.cursors


def test_each_lost_reader_has_the_whole_grace_period(world: World, clock: Clock) -> None:
    stream = world.stream(grace=10.0)
    source = ScriptedSource(stream)
    first, second = Reading(stream), Reading(stream)
    stream.lose(first.cursor)
    clock.advance(9.0)
    stream.lose(second.cursor)
    clock.advance(9.0)
    assert source.told == []
    clock.pass_by(1.0)
    assert source.told == ["abandon"]


def test_without_a_grace_period_the_last_reader_ends_it(world: World) -> None:
    stream = world.stream(grace=0.0)
    source = ScriptedSource(stream)
    first, second = Reading(stream), Reading(stream)
    stream.lose(first.cursor)
    assert source.told == []
    stream.lose(second.cursor)
    assert source.told == ["abandon"]


def test_released_reader_leaves_the_grace_period_and_no_place(world: World, clock: Clock) -> None:
    stream = world.stream(grace=10.0)
    source = ScriptedSource(stream)
    reading = Reading(stream)
    stream.release(reading.cursor)
    stream.release(reading.cursor)
    assert not stream.log.cursors
    clock.pass_by(10.0)
    assert source.told == ["abandon"]


@pytest.mark.parametrize("leave", ["detach", "keep_running"])
def test_stream_that_shall_go_on_is_never_abandoned(world: World, clock: Clock, leave: str) -> None:
    stream = world.stream(grace=0.0)
    source = ScriptedSource(stream)
    reading = Reading(stream)
    if leave == "detach":
        stream.detach(reading.cursor)
    else:
        stream.keep_running()
        stream.lose(reading.cursor)
    clock.pass_by(100.0)
    assert source.told == []
    stream.lose(Reading(stream).cursor)
    clock.pass_by(100.0)
    assert source.told == []


def test_end_that_a_lost_reader_has_not_seen_is_awaited(world: World, clock: Clock) -> None:
    stream = world.stream(grace=10.0)
    stream.lose(Reading(stream).cursor)
    stream.seal(COMPLETED)
    assert stream.is_awaited(clock.time())
    assert not stream.log.cursors
    assert stream.awaited_until == clock.time() + 10.0
    assert not stream.is_awaited(clock.time() + 10.0)
    Reading(stream)
    assert not stream.is_awaited(clock.time())


@pytest.mark.parametrize("case", ["cancelled", "read", "left"])
def test_end_that_nobody_waits_for_is_not_awaited(world: World, clock: Clock, case: str) -> None:
    stream = world.stream(grace=10.0)
    reading = Reading(stream)
    if case == "left":
        stream.detach(reading.cursor)
    elif case == "cancelled":
        stream.lose(reading.cursor)
    stream.seal(EndBody("cancelled") if case == "cancelled" else COMPLETED)
    assert not stream.is_awaited(clock.time())


def test_reader_lost_with_the_end_unread_is_awaited(world: World, clock: Clock) -> None:
    stream = world.stream(grace=10.0)
    slow = Reading(stream, is_slow=True)
    stream.seal(COMPLETED)
    stream.lose(slow.cursor)
    assert stream.is_awaited(clock.time())


def test_no_timer_and_no_byte_is_left_behind_the_end(world: World, clock: Clock) -> None:
    stream = world.stream(grace=10.0)
    stream.offer([b"0"])
    stream.lose(Reading(stream).cursor)
    stream.seal(COMPLETED)
    assert world.timers.pending == 0
    assert world.budget.used == stream.held == 1 + len(encode_end(COMPLETED)) + 2 * ENTRY_OVERHEAD


def test_onlooker_does_not_take_the_place_of_a_lost_reader(world: World) -> None:
    stream = world.stream()
    ScriptedSource(stream)
    lost = Reading(stream, is_slow=True)
    stream.offer([b"0", b"1"])
    stream.lose(lost.cursor)
    Reading(stream, Position(0), is_onlooker=True)
    stream.log.trim()
    assert Reading(stream).entries == [b"0", b"1"]


def test_second_reader_takes_the_place_of_a_lost_one(world: World) -> None:
    stream = world.stream()
    ScriptedSource(stream)
    lost = Reading(stream, is_slow=True)
    stream.offer([b"0", b"1"])
    stream.lose(lost.cursor)
    Reading(stream, Position(0))
    stream.log.trim()
    with pytest.raises(LogTrimmed):
        Reading(stream)
