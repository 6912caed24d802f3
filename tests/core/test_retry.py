from __future__ import annotations

import random
from collections import Counter

import pytest

from holdfast.core.retry import (
    RetryBudget,
    RetryLimits,
    RoutePlan,
    Step,
    order_route,
    parse_milliseconds,
    parse_retry_after,
)


class Ceiling:
    """Draws the upper bound each time, so that a delay is what it can be at most."""

    def uniform(self, a: float, b: float, /) -> float:
        return b


LIMITS = RetryLimits(max_attempts=4, initial=1.0, maximum=4.0, max_retry_after=30.0)


def plan_of(*order: int, limits: RetryLimits = LIMITS, deadline: float = 1000.0) -> RoutePlan:
    return RoutePlan(order, limits, Ceiling(), deadline=deadline)


def always(index: int, is_repetition: bool) -> bool:
    return True


def take(plan: RoutePlan, now: float = 0.0, can_try: object = always) -> Step:
    step = plan.next(now, can_try)  # type: ignore[arg-type]
    assert step is not None
    plan.begin(step)
    return step


# -- the plan ------------------------------------------------------------------------------------------


def test_untried_targets_come_first_in_the_order_of_the_route() -> None:
    plan = plan_of(2, 0, 1)
    steps = []
    for _ in range(3):
        steps.append(take(plan))
        plan.failed(steps[-1].index, 0.0)
    assert steps == [Step(2, 0.0, False), Step(0, 0.0, False), Step(1, 0.0, False)]


def test_repetition_waits_and_each_one_longer() -> None:
    plan = plan_of(0)
    assert take(plan) == Step(0, 0.0, False)
    for delay in (1.0, 2.0, 4.0):
        plan.failed(0, 10.0)
        assert take(plan, 10.0) == Step(0, delay, True)


def test_request_waits_no_longer_than_the_bound_in_sum() -> None:
    plan = plan_of(0, limits=RetryLimits(max_attempts=9, initial=4.0, maximum=4.0, max_total_wait=10.0))
    delays = []
    take(plan)
    plan.failed(0, 0.0)
    while (step := plan.next(0.0, always)) is not None:
        delays.append(step.delay)
        plan.waited(step.delay)
        plan.begin(step)
        plan.failed(0, 0.0)
    assert delays == [4.0, 4.0]


def test_delay_beyond_the_bound_is_not_begun_and_another_target_is_tried() -> None:
    plan = plan_of(0, 1, limits=RetryLimits(max_attempts=9, initial=1.0, maximum=1.0, max_total_wait=10.0))
    take(plan)
    plan.failed(0, 0.0, retry_after=20.0)
    assert take(plan) == Step(1, 0.0, False)
    plan.failed(1, 0.0)
    assert take(plan) == Step(1, 1.0, True)
    plan.exclude(1)
    assert plan.next(0.0, always) is None
    # Time that passes by itself is no wait.
    assert plan.next(12.0, always) == Step(0, 9.0, True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1500", 1.5),
        (b"0", 0.0),
        (b"2.5", 0.0025),
        (b"9999999999", 86_400.0),
        (b"", None),
        (b"-1", None),
        (b"soon", None),
    ],
)
def test_milliseconds_of_a_provider(value: bytes, seconds: float | None) -> None:
    assert parse_milliseconds(value) == seconds


def test_time_that_has_passed_is_not_waited_again() -> None:
    plan = plan_of(0)
    take(plan)
    plan.failed(0, 0.0)
    assert take(plan, 0.75) == Step(0, 0.25, True)


def test_repetition_goes_where_it_may_soonest() -> None:
    plan = plan_of(0, 1)
    take(plan)
    plan.failed(0, 0.0, retry_after=20.0)
    take(plan)
    plan.failed(1, 0.0)
    assert take(plan) == Step(1, 1.0, True)


def test_attempts_have_a_bound_over_the_whole_route() -> None:
    plan = plan_of(0, 1)
    for _ in range(4):
        plan.failed(take(plan).index, 0.0)
    assert plan.attempts == 4
    assert plan.next(0.0, always) is None


def test_retry_after_is_a_floor_under_the_delay() -> None:
    plan = plan_of(0)
    take(plan)
    plan.failed(0, 0.0, retry_after=7.0)
    assert take(plan) == Step(0, 8.0, True)


def test_target_that_wants_too_long_a_pause_is_out() -> None:
    plan = plan_of(0, 1)
    take(plan)
    plan.failed(0, 0.0, retry_after=30.1)
    assert take(plan).index == 1
    plan.failed(1, 0.0, retry_after=3600.0)
    assert plan.next(0.0, always) is None


