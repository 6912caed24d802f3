"""What a gateway that goes still does, what it refuses, and what it tells whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast import StreamingAIClient, WebSocketConfig
from holdfast.server import drain
from tests.support.gateway_client import (
    Http,
    Session,
    answer,
    ask,
    chat,
    content,
    dial,
    read_stream,
    stream_of,
    whole,
)
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

SLOW = {"tokens": 100_000, "interval_ms": 2}


async def start_drain(path: Any) -> asyncio.Task[bool]:
    """Begin to drain, as SIGTERM does."""
    task = asyncio.get_running_loop().create_task(path.gateway.drain())
    await eventually(lambda: path.gateway.peers.is_draining)
    return task


@pytest.fixture
async def running(path: GatewayPath) -> AsyncIterator[tuple[Session, str]]:
    """A gateway that drains while a stream runs, the session of that stream, and its id."""
    async with await Session.open(path.url) as session:
        accepted = await session.create("running", chat(SLOW))
        await session.entries(1)
        task = await start_drain(path)
        yield session, accepted["stream"]
        stream_of(path.gateway, accepted["stream"]).cancel()
        async with asyncio.timeout(10):
            assert await task


async def test_probes_are_answered_while_a_gateway_drains(path: GatewayPath, running: tuple[Session, str]) -> None:
    ready = await ask(path.url, "GET", "/readyz")
    assert (ready.status, ready.json()) == (503, {"status": "draining"})
    assert (await ask(path.url, "GET", "/healthz")).status == 200
    assert ready.headers["connection"] == "close"


async def test_new_request_is_refused_with_retry_after(path: GatewayPath, running: tuple[Session, str]) -> None:
    refused = await ask(path.url, "POST", "/v1/chat/completions", chat({"tokens": 1}))
    assert (refused.status, refused.error["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "1"
    assert path.provider.statistics().requests == 1


async def test_session_is_told_and_its_create_refused_while_its_stream_goes_on(
    path: GatewayPath, running: tuple[Session, str]
) -> None:
    session, _ = running
    await session.send(type="create", request_id="late", request=chat({"tokens": 1}))
    seen: dict[str, Any] = {}
    while not {"goaway", "error"} <= seen.keys():
        message = await session.receive()
        seen[message["type"]] = message
    assert seen["goaway"] == {"type": "goaway", "reason": "drain", "window_ms": [0, 30], "streams": "stay"}
    assert seen["error"]["code"] == "draining"
    assert seen["error"]["request_id"] == "late"
    assert seen["error"]["retry_after"] == 1
    assert (await session.receive())["type"] in ("event", "events")


async def test_same_request_id_still_finds_its_running_stream(
    path: GatewayPath, running: tuple[Session, str]
) -> None:
    _, stream = running
    async with await Session.open(path.url, hello={"streams": [{"stream": stream, "after": 0}]}) as again:
        await again.expect("goaway")
        await again.send(type="create", request_id="running", request=chat(SLOW))
        while (message := await again.receive())["type"] != "accepted":
            assert message["type"] in ("event", "events")
        assert message["duplicate"] is True


async def test_running_stream_can_be_resumed_and_read(path: GatewayPath, running: tuple[Session, str]) -> None:
    session, stream = running
    await session.drop()
    async with await Session.open(path.url, hello={"streams": [{"stream": stream, "after": 0}]}) as again:
        assert again.welcome["streams"][0]["status"] == "running"
        await again.expect("goaway")
        await again.entries(3, start=1)
        async with await Http.open(path.url) as http:
            http.request("GET", f"/v1/streams/{stream}")
            assert (await http.head()).status == 200
            events = http.events()
            assert (await anext(events)).seq == 0
        polled = (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none")).json()
        assert polled["status"] == "running"


async def test_hello_without_a_stream_of_this_process_is_sent_elsewhere(
    path: GatewayPath, running: tuple[Session, str]
) -> None:
    for hello in ({}, {"streams": [{"stream": "st_elsewhere"}]}):
        socket = await dial(path.url)
        session = Session(socket)
        await session.send(type="hello", version=1, **hello)
        error = await session.expect("error")
        assert (error["code"], error["retry_after"]) == ("draining", 1)
        assert await session.closed() == (1012, "draining")


async def test_handshake_is_refused_where_nothing_can_be_resumed(path: GatewayPath) -> None:
    async with await Session.open(path.url):
        task = await start_drain(path)
        async with await Http.open(path.url) as http:
            http.request(
                "GET",
                "/v1/ws/stream",
                upgrade="websocket",
                connection="Upgrade",
                sec_websocket_version="13",
                sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
            )
            refused = await http.response()
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert refused.headers["retry-after"] == "1"
    async with asyncio.timeout(10):
        assert await task


async def test_idle_session_is_closed_at_the_end_of_the_window(
    make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "FULL_WINDOW_CONNECTIONS", 1)
    path = await make_path(server={"drain_window": 0.3})
    async with await Session.open(path.url) as session:
        task = await start_drain(path)
        goaway = await session.expect("goaway")
        assert goaway["window_ms"] == [0, 300]
        assert not task.done()
        assert await session.closed() == (1012, "draining")
        assert await task


async def test_bare_client_is_told_and_reads_its_stream_to_the_end(path: GatewayPath) -> None:
    async with await Session.open_bare(path.url) as session:
        await session.send(**chat({"tokens": 50, "interval_ms": 5}))
        await session.expect("accepted")
        task = await start_drain(path)
        texts, told = [], 0
        while (message := await session.receive())["type"] != "end":
            told += message["type"] == "goaway"
            texts += [message["data"]] if message["type"] == "event" else []
        assert (content(texts), told) == (answer(50), 1)
        assert await session.closed() == (1012, "draining")
        assert await task


async def test_drain_waits_for_sse_readers_and_whole_answers(path: GatewayPath) -> None:
    async with await Http.open(path.url) as sse, await Http.open(path.url) as whole_answer:
        sse.request("POST", "/v1/chat/completions", chat({"tokens": 40, "interval_ms": 10}))
        assert (await sse.head()).status == 200
        whole_answer.request("POST", "/v1/chat/completions", chat({"tokens": 40, "interval_ms": 10}, stream=False))
        await eventually(lambda: path.gateway.directory.statistics().running == 2)
        task = await start_drain(path)
        texts = [event.data async for event in sse.events()]
        assert content(texts[:-1]) == answer(40)
        assert texts[-1] == "[DONE]"
        message = (await whole_answer.response()).json()["choices"][0]["message"]["content"]
        assert message == answer(40)
        assert await sse.is_closed()  # kept alive no longer
        assert await task


async def test_idle_keep_alive_connection_is_closed_at_once(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http:
        assert (await http.ask("GET", "/healthz")).status == 200
        task = await start_drain(path)
        assert await http.is_closed()
        assert await task


async def test_end_that_a_lost_reader_missed_is_waited_for(make_path: MakePath) -> None:
    path = await make_path(streams={"detach_grace": 30.0})
    session = await Session.open(path.url)
    accepted = await session.create("lost", chat({"tokens": 30, "interval_ms": 5}))
    await session.entries(1)
    task = await start_drain(path)
    await session.drop()
    await eventually(lambda: path.gateway.directory.statistics().running == 0)
    await asyncio.wait([task], timeout=0.3)
    assert not task.done()
    assert whole(await read_stream(path.url, accepted["stream"])) == answer(30)
    async with asyncio.timeout(10):
        assert await task


async def test_stream_beyond_the_drain_timeout_ends_incomplete_with_shutdown(make_path: MakePath) -> None:
    path = await make_path(server={"drain_timeout": 0.3})
    async with await Session.open(path.url) as session, await Http.open(path.url) as http:
        await session.create("long", chat(SLOW))
        http.request("POST", "/v1/chat/completions", chat(SLOW))
        assert (await http.head()).status == 200
        task = await start_drain(path)
        assert await task is False
        closing = asyncio.create_task(path.gateway.aclose(grace=5.0))
        entries: list[Any] = []
        while (message := await session.receive())["type"] != "end":
            if message["type"] != "goaway":
                entries += message["data"] if message["type"] == "events" else [message["data"]]
        assert message["status"] == "incomplete"
        assert message["error"]["code"] == "shutdown"
        assert message["seq"] == len(entries)
        assert await session.closed() == (1012, "draining")
        texts = [event.data async for event in http.events()]
        assert json.loads(texts[-1])["error"]["code"] == "shutdown"
        await closing
        await path.provider.until(lambda s: s.streaming == 0)


async def test_sdk_keeps_its_stream_and_asks_another_gateway_for_the_next(
    path: GatewayPath, make_path: MakePath
) -> None:
    """One address, behind which first the one and then the other gateway is, as a load balancer has it."""
    other = await make_path()
    target = [path.gateway.port]

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        writer.close()

    async def balance(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection("127.0.0.1", target[0])
        await asyncio.gather(pipe(reader, upstream[1]), pipe(upstream[0], writer))

    balancer = await asyncio.start_server(balance, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{balancer.sockets[0].getsockname()[1]}"
    messages = [{"role": "user", "content": "hi"}]
    async with balancer, StreamingAIClient(WebSocketConfig(url)) as client:
        old = client.stream_chat(messages, model="demo", sim={"tokens": 100, "interval_ms": 10, "seed": 7})
        texts = [await anext(old)]
        target[0] = other.gateway.port
        task = await start_drain(path)
        sim = {"tokens": 5, "interval_ms": 0, "seed": 7}
        await eventually(lambda: path.gateway.peers.statistics().conversations)
        new = "".join([text async for text in client.stream_chat(messages, model="demo", sim=sim)])
        assert new == answer(5)
        texts += [text async for text in old]
        assert "".join(texts) == answer(100)
        async with asyncio.timeout(10):
            assert await task
        assert path.provider.statistics().requests + other.provider.statistics().requests == 2
