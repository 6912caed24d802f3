"""The HTTP client connections against servers that others wrote: nghttpd and Node's http2, over real sockets."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from holdfast.core.http.connection import ErrorCode
from tests.support.http_shell import HttpShell, connect

NODE = shutil.which("node")
NGHTTPD = shutil.which("nghttpd")


def pattern(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


# -- servers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a self-signed certificate for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file


def tls_context(certificate: tuple[Path, Path], *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate[1]))
    context.set_alpn_protocols(list(protocols))
    return context


def node_server(*arguments: str) -> Iterator[int]:
    if NODE is None:
        pytest.skip("node is not installed")
    script = Path(__file__).with_name("http2_peer.mjs")
    with subprocess.Popen(
        [NODE, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.stdin.close()
        assert server.wait(10) == 0


@pytest.fixture(scope="module")
def node_plain() -> Iterator[int]:
    yield from node_server()


@pytest.fixture(scope="module")
def node_tls(certificate: tuple[Path, Path]) -> Iterator[int]:
    yield from node_server(*map(str, certificate))


@pytest_asyncio.fixture(params=["plain", "tls"])
async def node(request: pytest.FixtureRequest) -> AsyncIterator[HttpShell]:
    """An HTTP/2 connection to Node, by prior knowledge or by ALPN."""
    if request.param == "plain":
        shell = await connect(request.getfixturevalue("node_plain"))
    else:
        tls = tls_context(request.getfixturevalue("certificate"), "h2")
        shell = await connect(request.getfixturevalue("node_tls"), tls)
    await shell.until(lambda: shell.connection.is_established)
    assert shell.connection.alpn == "h2"
    yield shell
    await shell.aclose()


@pytest.fixture(scope="module")
def nghttpd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nghttpd with small windows, random padding and trailers; it echoes uploads."""
    if NGHTTPD is None:
        pytest.skip("nghttpd is not installed (Debian: nghttp2-server)")
    documents = tmp_path_factory.mktemp("documents")
    (documents / "big").write_bytes(pattern(3_000_000))
    (documents / "small").write_bytes(b"small")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = [
        "--no-tls",
        "--echo-upload",
        "--padding=200",
        "--trailer=x-trailer: t",
        "--max-concurrent-streams=50",
    ]
    command = [NGHTTPD, *options, "--window-bits=14", "--address=127.0.0.1", f"--htdocs={documents}", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        wait_for_port(port, server)
        yield port
        server.terminate()
        server.wait(10)


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    """nghttpd prints nothing when it listens; each refused attempt is the wait."""
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=10)
    while datetime.datetime.now() < deadline:
        assert server.poll() is None
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    pytest.fail("nghttpd did not listen within 10 s")


@pytest_asyncio.fixture
async def ng(nghttpd: int) -> AsyncIterator[HttpShell]:
    shell = await connect(nghttpd)
    await shell.until(lambda: shell.connection.is_established)
    yield shell
    await shell.aclose()


# -- nghttpd ---------------------------------------------------------------------------------------------


async def test_nghttpd_many_streams_at_once(ng: HttpShell) -> None:
    exchanges = [ng.request("/small") for _ in range(ng.connection.available_streams)]
    assert len(exchanges) == 32
    await ng.finish(*exchanges)
    assert {(each.status, each.body) for each in exchanges} == {(200, b"small")}
    assert {tuple(each.trailers) for each in exchanges} == {((b"x-trailer", b"t"),)}
    assert ng.connection.open_streams == 0


async def test_nghttpd_big_bodies_down_with_padding(ng: HttpShell) -> None:
    exchanges = [ng.request("/big") for _ in range(4)]
    await ng.finish(*exchanges)
    assert all(each.body == pattern(3_000_000) for each in exchanges)


async def test_nghttpd_big_bodies_up_through_small_windows(ng: HttpShell) -> None:
    bodies = [pattern(500_000 + number) for number in range(4)]
    exchanges = [ng.request("/echo", body) for body in bodies]
    await ng.finish(*exchanges)
    assert [each.failure for each in exchanges] == [None] * 4
    assert [each.body for each in exchanges] == bodies


