"""One request id, one generation: however often the request comes, and over whatever it comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from holdfast.admission.auth import create_key
from holdfast.config import KeyConfig
from tests.support.gateway_client import (
    Http,
    ResumingClient,
    Session,
    answer,
    ask,
    chat,
    content,
    read_stream,
    stream_of,
    whole,
)
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.relay import Cut, Relay
from tests.support.waiting import eventually

TOKENS = 8
COMPLETIONS = "/v1/chat/completions"


def paced(**fields: Any) -> dict[str, Any]:
    return chat({"tokens": TOKENS, "interval_ms": 3}, **fields)


async def assert_one_request(path: GatewayPath) -> None:
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert (statistics.requests, statistics.completed) == (1, 1)


# -- sessions ------------------------------------------------------------------------------------------


async def test_create_whose_answer_was_lost_reaches_the_provider_once(path: GatewayPath) -> None:
    # The first connection is cut behind `create`, which the gateway gets; the client never sees `accepted`.
    plan = {0: Cut("up", messages=2)}
    async with Relay(path.gateway.port, plan.get) as relay:
        client = ResumingClient(relay.url)
        received = client.create(paced())
        await client.run()
    assert client.connections == 2
    assert received.text == answer(TOKENS)
    await assert_one_request(path)


async def test_create_sent_twice_in_one_session_attaches(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        first = await session.create("r-1", paced())
        await session.entries(2)
        await session.send(type="create", request_id="r-1", request=paced())
        while (second := await session.receive())["type"] != "accepted":
            pass  # what was on its way
        assert second == first | {"duplicate": True}
        entries, _ = await session.read()  # from entry 0
    assert content(entries) == answer(TOKENS)
    await assert_one_request(path)


async def test_create_sent_again_after_the_end_gives_the_whole_text(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        first = await session.create("r-1", paced())
        await session.read()
    async with await Session.open(path.url) as session:
        second = await session.create("r-1", paced())
        entries, end = await session.read()
    assert (second["stream"], second["duplicate"]) == (first["stream"], True)
    assert (content(entries), end["status"]) == (answer(TOKENS), "completed")
    await assert_one_request(path)


async def test_create_from_many_sessions_at_once_reaches_the_provider_once(path: GatewayPath) -> None:
    async def create() -> tuple[str, bool, str]:
        async with await Session.open(path.url) as session:
            accepted = await session.create("r-1", paced())
            entries, _ = await session.read()
            return accepted["stream"], accepted.get("duplicate", False), content(entries)

    results = await asyncio.gather(*(create() for _ in range(5)))
    assert len({stream for stream, _, _ in results}) == 1
    assert sorted(duplicate for _, duplicate, _ in results) == [False] + [True] * 4
    assert {text for _, _, text in results} == {answer(TOKENS)}
    await assert_one_request(path)


async def test_request_id_used_for_another_request_is_refused_and_harms_nobody(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.create("r-1", paced())
        entries = await session.entries(1)
        async with await Session.open(path.url) as other:
            await other.send(type="create", request_id="r-1", request=paced(temperature=0.5))
            error = await other.expect("error")
        assert (error["code"], error["request_id"], error["param"]) == ("duplicate_request", "r-1", "request_id")
        assert "retryable" not in error
        rest, _ = await session.read(start=len(entries))
        assert content(entries + rest) == answer(TOKENS)
    await assert_one_request(path)


async def test_request_that_was_refused_may_be_sent_again_under_its_id(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.send(type="create", request_id="r-1", request=paced(model="nope"))
        assert (await session.expect("error"))["code"] == "model_not_found"
        assert "duplicate" not in await session.create("r-1", paced())
        await session.read()
    await assert_one_request(path)


# -- HTTP ----------------------------------------------------------------------------------------------

HEADERS = ["idempotency_key", "holdfast_request_id"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("stream", [True, False])
async def test_posts_at_once_with_one_key_reach_the_provider_once(
    path: GatewayPath, header: str, stream: bool
) -> None:
    body = paced(stream=stream)
    responses = await asyncio.gather(
        *(ask(path.url, "POST", COMPLETIONS, body, **{header: "k-1"}) for _ in range(5))
    )
    assert {response.status for response in responses} == {200}
    assert len({response.headers["holdfast-stream-id"] for response in responses}) == 1
    assert len({response.body for response in responses}) == 1
    if not stream:
        assert responses[0].json()["choices"][0]["message"]["content"] == answer(TOKENS)
    await assert_one_request(path)


async def test_post_again_after_the_end_gives_the_same_answer(path: GatewayPath) -> None:
    first = await ask(path.url, "POST", COMPLETIONS, paced(), idempotency_key="k-1")
    second = await ask(path.url, "POST", COMPLETIONS, paced(), idempotency_key="k-1")
    assert first.body == second.body
    await assert_one_request(path)


async def test_post_whose_answer_was_lost_is_answered_under_its_key(path: GatewayPath) -> None:
    body = chat({"tokens": TOKENS, "interval_ms": 3})
    async with Relay(path.gateway.port, {0: Cut("down", offset=300)}.get) as relay:
        async with await Http.open(relay.url) as http:
            http.request("POST", COMPLETIONS, body, idempotency_key="k-1", holdfast_on_disconnect="continue")
            assert (await http.head()).status == 200
            with pytest.raises(asyncio.IncompleteReadError):
                [event async for event in http.events()]
        async with await Http.open(relay.url) as http:
            http.request("POST", COMPLETIONS, body, idempotency_key="k-1")
            stream = (await http.head()).headers["holdfast-stream-id"]
            events = [event async for event in http.events()]
    assert events[-1].data == "[DONE]"
    assert content([event.data for event in events[:-1]]) == answer(TOKENS)
    assert whole(await read_stream(path.url, stream)) == answer(TOKENS)
    await assert_one_request(path)


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {"stream": False}])
async def test_key_used_for_another_body_is_refused(path: GatewayPath, other: dict[str, Any]) -> None:
    first = await ask(path.url, "POST", COMPLETIONS, paced(), idempotency_key="k-1")
    second = await ask(path.url, "POST", COMPLETIONS, paced(**other), idempotency_key="k-1")
    assert first.status == 200
    assert (second.status, second.error["code"], second.error["param"]) == (409, "duplicate_request", "request_id")
    await assert_one_request(path)


async def test_posts_without_a_key_are_requests_of_their_own(path: GatewayPath) -> None:
    await asyncio.gather(*(ask(path.url, "POST", COMPLETIONS, paced()) for _ in range(3)))
    assert (await path.provider.until(lambda s: s.streaming == 0)).requests == 3


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("key", ["k" * 257, ""])
async def test_key_of_impossible_length_is_refused(path: GatewayPath, header: str, key: str) -> None:
    response = await ask(path.url, "POST", COMPLETIONS, paced(), **{header: key})
    assert (response.status, response.error["code"]) == (400, "invalid_request")
    assert response.error["param"] == header.replace("_", "-")


# -- between the two, and between tenants --------------------------------------------------------------


async def test_session_and_post_share_request_ids(path: GatewayPath) -> None:
    body = json.dumps(paced()).encode()
    async with await Session.open(path.url) as session:
        accepted = await session.create("r-1", json.loads(body))
        response = await ask(path.url, "POST", COMPLETIONS, body, idempotency_key="r-1")
        assert response.headers["holdfast-stream-id"] == accepted["stream"]
    await assert_one_request(path)


async def test_streamed_generation_is_not_mistaken_for_a_whole_answer(path: GatewayPath) -> None:
    """Over a session every generation streams; the same bytes over HTTP ask for a whole answer."""
    body = json.dumps(paced(stream=None)).encode()
    async with await Session.open(path.url) as session:
        await session.create("r-1", json.loads(body))
        await session.read()
    response = await ask(path.url, "POST", COMPLETIONS, body, idempotency_key="r-1")
    assert (response.status, response.error["code"]) == (409, "duplicate_request")
    await assert_one_request(path)


async def test_tenants_do_not_share_request_ids(make_path: MakePath) -> None:
    keys = {name: create_key() for name in ("blue", "green")}
    path = await make_path(keys={name: KeyConfig(hash=hashed) for name, (_, hashed) in keys.items()})
    responses = [
        await ask(path.url, "POST", COMPLETIONS, paced(), idempotency_key="k-1", authorization=f"Bearer {key}")
        for key, _ in keys.values()
    ]
    assert len({response.headers["holdfast-stream-id"] for response in responses}) == 2
    assert (await path.provider.until(lambda s: s.streaming == 0)).requests == 2


async def test_later_post_that_says_continue_keeps_the_generation_running(path: GatewayPath) -> None:
    body = chat({"tokens": 5, "fault": {"kind": "stall", "after_tokens": 2}})
    async with await Http.open(path.url) as first:
        first.request("POST", COMPLETIONS, body, idempotency_key="k-1")
        stream = stream_of(path.gateway, (await first.head()).headers["holdfast-stream-id"])
        async with await Http.open(path.url) as second:
            second.request("POST", COMPLETIONS, body, idempotency_key="k-1", holdfast_on_disconnect="continue")
            await second.head()
    await eventually(lambda: stream.reader_count == 0)
    assert not stream.is_ended
    assert path.provider.statistics().streaming == 1
