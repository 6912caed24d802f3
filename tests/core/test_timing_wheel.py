from __future__ import annotations

import gc
import math
import tracemalloc
import weakref

import pytest

from holdfast.core.timing_wheel import TimingWheel


class Owner:
    """Something that holds its own timer, as a connection does."""

    timer: object = None


def small_wheel() -> TimingWheel[str]:
    """Ticks of one second, so that times are ticks, and a rotation of eight."""
    return TimingWheel(resolution=1.0, slots=8)


# -- due items -----------------------------------------------------------------------------------------


def test_item_is_returned_once_at_its_deadline_and_not_before() -> None:
    wheel = small_wheel()
    wheel.schedule("a", 3.0)
    assert wheel.advance(2.999) == []
    assert len(wheel) == 1
    assert wheel.advance(3.0) == ["a"]
    assert len(wheel) == 0
    assert wheel.advance(100.0) == []


def test_deadline_between_ticks_is_due_at_the_next_tick() -> None:
    wheel = small_wheel()
    wheel.schedule("a", 2.001)
    assert wheel.next_deadline() == 3.0
    assert wheel.advance(2.9) == []
    assert wheel.advance(3.0) == ["a"]


def test_items_come_by_tick_and_within_a_tick_as_scheduled() -> None:
    wheel = small_wheel()
    for item, deadline in [("d", 5.0), ("b", 1.9), ("c", 1.1), ("a", 1.0), ("e", 7.0)]:
        wheel.schedule(item, deadline)
    assert wheel.advance(6.0) == ["a", "b", "c", "d"]
    assert wheel.advance(7.0) == ["e"]


@pytest.mark.parametrize("deadline", [-5.0, 0.0, 9.9, 10.0])
def test_deadline_in_the_past_is_due_at_the_next_tick(deadline: float) -> None:
    wheel = small_wheel()
    wheel.advance(10.5)
    wheel.schedule("a", deadline)
    assert wheel.next_deadline() == 11.0
    assert wheel.advance(10.9) == []
    assert wheel.advance(11.0) == ["a"]


def test_deadline_beyond_a_rotation_waits_for_its_round() -> None:
    wheel = small_wheel()
    wheel.schedule("third round", 19.0)
    wheel.schedule("first round", 3.0)
    wheel.schedule("second round", 11.0)
    fired = [(now, wheel.advance(float(now))) for now in range(1, 20)]
    assert [pair for pair in fired if pair[1]] == [
        (3, ["first round"]),
        (11, ["second round"]),
        (19, ["third round"]),
    ]


def test_jump_over_many_rotations_returns_all_in_order() -> None:
    wheel = small_wheel()
    for deadline in (1_000.0, 20.0, 4.0, 12.0, 999.0, 1_001.0, 12.0):
        wheel.schedule(str(deadline), deadline)
    assert wheel.advance(1_000.0) == ["4.0", "12.0", "12.0", "20.0", "999.0", "1000.0"]
    assert wheel.advance(1_001.0) == ["1001.0"]


def test_jump_of_years_looks_at_one_rotation_only() -> None:
    wheel: TimingWheel[str] = TimingWheel(resolution=1e-3, slots=16)
    wheel.schedule("a", 5.0)
    assert wheel.advance(1e9) == ["a"]  # 10^12 ticks: one by one they would not end within the time limit
    wheel.schedule("b", 1e9 + 1)
    assert wheel.advance(2e9) == ["b"]


def test_time_that_runs_backwards_returns_nothing_and_does_no_harm() -> None:
    wheel = small_wheel()
    wheel.schedule("a", 12.0)
    assert wheel.advance(10.0) == []
    assert wheel.advance(3.0) == []
    assert wheel.advance(-3.0) == []
    wheel.schedule("b", 5.0)
    assert wheel.next_deadline() == 11.0
    assert wheel.advance(10.9) == []
    assert wheel.advance(11.0) == ["b"]
    assert wheel.advance(12.0) == ["a"]


def test_one_slot_is_a_wheel_too() -> None:
    wheel: TimingWheel[str] = TimingWheel(resolution=1.0, slots=1)
    wheel.schedule("b", 2.0)
    wheel.schedule("c", 3.0)
    wheel.schedule("a", 1.0)
    assert wheel.next_deadline() == 1.0
    assert [wheel.advance(float(now)) for now in (1, 2, 3)] == [["a"], ["b"], ["c"]]


# In floating point 43 * 0.1 / 0.1 is less than 43, and the quotients of 17 * 0.1 and 9 * 0.1 do not change for
# the float just below and above.


def test_tick_is_not_missed_by_a_rounding() -> None:
    wheel: TimingWheel[str] = TimingWheel(resolution=0.1)
    wheel.schedule("a", 43 * 0.1)
    due = wheel.next_deadline()
    assert due == 43 * 0.1
    assert math.floor(due / 0.1) == 42
    assert wheel.advance(due) == ["a"]


