"""No order of grants, refunds and debts lets a rate grant more than its limit within any window."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.limits.rate_limit import ArrivalRates, Concurrency, Lease, RateLimit, Reservation

WINDOW = 60.0

#: Time passes in tenths of a second, in floats that are exact.
step = st.one_of(
    st.tuples(st.just("wait"), st.integers(0, 800)),
    st.tuples(st.just("take"), st.integers(0, 12)),
    st.tuples(st.just("reserve"), st.integers(0, 12)),
    st.tuples(st.just("start"), st.integers(0, 9)),
    st.tuples(st.just("settle"), st.integers(0, 9), st.integers(0, 30)),
)


@dataclass
class Grant:
    amount: int
    #: When it began to count; None while it is held.
    since: float | None
    reservation: Reservation | None = None


def counted(grants: list[Grant], now: float) -> int:
    return sum(grant.amount for grant in grants if grant.since is not None and now - WINDOW < grant.since <= now)


@given(st.integers(1, 20), st.lists(step, max_size=60))
def test_no_window_holds_more_than_the_limit(
    limit: int, steps: list[tuple[str, int] | tuple[str, int, int]]
) -> None:
    rate, now = RateLimit(limit), 0.0
    grants: list[Grant] = []
    for kind, number, *rest in steps:
        open_ones = [grant for grant in grants if grant.reservation is not None]
        if kind == "wait":
            now += number / 8
        elif kind == "take":
            expected = rate.retry_after(now, number) == 0
            if rate.take(now, number):
                grants.append(Grant(number, now))
            else:
                assert not expected
        elif kind == "reserve":
            reservation = rate.reserve(now, number)
            if reservation is not None:
                grants.append(Grant(number, None, reservation))
        elif kind == "start" and open_ones:
            grant = open_ones[number % len(open_ones)]
            if grant.since is None and grant.reservation is not None:
                grant.reservation.start(now)
                grant.since = now
        elif open_ones:
            grant = open_ones[number % len(open_ones)]
            assert grant.reservation is not None
            grant.reservation.settle(now, rest[0])
            # What goes beyond the grant was not granted; it is a debt, and makes the rate stricter.
            grant.amount = min(grant.amount, rest[0])
            grant.since = now if grant.since is None else grant.since
            grant.reservation = None
        held = sum(grant.amount for grant in grants if grant.since is None)
        assert counted(grants, now) <= limit
        assert rate.used(now) >= counted(grants, now) + held
    for grant in grants:
        if grant.reservation is not None:
            grant.reservation.release(now)
    assert rate.held == 0
    assert rate.used(now + WINDOW) == 0
    assert rate.retry_after(now + WINDOW, limit) == 0


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 200), st.integers(1, 20)), max_size=40))
def test_waiting_as_told_is_enough_and_not_a_slot_too_long(limit: int, asked: list[tuple[int, int]]) -> None:
    rate, now = RateLimit(limit), 0.0
    granted: list[tuple[float, int]] = []
    for pause, amount in asked:
        now += pause / 8
        amount = min(amount, limit)
        wait = rate.retry_after(now, amount)
        if wait:
            # Exact to the width of a slot: a second before, the limit would have been exceeded.
            at = now + wait - WINDOW / RateLimit.SLOTS
            if at > now:
                assert sum(size for when, size in granted if at - WINDOW < when) + amount > limit
        now += wait
        assert rate.take(now, amount)
        granted.append((now, amount))


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=80))
def test_no_source_exceeds_its_rate_whatever_others_do(limit: int, arrivals: list[tuple[int, int]]) -> None:
    rates, now = ArrivalRates(limit), 0.0
    granted: dict[str, list[float]] = {}
    for pause, source in arrivals:
        now += pause / 8
        if rates.take(str(source), now):
            granted.setdefault(str(source), []).append(now)
        recent = [when for when in granted.get(str(source), []) if when > now - 1.0]
        assert len(recent) <= limit


@given(st.integers(0, 5), st.lists(st.integers(-1, 9), max_size=80))
def test_no_order_of_leases_exceeds_the_limit_or_leaves_one_behind(limit: int, steps: list[int]) -> None:
    concurrency = Concurrency(limit)
    leases: list[Lease] = []
    held: set[int] = set()
    for number in steps:
        if number < 0:
            lease = concurrency.acquire()
            assert (lease is None) == (len(held) >= limit)
            if lease is not None:
                held.add(len(leases))
                leases.append(lease)
        elif leases:
            leases[number % len(leases)].release()
            held.discard(number % len(leases))
        assert concurrency.used == len(held) <= limit
    for lease in leases:
        lease.release()
    assert concurrency.used == 0
