"""Gateways whose providers lead back to themselves: one refusal, and nothing is tried again or put aside."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from holdfast.app import Gateway
from holdfast.config import Config
from holdfast_tools.simulate.server import SimulatedProvider
from tests.support.gateway_client import Session, ask, chat
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def started(port: int, base_url: str) -> Gateway:
    gateway = Gateway(
        msgspec.convert(
            {
                "server": {"port": port},
                "providers": {"next": {"base_url": base_url}},
                "models": {"demo": {"route": ["next/demo"]}},
            },
            Config,
        )
    )
    await gateway.start()
    return gateway


@pytest.fixture(params=[1, 2, 3])
async def loop(request: pytest.FixtureRequest) -> AsyncIterator[list[Gateway]]:
    """Gateways in a ring: each is the provider of the one before it."""
    ports = free_ports(request.param)
    gateways = [
        await started(port, f"http://127.0.0.1:{ports[(index + 1) % len(ports)]}/v1")
        for index, port in enumerate(ports)
    ]
    yield gateways
    for gateway in gateways:
        await gateway.aclose()


@pytest.mark.parametrize("stream", [True, False])
async def test_request_that_comes_back_is_refused_once(loop: list[Gateway], stream: bool) -> None:
    refused = await ask(loop[0].url, "POST", "/v1/chat/completions", chat({"tokens": 1}, stream=stream))
    assert refused.error["code"] == "loop_detected"
    assert refused.status == 508
    assert refused.headers["x-should-retry"] == "false"
    for gateway in loop:
        (statistics,) = gateway.pool_statistics()
        assert (statistics.health.attempts, statistics.health.retries) == (1, 0)
        assert statistics.health.breaker == "closed"


async def test_session_whose_request_comes_back_is_told_once(loop: list[Gateway]) -> None:
    async with await Session.open(loop[0].url) as session:
        await session.create("r-1", chat({"tokens": 1}))
        _, end = await session.read()
    assert (end["status"], end["error"]["code"], end["error"].get("retryable", False)) == (
        "failed",
        "loop_detected",
        False,
    )
    assert [gateway.pool_statistics()[0].health.attempts for gateway in loop] == [1] * len(loop)


async def test_breaker_stays_closed_however_many_requests_come_back(loop: list[Gateway]) -> None:
    for _ in range(10):
        refused = await ask(loop[0].url, "POST", "/v1/chat/completions", chat({"tokens": 1}))
        assert refused.error["code"] == "loop_detected"
    assert loop[0].pool_statistics()[0].health.breaker == "closed"


async def test_gateway_behind_a_gateway_serves() -> None:
    provider = SimulatedProvider()
    await provider.start()
    chain: list[Gateway] = []
    url = provider.base_url
    try:
        for _ in range(6):
            chain.append(await started(0, url))
            url = f"{chain[-1].url}/v1"
        served = await ask(chain[4].url, "POST", "/v1/chat/completions", chat({"tokens": 3}, stream=False))
        assert served.status == 200
        too_long = await ask(chain[5].url, "POST", "/v1/chat/completions", chat({"tokens": 3}, stream=False))
        assert (too_long.status, too_long.error["code"]) == (508, "loop_detected")

        await eventually(lambda: provider.statistics().requests == 1)
    finally:
        for gateway in reversed(chain):
            await gateway.aclose()
        await provider.aclose()


async def test_caller_who_makes_hops_up_is_refused() -> None:
    provider = SimulatedProvider()
    await provider.start()
    gateway = await started(0, provider.base_url)
    try:
        body = chat({"tokens": 1}, stream=False)
        made_up = await ask(gateway.url, "POST", "/v1/chat/completions", body, holdfast_hops="evil: 1")
        assert (made_up.status, made_up.error["param"]) == (400, "holdfast-hops")
        assert provider.statistics().requests == 0
    finally:
        await gateway.aclose()
        await provider.aclose()
