from __future__ import annotations

from collections import Counter

import pytest

from holdfast_tools.simulate.control import RESET_WITHIN, FaultPlan
from holdfast_tools.simulate.faults import (
    CloseConnection,
    ConnectionFault,
    HangHandshake,
    RandomFailures,
    RequestFault,
    ResetConnection,
    Silence,
    Status,
)
from holdfast_tools.simulate.statistics import MAX_KEYS, Counters

STORM = RandomFailures(status={429: 0.3, 503: 0.3}, hang_handshake=0.01, reset=0.01, seed=1)


def test_armed_faults_are_given_out_in_order_and_once() -> None:
    plan = FaultPlan()
    plan.arm_next(CloseConnection(), 2)
    plan.arm_next(Silence(), 1)
    assert [plan.for_connection() for _ in range(4)] == [[CloseConnection()], [CloseConnection()], [Silence()], []]


def test_standing_faults_are_given_to_all_until_disarmed() -> None:
    plan = FaultPlan()
    plan.arm_every(Silence())
    plan.arm_next(CloseConnection(), 1)
    assert [plan.for_connection() for _ in range(2)] == [[Silence(), CloseConnection()], [Silence()]]
    plan.disarm()
    assert plan.for_connection() == []


def drawn(plan: FaultPlan, *, interleave: bool) -> tuple[list[list[ConnectionFault]], list[RequestFault | None]]:
    connections: list[list[ConnectionFault]] = []
    requests: list[RequestFault | None] = []
    for _ in range(2000):
        connections.append(plan.for_connection())
        if interleave:
            requests.append(plan.for_request())
    if not interleave:
        requests = [plan.for_request() for _ in range(2000)]
    return connections, requests


def test_storm_depends_on_its_seed_alone() -> None:
    plan = FaultPlan()
    plan.storm(STORM)
    first = drawn(plan, interleave=True)
    plan.storm(STORM)
    assert drawn(plan, interleave=False) == first
    plan.storm(RandomFailures(status=STORM.status, seed=2))
    assert drawn(plan, interleave=True) != first


def test_storm_keeps_its_probabilities() -> None:
    plan = FaultPlan()
    plan.storm(STORM)
    connections, requests = drawn(plan, interleave=True)
    statuses = Counter(fault.status if isinstance(fault, Status) else 200 for fault in requests)
    assert {status: pytest.approx(count / 2000, abs=0.05) for status, count in statuses.items()} == {
        429: 0.3,
        503: 0.3,
        200: 0.4,
    }
    kinds = Counter(type(fault) for faults in connections for fault in faults)
    assert 5 < kinds[HangHandshake] < 40
    assert 5 < kinds[ResetConnection] < 40
    assert all(fault.after_bytes < RESET_WITHIN for faults in connections for fault in faults)


def test_calm_plan_fails_nothing() -> None:
    plan = FaultPlan()
    plan.storm(STORM)
    plan.storm(None)
    connections, requests = drawn(plan, interleave=True)
    assert not any(connections)
    assert not any(requests)


def test_counters_reset_keeps_what_is_running() -> None:
    counters = Counters()
    counters.request_began("http1")
    counters.request_began("http2")
    counters.request_ended("failed")
    counters.open_connections = 3
    counters.reset()
    snapshot = counters.snapshot()
    assert (snapshot.requests, snapshot.streaming, snapshot.failed, snapshot.connections) == (1, 1, 0, 3)
    counters.request_ended("completed", tokens=5)
    snapshot = counters.snapshot()
    assert (snapshot.completed, snapshot.streaming, snapshot.tokens) == (1, 0, 5)


def test_number_of_keys_is_bounded() -> None:
    counters = Counters()
    for number in range(MAX_KEYS + 10):
        counters.request_has_key(str(number))
    assert counters.request_has_key("one too many") == 1
    assert counters.request_has_key("0") == 2
    assert len(counters.requests_by_key) == MAX_KEYS
