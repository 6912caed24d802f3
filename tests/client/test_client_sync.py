"""The synchronous client: used from threads here, because the gateway runs on the test's event loop."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from holdfast import (
    Cancelled,
    Chunk,
    ConnectionLost,
    ConnectionState,
    InvalidRequest,
    ProtocolError,
    StreamEnd,
    StreamQueued,
    SyncStreamingAIClient,
    UnknownStream,
    WebSocketConfig,
)
from holdfast.core.entries import Usage
from holdfast.core.session import messages as m
from holdfast.errors import IdleTimeout
from tests.support.scripted_gateway import Script, ScriptedGateway, answers, words

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def run(gateway: ScriptedGateway) -> AsyncIterator[Callable[..., Any]]:
    """Run a function of a client in a thread; the client is closed, and its thread gone, afterwards."""

    async def run(use: Callable[[SyncStreamingAIClient], Any], **settings: Any) -> Any:
        on_state = settings.pop("on_state", None)
        settings = {"base_url": gateway.url, "initial_backoff": 0.001, "max_backoff": 0.01, **settings}

        def call() -> Any:
            with SyncStreamingAIClient(WebSocketConfig(**settings), on_state=on_state) as client:
                return use(client)

        return await asyncio.to_thread(call)

    yield run
    assert not [thread for thread in threading.enumerate() if thread.name == "holdfast-client"]


async def test_stream_chat_yields_the_text(gateway: ScriptedGateway, run: Callable[..., Any]) -> None:
    gateway.on_create = answers("Hel", "", "lo")

    def use(client: SyncStreamingAIClient) -> object:
        stream = client.stream_chat(HELLO, model="demo", temperature=0.5, request_id="mine")
        texts = list(stream)
        assert list(stream) == []
        return (
            texts,
            stream.text,
            stream.id,
            stream.request_id,
            stream.last_seq,
            stream.finish_reason,
            stream.usage,
        )

    assert await run(use) == (["Hel", "lo"], "Hello", "st_0", "mine", 2, "stop", Usage(1, 3, 4))


async def test_events_yield_queue_position_chunks_and_end(
    gateway: ScriptedGateway, run: Callable[..., Any]
) -> None:
    def answer(generation: Any) -> None:
        gateway.last.send(m.Queued(generation.id, 2))
        generation.say("a", "b")
        generation.end()

    gateway.on_create = answer

    def use(client: SyncStreamingAIClient) -> list[object]:
        stream = client.events(HELLO, model="demo")
        events: list[object] = list(stream)
        assert list(stream) == []
        return events

    events = await run(use)
    assert events[0] == StreamQueued(2)
    assert [(event.seq, event.text) for event in events[1:3]] == [(0, "a"), (1, "b")]
    assert events[3] == StreamEnd(2, "completed", "stop", Usage(1, 2, 3), [])


async def test_streams_of_several_threads_share_the_connection(
    gateway: ScriptedGateway, run: Callable[..., Any]
) -> None:
    def answer(generation: Any) -> None:
        generation.say(*words(200, f"{generation.request['model']}:"))
        generation.end()

    gateway.on_create = answer

    def use(client: SyncStreamingAIClient) -> list[str]:
        with ThreadPoolExecutor(8) as threads:
            return list(
                threads.map(lambda number: "".join(client.stream_chat(HELLO, model=str(number))), range(16))
            )

    assert await run(use) == ["".join(words(200, f"{number}:")) for number in range(16)]
    assert len(gateway.connections) == 1


async def test_cut_connection_is_resumed_while_nobody_reads(
    gateway: ScriptedGateway, run: Callable[..., Any]
) -> None:
    states: list[ConnectionState] = []
    expected = words(500)
    gateway.on_create = answers(*expected)
    loop = asyncio.get_running_loop()

    def use(client: SyncStreamingAIClient) -> list[str]:
        got = []
        for text in client.stream_chat(HELLO, model="demo"):
            got.append(text)
            if len(got) == 100:
                loop.call_soon_threadsafe(gateway.last.cut)
        assert client.state is ConnectionState.OPEN
        return got

    assert await run(use, stream_window=1024, on_state=states.append) == expected
    assert ConnectionState.RECONNECTING in states
    assert len(gateway.generations) == 1


@pytest.mark.parametrize("way", ["break", "close", "with", "drop", "cycle"])
async def test_leaving_cancels_the_generation(gateway: ScriptedGateway, run: Callable[..., Any], way: str) -> None:
    gateway.on_create = lambda generation: generation.say("a", "b")
    left, seen = threading.Event(), threading.Event()

    def use(client: SyncStreamingAIClient) -> None:
        if way == "break":
            for _ in client.stream_chat(HELLO, model="demo"):
                break
        elif way == "with":
            with client.events(HELLO, model="demo") as events:
                assert isinstance(next(events), Chunk)
        else:
            stream = client.stream_chat(HELLO, model="demo")
            assert next(stream) == "a"
            if way == "close":
                stream.close()
                assert list(stream) == []
            elif way == "cycle":
                cycle: list[object] = [stream]
                cycle.append(cycle)
                del cycle
            del stream
            gc.collect()
        left.set()
        assert seen.wait(5)  # the client is still open: it was not its closing that cancelled

    using = asyncio.create_task(run(use))
    await gateway.until(lambda: gateway.generations and gateway.generations[0].is_cancelled)
    seen.set()
    await using
    assert left.is_set()


async def test_failed_stream_raises_its_error_with_what_came(
    gateway: ScriptedGateway, run: Callable[..., Any]
) -> None:
    def answer(generation: Any) -> None:
        generation.say("so ", "far")
        generation.end("incomplete", IdleTimeout("stalled"))

    gateway.on_create = answer

    def use(client: SyncStreamingAIClient) -> None:
        for stream in (client.stream_chat(HELLO, model="demo"), client.events(HELLO, model="demo")):
            with pytest.raises(IdleTimeout) as caught:
                list(stream)
            assert caught.value.partial == "so far"
        with pytest.raises(UnknownStream):
            next(client.attach("st_none"))
        with pytest.raises(InvalidRequest):
            client.attach("")

    await run(use)


async def test_entry_that_is_not_json_raises_and_leaves_the_stream(
    gateway: ScriptedGateway, run: Callable[..., Any]
) -> None:
    def answer(generation: Any) -> None:
        generation.say("a")
        generation.log.append([b'"\xff"'])

    gateway.on_create = answer

    def use(client: SyncStreamingAIClient) -> None:
        stream = client.events(HELLO, model="demo")
        next(stream)
        with pytest.raises(ProtocolError) as caught:
            next(stream)
        assert caught.value.partial == "a"

    await run(use)
    assert gateway.generations[0].is_cancelled


async def test_attach_and_cancel_work_from_another_client(
    gateway: ScriptedGateway, run: Callable[..., Any]
) -> None:
    gateway.on_create = lambda generation: generation.say("a", "b")

    def use(client: SyncStreamingAIClient) -> None:
        stream, mine = client.stream_chat(HELLO, model="demo"), client.stream_chat(HELLO, model="demo")
        assert next(stream) == "a"
        with SyncStreamingAIClient(client.config) as other:
            assert next(other.attach("st_0", after=0)) == "b"
            event = next(other.attach_events("st_0", after=0))
            assert isinstance(event, Chunk)
            assert event.seq == 1
            other.cancel("st_0")
        with pytest.raises(Cancelled):
            list(stream)
        assert next(mine) == "a"
        client.cancel(mine)
        assert list(mine) == ["b"]

    await run(use)


async def test_unreachable_gateway_raises(gateway: ScriptedGateway, run: Callable[..., Any]) -> None:
    def use(client: SyncStreamingAIClient) -> None:
        with pytest.raises(ConnectionLost):
            client.connect()
        client.connect()

    gateway.scripts.append(Script(status=502))
    await run(use, max_retries=0)


async def test_close_ends_a_read_in_another_thread(gateway: ScriptedGateway, run: Callable[..., Any]) -> None:
    reading = threading.Event()

    def use(client: SyncStreamingAIClient) -> None:
        def read() -> str:
            stream = client.stream_chat(HELLO, model="demo")
            assert next(stream) == "a"
            reading.set()
            with pytest.raises(Cancelled, match="client was closed") as caught:
                next(stream)
            return str(caught.value.partial)

        with ThreadPoolExecutor(1) as threads:
            result = threads.submit(read)
            assert reading.wait(5)
            client.close()
            client.close()
            assert result.result(5) == "a"
        with pytest.raises(RuntimeError, match="closed"):
            next(client.stream_chat(HELLO, model="demo"))

    gateway.on_create = lambda generation: generation.say("a")
    await run(use)


async def test_call_from_the_state_callback_is_refused(gateway: ScriptedGateway, run: Callable[..., Any]) -> None:
    caught: list[BaseException] = []
    clients: list[SyncStreamingAIClient] = []

    def on_state(state: ConnectionState) -> None:
        try:
            clients[0].connect()
        except RuntimeError as exc:
            caught.append(exc)

    def use(client: SyncStreamingAIClient) -> None:
        clients.append(client)
        client.connect()

    await run(use, on_state=on_state)
    assert "must not wait" in str(caught[0])


async def test_client_that_is_dropped_ends_its_thread_and_its_streams(
    gateway: ScriptedGateway, run: Callable[..., Any]
) -> None:
    def use(client: SyncStreamingAIClient) -> None:
        other = SyncStreamingAIClient(client.config)
        assert next(other.stream_chat(HELLO, model="demo")) == "a"
        del other
        gc.collect()

    gateway.on_create = lambda generation: generation.say("a")
    await run(use)
    assert gateway.generations[0].is_cancelled


async def test_interpreter_that_exits_closes_the_client(gateway: ScriptedGateway) -> None:
    program = f"""
from holdfast import SyncStreamingAIClient, WebSocketConfig
client = SyncStreamingAIClient(WebSocketConfig({gateway.url!r}))
stream = client.stream_chat([], model="demo")
print(next(stream))
"""
    gateway.on_create = lambda generation: generation.say("a")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert (out, err, process.returncode) == (b"a\n", b"", 0)
    await gateway.until(lambda: gateway.open_count == 0)
    assert gateway.generations[0].is_cancelled
    assert gateway.last.socket.protocol.close_code == 1000
