"""Who may call: keys, tenants, local pages only without keys, and credentials that stand in the wrong place."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from holdfast.admission.auth import create_key
from holdfast.config import KeyConfig
from tests.support.gateway_client import (
    Http,
    Response,
    Session,
    answer,
    ask,
    chat,
    dial,
    read_stream,
    unharmed,
    whole,
)
from tests.support.gateway_path import GatewayPath, MakePath

COMPLETIONS = "/v1/chat/completions"
KEYS = {name: create_key() for name in ("blue", "green", "blue-too")}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


@pytest.fixture
async def keyed(make_path: MakePath) -> GatewayPath:
    """A gateway with two tenants; `blue` has two keys."""
    tenants = {"blue": None, "green": None, "blue-too": "blue"}
    return await make_path(
        keys={name: KeyConfig(hash=KEYS[name][1], tenant=tenant) for name, tenant in tenants.items()}
    )


async def refused_handshake(url: str, *, query: str = "", **headers: Any) -> Response:
    """The answer to a WebSocket handshake that is refused."""
    async with await Http.open(url) as http:
        http.request(
            "GET",
            f"/v1/ws/stream{query}",
            upgrade="websocket",
            connection="upgrade",
            sec_websocket_version="13",
            sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
            **headers,
        )
        response = await http.response()
        assert await http.is_closed()
    return response


# -- keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEYS['blue'][0]}"},
        {"authorization": f"bearer {KEYS['blue'][0]}"},
        {"authorization": f"Bearer   {KEYS['blue'][0]} "},
        {"x-api-key": KEYS["blue"][0]},
        {"authorization": "Basic dXNlcjpwdw==", "x-api-key": KEYS["blue"][0]},
    ],
)
async def test_known_key_is_let_in(keyed: GatewayPath, headers: dict[str, str]) -> None:
    assert (await ask(keyed.url, "POST", COMPLETIONS, chat({"tokens": 1}), **headers)).status == 200
    async with await Session.open(keyed.url, additional_headers=headers) as session:
        await session.create("r-1", chat({"tokens": 1}))


WRONG = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer hf_wrong"},
    {"authorization": f"Bearer {KEYS['blue'][0]}x"},
    {"authorization": f"Bearer {KEYS['blue'][0][:-1]}"},
    {"authorization": f"Bearer {KEYS['blue'][1]}"},  # the hash
    {"authorization": f"Basic {KEYS['blue'][0]}"},
    {"authorization": KEYS["blue"][0]},
    {"authorization": "Bearer \xff\xfe"},
    {"x-api-key": "hf_wrong"},
    {"x-api-key": ""},
    {"authorization": "Bearer hf_wrong", "x-api-key": KEYS["blue"][0]},
]


@pytest.mark.parametrize("headers", WRONG)
async def test_missing_or_wrong_key_is_refused(keyed: GatewayPath, headers: dict[str, str]) -> None:
    for method, target in [("POST", COMPLETIONS), ("GET", "/v1/models"), ("GET", "/v1/streams/st_1")]:
        response = await ask(keyed.url, method, target, chat({"tokens": 1}), **headers)
        assert (response.status, response.error["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEYS["blue"][0] not in response.body.decode()
    response = await refused_handshake(keyed.url, **headers)
    assert (response.status, response.error["code"]) == (401, "unauthorized")
    assert keyed.provider.statistics().requests == 0


@pytest.mark.parametrize("target", ["/healthz", "/readyz"])
async def test_health_needs_no_key(keyed: GatewayPath, target: str) -> None:
    assert (await ask(keyed.url, "GET", target)).status == 200


async def test_key_is_asked_for_before_the_body_is_judged(keyed: GatewayPath) -> None:
    assert (await ask(keyed.url, "POST", COMPLETIONS, b"rubbish")).status == 401


async def test_websocket_client_sees_the_status_of_its_refusal(keyed: GatewayPath) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await dial(keyed.url)
    assert caught.value.response.status_code == 401
    assert json.loads(caught.value.response.body)["error"]["code"] == "unauthorized"


# -- tenants -------------------------------------------------------------------------------------------


async def test_stream_of_another_tenant_is_answered_like_an_unknown_one(keyed: GatewayPath) -> None:
    created = await ask(keyed.url, "POST", COMPLETIONS, chat({"tokens": 3}), **bearer("blue"))
    stream = created.headers["holdfast-stream-id"]
    for method, query in [("GET", ""), ("GET", "?live=none"), ("GET", "?live=long-poll"), ("DELETE", "")]:
        foreign = await ask(keyed.url, method, f"/v1/streams/{stream}{query}", **bearer("green"))
        unknown = await ask(keyed.url, method, f"/v1/streams/st_{'0' * 32}{query}", **bearer("green"))
        assert (foreign.status, foreign.headers, foreign.body) == (unknown.status, unknown.headers, unknown.body)
        assert foreign.status == 404
    # It is there for its owner, and for the other key of the same tenant.
    for name in ("blue", "blue-too"):
        assert whole(await read_stream(keyed.url, stream, **bearer(name))) == answer(3)


async def test_session_of_another_tenant_cannot_touch_a_stream(keyed: GatewayPath) -> None:
    async with (
        await Session.open(keyed.url, additional_headers=bearer("blue")) as blue,
        await Session.open(keyed.url, additional_headers=bearer("green")) as green,
    ):
        stream = (await blue.create("r-1", chat({"tokens": 1_000_000, "interval_ms": 2})))["stream"]
        for kind in ("attach", "cancel"):
            await green.send(type=kind, stream=stream)
            foreign = await green.expect("error")
            await green.send(type=kind, stream="st_unknown")
            unknown = await green.expect("error")
            assert foreign | {"stream": ""} == unknown | {"stream": ""}
            assert foreign["code"] == "unknown_stream"
        await green.send(type="cancel", request_id="r-1")
        hello: dict[str, Any] = {"session": blue.welcome["session"], "streams": [{"stream": stream}]}
        async with await Session.open(keyed.url, hello=hello, additional_headers=bearer("green")) as thief:
            assert thief.welcome["streams"][0]["error"]["code"] == "unknown_stream"
            assert "resumed" not in thief.welcome
            assert thief.welcome["session"] != blue.welcome["session"]
        await blue.entries(5)
        assert keyed.provider.statistics().streaming == 1


# -- without keys --------------------------------------------------------------------------------------

LOCAL = [
    {},
    {"host": "localhost"},
    {"host": "LocalHost:8080"},
    {"host": "127.0.0.1:8080"},
    {"host": "127.9.9.9"},
    {"host": "[::1]:8080"},
    {"host": "app.localhost"},
    {"origin": "http://localhost:3000"},
    {"origin": "https://127.0.0.1"},
    {"origin": "https://my_app.localhost"},
    {"origin": "tauri://localhost"},
]
FOREIGN = [
    {"host": "example.com"},
    {"host": "example.com:8080"},
    {"host": "192.168.1.5:8080"},
    {"host": "localhost.example.com"},
    {"host": "example.com/localhost"},
    {"host": "localhost@example.com"},
    {"host": "0.0.0.0"},
    {"host": ""},
    {"host": "["},
    {"host": "[::1"},
    {"host": "\xff"},
    {"host": "x@127.0.0.1"},
    {"host": "127.0.0.1:80@127.0.0.1"},
    {"host": "127.0.0.1:port"},
    {"host": "127.0.0.1/"},
    {"host": "127.0.0.1, example.com"},
    {"host": "evil.com\\.localhost"},
    {"host": ".localhost"},
    {"origin": "https://example.com"},
    {"origin": "http://localhost.example.com"},
    {"origin": "http://[::1"},
    {"origin": "null"},
    {"origin": "file://"},
    {"origin": "localhost"},
    {"origin": "http://evil.com\\.localhost"},
    {"origin": "http://x@127.0.0.1"},
    {"origin": "http://evil.com#.localhost"},
    {"origin": "http://127.0.0.1/"},
    {"origin": "http://127.0.0.1 http://evil.com"},
    {"origin": "http:127.0.0.1"},
    {"origin": ""},
]


@pytest.mark.parametrize("headers", LOCAL)
async def test_local_page_may_call_without_keys(path: GatewayPath, headers: dict[str, str]) -> None:
    assert (await ask(path.url, "GET", "/v1/models", **headers)).status == 200


@pytest.mark.parametrize("headers", FOREIGN)
async def test_foreign_page_may_not_call_without_keys(path: GatewayPath, headers: dict[str, str]) -> None:
    async with unharmed(path.url):
        before = path.gateway.directory.statistics().created
        response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}), **headers)
        assert (response.status, response.error["code"]) == (403, "forbidden")
        assert ("origin" if "origin" in headers else "host") in response.error["message"]
        response = await refused_handshake(path.url, **headers)
        assert (response.status, response.error["code"]) == (403, "forbidden")
        assert path.gateway.directory.statistics().created == before


async def test_foreign_origin_with_a_key_is_let_in(keyed: GatewayPath) -> None:
    headers = {**bearer("blue"), "origin": "https://example.com"}
    assert (await ask(keyed.url, "GET", "/v1/models", host="example.com", **headers)).status == 200


# -- credentials in the URL ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["api_key", "token", "access_token", "KEY", "Authorization", "%61pi_key"])
async def test_credential_in_the_url_is_refused_and_not_repeated(keyed: GatewayPath, name: str) -> None:
    secret = KEYS["blue"][0]
    param = name.replace("%61", "a")
    for response in await asyncio.gather(
        ask(keyed.url, "GET", f"/v1/models?x=1&{name}={secret}", **bearer("blue")),
        refused_handshake(keyed.url, query=f"?{name}={secret}", **bearer("blue")),
    ):
        assert (response.status, response.error["code"], response.error["param"]) == (
            400,
            "invalid_request",
            param,
        )
        assert secret not in response.body.decode()
