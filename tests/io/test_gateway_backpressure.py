"""A reader that stops reading: memory stays bounded, the provider waits, and nobody else does."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from holdfast.core.entries import Owner
from holdfast.core.log import Log
from holdfast.errors import HoldfastError
from holdfast.streams.directory import Directory
from holdfast.streams.stream import Stream
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

LOG_BYTES = 128 * 1024
#: One read of the provider's socket, at most; what was on its way when the log was full.
ONE_READ = 256 * 1024
#: About 20 MB: more than the sockets' buffers on the whole way hold.
TOKENS = 80_000
#: About 2 MB: more than the log holds.
FEWER = 8_000


@pytest.fixture
async def path(make_path: MakePath) -> GatewayPath:
    # The idle timeout is far shorter than the readers pause.
    return await make_path(
        streams={"log_bytes": LOG_BYTES}, provider={"timeouts": {"first_byte": 0.3, "idle": 0.3}}
    )


def narrow_socket(port: int) -> socket.socket:
    """A connected socket with the smallest receive buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


class Blocked:
    """A reader of a long answer, which it does not read until `resume`."""

    def __init__(self, path: GatewayPath) -> None:
        self.path = path
        self.stream = ""
        self.resume: Callable[[], Awaitable[str]]

    async def wait_until_full(self) -> None:
        await eventually(lambda: self.log.bytes >= LOG_BYTES, "a full log")

    @property
    def log(self) -> Log:
        return stream_of(self.path.gateway, self.stream).log


@asynccontextmanager
async def without_credit(path: GatewayPath) -> AsyncIterator[Blocked]:
    async with await Session.open(path.url) as session:
        blocked = Blocked(path)
        blocked.stream = (await session.create("r-1", chat({"tokens": TOKENS}), credit=1000))["stream"]
        got: list[Any] = []
        size = 0
        while size <= 1000 - 300:
            got += await session.entries(1, start=len(got))
            size = sum(len(json.dumps(entry, separators=(",", ":"), ensure_ascii=False)) for entry in got)

        async def resume() -> str:
            await session.send(type="credit", stream=blocked.stream, bytes=2**30)
            return await read_and_ack(session, blocked.stream, got)

        blocked.resume = resume
        yield blocked


@asynccontextmanager
async def without_ack(path: GatewayPath) -> AsyncIterator[Blocked]:
    """It reads all that comes, but keeps its acknowledgements."""
    async with await Session.open(path.url) as session:
        blocked = Blocked(path)
        blocked.stream = (await session.create("r-1", chat({"tokens": TOKENS})))["stream"]

        async def resume() -> str:
            return await read_and_ack(session, blocked.stream, [])

        blocked.resume = resume
        yield blocked


async def read_and_ack(session: Session, stream: str, got: list[dict[str, Any]]) -> str:
    while (message := await session.receive())["type"] != "end":
        assert message["seq"] == len(got)
        got += [message["data"]] if message["type"] == "event" else message["data"]
        await session.send(type="ack", streams={stream: len(got) - 1})
    assert message["status"] == "completed"
    return content(got)


@asynccontextmanager
async def unread_websocket(path: GatewayPath) -> AsyncIterator[Blocked]:
    """Its socket is not read at all."""
    async with await Session.open(path.url, sock=narrow_socket(path.gateway.port)) as session:
        blocked = Blocked(path)
        blocked.stream = (await session.create("r-1", chat({"tokens": TOKENS})))["stream"]
        session.socket.transport.pause_reading()

        async def resume() -> str:
            session.socket.transport.resume_reading()
            return await read_and_ack(session, blocked.stream, [])

        blocked.resume = resume
        yield blocked
        await session.drop()  # a closing handshake would have to be read


@asynccontextmanager
async def unread_sse(path: GatewayPath) -> AsyncIterator[Blocked]:
    async with Http(*await asyncio.open_connection(sock=narrow_socket(path.gateway.port), limit=4096)) as http:
        blocked = Blocked(path)
        http.request("POST", "/v1/chat/completions", chat({"tokens": TOKENS}))
        blocked.stream = (await http.head()).headers["holdfast-stream-id"]

        async def resume() -> str:
            events = [event async for event in http.events()]
            assert [event.seq for event in events] == list(range(len(events)))
            assert events[-1].data == "[DONE]"
            return content([event.data for event in events[:-1]])

        blocked.resume = resume
        yield blocked


