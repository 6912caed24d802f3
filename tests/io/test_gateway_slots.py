"""Slots of connections: who gets in while all are taken, what counts as one, and from when on."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from holdfast.config import LimitsConfig
from holdfast_tools.simulate.certificate import self_signed
from tests.support.gateway_client import DEADLINE, Http, Session, ask, chat, stream_of
from tests.support.gateway_path import MakePath
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

COMPLETIONS = "/v1/chat/completions"
ENDLESS = {"tokens": 5, "fault": {"kind": "stall", "after_tokens": 1}}


def limits(**settings: Any) -> LimitsConfig:
    return msgspec.convert(settings, LimitsConfig)


# -- who gets in ---------------------------------------------------------------------------------------


async def test_idle_strangers_keep_nobody_out(make_path: MakePath) -> None:
    path = await make_path(server={"max_connections": 10})
    async with AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(await Http.open(path.url)) for _ in range(50)]
        assert (await ask(path.url, "GET", "/healthz")).status == 200
        assert (await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}))).status == 200
        async with await Session.open(path.url) as session:
            await session.create("r-1", chat({"tokens": 1}))
            await session.read()
        assert len(path.gateway.peers) <= 10
        assert await idle[0].is_closed()  # the oldest have gone


async def test_probes_get_in_while_callers_hold_all_slots(make_path: MakePath) -> None:
    path = await make_path(server={"max_connections": 3})
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(await Session.open(path.url)) for _ in range(3)]
        for _ in range(40):  # more than there are slots for probes
            await stack.enter_async_context(await Http.open(path.url))
        for target in ("/healthz", "/readyz"):
            async with await Http.open(path.url) as probe:
                response = await probe.ask("GET", target)
                assert (response.status, response.headers["connection"]) == (200, "close")
                assert await probe.is_closed()
        refused = await ask(path.url, "GET", "/v1/models")
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(InvalidStatus) as caught:
            await Session.open(path.url)
        assert caught.value.response.status_code == 503
        await sessions[0].create("r-1", chat({"tokens": 1}))
        await sessions[0].read()


async def test_idle_connections_of_callers_keep_nobody_out(make_path: MakePath) -> None:
    path = await make_path(server={"max_connections": 3})
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(await Http.open(path.url)) for _ in range(3)]
        for caller in callers:
            assert (await caller.ask("GET", "/v1/models")).status == 200
        callers[0].request("POST", COMPLETIONS, chat(ENDLESS))
        await callers[0].head()
        assert (await ask(path.url, "GET", "/v1/models")).status == 200
        assert await callers[1].is_closed()
        assert (await callers[2].ask("GET", "/v1/models")).status == 200


async def test_slot_of_a_probe_is_not_held_for_long(make_path: MakePath) -> None:
    path = await make_path(server={"max_connections": 1, "header_timeout": 0.1})
    async with await Session.open(path.url), await Http.open(path.url) as idle:
        assert await idle.is_closed()
        await eventually(lambda: len(path.gateway.peers) == 1)


async def test_connections_of_one_address_have_a_bound(make_path: MakePath) -> None:
    path = await make_path(server={"max_connections_per_address": 2})
    async with await Session.open(path.url), await Http.open(path.url), await Http.open(path.url) as third:
        response = await third.response()
        assert (response.status, response.error["code"]) == (429, "rate_limited")
    await eventually(lambda: len(path.gateway.peers) == 0)
    assert (await ask(path.url, "GET", "/healthz")).status == 200


# -- readers over HTTP ---------------------------------------------------------------------------------


async def test_readers_over_http_count_as_connections_of_their_key(make_path: MakePath) -> None:
    path = await make_path(limits=limits(connections=2, tenant={"connections": 3}))
    account = path.gateway.admission.limiter.keys
    async with await Http.open(path.url) as sse, await Http.open(path.url) as poll:
        sse.request("POST", COMPLETIONS, chat(ENDLESS))
        stream = (await sse.head()).headers["holdfast-stream-id"]
        log = stream_of(path.gateway, stream).log
        await eventually(lambda: log.next == 2, "the token before the stall")
        poll.request("GET", f"/v1/streams/{stream}?live=long-poll&after=1&timeout=60")
        await eventually(lambda: sum(key.connections.used for key in account) == 2, "both readers count")
        for method, target, body in (
            ("GET", f"/v1/streams/{stream}?live=long-poll&after=1", None),
            ("GET", f"/v1/streams/{stream}", None),
            ("POST", COMPLETIONS, chat({"tokens": 1})),
            ("POST", COMPLETIONS, chat({"tokens": 1}, stream=False)),
        ):
            refused = await ask(path.url, method, target, body)
            assert (refused.status, refused.error["code"]) == (429, "rate_limited"), target
        with pytest.raises(InvalidStatus):
            await Session.open(path.url)
        # What does not last is served.
        assert (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none")).status == 200
        assert (await ask(path.url, "DELETE", f"/v1/streams/{stream}")).status == 200
    await eventually(lambda: not any(key.connections.used for key in account), "the leases are given back")


async def test_every_way_of_an_answer_gives_its_connection_back(make_path: MakePath) -> None:
    path = await make_path(limits=limits(connections=1))
    account = path.gateway.admission.limiter.keys

    def is_free() -> bool:
        return not any(key.connections.used for key in account)

    for body in (
        chat({"tokens": 2}),
        chat({"tokens": 2}, stream=False),
        {"model": "none", "messages": []},
        chat({"tokens": 2, "fault": {"kind": "status", "status": 400}}),
    ):
        await ask(path.url, "POST", COMPLETIONS, body)
        await eventually(is_free)
    async with await Http.open(path.url) as leaving:
        leaving.request("POST", COMPLETIONS, chat(ENDLESS))
        await leaving.head()
        assert not is_free()
    await eventually(is_free)


# -- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem, key = self_signed()
    path.write_bytes(pem + key)
    return path, ssl.create_default_context(cafile=path)


async def test_handshakes_count_as_connections_from_their_acceptance_on(
    make_path: MakePath, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    file, trust = certificate
    path = await make_path(server={"tls_cert": str(file), "tls_key": str(file), "max_connections": 3})
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(await Http.open(path.url)) for _ in range(3)]
        await eventually(lambda: len(path.gateway.peers) == 3, "handshakes under way count")
        async with await Http.open(path.url, ssl=trust) as http:
            assert (await http.ask("GET", "/v1/models")).status == 200
            assert await silent[0].is_closed()
            assert len(path.gateway.peers) == 3
    await eventually(lambda: len(path.gateway.peers) == 0)


async def test_handshakes_count_against_the_rate_and_have_the_time_of_a_head(
    make_path: MakePath, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    file, trust = certificate
    path = await make_path(
        server={
            "tls_cert": str(file),
            "tls_key": str(file),
            "max_connections_per_second_per_address": 3,
            "header_timeout": 0.5,
        }
    )
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(await Http.open(path.url)) for _ in range(3)]
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                await Http.open(path.url, ssl=trust)
        for http in silent:
            assert await http.is_closed()
    await eventually(lambda: len(path.gateway.peers) == 0)


async def test_client_that_is_gone_as_its_handshake_ends_gives_its_slot_back(
    make_path: MakePath, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    file, trust = certificate
    path = await make_path(server={"tls_cert": str(file), "tls_key": str(file)})
    loop = asyncio.get_running_loop()

    async def shake_hands_and_reset() -> None:
        with socket.socket() as own:
            own.setblocking(False)
            # Closing resets the connection: what was sent last and the reset are there at once.
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(own, ("127.0.0.1", path.gateway.port))
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            await loop.sock_sendall(own, outgoing.read())
            incoming.write(await loop.sock_recv(own, 65536))
            tls.do_handshake()
            await loop.sock_sendall(own, outgoing.read())

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*[shake_hands_and_reset() for _ in range(60)])
    await eventually(lambda: len(path.gateway.peers) == 0, "all slots are free")


async def test_drain_ends_handshakes(make_path: MakePath, certificate: tuple[Path, ssl.SSLContext]) -> None:
    file, _ = certificate
    path = await make_path(server={"tls_cert": str(file), "tls_key": str(file)})
    async with await Http.open(path.url) as silent:
        await eventually(lambda: len(path.gateway.peers) == 1)
        async with asyncio.timeout(DEADLINE):
            await path.gateway.aclose()
        assert await silent.is_closed()
