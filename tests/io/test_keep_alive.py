"""Kept-alive HTTP/1.1 connections that the provider closes just as they are used again: RFC 9112 section 9.3.1."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted_provider import Deed, ScriptedProvider, ScriptedWorld, ended
from tests.support.waiting import eventually

#: No repetition is left: what is asked again all the same does not count as one.
NO_REPETITION: dict[str, Any] = {
    "retry": {"max_attempts": 1},
    "settings": {"retry_budget": {"ratio": 0, "floor": 0}, "breaker": {"failures": 1}},
}
STRICT: dict[str, Any] = {"retry": {"at_most_once": True}}


@pytest.mark.parametrize("deed", ["close", "reset"])
async def test_request_that_met_the_end_of_a_kept_connection_is_sent_again_at_once(deed: Deed) -> None:
    async with (
        ScriptedProvider("answer", deed, "answer") as provider,
        ScriptedWorld(provider, **NO_REPETITION) as world,
    ):
        assert (await world.ask()).status == "completed"
        end = await world.ask()
        assert end.status == "completed"
        assert [(each.error, each.unconfirmed) for each in end.attempts] == [
            ("upstream_reset", True),
            (None, False),
        ]
        assert provider.seen == [1, 1, 2]
        health = world.health
        assert (health.breaker, health.retries, health.resent_stale) == ("closed", 0, 1)


@pytest.mark.parametrize("deed", ["close", "reset"])
async def test_request_that_met_the_end_of_a_kept_connection_may_have_been_processed(deed: Deed) -> None:
    async with ScriptedProvider("answer", deed, "answer") as provider, ScriptedWorld(provider, **STRICT) as world:
        assert (await world.ask()).status == "completed"
        end = await world.ask()
        assert end.status == "failed"
        assert [each.unconfirmed for each in end.attempts] == [True]
        assert provider.seen == [1, 1]


async def test_only_the_first_such_end_is_excused() -> None:
    async with (
        ScriptedProvider("answer", "close", "close", "answer") as provider,
        ScriptedWorld(provider, **NO_REPETITION) as world,
    ):
        assert (await world.ask()).status == "completed"
        end = await world.ask()
        assert (end.status, provider.seen) == ("failed", [1, 1, 2])


async def test_first_request_of_a_connection_is_not_excused() -> None:
    async with ScriptedProvider("close") as provider, ScriptedWorld(provider, **NO_REPETITION) as world:
        end = await world.ask()
        assert (end.status, provider.seen) == ("failed", [1])
        assert world.health.breaker == "open"


async def test_connections_that_were_idle_for_longer_are_not_tried_after_one_that_was_closed() -> None:
    async with (
        ScriptedProvider("answer", "answer", "answer", "close", "answer") as provider,
        ScriptedWorld(provider, **NO_REPETITION) as world,
    ):
        for stream in [world.begin() for _ in range(3)]:
            assert (await ended(stream)).status == "completed"
        assert sorted(provider.seen) == [1, 2, 3]
        end = await world.ask()
        assert (end.status, provider.seen[-1]) == ("completed", 4)


@pytest.mark.parametrize("retry", [{}, {"at_most_once": True}])
async def test_nothing_is_sent_on_connections_that_are_closed_already(retry: dict[str, Any]) -> None:
    async with (
        ScriptedProvider("answer", "answer", "answer") as provider,
        ScriptedWorld(provider, retry=retry) as world,
    ):
        for stream in [world.begin() for _ in range(2)]:
            assert (await ended(stream)).status == "completed"
        # The FINs lie in the gateway's sockets, and its loop has had no turn to read them when it lends.
        provider.close_idle()
        end = await world.ask()
        assert end.status == "completed"
        assert len(end.attempts) == 1
        assert provider.seen[2:] == [3]


async def test_connection_is_given_up_before_the_provider_does_so() -> None:
    extra = b"keep-alive: max=100, timeout=1\r\n"
    async with ScriptedProvider("answer", "answer", extra=extra) as provider, ScriptedWorld(provider) as world:
        assert (await world.ask()).status == "completed"
        assert len(world.pool.connections) == 1
        await eventually(lambda: not world.pool.connections, "the end of the idle connection")
        assert (await world.ask()).status == "completed"
        assert provider.seen == [1, 2]


async def test_connection_that_the_provider_does_not_keep_is_not_used_again() -> None:
    extra = b"keep-alive: timeout=0\r\n"
    async with ScriptedProvider("answer", "answer", extra=extra) as provider, ScriptedWorld(provider) as world:
        assert (await world.ask()).status == "completed"
        assert (await world.ask()).status == "completed"
        assert provider.seen == [1, 2]


async def test_health_check_that_met_the_end_of_a_kept_connection_says_nothing() -> None:
    settings = {"probe": {"path": "/healthz", "interval": 0.05, "timeout": 5}, "breaker": {"failures": 1}}
    async with (
        ScriptedProvider("answer", "close") as provider,
        ScriptedWorld(provider, settings=settings) as world,
    ):
        await eventually(lambda: len(provider.seen) >= 3, "a health check after the one that was cut")
        assert provider.seen[:3] == [1, 1, 2]
        assert (world.health.probe_failures, world.health.breaker) == (0, "closed")
