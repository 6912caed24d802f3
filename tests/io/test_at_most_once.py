"""Which requests are asked again although the provider may have acted on them, and what is said of it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from holdfast import StreamingAIClient, WebSocketConfig
from holdfast.errors import UpstreamReset
from holdfast_tools.simulate import faults as f
from tests.support.pool_world import PROTOCOLS, World
from tests.support.scripted_provider import Deed, ScriptedProvider, ScriptedWorld

ONCE_ONLY: dict[str, Any] = {"at_most_once": True}
COMPLETED = ("completed", None)
UNCONFIRMED: list[tuple[Deed, str]] = [
    ("close", "upstream_reset"),
    ("reset", "upstream_reset"),
    ("head", "upstream_reset"),
    ("error", "upstream_error"),
]


@pytest.mark.parametrize(("deed", "code"), UNCONFIRMED)
async def test_request_that_may_have_been_processed_is_asked_again_by_default(deed: Deed, code: str) -> None:
    async with ScriptedProvider(deed, "answer") as provider, ScriptedWorld(provider) as world:
        end = await world.ask()
        assert end.status == "completed"
        first, second = end.attempts
        assert (first.error, first.unconfirmed) == (code, True)
        assert (second.error, second.unconfirmed) == (None, False)


@pytest.mark.parametrize(("deed", "code"), UNCONFIRMED)
async def test_request_that_may_have_been_processed_is_asked_once_where_so_configured(
    deed: Deed, code: str
) -> None:
    spare = ScriptedProvider("answer")
    async with (
        ScriptedProvider(deed, "answer") as provider,
        spare,
        ScriptedWorld(provider, spare, retry=ONCE_ONLY) as world,
    ):
        end = await world.ask()
        assert (provider.seen, spare.seen) == ([1], [])
        assert end.status == "failed"
        assert [attempt.unconfirmed for attempt in end.attempts] == [True]
        error = end.error
        assert error is not None
        assert (error.code, error.retryable) == (code, False)
        assert "may have processed" in error.message


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_silent_provider_is_not_replaced_where_each_request_is_asked_once(protocol: str) -> None:
    settings = {"timeouts": {"first_byte": 0.3}}
    async with await World.start(protocol, model={"retry": ONCE_ONLY}, settings=settings, providers=2) as world:
        stream = world.stream(fault={"kind": "no_answer"})
        assert await stream.outcome() == ("failed", "first_byte_timeout")
        assert [provider.statistics().requests for provider in world.providers] == [1, 0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_refused_request_is_asked_again_also_where_each_is_billed_once(protocol: str, status: int) -> None:
    model = {"retry": {"initial": 0.01, **ONCE_ONLY}}
    async with await World.start(protocol, model=model) as world:
        stream = world.stream(fault={"kind": "status", "status": status, "times": 1})
        assert await stream.outcome() == COMPLETED
        assert [attempt.unconfirmed for attempt in (await stream.end()).attempts] == [False, False]


async def test_request_without_a_connection_is_asked_elsewhere_also_where_each_is_billed_once() -> None:
    async with await World.start("h2c", model={"retry": ONCE_ONLY}, providers=2) as world:
        await world.provider.aclose()
        assert await world.stream().outcome() == COMPLETED


async def test_request_that_http2_says_was_not_processed_is_asked_again() -> None:
    async with await World.start("h2c", model={"retry": ONCE_ONLY}) as world:
        world.provider.arm(f.Goaway(after_streams=1, unprocessed=1))
        assert await world.stream().outcome() == COMPLETED
        world.provider.arm_current(f.ResetStreams(error_code=7, after_streams=1))
        assert await world.stream().outcome() == COMPLETED


async def test_openai_sdks_are_told_over_http_not_to_ask_again() -> None:
    async with (
        ScriptedProvider("close", "close") as provider,
        ScriptedWorld(provider, retry=ONCE_ONLY) as world,
        httpx.AsyncClient(base_url=world.gateway.url) as http,
    ):
        for stream in (True, False):
            body = {"model": "demo", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 502
            assert answer.headers["x-should-retry"] == "false"
    async with (
        ScriptedProvider("close") as provider,
        ScriptedWorld(provider, retry={"max_attempts": 1}) as world,
        httpx.AsyncClient(base_url=world.gateway.url) as http,
    ):
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 502
        assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize("at_most_once", [True, False])
async def test_sdk_says_whether_to_ask_again(at_most_once: bool) -> None:
    retry = {"at_most_once": at_most_once, "max_attempts": 1}
    async with (
        ScriptedProvider("close") as provider,
        ScriptedWorld(provider, retry=retry) as world,
        StreamingAIClient(WebSocketConfig(base_url=f"{world.gateway.url}/v1")) as client,
    ):
        with pytest.raises(UpstreamReset) as caught:
            async for _ in client.stream_chat([{"role": "user", "content": "hi"}], model="demo"):
                pass
        assert caught.value.retryable is not at_most_once
