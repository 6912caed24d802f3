"""The queue over real sockets: who waits, what they are told, and that nothing is sent for who left."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from holdfast.admission.auth import create_key
from holdfast.config import KeyConfig
from holdfast.config.limits import LimitsConfig, QueueConfig
from tests.support.gateway_client import Http, Session, ask, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

ENDLESS = {"tokens": 2, "interval_ms": 3_600_000, "ttft_ms": 3_600_000}
QUICK = {"tokens": 3}
COMPLETIONS = "/v1/chat/completions"
ONE = {"max_concurrency": 1}


def queue(**settings: Any) -> QueueConfig:
    return msgspec.convert(settings, QueueConfig)


def asked(path: GatewayPath) -> int:
    return path.provider.statistics().requests


def waiting(path: GatewayPath) -> int:
    return path.gateway.admission.held["places"]


async def at_rest(path: GatewayPath) -> None:
    """Wait until no stream holds anything."""

    def held() -> int:
        return sum(count for name, count in path.gateway.admission.held.items() if name != "connections")

    await eventually(lambda: held() == 0, "the end of all streams")


async def test_session_is_told_its_place_and_served_in_its_turn(make_path: MakePath) -> None:
    path = await make_path(model=ONE)
    async with await Session.open(path.url) as session:
        first = await session.create("r-0", chat(ENDLESS))
        assert "queue_position" not in first
        second = await session.create("r-1", chat(ENDLESS))
        third = await session.create("r-2", chat(QUICK))
        assert (second["queue_position"], third["queue_position"]) == (0, 1)
        await eventually(lambda: asked(path) == 1)
        await session.send(type="cancel", stream=first["stream"])
        assert (await session.expect("end"))["stream"] == first["stream"]
        moved = await session.expect("queued")
        assert (moved["stream"], moved["position"]) == (third["stream"], 0)
        await eventually(lambda: asked(path) == 2)
        await session.send(type="cancel", stream=second["stream"])
        assert (await session.expect("end"))["stream"] == second["stream"]
        entries, end = await session.read()
        assert (end["stream"], end["status"]) == (third["stream"], "completed")
        assert entries
    await at_rest(path)
    assert asked(path) == 3


async def test_model_never_has_more_streams_than_it_may(make_path: MakePath) -> None:
    path = await make_path(model={"max_concurrency": 3})
    most = 0

    async def one() -> int:
        nonlocal most
        async with await Http.open(path.url) as http:
            http.request("POST", COMPLETIONS, chat({"tokens": 5, "interval_ms": 1}))
            assert (await http.head()).status == 200
            most = max(most, path.provider.statistics().streaming)
            return len([event async for event in http.events()])

    assert len(set(await asyncio.gather(*[one() for _ in range(30)]))) == 1
    assert most == 3
    await at_rest(path)


async def test_client_that_leaves_gives_up_its_place_and_nothing_is_sent(make_path: MakePath) -> None:
    path = await make_path(model=ONE)
    async with await Session.open(path.url) as session:
        first = await session.create("r-0", chat(ENDLESS))
        async with await Http.open(path.url) as leaver:
            leaver.request("POST", COMPLETIONS, chat(QUICK))
            await eventually(lambda: waiting(path) == 1)
        await eventually(lambda: waiting(path) == 0)
        await session.send(type="cancel", stream=first["stream"])
        await session.expect("end")
        await at_rest(path)
    assert asked(path) == 1


async def test_queued_stream_can_be_cancelled(make_path: MakePath) -> None:
    path = await make_path(model=ONE)
    async with await Session.open(path.url) as session:
        await session.create("r-0", chat(ENDLESS))
        second = await session.create("r-1", chat(QUICK))
        await session.send(type="cancel", request_id="r-1")
        end = await session.expect("end")
        assert (end["stream"], end["seq"], end["status"]) == (second["stream"], 0, "cancelled")
        assert waiting(path) == 0
    assert asked(path) == 1


async def test_deadline_ends_the_wait_with_the_documented_error(make_path: MakePath) -> None:
    path = await make_path(model=ONE, queue=queue(deadline=0.2))
    async with await Session.open(path.url) as session:
        await session.create("r-0", chat(ENDLESS))
        second = await session.create("r-1", chat(QUICK))
        answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK))
        assert (answer.status, answer.error["code"]) == (503, "queue_timeout")
        assert int(answer.headers["retry-after"]) >= 1
        end = await session.expect("end")
        assert (end["stream"], end["status"], end["error"]["code"]) == (
            second["stream"],
            "failed",
            "queue_timeout",
        )
        assert end["error"]["retryable"]
        whole = await ask(path.url, "POST", COMPLETIONS, chat(QUICK, stream=False))
        assert (whole.status, whole.error["code"]) == (503, "queue_timeout")
    assert asked(path) == 1


async def test_full_queue_refuses_at_once(make_path: MakePath) -> None:
    path = await make_path(model=ONE, queue=queue(max_waiting=1))
    async with await Session.open(path.url) as session:
        await session.create("r-0", chat(ENDLESS))
        await session.create("r-1", chat(ENDLESS))
        began = time.monotonic()
        answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK))
        assert time.monotonic() - began < 1
        assert (answer.status, answer.error["code"]) == (503, "queue_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        await session.send(type="create", request_id="r-2", request=chat(QUICK))
        error = await session.expect("error")
        assert (error["code"], error["request_id"]) == ("queue_full", "r-2")
        assert error["retry_after"] > 0
    assert asked(path) == 1


async def test_queue_can_be_switched_off(make_path: MakePath) -> None:
    limits = msgspec.convert({"tenant": {"concurrent_streams": 1}}, LimitsConfig)
    path = await make_path(queue=queue(max_waiting=0), limits=limits)
    async with await Session.open(path.url) as session:
        await session.create("r-0", chat(ENDLESS))
        answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK))
        assert (answer.status, answer.error["code"]) == (429, "rate_limited")


async def test_sse_client_waits_with_comments(make_path: MakePath) -> None:
    path = await make_path(model=ONE, server={"sse_keep_alive": 0.05})
    async with await Session.open(path.url) as session, await Http.open(path.url) as http:
        first = await session.create("r-0", chat(ENDLESS))
        http.request("POST", COMPLETIONS, chat(QUICK))
        assert (await http.head()).status == 200
        chunks = http.chunks()
        assert await anext(chunks) == b": keep-alive\n"
        await session.send(type="cancel", stream=first["stream"])
        body = b"".join([chunk async for chunk in chunks])
        assert body.endswith(b"data: [DONE]\n\n")
    assert asked(path) == 2


async def test_reader_of_a_queued_stream_is_told_that_it_waits(make_path: MakePath) -> None:
    path = await make_path(model=ONE)
    async with await Session.open(path.url) as session:
        await session.create("r-0", chat(ENDLESS))
        second = await session.create("r-1", chat(ENDLESS))
        async with await Session.open(path.url, hello={"streams": [{"stream": second["stream"]}]}) as other:
            assert other.welcome["streams"][0]["status"] == "queued"
        async with await Session.open(path.url) as other:
            assert (await other.attach(second["stream"]))["status"] == "queued"
        await session.send(type="create", request_id="r-1", request=chat(ENDLESS))
        accepted = await session.expect("accepted")
        assert (accepted["duplicate"], accepted["queue_position"]) == (True, 0)
        assert waiting(path) == 1


async def test_full_tenant_waits_and_others_pass(make_path: MakePath) -> None:
    keys = {name: create_key() for name in ("blue", "red")}
    limits = msgspec.convert({"tenant": {"concurrent_streams": 1}}, LimitsConfig)
    path = await make_path(
        keys={name: KeyConfig(hash=hashed) for name, (_, hashed) in keys.items()},
        limits=limits,
        queue=queue(max_waiting_per_tenant=1),
    )
    blue = {"additional_headers": {"authorization": f"Bearer {keys['blue'][0]}"}}
    async with await Session.open(path.url, **blue) as session:
        first = await session.create("r-0", chat(ENDLESS))
        second = await session.create("r-1", chat(QUICK))
        assert second["queue_position"] == 0
        header = {"authorization": f"Bearer {keys['red'][0]}"}
        assert (await ask(path.url, "POST", COMPLETIONS, chat(QUICK), **header)).status == 200
        header = {"authorization": f"Bearer {keys['blue'][0]}"}
        refused = await ask(path.url, "POST", COMPLETIONS, chat(QUICK), **header)
        assert (refused.status, refused.error["code"]) == (429, "rate_limited")
        assert "max_waiting_per_tenant" in refused.error["message"]
        await session.send(type="cancel", stream=first["stream"])
        assert (await session.expect("end"))["stream"] == first["stream"]
        _, end = await session.read()
        assert end["status"] == "completed"
    await at_rest(path)


async def test_gateway_that_closes_leaves_nobody_waiting(make_path: MakePath) -> None:
    path = await make_path(model=ONE)
    async with await Session.open(path.url) as session:
        for number in range(5):
            await session.create(f"r-{number}", chat(ENDLESS))
        await eventually(lambda: asked(path) == 1)
        assert waiting(path) == 4
        await path.gateway.launcher.aclose()
        await at_rest(path)
    assert asked(path) == 1
