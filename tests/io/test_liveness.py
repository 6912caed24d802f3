"""Silence: of a provider, which harms nobody, and of a client that is gone without a word."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from holdfast import StreamingAIClient, WebSocketConfig
from holdfast.server.listener.http import HttpConnection
from tests.support.gateway_client import Http, Session, answer, chat, content
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.relay import Relay
from tests.support.virtual_clock import VirtualClock
from tests.support.waiting import eventually

HELLO = [{"role": "user", "content": "hi"}]
#: A provider may be silent for as long as it likes.
PATIENT = {"timeouts": {"first_byte": 7200, "idle": 7200, "total": 7200}}


@pytest.fixture
async def clock() -> VirtualClock:
    """Name it before the fixtures that look at the clock."""
    return VirtualClock(asyncio.get_running_loop())


async def read_sse(http: Http) -> str:
    assert (await http.head()).status == 200
    payloads = [event.data async for event in http.events()]
    assert payloads.pop() == "[DONE]"
    return content(payloads)


async def read_through_silence(path: Any, ttft: float, wait: Callable[[], Any]) -> None:
    """A WebSocket, an SSE reader and the SDK ask, wait through the silence, and have the whole answer."""
    sim = {"tokens": 5, "interval_ms": 0, "ttft_ms": round(ttft * 1000), "seed": 7}
    async with (
        await Session.open(path.url) as session,
        await Http.open(path.url) as http,
        StreamingAIClient(WebSocketConfig(path.url)) as client,
    ):
        heartbeat = {"interval_ms": 20_000, "timeout_ms": 10_000}
        assert session.welcome["heartbeat"] == heartbeat
        await session.create("silent", chat(sim))
        http.request("POST", "/v1/chat/completions", chat(sim))
        stream = client.stream_chat(HELLO, model="demo", sim=sim)
        reading = asyncio.create_task(anext(stream))
        await path.provider.until(lambda s: s.requests == 3)
        await wait()
        head = await http.head()
        assert head.status == 200
        entries, end = await session.read()
        assert (content(entries), end["status"]) == (answer(5), "completed")
        payloads = [event.data async for event in http.events()]
        assert payloads.pop() == "[DONE]"
        assert content(payloads) == answer(5)
        assert http.comments >= ttft // 20  # each 15 s, and the virtual clock jumps 2.5 s at a time
        assert await reading + "".join([text async for text in stream]) == answer(5)
        assert path.provider.statistics().requests == 3


async def test_provider_that_is_silent_for_half_an_hour_cuts_nobody_off(
    clock: VirtualClock, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.gateway_client.DEADLINE", 7200.0)
    path = await make_path(provider=PATIENT)
    await read_through_silence(path, 1800.0, lambda: clock.pass_time(1801.0, step=2.5))


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_provider_that_is_silent_for_90_seconds_cuts_nobody_off(
    make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.gateway_client.DEADLINE", 120.0)
    path = await make_path()
    await read_through_silence(path, 90.0, lambda: asyncio.sleep(0))


async def test_silent_sse_answer_gets_comments_before_its_first_token(make_path: MakePath) -> None:
    path = await make_path(server={"sse_keep_alive": 0.1})
    async with await Http.open(path.url) as http:
        http.request("POST", "/v1/chat/completions", chat({"tokens": 2, "ttft_ms": 600}))
        assert await read_sse(http) == answer(2)
        assert 3 <= http.comments <= 6


# -- clients that are gone -----------------------------------------------------------------------------


@pytest.fixture
async def watched(make_path: MakePath) -> GatewayPath:
    return await make_path(server={"ping_interval": 0.3, "ping_timeout": 0.3})


async def test_client_behind_a_black_hole_is_found_in_time_and_its_stream_goes_on(watched: GatewayPath) -> None:
    loop = asyncio.get_running_loop()
    async with Relay(watched.gateway.port) as relay:
        session = await Session.open(relay.url)
        accepted = await session.create("gone", chat({"tokens": 100, "interval_ms": 20}))
        seen = len(await session.entries(1))
        relay.is_black_hole = True
        begun = loop.time()
        await eventually(lambda: not watched.gateway.peers)
        assert 0.3 <= loop.time() - begun <= 1.2  # interval, timeout, and the timers' resolution
        assert watched.gateway.directory.statistics().running == 1
        hello = {"streams": [{"stream": accepted["stream"], "after": seen - 1}]}
        async with await Session.open(watched.url, hello=hello) as again:
            assert again.welcome["streams"][0]["status"] == "running"
            entries, end = await again.read(start=seen)
        assert answer(100).endswith(content(entries))
        assert (end["status"], end["seq"]) == ("completed", seen + len(entries))
        assert watched.provider.statistics().requests == 1
        await session.drop()


async def test_client_that_answers_pings_is_kept_however_silent(watched: GatewayPath) -> None:
    async with await Session.open(watched.url) as session:
        reading = asyncio.create_task(session.socket.recv())
        await asyncio.wait([reading], timeout=1.5)
        assert watched.gateway.peers.statistics().conversations == 1
        await session.send(type="ping", t=1)
        assert json.loads(await reading) == {"type": "pong", "t": 1}


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
async def test_kernel_watches_every_accepted_connection(make_path: MakePath) -> None:
    path = await make_path(server={"ping_interval": 7.0, "ping_timeout": 3.0})
    async with await Http.open(path.url) as http:
        assert (await http.ask("GET", "/healthz")).status == 200
        (connection,) = path.gateway.peers
        assert isinstance(connection, HttpConnection)
        assert connection.transport is not None
        own = connection.transport.get_extra_info("socket")
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
        raw = [own.getsockopt(socket.IPPROTO_TCP, option, 4) for option in options]
        assert [struct.unpack("i", value)[0] for value in raw] == [7, 1, 3, 10_000]