def test_target_that_is_excluded_is_not_tried_again() -> None:
    plan = plan_of(0, 1)
    plan.exclude(take(plan).index)
    assert take(plan).index == 1
    plan.exclude(1)
    assert plan.next(0.0, always) is None


def test_target_that_cannot_be_tried_is_passed_over() -> None:
    plan = plan_of(0, 1)
    assert take(plan, can_try=lambda index, _: index == 1).index == 1
    assert plan_of(0, 1).next(0.0, lambda *_: False) is None


def test_repetition_without_budget_is_not_made() -> None:
    plan = plan_of(0)
    take(plan)
    plan.failed(0, 0.0)
    assert plan.next(0.0, lambda _, is_repetition: not is_repetition) is None


def test_end_of_a_kept_connection_is_excused_once_in_a_request() -> None:
    plan = plan_of(0)
    plan.stale_connection(take(plan).index, 0.0)
    assert plan.attempts == 0
    assert take(plan) == Step(0, 0.0, False)
    plan.stale_connection(0, 0.0)
    assert plan.attempts == 1
    assert take(plan) == Step(0, 1.0, True)


def test_nothing_begins_after_the_deadline() -> None:
    plan = plan_of(0, 1, deadline=5.0)
    take(plan)
    plan.failed(0, 4.5)
    assert plan.next(5.0, always) is None
    assert take(plan, 4.5).index == 1
    plan.failed(1, 4.5)
    assert plan.next(4.5, always) is None


def test_unprocessed_request_is_sent_again_at_once_and_does_not_count() -> None:
    plan = plan_of(0)
    for _ in range(4):
        assert take(plan) == Step(0, 0.0, False)
        plan.unprocessed(0, 0.0)
        assert plan.attempts == 0


def test_peer_that_refuses_for_ever_is_not_asked_for_ever() -> None:
    plan = plan_of(0)
    steps = 0
    while (step := plan.next(0.0, always)) is not None:
        plan.begin(step)
        plan.unprocessed(step.index, 0.0)
        steps += 1
    assert steps == 8


# -- the budget ----------------------------------------------------------------------------------------


def test_budget_allows_its_floor_without_requests() -> None:
    budget = RetryBudget(ratio=0.1, floor=3, window=10.0)
    assert [budget.withdraw(0.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.has_room(0.0)


def test_budget_allows_a_tenth_of_the_requests_beyond_its_floor() -> None:
    budget = RetryBudget(ratio=0.1, floor=3, window=10.0)
    for _ in range(100):
        budget.count_request(0.0)
    assert sum(budget.withdraw(0.0) for _ in range(100)) == 13


def test_budget_is_restored_when_its_window_has_passed() -> None:
    budget = RetryBudget(ratio=0.0, floor=1, window=10.0)
    assert budget.withdraw(0.0)
    assert not budget.withdraw(9.0)
    assert budget.withdraw(10.0)


# -- the order -----------------------------------------------------------------------------------------


def test_route_without_weights_keeps_its_order() -> None:
    assert order_route([None, None, None], random.Random(1)) == [0, 1, 2]


def test_neighbours_share_the_first_place_in_proportion_to_their_weights() -> None:
    rng = random.Random(1)
    firsts = Counter(order_route([3.0, 1.0, None], rng)[0] for _ in range(4000))
    assert firsts[2] == 0
    assert firsts[0] / 4000 == pytest.approx(0.75, abs=0.03)


def test_weights_of_different_groups_do_not_mix() -> None:
    rng = random.Random(1)
    orders = {tuple(order_route([1.0, 1.0, None, 5.0, 5.0], rng)) for _ in range(200)}
    assert orders == {(a, 1 - a, 2, b, 7 - b) for a in (0, 1) for b in (3, 4)}


# -- Retry-After ---------------------------------------------------------------------------------------

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"120", 120.0),
        (b"0.25", 0.25),
        (b"Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        (b"Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
        (b"Sun Nov  6 08:50:37 1994", 60.0),
        (b"Sun, 06 Nov 1994 10:50:37 +0200", 60.0),
        (b"Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        (b"9999999999", 86_400.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(value: bytes, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"-1",
        b"soon",
        b"1e9",
        b"inf",
        b"nan",
        b"99999999999",
        b"Sun, 99 Nov 99999999999 08:50:37 GMT",
        b"\xff\xfe",
        b"Sun, 06 Nov 1994 08:50:37 GMT" + b" " * 60,
    ],
)
def test_retry_after_that_is_neither_seconds_nor_a_date_is_none(value: bytes) -> None:
    assert parse_retry_after(value, NOW) is None
