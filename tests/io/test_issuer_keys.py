"""The issuer's keys while it is slow, silent or down: nothing waits without bound, and nothing fails open."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.exceptions import InvalidStatus

from holdfast.admission import jwks as module
from holdfast.admission.jwks import parse_jwks
from holdfast.config.auth import AuthConfig, JwtConfig
from holdfast.logs import AUDIT
from tests.io.test_audit import events
from tests.io.test_security_jwt import (
    ALL_KEYS,
    AUDIENCE,
    ED,
    ISSUER,
    RSA,
    bearer,
    jwks,
    public_jwk,
    status,
    token,
)
from tests.support.gateway_client import Http, ask, dial
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.slow_issuer import Manner, SlowIssuer
from tests.support.waiting import eventually

HANGING: tuple[Manner, ...] = ("drip head", "drip body", "silent")


@pytest.fixture
async def issuer() -> AsyncIterator[SlowIssuer]:
    async with SlowIssuer(jwks(*ALL_KEYS)) as issuer:
        yield issuer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound a fetch, and what hangs on it, by a quarter of a second."""
    monkeypatch.setattr(module, "TIMEOUT", 0.25)
    monkeypatch.setattr(module, "RETRY_INTERVAL", 0.1)


@pytest.fixture
def make_fetching(make_path: MakePath, issuer: SlowIssuer) -> MakePath:
    async def make(**settings: Any) -> GatewayPath:
        config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=issuer.url, **settings)
        return await make_path(auth=AuthConfig(jwt=config))

    return make


def forget_the_last_fetch(path: GatewayPath) -> None:
    assert path.gateway.access.jwks is not None
    path.gateway.access.jwks._fetched = float("-inf")


async def issuer_keys(path: GatewayPath) -> dict[str, Any]:
    response = await ask(path.url, "GET", "/readyz")
    assert response.status == 200
    state: dict[str, Any] = response.json()["sources"].get("issuer_keys", {})
    return state


