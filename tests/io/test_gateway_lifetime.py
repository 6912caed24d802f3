"""How long things live: streams without readers, ended streams, sessions that come back, memory that runs out."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from holdfast.server.listener.admitted import Limits
from holdfast.server.listener.http import HttpConnection
from holdfast_tools.simulate.faults import CloseConnection
from tests.support.gateway_client import (
    DEADLINE,
    Http,
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
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

COMPLETIONS = "/v1/chat/completions"
ENDLESS = {"tokens": 1_000_000, "interval_ms": 2}
#: Timers fire at most two ticks of 50 ms late; the rest is for a busy machine.
LATE = 1.0


async def time_of_cancel(path: GatewayPath, *, since: float) -> float:
    """Wait until the provider's request is cancelled; return the seconds that this took."""
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert (statistics.cancelled, statistics.completed) == (1, 0)
    return time.monotonic() - since


async def pass_time(path: GatewayPath, *, ms: int) -> None:
    """Let a paced stream run for about so long, on a connection of its own."""
    async with await Session.open(path.url) as session:
        request = chat({"tokens": 1, "ttft_ms": ms})
        await session.create(f"clock-{time.monotonic_ns()}", request)
        await session.read()


# -- the grace period of sessions ----------------------------------------------------------------------


async def test_dropped_session_cancels_after_the_grace_and_not_before(make_path: MakePath) -> None:
    path = await make_path(streams={"detach_grace": 0.4})
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat(ENDLESS)))["stream"]
        await session.entries(1)
        await session.drop()
        dropped = time.monotonic()
    elapsed = await time_of_cancel(path, since=dropped)
    assert 0.4 <= elapsed < 0.4 + LATE
    batch = (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none")).json()
    assert content([entry["data"] for entry in batch["entries"]]) == answer(len(batch["entries"]) - 1)
    assert (batch["end"]["status"], batch["end"]["error"]["code"]) == ("cancelled", "cancelled")


async def test_closed_session_is_a_dropped_one(make_path: MakePath) -> None:
    path = await make_path(streams={"detach_grace": 0.3})
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat(ENDLESS))
        await session.entries(1)
    assert 0.3 <= await time_of_cancel(path, since=time.monotonic()) + 0.01 < 0.3 + LATE


async def test_session_that_comes_back_in_time_keeps_its_stream(make_path: MakePath) -> None:
    path = await make_path(streams={"detach_grace": 0.2})
    request = chat({"tokens": 200, "interval_ms": 3})  # three times the grace
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", request))["stream"]
        got = await session.entries(3)
        await session.drop()
    hello = {"session": session.welcome["session"], "streams": [{"stream": stream, "after": len(got) - 1}]}
    async with await Session.open(path.url, hello=hello) as session:
        assert session.welcome["resumed"] is True
        assert session.welcome["streams"] == [{"stream": stream, "status": "running", "next": len(got)}]
        rest, end = await session.read(start=len(got))
    assert (content(got + rest), end["status"]) == (answer(200), "completed")


async def test_each_reader_that_is_lost_has_the_whole_grace(make_path: MakePath) -> None:
    """The first one's grace must not end the stream under the second, who left later."""
    path = await make_path(streams={"detach_grace": 0.5})
    async with await Session.open(path.url) as first:
        stream = (await first.create("r-1", chat(ENDLESS)))["stream"]
        got = await first.entries(5)
        await first.send(type="ack", streams={stream: len(got) - 1})
        await first.send(type="ping")
        while (await first.receive())["type"] != "pong":
            pass
        await first.drop()
    async with await Session.open(path.url) as second:
        await second.attach(stream)
        await pass_time(path, ms=300)
        await second.drop()
        dropped = time.monotonic()
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert statistics.cancelled == 1
    assert 0.5 <= time.monotonic() - dropped < 0.5 + LATE


async def test_detached_stream_runs_on_without_a_reader(make_path: MakePath) -> None:
    path = await make_path(streams={"detach_grace": 0.1})
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 100, "interval_ms": 5})))["stream"]
        await session.send(type="detach", stream=stream)
        while (await session.receive())["type"] != "detached":
            pass
    await eventually(lambda: stream_of(path.gateway, stream).reader_count == 0)
    assert (await path.provider.until(lambda s: s.completed == 1)).requests == 1
    assert whole(await read_stream(path.url, stream)) == answer(100)