Kind = Callable[[GatewayPath], AbstractAsyncContextManager[Blocked]]


async def paced_gaps(path: GatewayPath, tokens: int) -> list[float]:
    """Read a paced stream on a connection of its own; return the seconds between its tokens, sorted."""
    async with await Session.open(path.url) as session:
        request = chat({"tokens": tokens, "interval_ms": 5})
        stream = (await session.create(f"paced-{time.monotonic_ns()}", request))["stream"]
        got: list[Any] = []
        times: list[float] = []
        while (message := await session.receive())["type"] != "end":
            got += [message["data"]] if message["type"] == "event" else message["data"]
            times.append(time.monotonic())
        await session.send(type="ack", streams={stream: message["seq"]})
    assert content(got) == answer(tokens)
    return sorted(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("kind", [without_credit, without_ack, unread_websocket, unread_sse])
async def test_reader_that_stops_holds_the_provider_back_and_nobody_else(path: GatewayPath, kind: Kind) -> None:
    alone = await paced_gaps(path, 60)
    async with kind(path) as blocked:
        await blocked.wait_until_full()
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, path.gateway.directory.statistics().log_bytes)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        beside = await paced_gaps(path, 140)  # meanwhile the idle timeout passes twice
        watching.cancel()
        # 95 of 100 gaps are as they were; the machine may be busy, so this is no benchmark.
        assert beside[len(beside) * 95 // 100] < 3 * alone[len(alone) * 95 // 100] + 0.05
        stood_at = blocked.log.next
        assert most <= LOG_BYTES + ONE_READ + 200 * 500  # and the paced streams
        assert path.provider.statistics().streaming == 1
        assert blocked.log.next == stood_at
        assert stood_at < TOKENS / 2
        assert await blocked.resume() == answer(TOKENS)
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert (statistics.completed, statistics.requests) == (3, 3)


@pytest.mark.parametrize("kind", [without_credit, unread_websocket, unread_sse])
async def test_reader_that_stops_and_leaves_frees_the_provider(make_path: MakePath, kind: Kind) -> None:
    path = await make_path(streams={"log_bytes": LOG_BYTES, "detach_grace": 0.1})
    async with kind(path) as blocked:
        await blocked.wait_until_full()
    assert (await path.provider.until(lambda s: s.streaming == 0)).cancelled == 1


async def test_stream_that_was_cancelled_while_it_was_held_back_ends_for_its_reader(path: GatewayPath) -> None:
    async with without_ack(path) as blocked:
        await blocked.wait_until_full()
        response = await ask(path.url, "DELETE", f"/v1/streams/{blocked.stream}")
        assert response.json()["status"] == "cancelled"
        assert (await path.provider.until(lambda s: s.streaming == 0)).cancelled == 1
        with pytest.raises(AssertionError):  # its end is not `completed`
            await blocked.resume()


# -- who holds whom ------------------------------------------------------------------------------------


async def test_fast_reader_goes_on_when_the_slow_one_beside_it_has_left(path: GatewayPath) -> None:
    """What held the provider was the slow reader alone; the fast one has nothing left to move by."""
    async with await Http.open(path.url) as fast, await Session.open(path.url) as slow:
        # The keep-alive comment, and so the head with the stream's id, would come too late: it is looked up.
        fast.request("POST", "/v1/chat/completions", chat({"tokens": FEWER, "ttft_ms": 100}), idempotency_key="k")
        directory = path.gateway.directory
        await eventually(lambda: found(directory) is not None)
        stream = found(directory)
        assert isinstance(stream, Stream)
        await slow.attach(stream.id)
        await fast.head()
        events = []

        async def read() -> None:
            async for event in fast.events():
                events.append(event)

        reading = asyncio.create_task(read())
        await eventually(lambda: directory.budget.waiting, "the provider's waiting")
        await slow.drop()
        async with asyncio.timeout(DEADLINE):
            await reading
    assert events[-1].data == "[DONE]"
    assert content([event.data for event in events[:-1]]) == answer(FEWER)


async def test_reading_replaced_by_one_further_on_lets_the_provider_go_on(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": FEWER})))["stream"]
        log = stream_of(path.gateway, stream).log
        await eventually(lambda: path.gateway.directory.budget.waiting, "the provider's waiting")
        got: list[Any] = []
        while len(got) < log.next:
            got += await session.entries(1, start=len(got))
        # It never acknowledged anything; the new place says what it has.
        await session.attach(stream, after=len(got) - 1)
        assert await read_and_ack(session, stream, got) == answer(FEWER)


@pytest.mark.parametrize("how", ["hello", "attach"])
async def test_client_that_comes_back_to_a_full_log_lets_the_provider_go_on(path: GatewayPath, how: str) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": FEWER})))["stream"]
        log = stream_of(path.gateway, stream).log
        await eventually(lambda: path.gateway.directory.budget.waiting, "the provider's waiting")
        got: list[Any] = []
        while len(got) < log.next:
            got += await session.entries(1, start=len(got))
        await session.drop()
    last = len(got) - 1
    hello = {"streams": [{"stream": stream, "after": last}]} if how == "hello" else None
    async with await Session.open(path.url, hello=hello) as session:
        if how == "attach":
            await session.attach(stream, after=last)
        assert await read_and_ack(session, stream, got) == answer(FEWER)


async def test_client_that_was_detached_from_a_full_log_finds_it_whole(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 2_000}), credit=0))["stream"]
        log = stream_of(path.gateway, stream).log
        await eventually(lambda: log.bytes >= LOG_BYTES, "a full log")
        await session.send(type="detach", stream=stream)
        await session.expect("detached")
    assert log.first == 0
    assert path.gateway.directory.statistics().running == 1
    assert whole(await read_stream(path.url, stream)) == answer(2_000)


