"""The Python client against the real gateway and a simulated provider; and each of its examples."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from holdfast import (
    Cancelled,
    Chunk,
    ConnectionLost,
    ConnectionState,
    InvalidRequest,
    StreamEnd,
    StreamingAIClient,
    SyncStreamingAIClient,
    TextStream,
    Unauthorized,
    UnknownModel,
    UnknownStream,
    UpstreamStatus,
    WebSocketConfig,
)
from holdfast.admission.auth import create_key
from holdfast.config import KeyConfig
from holdfast_tools.simulate.certificate import self_signed
from tests.support.gateway_client import answer
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.relay import Cut, Direction, Relay

HELLO = [{"role": "user", "content": "hi"}]
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("python_*.py"))


def sim(tokens: int, seed: int = 7, **fields: Any) -> dict[str, Any]:
    return {"tokens": tokens, "seed": seed, "interval_ms": 0, "ttft_ms": 0, **fields}


def config(url: str, **settings: Any) -> WebSocketConfig:
    return WebSocketConfig(url, **{"initial_backoff": 0.005, "max_backoff": 0.05, **settings})


@pytest.fixture
async def client(path: GatewayPath) -> AsyncIterator[StreamingAIClient]:
    async with StreamingAIClient(config(path.url)) as client:
        yield client


async def test_stream_chat_yields_the_whole_answer(path: GatewayPath, client: StreamingAIClient) -> None:
    stream = client.stream_chat(HELLO, model="demo", temperature=0.7, max_tokens=2048, sim=sim(300))
    assert "".join([text async for text in stream]) == answer(300)
    assert stream.finish_reason == "stop"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 300


async def test_events_yield_every_entry_once(path: GatewayPath, client: StreamingAIClient) -> None:
    events = [event async for event in client.events(HELLO, model="demo", sim=sim(50))]
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    assert "".join(chunk.text for chunk in chunks) == answer(50)
    assert all(chunk.data["object"] == "chat.completion.chunk" for chunk in chunks)
    assert isinstance(events[-1], StreamEnd)
    assert events[-1].attempts[0].status == 200


@pytest.mark.parametrize("window", [1024, 256 * 1024])
@pytest.mark.parametrize("seed", range(3))
async def test_cuts_at_random_bytes_lose_and_double_nothing(path: GatewayPath, seed: int, window: int) -> None:
    rng = random.Random(seed)

    def plan(number: int) -> Cut | None:
        direction: Direction = "up" if number % 3 == 2 else "down"
        return Cut(direction, offset=rng.randrange(2000)) if number < 12 else None

    async def read(client: StreamingAIClient, number: int) -> str:
        stream = client.stream_chat(HELLO, model="demo", user=str(number), sim=sim(40, number, interval_ms=2))
        return "".join([text async for text in stream])

    async with (
        Relay(path.gateway.port, plan) as relay,
        StreamingAIClient(config(relay.url, max_retries=20, stream_window=window)) as client,
    ):
        texts = await asyncio.gather(*(read(client, number) for number in range(5)))
    assert texts == [answer(40, number) for number in range(5)]
    assert relay.cuts >= 1
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert statistics.requests_by_key == {str(number): 1 for number in range(5)}


async def test_break_cancels_the_request_at_the_provider(path: GatewayPath, client: StreamingAIClient) -> None:
    async for _ in client.stream_chat(HELLO, model="demo", sim=sim(1_000_000, interval_ms=1)):
        break
    statistics = await path.provider.until(lambda s: s.cancelled == 1)
    assert statistics.streaming == 0
    assert client.state is ConnectionState.OPEN


async def test_cancel_by_id_from_another_client_reaches_the_provider(
    path: GatewayPath, client: StreamingAIClient
) -> None:
    stream = client.stream_chat(HELLO, model="demo", sim=sim(1_000_000, interval_ms=1))
    await anext(stream)
    async with StreamingAIClient(config(path.url)) as other:
        assert stream.id is not None
        await other.cancel(stream.id)
        await path.provider.until(lambda s: s.cancelled == 1)
        with pytest.raises(Cancelled):
            async for _ in stream:
                pass
        with pytest.raises(UnknownStream):
            await other.cancel("st_none")


async def test_second_client_reads_a_running_and_an_ended_stream_whole(
    path: GatewayPath, client: StreamingAIClient
) -> None:
    async with StreamingAIClient(config(path.url)) as other:
        stream = client.stream_chat(HELLO, model="demo", sim=sim(60, interval_ms=2))
        first = await anext(stream)
        assert stream.id is not None
        running = asyncio.create_task(collect(other.attach(stream.id)))
        assert first + await collect(stream) == answer(60)
        assert await running == answer(60)
        assert await collect(other.attach(stream.id)) == answer(60)
        assert answer(60).endswith(await collect(other.attach(stream.id, after=30)))


async def collect(stream: TextStream) -> str:
    return "".join([text async for text in stream])


async def test_unread_stream_holds_up_no_other_and_loses_nothing(make_path: MakePath) -> None:
    path = await make_path(streams={"log_bytes": 64 * 1024})
    async with StreamingAIClient(config(path.url, stream_window=4096)) as client:
        slow = client.stream_chat(HELLO, model="demo", sim=sim(5000, 1))
        first = await anext(slow)
        assert await collect(client.stream_chat(HELLO, model="demo", sim=sim(5000, 2))) == answer(5000, 2)
        assert first + await collect(slow) == answer(5000, 1)


async def test_same_request_id_is_one_generation(path: GatewayPath, client: StreamingAIClient) -> None:
    ask: dict[str, Any] = {"model": "demo", "sim": sim(20), "request_id": "the-same"}
    assert await collect(client.stream_chat(HELLO, **ask)) == answer(20)
    async with StreamingAIClient(config(path.url)) as other:
        assert await collect(other.stream_chat(HELLO, **ask)) == answer(20)
    assert (await path.provider.until(lambda s: s.streaming == 0)).requests == 1


async def test_errors_are_typed(path: GatewayPath, client: StreamingAIClient) -> None:
    with pytest.raises(UnknownModel):
        await collect(client.stream_chat(HELLO, model="nonsense"))
    with pytest.raises(InvalidRequest):
        await collect(client.stream_chat(cast(Any, "nonsense"), model="demo"))
    refused = sim(5, fault={"kind": "status", "status": 418})
    with pytest.raises(UpstreamStatus) as caught:
        await collect(client.stream_chat(HELLO, model="demo", sim=refused))
    assert caught.value.status == 418


async def test_api_key_is_checked_at_the_handshake(make_path: MakePath) -> None:
    key, hashed = create_key()
    path = await make_path(keys={"web": KeyConfig(hash=hashed)})
    async with StreamingAIClient(config(path.url, api_key=key)) as client:
        assert await collect(client.stream_chat(HELLO, model="demo", sim=sim(3))) == answer(3)
    for wrong in (None, "wrong"):
        async with StreamingAIClient(config(path.url, api_key=wrong)) as client:
            with pytest.raises(Unauthorized):
                await client.connect()


async def test_tls_is_spoken_and_a_certificate_that_nobody_vouches_for_is_not_retried(
    make_path: MakePath, tmp_path: Path
) -> None:
    cert, key = self_signed()
    (tmp_path / "cert.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(key)
    path = await make_path(server={"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")})
    trusting = ssl.create_default_context(cadata=cert.decode())
    async with StreamingAIClient(config(path.url, ssl=trusting)) as client:
        assert await collect(client.stream_chat(HELLO, model="demo", sim=sim(300))) == answer(300)
        async for _ in client.stream_chat(HELLO, model="demo", sim=sim(1_000_000, interval_ms=1)):
            break
        await path.provider.until(lambda s: s.cancelled == 1)
    states: list[ConnectionState] = []
    async with StreamingAIClient(config(path.url), on_state=states.append) as client:
        with pytest.raises(ConnectionLost, match="CERTIFICATE_VERIFY_FAILED"):
            await client.connect()
        assert states == [ConnectionState.CONNECTING, ConnectionState.DISCONNECTED]


async def test_gateway_that_lost_its_streams_is_told_apart_from_a_cut(
    path: GatewayPath, make_path: MakePath
) -> None:
    other = await make_path()
    ports = [path.gateway.port, other.gateway.port]
    relay = Relay(ports[0], lambda number: Cut("down", messages=5) if number == 0 else None)
    async with relay, StreamingAIClient(config(relay.url)) as client:
        stream = client.stream_chat(HELLO, model="demo", sim=sim(1000, interval_ms=2))
        await anext(stream)
        relay.target = ports[1]  # what answers from now on is another process
        with pytest.raises(UnknownStream) as caught:
            await collect(stream)
    assert answer(1000).startswith(caught.value.partial)
    assert caught.value.partial


async def test_synchronous_client_streams_and_cancels(path: GatewayPath) -> None:
    def use() -> None:
        with SyncStreamingAIClient(config(path.url)) as client:
            assert "".join(client.stream_chat(HELLO, model="demo", sim=sim(300))) == answer(300)
            for _ in client.stream_chat(HELLO, model="demo", sim=sim(1_000_000, interval_ms=1)):
                break

    await asyncio.to_thread(use)
    await path.provider.until(lambda s: s.cancelled == 1)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
async def test_example_runs(path: GatewayPath, example: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", str(example)),
        env={**os.environ, "HOLDFAST_URL": path.url + "/v1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert len(out.split()) > 3


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
