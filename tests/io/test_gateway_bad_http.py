"""What nobody should send over HTTP: each gets its clear answer, and a stream on another connection goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from holdfast.core.limits.budget import Kind
from holdfast.server.listener.http import MAX_BACKLOG
from holdfast.server.listener.requests import MAX_FIELDS, MAX_OVERHEAD
from tests.support.gateway_client import (
    DEADLINE,
    Http,
    Response,
    Session,
    answer,
    ask,
    chat,
    content,
    dial,
    unharmed,
)
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

COMPLETIONS = "/v1/chat/completions"
GOOD = json.dumps(chat({"tokens": 2}, stream=False)).encode()
HOST = b"host: localhost\r\n"
#: The most that uvloop reads at a time.
READ = 256_000


@dataclass
class Busy(GatewayPath):
    """A path on which a stream runs. `created` is how many streams the test itself creates."""

    created: int = 0


@pytest.fixture
async def busy(make_path: MakePath) -> AsyncIterator[Busy]:
    """A gateway with short timeouts; a stream runs on it, and must still run unharmed after the test."""
    path = await make_path(server={"header_timeout": 0.2, "body_timeout": 0.2, "max_body": 1 << 20})
    busy = Busy(path.gateway, path.provider)
    async with unharmed(busy.url):
        yield busy
    assert busy.gateway.directory.statistics().created == 1 + busy.created


async def exchange(path: GatewayPath, data: bytes) -> bytes:
    """Write bytes on a new connection, and return all that comes back until the gateway ends it."""
    async with await Http.open(path.url) as http, asyncio.timeout(DEADLINE):
        http.send(data)
        return await http.reader.read()


async def refusal(path: GatewayPath, data: bytes) -> Response:
    """Write bytes on a new connection; they must be answered by one error, and the connection be closed."""
    async with await Http.open(path.url) as http:
        http.send(data)
        response = await http.response()
        assert response.headers["connection"] == "close"
        assert await http.is_closed()
    return response


# -- bodies --------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "JSON"),
        (b"{", None, "JSON"),
        (b'{"model": "demo", "messages": [{}]', None, "JSON"),
        (b'{"model": "demo", "messages": [{}]} x', None, "JSON"),
        (b'\xef\xbb\xbf{"model": "demo"}', None, "JSON"),
        (b'{"model": "d\xff", "messages": [{}]}', None, "JSON"),
        (b'{"model": "\\ud800", "messages": [{}]}', None, "JSON"),
        (b'{"model": NaN}', None, "JSON"),
        (b'{"a":' * 100_000, None, "JSON"),
        (b"[" * 100_000 + b"]" * 100_000, None, "JSON"),
        (b"[]", None, "object"),
        (b'"x"', None, "object"),
        (b"null", None, "object"),
        ({"messages": MESSAGES}, "model", "missing"),
        ({"model": "demo"}, "messages", "missing"),
        ({"model": 5, "messages": MESSAGES}, "model", "expected `str`"),
        ({"model": None, "messages": MESSAGES}, "model", "expected `str`"),
        ({"model": "", "messages": MESSAGES}, "model", "name"),
        ({"model": "m" * 10_000, "messages": MESSAGES}, "model", "256"),
        ({"model": "demo", "messages": []}, "messages", "at least length 1"),
        ({"model": "demo", "messages": "hi"}, "messages", "expected `array`"),
        ({"model": "demo", "messages": [5]}, "messages[0]", "expected `object`"),
        ({"model": "demo", "messages": MESSAGES, "stream": "yes"}, "stream", "expected `bool"),
        ({"model": "demo", "messages": MESSAGES, "stream_options": []}, "stream_options", "expected `object"),
    ],
)
async def test_body_that_is_no_chat_request_is_refused(
    busy: Busy, body: bytes | dict[str, Any], param: str | None, says: str
) -> None:
    async with await Http.open(busy.url) as http:
        response = await http.ask("POST", COMPLETIONS, body)
        assert response.status == 400
        assert response.error["type"] == "invalid_request_error"
        assert (response.error["code"], response.error["param"]) == ("invalid_request", param)
        assert says in response.error["message"]
        assert len(response.error["message"]) < 300
        # The connection is still good.
        assert (await http.ask("GET", "/healthz")).json() == {"status": "ok"}


async def test_unknown_model_is_refused_by_a_short_message(busy: Busy) -> None:
    response = await ask(busy.url, "POST", COMPLETIONS, chat(model="m" * 256))
    assert (response.status, response.error["code"], response.error["param"]) == (404, "model_not_found", "model")
    assert len(response.error["message"]) < 300


@pytest.mark.parametrize("stream", [True, False])
async def test_policy_for_disconnects_that_does_not_exist_is_refused(busy: Busy, stream: bool) -> None:
    response = await ask(busy.url, "POST", COMPLETIONS, chat(stream=stream), holdfast_on_disconnect="maybe")
    assert (response.status, response.error["param"]) == (400, "holdfast-on-disconnect")


async def test_20_mb_body_with_a_length_is_refused_readably(path: GatewayPath) -> None:
    """The client sends all of it before it reads, as most do: the answer must not be lost in a reset."""
    async with await Http.open(path.url) as http, asyncio.timeout(DEADLINE):
        http.send(b"POST %b HTTP/1.1\r\n%bcontent-length: 20000000\r\n\r\n" % (COMPLETIONS.encode(), HOST))
        for _ in range(20):
            http.send(b" " * 1_000_000)
            await http.writer.drain()
        await assert_too_large(http, "8388608")
    await eventually(lambda: not path.gateway.peers)


async def test_20_mb_body_in_chunks_is_refused_readably(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http, asyncio.timeout(DEADLINE):
        http.send(b"POST %b HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n" % (COMPLETIONS.encode(), HOST))
        for _ in range(20):
            http.send(b"f4240\r\n" + b" " * 1_000_000 + b"\r\n")
            await http.writer.drain()
        http.send(b"0\r\n\r\n")
        await assert_too_large(http, "8388608")
    await eventually(lambda: not path.gateway.peers)


async def test_too_large_body_does_not_harm_a_running_stream(busy: Busy) -> None:
    async with await Http.open(busy.url) as http:
        http.request("POST", COMPLETIONS, b" " * ((1 << 20) + 1))
        await assert_too_large(http, "1048576")


async def assert_too_large(http: Http, limit: str) -> None:
    response = await http.response()
    assert (response.status, response.error["code"]) == (413, "payload_too_large")
    assert limit in response.error["message"]
    assert response.headers["connection"] == "close"
    assert await http.is_closed()


async def test_body_as_large_as_allowed_is_taken(busy: Busy) -> None:
    busy.created = 1
    body = GOOD[:-1] + b" " * ((1 << 20) - len(GOOD)) + b"}"
    assert len(body) == 1 << 20
    assert (await ask(busy.url, "POST", COMPLETIONS, body)).status == 200


# -- paths and methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/", "/v1", "/v1/nothing", "/v1/streams/", "/v1/streams/a/b", "/v1/%00", "/v1/%ff"]
)
async def test_unknown_path_is_not_found(busy: Busy, target: str) -> None:
    response = await ask(busy.url, "GET", target)
    assert (response.status, response.error["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("GET", COMPLETIONS, "POST"),
        ("PUT", COMPLETIONS, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/streams/st_1", "DELETE, GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/ws/stream", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
async def test_method_that_a_path_does_not_take_is_refused(
    busy: Busy, method: str, target: str, allow: str
) -> None:
    response = await ask(busy.url, method, target, b"")
    assert (response.status, response.error["code"]) == (405, "method_not_allowed")
    # RFC 9110 section 15.5.6: the answer must say what is allowed.
    assert response.headers["allow"] == allow


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/v1/models"])
async def test_head_is_answered_without_a_body(busy: Busy, target: str) -> None:
    async with await Http.open(busy.url) as http:
        http.request("HEAD", target)
        head = await http.response(has_body=False)
        response = await http.ask("GET", target)
    assert (head.status, head.headers) == (200, response.headers)
    assert int(head.headers["content-length"]) == len(response.body)


@pytest.mark.parametrize(
    "upgrade", [b"", b" HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade"]
)
async def test_query_with_hundreds_of_parameters_is_refused(busy: Busy, upgrade: bytes) -> None:
    query = b"&".join(b"p%d=1" % number for number in range(200))
    response = await refusal(
        busy, b"GET /v1/ws/stream?%b%b\r\n\r\n" % (query, upgrade or b" HTTP/1.1\r\n" + HOST[:-2])
    )
    assert (response.status, response.error["code"]) == (400, "invalid_request")
    assert "parameters" in response.error["message"]


@pytest.mark.parametrize("target", [b"http://localhost/healthz", b"HTTPS://LocalHost/healthz?x=1"])
async def test_target_in_absolute_form_is_taken(busy: Busy, target: bytes) -> None:
    data = await exchange(busy, b"GET %b HTTP/1.1\r\n%bconnection: close\r\n\r\n" % (target, HOST))
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert data.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    "target",
    [
        b"http://other.example/healthz",
        b"http://localhost:1/healthz",
        b"http://user:pw@localhost/healthz",
        b"http://localhost@other.example/healthz",
        b"ftp://localhost/healthz",
        b"file://localhost/healthz",
    ],
)
async def test_target_in_absolute_form_that_host_does_not_name_is_refused(busy: Busy, target: bytes) -> None:
    """RFC 9112 section 3.2.2: who judged the one would not have judged the other."""
    response = await refusal(busy, b"GET %b HTTP/1.1\r\n%b\r\n" % (target, HOST))
    assert (response.status, response.error["code"]) == (400, "invalid_request")


# -- heads that are wrong ------------------------------------------------------------------------------


def post(*lines: bytes, body: bytes = GOOD) -> bytes:
    return b"\r\n".join([b"POST %b HTTP/1.1" % COMPLETIONS.encode(), b"host: localhost", *lines, b"", body])


LENGTH = b"content-length: %d" % len(GOOD)
CHUNKED = b"transfer-encoding: chunked"
SMUGGLED = b"0\r\n\r\nPOST %b HTTP/1.1\r\n%b%b\r\n\r\n%b" % (COMPLETIONS.encode(), HOST, LENGTH, GOOD)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # a TLS ClientHello
        b"\x00" * 64,
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/1.2\r\n" + HOST + b"\r\n",
        b"GET healthz HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http:// HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost : localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b" folded: 1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"x: a\r\n b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"x: a\x00b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"x y: z\r\n\r\n",
        b"GET /healthz HTTP/1.1\n" + HOST + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\n\r\n",
        # RFC 9112 section 3.2: exactly one Host.
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET /healthz HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
        post(b"content-length: abc"),
        post(b"content-length: -1"),
        post(b"content-length: +5"),
        post(b"content-length: 0x10"),
        post(b"content-length: 5, 5"),
        post(b"content-length: 5 5"),
        post(b"content-length:"),
        post(b"content-length: 1" + b"0" * 30),
        post(LENGTH, b"content-length: 1"),
        post(LENGTH, LENGTH),
        # RFC 9112 section 6.3: both, or a coding other than chunked at the end, may be smuggling.
        post(LENGTH, CHUNKED, body=SMUGGLED),
        post(CHUNKED, b"content-length: 5", body=SMUGGLED),
        post(CHUNKED, LENGTH, body=SMUGGLED),
        post(b"transfer-encoding: chunked, identity", body=SMUGGLED),
        post(b"transfer-encoding: identity", body=SMUGGLED),
        post(b"transfer-encoding: xchunked", body=SMUGGLED),
        post(b"transfer-encoding: chunked, chunked", body=SMUGGLED),
        post(b"transfer-encoding: gzip, chunked", body=SMUGGLED),
        post(b"transfer-encoding : chunked", body=SMUGGLED),
        post(b"transfer-encoding: \x0bchunked", body=SMUGGLED),
        post(b"transfer-encoding: chunked", b"transfer-encoding: identity", body=SMUGGLED),
        b"POST %b HTTP/1.0\r\n%b%b\r\n\r\n%b" % (COMPLETIONS.encode(), HOST, CHUNKED, SMUGGLED),
        post(CHUNKED, body=b"x\r\n"),
        post(CHUNKED, body=b"-1\r\n"),
        post(CHUNKED, body=b"0x2\r\n{}\r\n0\r\n\r\n"),
        post(CHUNKED, body=b"fffffffffffffffff\r\n"),
        post(CHUNKED, body=b"2\r\n{}x\r\n0\r\n\r\n"),
        post(CHUNKED, body=b"2\n{}\r\n0\r\n\r\n"),
        post(CHUNKED, body=b"2\r\n{}\r\n0\r\nx y: z\r\n\r\n"),
    ],
)
async def test_bytes_that_are_no_valid_request_are_refused(busy: Busy, data: bytes) -> None:
    response = await refusal(busy, data)
    assert (response.status, response.error["code"]) == (400, "invalid_request")
    assert response.error["message"]


@pytest.mark.parametrize("line", [b"GET /healthz", b"GET /healthz HTTP/2.0"])
async def test_other_versions_of_http_are_refused(busy: Busy, line: bytes) -> None:
    response = await refusal(busy, b"%b\r\n%b\r\n" % (line, HOST))
    assert (response.status, response.error["code"]) == (505, "invalid_request")


async def test_methods_that_are_unknown_to_the_parser_are_refused(busy: Busy) -> None:
    response = await refusal(busy, b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert response.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"x-%d: a\r\n" % i for i in range(5_000)) + b"\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz?" + b"a" * 40_000,
        b"a" * 40_000 + b": never ends" * 10_000,
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
async def test_head_that_is_too_large_is_refused(busy: Busy, data: bytes, pieces: int) -> None:
    async with await Http.open(busy.url) as http:
        step = len(data) // pieces + 1
        for start in range(0, len(data), step):
            http.send(data[start : start + step])
            await http.writer.drain()
            await asyncio.sleep(0)
        response = await http.response()
        assert response.status in ((431, 400) if data.startswith(b"a") else (431,))
        assert await http.is_closed()


async def test_head_of_a_great_many_small_fields_is_refused_before_its_end(busy: Busy) -> None:
    """Each field takes thirty times its bytes of memory."""
    async with await Http.open(busy.url) as http:
        http.send(b"GET /healthz HTTP/1.1\r\n" + HOST + b"a:\r\n" * (MAX_FIELDS + 1))
        response = await http.response()
        assert (response.status, response.error["code"]) == (431, "invalid_request")
        assert await http.is_closed()
    data = b"GET /healthz HTTP/1.1\r\n" + HOST + b"a:\r\n" * (MAX_FIELDS - 2) + b"connection: close\r\n\r\n"
    assert (await exchange(busy, data)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_head_just_below_the_bound_is_taken(busy: Busy) -> None:
    data = b"GET /healthz HTTP/1.1\r\n" + HOST + b"connection: close\r\nx: " + b"a" * 32_000 + b"\r\n\r\n"
    assert (await exchange(busy, data)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_trailers_are_no_headers(busy: Busy) -> None:
    """RFC 9110 section 6.5.1: trailer fields must not be merged, or they slip past whoever checks headers."""
    busy.created = 1
    body = b"%x\r\n%b\r\n0\r\nholdfast-on-disconnect: nonsense\r\n\r\n" % (len(GOOD), GOOD)
    async with await Http.open(busy.url) as http:
        http.send(post(CHUNKED, body=body))
        assert (await http.response()).status == 200


async def test_trailers_without_end_are_refused(busy: Busy) -> None:
    async with await Http.open(busy.url) as http:
        http.send(post(CHUNKED, body=b"%x\r\n%b\r\n0\r\n" % (len(GOOD), GOOD)))
        try:
            for number in range(2_000):
                http.send(b"x-%d: %b\r\n" % (number, b"a" * 100))
                await http.writer.drain()
        except ConnectionError:
            pass
        response = await http.response()
        assert (response.status, response.error["code"]) == (431, "invalid_request")


async def test_trailer_that_is_one_long_field_is_refused_however_large_the_body_is(make_path: MakePath) -> None:
    """The parser keeps it until it is whole, and copies it at each step."""
    path = await make_path(server={"max_body": 1 << 20})
    body = b"%x\r\n%b\r\n0\r\nx: " % (1 << 19, b" " * (1 << 19))
    async with await Http.open(path.url) as http:
        http.send(post(CHUNKED, body=body + b"a" * (MAX_OVERHEAD + 8192)))
        response = await http.response()
        assert (response.status, response.error["code"]) == (400, "invalid_request")
        assert "chunks" in response.error["message"]


async def test_chunk_extensions_without_end_are_refused(busy: Busy) -> None:
    async with await Http.open(busy.url) as http:
        http.send(post(CHUNKED, body=b"1;" + b"x" * (2 * MAX_OVERHEAD)))
        response = await http.response()
        assert (response.status, response.error["code"]) == (400, "invalid_request")
        assert "chunks" in response.error["message"]


async def test_small_chunks_with_extensions_are_refused_once_they_outweigh_the_body(busy: Busy) -> None:
    async with await Http.open(busy.url) as http:
        http.send(post(CHUNKED, body=b"1;x=yyyyyyyyyyyyyy\r\n \r\n" * (MAX_OVERHEAD // 10)))
        assert (await http.response()).status == 400


async def test_body_in_chunks_of_a_few_bytes_is_taken(busy: Busy) -> None:
    busy.created = 1
    pieces = [GOOD[at : at + 4] for at in range(0, len(GOOD), 4)]
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    async with await Http.open(busy.url) as http:
        http.send(post(CHUNKED, body=chunks + b"0\r\n\r\n"))
        assert (await http.response()).status == 200


# -- slow and silent clients ---------------------------------------------------------------------------


async def test_client_that_sends_nothing_is_disconnected(busy: Busy) -> None:
    assert await exchange(busy, b"") == b""
    await eventually(lambda: len(busy.gateway.peers) == 1)


@pytest.mark.parametrize("sent", [b"G", b"GET /healthz HTTP/1.1\r\n" + HOST, b"GET /healthz HTTP/1.1\r\nx: a"])
async def test_head_that_does_not_end_times_out(busy: Busy, sent: bytes) -> None:
    response = await refusal(busy, sent)
    assert (response.status, response.error["code"]) == (408, "invalid_request")
    assert "head" in response.error["message"]


async def test_head_that_drips_times_out(busy: Busy) -> None:
    """Slow loris: each byte is progress, and yet the whole takes too long."""
    async with await Http.open(busy.url) as http:

        async def drip() -> None:
            for byte in b"GET /healthz HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 100_000:
                http.send(bytes((byte,)))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        try:
            assert (await http.response()).status == 408
            assert await http.is_closed()
        finally:
            dripping.cancel()


@pytest.mark.parametrize("line", [LENGTH, CHUNKED])
async def test_body_that_does_not_come_times_out(busy: Busy, line: bytes) -> None:
    response = await refusal(busy, post(line, body=b"2\r\n{" if line == CHUNKED else b"{"))
    assert (response.status, response.error["code"]) == (408, "invalid_request")
    assert "body" in response.error["message"]


async def test_idle_connection_is_closed_without_a_word(make_path: MakePath) -> None:
    path = await make_path(server={"keep_alive_timeout": 0.1})
    async with await Http.open(path.url) as http:
        assert (await http.ask("GET", "/healthz")).status == 200
        assert await http.is_closed()


async def test_client_that_hangs_up_in_the_middle_of_its_request_leaves_nothing(busy: Busy) -> None:
    for data in (b"", b"GE", post(LENGTH, body=b"{"), post(CHUNKED, body=b"5\r\n{")):
        async with await Http.open(busy.url) as http:
            http.send(data)
            await http.writer.drain()
    await eventually(lambda: len(busy.gateway.peers) == 1)


async def test_connections_beyond_the_limit_are_refused(make_path: MakePath) -> None:
    path = await make_path(server={"max_connections": 2})
    async with await Session.open(path.url), await Session.open(path.url):
        async with await Http.open(path.url) as third:
            response = await third.ask("GET", "/v1/models")
            assert (response.status, response.error["code"]) == (503, "overloaded")
            assert await third.is_closed()
        await eventually(lambda: len(path.gateway.peers) == 2)


# -- the odd, but legal --------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(busy: Busy) -> None:
    busy.created = 1
    targets = [b"/healthz", b"/nothing", b"/v1/models", b"/readyz"]
    heads = b"".join(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, HOST) for target in targets)
    async with await Http.open(busy.url) as http:
        http.send(heads + post(LENGTH) + heads)
        statuses = [(await http.response()).status for _ in range(9)]
    assert statuses == [200, 404, 200, 200, 200, 200, 404, 200, 200]


async def test_request_behind_a_stream_waits_for_its_end(busy: Busy) -> None:
    busy.created = 1
    async with await Http.open(busy.url) as http:
        http.request("POST", COMPLETIONS, chat({"tokens": 5, "interval_ms": 10}))
        http.request("GET", "/healthz")
        stream = await http.response()
        assert stream.body.endswith(b"data: [DONE]\n\n")
        assert (await http.response()).json() == {"status": "ok"}


async def test_pipeline_of_any_length_is_answered_in_order(busy: Busy) -> None:
    busy.created = 1
    async with await Http.open(busy.url) as http:
        http.request("POST", COMPLETIONS, chat({"tokens": 50, "interval_ms": 2}))
        await http.head()
        http.send(b"GET /healthz HTTP/1.1\r\n%b\r\n" % HOST * 100)
        assert b"".join([chunk async for chunk in http.chunks()]).endswith(b"data: [DONE]\n\n")
        for _ in range(100):
            assert (await http.response()).status == 200


async def test_rubbish_behind_a_request_is_refused_behind_its_answer(busy: Busy) -> None:
    async with await Http.open(busy.url) as http:
        http.send(b"GET /healthz HTTP/1.1\r\n%b\r\nrubbish\r\n\r\n" % HOST)
        assert (await http.response()).status == 200
        assert (await http.response()).status == 400
        assert await http.is_closed()


async def test_large_bodies_do_not_pile_up_behind_an_answer(busy: Busy) -> None:
    busy.created = 1
    budget = busy.gateway.process.budget
    async with await Http.open(busy.url) as http:
        http.request("POST", COMPLETIONS, chat({"tokens": 5, "fault": {"kind": "stall", "after_tokens": 2}}))
        stream = (await http.head()).headers["holdfast-stream-id"]

        async def send() -> None:
            for _ in range(40):  # more than the sockets' buffers hold
                http.request("POST", COMPLETIONS, b" " * (1 << 19))
                await http.writer.drain()

        sending = asyncio.create_task(send())
        await eventually(lambda: budget.by_kind[Kind.BODIES] > MAX_BACKLOG)
        for _ in range(100):
            await asyncio.sleep(0.001)
            assert budget.by_kind[Kind.BODIES] < 2 * READ  # the rest stays in the sockets
        assert not sending.done()
        await ask(busy.url, "DELETE", f"/v1/streams/{stream}")
        assert b'"cancelled"' in b"".join([chunk async for chunk in http.chunks()])
        assert [(await http.response()).status for _ in range(40)] == [400] * 40
        await sending
    await eventually(lambda: budget.by_kind[Kind.BODIES] == 0)


async def test_http_1_0_gets_whole_answers_and_a_closed_connection(busy: Busy) -> None:
    data = await exchange(busy, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in data
    assert data.endswith(b'{"status":"ok"}')


async def test_http_1_0_stream_ends_with_the_connection(busy: Busy) -> None:
    busy.created = 1
    body = json.dumps(chat({"tokens": 3})).encode()
    request = b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % (COMPLETIONS.encode(), len(body))
    head, _, answered = (await exchange(busy, request + body)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    *events, done, rest = answered.decode().split("\n\n")
    assert content([event.split("\ndata: ")[1] for event in events]) == answer(3)
    assert done.endswith("data: [DONE]")
    assert rest == ""


@pytest.mark.parametrize("path_", [b"/healthz", b"/v1/models"])
async def test_upgrade_to_h2c_is_not_taken_up(busy: Busy, path_: bytes) -> None:
    lines = b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    async with await Http.open(busy.url) as http:
        for _ in range(2):
            http.send(b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path_, HOST, lines) * 2)
        assert [(await http.response()).status for _ in range(4)] == [200] * 4


async def test_post_that_offers_h2c_is_answered(busy: Busy) -> None:
    busy.created = 1
    lines = (LENGTH, b"upgrade: h2c", b"connection: upgrade, http2-settings", b"http2-settings: AAMAAABkAAQAAP__")
    async with await Http.open(busy.url) as http:
        http.send(post(*lines) + b"GET /healthz HTTP/1.1\r\n%b\r\n" % HOST)
        assert (await http.response()).json()["choices"][0]["message"]["content"] == answer(2)
        assert (await http.response()).json() == {"status": "ok"}


async def test_upgrade_that_names_websocket_among_others_is_taken(busy: Busy) -> None:
    lines = b"upgrade: h2c, websocket\r\nconnection: keep-alive, upgrade\r\nsec-websocket-version: 13\r\n"
    key = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    async with await Http.open(busy.url) as http:
        http.send(b"GET /v1/ws/stream HTTP/1.1\r\n%b%b%b\r\n" % (HOST, lines, key))
        assert (await http.head()).status == 101


async def test_expectation_is_met_before_the_body_comes(busy: Busy) -> None:
    busy.created = 1
    async with await Http.open(busy.url) as http:
        http.send(post(LENGTH, b"expect: 100-continue", body=b""))
        assert (await http.head()).status == 100
        http.send(GOOD)
        assert (await http.response()).status == 200


async def test_expectation_of_an_http_1_0_client_is_ignored(busy: Busy) -> None:
    """RFC 9110 section 10.1.1: it would take the 100 for the answer."""
    busy.created = 1
    async with await Http.open(busy.url) as http:
        http.send(post(LENGTH, b"expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await http.head()).status == 200


async def test_expectation_of_a_too_large_body_is_refused(busy: Busy) -> None:
    response = await refusal(busy, post(b"content-length: 20000000", b"expect: 100-continue", body=b""))
    assert (response.status, response.error["code"]) == (413, "payload_too_large")


# -- handshakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "lines", "status"),
    [
        (b"/v1/ws/stream", b"", 426),
        (b"/v1/ws/stream", b"upgrade: websocket\r\n", 426),
        (b"/v1/ws/stream", b"connection: upgrade\r\n", 426),
        (b"/v1/ws/stream", b"upgrade: websocket\r\nconnection: upgrade\r\n", 426),  # no version
        (b"/v1/ws/stream", b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 8\r\n", 426),
        (b"/v1/ws/stream", b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n", 400),
        (b"/v1/nothing", b"upgrade: websocket\r\nconnection: upgrade\r\n", 404),
    ],
)
async def test_handshake_that_is_incomplete_is_refused(
    busy: Busy, target: bytes, lines: bytes, status: int
) -> None:
    async with await Http.open(busy.url) as http:
        http.send(b"GET %b HTTP/1.1\r\n%b%b\r\n" % (target, HOST, lines))
        response = await http.response()
    assert response.status == status
    assert response.error["message"]
    if status == 426:
        assert (response.headers["upgrade"], response.headers["sec-websocket-version"]) == ("websocket", "13")


async def test_handshake_over_http_1_0_or_by_post_is_refused(busy: Busy) -> None:
    upgrade = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    key = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    for line, status in ((b"GET /v1/ws/stream HTTP/1.0", b"400"), (b"POST /v1/ws/stream HTTP/1.1", b"405")):
        data = await exchange(busy, b"%b\r\n%b%b%b\r\n" % (line, HOST, upgrade, key))
        assert data.startswith(b"HTTP/1.1 " + status)


async def test_handshake_behind_another_request_is_judged_behind_its_answer(busy: Busy) -> None:
    upgrade = b"upgrade: websocket\r\nconnection: upgrade\r\n"
    async with await Http.open(busy.url) as http:
        http.send(b"GET /healthz HTTP/1.1\r\n%b\r\nGET /v1/ws/stream HTTP/1.1\r\n%b%b\r\n" % (HOST, HOST, upgrade))
        assert (await http.response()).status == 200
        assert (await http.response()).status == 426  # it has no version


async def test_websocket_to_a_path_without_one_is_refused(busy: Busy) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await dial(busy.url + "/v1/nothing", additional_headers={})
    assert caught.value.response.status_code == 404
