"""What nobody should send over a WebSocket: each gets its clear answer, and other sessions go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from holdfast.core.websocket.frames import frame_header, xor_mask
from tests.support.gateway_client import DEADLINE, Http, Session, answer, chat, content, dial, unharmed
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually


@pytest.fixture
async def busy(make_path: MakePath) -> AsyncIterator[GatewayPath]:
    """A gateway with tight bounds; a stream runs on it, and must still run unharmed after the test."""
    path = await make_path(server={"max_body": 1 << 20, "hello_timeout": 0.2, "max_streams_per_session": 3})
    async with unharmed(path.url):
        yield path


@pytest.fixture
async def session(busy: GatewayPath) -> AsyncIterator[Session]:
    """A session beside the one of the running stream."""
    async with await Session.open(busy.url) as session:
        yield session


async def assert_alive(session: Session) -> None:
    """The session takes and answers messages, and streams."""
    await session.send(type="ping", t="alive")
    assert await session.receive() == {"type": "pong", "t": "alive"}
    await session.create("alive", chat({"tokens": 3}))
    entries, end = await session.read()
    assert (content(entries), end["status"]) == (answer(3), "completed")


# -- messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        ("hello", "JSON"),
        ("[]", "object"),
        ("null", "object"),
        ('{"type": "ping"} {}', "trailing"),
        ("[" * 50_000, ""),
        ('{"a": ' * 40_000, ""),
        ({}, "`type`"),
        ({"type": 5}, "$.type"),
        ({"type": "nonsense"}, "'nonsense'"),
        ({"type": "accepted"}, "'accepted'"),  # the server's
        ({"model": "demo", "messages": []}, "`type`"),  # a bare payload, but this session has said hello
        ({"type": "hello", "version": 1}, "hello"),
        ({"type": "create", "request_id": "r"}, "`request`"),
        ({"type": "create", "request": {}}, "`request_id`"),
        ({"type": "create", "request_id": "", "request": {}}, "$.request_id"),
        ({"type": "create", "request_id": "r" * 257, "request": {}}, "$.request_id"),
        ({"type": "create", "request_id": 5, "request": {}}, "$.request_id"),
        ({"type": "create", "request_id": "r", "request": {}, "credit": -1}, "$.credit"),
        ({"type": "create", "request_id": "r", "request": {}, "credit": 2**31}, "$.credit"),
        ({"type": "attach"}, "`stream`"),
        ({"type": "attach", "stream": None}, "$.stream"),
        ({"type": "attach", "stream": "s", "after": -2}, "$.after"),
        ({"type": "attach", "stream": "s", "after": 2**53}, "$.after"),
        ({"type": "attach", "stream": "s", "after": 1.5}, "$.after"),
        ({"type": "attach", "stream": "s", "after": "1"}, "$.after"),
        ({"type": "attach", "stream": "s", "epoch": "1"}, "$.epoch"),
        ({"type": "detach"}, "`stream`"),
        ({"type": "cancel"}, "either"),
        ({"type": "cancel", "stream": "s", "request_id": "r"}, "either"),
        ({"type": "ack"}, "`streams`"),
        ({"type": "ack", "streams": {}}, "$.streams"),
        ({"type": "ack", "streams": []}, "$.streams"),
        ({"type": "ack", "streams": {"s": -2}}, "$.streams[...]"),
        ({"type": "ack", "streams": {str(n): 1 for n in range(1025)}}, "$.streams"),
        ({"type": "credit", "stream": "s", "bytes": 0}, "$.bytes"),
        ({"type": "credit", "stream": "s"}, "`bytes`"),
        ({"type": "ping", "t": {}}, "$.t"),
        (b"{}", "binary"),
        (b"\xff\x00", "binary"),
    ],
)
async def test_message_that_is_invalid_is_answered_and_the_session_goes_on(
    session: Session, message: bytes | dict[str, Any] | str, says: str
) -> None:
    await session.socket.send(json.dumps(message) if isinstance(message, dict) else message)
    error = await session.expect("error")
    assert error["code"] == "invalid_message"
    assert says in error["message"]
    assert len(error["message"]) < 400
    assert not {"stream", "request_id"} & set(error)
    await assert_alive(session)


async def test_sixteenth_invalid_message_ends_the_session(session: Session) -> None:
    for _ in range(16):
        await session.socket.send("rubbish")
    for _ in range(16):
        assert (await session.expect("error"))["code"] == "invalid_message"
    assert await session.closed() == (4400, "invalid_message")


@pytest.mark.parametrize("negotiated", [True, False])
@pytest.mark.parametrize(
    "message",
    [
        "rubbish",
        b"\x00",
        '{"type": "nonsense"}',
        '{"type": "ping"}',
        '{"type": "create", "request_id": "r", "request": {}}',
        '{"type": "hello"}',
        '{"type": "hello", "version": 2}',
        '{"type": "hello", "version": 1, "streams": [{"stream": "s"}, {"after": 1}]}',
        '{"type": "hello", "version": 1, "session": ""}',
        json.dumps({"type": "hello", "version": 1, "streams": [{"stream": "s"}] * 1025}),
        '{"messages": 5',
    ],
)
async def test_first_message_that_is_invalid_ends_the_session(
    busy: GatewayPath, negotiated: bool, message: bytes | str
) -> None:
    session = Session(await dial(busy.url, negotiated=negotiated))
    await session.socket.send(message)
    assert (await session.expect("error"))["code"] == "invalid_message"
    assert await session.closed() == (4400, "invalid_message")


async def test_bare_payload_under_the_subprotocol_ends_the_session(busy: GatewayPath) -> None:
    session = Session(await dial(busy.url))
    await session.socket.send(json.dumps(chat({"tokens": 1})))
    assert "hello" in (await session.expect("error"))["message"]
    assert await session.closed() == (4400, "invalid_message")


@pytest.mark.parametrize(
    ("payload", "code", "param"),
    [
        ({"model": "demo"}, "invalid_request", "messages"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "invalid_request", "model"),
        ({"model": "nope", "messages": [{"role": "user", "content": "hi"}]}, "model_not_found", "model"),
        ({"model": 5, "messages": []}, "invalid_request", "model"),
    ],
)
async def test_bare_payload_that_is_refused_may_be_followed_by_a_good_one(
    busy: GatewayPath, payload: dict[str, Any], code: str, param: str
) -> None:
    async with await Session.open_bare(busy.url) as session:
        await session.socket.send(json.dumps(payload))
        error = await session.expect("error")
        assert (error["code"], error["param"]) == (code, param)
        await session.socket.send(json.dumps(chat({"tokens": 2})))
        await session.expect("accepted")
        entries, _ = await session.read()
        assert content(entries) == answer(2)


# -- requests that are understood and refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        ([], "invalid_request", "request"),
        (None, "invalid_request", "request"),
        ("{}", "invalid_request", "request"),
        ({}, "invalid_request", "model"),
        ({"model": "demo"}, "invalid_request", "messages"),
        ({"model": "demo", "messages": []}, "invalid_request", "messages"),
        ({"model": "demo", "messages": "hi"}, "invalid_request", "messages"),
        ({"model": "demo", "messages": [1]}, "invalid_request", "messages[0]"),
        ({"model": "nope", "messages": [{"role": "user", "content": "hi"}]}, "model_not_found", "model"),
    ],
)
async def test_create_that_cannot_be_served_is_refused_under_its_id(
    session: Session, request_: dict[str, Any] | list[Any] | str | None, code: str, param: str
) -> None:
    await session.send(type="create", request_id="r-1", request=request_)
    error = await session.expect("error")
    assert (error["code"], error["request_id"], error["param"]) == (code, "r-1", param)
    await assert_alive(session)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"stream": "st_unknown"}, "unknown_stream"),
        ({"stream": "st_é\u2028\U0001f600"}, "unknown_stream"),
        ({"after": 7}, "ahead_of_log"),
        ({"after": 2**53 - 1}, "ahead_of_log"),
        ({"epoch": 2}, "unknown_epoch"),
        ({"epoch": 0}, "unknown_epoch"),
        ({"epoch": -(2**63)}, "unknown_epoch"),
    ],
)
@pytest.mark.parametrize("how", ["attach", "hello"])
async def test_cursor_that_cannot_be_served_is_refused_by_its_stream(
    busy: GatewayPath, session: Session, fields: dict[str, Any], code: str, how: str
) -> None:
    stream = (await session.create("r-1", chat({"tokens": 3})))["stream"]
    _, end = await session.read()
    assert end["seq"] == 5
    fields = {"stream": stream, **fields}
    if how == "attach":
        await session.send(type="attach", **fields)
        error = await session.expect("error")
        assert (error["code"], error["stream"]) == (code, fields["stream"])
        await assert_alive(session)
        return
    async with await Session.open(busy.url, hello={"streams": [fields, {"stream": stream}]}) as other:
        refused, resumed = other.welcome["streams"]
        assert (refused["stream"], refused["status"], refused["error"]["code"]) == (
            fields["stream"],
            "refused",
            code,
        )
        assert resumed == {"stream": stream, "status": "ended"}
        entries, _ = await other.read()
        assert content(entries) == answer(3)


async def test_more_streams_than_a_session_may_read_are_refused_one_by_one(session: Session) -> None:
    stalled = {"tokens": 5, "fault": {"kind": "stall", "after_tokens": 0}}
    for number in range(4):
        await session.send(type="create", request_id=f"r-{number}", request=chat(stalled))
    kinds: dict[str, tuple[Any, ...]] = {}
    while len(kinds) < 4:
        message = await session.receive()
        if "request_id" in message:
            kinds[message["request_id"]] = message["type"], message.get("code"), message.get("retryable")
    assert [kinds[f"r-{number}"] for number in range(3)] == [("accepted", None, None)] * 3
    assert kinds["r-3"] == ("error", "too_many_streams", True)
    await session.send(type="cancel", request_id="r-0")
    while (await session.receive())["type"] != "end":
        pass
    await session.send(type="create", request_id="r-3", request=chat({"tokens": 1}))
    while (message := await session.receive())["type"] != "accepted":
        pass
    assert message["request_id"] == "r-3"


async def test_hello_that_resumes_more_streams_than_allowed_is_refused_for_the_rest(
    busy: GatewayPath, session: Session
) -> None:
    streams = []
    for number in range(5):
        streams.append((await session.create(f"r-{number}", chat({"tokens": 1})))["stream"])
        await session.read()
    async with await Session.open(
        busy.url, hello={"streams": [{"stream": stream} for stream in streams]}
    ) as other:
        states = [(state["status"], state.get("error", {}).get("code")) for state in other.welcome["streams"]]
    assert states == [("ended", None)] * 3 + [("refused", "too_many_streams")] * 2


@pytest.mark.parametrize(
    "message",
    [
        {"type": "ack", "streams": {"st_unknown": 5}},
        {"type": "credit", "stream": "st_unknown", "bytes": 1},
        {"type": "cancel", "request_id": "unknown"},
        {"type": "pong", "t": 1},
        {"type": "ping", "t": "alive", "unknown": {"field": []}},
    ],
)
async def test_message_that_crossed_an_end_or_holds_more_than_is_known_is_no_fault(
    session: Session, message: dict[str, Any]
) -> None:
    await session.send(**message)
    if message["type"] == "ping":
        assert await session.receive() == {"type": "pong", "t": "alive"}
    await assert_alive(session)


async def test_ack_beyond_what_was_sent_counts_as_what_was_sent(make_path: MakePath) -> None:
    path = await make_path(streams={"log_bytes": 4096})
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 200, "interval_ms": 1})))["stream"]
        entries = await session.entries(1)
        await session.send(type="ack", streams={stream: 2**53 - 1})
        # Not acknowledged, entries pile up to the bound: nothing was dropped that had not been sent.
        entries += await session.entries(10, start=len(entries))
        while True:
            await session.send(type="ack", streams={stream: len(entries) - 1})
            message = await session.receive()
            if message["type"] == "end":
                break
            entries += [message["data"]] if message["type"] == "event" else message["data"]
    assert content(entries) == answer(200)


async def test_credit_beyond_its_bound_is_an_invalid_message_and_grants_nothing(session: Session) -> None:
    stream = (await session.create("r-1", chat({"tokens": 3}), credit=0))["stream"]
    await session.send(type="credit", stream=stream, bytes=2**31 - 1)
    entries = await session.entries(5)
    await session.read(start=len(entries))
    stream = (await session.create("r-2", chat({"tokens": 3}), credit=2**31 - 1))["stream"]
    await session.send(type="credit", stream=stream, bytes=2**31 - 1)
    errors = []
    while (message := await session.receive())["type"] != "end":
        if message["type"] == "error":
            errors.append(message)
    # Where the grant came before the entries, it exceeded the bound.
    assert [error["code"] for error in errors] in ([], ["invalid_message"])


# -- frames --------------------------------------------------------------------------------------------


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """A client's frame as bytes."""
    header = bytearray(frame_header(opcode, len(payload)))
    if not fin:
        header[0] &= 0x7F
    if not masked:
        return bytes(header) + payload
    header[1] |= 0x80
    key = b"\x37\xfa\x21\x3d"  # RFC 6455 section 5.7's
    return bytes(header) + key + xor_mask(payload, key)