async def test_nghttpd_head_and_missing(ng: HttpShell) -> None:
    head, missing = ng.request("/big", method=b"HEAD"), ng.request("/missing")
    await ng.finish(head, missing)
    assert (head.status, head.body) == (200, b"")
    assert (b"content-length", b"3000000") in head.headers
    assert missing.status == 404


async def test_nghttpd_reset_stream_leaves_the_others(ng: HttpShell) -> None:
    doomed, kept = ng.request("/big"), ng.request("/big")
    await ng.until(lambda: doomed.body)
    ng.connection.reset_stream(doomed.stream_id)
    ng.flush()
    await ng.finish(kept)
    assert kept.body == pattern(3_000_000)
    assert not doomed.is_over
    assert ng.connection.open_streams == 0


async def test_nghttpd_answers_ping(ng: HttpShell) -> None:
    ng.connection.send_ping(b"12345678")
    ng.flush()
    await ng.until(lambda: ng.pongs)
    assert ng.pongs == [b"12345678"]


async def test_nghttpd_thousands_of_requests_on_one_connection(ng: HttpShell) -> None:
    for _ in range(100):
        exchanges = [ng.request("/small", headers=[(b"x-request", b"%d" % n)]) for n in range(32)]
        await ng.finish(*exchanges)
        assert all(each.body == b"small" for each in exchanges)
    assert ng.connection.is_usable


# -- Node ------------------------------------------------------------------------------------------------


async def test_node_many_streams_of_events(node: HttpShell) -> None:
    exchanges = [node.request("/events?count=200") for _ in range(32)]
    await node.finish(*exchanges)
    expected = b"".join(b"data: %020d\n\n" % number for number in range(200))
    assert all(each.body == expected for each in exchanges)


async def test_node_big_bodies_both_ways(node: HttpShell) -> None:
    bodies = [pattern(1_000_000 + number) for number in range(4)]
    exchanges = [node.request("/echo", body) for body in bodies]
    down = node.request("/big?size=5000000")
    await node.finish(down, *exchanges)
    assert [each.body for each in exchanges] == bodies
    assert down.body == pattern(5_000_000)


async def test_node_trailers_and_hints(node: HttpShell) -> None:
    trailers, hints = node.request("/trailers"), node.request("/hints")
    await node.finish(trailers, hints)
    assert (trailers.body, trailers.trailers) == (b"body", [(b"x-sum", b"42")])
    assert (hints.status, hints.body) == (200, b"after the hints")


async def test_node_stream_without_grants_stalls_alone(node: HttpShell) -> None:
    node.grants = False
    stalled = node.request("/big?size=1000000")
    window = node.connection.stream_windows(stalled.stream_id).receive
    await node.until(lambda: len(stalled.body) == window)
    node.grants = True
    other = node.request("/big?size=20000000")
    await node.finish(other)
    assert other.body == pattern(20_000_000)
    assert (stalled.is_over, len(stalled.body)) == (False, window)
    node.connection.grant(stalled.stream_id, window)
    node.flush()
    await node.finish(stalled)
    assert stalled.body == pattern(1_000_000)


async def test_node_early_answer_stops_the_upload(node: HttpShell) -> None:
    early = node.request("/early", pattern(1_000_000))
    await node.finish(early)
    assert (early.status, early.body) == (200, b"enough")
    after = node.request("/digest", pattern(200_000))
    await node.finish(after)
    assert after.body == b"200000"


async def test_node_reset_and_refusal_fail_their_stream_alone(node: HttpShell) -> None:
    reset, refused, kept = node.request("/reset"), node.request("/refuse"), node.request("/big?size=100000")
    await node.finish(reset, refused, kept)
    assert reset.failure is not None
    assert (reset.failure.code, reset.failure.processed) == (ErrorCode.INTERNAL_ERROR, True)
    assert refused.failure is not None
    assert (refused.failure.code, refused.failure.processed) == (ErrorCode.REFUSED_STREAM, False)
    assert kept.body == pattern(100_000)


