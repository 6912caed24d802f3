"""Rubbish for the parsers of the gateway: they take it or give the documented error, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.core.limits.budget import Budget
from holdfast.dialects.chat import CHAT
from holdfast.dialects.endpoint import Endpoint
from holdfast.errors import InvalidRequest
from holdfast.server.listener.admitted import Admitted, Limits
from holdfast.server.listener.exchange import ErrorShape, Exchange, Request
from holdfast.server.listener.http import HttpConnection
from holdfast.server.listener.requests import MAX_HEAD
from holdfast.server.listener.turns import Turns
from holdfast.timers import Timers

MAX_BODY = 4096
LIMITS = Limits(max_body=MAX_BODY, header_timeout=10.0, body_timeout=10.0, keep_alive_timeout=10.0)

# -- the listener --------------------------------------------------------------------------------------


class Transport(asyncio.Transport):
    """Collects what is written; it can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        self.written += data

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Recorder:
    """An application that notes each request and answers it, at once or in a later turn of the loop."""

    is_draining = False

    def __init__(self, *, is_slow: bool) -> None:
        self.requests: list[Request] = []
        self.upgrades: list[Request] = []
        self._is_slow = is_slow

    def admit(self, request: Request, *, may_wait: bool = True) -> Admitted:
        return Admitted(CHAT, self.answer)

    async def answer(self, request: Request, exchange: Exchange) -> None:
        self.requests.append(request)
        if self._is_slow:
            await asyncio.sleep(0)
        exchange.respond(200, [(b"x-number", b"%d" % len(self.requests))], b"ok")

    def judged(self, connection: HttpConnection, admitted: Admitted) -> None:
        pass

    def upgrade(self, request: Request, connection: HttpConnection, rest: bytes) -> None:
        self.upgrades.append(request)
        connection.refuse(426, [], b"")

    def shape_of(self, path: str | None) -> ErrorShape:
        return CHAT

    def answer_finished(self, connection: HttpConnection) -> None:
        pass

    def connection_made(self, connection: HttpConnection) -> None:
        pass

    def connection_lost(self, connection: HttpConnection) -> None:
        pass


async def _feed(pieces: list[bytes], *, is_slow: bool, stalls: bool) -> tuple[Recorder, bytes]:
    loop = asyncio.get_running_loop()
    raised: list[Any] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    timers = Timers()
    application = Recorder(is_slow=is_slow)
    connection = HttpConnection(application, timers, Turns(), Budget(1 << 30), LIMITS)
    transport = Transport()
    connection.connection_made(transport)
    for piece in pieces:
        if transport.is_closed and not connection._discarding:
            break
        connection.data_received(piece)
        if stalls:
            # The peer takes nothing for a while. What it sends meanwhile may still come.
            (connection.pause_writing if connection.is_writable else connection.resume_writing)()
        await asyncio.sleep(0)
    if not connection.is_writable:
        connection.resume_writing()
    for _ in range(40):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    timers.close()
    assert not raised
    return application, bytes(transport.written)


def feed(
    data: bytes, cuts: list[int], *, is_slow: bool = False, stalls: bool = False
) -> tuple[Recorder, list[tuple[int, bytes]]]:
    """Feed bytes in pieces; return what the application saw and the answers, which must be well-formed."""
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
    application, written = asyncio.run(_feed(pieces, is_slow=is_slow, stalls=stalls))
    return application, parse_answers(written, [request.method for request in application.requests])


_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]+\r\n((?:[a-z-]+: [^\r\n]*\r\n)*)\r\n")