async def test_poller_alone_keeps_a_stream_only_while_it_polls(make_path: MakePath) -> None:
    path = await make_path(streams={"detach_grace": 0.3})
    async with await Session.open(path.url) as session:
        stream = (
            await session.create("r-1", chat({"tokens": 200, "fault": {"kind": "stall", "after_tokens": 3}}))
        )["stream"]
        await session.entries(4)
        await session.drop()
    for _ in range(3):  # longer than the grace
        response = await ask(path.url, "GET", f"/v1/streams/{stream}?live=long-poll&after=3&timeout=0.2")
        assert response.json()["status"] == "running"
    assert await time_of_cancel(path, since=time.monotonic()) < 0.3 + LATE


# -- leaving over HTTP ---------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
async def test_http_client_that_leaves_cancels_at_once(path: GatewayPath, streaming: bool) -> None:
    async with await Http.open(path.url) as http:
        http.request("POST", COMPLETIONS, chat({**ENDLESS, "tokens": 5_000}, stream=streaming))
        await path.provider.until(lambda s: s.streaming == 1)
    assert await time_of_cancel(path, since=time.monotonic()) < LATE
    assert path.gateway.directory.statistics().running == 0


@pytest.mark.parametrize("streaming", [True, False])
async def test_http_client_that_leaves_and_said_continue_does_not_cancel(
    path: GatewayPath, streaming: bool
) -> None:
    request = chat({"tokens": 40, "interval_ms": 3}, stream=streaming)
    async with await Http.open(path.url) as http:
        http.request("POST", COMPLETIONS, request, idempotency_key="k-1", holdfast_on_disconnect="continue")
        await path.provider.until(lambda s: s.streaming == 1)
    assert (await path.provider.until(lambda s: s.streaming == 0)).completed == 1
    again = await ask(path.url, "POST", COMPLETIONS, request, idempotency_key="k-1")
    assert again.status == 200
    assert path.provider.statistics().requests == 1
    if not streaming:
        assert again.json()["choices"][0]["message"]["content"] == answer(40)


async def test_http_creator_that_leaves_does_not_cancel_under_another_reader(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http, await Session.open(path.url) as session:
        http.request("POST", COMPLETIONS, chat({"tokens": 60, "interval_ms": 3}))
        stream = (await http.head()).headers["holdfast-stream-id"]
        await session.attach(stream)
        http.writer.transport.abort()
        await eventually(lambda: stream_of(path.gateway, stream).reader_count == 1)
        entries, end = await session.read()
    assert (content(entries), end["status"]) == (answer(60), "completed")


class Gone(asyncio.Transport):
    """The transport of a client that is gone."""

    def write(self, data: Any) -> None:
        pass

    def get_extra_info(self, name: Any, default: Any = None) -> Any:
        return default


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("policy", ["cancel", "continue"])
async def test_client_that_is_gone_before_its_request_begins_holds_nothing(
    path: GatewayPath, streaming: bool, policy: str
) -> None:
    """Request and end of the connection may be seen in one turn of the loop; here they are."""
    body = json.dumps(chat({"tokens": 3}, stream=streaming)).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\nholdfast-on-disconnect: {policy}\r\n"
    limits = Limits(max_body=4096, header_timeout=1.0, body_timeout=1.0, keep_alive_timeout=1.0)
    process = path.gateway.process
    connection = HttpConnection(process.router, process.timers, process.services.turns, process.budget, limits)
    connection.connection_made(Gone())
    connection.data_received(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    connection.connection_lost(None)
    directory = path.gateway.directory
    await eventually(lambda: directory.statistics().ended == 1)
    await eventually(lambda: directory.statistics().running == 0)
    (stream,) = directory._streams.values()
    assert stream.reader_count == 0
    assert stream.end is not None
    assert stream.end.status == ("cancelled" if policy == "cancel" else "completed")
    await path.provider.until(lambda s: s.streaming == 0)


async def test_requests_behind_the_one_whose_client_leaves_are_never_made(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http:
        for _ in range(4):
            http.request("POST", COMPLETIONS, chat({"tokens": 9, "fault": {"kind": "stall", "after_tokens": 1}}))
        await http.head()
    await path.provider.until(lambda s: s.cancelled == 1 and s.streaming == 0)
    assert path.provider.statistics().requests == 1
    assert path.gateway.directory.statistics().running == 0


# -- sessions that take over ---------------------------------------------------------------------------


async def test_session_that_comes_back_before_it_was_missed_takes_over(path: GatewayPath) -> None:
    async with await Session.open(path.url) as older:
        stream = (await older.create("r-1", chat({"tokens": 50, "interval_ms": 3})))["stream"]
        got = await older.entries(3)
        hello = {"session": older.welcome["session"], "streams": [{"stream": stream, "after": len(got) - 1}]}
        async with await Session.open(path.url, hello=hello) as newer:
            assert newer.welcome["session"] == older.welcome["session"]
            assert newer.welcome["resumed"] is True
            while (message := await older.receive())["type"] != "error":
                pass
            assert message["code"] == "session_superseded"
            assert await older.closed() == (4409, "session_superseded")
            rest, end = await newer.read(start=len(got))
    assert (content(got + rest), end["status"]) == (answer(50), "completed")
    assert path.provider.statistics().requests == 1


async def test_session_of_an_unknown_token_gets_a_new_one(path: GatewayPath) -> None:
    async with await Session.open(path.url, hello={"session": "never-heard-of"}) as session:
        assert session.welcome["session"] != "never-heard-of"
        assert "resumed" not in session.welcome


# -- retention -----------------------------------------------------------------------------------------


async def is_gone(path: GatewayPath, stream: str) -> None:
    """Wait until the stream is unknown to its owner."""
    async with asyncio.timeout(DEADLINE), await Http.open(path.url) as http:
        while True:
            response = await http.ask("GET", f"/v1/streams/{stream}?live=none")
            if response.status == 404:
                assert response.error["code"] == "unknown_stream"
                return
            assert response.status == 200


async def test_ended_stream_expires_and_frees_its_request_id(make_path: MakePath) -> None:
    path = await make_path(streams={"retention": 0.3})
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 1})))["stream"]
        await session.read()
        ended = time.monotonic()
        await is_gone(path, stream)
        assert time.monotonic() - ended > 0.29
        assert path.gateway.directory.statistics().log_bytes == 0
        again = await session.create("r-1", chat({"tokens": 1}))
        assert again["stream"] != stream
        assert "duplicate" not in again
    assert path.provider.statistics().requests == 2


