"""Rates, reservations and leases, by a clock that the test sets."""

from __future__ import annotations

import math

from holdfast.core.limits.rate_limit import ArrivalRates, Concurrency, RateLimit


def test_limit_is_granted_at_once_and_no_more_within_its_window() -> None:
    rate = RateLimit(3)
    assert [rate.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert not rate.take(59.999)
    assert rate.take(60.0)


def test_refusal_says_when_the_amount_will_be_free() -> None:
    rate = RateLimit(10)
    assert rate.retry_after(0.0, 10) == 0.0
    assert rate.take(0.0, 4)
    assert rate.take(10.0, 6)
    assert rate.retry_after(20.0, 4) == 40.0
    assert rate.retry_after(20.0, 5) == 50.0
    assert rate.retry_after(20.0, 11) == math.inf
    assert not rate.take(59.0, 4)
    assert rate.take(60.0, 4)


def test_remaining_and_reset_tell_what_counts() -> None:
    rate = RateLimit(10)
    assert (rate.remaining(0.0), rate.reset_after(0.0)) == (10, 0.0)
    rate.take(0.0, 3)
    rate.take(20.0, 3)
    assert (rate.used(30.0), rate.remaining(30.0), rate.reset_after(30.0)) == (6, 4, 50.0)
    assert (rate.used(60.0), rate.reset_after(79.0)) == (3, 1.0)


def test_grants_of_one_second_share_a_slot_and_never_expire_early() -> None:
    rate = RateLimit(2)
    rate.take(0.0)
    rate.take(0.9)
    assert not rate.take(60.5)
    assert rate.take(60.9)


def test_memory_is_bounded_however_often_it_is_asked() -> None:
    rate = RateLimit(1_000_000)
    for tenth in range(2000):
        rate.take(tenth / 10)
    assert len(rate._slots) <= RateLimit.SLOTS + 2


def test_held_reservation_counts_until_it_is_released() -> None:
    rate = RateLimit(10)
    reservation = rate.reserve(0.0, 8)
    assert reservation is not None
    assert rate.reserve(0.0, 3) is None
    assert (rate.used(1000.0), rate.held, rate.reset_after(1000.0)) == (8, 1, 60.0)
    assert rate.retry_after(1000.0, 3) == 60.0
    reservation.release(1000.0)
    reservation.release(1000.0)
    assert (rate.used(1000.0), rate.held) == (0, 0)


def test_started_reservation_grows_old_from_its_start() -> None:
    rate = RateLimit(10)
    reservation = rate.reserve(0.0, 8)
    assert reservation is not None
    reservation.start(100.0)
    reservation.start(120.0)
    assert (rate.used(159.0), rate.held) == (8, 0)
    assert rate.used(160.0) == 0


def test_settling_for_less_gives_the_rest_back_where_it_was_counted() -> None:
    rate = RateLimit(10)
    reservation = rate.reserve(0.0, 10)
    assert reservation is not None
    reservation.start(0.0)
    reservation.settle(5.0, 4)
    reservation.settle(5.0, 0)
    assert (rate.used(5.0), rate.used(60.0)) == (4, 0)


def test_settling_after_the_window_gives_nothing_back_that_was_forgotten() -> None:
    rate = RateLimit(10)
    reservation = rate.reserve(0.0, 10)
    assert reservation is not None
    reservation.start(0.0)
    assert rate.take(60.0, 9)
    reservation.settle(61.0, 1)
    assert rate.used(61.0) == 9


def test_settling_for_more_is_a_debt_of_one_window() -> None:
    rate = RateLimit(10)
    reservation = rate.reserve(0.0, 5)
    assert reservation is not None
    reservation.start(0.0)
    reservation.settle(30.0, 25)
    assert (rate.used(30.0), rate.remaining(30.0)) == (25, 0)
    assert rate.retry_after(30.0) == 60.0
    assert not rate.take(60.0)
    assert (rate.used(60.0), rate.used(90.0)) == (20, 0)


def test_settling_for_less_than_nothing_gives_nobody_more_than_the_limit() -> None:
    rate = RateLimit(10)
    reservation = rate.reserve(0.0, 5)
    assert reservation is not None
    reservation.start(0.0)
    reservation.settle(1.0, -100)
    assert (rate.used(1.0), rate.remaining(1.0)) == (0, 10)


def test_settling_what_never_started_counts_what_was_used() -> None:
    rate = RateLimit(10)
    reservation = rate.reserve(0.0, 5)
    assert reservation is not None
    reservation.settle(1.0, 2)
    reservation.start(2.0)
    assert (rate.used(2.0), rate.held) == (2, 0)


def test_lease_is_given_back_once() -> None:
    streams = Concurrency(2)
    first, second = streams.acquire(), streams.acquire()
    assert first is not None
    assert second is not None
    assert streams.is_full
    assert streams.acquire() is None
    first.release()
    first.release()
    assert (streams.used, streams.is_full) == (1, False)
    second.release()
    assert streams.used == 0


def test_concurrency_without_limit_counts() -> None:
    streams = Concurrency()
    leases = [streams.acquire() for _ in range(100)]
    assert all(leases)
    assert (streams.used, streams.is_full) == (100, False)


def test_each_source_has_a_rate_of_its_own() -> None:
    rates = ArrivalRates(2)
    assert [rates.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert rates.take("b", 0.0)
    assert not rates.take("a", 0.99)
    assert rates.take("a", 1.0)


def test_sources_that_are_silent_for_two_windows_are_forgotten() -> None:
    rates = ArrivalRates(1)
    for number in range(100):
        rates.take(str(number), 0.0)
    assert rates.take("new", 1.5)
    assert len(rates) == 101
    rates.take("new", 2.6)
    assert len(rates) == 1
    rates.take("new", 99.0)
    assert len(rates) == 1


def test_rate_of_a_source_outlives_the_turn_of_a_generation() -> None:
    rates = ArrivalRates(1)
    rates.take("other", 0.0)
    assert rates.take("a", 0.9)
    assert not rates.take("a", 1.1)
    assert len(rates) == 2
