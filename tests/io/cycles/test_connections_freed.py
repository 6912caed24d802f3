"""What is left of a connection is freed at once: in cycles, thousands would wait for a collection."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from ssl import SSLContext

import pytest

from holdfast_tools.simulate.certificate import self_signed
from tests.support.gateway_client import DEADLINE, Http, Session, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

#: The beginning of a ClientHello, whose record says that 512 bytes come (RFC 8446 section 5.1).
_HALF = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(29)
_TIMES = 3


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SSLContext]:
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem, key = self_signed()
    path.write_bytes(pem + key)
    return path, ssl.create_default_context(cafile=path)


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _living() -> Counter[str]:
    """Count the gateway's own objects, and those of TLS, by their types."""
    found = (type(each) for each in gc.get_objects())
    return Counter(
        each.__name__
        for each in found
        if str(each.__module__).startswith("holdfast.") or each.__name__ in ("SSLProtocol", "SSLObject")
    )


Visit = Callable[[GatewayPath, SSLContext], Awaitable[None]]


async def _ask(path: GatewayPath, trust: SSLContext) -> None:
    async with await Http.open(path.url, ssl=trust) as http:
        assert (await http.ask("GET", "/healthz")).status == 200


async def _read_stream(path: GatewayPath, trust: SSLContext) -> None:
    async with await Http.open(path.url, ssl=trust) as http:
        http.request("POST", "/v1/chat/completions", chat({"tokens": 1_000_000, "interval_ms": 2}))
        await http.head()
    await path.provider.until(lambda s: s.streaming == 0)
    await eventually(lambda: not path.gateway.directory.statistics().streams)


async def _converse(path: GatewayPath, trust: SSLContext) -> None:
    async with await Session.open(path.url, ssl=trust, hello={"streams": [{"stream": "st_a", "after": 1}]}) as one:
        assert one.welcome["streams"][0]["status"] == "refused"
        await one.send(type="attach", stream="st_a")
        await one.expect("error")


async def _cut_a_session(path: GatewayPath, trust: SSLContext) -> None:
    session = await Session.open(path.url, ssl=trust)
    await session.drop()


async def _speak_no_tls(path: GatewayPath, trust: SSLContext) -> None:
    async with await Http.open(path.url) as http, asyncio.timeout(DEADLINE):
        http.request("GET", "/healthz")
        await http.reader.read()


async def _leave_at_once(path: GatewayPath, trust: SSLContext) -> None:
    async with await Http.open(path.url):
        pass


async def _leave_in_the_handshake(path: GatewayPath, trust: SSLContext) -> None:
    async with await Http.open(path.url) as http:
        http.send(_HALF)
        await eventually(lambda: len(path.gateway.peers) > 0)


async def _stay_in_the_handshake(path: GatewayPath, trust: SSLContext) -> None:
    async with await Http.open(path.url) as http, asyncio.timeout(DEADLINE):
        http.send(_HALF)
        await http.reader.read()


@pytest.mark.parametrize(
    "visit",
    [
        _ask,
        _read_stream,
        _converse,
        _cut_a_session,
        _speak_no_tls,
        _leave_at_once,
        _leave_in_the_handshake,
        _stay_in_the_handshake,
    ],
)
async def test_connection_that_is_gone_needs_no_collection(
    make_path: MakePath, certificate: tuple[Path, SSLContext], no_collection: None, visit: Visit
) -> None:
    file, trust = certificate
    path = await make_path(
        server={"tls_cert": str(file), "tls_key": str(file), "header_timeout": 0.3},
        streams={"retention": 0.1, "retention_acknowledged": 0.1},
    )
    await visit(path, trust)  # what a process makes once
    await eventually(lambda: not path.gateway.peers)
    gc.collect()
    before = _living()
    for _ in range(_TIMES):
        await visit(path, trust)
    await eventually(lambda: not path.gateway.peers)

    await eventually(
        lambda: all(count < _TIMES for count in (_living() - before).values()), "the end of what connections had"
    )
