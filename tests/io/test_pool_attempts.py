"""Attempts over real sockets: retries, failover, weights, the budget, breakers and health checks."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from holdfast_tools.simulate import SimulatedProvider
from holdfast_tools.simulate.faults import ResetConnection
from tests.support.pool_world import PROTOCOLS, Running, World
from tests.support.waiting import eventually

COMPLETED = ("completed", None)
#: Repetitions come soon.
SOON = {"retry": {"initial": 0.01, "maximum": 0.02}}
#: A breaker that does not open during a test, and one that opens soon and comes back soon.
STURDY: dict[str, Any] = {"breaker": {"failures": 1000, "min_requests": 1000}}
NERVOUS: dict[str, Any] = {"breaker": {"failures": 3, "open_for": 0.3, "max_open_for": 0.3}}


async def errors(stream: Running) -> list[str | None]:
    return [attempt.error for attempt in (await stream.end()).attempts]


async def providers_of(stream: Running) -> list[str]:
    return [attempt.provider for attempt in (await stream.end()).attempts]


# -- retries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "status", "status": 503}, "upstream_status"),
        ({"kind": "status", "status": 429}, "upstream_status"),
        ({"kind": "status", "status": 408}, "upstream_status"),
        ({"kind": "reset", "before_head": True}, "upstream_reset"),
    ],
)
async def test_request_that_failed_before_its_first_byte_is_tried_again(
    protocol: str, fault: dict[str, Any], error: str
) -> None:
    async with await World.start(protocol, model=SOON) as world:
        stream = world.stream(fault={**fault, "times": 2})
        assert await stream.outcome() == COMPLETED
        assert await errors(stream) == [error, error, None]
        assert world.provider.statistics().requests == 3
        assert world.health.retries == 2


async def test_request_that_delivered_something_is_never_tried_again() -> None:
    async with await World.start("h2c", model=SOON) as world:
        stream = world.stream(tokens=50, fault={"kind": "reset", "after_tokens": 10, "times": 1})
        assert await stream.outcome() == ("incomplete", "upstream_reset")
        assert world.provider.statistics().requests == 1
        assert stream.text != ""


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_refused_request_is_not_tried_again(status: int) -> None:
    async with await World.start("h2c", model=SOON) as world:
        stream = world.stream(fault={"kind": "status", "status": status, "times": 1})
        assert await stream.outcome() == ("failed", "upstream_status")
        assert world.provider.statistics().requests == 1


async def test_request_that_keeps_failing_ends_with_the_last_error_and_all_attempts() -> None:
    async with await World.start("http1", model=SOON, settings=STURDY) as world:
        stream = world.stream(fault={"kind": "status", "status": 500, "message": "Out of tokens."})
        assert await stream.outcome() == ("failed", "upstream_status")
        end = await stream.end()
        assert [(attempt.status, attempt.error) for attempt in end.attempts] == [(500, "upstream_status")] * 4
        assert end.error is not None
        assert end.error.message == "Out of tokens."
        starts = [attempt.started_ms for attempt in end.attempts]
        assert starts == sorted(starts)


async def test_completion_that_is_not_streamed_is_tried_again_too() -> None:
    async with await World.start("h2c", model=SOON) as world:
        stream = world.stream(streaming=False, fault={"kind": "status", "status": 503, "times": 1})
        assert await stream.outcome() == COMPLETED
        assert await errors(stream) == ["upstream_status", None]


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_waited_for(form: str) -> None:
    fault = {"kind": "status", "status": 429, "retry_after": 2, "retry_after_form": form, "times": 1}
    async with await World.start("h2c", model=SOON) as world:
        stream = world.stream(fault=fault)
        assert await stream.outcome() == COMPLETED
        first, second = (await stream.end()).attempts
        waited = second.started_ms - first.started_ms - first.duration_ms
        # A date has whole seconds, so it may be almost one second nearer.
        assert (1900 if form == "seconds" else 900) <= waited < 2900


async def test_long_retry_after_is_passed_on_at_once() -> None:
    fault = {"kind": "status", "status": 429, "retry_after": 3600}
    async with await World.start("h2c") as world:
        began = time.monotonic()
        stream = world.stream(fault=fault)
        assert await stream.outcome() == ("failed", "upstream_status")
        assert time.monotonic() - began < 2
        error = (await stream.end()).error
        assert error is not None
        assert error.retry_after == 3600
        assert world.provider.statistics().requests == 1


async def test_cancelling_ends_the_pause_before_a_retry() -> None:
    model = {"retry": {"initial": 60, "maximum": 60, "max_total_wait": 300}}
    async with await World.start("h2c", model=model) as world:
        stream = world.stream(fault={"kind": "status", "status": 503, "retry_after": 10})
        await world.provider.until(lambda s: s.failed == 1)
        await world.is_at_rest()
        stream.stream.cancel()
        assert await stream.outcome() == ("cancelled", "cancelled")


async def test_outage_is_not_multiplied() -> None:
    settings = {**STURDY, "retry_budget": {"ratio": 0.1, "floor": 5, "window": 60}}
    async with await World.start("h2c", model=SOON, settings=settings) as world:
        streams = [world.stream(fault={"kind": "status", "status": 503}) for _ in range(100)]
        assert {await stream.outcome() for stream in streams} == {("failed", "upstream_status")}
        assert world.provider.statistics().requests == 100 + 10 + 5
        assert world.health.budget_refusals > 0


async def test_no_attempt_begins_after_the_total_deadline() -> None:
    async with await World.start("h2c", model=SOON, settings={"timeouts": {"total": 0.5}}) as world:
        stream = world.stream(fault={"kind": "status", "status": 503, "retry_after": 1})
        assert await stream.outcome() == ("failed", "upstream_status")
        assert await errors(stream) == ["upstream_status"]


async def test_provider_that_does_not_answer_is_not_asked_again_but_another_is() -> None:
    settings = {"timeouts": {"first_byte": 0.3}}
    async with await World.start("h2c", model=SOON, settings=settings, providers=2) as world:
        stream = world.stream(fault={"kind": "no_answer"})
        assert await stream.outcome() == ("failed", "first_byte_timeout")
        assert await errors(stream) == ["first_byte_timeout"] * 2
        assert await providers_of(stream) == ["sim0", "sim1"]
        await world.provider.until(lambda s: s.cancelled == 1)


async def test_total_deadline_ends_a_stream_that_goes_on() -> None:
    async with await World.start("h2c", settings={"timeouts": {"total": 0.3}}) as world:
        assert await world.stream(tokens=1000, interval_ms=20).outcome() == ("incomplete", "total_timeout")


# -- failover ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_next_endpoint_of_the_route_takes_over(protocol: str) -> None:
    async with await World.start(protocol, providers=2) as world:
        await world.provider.aclose()
        stream = world.stream()
        assert await stream.outcome() == COMPLETED
        assert await errors(stream) == ["upstream_connect_error", None]
        assert await providers_of(stream) == ["sim0", "sim1"]
        first, second = world.gateway.pool_statistics()
        assert (first.health.failovers, second.health.failovers) == (0, 1)
        assert (first.health.retries, second.health.retries) == (0, 0)


async def test_failover_needs_no_budget_for_repetitions() -> None:
    settings = {**STURDY, "retry_budget": {"ratio": 0, "floor": 0}}
    async with await World.start("h2c", providers=2, settings=settings) as world:
        await world.provider.aclose()
        streams = [world.stream() for _ in range(50)]
        assert {await stream.outcome() for stream in streams} == {COMPLETED}


async def test_weights_share_the_load() -> None:
    route = {
        "route": [
            {"target": "sim0/demo", "weight": 3},
            {"target": "sim1/demo", "weight": 1},
            "sim2/demo",
        ]
    }
    async with await World.start("h2c", providers=3, model=route) as world:
        streams = [world.stream(tokens=1) for _ in range(200)]
        used = Counter([(await providers_of(stream))[0] for stream in streams])
        assert used["sim2"] == 0
        assert 110 < used["sim0"] < 190


# -- breakers ------------------------------------------------------------------------------------------


async def test_failing_endpoint_is_left_alone_and_comes_back_by_itself() -> None:
    async with await World.start("h2c", providers=2, settings=NERVOUS) as world:
        port = world.provider.port
        await world.provider.aclose()
        for _ in range(3):
            assert await world.stream().outcome() == COMPLETED
        assert world.health.breaker == "open"
        stream = world.stream()
        assert await stream.outcome() == COMPLETED
        assert await providers_of(stream) == ["sim1"]
        assert world.gateway.has_healthy_route("demo")

        world.providers[0] = SimulatedProvider()
        await world.provider.start(port=port)

        await eventually(
            lambda: world.health.breaker == "open" and world.health.retry_after == 0, "the pause's end"
        )
        trial = world.stream()
        assert await trial.outcome() == COMPLETED
        assert await providers_of(trial) == ["sim0"]
        assert world.health.breaker == "closed"


async def test_all_endpoints_open_fails_fast_and_says_when_to_come_back() -> None:
    settings = {"breaker": {"failures": 3, "open_for": 30}}
    async with await World.start("h2c", settings=settings, model=SOON) as world:
        tries: list[int] = []
        for _ in range(3):
            assert world.gateway.has_healthy_route("demo")
            stream = world.stream(fault={"kind": "status", "status": 502})
            assert await stream.outcome() == ("failed", "upstream_status")
            tries.append(len((await stream.end()).attempts))
        assert tries == [4, 4, 1]  # one request counts once, however often it was tried
        assert not world.gateway.has_healthy_route("demo")
        assert not world.gateway.has_healthy_route("unheard-of")
        requests = world.provider.statistics().requests
        stream = world.stream()
        assert await stream.outcome() == ("failed", "circuit_open")
        error = (await stream.end()).error
        assert error is not None
        assert error.retry_after is not None
        assert 20 < error.retry_after <= 30
        assert (await stream.end()).attempts == []
        assert world.provider.statistics().requests == requests


async def test_one_trial_at_a_time_while_half_open() -> None:
    async with await World.start("h2c", settings=NERVOUS, model=SOON) as world:
        for _ in range(3):
            await world.stream(fault={"kind": "status", "status": 503}).outcome()
        assert world.health.breaker == "open"
        await eventually(lambda: world.gateway.has_healthy_route("demo"), "the end of the pause")
        trial = world.stream(ttft_ms=200)
        await eventually(lambda: world.health.breaker == "half_open", "the trial")
        assert await world.stream().outcome() == ("failed", "circuit_open")
        assert await trial.outcome() == COMPLETED
        assert await world.stream().outcome() == COMPLETED


async def test_cancelled_trial_makes_room_for_the_next() -> None:
    async with await World.start("h2c", settings=NERVOUS, model=SOON) as world:
        for _ in range(3):
            await world.stream(fault={"kind": "status", "status": 503}).outcome()
        await eventually(lambda: world.gateway.has_healthy_route("demo"), "the end of the pause")
        trial = world.stream(ttft_ms=60_000)
        await eventually(lambda: world.health.breaker == "half_open", "the trial")
        trial.stream.cancel()
        await world.is_at_rest()
        assert await world.stream().outcome() == COMPLETED


async def test_limits_of_the_caller_do_not_open_the_breaker() -> None:
    async with await World.start("h2c", settings=NERVOUS, model={"retry": {"max_attempts": 1}}) as world:
        for status in (429, 400, 404) * 4:
            await world.stream(fault={"kind": "status", "status": status}).outcome()
        assert world.health.breaker == "closed"


async def test_dead_connection_is_one_event_however_many_streams_it_had() -> None:
    settings = {"breaker": {"failures": 3, "open_for": 30}, "spread": 1, "streams_per_connection": 32}
    async with await World.start("h2c", settings=settings, model={"retry": {"max_attempts": 1}}) as world:
        streams = [world.stream(ttft_ms=60_000) for _ in range(9)]
        await world.provider.until(lambda s: s.requests == 9)
        assert world.provider.arm_current(ResetConnection()) == 1
        assert {await stream.outcome() for stream in streams} == {("failed", "upstream_reset")}
        assert (world.health.breaker, world.health.failures) == ("closed", {"upstream_reset": 9})
        assert await world.stream().outcome() == COMPLETED


async def test_failed_connect_is_one_event_however_many_requests_wait_for_it() -> None:
    settings = {"breaker": {"failures": 3, "open_for": 30}, "max_connections": 1}
    async with await World.start("h2c", settings=settings, model={"retry": {"max_attempts": 1}}) as world:
        await world.provider.aclose()
        streams = [world.stream() for _ in range(9)]
        assert {await stream.outcome() for stream in streams} == {("failed", "upstream_connect_error")}
        assert world.health.breaker == "closed"


INTERNAL = {"kind": "status", "status": 500}


async def test_request_that_fails_with_500_wherever_it_is_tried_counts_once() -> None:
    """It may be to blame itself: of two endpoints that fail it four times together, neither is shown to be ill."""
    settings = {"breaker": {"failures": 2, "open_for": 30}}
    async with await World.start("h2c", providers=2, settings=settings, model=SOON) as world:
        stream = world.stream(fault=INTERNAL)
        assert await stream.outcome() == ("failed", "upstream_status")
        tried = await providers_of(stream)
        assert (len(tried), set(tried)) == (4, {"sim0", "sim1"})  # one of them at least twice, which would open it
        assert [provider.health.breaker for provider in world.gateway.pool_statistics()] == ["closed", "closed"]
        assert await world.stream().outcome() == COMPLETED


async def test_500s_of_several_requests_open_the_breaker() -> None:
    settings = {"breaker": {"failures": 3, "open_for": 30}}
    async with await World.start("h2c", settings=settings, model=SOON) as world:
        for _ in range(3):
            assert world.health.breaker == "closed"
            await world.stream(fault=INTERNAL).outcome()
        assert world.health.breaker == "open"


async def test_health_check_opens_and_closes_the_breaker_without_any_request() -> None:
    settings = {
        "breaker": {"failures": 2, "open_for": 600, "max_open_for": 600},
        "probe": {"path": "/healthz", "interval": 0.1, "timeout": 1},
        "timeouts": {"connect": 0.5},
    }
    async with await World.start("h2c", settings=settings) as world:
        await eventually(lambda: world.health.probes >= 2, "two health checks")
        assert world.gateway.has_healthy_route("demo")
        port = world.provider.port
        await world.provider.aclose()
        await eventually(lambda: not world.gateway.has_healthy_route("demo"), "the breaker to open")
        assert world.health.reason == "a health check failed"
        world.providers[0] = SimulatedProvider()
        await world.provider.start(port=port)
        await eventually(lambda: world.gateway.has_healthy_route("demo"), "the breaker to close")
        assert world.health.probe_failures >= 2
        assert world.provider.statistics().requests == 0
