from __future__ import annotations

import pytest

from holdfast.core.breaker import Breaker, BreakerLimits, BreakerState, Permit

LIMITS = BreakerLimits(failures=3, error_rate=0.5, min_requests=10, window=10.0, open_for=5.0, max_open_for=20.0)


def acquire(breaker: Breaker, now: float) -> Permit:
    permit = breaker.acquire(now)
    assert permit is not None
    return permit


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.fail(acquire(breaker, now), now)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(LIMITS)
    fail(breaker, now, 3)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_new_breaker_lets_everything_through() -> None:
    breaker = Breaker(LIMITS)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.can_pass(0.0)
    assert breaker.retry_after(0.0) == 0.0
    assert not acquire(breaker, 0.0).is_trial


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(LIMITS)
    fail(breaker, 0.0, 2)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 0.0)
    assert breaker.state is BreakerState.OPEN
    assert (breaker.opened, breaker.acquire(0.0), breaker.retry_after(1.0)) == (1, None, 4.0)


def test_success_in_between_starts_the_count_again() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(3):
        fail(breaker, 0.0, 2)
        breaker.succeed(acquire(breaker, 0.0), 0.0)
    assert breaker.state is BreakerState.CLOSED


def test_error_rate_opens_it_without_a_row_of_failures() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(4):
        breaker.succeed(acquire(breaker, 0.0), 0.0)
        fail(breaker, 0.0)
    breaker.succeed(acquire(breaker, 0.0), 0.0)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 0.0)
    assert breaker.state is BreakerState.OPEN


def test_error_rate_forgets_what_left_the_window() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(4):
        breaker.succeed(acquire(breaker, 0.0), 0.0)
        fail(breaker, 0.0)
    for _ in range(5):
        breaker.succeed(acquire(breaker, 11.0), 11.0)
        fail(breaker, 11.0, 1) if _ < 2 else None
    assert breaker.state is BreakerState.CLOSED


def test_one_trial_at_a_time_after_the_pause() -> None:
    breaker = opened()
    assert not breaker.can_pass(4.9)
    assert breaker.can_pass(5.0)
    assert breaker.retry_after(5.0) == 0.0
    trial = acquire(breaker, 5.0)
    assert trial.is_trial
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.acquire(5.0) is None
    assert breaker.retry_after(6.0) == 4.0


@pytest.mark.parametrize("ending", ["succeed", "answered"])
def test_successful_trial_closes_it(ending: str) -> None:
    breaker = opened()
    trial = acquire(breaker, 5.0)
    if ending == "succeed":
        breaker.succeed(trial, 6.0)
    else:
        breaker.answered(trial)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 6.0, 2)
    assert breaker.state is BreakerState.CLOSED


def test_trial_that_answers_and_fails_later_counts_as_an_ordinary_failure() -> None:
    breaker = opened()
    trial = acquire(breaker, 5.0)
    breaker.answered(trial)
    breaker.fail(trial, 6.0)
    fail(breaker, 6.0, 1)
    assert breaker.state is BreakerState.CLOSED
    fail(breaker, 6.0, 1)
    assert breaker.state is BreakerState.OPEN


def test_failed_trials_double_the_pause_up_to_its_bound() -> None:
    breaker = opened()
    now = 0.0
    for pause in (5.0, 10.0, 20.0, 20.0):
        assert breaker.retry_after(now) == pause
        now += pause
        fail(breaker, now)
    assert breaker.opened == 1
    now += 20.0
    breaker.succeed(acquire(breaker, now), now)
    fail(breaker, now, 3)
    assert (breaker.opened, breaker.retry_after(now)) == (2, 5.0)


def test_released_trial_lets_the_next_one_through_at_once() -> None:
    breaker = opened()
    breaker.release(acquire(breaker, 5.0))
    assert breaker.state is BreakerState.HALF_OPEN
    assert acquire(breaker, 5.0).is_trial


