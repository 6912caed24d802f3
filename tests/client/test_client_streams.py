"""What a caller gets from streams of a gateway that behaves well, or that says what is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

import holdfast
from holdfast import (
    Cancelled,
    Chunk,
    ConnectionState,
    InvalidRequest,
    PayloadTooLarge,
    ProtocolError,
    StreamEnd,
    StreamFailed,
    StreamingAIClient,
    StreamQueued,
    UnknownStream,
    UpstreamStatus,
    UpstreamTimeout,
)
from holdfast.core.entries import EndStatus, Usage
from holdfast.core.session import messages as m
from holdfast.errors import IdleTimeout, ProviderError, TooManyStreams
from tests.support.scripted_gateway import Generation, MakeClient, Script, ScriptedGateway, answers, words

HELLO = [{"role": "user", "content": "hi"}]


async def test_stream_chat_yields_the_text_of_the_answer(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("Hel", "", "lo")
    stream = client.stream_chat(HELLO, model="demo")
    assert [text async for text in stream] == ["Hel", "lo"]
    assert (stream.text, stream.finish_reason, stream.usage) == ("Hello", "stop", Usage(1, 3, 4))
    assert (stream.id, stream.last_seq) == ("st_0", 2)


async def test_request_carries_the_arguments_and_extra_fields(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("x")
    stream = client.stream_chat(
        messages=HELLO, model="demo", temperature=0.7, max_tokens=2048, request_id="mine", top_p=0.5
    )
    async for _ in stream:
        pass
    assert gateway.by_request["mine"].request == {
        "model": "demo",
        "messages": HELLO,
        "temperature": 0.7,
        "max_tokens": 2048,
        "top_p": 0.5,
    }


async def test_handshake_carries_credential_version_and_headers(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(api_key="secret", headers={"X-Tenant": "a"})
    await client.connect()
    headers = gateway.requests[0].headers
    assert gateway.requests[0].path == "/v1/ws/stream"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["X-Client-Version"] == f"python/{holdfast.__version__}"
    assert headers["X-Tenant"] == "a"
    assert headers["Sec-WebSocket-Protocol"] == "holdfast.v1"
    assert "Sec-WebSocket-Extensions" not in headers


async def test_client_connects_with_its_first_call(gateway: ScriptedGateway, client: StreamingAIClient) -> None:
    gateway.on_create = answers("x")
    stream = client.stream_chat(HELLO, model="demo")
    assert (gateway.requests, client.state) == ([], ConnectionState.DISCONNECTED)
    async for _ in stream:
        pass
    async for _ in client.stream_chat(HELLO, model="demo"):
        pass
    assert (len(gateway.requests), client.state) == (1, ConnectionState.OPEN)


async def test_concurrent_streams_share_one_connection_and_stay_apart(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    async def read(number: int) -> str:
        return "".join([text async for text in client.stream_chat(HELLO, model=str(number))])

    tasks = [asyncio.create_task(read(number)) for number in range(50)]
    await gateway.until(lambda: len(gateway.generations) == 50)
    for position in range(20):  # interleaved
        for generation in gateway.generations:
            generation.say(f"{generation.request['model']}:{position} ")
    for generation in gateway.generations:
        generation.end()
    assert await asyncio.gather(*tasks) == ["".join(words(20, f"{number}:")) for number in range(50)]
    assert len(gateway.connections) == 1


async def test_events_yield_queue_position_chunks_and_end(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    def answer(generation: Generation) -> None:
        gateway.last.send(m.Queued(generation.id, 3))
        generation.say("a")
        generation.append({"odd": [1]})
        generation.end()

    gateway.on_create = answer
    events = [event async for event in client.events(HELLO, model="demo")]
    assert events == [
        StreamQueued(3),
        Chunk(0, {"choices": [{"index": 0, "delta": {"content": "a"}}]}, "a"),
        Chunk(1, {"odd": [1]}, ""),
        StreamEnd(2, "completed", "stop", Usage(1, 2, 3), []),
    ]


async def test_wait_before_another_try_is_an_event_of_its_own(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    def answer(generation: Generation) -> None:
        gateway.last.send(m.Queued(generation.id, 0, attempt=2, delay_ms=1500, code="upstream_status"))
        generation.say("a")
        generation.end()

    gateway.on_create = answer
    first, *_ = [event async for event in client.events(HELLO, model="demo")]
    assert first == StreamQueued(0, retry_in=1.5, attempt=2, code="upstream_status")


async def test_error_of_a_stream_has_what_the_provider_said(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    told = ProviderError("too long", "context_length_exceeded", "invalid_request_error", "messages")
    refusal = UpstreamStatus(told.message, status=400, told=told)
    refusal.provider_request_id = "req_7"
    gateway.on_create = lambda generation: generation.end("failed", refusal)
    with pytest.raises(UpstreamStatus) as caught:
        await client.stream_chat(HELLO, model="demo").__anext__()
    error = caught.value
    assert (error.status, error.param, error.retryable) == (400, "messages", False)
    assert (error.provider_code, error.provider_type, error.provider_request_id) == (
        "context_length_exceeded",
        "invalid_request_error",
        "req_7",
    )


async def test_iterator_that_has_ended_stays_ended(gateway: ScriptedGateway, client: StreamingAIClient) -> None:
    gateway.on_create = answers("x")
    for stream in (client.stream_chat(HELLO, model="demo"), client.events(HELLO, model="demo")):
        assert len([item async for item in stream]) in (1, 2)
        assert [item async for item in stream] == []


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("failed", UpstreamStatus("no", status=418, retry_after=3.0), UpstreamStatus),
        ("incomplete", IdleTimeout("stalled"), UpstreamTimeout),
        ("incomplete", None, StreamFailed),
        ("cancelled", None, Cancelled),
        ("cancelled", Cancelled("nobody read it"), Cancelled),
    ],
)
async def test_stream_that_does_not_complete_raises_its_error_with_what_came(
    gateway: ScriptedGateway,
    client: StreamingAIClient,
    status: EndStatus,
    error: holdfast.HoldfastError | None,
    expected: type[holdfast.HoldfastError],
) -> None:
    def answer(generation: Generation) -> None:
        generation.say("so ", "far")
        generation.end(status, error)

    gateway.on_create = answer
    for make in (client.stream_chat, client.events):
        stream = make(HELLO, model="demo")
        with pytest.raises(expected) as caught:
            async for _ in stream:
                pass
        assert caught.value.partial == "so far"
        assert stream.usage is not None
        if error is not None:
            assert (caught.value.message, caught.value.retry_after) == (error.message, error.retry_after)
        with pytest.raises(expected):  # again: an answer that is not whole never looks whole
            await anext(stream)


async def test_refused_request_raises_and_harms_no_other_stream(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.stream_chat(HELLO, model="demo")
    async with stream:
        await gateway.until(lambda: gateway.generations)
        with pytest.raises(InvalidRequest, match="must be a list"):
            await anext(client.stream_chat({}, model="demo"))  # type: ignore[arg-type]
        gateway.refusals.append(TooManyStreams("full"))
        with pytest.raises(TooManyStreams, match="full"):
            await anext(client.stream_chat(HELLO, model="demo"))
        gateway.generations[0].say("fine")
        assert await anext(stream) == "fine"
    assert len(gateway.connections) == 1


async def test_request_that_is_too_large_is_refused_without_harm_to_the_connection(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    gateway.on_create = answers("x")
    client = make_client(max_message=64 * 1024)
    with pytest.raises(PayloadTooLarge):
        await anext(client.stream_chat([{"role": "user", "content": "x" * 65_000}], model="demo"))
    assert gateway.connections == []
    client = make_client()
    gateway.scripts.append(script := Script(max_message=10_000))
    await client.connect()
    with pytest.raises(PayloadTooLarge, match="takes 8976"):
        await anext(client.stream_chat([{"role": "user", "content": "x" * 9_000}], model="demo"))
    assert gateway.last.script is script
    assert [text async for text in client.stream_chat(HELLO, model="demo")] == ["x"]


async def test_second_client_attaches_to_a_running_and_to_an_ended_stream(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    first, second = make_client(), make_client()
    stream = first.stream_chat(HELLO, model="demo")
    async with stream:
        await gateway.until(lambda: gateway.generations)
        generation = gateway.generations[0]
        generation.say(*words(10))
        assert await anext(stream) == "w0 "
        assert stream.id is not None
        reader = second.attach(stream.id, after=4)
        assert await anext(reader) == "w5 "
        generation.say("last")
        generation.end()
        assert [text async for text in reader] == ["w6 ", "w7 ", "w8 ", "w9 ", "last"]
        assert [text async for text in stream][-1] == "last"
    assert [text async for text in second.attach(stream.id)] == [*words(10), "last"]
    assert [event async for event in second.attach_events(stream.id, after=11)][-1] == StreamEnd(
        11, "completed", "stop", Usage(1, 11, 12), []
    )


async def test_attach_to_a_stream_that_is_read_here_is_refused(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"
        with pytest.raises(InvalidRequest, match="another client"):
            await anext(client.attach("st_0"))
        gateway.generations[0].say("b")
        assert await anext(stream) == "b"


async def test_attach_to_an_unknown_stream_raises(gateway: ScriptedGateway, client: StreamingAIClient) -> None:
    with pytest.raises(UnknownStream):
        await anext(client.attach("st_none"))
    await client.connect()
    with pytest.raises(UnknownStream):
        await anext(client.attach("st_none"))


@pytest.mark.parametrize("name", ["", "x" * 257, None])
async def test_name_of_the_wrong_form_is_refused_at_the_call(client: StreamingAIClient, name: str) -> None:
    with pytest.raises(InvalidRequest, match="stream_id"):
        client.attach(name)
    with pytest.raises(InvalidRequest, match="after"):
        client.attach("st_0", after=-2)
    if name is not None:
        with pytest.raises(InvalidRequest, match="request_id"):
            client.stream_chat(HELLO, model="demo", request_id=name)


async def test_two_tasks_that_read_one_stream_are_told(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    async with client.stream_chat(HELLO, model="demo") as stream:
        first = asyncio.ensure_future(anext(stream))
        await gateway.until(lambda: gateway.generations)
        with pytest.raises(RuntimeError, match="two tasks"):
            await anext(stream)
        gateway.generations[0].say("a")
        assert await first == "a"


def cancelled(generation: Generation) -> Callable[[], bool]:
    return lambda: generation.is_cancelled


async def test_entry_that_is_not_json_fails_its_own_stream_only(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.confirms_cancel = False
    for make in (client.stream_chat, client.events):
        stream = make(HELLO, model="demo")
        async with stream:
            gateway.messages.clear()
            await gateway.until(lambda: gateway.of_type(m.Create))
            generation = gateway.generations[-1]
            generation.say("a")
            generation.log.append([b'{"id":"\xff","choices":[{"delta":{"content":"\xff"}}]}'])
            gateway.wake()
            await anext(stream)
            with pytest.raises(ProtocolError, match="not JSON") as caught:
                await anext(stream)
            assert caught.value.partial == "a"
        await gateway.until(cancelled(generation))
    assert len(gateway.connections) == 1


async def test_state_changes_are_told_to_sync_and_async_callbacks(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    seen: list[ConnectionState] = []
    told: list[ConnectionState] = []

    async def tell(state: ConnectionState) -> None:
        await asyncio.sleep(0)
        told.append(state)

    for callback in (seen.append, tell):
        async with make_client(on_state=callback) as client:
            await client.connect()
    states = ["connecting", "open", "closed"]
    assert [state.value for state in seen] == states
    assert [state.value for state in told] == states


async def test_callback_that_raises_is_logged_and_harms_nothing(
    gateway: ScriptedGateway, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(state: ConnectionState) -> None:
        raise ZeroDivisionError

    async def fail_later(state: ConnectionState) -> None:
        raise ZeroDivisionError

    gateway.on_create = answers("x")
    for callback in (fail, fail_later):
        caplog.clear()
        async with make_client(on_state=callback) as client:
            assert [text async for text in client.stream_chat(HELLO, model="demo")] == ["x"]
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
            f"on_state failed for {state}" for state in ("connecting", "open", "closed")
        ]


async def test_client_that_is_closed_refuses_new_calls(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    await client.aclose()
    await client.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await anext(client.stream_chat(HELLO, model="demo"))
    with pytest.raises(RuntimeError, match="closed"):
        await client.connect()