@pytest.mark.parametrize("manner", HANGING)
async def test_issuer_that_hangs_keeps_no_gateway_from_its_start_or_its_end(
    make_fetching: MakePath, issuer: SlowIssuer, manner: Manner
) -> None:
    issuer.manner = manner
    start = time.monotonic()
    path = await make_fetching()
    assert (await ask(path.url, "GET", "/healthz")).status == 200
    await path.gateway.aclose()
    assert time.monotonic() - start < module.TIMEOUT / 2
    await eventually(lambda: issuer.open == 0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("manner", HANGING)
async def test_keys_come_after_an_issuer_has_hung(
    make_fetching: MakePath, issuer: SlowIssuer, manner: Manner, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.manner = manner
    path = await make_fetching()
    response = await ask(path.url, "GET", "/v1/models", **bearer(token()))
    assert (response.status, response.error["code"]) == (503, "overloaded")
    state = await issuer_keys(path)
    assert (state["stale"], state["since"]) == (True, None)
    assert issuer.url not in str(state)
    assert "its tokens are refused" in caplog.text
    issuer.manner = "serve"
    async with asyncio.timeout(5):
        while await status(path, token()) != 200:
            pass
    assert "stale" not in await issuer_keys(path)
    assert "can be fetched again" in caplog.text


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("manner", HANGING)
async def test_unknown_key_id_waits_with_a_bound_and_later_fetches_go_on(
    make_fetching: MakePath, issuer: SlowIssuer, manner: Manner
) -> None:
    path = await make_fetching(refresh=0.4)
    issuer.manner = manner
    forget_the_last_fetch(path)
    made_up = bearer(token(kid="made-up"))
    start = time.monotonic()
    over_http = asyncio.create_task(ask(path.url, "GET", "/v1/models", **made_up))
    with pytest.raises(InvalidStatus) as caught:
        await dial(path.url, additional_headers=made_up)
    assert caught.value.response.status_code in (401, 503)
    assert (await over_http).status in (401, 503)
    assert time.monotonic() - start < 2.0
    assert await status(path, token()) == 200, "what was fetched stays for now"

    # Meanwhile the issuer withdraws all keys but one, and publishes a new one.
    new = ec.generate_private_key(ec.SECP256R1())
    issuer.body = jwks(public_jwk("EdDSA", ED), public_jwk("ES256", new, kid="new"))
    issuer.manner = "serve"
    async with asyncio.timeout(5):
        while await status(path, token(key=new, kid="new")) != 200:
            pass
    assert await status(path, token("ES256")) == 401
    assert await status(path, token("EdDSA")) == 200


async def test_keys_that_cannot_be_fetched_for_long_are_forgotten(
    make_fetching: MakePath, issuer: SlowIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AUDIT)
    path = await make_fetching(refresh=0.05)
    assert await status(path, token()) == 200
    issuer.body = b"rubbish"
    await eventually(lambda: "the old ones stay in use for now" in caplog.text)
    assert await status(path, token()) == 200
    assert (await issuer_keys(path))["stale"]
    await eventually(lambda: "are forgotten" in caplog.text)
    assert await status(path, token()) == 503
    assert caplog.text.count("cannot be fetched, the old ones stay") == 1, "once a minute, and not each time"
    issuer.body = jwks(*ALL_KEYS)
    async with asyncio.timeout(5):
        while await status(path, token()) != 200:
            pass
    names = ["ES256 ES256", "EdDSA EdDSA", "RS256 RS256"]
    assert events(caplog, "issuer_keys_changed") == [{"added": names}] * 2
    assert [event["withdrawn"] for event in events(caplog, "issuer_keys_forgotten")] == [names]


async def test_withdrawn_key_is_told(
    make_fetching: MakePath, issuer: SlowIssuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AUDIT)
    await make_fetching(refresh=0.05)
    issuer.body = jwks(public_jwk("EdDSA", ED, kid="\u202e" * 300))
    await eventually(lambda: len(events(caplog, "issuer_keys_changed")) == 2)
    last = events(caplog, "issuer_keys_changed")[1]
    assert last["withdrawn"] == ["ES256 ES256", "EdDSA EdDSA", "RS256 RS256"]
    assert len(last["added"]) < 300


async def test_key_set_without_end_is_cut_off(make_fetching: MakePath, issuer: SlowIssuer) -> None:
    issuer.body = b"[" * (16 * 1024 * 1024)
    path = await make_fetching()
    assert await status(path, token()) == 503
    await eventually(lambda: issuer.open == 0)


async def test_key_file_that_vanishes_leaves_its_keys_for_a_while(
    make_path: MakePath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(*ALL_KEYS))
    config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file), refresh=0.05)
    path = await make_path(auth=AuthConfig(jwt=config))
    file.unlink()
    await eventually(lambda: "cannot be fetched" in caplog.text)
    assert await status(path, token()) == 200
    await eventually(lambda: "are forgotten" in caplog.text)
    assert await status(path, token()) == 503


@pytest.mark.usefixtures("quick")
async def test_key_file_that_hangs_holds_up_neither_callers_nor_the_end(
    make_path: MakePath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(*ALL_KEYS))
    config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file), refresh=0.2)
    path = await make_path(auth=AuthConfig(jwt=config))
    file.unlink()
    os.mkfifo(file)  # its opening waits for a writer, as a file of a server that is gone waits for that
    try:
        await eventually(lambda: "longer than 0.25 s" in caplog.text)
        assert await status(path, token()) == 200
        start = time.monotonic()
        await path.gateway.aclose()
        assert time.monotonic() - start < 1.0
    finally:
        os.close(os.open(file, os.O_RDWR))


def test_key_of_the_issuer_that_would_take_long_to_verify_with_is_left_out() -> None:
    numbers = RSA.public_key().public_numbers()
    huge = numbers.n | (1 << 9000)
    key = public_jwk("RS256", RSA, n=base64.urlsafe_b64encode(huge.to_bytes(1126, "big")).rstrip(b"=").decode())
    assert parse_jwks(jwks(key)) == []


@pytest.mark.usefixtures("quick")
async def test_what_waits_with_a_handshake_for_keys_is_charged(
    make_fetching: MakePath, issuer: SlowIssuer
) -> None:
    """It is a stranger's until then, and may be a whole read of the socket."""
    path = await make_fetching()
    issuer.manner = "silent"
    forget_the_last_fetch(path)
    strangers, size = path.gateway.process.budget.strangers, 50_000
    async with await Http.open(path.url) as http:
        http.send(
            b"GET /v1/ws/stream HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"authorization: Bearer %b\r\n\r\n" % token(kid="made-up").encode() + b" " * size
        )
        await eventually(lambda: strangers.used >= size)
        assert (await http.response()).status in (401, 503)
        assert strangers.used == 0
