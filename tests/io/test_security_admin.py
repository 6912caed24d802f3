"""The admin key: what it opens with and without a key store, and whom it is not mistaken for."""

from __future__ import annotations

import json

import pytest

from holdfast.admission.keys import create_key, hash_key
from holdfast.config import KeyConfig
from holdfast.config.auth import AuthConfig
from tests.support.gateway_client import Session, answer, ask, chat, content, read_stream, whole
from tests.support.gateway_path import GatewayPath, MakePath

KEYS = "/v1/admin/keys"
ADMIN_KEY, ADMIN_HASH = create_key()
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
KEY, HASH = create_key()
CALLER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(params=["local", "keyed"])
async def path(make_path: MakePath, request: pytest.FixtureRequest) -> GatewayPath:
    """A gateway with an admin and without a key store; `keyed` has a caller whose tenant is called `admin`."""
    keys = {"keys": {"ann": KeyConfig(hash=HASH, tenant="admin")}} if request.param == "keyed" else {}
    return await make_path(auth=AuthConfig(admin_key=ADMIN_HASH), **keys)


async def stream_of_caller(path: GatewayPath) -> str:
    response = await ask(path.url, "POST", "/v1/chat/completions", chat({"tokens": 5, "seed": 7}), **CALLER)
    assert response.status == 200
    return response.headers["holdfast-stream-id"]


async def test_admin_reads_everybodys_streams(path: GatewayPath) -> None:
    stream = await stream_of_caller(path)
    assert whole(await read_stream(path.url, stream, **ADMIN)) == answer(5)
    hello = {"streams": [{"stream": stream, "after": -1}]}
    async with await Session.open(path.url, hello=hello, additional_headers=ADMIN) as session:
        entries, end = await session.read()
    assert (content(entries), end["status"]) == (answer(5), "completed")


async def test_acknowledgement_of_an_admin_shortens_no_retention(make_path: MakePath) -> None:
    path = await make_path(
        auth=AuthConfig(admin_key=ADMIN_HASH), streams={"retention": 60.0, "retention_acknowledged": 0.05}
    )
    stream = await stream_of_caller(path)
    hello = {"streams": [{"stream": stream, "after": -1}]}
    async with await Session.open(path.url, hello=hello, additional_headers=ADMIN) as session:
        _, end = await session.read()
        await session.send(type="ack", streams={stream: end["seq"]})
        await session.send(type="ping", t=1)
        await session.expect("pong")
    async with await Session.open(path.url, hello=hello) as session:
        _, end = await session.read()
        await session.send(type="ack", streams={stream: end["seq"]})
        while (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none")).status == 200:
            pass


async def test_admin_sees_the_operations_pages(path: GatewayPath) -> None:
    for place in ("/v1/pool", "/v1/limits"):
        assert (await ask(path.url, "GET", place, **ADMIN)).status == 200


async def test_pools_are_for_the_admin_alone_where_there_is_one(make_path: MakePath) -> None:
    key, hashed = create_key()
    keys = {"web": KeyConfig(hash=hashed)}
    caller = {"authorization": f"Bearer {key}"}
    path = await make_path(keys=keys, auth=AuthConfig(admin_key=ADMIN_HASH))
    refused = await ask(path.url, "GET", "/v1/pool", **caller)
    assert (refused.status, refused.error["code"]) == (401, "unauthorized")
    assert path.provider.base_url not in refused.body.decode()
    assert (await ask(path.url, "GET", "/v1/pool", **ADMIN)).status == 200
    assert (await ask(path.url, "GET", "/v1/limits", **caller)).status == 200
    path = await make_path(keys=keys)
    assert (await ask(path.url, "GET", "/v1/pool", **caller)).status == 200


async def test_admin_asks_for_no_generation(path: GatewayPath) -> None:
    refused = await ask(path.url, "POST", "/v1/chat/completions", chat({"tokens": 1}), **ADMIN)
    assert (refused.status, refused.error["code"]) == (403, "forbidden")
    assert (await ask(path.url, "GET", "/v1/models", **ADMIN)).json()["data"] == []
    assert path.provider.statistics().requests == 0


async def test_admin_makes_no_client_tokens(path: GatewayPath) -> None:
    """They would be a tenant's, and the admin is none, whatever a tenant is called."""
    assert (await ask(path.url, "POST", "/v1/client_tokens", {}, **ADMIN)).status == 403


async def test_admin_api_without_a_store_says_what_is_missing(path: GatewayPath) -> None:
    for method, place in [("GET", KEYS), ("POST", KEYS), ("DELETE", f"{KEYS}/x"), ("POST", f"{KEYS}/x/rotate")]:
        answered = await ask(path.url, method, place, {"name": "x"}, **ADMIN)
        assert (answered.status, answered.error["code"]) == (404, "not_found")
        assert "auth.key_store" in answered.error["message"]


async def test_nobody_else_is_an_admin(path: GatewayPath) -> None:
    for headers in ({}, CALLER, {"x-api-key": KEY}, {"authorization": f"Bearer {ADMIN_HASH}"}):
        assert (await ask(path.url, "GET", KEYS, **headers)).status == 401


async def test_tenant_called_admin_may_not_read_what_others_have(make_path: MakePath) -> None:
    other_key, other_hash = create_key()
    keys = {"ann": KeyConfig(hash=HASH, tenant="admin"), "bob": KeyConfig(hash=other_hash)}
    path = await make_path(auth=AuthConfig(admin_key=ADMIN_KEY), keys=keys)
    bob = {"authorization": f"Bearer {other_key}"}
    made = await ask(path.url, "POST", "/v1/chat/completions", chat({"tokens": 1}), **bob)
    stream = made.headers["holdfast-stream-id"]
    assert (await ask(path.url, "GET", f"/v1/streams/{stream}", **CALLER)).status == 404
    cancelled = await ask(path.url, "DELETE", f"/v1/streams/{stream}", **ADMIN)
    assert json.loads(cancelled.body)["status"] == "completed"


def test_hash_of_the_admin_key_is_what_the_configuration_may_hold() -> None:
    assert hash_key(ADMIN_KEY) == ADMIN_HASH
