"""The gateway over TLS: the same answers, and refusals that can be read though TLS knows no half-closed socket."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from ssl import SSLContext

import openai
import pytest
from websockets.exceptions import ConnectionClosed

from holdfast.core.limits.budget import Kind
from holdfast.server.listener.http import HttpConnection
from holdfast_tools.simulate.certificate import self_signed
from tests.support.gateway_client import DEADLINE, Http, Session, answer, chat, content
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

COMPLETIONS = "/v1/chat/completions"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SSLContext]:
    """The path of a certificate with its key, and a context that trusts it."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem, key = self_signed()
    path.write_bytes(pem + key)
    return path, ssl.create_default_context(cafile=path)


@pytest.fixture
async def path(make_path: MakePath, certificate: tuple[Path, SSLContext]) -> GatewayPath:
    file, _ = certificate
    return await make_path(server={"tls_cert": str(file), "tls_key": str(file), "header_timeout": 0.3})


@pytest.fixture
def trust(certificate: tuple[Path, SSLContext]) -> SSLContext:
    return certificate[1]


async def test_session_and_sse_stream_over_tls(path: GatewayPath, trust: SSLContext) -> None:
    async with await Session.open(path.url, ssl=trust) as session:
        stream = (await session.create("r-1", chat({"tokens": 20})))["stream"]
        entries, _ = await session.read()
        assert content(entries) == answer(20)
    async with await Http.open(path.url, ssl=trust) as http:
        http.request("GET", f"/v1/streams/{stream}")
        await http.head()
        events = [event async for event in http.events()]
        assert content([event.data for event in events[:-1]]) == answer(20)
        assert (await http.ask("GET", "/healthz")).status == 200


async def test_openai_sdk_over_tls(path: GatewayPath, trust: SSLContext) -> None:
    http_client = openai.DefaultAsyncHttpxClient(verify=trust)
    async with openai.AsyncOpenAI(base_url=f"{path.url}/v1", api_key="none", http_client=http_client) as client:
        stream = await client.chat.completions.create(**chat(), extra_body={"sim": chat({"tokens": 5})["sim"]})
        chunks = [chunk.model_dump() async for chunk in stream]
    assert content(chunks) == answer(5)


@pytest.mark.parametrize("chunked", [True, False])
async def test_20_mb_body_over_tls_is_refused_readably(
    path: GatewayPath, trust: SSLContext, chunked: bool
) -> None:
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: 20000000"
    async with await Http.open(path.url, ssl=trust) as http, asyncio.timeout(DEADLINE):
        http.send(b"POST %b HTTP/1.1\r\nhost: localhost\r\n%b\r\n\r\n" % (COMPLETIONS.encode(), framing))
        for _ in range(20):
            data = b" " * 1_000_000
            http.send(b"f4240\r\n%b\r\n" % data if chunked else data)
            await http.writer.drain()
        response = await http.response()
        assert (response.status, response.error["code"]) == (413, "payload_too_large")
    await eventually(lambda: not path.gateway.peers)


async def test_message_beyond_the_bound_over_tls_is_refused_readably(path: GatewayPath, trust: SSLContext) -> None:
    async with await Session.open(path.url, ssl=trust) as session:
        try:
            await session.socket.send(" " * 20_000_000)
        except ConnectionClosed:
            pass  # it was told while it still sent
        assert (await session.closed())[0] == 1009
    await eventually(lambda: not path.gateway.peers)


async def test_client_that_leaves_over_tls_cancels_at_once(path: GatewayPath, trust: SSLContext) -> None:
    async with await Http.open(path.url, ssl=trust) as http:
        http.request("POST", COMPLETIONS, chat({"tokens": 1_000_000, "interval_ms": 2}))
        await http.head()
    assert (await path.provider.until(lambda s: s.streaming == 0)).cancelled == 1


async def test_plain_http_at_a_tls_port_gets_no_answer_and_harms_nobody(
    path: GatewayPath, trust: SSLContext
) -> None:
    async with await Http.open("http" + path.url[5:]) as http, asyncio.timeout(DEADLINE):
        http.request("GET", "/healthz")
        data = await http.reader.read()
        assert b"HTTP" not in data
    async with await Http.open(path.url, ssl=trust) as http:
        assert (await http.ask("GET", "/healthz")).status == 200


async def test_session_reads_its_streams_to_their_end_while_the_process_goes(
    path: GatewayPath, trust: SSLContext
) -> None:
    async with await Session.open(path.url, ssl=trust) as session:
        await session.create("r-1", chat({"tokens": 20, "interval_ms": 10}))
        await session.entries(2)
        path.gateway.peers.close_when_idle()
        entries, _ = await session.read(start=2)
        assert content(entries).endswith(answer(20)[-20:])
        assert await session.closed() == (1012, "draining")


async def test_client_that_does_not_read_has_no_more_waiting_over_tls_than_without(
    path: GatewayPath, trust: SSLContext
) -> None:
    """As little is read of it, and all that waits is charged."""
    budget = path.gateway.process.budget
    async with await Http.open(path.url, ssl=trust) as http:
        http.request("POST", COMPLETIONS, chat({"tokens": 60_000}))
        await http.head()
        http.transport.pause_reading()
        (peer,) = path.gateway.peers
        assert isinstance(peer, HttpConnection)
        await eventually(lambda: not peer.is_writable)
        assert peer.transport is not None
        assert 0 < peer.transport.get_write_buffer_size() <= 128 * 1024
        assert budget.by_kind[Kind.OUTPUT] == peer.transport.get_write_buffer_size()
        http.transport.resume_reading()
        events = [event async for event in http.events()]
        assert events[-1].data == "[DONE]"
        assert budget.by_kind[Kind.OUTPUT] == 0