HELLO = frame(1, b'{"type": "hello", "version": 1}')


async def upgraded(path: GatewayPath) -> Http:
    """A raw connection behind its handshake, without subprotocol."""
    http = await Http.open(path.url)
    http.request(
        "GET",
        "/v1/ws/stream",
        upgrade="websocket",
        connection="upgrade",
        sec_websocket_version="13",
        sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
    )
    assert (await http.head()).status == 101
    return http


async def next_frame(http: Http) -> tuple[int, bytes]:
    """The next frame of the server: its opcode and payload."""
    async with asyncio.timeout(DEADLINE):
        first, length = await http.reader.readexactly(2)
        if length >= 126:
            length = int.from_bytes(await http.reader.readexactly(2 if length == 126 else 8), "big")
        assert first & 0xF0 == 0x80
        return first & 0x0F, await http.reader.readexactly(length)


async def close_code_of(http: Http) -> int:
    """Read on to the Close frame, answer it, and let the gateway end the connection; return its code."""
    while (received := await next_frame(http))[0] != 8:
        pass
    http.send(frame(8, received[1][:2]))
    http.writer.write_eof()  # where half a frame was sent before, the answer is no frame
    assert await http.is_closed()
    return int.from_bytes(received[1][:2], "big")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b'{"type": "\xff\xfe"}'), 1007),
        (frame(1, b"\xc3", fin=False) + frame(0, b"\x28"), 1007),
        (frame(1, b"\xed\xa0\x80"), 1007),  # a surrogate
        (frame(1, b"{}", masked=False), 1002),
        (frame(3, b"{}"), 1002),
        (bytes((frame(1, b"{}")[0] | 0x40,)) + frame(1, b"{}")[1:], 1002),  # as if compressed
        (frame(0, b"{}"), 1002),
        (frame(1, b"{", fin=False) + frame(1, b"}"), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(9, b"", fin=False), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, (1005).to_bytes(2, "big")), 1002),
        (frame(8, (4999).to_bytes(2, "big") + b"\xff"), 1007),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", 1002),
    ],
)
async def test_frame_that_breaks_the_protocol_ends_its_connection(
    busy: GatewayPath, data: bytes, code: int
) -> None:
    async with await upgraded(busy) as http:
        http.send(HELLO + data)
        assert await close_code_of(http) == code


