"""Leaving a stream early stops its generation at once, in every way that Python has of leaving a loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from holdfast import (
    Cancelled,
    Chunk,
    ConnectionLost,
    ConnectionState,
    StreamEnd,
    StreamingAIClient,
    UnknownStream,
)
from holdfast.core.session import messages as m
from tests.support.scripted_gateway import MakeClient, Script, ScriptedGateway, answers, words

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
def talking(gateway: ScriptedGateway) -> ScriptedGateway:
    """A gateway whose generations say something and go on."""
    gateway.on_create = lambda generation: generation.say("a", "b", "c")
    return gateway


async def was_cancelled(gateway: ScriptedGateway, number: int = 0) -> None:
    await gateway.until(lambda: gateway.generations[number].is_cancelled)
    assert gateway.of_type(m.Cancel)


async def test_break_cancels_the_generation(talking: ScriptedGateway, client: StreamingAIClient) -> None:
    async for text in client.stream_chat(HELLO, model="demo"):
        assert text == "a"
        break
    # Nothing but the end of the loop has happened: no garbage collection, no `aclose`.
    await was_cancelled(talking)
    async for _ in client.events(HELLO, model="demo"):
        break
    await was_cancelled(talking, 1)


async def test_exception_in_the_loop_cancels_the_generation(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    async def fail() -> None:
        async for _ in client.stream_chat(HELLO, model="demo"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await was_cancelled(talking)


@pytest.mark.parametrize("keeps", [False, True])
async def test_cancelled_task_cancels_the_generation(
    talking: ScriptedGateway, client: StreamingAIClient, keeps: bool
) -> None:
    async def read() -> None:
        if keeps:  # the traceback of the CancelledError keeps the frame and its variables
            stream = client.stream_chat(HELLO, model="demo")
            async for _ in stream:
                pass
        else:
            async for _ in client.stream_chat(HELLO, model="demo"):
                pass

    task = asyncio.create_task(read())
    await talking.until(lambda: talking.generations)
    await asyncio.sleep(0)
    task.cancel()
    await was_cancelled(talking)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_that_is_cancelled_outside_of_a_read_cancels_the_generation(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    reached = asyncio.Event()

    async def read() -> None:
        async for _ in client.stream_chat(HELLO, model="demo"):
            reached.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(read())
    await reached.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await was_cancelled(talking)


async def test_read_that_times_out_leaves_the_stream_and_says_so_later(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.stream_chat(HELLO, model="demo")
    assert [await anext(stream) for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(stream)
    await was_cancelled(talking)
    with pytest.raises(Cancelled, match="read of it was cancelled") as caught:
        await anext(stream)
    assert caught.value.partial == "abc"


async def test_aclose_cancels_the_generation_and_ends_the_iteration(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.stream_chat(HELLO, model="demo")
    assert await anext(stream) == "a"
    await stream.aclose()
    await stream.aclose()
    assert [text async for text in stream] == []
    await was_cancelled(talking)
    assert len(talking.of_type(m.Cancel)) == 1


async def test_aclose_ends_a_read_that_waits(talking: ScriptedGateway, client: StreamingAIClient) -> None:
    stream = client.stream_chat(HELLO, model="demo")
    assert [await anext(stream) for _ in range(3)] == ["a", "b", "c"]
    waiting = asyncio.ensure_future(anext(stream, "ended"))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await waiting == "ended"


async def test_context_manager_cancels_what_was_not_read_to_the_end(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    async with client.stream_chat(HELLO, model="demo") as stream:
        async for _ in stream:
            break
        assert not talking.of_type(m.Cancel)  # the variable keeps it
    await was_cancelled(talking)


async def test_stream_whose_last_reference_goes_is_cancelled(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.stream_chat(HELLO, model="demo")
    assert await anext(stream) == "a"
    del stream
    await was_cancelled(talking)


async def test_stream_that_another_thread_collects_is_cancelled(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.events(HELLO, model="demo")
    await anext(stream)
    cycle: list[object] = [stream]
    cycle.append(cycle)
    del stream, cycle
    await asyncio.to_thread(gc.collect)
    await was_cancelled(talking)


async def test_single_read_of_a_temporary_stream_gets_its_text(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    assert await anext(client.stream_chat(HELLO, model="demo")) == "a"
    await was_cancelled(talking)


async def test_stream_that_was_read_to_the_end_is_not_cancelled(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("x")
    async with client.stream_chat(HELLO, model="demo") as stream:
        assert [text async for text in stream] == ["x"]
    del stream
    assert [text async for text in client.stream_chat(HELLO, model="demo")] == ["x"]
    assert not gateway.of_type(m.Cancel)


async def test_stream_that_was_never_read_sends_nothing(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.stream_chat(HELLO, model="demo")
    await client.cancel(stream)
    assert [text async for text in stream] == []
    client.stream_chat(HELLO, model="demo")
    assert gateway.requests == []


async def test_stream_that_is_left_before_it_was_sent_reaches_no_gateway(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client()
    gateway.scripts.append(Script(status=503))
    async with client.stream_chat(HELLO, model="demo"):
        await gateway.until(lambda: gateway.requests)
    gateway.on_create = answers("x")
    assert [text async for text in client.stream_chat(HELLO, model="demo")] == ["x"]
    assert len(gateway.generations) == 1


async def test_cancel_survives_a_cut(gateway: ScriptedGateway, client: StreamingAIClient) -> None:
    gateway.on_create = lambda generation: generation.say("a")
    async for _ in client.stream_chat(HELLO, model="demo"):
        gateway.last.is_mute = True
        gateway.last.cut()
        break
    await was_cancelled(gateway)
    assert len(gateway.connections) == 2


async def test_leaving_an_attached_stream_lets_it_run(talking: ScriptedGateway, make_client: MakeClient) -> None:
    first, second = make_client(), make_client()
    async with first.stream_chat(HELLO, model="demo") as stream:
        assert await anext(stream) == "a"
        assert stream.id is not None
        async for text in second.attach(stream.id):
            assert text == "a"
            break
        await talking.until(lambda: talking.of_type(m.Detach))
        again = second.attach(stream.id, after=1)
        assert await anext(again) == "c"
        assert not talking.of_type(m.Cancel)
        talking.generations[0].say("d")
        assert [await anext(stream) for _ in range(3)] == ["b", "c", "d"]


async def test_closing_the_client_cancels_what_runs(talking: ScriptedGateway, make_client: MakeClient) -> None:
    client = make_client()
    stream = client.stream_chat(HELLO, model="demo")
    assert await anext(stream) == "a"
    await client.aclose()
    assert client.state is ConnectionState.CLOSED
    await was_cancelled(talking)
    with pytest.raises(Cancelled, match="client was closed") as caught:
        await anext(stream)
    assert caught.value.partial == "a"
    await talking.until(lambda: talking.open_count == 0)
    assert talking.last.socket.protocol.close_code == 1000


async def test_closing_the_client_waits_briefly_for_a_gateway_that_does_not_answer(
    talking: ScriptedGateway, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.client.runner.CLOSE_TIMEOUT", 0.05)
    client = make_client()
    await client.connect()
    talking.last.socket.transport.pause_reading()
    async with asyncio.timeout(1):
        await client.aclose()


async def test_event_loop_that_stops_under_a_client_leaves_it_usable_in_the_next(
    talking: ScriptedGateway, make_client: MakeClient
) -> None:
    def use(client: StreamingAIClient) -> list[str]:
        async def main() -> str:
            return await anext(client.stream_chat(HELLO, model="demo"))

        return [asyncio.run(main()) for _ in range(2)]

    async def on_state(state: ConnectionState) -> None:
        await asyncio.sleep(0)

    client = make_client(on_state=on_state)
    assert await asyncio.to_thread(use, client) == ["a", "a"]
    gc.collect()  # a task that was left behind would complain
    assert client.state is ConnectionState.DISCONNECTED


async def test_client_in_use_in_another_event_loop_is_refused(
    talking: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client()
    await client.connect()
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, client.connect())


# -- cancel --------------------------------------------------------------------------------------------


async def test_cancel_ends_the_iteration_after_what_was_received(
    talking: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.events(HELLO, model="demo")
    first = await anext(stream)
    assert isinstance(first, Chunk)
    await client.cancel(stream)
    rest = [event async for event in stream]
    assert [event.text for event in rest if isinstance(event, Chunk)] == ["b", "c"]
    assert isinstance(rest[-1], StreamEnd)
    assert rest[-1].status == "cancelled"
    await client.cancel(stream)  # nothing is left to cancel
    assert len(talking.of_type(m.Cancel)) == 1


async def test_cancel_by_id_stops_a_stream_of_this_and_of_another_client(
    talking: ScriptedGateway, make_client: MakeClient
) -> None:
    first, second = make_client(), make_client()
    stream, other = first.stream_chat(HELLO, model="demo"), first.stream_chat(HELLO, model="demo")
    async with stream, other:
        assert [await anext(stream), await anext(other)] == ["a", "a"]
        await first.cancel("st_0")
        assert [text async for text in stream] == ["b", "c"]
        await second.cancel("st_1")
        assert talking.generations[1].is_cancelled
        with pytest.raises(Cancelled) as caught:
            [text async for text in other]
        assert caught.value.partial == "abc"
        await second.cancel("st_1")  # it has ended


async def test_cancel_of_a_trimmed_stream_reaches_it(talking: ScriptedGateway, make_client: MakeClient) -> None:
    async with make_client().stream_chat(HELLO, model="demo") as stream:
        assert await anext(stream) == "a"
        log = talking.generations[0].log
        (cursor,) = log.cursors
        cursor.acknowledge(1)
        log.trim()
        await make_client().cancel("st_0")
        await was_cancelled(talking)


async def test_cancel_of_an_unknown_stream_raises(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    with pytest.raises(UnknownStream):
        await make_client().cancel("st_none")
    client = make_client(max_retries=0)
    gateway.scripts.append(Script(status=502))
    with pytest.raises(ConnectionLost):
        await client.cancel("st_none")


async def test_cancel_that_finds_no_gateway_raises(talking: ScriptedGateway, make_client: MakeClient) -> None:
    client = make_client(max_retries=1)
    stream = client.stream_chat(HELLO, model="demo")
    assert await anext(stream) == "a"
    talking.scripts.append(Script(status=502))
    talking.last.is_mute = True
    talking.last.cut()
    with pytest.raises(ConnectionLost):
        await client.cancel(stream)
    with pytest.raises(ConnectionLost) as caught:
        [text async for text in stream]
    assert caught.value.partial == "abc"


async def test_cancel_of_a_stream_that_waits_for_a_connection_ends_it_quietly(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(initial_backoff=30, max_backoff=30)
    gateway.scripts.append(Script(status=503))
    stream = client.stream_chat(HELLO, model="demo")
    waiting = asyncio.ensure_future(anext(stream, "ended"))
    await gateway.until(lambda: gateway.requests)
    await client.cancel(stream)
    assert await waiting == "ended"


async def test_cancel_reaches_the_end_behind_what_nobody_reads(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(stream_window=1024)
    gateway.on_create = lambda generation: generation.say(*words(1000))
    async with client.stream_chat(HELLO, model="demo") as stream:
        assert await anext(stream) == "w0 "
        await client.cancel(stream)
        rest = [text async for text in stream]
    assert rest == words(1000)[1 : 1 + len(rest)]
    async with client.stream_chat(HELLO, model="demo") as stream:
        assert await anext(stream) == "w0 "
    await gateway.until(lambda: gateway.last.sent.count("end") == 2)


# -- backpressure --------------------------------------------------------------------------------------


async def test_stream_that_is_not_read_holds_its_window_and_no_other_stream(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(stream_window=8 * 1024)
    text = "x" * 100
    async with client.stream_chat(HELLO, model="slow") as slow, client.stream_chat(HELLO, model="fast") as fast:
        await gateway.until(lambda: len(gateway.generations) == 2)
        for generation in gateway.generations:
            generation.say(*[text] * 2000)
        for _ in range(2000):
            assert await anext(fast) == text
        assert slow._reader.buffered <= 8 * 1024 + 200
        (cursor,) = gateway.generations[0].log.cursors
        assert cursor.credit is not None
        assert cursor.credit <= 0
        for generation in gateway.generations:
            generation.end()
        assert [text async for text in fast] == []
        assert len([text async for text in slow]) == 2000


@pytest.mark.parametrize("window", [1024, 4096])
async def test_small_window_carries_a_long_stream_through_cuts(
    gateway: ScriptedGateway, make_client: MakeClient, window: int
) -> None:
    client = make_client(stream_window=window)
    expected = words(3000)
    gateway.on_create = answers(*expected)
    got = []
    async for text in client.stream_chat(HELLO, model="demo"):
        got.append(text)
        if len(got) % 700 == 0:
            gateway.last.cut()
    assert got == expected
    assert len(gateway.generations) == 1


async def test_entry_larger_than_the_window_passes(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    client = make_client(stream_window=1024)
    texts = ["x" * 5000, "y", "z" * 5000, "end"]
    gateway.on_create = answers(*texts)
    assert [text async for text in client.stream_chat(HELLO, model="demo")] == texts


async def test_gateway_that_ignores_credit_fails_the_stream(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(stream_window=1024, max_message=64 * 1024)
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        (cursor,) = gateway.generations[0].log.cursors
        cursor.credit = None
        gateway.generations[0].say(*["x" * 2000] * 50)
        await was_cancelled(gateway)
        with pytest.raises(Exception, match="more than it was granted"):
            await anext(stream)
        assert stream._reader.buffered == 0
