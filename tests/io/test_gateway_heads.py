"""A request is judged by its head: nothing of a body is kept for whom it would not be answered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from holdfast.admission.auth import create_key
from holdfast.config import KeyConfig
from holdfast.core.limits.budget import Budget, Kind
from holdfast.server.listener.http import HttpConnection
from holdfast.server.router import SMALL_BODY
from tests.support.gateway_client import Http, Response, ask, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

COMPLETIONS = "/v1/chat/completions"
KEY, HASH = create_key()
OTHER_KEY, OTHER_HASH = create_key()
GOOD = json.dumps(chat({"tokens": 2}, stream=False)).encode()
BODY = 900 * 1024


@pytest.fixture
async def keyed(make_path: MakePath) -> GatewayPath:
    """A gateway with two keys, and a budget of a few bodies."""
    return await make_path(
        server={"max_body": 1 << 20, "memory_bytes": 4 << 20},
        keys={"blue": KeyConfig(hash=HASH), "green": KeyConfig(hash=OTHER_HASH)},
    )


def head(http: Http, method: str, target: str, *, key: str | None = KEY, **headers: Any) -> None:
    """Write the head of a request, with the length of a body that is left to come."""
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    http.send(f"{method} {target} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n".encode())


def bodies(path: GatewayPath) -> int:
    return path.gateway.process.budget.by_kind[Kind.BODIES]


async def answer_to_head(path: GatewayPath, method: str, target: str, **headers: Any) -> Response:
    """The answer that comes before a byte of the body does; the connection is closed behind it."""
    async with await Http.open(path.url) as http:
        head(http, method, target, **headers)
        response = await http.response()
        assert response.headers["connection"] == "close"
        assert bodies(path) == 0
        assert await http.is_closed()
    return response


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("POST", COMPLETIONS, {"key": None}, 401),
        ("POST", COMPLETIONS, {"key": "hf_wrong"}, 401),
        ("POST", COMPLETIONS, {"origin": "https://evil.example"}, 403),
        ("PUT", COMPLETIONS, {}, 405),
        ("POST", "/v1/nothing", {}, 404),
        ("POST", "/v1/models", {}, 405),
        ("POST", COMPLETIONS, {"content_length": (1 << 20) + 1}, 413),
        ("GET", "/v1/models", {"content_length": SMALL_BODY + 1}, 413),
        ("POST", "/v1/client_tokens", {"content_length": SMALL_BODY + 1}, 413),
        ("GET", "/healthz", {"content_length": 1}, 413),
    ],
)
@pytest.mark.parametrize("expect", [{}, {"expect": "100-continue"}])
async def test_request_that_is_refused_is_answered_before_its_body_comes(
    keyed: GatewayPath, method: str, target: str, headers: dict[str, Any], status: int, expect: dict[str, str]
) -> None:
    response = await answer_to_head(keyed, method, target, **({"content_length": 100} | headers | expect))
    assert response.status == status


async def test_chunks_for_a_path_without_a_body_are_refused(keyed: GatewayPath) -> None:
    async with await Http.open(keyed.url) as http:
        head(http, "GET", "/healthz", transfer_encoding="chunked")
        http.send(b"1\r\n \r\n")
        assert (await http.response()).status == 413


async def test_refusal_without_a_body_keeps_the_connection(keyed: GatewayPath) -> None:
    async with await Http.open(keyed.url) as http:
        for target, key, status in (
            ("/v1/nothing", KEY, 404),
            ("/v1/models", None, 401),
            (COMPLETIONS, KEY, 405),
            ("/v1/models", KEY, 200),
        ):
            head(http, "GET", target, key=key)
            assert (await http.response()).status == status


async def test_strangers_bodies_are_not_kept(keyed: GatewayPath) -> None:
    """However many send as much as they may, also before a turn of the loop has looked at them."""
    strangers = [await Http.open(keyed.url) for _ in range(20)]
    for http in strangers:
        head(http, "POST", COMPLETIONS, key=None, content_length=BODY)
        http.send(b" " * (BODY - 1))
    for http in strangers:
        assert (await http.response()).status in (401, 503)
    assert bodies(keyed) == 0
    for http in strangers:
        await http.__aexit__()


async def test_body_is_charged_to_its_tenant_until_it_is_answered(keyed: GatewayPath) -> None:
    budget = keyed.gateway.process.budget
    account = budget.account("blue")
    async with await Http.open(keyed.url) as http:
        head(http, "POST", COMPLETIONS, content_length=BODY)
        http.send(b" " * (BODY - 1))
        await eventually(lambda: bodies(keyed) == BODY - 1)
        assert account.used == BODY - 1
        http.send(b" ")
        assert (await http.response()).status == 400
        await eventually(lambda: account.used == 0)


async def test_body_of_a_client_that_leaves_is_charged_no_more(keyed: GatewayPath) -> None:
    async with await Http.open(keyed.url) as http:
        head(http, "POST", COMPLETIONS, content_length=BODY)
        http.send(b" " * (BODY - 1))
        await eventually(lambda: bodies(keyed) == BODY - 1)
    await eventually(lambda: bodies(keyed) == 0)


async def test_bodies_beyond_the_tenants_share_are_refused_and_others_served(keyed: GatewayPath) -> None:
    budget: Budget = keyed.gateway.process.budget
    clients = [await Http.open(keyed.url) for _ in range(10)]
    refused = 0
    for http in clients:
        head(http, "POST", COMPLETIONS, content_length=BODY)
        http.send(b" " * (BODY - 1))
        await asyncio.sleep(0.02)
        assert budget.used <= budget.limit
    await eventually(lambda: bodies(keyed) % (BODY - 1) == 0 and bodies(keyed) > 0)
    for http in clients[bodies(keyed) // (BODY - 1) :]:
        response = await http.response()
        assert (response.status, response.error["code"]) == (503, "overloaded")
        assert "retry-after" in response.headers
        refused += 1
    assert 0 < refused < len(clients)
    for key, status in ((OTHER_KEY, 200), (KEY, 200)):
        # Whoever has little to send is served, also of that tenant.
        response = await ask(keyed.url, "POST", COMPLETIONS, GOOD, authorization=f"Bearer {key}")
        assert response.status == status
    for http in clients:
        await http.__aexit__()
    await eventually(lambda: bodies(keyed) == 0)


async def test_key_that_is_revoked_while_its_body_comes_is_refused(keyed: GatewayPath) -> None:
    async with await Http.open(keyed.url) as http:
        head(http, "POST", COMPLETIONS, content_length=len(GOOD))
        http.send(GOOD[:-1])
        await eventually(lambda: bodies(keyed) == len(GOOD) - 1)
        (receiving,) = keyed.gateway.peers
        assert isinstance(receiving, HttpConnection)
        assert receiving._admitted is not None
        assert receiving._admitted.secret is not None
        keyed.gateway.peers.revoke({receiving._admitted.secret})
        http.send(GOOD[-1:])
        response = await http.response()
    assert (response.status, response.error["code"]) == (401, "unauthorized")
    assert bodies(keyed) == 0


async def test_pipeline_that_is_not_read_is_answered_no_further(path: GatewayPath) -> None:
    """3,000 answers of several kilobytes each: they wait as requests, or not at all."""
    budget = path.gateway.process.budget
    count = 3000
    async with await Http.open(path.url) as http:
        http.transport.pause_reading()
        for _ in range(count):
            head(http, "GET", "/v1/limits", key=None)
        await eventually(lambda: budget.by_kind[Kind.OUTPUT] > 0)
        most = 0
        for _ in range(200):
            await asyncio.sleep(0.002)
            most = max(most, budget.used)
        assert most < 1 << 20
        http.transport.resume_reading()
        for _ in range(count):
            assert (await http.response()).status == 200
    await eventually(lambda: budget.used == 0)


async def test_what_waits_for_its_turn_is_charged(keyed: GatewayPath) -> None:
    """There may be a read's worth of it on every socket."""
    budget = keyed.gateway.process.budget
    clients = [await Http.open(keyed.url) for _ in range(8)]
    await eventually(lambda: len(keyed.gateway.peers) == len(clients))
    (first, *_) = keyed.gateway.peers
    assert isinstance(first, HttpConnection)
    turns, most = first.turns, 0
    turns._left = 0.0
    for http in clients:
        head(http, "POST", COMPLETIONS, key=None, content_length=BODY)
        http.send(b" " * (64 * 1024))
    for _ in range(200):
        await asyncio.sleep(0)
        turns._left = 0.0
        most = max(most, budget.strangers.used)
    assert 64 * 1024 < most <= budget.strangers.bound
    for http in clients:
        assert (await http.response()).status in (401, 503)
        await http.__aexit__()
    await eventually(lambda: budget.used == 0)


async def test_head_is_charged_for_the_memory_that_its_fields_take(keyed: GatewayPath) -> None:
    budget = keyed.gateway.process.budget
    async with await Http.open(keyed.url) as http:
        http.send(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + b"a:\r\n" * 100)
        await eventually(lambda: budget.strangers.used > 100 * 128)
        http.send(b"\r\n")
        assert (await http.response()).status == 200
        await eventually(lambda: budget.used == 0)


async def test_requests_behind_an_answer_are_charged_to_who_sends_them(keyed: GatewayPath) -> None:
    """Also those that are parsed already: each takes many times its bytes."""
    budget = keyed.gateway.process.budget
    account, count = budget.account("blue"), 100
    body = json.dumps(chat({"tokens": 2, "ttft_ms": 300}, stream=False)).encode()
    async with await Http.open(keyed.url) as http:
        head(http, "POST", COMPLETIONS, content_length=len(body))
        http.send(body + b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n" * count)
        await eventually(lambda: budget.by_kind[Kind.BODIES] > count * 512)
        assert account.used > count * 512
        assert budget.strangers.used == 0
        for _ in range(1 + count):
            assert (await http.response()).status == 200
        await eventually(lambda: budget.used - account.reclaimable == 0)
