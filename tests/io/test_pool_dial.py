"""Making connections: addresses, TLS, client certificates, proxies."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast.config import ProviderConfig
from holdfast.errors import ConfigError
from holdfast.upstream import dial as dialling
from holdfast.upstream import pool
from holdfast.upstream.dial import Origin
from holdfast_tools.simulate.certificate import context_of
from tests.support.pool_world import ONCE, World, ca_file, certificate
from tests.support.waiting import eventually

COMPLETED = ("completed", None)
REFUSED = ("failed", "upstream_connect_error")


async def message(world: World) -> str:
    stream = world.stream()
    assert await stream.outcome() == REFUSED
    error = (await stream.end()).error
    assert error is not None
    return error.message


async def test_fault_of_ours_in_connecting_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(origin: object, make: object, timeout: float) -> None:
        raise RuntimeError("a fault of ours")

    async with await World.start("http1", settings=ONCE) as world:
        monkeypatch.setattr(pool, "dial", broken)
        assert "cannot connect" in await message(world)
        await world.is_like_new()


# -- TLS -----------------------------------------------------------------------------------------------


async def test_certificate_that_is_not_trusted_is_refused() -> None:
    async with await World.start("h2tls", settings={**ONCE, "ca_file": None}) as world:
        assert "is not trusted" in await message(world)
        await world.is_like_new()


async def test_http2_that_must_be_is_refused_where_tls_does_not_offer_it() -> None:
    settings = {**ONCE, "http2": "prior-knowledge"}
    async with await World.start("h2tls", settings=settings, alpn=("http/1.1",)) as world:
        assert "HTTP/2" in await message(world) or "ALPN" in await message(world)
        await world.is_like_new()


async def test_http2_that_is_off_is_not_offered() -> None:
    async with await World.start("h2tls", settings={"http2": "off"}) as world:
        assert await world.stream().outcome() == COMPLETED
        assert world.pool.connections[0].protocol == "http/1.1"


async def test_http1_server_where_http2_is_presumed_is_an_error_that_says_so() -> None:
    async with await World.start("h2c", settings=ONCE, alpn=("http/1.1",)) as world:
        assert await world.stream().outcome() == REFUSED
        await world.is_like_new()


@pytest.mark.parametrize("has_certificate", [True, False])
async def test_client_certificate_is_shown_where_one_is_configured(
    has_certificate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate()
    with tempfile.TemporaryDirectory() as directory:
        both = Path(directory) / "both.pem"
        both.write_bytes(cert + key)

        def demanding(cert_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
            context = context_of(cert_pem, key_pem)
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(ca_file())
            return context

        monkeypatch.setattr("tests.support.pool_world.context_of", demanding)
        settings = {**ONCE, **({"client_cert": str(both)} if has_certificate else {})}
        async with await World.start("h2tls", settings=settings) as world:
            status, _ = await world.stream().outcome()
            assert status == ("completed" if has_certificate else "failed")


@pytest.mark.parametrize("field", ["ca_file", "client_cert"])
def test_tls_file_that_is_missing_is_a_configuration_error(field: str) -> None:
    files: dict[str, Any] = {field: "/nowhere.pem"}
    with pytest.raises(ConfigError, match=f"{field}.*cannot be used"):
        Origin.of(ProviderConfig(base_url="https://api.example/v1", **files), {})


# -- addresses -----------------------------------------------------------------------------------------


async def test_name_with_several_addresses_is_reached_at_the_one_that_answers() -> None:
    async with await World.start("h2c") as world:
        world.gateway.process.routes._serving.providers["sim0"].pool._origin = Origin.of(
            ProviderConfig(base_url=f"http://localhost:{world.provider.port}/v1", http2="prior-knowledge"), {}
        )
        assert await world.stream().outcome() == COMPLETED


Connect = Callable[[Any], Any]


async def race(monkeypatch: pytest.MonkeyPatch, results: list[Any]) -> tuple[Any, list[int]]:
    """Connect to addresses of which each waits, fails or is reached; return what won, and what was tried."""
    tried: list[int] = []
    closed: list[int] = []

    class Socket:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)

    async def resolve(host: str, port: int) -> list[Any]:
        return list(range(len(results)))

    async def connect_to(number: int) -> Socket:
        tried.append(number)
        if results[number] == "hang":
            await asyncio.Event().wait()
        if isinstance(results[number], OSError):
            raise results[number]
        return Socket(number)

    monkeypatch.setattr(dialling, "_resolve", resolve)
    monkeypatch.setattr(dialling, "_connect_to", connect_to)
    monkeypatch.setattr(dialling, "_ATTEMPT_DELAY", 0.02)
    winner: Any = await dialling._connect("name", 1)
    await eventually(lambda: len(asyncio.all_tasks()) == 1, "the end of the others")
    return winner.number, tried


async def test_silent_address_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await race(monkeypatch, ["hang", "hang", "ok", "ok"]) == (2, [0, 1, 2])


async def test_address_that_refuses_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await race(monkeypatch, [OSError("no"), "ok"]) == (1, [0, 1])


async def test_first_error_is_reported_where_no_address_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="first"):
        await race(monkeypatch, [OSError("first"), OSError("second")])


async def test_addresses_of_both_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    found: list[Any] = [
        (socket.AF_INET6, 1, 6, "", ("::1", 1, 0, 0)),
        (socket.AF_INET6, 1, 6, "", ("::2", 1, 0, 0)),
    ]
    found += [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 1))]

    async def getaddrinfo(*args: Any, **options: Any) -> Any:
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    addresses = await dialling._resolve("name", 1)
    assert [place[0] for _, place in addresses] == ["::1", "127.0.0.1", "::2"]


# -- proxies -------------------------------------------------------------------------------------------


@asynccontextmanager
async def proxy(
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A CONNECT proxy that shows what it was asked."""
    heads: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while part := await reader.read(65_536):
                writer.write(part)
        except OSError:
            pass
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if b" 200 " not in answer:
            writer.close()
            return
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        there, back = await asyncio.open_connection(host.strip("[]"), int(port))
        tasks.update((asyncio.ensure_future(pipe(reader, back)), asyncio.ensure_future(pipe(there, writer))))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()
        await asyncio.gather(*tasks)