async def test_acknowledged_end_expires_sooner_than_an_unacknowledged_one(make_path: MakePath) -> None:
    path = await make_path(streams={"retention": 100.0, "retention_acknowledged": 0.1})
    async with await Session.open(path.url) as session:
        streams = []
        for number in range(2):
            streams.append((await session.create(f"r-{number}", chat({"tokens": 1})))["stream"])
            _, end = await session.read()
        await session.send(type="ack", streams={streams[1]: end["seq"]})
        await is_gone(path, streams[1])
        assert whole(await read_stream(path.url, streams[0])) == answer(1)


async def test_end_acknowledged_by_a_reader_that_did_not_create_the_stream_keeps_it(make_path: MakePath) -> None:
    path = await make_path(streams={"retention": 100.0, "retention_acknowledged": 0.1})
    async with await Session.open(path.url) as creator, await Session.open(path.url) as other:
        stream = (await creator.create("r-1", chat({"tokens": 1})))["stream"]
        await creator.read()
        await other.attach(stream)
        _, end = await other.read()
        await other.send(type="ack", streams={stream: end["seq"]})
        await pass_time(path, ms=250)
        assert whole(await read_stream(path.url, stream)) == answer(1)


async def test_ended_stream_does_not_expire_under_its_reader(make_path: MakePath) -> None:
    path = await make_path(streams={"retention": 0.1, "retention_acknowledged": 0.1})
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 10}), credit=1))["stream"]
        got = await session.entries(1)
        await eventually(lambda: stream_of(path.gateway, stream).is_ended)
        await pass_time(path, ms=300)
        await session.send(type="credit", stream=stream, bytes=2**20)
        rest, _ = await session.read(start=len(got))
        assert content(got + rest) == answer(10)
    async with asyncio.timeout(DEADLINE):
        await is_gone(path, stream)


# -- memory --------------------------------------------------------------------------------------------


async def make_ended(session: Session, number: int, tokens: int) -> tuple[str, dict[str, Any]]:
    stream = (await session.create(f"r-{number}", chat({"tokens": tokens})))["stream"]
    _, end = await session.read()
    return stream, end