@pytest.mark.parametrize("fragments", [1, 20])
async def test_message_beyond_the_bound_is_refused_readably(path: GatewayPath, fragments: int) -> None:
    """The client sends all 20 MB of it before it reads; the Close frame must not be lost in a reset."""
    size = 20_000_000 // fragments
    async with await upgraded(path) as http:
        http.send(HELLO)
        for number in range(fragments):
            http.send(frame(0 if number else 1, b" " * size, fin=number == fragments - 1))
            await http.writer.drain()
        assert await close_code_of(http) == 1009
    await eventually(lambda: not path.gateway.peers)


async def test_sdk_of_websockets_sees_why_its_message_was_refused(busy: GatewayPath) -> None:
    async with await Session.open(busy.url) as session:
        try:
            await session.socket.send(" " * 5_000_000)
        except ConnectionClosed:
            pass  # it was told while it still sent
        assert (await session.closed())[0] == 1009


async def test_fragmented_message_with_a_ping_in_between_is_taken(busy: GatewayPath) -> None:
    message = json.dumps(chat({"tokens": 1})).encode()
    pieces = [message[start : start + 7] for start in range(0, len(message), 7)]
    data = b"".join(
        frame(0 if number else 1, piece, fin=number == len(pieces) - 1) + frame(9, b"?")
        for number, piece in enumerate(pieces)
    )
    async with await upgraded(busy) as http, asyncio.timeout(DEADLINE):
        http.send(data)
        received = await http.reader.readuntil(b'"type":"end"')
    assert received.count(b"\x8a\x01?") == len(pieces)
    assert b'"type":"accepted"' in received


