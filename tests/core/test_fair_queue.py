"""Who is next, who is told what, and what a cancel costs."""

from __future__ import annotations

import pytest

from holdfast.core.limits.fair_queue import FairQueue, Slot

Queue = FairQueue[str]


def make(**options: float) -> Queue:
    settings: dict[str, float] = {"max_waiting": 100, "timeout": 60.0, **options}
    return FairQueue(**settings)  # type: ignore[arg-type]


def push(
    queue: Queue, tenant: str, item: str, *, pool: str = "m", cost: float = 10.0, now: float = 0.0
) -> Slot[str]:
    return queue.push(pool, tenant, item, now=now, cost=cost)


def drain(queue: Queue, pool: str = "m") -> list[str]:
    items = []
    while (slot := queue.pop(pool)) is not None:
        assert not slot.is_waiting
        items.append(slot.item)
    return items


def test_one_tenant_is_served_in_order() -> None:
    queue = make()
    for item in "abc":
        push(queue, "t", item)
    assert drain(queue) == ["a", "b", "c"]
    assert len(queue) == 0


def test_pop_of_an_unknown_or_empty_pool_is_none() -> None:
    queue = make()
    assert queue.pop("m") is None
    push(queue, "t", "a")
    assert queue.pop("other") is None
    assert drain(queue) == ["a"]
    assert queue.pop("m") is None


def test_peek_says_whom_pop_serves_and_charges_nobody() -> None:
    queue = make()
    for tenant in ("t", "u"):
        for item in "ab":
            push(queue, tenant, tenant + item)
    seen = []
    while (slot := queue.peek("m")) is not None:
        assert queue.peek("m") is slot
        assert slot.is_waiting
        assert queue.pop("m") is slot
        seen.append(slot.item)
    assert seen == ["ta", "ua", "tb", "ub"]
    assert queue.peek("elsewhere") is None


def test_tenants_take_turns_whoever_asks_for_more() -> None:
    queue = make()
    for number in range(4):
        push(queue, "greedy", f"g{number}")
    push(queue, "modest", "m0")
    push(queue, "modest", "m1")
    assert drain(queue) == ["g0", "m0", "g1", "m1", "g2", "g3"]


def test_cheap_requests_are_served_more_often() -> None:
    queue = make()
    for number in range(2):
        push(queue, "dear", f"d{number}", cost=30)
    for number in range(4):
        push(queue, "cheap", f"c{number}", cost=10)
    assert drain(queue) == ["d0", "c0", "c1", "c2", "d1", "c3"]


def test_newcomer_is_lifted_to_the_one_who_was_served_last() -> None:
    queue = make()
    for number in range(6):
        push(queue, "old", f"o{number}", cost=100)
    assert [queue.pop("m").item for _ in range(4)] == ["o0", "o1", "o2", "o3"]  # type: ignore[union-attr]
    for number in range(6):
        push(queue, "new", f"n{number}", cost=100)
    # It does not get all that the other had before it came.
    assert drain(queue) == ["n0", "o4", "n1", "o5", "n2", "n3", "n4", "n5"]


def test_idle_time_is_not_saved_up() -> None:
    queue = make()
    push(queue, "a", "a0")
    assert drain(queue) == ["a0"]
    for number in range(50):
        queue.serve("m", "b", f"b{number}", now=0.0, cost=10)
    push(queue, "b", "b50")
    for number in range(1, 5):
        push(queue, "a", f"a{number}")
    # It goes first, once, and then takes its turn.
    assert drain(queue) == ["a1", "b50", "a2", "a3", "a4"]


def test_served_without_waiting_is_charged() -> None:
    queue = make()
    slot = queue.serve("m", "a", "a0", now=0.0, cost=100)
    assert not slot.is_waiting
    push(queue, "a", "a1")
    push(queue, "b", "b0")
    assert drain(queue) == ["b0", "a1"]


def test_tokens_beyond_the_cost_are_charged_at_the_end() -> None:
    queue = make()
    first = queue.serve("m", "a", "a0", now=0.0, cost=1)
    push(queue, "a", "a1")
    push(queue, "b", "b0", cost=50)
    push(queue, "b", "b1", cost=50)
    queue.settle(first, 500)
    assert drain(queue) == ["b0", "b1", "a1"]


def test_what_was_charged_is_not_given_back() -> None:
    queue = make()
    first = queue.serve("m", "a", "a0", now=0.0, cost=100)
    push(queue, "a", "a1")
    push(queue, "b", "b0", cost=50)
    push(queue, "b", "b1", cost=50)
    queue.settle(first, 0)
    assert drain(queue) == ["b0", "b1", "a1"]


def test_higher_priority_goes_first_within_a_tenant() -> None:
    queue = make()
    queue.push("m", "t", "low", now=0.0, cost=10, priority="low")
    queue.push("m", "t", "normal", now=0.0, cost=10)
    queue.push("m", "t", "high", now=0.0, cost=10, priority="high")
    assert drain(queue) == ["high", "normal", "low"]