async def test_memory_that_runs_short_takes_the_oldest_ended_streams_first(make_path: MakePath) -> None:
    path = await make_path(server={"memory_bytes": 200_000, "max_body": 50_000})
    async with await Session.open(path.url) as session:
        streams = [(await make_ended(session, number, 100))[0] for number in range(10)]  # about 27 KB each
    kept = []
    for stream in streams:
        response = await ask(path.url, "GET", f"/v1/streams/{stream}?live=none")
        kept.append(response.status == 200)
    assert 3 <= sum(kept) <= 7
    assert kept == sorted(kept)  # the newest are kept
    assert path.gateway.directory.statistics().log_bytes < 200_000


async def test_memory_used_up_by_running_streams_refuses_new_work(make_path: MakePath) -> None:
    path = await make_path(server={"memory_bytes": 150_000, "max_body": 30_000})
    async with await Session.open(path.url) as session, await Session.open(path.url) as other:
        ended, _ = await make_ended(other, 0, 50)
        stream = (await session.create("r-1", chat({"tokens": 5_000}), credit=0))["stream"]
        await eventually(lambda: path.gateway.directory.budget.waiting, "the provider's waiting")
        assert path.gateway.directory.statistics().log_bytes < 150_000 + 256 * 1024
        assert (await ask(path.url, "GET", f"/v1/streams/{ended}?live=none")).status == 404
        before = path.provider.statistics().requests
        await other.send(type="create", request_id="r-2", request=chat({"tokens": 1}))
        error = await other.expect("error")
        assert (error["code"], error["retryable"], error["request_id"]) == ("overloaded", True, "r-2")
        assert error["retry_after"] >= 1
        response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}))
        assert (response.status, response.error["code"]) == (503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert path.provider.statistics().requests == before
        # When the reader reads, the memory comes back, and with it the service.
        await session.send(type="credit", stream=stream, bytes=2**30)
        got: list[Any] = []
        while (message := await session.receive())["type"] != "end":
            got += [message["data"]] if message["type"] == "event" else message["data"]
            await session.send(type="ack", streams={stream: len(got) - 1})
        assert content(got) == answer(5_000)
        await make_ended(other, 3, 1)


async def test_streams_beyond_their_number_are_refused_while_all_run(make_path: MakePath) -> None:
    path = await make_path(streams={"max_streams": 2})
    stalled = chat({"tokens": 9, "fault": {"kind": "stall", "after_tokens": 0}})
    async with await Session.open(path.url) as session:
        await make_ended(session, 0, 1)
        for number in (1, 2):  # the ended one makes room
            await session.send(type="create", request_id=f"r-{number}", request=stalled)
        await session.send(type="create", request_id="r-3", request=stalled)
        while (message := await session.receive())["type"] != "error":
            assert message["type"] in ("accepted", "event")
        assert (message["code"], message["request_id"]) == ("overloaded", "r-3")


# -- the end of the gateway ----------------------------------------------------------------------------


async def test_closing_gateway_ends_whatever_runs(make_path: MakePath) -> None:
    """The fixtures assert that nothing of it is left."""
    path = await make_path()
    stalled = chat({"tokens": 9, "fault": {"kind": "stall", "after_tokens": 1}})
    session = await Session.open(path.url)
    await session.create("r-1", stalled)
    bare = await Session.open_bare(path.url)
    async with (
        await Http.open(path.url) as idle,
        await Http.open(path.url) as sse,
        await Http.open(path.url) as poll,
    ):
        sse.request("POST", COMPLETIONS, stalled)
        stream = (await sse.head()).headers["holdfast-stream-id"]
        await eventually(lambda: stream_of(path.gateway, stream).log.next == 2)
        poll.request("GET", f"/v1/streams/{stream}?live=long-poll&after=1")
        await eventually(lambda: stream_of(path.gateway, stream).reader_count == 2)
        await path.gateway.aclose()
        for http in (idle, sse, poll):
            try:
                await asyncio.wait_for(http.reader.read(), DEADLINE)
            except ConnectionResetError:
                pass
        # 1012 where the Close frame got through, 1006 where not; clients connect again after either.
        async with asyncio.timeout(DEADLINE):
            await session.socket.wait_closed()
            await bare.socket.wait_closed()
        assert {session.socket.close_code, bare.socket.close_code} <= {1012, 1006}
    assert (await path.provider.until(lambda s: s.streaming == 0)).cancelled == 2


async def test_provider_that_closes_its_idle_connections_is_asked_on_new_ones(path: GatewayPath) -> None:
    for _ in range(3):
        response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}, stream=False))
        assert json.loads(response.body)["choices"][0]["message"]["content"] == answer(1)
        path.provider.arm_current(CloseConnection())
        await path.provider.until(lambda s: s.open_connections == 0)