def test_trial_without_an_outcome_does_not_hold_up_the_next_one_for_ever() -> None:
    breaker = opened()
    lost = acquire(breaker, 5.0)
    assert not breaker.can_pass(9.9)
    second = acquire(breaker, 10.0)
    breaker.release(lost)
    breaker.answered(lost)
    assert breaker.acquire(10.0) is None
    breaker.succeed(second, 10.0)
    assert breaker.state is BreakerState.CLOSED


def test_outcomes_from_before_it_opened_change_nothing() -> None:
    breaker = Breaker(LIMITS)
    early = [acquire(breaker, 0.0) for _ in range(8)]
    fail(breaker, 0.0, 3)
    breaker.succeed(early.pop(), 1.0)
    breaker.fail(early.pop(), 1.0)
    breaker.answered(early.pop())
    assert (breaker.state, breaker.retry_after(1.0)) == (BreakerState.OPEN, 4.0)
    breaker.succeed(acquire(breaker, 5.0), 5.0)
    for permit in early:
        breaker.fail(permit, 6.0)
    breaker.release(early[0])
    assert breaker.state is BreakerState.CLOSED


def test_successful_probe_closes_it_without_waiting() -> None:
    breaker = opened()
    breaker.probe_succeeded(1.0)
    assert breaker.state is BreakerState.CLOSED


def test_failing_probes_open_it_and_hold_it_open() -> None:
    breaker = Breaker(LIMITS)
    breaker.probe_failed(0.0)
    breaker.probe_succeeded(0.0)
    for _ in range(3):
        breaker.probe_failed(0.0)
    assert breaker.state is BreakerState.OPEN
    breaker.probe_failed(4.0)
    assert breaker.retry_after(4.0) == 5.0
    acquire(breaker, 9.0)
    breaker.probe_failed(9.0)
    assert breaker.state is BreakerState.OPEN


# -- a refusal of the gateway itself --


def test_refusal_opens_it_at_once_for_its_own_time() -> None:
    breaker = Breaker(LIMITS)
    assert breaker.refuse(acquire(breaker, 0.0), 0.0, 60.0)
    assert (breaker.state, breaker.is_refused, breaker.opened) == (BreakerState.OPEN, True, 1)
    assert breaker.retry_after(10.0) == 50.0


def test_refusal_is_news_once_however_many_tries_were_under_way() -> None:
    breaker = Breaker(LIMITS)
    first, second = acquire(breaker, 0.0), acquire(breaker, 0.0)
    assert breaker.refuse(first, 0.0, 60.0)
    assert not breaker.refuse(second, 1.0, 60.0)
    assert breaker.retry_after(1.0) == 59.0


def test_refused_trial_opens_it_again_and_one_that_succeeds_closes_it() -> None:
    breaker = Breaker(LIMITS)
    breaker.refuse(acquire(breaker, 0.0), 0.0, 60.0)
    assert breaker.refuse(acquire(breaker, 60.0), 60.0, 60.0)
    assert (breaker.retry_after(60.0), breaker.opened) == (60.0, 1)
    breaker.succeed(acquire(breaker, 120.0), 120.0)
    assert (breaker.state, breaker.is_refused) == (BreakerState.CLOSED, False)


def test_health_checks_say_nothing_about_a_refusal() -> None:
    breaker = Breaker(LIMITS)
    breaker.refuse(acquire(breaker, 0.0), 0.0, 60.0)
    breaker.probe_succeeded(1.0)
    breaker.probe_failed(2.0)
    assert (breaker.state, breaker.retry_after(2.0)) == (BreakerState.OPEN, 58.0)


def test_trial_that_fails_otherwise_is_an_ordinary_failure() -> None:
    breaker = Breaker(LIMITS)
    breaker.refuse(acquire(breaker, 0.0), 0.0, 60.0)
    breaker.fail(acquire(breaker, 60.0), 60.0)
    assert not breaker.is_refused
    breaker.probe_succeeded(61.0)
    assert breaker.state is BreakerState.CLOSED