async def test_late_reader_of_a_trimmed_log_is_refused_not_served_a_part(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 2_000})))["stream"]
        await read_and_ack(session, stream, [])
    log = stream_of(path.gateway, stream).log
    assert log.first > 0
    for query in ("", "?live=none", "?live=long-poll", f"?after={log.first - 2}"):
        response = await ask(path.url, "GET", f"/v1/streams/{stream}{query}")
        assert (response.status, response.error["code"], response.error["param"]) == (410, "log_trimmed", "after")
    async with await Session.open(path.url) as session:
        await session.send(type="attach", stream=stream)
        assert (await session.expect("error"))["code"] == "log_trimmed"
    whole(await read_stream(path.url, stream, query=f"?after={log.first - 1}"), start=log.first)


async def test_credit_is_kept_to_the_byte_of_one_entry(path: GatewayPath) -> None:
    """A reader is sent no entry beyond the one that uses its credit up."""
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 20}), credit=1))["stream"]
        got = await session.entries(1)
        await eventually(lambda: stream_of(path.gateway, stream).is_ended)
        for _ in range(3):
            assert len(got) == await _position(path, stream)
            # What the first entry overdrew has to be made up for.
            await session.send(type="credit", stream=stream, bytes=len(_raw(path, stream, len(got) - 1)))
            got += await session.entries(1, start=len(got))
        await session.send(type="credit", stream=stream, bytes=2**20)
        rest, _ = await session.read(start=len(got))
    assert content(got + rest) == answer(20)


async def _position(path: GatewayPath, stream: str) -> int:
    (cursor,) = stream_of(path.gateway, stream).log.cursors
    return cursor.position


def found(directory: Directory) -> Stream | HoldfastError | None:
    """The stream of the request id `k`, None before it is known."""
    answers: list[Stream | HoldfastError | None] = []
    directory.find_request(Owner("local"), "k", answers.append)
    return answers[0]


def _raw(path: GatewayPath, stream: str, seq: int) -> bytes:
    return stream_of(path.gateway, stream).log.slice(seq, 1)[0]
