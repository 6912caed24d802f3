"""The queue starves nobody, serves everybody once, and knows where everyone stands."""

from __future__ import annotations

import heapq
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.limits.fair_queue import WEIGHTS, FairQueue, Priority, Slot

step = st.one_of(
    st.tuples(st.just("push"), st.integers(0, 3), st.integers(1, 50)),
    st.tuples(st.just("pop"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("settle"), st.integers(0, 99), st.integers(0, 100)),
    st.tuples(st.just("pause"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("resume"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("expire"), st.integers(0, 20), st.just(0)),
)


@given(st.lists(step, max_size=80), st.randoms(use_true_random=False))
def test_everybody_leaves_once_and_in_order_whatever_happens(
    steps: list[tuple[str, int, int]], rng: object
) -> None:
    queue: FairQueue[int] = FairQueue(max_waiting=20, max_waiting_per_tenant=8, timeout=30.0)
    waiting: dict[int, Slot[int]] = {}
    served: list[Slot[int]] = []
    paused: set[str] = set()
    tenant_of: dict[int, str] = {}
    pool_of: dict[int, str] = {}
    now, count = 0.0, 0
    for kind, number, amount in steps:
        if kind == "push":
            tenant, pool = f"t{number}", f"p{amount % 2}"
            if not queue.is_full and not queue.is_full_for(tenant):
                priority: Priority = list(WEIGHTS)[amount % 3]
                waiting[count] = queue.push(pool, tenant, count, now=now, cost=amount, priority=priority)
                tenant_of[count], pool_of[count] = tenant, pool
                assert 0 <= queue.position(waiting[count]) < len(queue)
                count += 1
        elif kind == "pop":
            slot = queue.pop(f"p{number}")
            able = [n for n in waiting if pool_of[n] == f"p{number}" and tenant_of[n] not in paused]
            assert (slot is not None) == bool(able)
            if slot is not None:
                # Nobody of its tenant, pool and priority came before.
                same = [n for n in able if tenant_of[n] == tenant_of[slot.item]]
                assert slot.item == min(n for n in same if waiting[n].priority == slot.priority)
                del waiting[slot.item]
                served.append(slot)
        elif kind == "cancel" and waiting:
            chosen = list(waiting)[number % len(waiting)]
            queue.cancel(waiting.pop(chosen))
        elif kind == "settle" and served:
            queue.settle(served.pop(number % len(served)), amount)
        elif kind == "pause":
            queue.pause(f"t{number}")
            if any(tenant_of[n] == f"t{number}" for n in waiting):
                paused.add(f"t{number}")
        elif kind == "resume":
            queue.resume(f"t{number}")
            paused.discard(f"t{number}")
        elif kind == "expire":
            now += number
            gone = {slot.item for slot in queue.expire(now)}
            assert gone == {n for n, slot in waiting.items() if slot.deadline <= now}
            for n in gone:
                del waiting[n]
        paused &= {tenant_of[n] for n in waiting}
        assert len(queue) == len(waiting)
        for pool in ("p0", "p1"):
            told = {slot.item: position for slot, position in queue.positions(pool)}
            assert sorted(told.values()) == list(range(len(told)))
            assert set(told) == {n for n in waiting if pool_of[n] == pool}
    for tenant in list(paused):
        queue.resume(tenant)
    for pool in ("p0", "p1"):
        while (slot := queue.pop(pool)) is not None:
            del waiting[slot.item]
    assert not waiting
    assert len(queue) == 0
    assert queue.most_waiting == 0


# -- starvation ------------------------------------------------------------------------------------------

#: Requests that run at a time; each takes its tokens in milliseconds.
_SLOTS = 4
_TOKENS = 100


def simulate(load: dict[str, list[tuple[float, int]]], *, known: float = 1.0) -> dict[str, list[float]]:
    """Serve each tenant's requests (when, tokens) on a few slots; return how long each had to wait.

    `known` is the part of a request's tokens that is known before it has run: its prompt.
    """
    queue: FairQueue[tuple[str, float, int]] = FairQueue(max_waiting=10**6, timeout=10**9)
    arrivals = sorted((when, tenant, tokens) for tenant, asked in load.items() for when, tokens in asked)
    running: list[tuple[float, int, Slot[tuple[str, float, int]]]] = []
    waits: dict[str, list[float]] = defaultdict(list)
    number = 0

    def start(now: float) -> None:
        nonlocal number
        while len(running) < _SLOTS and (slot := queue.pop("m")) is not None:
            tenant, when, tokens = slot.item
            waits[tenant].append(now - when)
            number += 1
            heapq.heappush(running, (now + tokens, number, slot))

    while arrivals or running:
        if arrivals and (not running or arrivals[0][0] <= running[0][0]):
            now, tenant, tokens = arrivals.pop(0)
            queue.push("m", tenant, (tenant, now, tokens), now=now, cost=tokens * known)
        else:
            now, _, slot = heapq.heappop(running)
            queue.settle(slot, slot.item[2])
        start(now)
    assert len(queue) == 0
    return waits


def modest(tenant: int) -> list[tuple[float, int]]:
    """Bursts of 20 every minute: alone, too, they have to wait."""
    return [(60_000.0 * burst + tenant, _TOKENS) for burst in range(5) for _ in range(20)]


@pytest.mark.parametrize("known", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [_TOKENS, 10, 400])
def test_tenant_with_hundredfold_load_does_not_double_the_wait_of_others(known: float, tokens: int) -> None:
    others = {f"t{number}": modest(number) for number in range(4)}
    # A hundred times what each of the others asks for, in tokens, from the first moment on.
    count = 100 * 100 * _TOKENS // tokens
    flood = [(number * 300_000.0 / count, tokens) for number in range(count)]
    alone = simulate(others, known=known)
    beside = simulate({**others, "noisy": flood}, known=known)
    for tenant in others:
        assert len(beside[tenant]) == 100
        assert sum(alone[tenant]) > 0
        assert sum(beside[tenant]) <= 2 * sum(alone[tenant])
        assert max(beside[tenant]) <= 2 * max(alone[tenant])
    assert len(beside["noisy"]) == count


def test_single_other_tenant_waits_at_most_twice_as_long() -> None:
    alone = simulate({"t": modest(0)})["t"]
    flood = [(number * 30.0, _TOKENS) for number in range(10_000)]
    beside = simulate({"t": modest(0), "noisy": flood})["t"]
    # Half of the slots is its share, and what runs is not interrupted.
    assert sum(beside) / len(beside) <= 2 * sum(alone) / len(alone) + _TOKENS
