"""What a client does when its connection breaks, is refused, falls silent or is asked to leave."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from holdfast import (
    Cancelled,
    ConnectionLost,
    ConnectionState,
    Draining,
    Forbidden,
    HoldfastError,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
    RateLimited,
    SessionSuperseded,
    StreamingAIClient,
    Unauthorized,
    UnknownStream,
)
from holdfast.core.session import messages as m
from holdfast.errors import HelloTimeout, InvalidMessage
from tests.support.scripted_gateway import MakeClient, Script, ScriptedGateway, answers, words
from tests.support.virtual_clock import VirtualClock

HELLO = [{"role": "user", "content": "hi"}]


async def read(client: StreamingAIClient) -> str:
    return "".join([text async for text in client.stream_chat(HELLO, model="demo")])


async def test_cut_connection_resumes_all_streams_in_one_hello(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    states: list[ConnectionState] = []
    client = make_client(on_state=states.append)
    streams = [client.stream_chat(HELLO, model="demo") for _ in range(3)]
    for stream in streams:
        await stream.__aenter__()
    await gateway.until(lambda: len(gateway.generations) == 3)
    for generation in gateway.generations:
        generation.say("a", "b")
    for stream in streams:
        assert [await anext(stream), await anext(stream)] == ["a", "b"]
    gateway.messages.clear()
    gateway.last.cut()
    for generation in gateway.generations:  # spoken while nobody is connected
        generation.say("c")
        generation.end()
    assert [[text async for text in stream] for stream in streams] == [["c"]] * 3
    (hello,) = gateway.of_type(m.Hello)
    assert isinstance(hello, m.Hello)
    assert [(resume.stream, resume.after) for resume in hello.streams] == [("st_0", 1), ("st_1", 1), ("st_2", 1)]
    assert hello.session == "ss_1"
    assert not gateway.of_type(m.Create)
    assert [state.value for state in states] == ["connecting", "open", "reconnecting", "open"]


@pytest.mark.parametrize("fault", ["welcome", "accepted", "events", "end"])
async def test_message_that_is_lost_in_a_cut_is_made_up_for(
    gateway: ScriptedGateway, client: StreamingAIClient, fault: str
) -> None:
    gateway.on_create = answers(*words(5))
    gateway.scripts.append(Script(cut_before=fault))
    assert await read(client) == "".join(words(5))
    assert len(gateway.generations) == 1
    assert len(gateway.connections) == 2


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1011, 1012, 1013, 4000, 4500])
async def test_transient_close_code_is_survived(
    gateway: ScriptedGateway, client: StreamingAIClient, code: int
) -> None:
    gateway.on_create = answers(*words(5))
    gateway.scripts.append(Script(close_before=("end", code)))
    assert await read(client) == "".join(words(5))
    assert len(gateway.generations) == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (4400, InvalidMessage),
        (4401, Unauthorized),
        (4403, Forbidden),
        (4408, HelloTimeout),
        (4409, SessionSuperseded),
        (4477, ConnectionLost),
        (1009, PayloadTooLarge),
    ],
)
async def test_final_close_code_is_raised_at_once_from_every_call(
    gateway: ScriptedGateway, client: StreamingAIClient, code: int, expected: type[HoldfastError]
) -> None:
    async def partial(stream: object) -> HoldfastError:
        with pytest.raises(expected, match=f"code {code}: bye") as caught:
            async for _ in client.stream_chat(HELLO, model="demo"):
                pass
        return caught.value

    tasks = [asyncio.create_task(partial(None)) for _ in range(2)]
    await gateway.until(lambda: len(gateway.generations) == 2)
    gateway.generations[0].say("one")
    gateway.generations[1].say("two ", "three")
    await gateway.until(lambda: gateway.last.sent.count("event") + gateway.last.sent.count("events") == 2)
    await gateway.last.close(code, "bye")
    first, second = await asyncio.gather(*tasks)
    assert {first.partial, second.partial} == {"one", "two three"}
    assert first is not second
    assert len(gateway.connections) == 1
    assert client.state is ConnectionState.DISCONNECTED
    gateway.on_create = answers("again")
    assert await read(client) == "again"


@pytest.mark.parametrize(
    ("status", "expected"), [(400, InvalidRequest), (401, Unauthorized), (403, Forbidden), (404, NotFound)]
)
async def test_final_answer_to_the_handshake_is_not_retried(
    gateway: ScriptedGateway, client: StreamingAIClient, status: int, expected: type[HoldfastError]
) -> None:
    gateway.scripts.append(Script(status=status, body='{"error":{"code":"odd","message":"who are you"}}'))
    with pytest.raises(expected, match=f"HTTP {status}: who are you"):
        await read(client)
    assert len(gateway.requests) == 1


async def test_not_found_while_a_gateway_is_replaced_is_retried(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("x")
    await client.connect()
    gateway.scripts.append(Script(status=404, body="no such service"))
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.last.cut()
        assert [text async for text in stream] == ["x"]


@pytest.mark.parametrize(
    ("status", "expected"), [(429, RateLimited), (503, Overloaded), (502, ConnectionLost), (200, ConnectionLost)]
)
async def test_transient_answer_to_the_handshake_is_retried_and_raised_in_the_end(
    gateway: ScriptedGateway, make_client: MakeClient, status: int, expected: type[HoldfastError]
) -> None:
    client = make_client(max_retries=2)
    gateway.scripts.extend([Script(status=status)] * 3)
    with pytest.raises(expected, match=f"HTTP {status}"):
        await read(client)
    assert len(gateway.requests) == 3
    gateway.on_create = answers("x")
    gateway.scripts.extend([Script(status=status)] * 2)
    assert await read(client) == "x"


async def test_error_code_of_a_refusal_chooses_the_error(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_retries=0)
    for code, expected in (("draining", Draining), ("upstream_status", ConnectionLost), ("not_found", Overloaded)):
        status = 502 if code == "upstream_status" else 503
        gateway.scripts.append(Script(status=status, body=f'{{"error":{{"code":"{code}"}}}}'))
        with pytest.raises(expected):
            await client.connect()


async def test_retry_after_of_a_refusal_is_waited_for_within_max_backoff(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_backoff=0.05)
    gateway.on_create = answers("x")
    loop = asyncio.get_running_loop()
    for header, least in (("60", 0.05), ("0.03", 0.03), ("-1", 0.0), ("nan", 0.0), ("Fri, 31 Dec 1999", 0.0)):
        gateway.scripts.append(Script(status=503, headers={"Retry-After": header}))
        start = loop.time()
        assert await read(client) == "x"
        assert least <= loop.time() - start < 1
        async with client:
            pass
        client = make_client(max_backoff=0.05)


async def test_unreachable_gateway_raises_after_max_retries_from_every_call(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    states: list[ConnectionState] = []
    client = make_client(base_url=f"http://127.0.0.1:{port}", max_retries=3, on_state=states.append)
    results = await asyncio.gather(*(read(client) for _ in range(3)), client.connect(), return_exceptions=True)
    for error in results:
        assert isinstance(error, ConnectionLost)
        assert str(port) in error.message
        assert isinstance(error.__cause__, OSError)
    assert len(set(map(id, results))) == 4
    assert [state.value for state in states] == ["connecting", "reconnecting", "disconnected"]


async def test_failure_count_starts_again_after_a_connection_that_was_of_use(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_retries=2)
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        for number in range(5):
            gateway.scripts.append(Script(status=503))
            gateway.last.cut()
            gateway.generations[0].say(str(number))
            assert await anext(stream) == str(number)
    assert len(gateway.requests) == 11


async def test_connections_that_bring_nothing_count_as_failures(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_retries=2)
    stream = client.stream_chat(HELLO, model="demo")
    async with stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("so far")
        assert await anext(stream) == "so far"
        gateway.scripts.extend([Script(close_before=("welcome", 1013)), Script(close_before=("welcome", 1011))])
        gateway.last.cut()
        with pytest.raises(InternalError, match="1011") as caught:
            await anext(stream)
    assert caught.value.partial == "so far"
    assert len(gateway.connections) == 3


async def test_gateway_that_gives_no_welcome_is_left_and_tried_again(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    gateway.on_create = answers("x")
    gateway.scripts.append(Script(welcomes=False))
    assert await read(make_client(connect_timeout=0.05)) == "x"
    gateway.scripts.append(Script(welcomes=False))
    with pytest.raises(ConnectionLost, match="no welcome within"):
        await read(make_client(connect_timeout=0.05, max_retries=0))


async def test_gateway_that_never_answers_the_handshake_is_given_up(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts in the kernel, and says nothing
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = make_client(base_url=url, connect_timeout=0.05, max_retries=1)
        with pytest.raises(ConnectionLost, match=r"no connection .* within"):
            await read(client)


async def test_server_that_is_no_holdfast_gateway_is_told_apart(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.scripts.append(Script(agrees=False))
    with pytest.raises(ProtocolError, match="did not agree to the subprotocol"):
        await read(client)
    assert len(gateway.requests) == 1


async def test_stream_that_cannot_be_resumed_raises_with_what_came(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream, other = client.stream_chat(HELLO, model="demo"), client.stream_chat(HELLO, model="demo")
    async with stream, other:
        await gateway.until(lambda: len(gateway.generations) == 2)
        gateway.generations[0].say("so far")
        assert await anext(stream) == "so far"
        del gateway.by_id["st_0"]
        gateway.last.cut()
        with pytest.raises(UnknownStream) as caught:
            await anext(stream)
        assert caught.value.partial == "so far"
        gateway.generations[1].say("fine")
        assert await anext(other) == "fine"


async def test_stream_that_is_refused_for_now_is_asked_for_again(
    gateway: ScriptedGateway, client: StreamingAIClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "holdfast.client")
    stream, other = client.stream_chat(HELLO, model="demo"), client.stream_chat(HELLO, model="demo")
    async with stream, other:
        await gateway.until(lambda: len(gateway.generations) == 2)
        gateway.generations[0].say("so ")
        assert await anext(stream) == "so "
        gateway.resume_refusals += [Overloaded("the store sleeps"), RateLimited("and again", retry_after=0.01)]
        gateway.last.cut()
        gateway.generations[1].say("fine")
        assert await anext(other) == "fine"
        gateway.generations[0].say("far")
        assert await anext(stream) == "far"
    assert len(gateway.connections) == 2
    assert "the gateway cannot resume st_" in caplog.text


async def test_stream_that_is_refused_too_often_raises_with_what_came(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_retries=2)
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("so far")
        assert await anext(stream) == "so far"
        gateway.resume_refusals += [Overloaded("the store sleeps") for _ in range(4)]
        gateway.last.cut()
        with pytest.raises(Overloaded, match="the store sleeps") as caught:
            await anext(stream)
    assert caught.value.partial == "so far"
    assert len(gateway.resume_refusals) == 1


async def test_first_attach_that_is_refused_for_now_raises_at_once(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.resume_refusals.append(Overloaded("the store sleeps"))
    with pytest.raises(Overloaded, match="the store sleeps"):
        await anext(client.attach("st_0"))


@pytest.mark.parametrize(
    "rubbish",
    [
        "rubbish",
        '{"type":"nonsense"}',
        '{"type":"event","stream":"st_0","seq":7,"data":{}}',
        '{"type":"welcome"}',
        '{"type":"end","stream":"st_0","seq":9,"status":"completed"}',
    ],
)
async def test_gateway_that_breaks_the_protocol_is_left_and_the_stream_resumed(
    gateway: ScriptedGateway, client: StreamingAIClient, rubbish: str
) -> None:
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"
        await gateway.last.socket.send(rubbish)
        await gateway.until(lambda: len(gateway.connections) == 2)
        gateway.generations[0].say("b")
        assert await anext(stream) == "b"


async def test_gateway_that_keeps_breaking_the_protocol_is_given_up(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    async def connected(number: int) -> None:
        await gateway.until(lambda: len(gateway.connections) == number)

    async def break_all() -> None:
        for number in range(1, 4):
            await connected(number)
            await gateway.last.socket.send("rubbish")

    client = make_client(max_retries=2)
    gateway.scripts.extend([Script(welcomes=False)] * 3)
    breaking = asyncio.create_task(break_all())
    with pytest.raises(ProtocolError, match="invalid message"):
        await read(client)
    await breaking


async def test_message_beyond_max_message_is_final(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    gateway.on_create = answers("x" * 5000)
    with pytest.raises(PayloadTooLarge, match="max_message"):
        await read(make_client(max_message=4096))
    assert len(gateway.connections) == 1


async def test_error_of_the_session_explains_the_close(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    client = make_client(max_retries=0)
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.last.send(m.error_message(Overloaded("come back later", retry_after=7.0)))
        await gateway.until(lambda: "error" in gateway.last.sent)
        await gateway.last.close(1013)
        with pytest.raises(Overloaded, match="come back later") as caught:
            await anext(stream)
        assert caught.value.retry_after == 7.0


# -- silence -------------------------------------------------------------------------------------------


async def test_silent_connection_is_pinged_then_replaced(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(ping_interval=0.05, ping_timeout=0.05)
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.last.is_mute = True
        await gateway.until(lambda: len(gateway.connections) == 2)
        assert gateway.of_type(m.Ping)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"


async def test_connection_that_answers_pings_is_kept(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    client = make_client(ping_interval=0.02, ping_timeout=0.2)
    async with client.stream_chat(HELLO, model="demo"):
        await gateway.until(lambda: len(gateway.of_type(m.Ping)) >= 5)
    assert len(gateway.connections) == 1


async def test_any_bytes_are_a_sign_of_life(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    clock = VirtualClock(asyncio.get_running_loop())
    client = make_client(ping_interval=20.0, ping_timeout=10.0)
    await client.connect()
    await gateway.until(lambda: "welcome" in gateway.last.sent)
    gateway.last.is_mute = True
    for _ in range(10):  # frames of the WebSocket layer, and no message
        await clock.pass_time(15.0, step=5.0)
        await (await gateway.last.socket.ping())
    assert client.state is ConnectionState.OPEN
    assert not gateway.of_type(m.Ping)
    await clock.pass_time(30.0, step=5.0)
    await gateway.until(lambda: gateway.open_count == 0)  # nothing comes any more
    assert gateway.of_type(m.Ping)


# -- leaving when asked --------------------------------------------------------------------------------


async def test_goaway_moves_running_streams_to_a_new_connection(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    states: list[ConnectionState] = []
    client = make_client(on_state=states.append, max_retries=0)
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"
        gateway.last.send(m.Goaway("drain", (0, 20)))
        await gateway.until(lambda: len(gateway.connections) == 2)
        gateway.generations[0].say("b")
        assert await anext(stream) == "b"
        assert gateway.connections[0].socket.protocol.close_code == 1000
    assert [state.value for state in states] == ["connecting", "open", "reconnecting", "open"]


async def test_goaway_of_an_idle_client_waits_for_the_next_call(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("x")
    assert await read(client) == "x"
    gateway.last.send(m.Goaway("drain", (0, 0)))
    await gateway.until(lambda: gateway.open_count == 0)
    assert await read(client) == "x"
    assert len(gateway.connections) == 2


async def test_gateway_that_closes_after_goaway_is_not_counted_as_a_failure(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_retries=0)
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"
        gateway.last.send(m.Goaway("drain", (5_000, 10_000)))
        await gateway.until(lambda: "goaway" in gateway.last.sent)
        await gateway.last.close(1012, "draining")
        gateway.generations[0].say("b")
        assert await anext(stream) == "b"


async def test_request_that_crosses_goaway_is_made_on_the_next_connection(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("x")
    await client.connect()
    gateway.refusals.append(Draining())
    gateway.last.session.send(m.Goaway("drain", (50, 50)))  # written with the answer to the request
    assert await read(client) == "x"
    assert len(gateway.connections) == 2


async def test_gateway_that_sends_everybody_away_is_given_up(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_retries=2)
    gateway.scripts.extend([Script(goaway=(0, 0))] * 10)
    with pytest.raises(Draining, match="sends its clients away"):
        await read(client)
    assert len(gateway.connections) <= 4  # the first was of use: it took the request


STAY = m.Goaway("drain", (5_000, 10_000), "stay")


async def test_goaway_whose_streams_stay_keeps_them_and_asks_for_new_ones_elsewhere(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    states: list[ConnectionState] = []
    client = make_client(on_state=states.append, max_retries=0)
    old = client.stream_chat(HELLO, model="demo")
    async with old:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(old) == "a"
        gateway.last.send(STAY)
        await gateway.until(lambda: "goaway" in gateway.last.sent)
        gateway.generations[0].say("b")
        assert await anext(old) == "b"
        assert len(gateway.connections) == 1  # nothing asked for another one
        gateway.on_create = answers("new")
        assert await read(client) == "new"
        assert len(gateway.connections) == gateway.open_count == 2
        gateway.generations[0].say("c")
        gateway.generations[0].end()
        assert [text async for text in old] == ["c"]
        await gateway.until(lambda: gateway.open_count == 1)
        assert gateway.connections[0].socket.protocol.close_code == 1000
    assert await read(client) == "new"
    assert len(gateway.connections) == 2
    assert client.state is ConnectionState.OPEN
    assert [state.value for state in states] == ["connecting", "open", "connecting", "open"]


async def test_goaway_whose_streams_stay_ends_an_idle_connection_and_the_next_call_connects(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("x")
    assert await read(client) == "x"
    gateway.last.send(STAY)
    await gateway.until(lambda: gateway.open_count == 0)
    assert await read(client) == "x"
    assert len(gateway.connections) == 2


async def test_request_that_crosses_goaway_whose_streams_stay_is_made_once_on_a_new_connection(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    gateway.on_create = answers("x")
    await client.connect()
    gateway.refusals.append(Draining())
    gateway.last.session.send(STAY)  # written with the answer to the request
    assert await read(client) == "x"
    assert len(gateway.connections) == 2
    assert len(gateway.generations) == 1
    first, second = gateway.of_type(m.Create)
    assert first == second


async def test_stream_that_stays_is_cancelled_on_its_own_connection(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    stream = client.stream_chat(HELLO, model="demo")
    async with stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"
        gateway.last.send(STAY)
        await gateway.until(lambda: "goaway" in gateway.last.sent)
        await client.cancel(stream.id or "")
        assert gateway.generations[0].is_cancelled
        assert len(gateway.connections) == 1


async def test_stream_that_stays_is_resumed_after_a_cut(
    gateway: ScriptedGateway, client: StreamingAIClient
) -> None:
    async with client.stream_chat(HELLO, model="demo") as stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"
        gateway.last.send(STAY)
        await gateway.until(lambda: "goaway" in gateway.last.sent)
        gateway.last.cut()
        gateway.generations[0].say("b")
        gateway.generations[0].end()
        assert [text async for text in stream] == ["b"]
    await gateway.until(lambda: gateway.open_count == 0)


async def test_gateways_that_keep_no_new_request_are_given_up(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(max_retries=2)
    gateway.scripts.extend([Script(goaway=(0, 0), streams="stay")] * 10)
    gateway.refusals.extend([Draining()] * 10)
    with pytest.raises(Draining, match="sends its clients away"):
        await read(client)
    assert len(gateway.connections) == 3


async def test_closing_a_client_ends_streams_on_all_its_connections(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client()
    old = client.stream_chat(HELLO, model="demo")
    await old.__aenter__()
    await gateway.until(lambda: gateway.generations)
    gateway.last.send(STAY)
    await gateway.until(lambda: "goaway" in gateway.last.sent)
    new = client.stream_chat(HELLO, model="demo")
    await new.__aenter__()
    await gateway.until(lambda: len(gateway.generations) == 2)
    await client.aclose()
    await gateway.until(lambda: all(generation.is_cancelled for generation in gateway.generations))
    assert client.state is ConnectionState.CLOSED
    for stream in (old, new):
        with pytest.raises(Cancelled):
            await anext(stream)


async def test_client_that_is_closed_while_it_reconnects_stops(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    client = make_client(initial_backoff=30, max_backoff=30)
    stream = client.stream_chat(HELLO, model="demo")
    async with stream:
        await gateway.until(lambda: gateway.generations)
        gateway.generations[0].say("a")
        assert await anext(stream) == "a"
        waiting = asyncio.ensure_future(anext(stream))
        gateway.scripts.extend([Script(status=503)] * 2)
        gateway.last.cut()
        await gateway.until(lambda: gateway.open_count == 0)
        await client.aclose()
        with pytest.raises(Cancelled) as caught:
            await waiting
        assert caught.value.partial == "a"


# -- what nobody planned -------------------------------------------------------------------------------


async def test_fault_of_the_client_itself_is_logged_and_leaves_no_call_waiting(
    gateway: ScriptedGateway,
    client: StreamingAIClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*args: object, **settings: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.client.runner.open_link", fail)
        with pytest.raises(InternalError, match="its log") as caught:
            await read(client)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert [record.message for record in caplog.records] == ["the client failed"]
    gateway.on_create = answers("x")
    assert await read(client) == "x"


async def test_proxy_of_the_environment_that_cannot_be_used_is_final(
    client: StreamingAIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("socks_proxy", "socks5://127.0.0.1:9")  # needs a package that is not installed
    with pytest.raises(ConnectionLost, match=r"cannot connect to .*python-socks"):
        await client.connect()


async def test_connect_that_is_cancelled_harms_no_other_call(
    gateway: ScriptedGateway, make_client: MakeClient
) -> None:
    gateway.scripts.append(Script(welcomes=False))
    gateway.on_create = answers("x")
    client = make_client(connect_timeout=0.2)
    connecting = asyncio.create_task(client.connect())
    reading = asyncio.create_task(read(client))
    await gateway.until(lambda: gateway.of_type(m.Hello))
    connecting.cancel()
    assert await reading == "x"
    assert connecting.cancelled()
