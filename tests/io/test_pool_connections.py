"""The pool over real sockets: what is shared, drained, rotated, found dead and cancelled."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from holdfast_tools.simulate import faults as f
from tests.support.gateway_client import Http, ask, chat
from tests.support.pool_world import ONCE, PROTOCOLS, QUICK, Running, World
from tests.support.waiting import eventually

COMPLETED = ("completed", None)
RESET = ("incomplete", "upstream_reset")


def slow(world: World, **options: Any) -> Running:
    """A stream that goes on for about a second."""
    return world.stream(**{"tokens": 50, "interval_ms": 20, **options})


# -- sharing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["h2c", "h2tls"])
async def test_one_dead_connection_of_four_takes_a_quarter_of_the_streams(protocol: str) -> None:
    async with await World.start(protocol, settings=ONCE) as world:
        streams = [slow(world, seed=number) for number in range(100)]
        for stream in streams:
            await stream.first()
        assert sorted(connection.streams for connection in world.pool.connections) == [25, 25, 25, 25]
        next(iter(world.provider._connections)).arm(f.ResetConnection())
        outcomes = [await stream.outcome() for stream in streams]
        assert outcomes.count(RESET) == 25
        assert outcomes.count(COMPLETED) == 75
        assert sum(world.pool.resets.values()) == 25
        await world.is_at_rest()


async def test_slow_stream_does_not_hold_up_others_on_its_connection() -> None:
    async with await World.start("h2c", streams={"log_bytes": 20_000}) as world:
        stuck = world.stream(tokens=20_000)
        stuck.wake = lambda cursor: None  # type: ignore[method-assign]
        await eventually(lambda: stuck.stream.log.bytes >= stuck.stream.log.max_bytes, "a full log")
        assert await slow(world).outcome() == COMPLETED
        assert len(world.pool.connections) == 1
        assert world.pool.streams == 1
        # What came beyond the log's bound is what its window allowed, and no more.
        assert stuck.stream.log.bytes < 20_000 + 3 * 262_144
        del stuck.wake
        while not stuck.ended.is_set():
            stuck.wake(stuck.cursor)
            stuck.stream.resume_source()
            await asyncio.sleep(0)
        assert await stuck.outcome() == COMPLETED


async def test_slow_stream_over_http1_stops_the_provider() -> None:
    async with await World.start("http1", streams={"log_bytes": 20_000}) as world:
        stuck = world.stream(tokens=100_000)
        stuck.wake = lambda cursor: None  # type: ignore[method-assign]
        await eventually(lambda: stuck.stream.log.bytes >= stuck.stream.log.max_bytes, "a full log")
        assert await world.stream().outcome() == COMPLETED
        size = stuck.stream.log.bytes
        # While another answer comes, which takes half a second, nothing of this one does.
        assert await slow(world, tokens=25).outcome() == COMPLETED
        assert stuck.stream.log.bytes == size < 1_000_000
        stuck.stream.cancel()
        await world.is_at_rest()


@pytest.mark.parametrize("protocol", ["http1", "h2tls"])
async def test_http1_connections_are_kept_and_used_again(protocol: str) -> None:
    async with await World.start(protocol, alpn=("http/1.1",)) as world:
        for _ in range(5):
            assert await world.stream().outcome() == COMPLETED
        assert world.pool.connects == 1


async def test_tls_without_http2_falls_back_to_http1() -> None:
    async with await World.start("h2tls", alpn=("http/1.1",)) as world:
        outcomes = await asyncio.gather(*[slow(world).outcome() for _ in range(12)])
        assert outcomes == [COMPLETED] * 12
        assert {connection.protocol for connection in world.pool.connections} == {"http/1.1"}
        assert len(world.pool.connections) == 12


# -- waiting -------------------------------------------------------------------------------------------


async def test_request_without_a_slot_in_time_ends_with_the_pools_error() -> None:
    settings = {**ONCE, "max_connections": 1, "timeouts": {"pool": 0.2}}
    async with await World.start("http1", settings=settings) as world:
        first = await slow(world).first()
        assert await world.stream().outcome() == ("failed", "pool_timeout")
        assert await first.outcome() == COMPLETED
        assert world.pool.wait_timeouts == 1
        assert world.health.breaker == "closed"


async def test_request_that_is_cancelled_while_it_waits_is_never_sent() -> None:
    async with await World.start("http1", settings={"max_connections": 1}) as world:
        first = await slow(world).first()
        second = world.stream()
        await eventually(lambda: world.pool.waiting == 1, "a waiter")
        second.stream.cancel()
        assert await second.outcome() == ("cancelled", "cancelled")
        assert await first.outcome() == COMPLETED
        await world.is_at_rest()
        assert world.provider.statistics().requests == 1


async def test_hung_handshake_delays_one_request_and_blocks_nobody() -> None:
    settings = {"timeouts": {"connect": 1.2}, "max_connections": 8}
    async with await World.start("h2tls", settings=settings) as world:
        world.provider.arm(f.HangHandshake())
        began = time.monotonic()
        outcomes = await asyncio.gather(*[world.stream().outcome() for _ in range(8)])
        assert outcomes == [COMPLETED] * 8
        assert time.monotonic() - began < 1.1
        await eventually(lambda: world.pool.connecting == 0, "the end of the hung dial")
        assert world.pool.connect_failures == {"connect_timeout": 1}


@pytest.mark.parametrize("protocol", ["h2c", "h2tls"])
async def test_provider_that_never_speaks_gives_a_connect_timeout(protocol: str) -> None:
    settings = {**ONCE, "timeouts": {"connect": 0.3}}
    async with await World.start(
        protocol, settings=settings, simulated={"connection_faults": [f.Silence()]}
    ) as world:
        assert await world.stream().outcome() == ("failed", "connect_timeout")
        await world.is_like_new()


async def test_refused_connection_is_an_error_at_once() -> None:
    async with await World.start("h2c", settings=ONCE) as world:
        await world.provider.aclose()
        outcomes = await asyncio.gather(*[world.stream().outcome() for _ in range(5)])
        assert outcomes == [("failed", "upstream_connect_error")] * 5
        assert world.pool.connecting == 0


# -- connections that go -------------------------------------------------------------------------------


async def test_goaway_lets_running_streams_end_and_sends_new_ones_elsewhere() -> None:
    async with await World.start("h2c") as world:
        running = [await slow(world).first() for _ in range(3)]
        world.provider.arm_current(f.Goaway())
        await eventually(lambda: world.pool.goaways == 1, "the goaway")
        assert await world.stream().outcome() == COMPLETED
        assert {connection.state for connection in world.pool.connections} == {"draining", "ready"}
        assert [await stream.outcome() for stream in running] == [COMPLETED] * 3
        await eventually(lambda: len(world.pool.connections) == 1, "the end of the old connection")
        assert world.health.retries == 0


async def test_unprocessed_streams_of_a_goaway_are_sent_again_without_a_budget() -> None:
    async with await World.start("h2c", settings=ONCE) as world:
        old = await slow(world).first()
        world.provider.arm_current(f.Goaway(after_streams=6, unprocessed=6))
        again = [world.stream(seed=number) for number in range(6)]
        assert [await stream.outcome() for stream in again] == [COMPLETED] * 6
        assert await old.outcome() == COMPLETED
        attempts = (await again[0].end()).attempts
        assert [attempt.error for attempt in attempts] == ["upstream_reset", None]
        health = world.health
        assert (health.retries, health.resent_unprocessed, health.failovers) == (0, 6, 0)
        assert world.pool.resets == {"goaway": 6}


async def test_connections_are_replaced_at_their_age_and_streams_go_on() -> None:
    async with await World.start("h2c", settings={"max_age": 0.3}) as world:
        long = await slow(world).first()
        await eventually(lambda: world.pool.connects >= 2, "a second connection")
        assert await world.stream().outcome() == COMPLETED
        assert await long.outcome() == COMPLETED


async def test_black_holed_idle_connection_is_found_and_never_lent() -> None:
    async with await World.start("h2c", settings={**QUICK, "idle_timeout": 60.0}) as world:
        assert await world.stream().outcome() == COMPLETED
        world.provider.arm_current(f.BlackHole())
        await eventually(lambda: not world.pool.connections, "the death of the connection")
        assert await world.stream().outcome() == COMPLETED
        assert world.pool.resets == {}


async def test_ping_measures_the_round_trip() -> None:
    async with await World.start("h2c") as world:
        await world.stream().outcome()
        await eventually(lambda: world.pool.connections[0].rtt is not None, "the answer to a PING")
        rtt = world.pool.connections[0].rtt
        assert rtt is not None
        assert 0 < rtt < 1


async def test_warm_connections_are_there_before_the_first_request() -> None:
    async with await World.start("h2c", settings={"min_warm": 2}) as world:
        await eventually(lambda: len(world.pool.connections) == 2, "two connections")
        await world.stream().outcome()
        assert world.pool.connects == 2


# -- cancelling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stage", ["before the first byte", "mid-stream", "non-streaming"])
async def test_client_that_goes_cancels_the_providers_request(protocol: str, stage: str) -> None:
    async with await World.start(protocol) as world:
        sim = {"tokens": 1000, "interval_ms": 20, "ttft_ms": 60_000 if stage == "before the first byte" else 0}
        async with await Http.open(world.gateway.url) as http:
            http.request("POST", "/v1/chat/completions", chat(sim, stream=stage != "non-streaming"))
            await world.provider.until(lambda s: s.streaming == 1)
            if stage == "mid-stream":
                await http.head()
                await anext(http.events())
        statistics = await world.provider.until(lambda s: s.streaming == 0)
        assert (statistics.cancelled, statistics.completed) == (1, 0)
        await world.is_at_rest()
        assert await world.stream().outcome() == COMPLETED


async def seconds_to_cancel(world: World, stream: Running) -> float:
    cancelled = world.provider.statistics().cancelled
    began = time.monotonic()
    stream.stream.cancel()
    await world.provider.until(lambda s: s.cancelled > cancelled)
    return time.monotonic() - began


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_cancelling_reaches_the_provider_within_50_ms(protocol: str) -> None:
    async with await World.start(protocol) as world:
        durations = []
        for _ in range(5):
            stream = await world.stream(tokens=1000, interval_ms=5).first()
            durations.append(await seconds_to_cancel(world, stream))
        assert min(durations) < 0.05
        assert world.pool.streams == 0


class EndLater:
    """A provider whose answer's last bytes come `delay` after its terminal event, or never."""

    def __init__(self, delay: float | None) -> None:
        self.delay = delay
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
                event = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await asyncio.sleep(3600 if self.delay is None else self.delay)
                writer.write(b"0\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.mark.parametrize(("delay", "connections"), [(0.05, 1), (None, 2)])
async def test_connection_is_kept_for_an_end_that_comes_late_and_not_for_one_that_never_comes(
    delay: float | None, connections: int
) -> None:
    late = EndLater(delay)
    server = await asyncio.start_server(late.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = {"base_url": f"http://127.0.0.1:{port}/v1", "max_connections": 1}
    async with await World.start("http1", settings=settings) as world:
        for _ in range(2):
            stream = world.stream()
            assert (await stream.end()).status == "completed"
        assert late.connections == connections
    server.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


# -- what is shown -------------------------------------------------------------------------------------


async def test_pool_is_shown_with_its_connections_breaker_and_counters() -> None:
    async with await World.start("h2c") as world:
        stream = await slow(world).first()
        response = await ask(world.gateway.url, "GET", "/v1/pool")
        assert response.status == 200
        (shown,) = json.loads(response.body)["providers"]
        assert shown["provider"] == "sim0"
        assert shown["health"]["breaker"] == "closed"
        pool = shown["pool"]
        assert (pool["streams"], pool["waiting"], pool["connecting"], pool["requests"]) == (1, 0, 0, 1)
        (connection,) = pool["connections"]
        assert (connection["protocol"], connection["state"], connection["streams"]) == ("h2", "ready", 1)
        assert connection["capacity"] == 32
        assert connection["receive_window"] > 1_000_000
        await stream.outcome()