def parse_answers(written: bytes, methods: list[str]) -> list[tuple[int, bytes]]:
    """Split what was written into answers; nothing may be left over."""
    answers: list[tuple[int, bytes]] = []
    position = 0
    while position < len(written):
        match = _ANSWER.match(written, position)
        assert match is not None, written[position : position + 100]
        position = match.end()
        status = int(match[1])
        if status == 100:
            continue
        length = re.search(rb"content-length: (\d+)", match[2])
        size = int(length[1]) if length and status != 204 else 0
        if len(answers) < len(methods) and methods[len(answers)] == "HEAD":
            size = 0
        body = written[position : position + size]
        assert len(body) == size
        position += size
        answers.append((status, body))
    return answers


REFUSALS = {400, 408, 413, 426, 429, 431, 505}


def check(application: Recorder, answers: list[tuple[int, bytes]]) -> None:
    """Each request is answered once and in order; then there may be one refusal, and nothing behind it."""
    count = len(application.requests)
    assert [status for status, _ in answers[:count]] == [200] * count
    refusals = answers[count:]
    assert len(refusals) <= 1
    for status, body in refusals:
        assert status in REFUSALS
        if not application.upgrades:
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "code", "param"}
            assert error["code"] in ("invalid_request", "payload_too_large")
    for request in application.requests + application.upgrades:
        assert len(request.body) <= MAX_BODY
        assert sum(len(name) + len(value) for name, value in request.headers) <= MAX_HEAD
        assert request.http_version in ("1.0", "1.1")
        assert sum(name == b"host" for name, _ in request.headers) <= 1


VALID = [
    b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"HEAD /v1/models?x=1&y=%41 HTTP/1.1\r\nHost: [::1]:80\r\nAccept: */*\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 11\r\n\r\nhello world",
    b"POST /a HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;e=1\r\nhello\r\n0\r\nx: trailer\r\n\r\n",
    b"POST /a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
    b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 3\r\n\r\nabc",
    b"GET /v1/ws/stream HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\x80\x00\x00",
    b"GET http://localhost/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    b"GET /v1/models HTTP/1.0\r\n\r\n",
    b"DELETE /v1/streams/st_1 HTTP/1.1\r\nhost: x\r\nlast-event-id: 1-2\r\n\r\n",
]
#: What is often misread, to be put into or in the place of any part of a request.
SPICES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"\xff",
    b"0",
    b"-1",
    b"99999999999999999999",
    b"HTTP/1.1",
    b"HTTP/9.9",
    b"content-length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: identity\r\n",
    b"host: y\r\n",
    b"connection: close\r\n",
    b"upgrade: websocket\r\nconnection: upgrade\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"?" + b"a=1&" * 150,
    b"a" * 5000,
    b"x: " + b"a" * 33_000 + b"\r\n",
    b"[",
    b"%",
    b"%ff",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@st.composite
