"""New settings while requests run and wait; what a request is thought to cost; and whom an address stands for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from holdfast.admission.limiter import network_of
from holdfast.admission.queue import Admission, Ticket
from holdfast.config.limits import LimitConfig, LimitsConfig, QueueConfig, merged
from holdfast.dialects.ask import Ask
from holdfast.dialects.chat import CHAT
from holdfast.errors import HoldfastError, RateLimited
from holdfast.timers import Timers


class Waiting:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.started = 0
        self.errors: list[HoldfastError] = []
        self.positions: list[int] = []

    def admitted(self) -> None:
        self.started += 1

    def expired(self, error: HoldfastError) -> None:
        self.errors.append(error)

    def position_changed(self, position: int) -> None:
        self.positions.append(position)


@pytest.fixture
async def timers() -> AsyncIterator[Timers]:
    timers = Timers(asyncio.get_running_loop())
    yield timers
    timers.close()


def request(**body: Any) -> Ask:
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], **body}
    return CHAT.parse(msgspec.json.encode(body), stream=True)


def enter(admission: Admission, tenant: str = "t") -> tuple[Ticket, Waiting]:
    ticket, turn = admission.enter(tenant, None, request()), Waiting()
    if ticket.position is not None:
        ticket.wait(turn)
    return ticket, turn


async def test_raised_concurrency_lets_in_who_waits(timers: Timers) -> None:
    admission = Admission(LimitsConfig(), QueueConfig(), {"demo": 1}, timers)
    tickets = [enter(admission) for _ in range(4)]
    assert [turn.started for _, turn in tickets] == [0, 0, 0, 0]
    admission.configure(LimitsConfig(), QueueConfig(), {"demo": 3, "new": None})
    assert [turn.started for _, turn in tickets] == [0, 1, 1, 0]
    for ticket, _ in tickets:
        ticket.close(None, 0)
    assert set(admission.held.values()) == {0}


async def test_tenant_that_fills_up_on_one_model_is_held_on_the_other(timers: Timers) -> None:
    limits = LimitsConfig(tenant=LimitConfig(concurrent_streams=1))
    admission = Admission(limits, QueueConfig(), {"demo": 1, "other": None}, timers)
    first, _ = enter(admission, "a")
    waiting, turn = enter(admission, "b")
    other = admission.enter("b", None, request(model="other"))
    assert (waiting.position, other.position) == (0, None)
    first.close(None, 0)
    assert turn.started == 0
    other.close(None, 0)
    assert turn.started == 1


async def test_lowered_limit_of_a_tenant_holds_for_who_waits(timers: Timers) -> None:
    def limits(streams: int) -> LimitsConfig:
        return LimitsConfig(tenant=LimitConfig(concurrent_streams=streams))

    admission = Admission(limits(3), QueueConfig(), {"demo": 2}, timers)
    tickets = [enter(admission) for _ in range(4)]
    admission.configure(limits(1), QueueConfig(), {"demo": 2})
    tickets[0][0].close(None, 0)
    assert [turn.started for _, turn in tickets] == [0, 0, 0, 0]
    tickets[1][0].close(None, 0)
    assert [turn.started for _, turn in tickets] == [0, 0, 1, 0]
    admission.configure(limits(2), QueueConfig(), {"demo": 2})
    assert [turn.started for _, turn in tickets] == [0, 0, 1, 1]


async def test_new_rate_counts_what_was_used_under_the_old_one(timers: Timers) -> None:
    admission = Admission(LimitsConfig(requests_per_minute=5), QueueConfig(), {"demo": None}, timers)
    for _ in range(3):
        enter(admission)
    admission.configure(LimitsConfig(requests_per_minute=3), QueueConfig(), {"demo": None})
    with pytest.raises(RateLimited):
        enter(admission)
    admission.configure(LimitsConfig(), QueueConfig(), {"demo": None})
    enter(admission)
    assert admission.rates("t", None) == []


async def test_estimate_of_a_request(timers: Timers) -> None:
    admission = Admission(LimitsConfig(answer_tokens=500), QueueConfig(), {"demo": None}, timers)
    accounts = admission.limiter.accounts("t", None, 0.0)

    def estimate(**body: Any) -> tuple[int, int]:
        prompt, cost = admission.limiter.estimate(accounts, request(**body).bounds)
        return prompt, cost - prompt

    prompt, answer = estimate()
    assert (10 < prompt < 40, answer) == (True, 500)
    assert estimate(max_tokens=7)[1] == 7
    assert estimate(max_tokens=7, max_completion_tokens=9)[1] == 9
    assert estimate(max_tokens=9, max_completion_tokens=7)[1] == 9
    assert estimate(max_tokens=7, n=3)[1] == 21
    assert estimate(max_tokens="many", n=-1)[1] == 500
    # The provider may read the field that is no count, so a small one beside it bounds nothing.
    assert estimate(max_tokens=7, max_completion_tokens=100_000.0)[1] == 500
    assert estimate(max_tokens=900, max_completion_tokens="many")[1] == 900
    media = [
        {"type": "input_audio", "input_audio": {"data": "A" * 100_000}},
        {"type": "text", "text": "x" * 4000},
        7,
    ]
    prompt, _ = estimate(messages=[{"role": "user", "content": media}])
    assert 2000 < prompt < 2050


async def test_same_key_name_in_two_tenants_is_two_callers(timers: Timers) -> None:
    config = LimitsConfig(keys={"sub:alice": LimitConfig(requests_per_minute=1)})
    admission = Admission(config, QueueConfig(), {"demo": None}, timers)
    for tenant in ("a", "b"):
        admission.enter(tenant, "sub:alice", request())
        with pytest.raises(RateLimited):
            admission.enter(tenant, "sub:alice", request())
    admission.enter("a", "sub:bob", request())
    admission.enter("a", None, request())


async def test_tenant_whose_only_request_waits_keeps_its_limit_among_many_tenants(timers: Timers) -> None:
    limits = LimitsConfig(tenants={"t": LimitConfig(concurrent_streams=1)})
    admission = Admission(limits, QueueConfig(), {"demo": 1}, timers)
    other, _ = enter(admission, "other")
    waiting, turn = enter(admission)
    for number in range(3000):
        admission.rates(f"t-{number}", None)
    other.close(None, 0)
    assert turn.started == 1
    again, turn = enter(admission)
    admission.configure(limits, QueueConfig(), {"demo": None})
    assert turn.started == 0  # one runs
    waiting.close(None, 0)
    assert turn.started == 1
    again.close(None, 0)
    assert not any(admission.held.values())


async def test_accounts_without_use_are_forgotten(timers: Timers) -> None:
    admission = Admission(LimitsConfig(requests_per_minute=1), QueueConfig(), {"demo": None}, timers)
    enter(admission, "busy")[0]
    for number in range(5000):
        admission.rates(f"t{number}", None)
    assert len(list(admission.limiter.tenants)) <= 1024
    assert any(account.name == "busy" for account in admission.limiter.tenants)


async def test_rates_of_a_caller_are_those_with_less_left(timers: Timers) -> None:
    admission = Admission(
        LimitsConfig(requests_per_minute=2, tokens_per_minute=900), QueueConfig(), {"demo": None}, timers
    )
    assert dict(CHAT.rate_headers(admission.rates("t", None))) == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"0s",
        b"x-ratelimit-limit-tokens": b"900",
        b"x-ratelimit-remaining-tokens": b"900",
        b"x-ratelimit-reset-tokens": b"0s",
    }
    enter(admission)
    assert dict(CHAT.rate_headers(admission.rates("t", None)))[b"x-ratelimit-reset-requests"] in (
        b"1m0s",
        b"59.999s",
    )


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("/run/socket", "/run/socket"),
    ],
)
def test_address_stands_for_its_network(address: str, network: str) -> None:
    assert network_of(address) == network


def test_limit_of_a_key_overrides_the_default_and_zero_lifts_it() -> None:
    limits = LimitsConfig(
        requests_per_minute=10,
        tokens_per_minute=100,
        keys={"k": LimitConfig(requests_per_minute=0, connections=2)},
    )
    of_key = limits.of_key("k")
    assert (of_key.requests_per_minute, of_key.tokens_per_minute, of_key.connections) == (None, 100, 2)
    assert limits.of_key("other") == limits.of_key(None) == merged(None, limits)
    assert limits.of_tenant("any") == LimitConfig()
