"""The unmodified `openai` SDK against the gateway: its synchronous client in a thread, its asynchronous one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import BadRequestError, InternalServerError, OpenAI, UnprocessableEntityError
from openai.types.chat.chat_completion_chunk import ChatCompletionChunk

from holdfast.admission.auth import create_key
from holdfast.config import KeyConfig
from holdfast_tools.simulate.exchange import Exchange, Request
from tests.support.gateway_client import ONCE, SEED, answer, ask, chat, read_stream, whole
from tests.support.gateway_path import GatewayPath, MakePath

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
TOKENS = 12


def sim(**fields: Any) -> dict[str, Any]:
    return {"sim": {"tokens": TOKENS, "interval_ms": 0, "ttft_ms": 0, "seed": SEED, **fields}}


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


class Sync:
    """Runs a scenario on the synchronous client, in a thread."""

    @staticmethod
    async def run(path: GatewayPath, scenario: Callable[[OpenAI], Any], **options: Any) -> Any:
        def work() -> Any:
            with openai.OpenAI(base_url=f"{path.url}/v1", **options) as client:
                return scenario(client)

        return await asyncio.to_thread(work)

    @staticmethod
    async def create(path: GatewayPath, *, api_key: str = "none", **fields: Any) -> Any:
        """Create a completion, and read it to its end if it streams."""

        def scenario(client: OpenAI) -> Any:
            result = client.chat.completions.create(model="demo", messages=MESSAGES, **fields)
            return list(result) if fields.get("stream") else result

        return await Sync.run(path, scenario, api_key=api_key, max_retries=0)


class Async:
    @staticmethod
    async def create(path: GatewayPath, *, api_key: str = "none", **fields: Any) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{path.url}/v1", api_key=api_key, max_retries=0) as client:
            result = await client.chat.completions.create(model="demo", messages=MESSAGES, **fields)
            return [chunk async for chunk in result] if fields.get("stream") else result


Sdk = type[Sync] | type[Async]
both = pytest.mark.parametrize("sdk", [Sync, Async])


@both
async def test_streamed_completion_is_whole(path: GatewayPath, sdk: Sdk) -> None:
    chunks = await sdk.create(path, stream=True, extra_body=sim())
    assert text_of(chunks) == answer(TOKENS)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


@both
async def test_streamed_completion_has_the_usage_chunk_if_asked_for(path: GatewayPath, sdk: Sdk) -> None:
    chunks = await sdk.create(
        path, stream=True, stream_options={"include_usage": True}, temperature=0.7, extra_body=sim()
    )
    assert text_of(chunks) == answer(TOKENS)
    *_, last = chunks
    assert last.choices == []
    assert last.usage.completion_tokens == TOKENS


@both
async def test_streamed_completion_without_usage_refuses_the_usage_chunk(path: GatewayPath, sdk: Sdk) -> None:
    chunks = await sdk.create(path, stream=True, stream_options={"include_usage": False}, extra_body=sim())
    assert text_of(chunks) == answer(TOKENS)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


@both
async def test_whole_completion_is_the_providers(path: GatewayPath, sdk: Sdk) -> None:
    completion = await sdk.create(path, extra_body=sim())
    assert completion.choices[0].message.content == answer(TOKENS)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens == TOKENS
    assert (completion.object, completion.model) == ("chat.completion", "demo")


@pytest.mark.parametrize("stream", [True, False])
async def test_unknown_fields_reach_the_provider_as_they_came(
    path: GatewayPath, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    unknown = {"deep": [1, 2.5, None, True, "é\u2028\U0001f600", {"": []}], "big": 2**63 - 1, "negative": -0.125}
    bodies = []
    service = path.provider.service
    original = service._chat

    def record(request: Request, exchange: Exchange) -> None:
        bodies.append(json.loads(request.body))
        original(request, exchange)

    service.add_route("POST", "/v1/chat/completions", record)
    await Async.create(path, stream=stream, seed=5, extra_body={**sim(), "x_unknown": unknown})
    (body,) = bodies
    added = {"stream_options": {"include_usage": True}} if stream else {}
    assert body == {
        "model": "demo",
        "messages": MESSAGES,
        "stream": stream,
        "seed": 5,
        "x_unknown": unknown,
        **sim(),
        **added,
    }


@both
async def test_unknown_model_is_not_found(path: GatewayPath, sdk: Sdk) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.create(path, extra_body={"model": "nope"})
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "'nope'" in caught.value.message
    assert path.provider.statistics().requests == 0


@both
@pytest.mark.parametrize("stream", [True, False])
async def test_request_without_messages_is_bad(path: GatewayPath, sdk: Sdk, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.create(path, stream=stream, extra_body={"messages": []})
    assert (caught.value.code, caught.value.param) == ("invalid_request", "messages")


@both
@pytest.mark.parametrize("stream", [True, False])
async def test_providers_rate_limit_is_one_of_the_sdk_with_retry_after(
    make_path: MakePath, sdk: Sdk, stream: bool
) -> None:
    path = await make_path(provider=ONCE)
    fault = {"kind": "status", "status": 429, "retry_after": 7, "message": "slow down"}
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.create(path, stream=stream, extra_body=sim(fault=fault))
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "simulated_429"
    assert "slow down" in caught.value.message
    assert caught.value.response.headers["holdfast-stream-id"].startswith("st_")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (422, openai.UnprocessableEntityError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
        # The provider's refusal of the gateway's own key is not the caller's fault.
        (401, openai.InternalServerError),
        (403, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_providers_status_is_the_matching_error_of_the_sdk(
    make_path: MakePath,
    status: int,
    error: type[BadRequestError] | type[InternalServerError] | type[UnprocessableEntityError],
    stream: bool,
) -> None:
    path = await make_path(provider=ONCE)
    with pytest.raises(error) as caught:
        await Async.create(path, stream=stream, extra_body=sim(fault={"kind": "status", "status": status}))
    assert caught.value.status_code == (502 if status in (401, 403) else status)
    assert ("told to fail" in caught.value.message) == (status not in (401, 403))


@both
async def test_sdk_retries_a_rate_limit_and_succeeds(make_path: MakePath, sdk: Sdk) -> None:
    path = await make_path(provider=ONCE)
    fault = {"kind": "status", "status": 503, "times": 1}
    extra = {**sim(fault=fault), "user": f"retry-{sdk.__name__}"}
    async with openai.AsyncOpenAI(base_url=f"{path.url}/v1", api_key="none", max_retries=1) as client:
        completion = await client.chat.completions.create(model="demo", messages=MESSAGES, extra_body=extra)
    assert completion.choices[0].message.content == answer(TOKENS)
    assert path.provider.statistics().requests == 2


@both
async def test_missing_or_wrong_key_is_an_authentication_error(make_path: MakePath, sdk: Sdk) -> None:
    key, hashed = create_key()
    path = await make_path(keys={"web": KeyConfig(hash=hashed)})
    with pytest.raises(openai.AuthenticationError) as caught:
        await sdk.create(path, api_key="hf_wrong", extra_body=sim())
    assert caught.value.code == "unauthorized"
    assert path.provider.statistics().requests == 0
    completion = await sdk.create(path, api_key=key, extra_body=sim())
    assert completion.choices[0].message.content == answer(TOKENS)


FAULTS = {
    "cut": {"kind": "cut"},
    "reset": {"kind": "reset"},
    "end_early": {"kind": "end_early"},
    "error_event": {"kind": "error_event"},
    "error_event_done": {"kind": "error_event", "done": True},
    "malformed": {"kind": "malformed"},
    "stall": {"kind": "stall"},
}


@both
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_failure_in_the_middle_raises_and_is_no_short_answer(
    make_path: MakePath, sdk: Sdk, fault: dict[str, str]
) -> None:
    path = await make_path(provider={**ONCE, "timeouts": {"first_byte": 0.2, "idle": 0.2}})
    seen = []
    request: dict[str, Any] = {"model": "demo", "messages": MESSAGES, "stream": True}
    request["extra_body"] = sim(fault={**fault, "after_tokens": 5})

    def read_sync(client: OpenAI) -> None:
        for chunk in client.chat.completions.create(**request):
            seen.append(chunk)

    async def read() -> None:
        if sdk is Sync:
            await Sync.run(path, read_sync, api_key="none", max_retries=0)
            return
        async with openai.AsyncOpenAI(base_url=f"{path.url}/v1", api_key="none", max_retries=0) as client:
            async for chunk in await client.chat.completions.create(**request):
                seen.append(chunk)

    with pytest.raises(openai.APIError) as caught:
        await read()
    assert type(caught.value) is openai.APIError
    assert caught.value.code in (
        "upstream_reset",
        "upstream_truncated",
        "upstream_error",
        "upstream_malformed",
        "idle_timeout",
    )
    # A reset may overtake tokens on their way from the provider; all others are delivered up to the fault.
    text = text_of(seen)
    assert answer(5).startswith(text)
    assert text == answer(5) or fault["kind"] == "reset"
    assert all(choice.finish_reason is None for chunk in seen for choice in chunk.choices)


@pytest.mark.parametrize("kind", ["cut", "reset", "end_early", "stall"])
async def test_whole_completion_that_breaks_off_is_an_error(make_path: MakePath, kind: str) -> None:
    path = await make_path(provider={**ONCE, "timeouts": {"total": 0.3}})
    with pytest.raises(openai.InternalServerError):
        await Async.create(path, extra_body=sim(fault={"kind": kind}))


async def test_stream_id_header_leads_to_the_log(path: GatewayPath) -> None:
    async with openai.AsyncOpenAI(base_url=f"{path.url}/v1", api_key="none") as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="demo", messages=MESSAGES, stream=True, extra_body=sim()
        )
        chunks = [chunk async for chunk in raw.parse()]
    events = await read_stream(path.url, raw.headers["holdfast-stream-id"])
    assert whole(events) == text_of(chunks) == answer(TOKENS)


async def test_events_of_a_completion_carry_the_cursor(path: GatewayPath) -> None:
    response = await ask(path.url, "POST", "/v1/chat/completions", chat({"tokens": 3}))
    events = [block.split("\n") for block in response.body.decode().split("\n\n")[:-1]]
    assert [event[0] for event in events] == [f"id: 1-{seq}" for seq in range(len(events))]
    assert all(event[1].startswith("data: ") for event in events)
    assert events[-1][1] == "data: [DONE]"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


@both
async def test_sdk_reads_over_the_comments_of_a_silent_stream(make_path: MakePath, sdk: Sdk) -> None:
    path = await make_path(server={"sse_keep_alive": 0.05})
    chunks = await sdk.create(path, stream=True, extra_body=sim(tokens=3, ttft_ms=150, interval_ms=150))
    assert text_of(chunks) == answer(3)


async def test_models_are_listed(path: GatewayPath) -> None:
    async with openai.AsyncOpenAI(base_url=f"{path.url}/v1", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["demo"]


@both
async def test_sdk_that_leaves_its_loop_cancels_the_generation(path: GatewayPath, sdk: Sdk) -> None:
    endless = sim(tokens=1_000_000, interval_ms=1)

    def leave(client: OpenAI) -> ChatCompletionChunk:
        with contextlib.closing(
            client.chat.completions.create(model="demo", messages=MESSAGES, stream=True, extra_body=endless)
        ) as stream:
            return next(iter(stream))

    if sdk is Sync:
        await Sync.run(path, leave, api_key="none")
    else:
        async with openai.AsyncOpenAI(base_url=f"{path.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model="demo", messages=MESSAGES, stream=True, extra_body=endless
            )
            await anext(aiter(stream))
            await stream.close()
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert statistics.cancelled == 1