async def test_node_sees_our_cancel(node: HttpShell) -> None:
    before = node.request("/cancelled")
    hanging = [node.request("/hang") for _ in range(10)]
    await node.finish(before)
    await node.until(lambda: all(each.body for each in hanging))
    for each in hanging:
        node.connection.reset_stream(each.stream_id)
    node.flush()
    assert node.connection.open_streams == 0
    after = node.request("/cancelled")
    await node.finish(after)
    assert int(after.body) - int(before.body) == 10


async def test_node_goaway_lets_processed_streams_end_and_fails_the_rest(node: HttpShell) -> None:
    last = node.request("/goaway")
    await node.until(lambda: node.goaways)
    assert not node.connection.is_usable
    await node.finish(last)
    assert last.body == b"before after"
    goaway = node.goaways[0]
    assert (goaway.code, goaway.last_stream_id, goaway.debug) == (0, last.stream_id, b"bye")


async def test_node_goaway_below_a_request_fails_it(node: HttpShell) -> None:
    answered = node.request("/goaway")
    later = node.request("/hang")
    await node.finish(answered, later)
    assert answered.body == b"before after"
    assert later.failure is not None
    assert later.failure.processed == (later.status != 0)


async def test_node_graceful_close_ends_the_open_stream(node: HttpShell) -> None:
    last = node.request("/close")
    await node.finish(last)
    assert last.failure is None
    assert last.body.endswith(b"data: %020d\n\n" % 9)
    await node.until(lambda: node.failure)
    assert node.failure is not None
    assert node.failure.code == ErrorCode.NO_ERROR


async def test_node_that_goes_away_fails_all_streams(node: HttpShell) -> None:
    exchanges = [node.request("/hang") for _ in range(5)]
    await node.until(lambda: all(each.body for each in exchanges))
    exchanges.append(node.request("/destroy"))
    await node.finish(*exchanges)
    assert all(each.failure is not None for each in exchanges)
    await node.until(lambda: node.failure)
    assert node.connection.is_closed


async def test_node_changes_settings_mid_flight(node: HttpShell) -> None:
    upload = node.request("/echo", pattern(2_000_000))
    changed = node.request("/settings?streams=2&window=20000&table=0")
    await node.finish(changed)
    assert changed.body == b"acknowledged"
    assert node.settings[-1].max_concurrent_streams == 2
    assert node.settings[-1].initial_window == 20_000
    assert node.connection.available_streams == 2 - node.connection.open_streams
    again = node.request("/settings?streams=100&window=200000&table=4096")
    await node.finish(again, upload)
    assert upload.body == pattern(2_000_000)
    repeated = [node.request("/echo", b"x", headers=[(b"x-same", b"1")]) for _ in range(10)]
    await node.finish(*repeated)
    assert [each.body for each in repeated] == [b"x"] * 10


async def test_node_gets_its_ping_back(node: HttpShell) -> None:
    ping = node.request("/ping")
    await node.finish(ping)
    assert ping.body == b"holdfast"


# -- ALPN ------------------------------------------------------------------------------------------------


async def test_one_shell_drives_http1_where_alpn_chooses_it(node_tls: int, certificate: tuple[Path, Path]) -> None:
    shell = await connect(node_tls, tls_context(certificate, "http/1.1"))
    assert shell.connection.alpn == "http/1.1"
    for path, body, expected in [
        ("/echo", pattern(1_000_000), pattern(1_000_000)),
        ("/big?size=1000000", b"", pattern(1_000_000)),
        ("/trailers", b"", b"body"),
        ("/hints", b"", b"after the hints"),
        ("/events?count=50", b"", b"".join(b"data: %020d\n\n" % number for number in range(50))),
    ]:
        exchange = shell.request(path, body)
        await shell.finish(exchange)
        assert (exchange.status, exchange.body) == (200, expected)
        assert exchange.trailers == ([(b"x-sum", b"42")] if path == "/trailers" else [])
        assert shell.connection.is_usable
    head = shell.request("/big?size=1000", method=b"HEAD")
    await shell.finish(head)
    assert (head.status, head.body) == (200, b"")
    await shell.aclose()
    assert len(asyncio.all_tasks()) == 1