def test_item_is_not_early_by_a_rounding_of_the_clock() -> None:
    wheel: TimingWheel[str] = TimingWheel(resolution=0.1)
    wheel.schedule("a", 17 * 0.1)
    before = math.nextafter(17 * 0.1, 0)
    assert math.floor(before / 0.1) == 17
    assert wheel.advance(before) == []
    assert wheel.advance(17 * 0.1) == ["a"]


def test_item_is_not_early_by_a_rounding_of_its_deadline() -> None:
    wheel: TimingWheel[str] = TimingWheel(resolution=0.1)
    deadline = math.nextafter(9 * 0.1, 1)
    assert math.ceil(deadline / 0.1) == 9
    wheel.schedule("a", deadline)
    assert wheel.advance(9 * 0.1) == []
    assert wheel.advance(10 * 0.1) == ["a"]


# -- next_deadline -------------------------------------------------------------------------------------


def test_next_deadline_is_that_of_the_earliest_pending_item() -> None:
    wheel = small_wheel()
    assert wheel.next_deadline() is None
    late = wheel.schedule("late", 6.0)
    assert wheel.next_deadline() == 6.0
    early = wheel.schedule("early", 2.0)
    assert wheel.next_deadline() == 2.0
    early.cancel()
    assert wheel.next_deadline() == 6.0
    late.cancel()
    assert wheel.next_deadline() is None
    wheel.schedule("new", 4.0)
    assert wheel.next_deadline() == 4.0


def test_next_deadline_skips_an_item_of_a_later_round_in_the_same_slot() -> None:
    wheel = small_wheel()
    wheel.schedule("next round", 11.0)
    first = wheel.schedule("first", 3.0)
    wheel.schedule("between", 5.0)
    assert wheel.next_deadline() == 3.0
    first.cancel()
    assert wheel.next_deadline() == 5.0


def test_next_deadline_beyond_a_rotation_is_found() -> None:
    wheel = small_wheel()
    near = wheel.schedule("near", 1.0)
    wheel.schedule("far", 500.0)
    wheel.schedule("farther", 501.0)
    near.cancel()
    assert wheel.next_deadline() == 500.0
    assert wheel.advance(500.0) == ["far"]
    assert wheel.next_deadline() == 501.0


# -- handles -------------------------------------------------------------------------------------------


def test_cancelled_item_is_never_returned() -> None:
    wheel = small_wheel()
    timer = wheel.schedule("a", 3.0)
    wheel.schedule("b", 3.0)
    timer.cancel()
    timer.cancel()
    assert len(wheel) == 1
    assert wheel.advance(20.0) == ["b"]


@pytest.mark.parametrize("has_fired", [False, True])
def test_cancelled_timer_lets_go_of_its_item_without_garbage_collection(has_fired: bool) -> None:
    wheel: TimingWheel[Owner] = TimingWheel(resolution=1.0, slots=8)
    owner = Owner()
    timer = owner.timer = wheel.schedule(owner, 3.0)
    gc.disable()
    try:
        if has_fired:
            assert wheel.advance(3.0) == [owner]
        timer.cancel()
        alive = weakref.ref(owner)
        del owner
        assert alive() is None
    finally:
        gc.enable()


def test_returned_item_is_not_kept_by_the_wheel() -> None:
    wheel: TimingWheel[Owner] = TimingWheel(resolution=1.0, slots=8)
    owner = Owner()
    wheel.schedule(owner, 3.0)
    alive = weakref.ref(owner)
    del owner
    assert alive() is not None
    wheel.advance(3.0)
    assert alive() is None


def test_cancelled_timers_give_their_memory_back() -> None:
    wheel = small_wheel()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for timer in [wheel.schedule("a", 3.0) for _ in range(5_000)]:
            timer.cancel()
        del timer
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


# -- arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [0.0, -1.0, math.inf, math.nan])
def test_resolution_out_of_range_is_refused(resolution: float) -> None:
    with pytest.raises(ValueError, match="resolution"):
        TimingWheel(resolution=resolution)


def test_wheel_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        TimingWheel(slots=0)


@pytest.mark.parametrize("time", [math.inf, -math.inf, math.nan, 1e300])
def test_time_that_is_no_number_of_ticks_is_refused_and_changes_nothing(time: float) -> None:
    wheel = small_wheel()
    wheel.schedule("a", 3.0)
    with pytest.raises(ValueError, match="finite"):
        wheel.schedule("b", time)
    with pytest.raises(ValueError, match="finite"):
        wheel.advance(time)
    assert len(wheel) == 1
    assert wheel.advance(3.0) == ["a"]
