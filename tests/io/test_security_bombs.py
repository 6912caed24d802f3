"""Little that costs much: compressed and endless bodies, heads, frames; names that would forge lines of the log;
and how long it takes to be told no."""

from __future__ import annotations

import gzip
import logging
import statistics
import time

import pytest
from websockets.exceptions import ConnectionClosed

from holdfast.admission.keys import create_key
from holdfast.app import Gateway
from holdfast.config import Config, KeyConfig, ServerConfig
from holdfast.dialects.chat import CHAT
from holdfast.errors import ConfigError
from holdfast.server.listener.admitted import Admitted
from holdfast.server.router import Router
from tests.support.gateway_client import Http, Session, ask, chat, dial
from tests.support.gateway_path import GatewayPath, MakePath

COMPLETIONS = "/v1/chat/completions"
KEY, HASH = create_key()
SMALL = {"max_body": 64 * 1024}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
async def keyed(make_path: MakePath) -> GatewayPath:
    return await make_path(server=SMALL, keys={"web": KeyConfig(hash=HASH)})


# -- bombs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "zstd", "gzip, identity", "x-unknown"])
async def test_compressed_body_is_refused_unread(path: GatewayPath, coding: str) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    response = await ask(path.url, "POST", COMPLETIONS, bomb, content_encoding=coding)
    assert (response.status, response.error["code"]) == (415, "invalid_request")
    assert response.error["param"] == "content-encoding"


async def test_body_said_to_have_no_coding_is_taken(path: GatewayPath) -> None:
    response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}), content_encoding="identity")
    assert response.status == 200


@pytest.mark.parametrize(("key", "status"), [(KEY, 413), ("hf_unknown", 401)])
async def test_body_is_refused_at_its_bound_and_that_of_a_stranger_at_once(
    keyed: GatewayPath, key: str, status: int
) -> None:
    post = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: %b\r\n" % key.encode()
    async with await Http.open(keyed.url) as http:
        http.send(post + b"content-length: 99999999999\r\n\r\n")
        assert (await http.response()).status == status
    async with await Http.open(keyed.url) as http:
        http.send(post + b"transfer-encoding: chunked\r\n\r\n")
        http.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" + b"8001\r\n" + b"x" * 0x8001 + b"\r\n")
        assert (await http.response()).status == status


@pytest.mark.parametrize(
    "head",
    [
        b"x-a: " + b"a" * 40_000 + b"\r\n",
        b"".join(b"x-%d: 1\r\n" % number for number in range(5000)),
        b"authorization: Bearer " + b"hf_" * 20_000 + b"\r\n",
        b"sec-websocket-protocol: " + b"holdfast.token.a, " * 3000 + b"\r\n",
        b"cookie: " + b"a=b; " * 10_000 + b"\r\n",
    ],
    ids=["long", "many", "credential", "subprotocols", "cookies"],
)
async def test_head_bomb_is_refused(keyed: GatewayPath, head: bytes) -> None:
    async with await Http.open(keyed.url) as http:
        http.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n")
        assert (await http.response()).status == 431
        assert await http.is_closed()


async def test_frame_bomb_ends_its_connection_alone(keyed: GatewayPath) -> None:
    async with await Session.open(keyed.url, additional_headers=bearer(KEY)) as bystander:
        socket = await dial(keyed.url, additional_headers=bearer(KEY))
        # A frame that says it will be 8 EiB long.
        socket.transport.write(b"\x81\xff" + b"\x7f" + b"\xff" * 7 + b"mask" + b"x" * 100)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009
        await bystander.create("r-1", chat({"tokens": 1}))


async def test_message_of_endless_fragments_is_bounded(keyed: GatewayPath) -> None:
    socket = await dial(keyed.url, additional_headers=bearer(KEY))
    for number in range(100):
        opcode = b"\x01" if number == 0 else b"\x00"
        socket.transport.write(opcode + b"\xfe\x04\x00" + b"\0\0\0\0" + b"x" * 1024)
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    assert socket.close_code == 1009


# -- the log -------------------------------------------------------------------------------------------


async def test_path_with_line_breaks_cannot_forge_a_line_of_the_log(
    keyed: GatewayPath, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*args: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Router, "admit", lambda *_, **__: Admitted(CHAT, fails))
    target = "/v1/models%0d%0a2026-01-01%20INFO%20holdfast%20all%20is%20well"
    with caplog.at_level(logging.DEBUG, logger="holdfast"):
        assert (await ask(keyed.url, "GET", target, **bearer(KEY))).status == 500
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert any("all is well" in line for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)


async def test_no_credential_reaches_the_log_or_an_answer(
    keyed: GatewayPath, caplog: pytest.LogCaptureFixture
) -> None:
    wrong, _ = create_key()
    with caplog.at_level(logging.DEBUG):
        for response in (
            await ask(keyed.url, "GET", "/v1/models", **bearer(wrong)),
            await ask(keyed.url, "GET", f"/v1/models?api_key={wrong}"),
            await ask(keyed.url, "GET", "/v1/models", authorization=wrong),
            await ask(keyed.url, "POST", COMPLETIONS, b"rubbish", **bearer(KEY)),
            await ask(keyed.url, "POST", COMPLETIONS, chat({"tokens": 1}), **bearer(KEY)),
        ):
            for secret in (wrong, KEY, HASH):
                assert secret not in response.body.decode()
                assert secret not in str(response.headers)
    for secret in (wrong, KEY, HASH, HASH.removeprefix("sha256:")):
        assert secret not in caplog.text


# -- time ----------------------------------------------------------------------------------------------


async def test_unknown_and_nearly_right_keys_are_refused_in_the_same_time(keyed: GatewayPath) -> None:
    """The medians may differ by a quarter, which is far more than a comparison of 43 characters takes."""
    tried = {"unknown": "hf_" + "x" * 43, "nearly": KEY[:-1] + ("A" if KEY[-1] != "A" else "B")}
    times: dict[str, list[float]] = {name: [] for name in tried}
    table = keyed.gateway.access.table
    for _ in range(2000):
        for name, key in tried.items():
            start = time.perf_counter()
            for _ in range(5):
                assert table.find(key.encode(), 0.0) is None
            times[name].append(time.perf_counter() - start)
    unknown, nearly = statistics.median(times["unknown"]), statistics.median(times["nearly"])
    assert 0.75 < unknown / nearly < 1.33


# -- an open door --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example", ""])
async def test_open_port_without_callers_refuses_to_start(host: str) -> None:
    gateway = Gateway(Config(server=ServerConfig(host=host, port=0)))
    with pytest.raises(ConfigError, match=r"no \[keys\]"):
        await gateway.start()
