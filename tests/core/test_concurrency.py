"""The decisions of the adaptive limit, one window at a time."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from holdfast.core.limits.gradient import Flight, GradientLimit, GradientLimits

GOOD, LATE, BAD = 0.2, 0.5, 2.0
INTERVAL = 300.0


class Endpoint:
    """A limit, and requests that are answered after a time that the test chooses."""

    def __init__(self, *, measured: bool = True, **limits: float) -> None:
        """With `measured` the baseline is GOOD, and its first measurement is over."""
        settings: dict[str, Any] = {"min": 2, "max": 100, "initial": 10, "baseline_interval": INTERVAL} | limits
        self.limit = GradientLimit(GradientLimits(**settings), rng=random.Random(1))
        self.now = 0.0
        if measured:
            self.light_window(GOOD)
            self.light_window(GOOD)

    def fill(self) -> list[Flight]:
        flights: list[Flight] = []
        while (flight := self.limit.acquire()) is not None:
            flight.begin(self.now)
            flights.append(flight)
        return flights

    def window(self, ttft: float) -> None:
        """Use the limit to the full until a window is over, with answers that begin after `ttft`."""
        before = self.limit._window
        while self.limit._window == before:
            flights = self.fill()
            self.now += ttft
            for flight in flights:
                flight.answered(self.now)
            for flight in flights:
                flight.release(self.now)

    def light_window(self, ttft: float) -> None:
        before = self.limit._window
        while self.limit._window == before:
            flight = self.limit.acquire()
            assert flight is not None
            flight.begin(self.now)
            self.now += ttft
            flight.answered(self.now)
            flight.release(self.now)


def test_first_window_is_the_baseline_and_is_checked_at_half_the_load() -> None:
    endpoint = Endpoint(measured=False)
    assert (endpoint.limit.limit, endpoint.limit.baseline, endpoint.limit.recent) == (10, None, None)
    endpoint.window(GOOD)
    assert endpoint.limit.baseline == endpoint.limit.recent == pytest.approx(GOOD)
    assert not endpoint.limit.is_measuring
    endpoint.window(GOOD)
    assert endpoint.limit.is_measuring


def test_limit_grows_by_its_root_while_it_is_used_to_the_full() -> None:
    endpoint = Endpoint()
    assert endpoint.limit.limit == 10
    endpoint.window(GOOD)
    assert endpoint.limit._limit == pytest.approx(10 + math.sqrt(10))
    for _ in range(100):
        endpoint.window(GOOD)
    assert endpoint.limit.limit == 100


def test_limit_does_not_grow_while_it_is_not_used() -> None:
    endpoint = Endpoint()
    for _ in range(20):
        before = endpoint.limit._window
        while endpoint.limit._window == before:
            flights = [flight for _ in range(9) if (flight := endpoint.limit.acquire()) is not None]
            for flight in flights:
                flight.begin(endpoint.now)
            endpoint.now += GOOD
            for flight in flights:
                flight.answered(endpoint.now)
                flight.release(endpoint.now)
    assert endpoint.limit.limit == 10


def test_lateness_lowers_the_limit_by_the_gradient_smoothed() -> None:
    endpoint = Endpoint()
    endpoint.window(LATE)
    gradient = 1.5 * GOOD / LATE
    assert endpoint.limit._limit == pytest.approx(10 * (1 - (1 - gradient) / 2))
    assert endpoint.limit.baseline == pytest.approx(GOOD)


def test_one_window_takes_no_more_than_a_quarter_however_late() -> None:
    endpoint = Endpoint()
    endpoint.window(1000.0)
    assert endpoint.limit._limit == pytest.approx(7.5)


def test_limit_never_falls_below_its_minimum() -> None:
    endpoint = Endpoint(min=8)
    ttft = LATE
    for _ in range(10):
        ttft *= 2
        endpoint.window(ttft)
        assert endpoint.limit.limit >= 8


def test_lateness_under_light_load_is_the_new_baseline() -> None:
    endpoint = Endpoint()
    endpoint.light_window(BAD)
    assert endpoint.limit.limit == 10
    assert endpoint.limit.baseline == pytest.approx(BAD)


def test_lateness_that_less_load_does_not_heal_is_the_new_baseline_and_gives_the_limit_back() -> None:
    endpoint = Endpoint(initial=40)
    limits = []
    while endpoint.limit.baseline == pytest.approx(GOOD):
        endpoint.window(BAD)
        limits.append(endpoint.limit.limit)
        assert len(limits) < 10
    assert limits == [30, 22, 16, 40]
    assert endpoint.limit.baseline == pytest.approx(BAD)


def test_lateness_that_less_load_heals_leaves_the_baseline() -> None:
    endpoint = Endpoint(initial=40)
    late = BAD
    while endpoint.limit.limit > 5:
        late *= 0.7
        endpoint.window(max(late, LATE))
        if late < LATE:
            break
    endpoint.window(GOOD)
    assert endpoint.limit.baseline == pytest.approx(GOOD)
    assert endpoint.limit.limit < 30


def test_lateness_that_halving_has_healed_in_part_is_watched_for_another_half() -> None:
    endpoint = Endpoint(initial=64, min=1)
    for ttft in (8.0, 8.0, 8.0, 4.0):  # the limit is half now, and so is the lateness
        endpoint.window(ttft)
    assert endpoint.limit.baseline == pytest.approx(GOOD)
    while endpoint.limit.limit > 13:
        endpoint.window(4.0)
        assert endpoint.limit.limit < 30
    endpoint.window(4.0)
    assert endpoint.limit.baseline == pytest.approx(4.0)


def test_answers_much_sooner_are_the_new_baseline_at_once_and_slowly_otherwise() -> None:
    endpoint = Endpoint()
    endpoint.window(0.18)
    assert endpoint.limit.baseline == pytest.approx(GOOD + 0.05 * (0.18 - GOOD))
    endpoint.window(0.1)
    assert endpoint.limit.baseline == pytest.approx(0.1)


def test_baseline_does_not_creep_up_with_what_is_tolerated() -> None:
    endpoint = Endpoint()
    for _ in range(200):
        endpoint.window(GOOD * 1.4)
    assert endpoint.limit.baseline == pytest.approx(GOOD * 1.1)


def test_instant_answers_are_no_division_by_zero() -> None:
    endpoint = Endpoint()
    endpoint.window(0.0)
    endpoint.window(0.0)
    assert endpoint.limit.baseline == 0.0
    assert endpoint.limit.limit > 10
    endpoint.window(GOOD)
    assert endpoint.limit.limit >= 2


def test_milliseconds_are_not_late() -> None:
    endpoint = Endpoint()
    endpoint.window(0.001)
    before = endpoint.limit._limit
    endpoint.window(0.009)
    assert endpoint.limit._limit > before
    endpoint.window(0.015)
    assert endpoint.limit._limit == pytest.approx((before + before**0.5) * 0.87, rel=0.02)


# -- the measurement -------------------------------------------------------------------------------------


def due(endpoint: Endpoint) -> None:
    """Let the next measurement begin."""
    endpoint.now += INTERVAL * 1.2
    endpoint.window(GOOD)
    assert endpoint.limit.is_measuring


def test_measurement_lowers_the_load_by_half_one_place_for_two() -> None:
    endpoint = Endpoint(initial=20)
    endpoint.now += INTERVAL * 1.2
    flights = endpoint.fill()
    endpoint.now += GOOD
    for flight in flights:
        flight.answered(endpoint.now)
    assert endpoint.limit.is_measuring
    assert endpoint.limit.limit == 20
    for released in range(1, 21):
        flights[released - 1].release(endpoint.now)
        assert endpoint.limit.limit == max(20 - (released + 1) // 2, 10)


def test_measurement_that_shows_no_difference_gives_the_limit_back() -> None:
    endpoint = Endpoint(initial=20)
    due(endpoint)
    before = endpoint.limit._limit
    while endpoint.limit.is_measuring:
        endpoint.window(GOOD * 0.9)
    assert endpoint.limit._limit == before
    assert endpoint.limit.baseline == pytest.approx(GOOD * 0.9)


def test_measurement_goes_on_for_as_long_as_answers_get_sooner() -> None:
    endpoint = Endpoint(measured=False, initial=64, min=2)
    ttft = {64: 8.0, 32: 4.0, 16: 2.0, 8: 1.0, 4: 1.0}
    endpoint.window(8.0)
    endpoint.window(8.0)
    assert endpoint.limit.is_measuring
    while endpoint.limit.is_measuring:
        level = min(level for level in ttft if level >= endpoint.limit.limit)
        endpoint.window(ttft[level])
    assert endpoint.limit.baseline == pytest.approx(1.0)
    assert endpoint.limit.limit == 16


def test_measurement_ends_at_the_minimum() -> None:
    endpoint = Endpoint(measured=False, initial=8, min=3)
    for ttft in (8.0, 8.0):
        endpoint.window(ttft)
    assert endpoint.limit.is_measuring
    for _ in range(40):
        if endpoint.limit.is_measuring:
            endpoint.window(4.0 if endpoint.limit.limit == 4 else 1.0)
    assert not endpoint.limit.is_measuring
    assert endpoint.limit.baseline == pytest.approx(1.0)
    assert endpoint.limit.limit == 6


def test_measurement_that_took_long_is_not_repeated_soon() -> None:
    """Where answers run for minutes the load takes that long to fall, and the next measurement is put off."""
    endpoint = Endpoint(initial=20)
    due(endpoint)
    endpoint.now += 100.0
    while endpoint.limit.is_measuring:
        endpoint.window(GOOD)
    measured_at = endpoint.now
    while not endpoint.limit.is_measuring:
        endpoint.window(GOOD)
    assert endpoint.now - measured_at >= 900.0


def test_overload_ends_a_measurement() -> None:
    endpoint = Endpoint(initial=20)
    due(endpoint)
    (flight, *others) = endpoint.fill()
    flight.release(endpoint.now, is_overload=True)
    assert not endpoint.limit.is_measuring
    assert endpoint.limit.limit < 20
    for other in others:
        other.release(endpoint.now)
    endpoint.window(GOOD)
    assert not endpoint.limit.is_measuring


# -- overload --------------------------------------------------------------------------------------------


def test_overload_lowers_the_limit_once_for_what_was_in_flight_together() -> None:
    endpoint = Endpoint(initial=20)
    flights = endpoint.fill()
    for flight in flights:
        flight.release(endpoint.now, is_overload=True)
    assert endpoint.limit.limit == 14
    assert endpoint.limit.overloads == 1
    assert endpoint.limit.in_flight == 0


def test_overload_again_lowers_it_again_down_to_the_minimum() -> None:
    endpoint = Endpoint(initial=20, min=5)
    seen = []
    for _ in range(5):
        for flight in endpoint.fill():
            flight.release(endpoint.now, is_overload=True)
        seen.append(endpoint.limit.limit)
    assert seen == [14, 9, 6, 5, 5]


def test_overload_under_light_load_counts_half_the_limit() -> None:
    endpoint = Endpoint(initial=20)
    flight = endpoint.limit.acquire()
    assert flight is not None
    flight.release(endpoint.now, is_overload=True)
    assert endpoint.limit.limit == 7


def test_limit_recovers_after_an_overload() -> None:
    endpoint = Endpoint(initial=20)
    for flight in endpoint.fill():
        flight.release(endpoint.now, is_overload=True)
    for _ in range(3):
        endpoint.window(GOOD)
    assert endpoint.limit.limit > 20


def whole_answers(endpoint: Endpoint, count: int, *, at_once: int = 1000) -> None:
    """Answers that are not streamed: they have no first token."""
    while count > 0:
        flights: list[Flight] = []
        while len(flights) < at_once and (flight := endpoint.limit.acquire()) is not None:
            flights.append(flight)
        endpoint.now += 10.0
        for flight in flights:
            flight.release(endpoint.now, is_complete=True)
        count -= len(flights)


def test_limit_recovers_after_an_overload_with_answers_that_are_not_streamed() -> None:
    endpoint = Endpoint(initial=20)
    for flight in endpoint.fill():
        flight.release(endpoint.now, is_overload=True)
    assert endpoint.limit.limit == 14
    whole_answers(endpoint, 14)
    assert endpoint.limit._limit == pytest.approx(14 + math.sqrt(14))
    assert endpoint.limit.recent == pytest.approx(GOOD)


def test_answers_that_are_not_streamed_do_not_let_an_unused_limit_grow() -> None:
    endpoint = Endpoint(initial=20)
    whole_answers(endpoint, 200, at_once=10)
    assert endpoint.limit.limit == 20


def test_answers_that_are_not_streamed_say_nothing_beside_those_that_are() -> None:
    endpoint = Endpoint()
    first, *others = endpoint.fill()
    endpoint.now += BAD
    first.answered(endpoint.now)
    for flight in (first, *others):
        flight.release(endpoint.now, is_complete=True)
    assert endpoint.limit.limit == 10


def test_measurement_without_streamed_answers_is_given_up() -> None:
    endpoint = Endpoint(initial=20)
    due(endpoint)
    assert endpoint.limit.limit < 20
    whole_answers(endpoint, 200)
    assert endpoint.limit.is_measuring
    endpoint.now += INTERVAL
    whole_answers(endpoint, 1)
    assert not endpoint.limit.is_measuring
    assert endpoint.limit.limit >= 20


# -- flights ---------------------------------------------------------------------------------------------


def test_nothing_is_granted_at_the_limit() -> None:
    endpoint = Endpoint()
    assert len(endpoint.fill()) == 10
    assert endpoint.limit.is_full
    assert endpoint.limit.acquire() is None
    assert endpoint.limit.in_flight == 10


def test_release_counts_once() -> None:
    endpoint = Endpoint()
    flights = endpoint.fill()
    for _ in range(2):
        flights[0].release(endpoint.now, is_overload=False)
    assert endpoint.limit.in_flight == 9
    flights[0].begin(endpoint.now)
    flights[0].answered(endpoint.now)
    assert endpoint.limit._samples == []


def test_answer_to_what_was_not_begun_is_no_sample_and_only_the_first_answer_is() -> None:
    endpoint = Endpoint()
    flight = endpoint.limit.acquire()
    assert flight is not None
    flight.answered(endpoint.now)
    assert endpoint.limit._samples == []
    flight.begin(endpoint.now)
    endpoint.now += GOOD
    for _ in range(2):
        flight.answered(endpoint.now)
    assert endpoint.limit._samples == [pytest.approx(GOOD)]


def test_answer_to_what_was_begun_in_an_earlier_window_is_no_sample() -> None:
    endpoint = Endpoint()
    early = endpoint.limit.acquire()
    assert early is not None
    early.begin(endpoint.now)
    endpoint.light_window(GOOD)
    early.answered(endpoint.now)
    assert endpoint.limit._samples == []


@pytest.mark.parametrize(
    "limits",
    [{"min": 0}, {"min": 30}, {"initial": 200, "max": 100}, {"tolerance": 0.9}],
)
def test_limits_that_contradict_each_other_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 1 <= min <= initial <= max and tolerance >= 1"):
        GradientLimit(GradientLimits(**limits), rng=random.Random(1))