def mutated_requests(draw: st.DrawFn) -> bytes:
    """A few valid requests, some bytes of which were replaced, removed, repeated or spiced."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["spice", "noise", "remove", "repeat"]))
        if kind == "spice":
            data[start:stop] = draw(st.sampled_from(SPICES))
        elif kind == "noise":
            data[start:stop] = draw(st.binary(max_size=12))
        elif kind == "remove":
            del data[start:stop]
        else:
            data[stop:stop] = data[start:stop] * 3
    return bytes(data)


cuts = st.lists(st.integers(0, 100_000), max_size=12)
fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fuzz
@given(data=mutated_requests(), cuts=cuts, is_slow=st.booleans())
def test_listener_answers_mutated_requests_or_refuses_them(data: bytes, cuts: list[int], is_slow: bool) -> None:
    check(*feed(data, cuts, is_slow=is_slow))


@fuzz
@given(data=st.binary(max_size=300), cuts=cuts)
@example(data=b"\x16\x03\x01\x02\x00\x01", cuts=[])
@example(data=b"\r\n" * 20_000, cuts=[7])
def test_listener_refuses_random_bytes(data: bytes, cuts: list[int]) -> None:
    application, answers = feed(data, cuts)
    check(application, answers)


@fuzz
@given(
    requests=st.lists(st.sampled_from(VALID[:7]), min_size=1, max_size=5),
    cuts=cuts,
    is_slow=st.booleans(),
    stalls=st.booleans(),
)
def test_listener_sees_the_same_requests_whatever_the_pieces_and_pauses(
    requests: list[bytes], cuts: list[int], is_slow: bool, stalls: bool
) -> None:
    whole, answers = feed(b"".join(requests), [])
    pieces, same_answers = feed(b"".join(requests), cuts, is_slow=is_slow, stalls=stalls)
    assert len(whole.requests) == len(requests)
    assert pieces.requests == whole.requests
    assert same_answers == answers


# -- the chat request ----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text()}),
    min_size=1,
    max_size=3,
)
fields = {
    "model": st.text(min_size=1) | json_values,
    "messages": messages | json_values,
    "stream": st.booleans() | json_values,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | json_values,
}
chat_like = st.builds(
    lambda known, unknown: unknown | known,
    st.fixed_dictionaries({}, optional=fields),
    st.dictionaries(st.text(), json_values, max_size=3),
)
ENDPOINT = Endpoint(base_url="http://localhost/v1")


def parse(raw: bytes | str) -> dict[str, Any] | None:
    """Parse a request, and build what the provider is sent; None where it was refused."""
    try:
        request = CHAT.parse(raw)
    except InvalidRequest:
        return None
    assert request.model
    sent, _ = ENDPOINT.exchange(request, "target", stream_id="st_1", max_entry=1000)
    body: dict[str, Any] = json.loads(sent.body)
    assert body["model"] == "target"
    assert body["stream"] is request.stream
    return body


@settings(max_examples=150, deadline=None)
@given(value=chat_like)
def test_chat_request_is_passed_on_with_all_its_fields_or_refused(value: dict[str, Any]) -> None:
    body = parse(json.dumps(value).encode())
    is_valid = (
        isinstance(value.get("model"), str)
        and 0 < len(value["model"]) <= 256
        and isinstance(value.get("messages"), list)
        and len(value["messages"]) > 0
        and isinstance(value["messages"][0], dict)  # the provider looks at the others
        and isinstance(value.get("stream"), bool | None)
        and isinstance(value.get("stream_options"), dict | None)
        and isinstance((value.get("stream_options") or {}).get("include_usage"), bool | None)
    )
    assert (body is not None) == is_valid
    if body is not None:
        own = {"model", "stream", "stream_options"}
        assert {k: v for k, v in body.items() if k not in own} == {k: v for k, v in value.items() if k not in own}
        if body["stream"]:
            assert body["stream_options"] == {**(value.get("stream_options") or {}), "include_usage": True}


@settings(max_examples=150, deadline=None)
@given(value=chat_like, edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), max_size=3))
def test_chat_request_with_mutated_bytes_is_taken_or_refused(
    value: dict[str, Any], edits: list[tuple[int, bytes]]
) -> None:
    raw = bytearray(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    for place, noise in edits:
        start = place % (len(raw) + 1)
        raw[start : start + 1] = noise
    parse(bytes(raw))


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=60) | st.text(max_size=60))
@example(raw=b"[" * 100_000)
@example(raw=b'{"model":"m","messages":[{}],"x":' + b"[" * 900 + b"]" * 900 + b"}")
@example(raw=b'{"model":"m","messages":[{}],"x":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}")
@example(raw='{"model":"\ud800","messages":[{}]}')
@example(raw=b'{"model":"\\ud800","messages":[{}]}')
@example(raw=b'{"model":"m","messages":[{}],"n":123456789012345678901234567890}')
@example(raw=b'{"model":"m","messages":[{}],"n":1e400}')
@example(raw=b'{"model":"m","messages":[{}],"\xff":1}')
@example(raw=b'{"model":"m","messages":[{}],"stream_options":null}')
def test_chat_request_of_random_bytes_is_taken_or_refused(raw: bytes | str) -> None:
    parse(raw)