# -- silence -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", frame(9, b""), HELLO[:5]])
async def test_client_that_never_says_hello_is_sent_away(busy: GatewayPath, data: bytes) -> None:
    async with await upgraded(busy) as http:
        http.send(data)
        assert await close_code_of(http) == 4408


async def test_client_that_never_says_hello_is_told_so(busy: GatewayPath) -> None:
    session = Session(await dial(busy.url))
    assert (await session.expect("error"))["code"] == "hello_timeout"
    assert await session.closed() == (4408, "hello_timeout")


async def test_client_that_answers_no_ping_is_dropped(make_path: MakePath) -> None:
    path = await make_path(server={"ping_interval": 0.1, "ping_timeout": 0.1})
    async with await upgraded(path) as http, asyncio.timeout(DEADLINE):
        http.send(HELLO)
        data = await http.reader.read()
    assert data.endswith(frame_header(9, 0))  # a Ping, then the end without a Close frame


async def test_client_that_answers_pings_is_kept(make_path: MakePath) -> None:
    path = await make_path(server={"ping_interval": 0.1, "ping_timeout": 0.1, "hello_timeout": 0.1})
    async with await upgraded(path) as http:
        http.send(HELLO)
        assert (await next_frame(http))[1].startswith(b'{"type":"welcome"')
        for _ in range(4):
            assert await next_frame(http) == (9, b"")
            http.send(frame(10, b""))
        http.send(frame(1, b'{"type":"ping","t":1}'))
        assert await next_frame(http) == (1, b'{"type":"pong","t":1}')


async def test_client_that_sends_and_never_reads_is_dropped(busy: GatewayPath) -> None:
    """Its answers may not pile up without bound."""
    message = frame(1, b'{"type": "ping", "t": "%b"}' % (b"x" * 1000))
    async with await upgraded(busy) as http, asyncio.timeout(DEADLINE):
        http.send(HELLO)
        http.transport.pause_reading()

        async def flood() -> None:
            while True:
                http.send(message * 100)
                await http.writer.drain()

        with pytest.raises(ConnectionError):
            await flood()
    await eventually(lambda: busy.gateway.peers.statistics().conversations == 1)


async def test_client_that_hangs_up_at_any_moment_leaves_nothing(busy: GatewayPath) -> None:
    sent = HELLO + frame(
        1, json.dumps({"type": "create", "request_id": "r", "request": chat({"tokens": 1})}).encode()
    )
    for size in range(0, len(sent), 11):
        async with await upgraded(busy) as http:
            http.send(sent[:size])
            await http.writer.drain()
    await eventually(lambda: busy.gateway.peers.statistics().conversations == 1)