async def test_tls_goes_through_the_proxy_by_connect() -> None:
    async with proxy() as (port, heads):
        settings = {"proxy": f"http://user:p%40ss@127.0.0.1:{port}"}
        async with await World.start("h2tls", settings=settings) as world:
            assert await world.stream().outcome() == COMPLETED
            assert world.pool.connections[0].protocol == "h2"
            target = b"127.0.0.1:%d" % world.provider.port
        assert heads == [
            b"CONNECT %b HTTP/1.1\r\nhost: %b\r\nproxy-authorization: Basic dXNlcjpwQHNz\r\n\r\n"
            % (target, target)
        ]


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP status"),
        (b"", "no answer"),
        (b"HTTP/1.1 500 x\r\nfield: " + b"x" * 20_000, "no answer"),
    ],
)
async def test_proxy_that_refuses_is_a_connect_error(answer: bytes, shown: str) -> None:
    async with proxy(answer) as (port, _):
        settings = {**ONCE, "proxy": f"http://127.0.0.1:{port}"}
        world = await World.start("h2tls", settings=settings)
        async with world:
            assert shown in await message(world)


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://api.example/v1", {}, None),
        ("https://api.example/v1", {"HTTPS_PROXY": "http://proxy:3128"}, ("proxy", 3128)),
        ("https://api.example/v1", {"https_proxy": "proxy:3128", "HTTPS_PROXY": "http://other"}, ("proxy", 3128)),
        ("https://api.example/v1", {"HTTPS_PROXY": "http://proxy"}, ("proxy", 80)),
        ("http://api.example/v1", {"HTTPS_PROXY": "http://proxy:3128", "HTTP_PROXY": "http://proxy:3128"}, None),
        ("https://api.example/v1", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, None),
        ("https://api.example/v1", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "a.b, .example"}, None),
        ("https://api.example/v1", {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "API.example"}, None),
        (
            "https://api.example/v1",
            {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "pi.example"},
            ("proxy", 3128),
        ),
        ("https://10.1.2.3/v1", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://10.1.2.3/v1", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "11.0.0.0/8"}, ("proxy", 3128)),
    ],
)
def test_proxy_is_found_in_the_environment(
    url: str, environ: dict[str, str], expected: tuple[str, int] | None
) -> None:
    assert Origin.of(ProviderConfig(base_url=url), environ).proxy == expected


def test_configured_proxy_counts_before_the_environment() -> None:
    environ = {"HTTPS_PROXY": "http://proxy:3128"}
    config = ProviderConfig(base_url="https://api.example/v1", proxy="http://mine:1")
    assert Origin.of(config, environ).proxy == ("mine", 1)
    config = ProviderConfig(base_url="https://api.example/v1", proxy="off")
    assert Origin.of(config, environ).proxy is None


@pytest.mark.parametrize("value", ["https://proxy:1", "socks5://proxy:1", "http://", "http://proxy:99999"])
def test_proxy_that_cannot_be_used_is_a_configuration_error(value: str) -> None:
    with pytest.raises(ConfigError, match=r"HTTPS_PROXY.*expected http://"):
        Origin.of(ProviderConfig(base_url="https://api.example/v1"), {"HTTPS_PROXY": value})
