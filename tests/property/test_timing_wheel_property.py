"""The timing wheel against a sorted list, and its promises about time for any floats."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from holdfast.core.timing_wheel import Timer, TimingWheel


class WheelMachine(RuleBasedStateMachine):
    """Times are multiples of 1/4 tick of 1/8 s, exact in floating point, so that the model is exact too.

    The model is a list of (tick, turn, item): the turn is the order of scheduling within a tick.
    """

    timers = Bundle("timers")
    RESOLUTION = 0.125

    def __init__(self) -> None:
        super().__init__()
        self.quarter = 0  # the clock, in quarter ticks
        self.seen = 0  # the tick of the last `advance`
        self.turn = 0
        self.items = 0
        self.pending: list[tuple[int, int, int]] = []

    @initialize(slots=st.sampled_from([1, 2, 3, 8, 64]))
    def make(self, slots: int) -> None:
        self.wheel: TimingWheel[int] = TimingWheel(resolution=self.RESOLUTION, slots=slots)

    def expect(self, item: int, quarter: int) -> float:
        """Put the item into the model and return the deadline."""
        self.turn += 1
        tick = max(math.ceil(quarter / 4), self.seen + 1)
        if (tick, item) not in [(entry[0], entry[2]) for entry in self.pending]:
            self.forget(item)
            self.pending.append((tick, self.turn, item))
            self.pending.sort()
        return quarter * self.RESOLUTION / 4

    def forget(self, item: int) -> None:
        self.pending = [entry for entry in self.pending if entry[2] != item]

    @rule(target=timers, after=st.integers(-20, 100) | st.integers(-20, 2000))
    def schedule(self, after: int) -> tuple[Timer[int], int]:
        self.items += 1
        return self.wheel.schedule(self.items, self.expect(self.items, self.quarter + after)), self.items

    @rule(handle=consumes(timers))
    def cancel(self, handle: tuple[Timer[int], int]) -> None:
        timer, item = handle
        timer.cancel()
        self.forget(item)

    @rule(by=st.integers(0, 12) | st.integers(0, 3000))
    def advance(self, by: int) -> None:
        self.quarter += by
        self.seen = self.quarter // 4
        due = [item for tick, _, item in self.pending if tick <= self.seen]
        self.pending = self.pending[len(due) :]
        assert self.wheel.advance(self.quarter * self.RESOLUTION / 4) == due

    @rule()
    def advance_to_the_next_deadline(self) -> None:
        if self.pending:
            self.advance(by=self.pending[0][0] * 4 - self.quarter)

    @rule()
    def ask_for_the_next_deadline(self) -> None:
        # A rule and not an invariant: asking moves the search on, and both ways must be right.
        expected = self.pending[0][0] * self.RESOLUTION if self.pending else None
        assert self.wheel.next_deadline() == expected

    @invariant()
    def count_is_that_of_the_model(self) -> None:
        if hasattr(self, "wheel"):
            assert len(self.wheel) == len(self.pending)


TestWheel = WheelMachine.TestCase
TestWheel.settings = settings(max_examples=200, stateful_step_count=50)

times = st.floats(0, 1e6)


@given(
    st.floats(1e-3, 10.0),
    st.integers(1, 40),
    st.lists(times, max_size=20),
    st.lists(times, max_size=20).map(sorted),
)
def test_no_item_is_early_and_none_later_than_a_tick(
    resolution: float, slots: int, deadlines: list[float], clock: list[float]
) -> None:
    wheel: TimingWheel[float] = TimingWheel(resolution=resolution, slots=slots)
    for deadline in deadlines:
        wheel.schedule(deadline, deadline)
    waiting = sorted(deadlines)
    for now in clock:
        for deadline in wheel.advance(now):
            assert deadline <= now
            waiting.remove(deadline)
        # What still waits was not due a tick ago. An ulp is allowed for the sum of this very line.
        assert all(deadline + resolution >= math.nextafter(now, 0) for deadline in waiting)
    assert len(wheel) == len(waiting)


@given(st.floats(1e-3, 10.0), st.integers(1, 40), st.lists(times, max_size=20))
def test_waking_at_each_next_deadline_returns_every_item_in_time(
    resolution: float, slots: int, deadlines: list[float]
) -> None:
    wheel: TimingWheel[float] = TimingWheel(resolution=resolution, slots=slots)
    for deadline in deadlines:
        wheel.schedule(deadline, deadline)
    returned: list[float] = []
    while (now := wheel.next_deadline()) is not None:
        due = wheel.advance(now)
        assert due
        assert all(deadline <= now for deadline in due)
        returned += due
    assert sorted(returned) == sorted(deadlines)