def test_high_priority_gets_four_times_the_share_and_low_is_not_starved() -> None:
    queue = make()
    for number in range(40):
        queue.push("m", "h", f"h{number}", now=0.0, cost=10, priority="high")
        queue.push("m", "n", f"n{number}", now=0.0, cost=10, priority="low")
    served = drain(queue)[:34]
    assert sum(item.startswith("h") for item in served) == 32
    assert sum(item.startswith("n") for item in served) == 2


def test_full_queue_takes_nobody() -> None:
    queue = make(max_waiting=2, max_waiting_per_tenant=1)
    push(queue, "a", "a0")
    assert not queue.is_full
    assert queue.is_full_for("a")
    assert not queue.is_full_for("b")
    with pytest.raises(RuntimeError):
        push(queue, "a", "a1")
    push(queue, "b", "b0")
    assert queue.is_full
    with pytest.raises(RuntimeError):
        push(queue, "c", "c0")
    assert (queue.waiting_of("a"), queue.waiting_of("c"), queue.most_waiting) == (1, 0, 1)
    assert (queue.waiting_in("m"), queue.waiting_in("other")) == (2, 0)


def test_queue_without_bound_for_a_tenant_is_never_full_for_it() -> None:
    queue = make()
    push(queue, "a", "a0")
    assert not queue.is_full_for("a")


def test_cancelled_place_is_not_served() -> None:
    queue = make()
    places = [push(queue, "t", item) for item in "abc"]
    queue.cancel(places[1])
    queue.cancel(places[1])
    assert drain(queue) == ["a", "c"]
    queue.cancel(places[0])
    assert (len(queue), queue.waiting_of("t"), queue.most_waiting) == (0, 0, 0)


def test_tenant_whose_places_are_all_cancelled_costs_nothing_later() -> None:
    queue = make()
    queue.cancel(push(queue, "a", "a0"))
    push(queue, "b", "b0")
    assert drain(queue) == ["b0"]
    push(queue, "a", "a1")
    assert drain(queue) == ["a1"]


def test_places_expire_at_their_deadline() -> None:
    queue = make(timeout=10.0)
    assert queue.next_deadline() is None
    push(queue, "a", "a0", now=0.0)
    push(queue, "b", "b0", now=5.0)
    assert queue.next_deadline() == 10.0
    assert queue.expire(9.9) == []
    assert [slot.item for slot in queue.expire(10.0)] == ["a0"]
    assert queue.next_deadline() == 15.0
    assert drain(queue) == ["b0"]


def test_held_tenant_is_passed_over_until_it_is_resumed() -> None:
    queue = make()
    push(queue, "a", "a0", pool="m")
    push(queue, "a", "a1", pool="n")
    push(queue, "b", "b0", pool="m")
    queue.pause("a")
    queue.pause("nobody")
    assert drain(queue, "m") == ["b0"]
    assert drain(queue, "n") == []
    push(queue, "a", "a2", pool="m")
    assert drain(queue, "m") == []
    assert queue.resume("nobody") == []
    assert queue.resume("a") == ["m", "n"]
    assert queue.resume("a") == ["m", "n"]
    assert drain(queue, "m") == ["a0", "a2"]
    assert queue.resume("a") == ["n"]
    assert drain(queue, "n") == ["a1"]


def test_tenant_that_no_longer_waits_is_not_held() -> None:
    queue = make()
    slot = push(queue, "a", "a0")
    queue.pause("a")
    queue.cancel(slot)
    push(queue, "a", "a1")
    assert drain(queue) == ["a1"]


def test_position_of_one_tenant_is_its_place_in_line() -> None:
    queue = make()
    assert [queue.position(push(queue, "t", item)) for item in "abc"] == [0, 1, 2]


def test_position_counts_the_turns_of_others() -> None:
    queue = make()
    for number in range(3):
        push(queue, "a", f"a{number}")
    assert queue.position(push(queue, "b", "b0")) == 1
    assert queue.position(push(queue, "b", "b1")) == 3
    assert {slot.item: position for slot, position in queue.positions("m")} == {
        "a0": 0, "b0": 1, "a1": 2, "b1": 3, "a2": 4,
    }  # fmt: skip
    assert drain(queue) == ["a0", "b0", "a1", "b1", "a2"]
    assert list(queue.positions("m")) == []
    assert list(queue.positions("unknown")) == []


def test_position_by_priority_counts_only_who_goes_before() -> None:
    queue = make()
    queue.push("m", "t", "low", now=0.0, cost=1, priority="low")
    high = queue.push("m", "t", "high", now=0.0, cost=1, priority="high")
    assert queue.position(high) == 0
    assert [slot.item for slot, _ in queue.positions("m")] == ["high", "low"]


def test_idle_tenants_are_forgotten_once_that_makes_no_difference() -> None:
    queue = make()
    for number in range(1000):
        queue.serve("m", f"t{number}", "x", now=0.0, cost=1)
        queue.serve("m", "busy", "y", now=0.0, cost=1)
    assert len(queue._pools["m"].lanes) <= 513
