"""Client tokens: what they allow, how they travel, and that nothing else passes for one; origins and CORS."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from holdfast.admission import client_tokens
from holdfast.admission.client_tokens import ClientTokens, TokenRequest
from holdfast.admission.keys import Key, KeySet, KeyTable, create_key, parse_hash
from holdfast.admission.principal import Principal, Scopes
from holdfast.config import KeyConfig
from holdfast.config.auth import AuthConfig
from holdfast.core.entries import Owner
from holdfast.core.session.messages import SUBPROTOCOL
from holdfast.errors import Forbidden, Unauthorized
from tests.support.gateway_client import Http, Session, answer, ask, chat, content, dial, read_stream, whole
from tests.support.gateway_path import GatewayPath, MakePath

COMPLETIONS = "/v1/chat/completions"
TOKENS = "/v1/client_tokens"
KEY, HASH = create_key()
NARROW_KEY, NARROW_HASH = create_key()
SECRET = "0123456789abcdef" * 4
ORIGIN = "https://app.example"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
async def path(make_path: MakePath) -> GatewayPath:
    """A gateway with a server's key, and one that is itself narrowed."""
    return await make_path(
        server={"allowed_origins": [ORIGIN]},
        keys={
            "web": KeyConfig(hash=HASH, tenant="acme"),
            "narrow": KeyConfig(hash=NARROW_HASH, models=["demo"], max_tokens=10),
        },
        auth=AuthConfig(token_secret=SECRET),
    )


async def token_of(path: GatewayPath, key: str = KEY, **fields: Any) -> str:
    response = await ask(path.url, "POST", TOKENS, fields, **bearer(key))
    assert response.status == 200, response.body
    assert response.headers["cache-control"] == "no-store"
    token: str = response.json()["token"]
    return token


# -- over HTTP -----------------------------------------------------------------------------------------


async def test_token_of_a_server_lets_a_client_in_for_five_minutes(path: GatewayPath) -> None:
    response = (await ask(path.url, "POST", TOKENS, **bearer(KEY))).json()
    assert response["expires_in"] == 300
    assert abs(response["expires_at"] - time.time() - 300) < 10
    created = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 3}), **bearer(response["token"]))
    stream = created.headers["holdfast-stream-id"]
    assert whole(await read_stream(path.url, stream, **bearer(response["token"]))) == answer(3)


async def test_token_is_held_to_its_models(path: GatewayPath) -> None:
    token = await token_of(path, models=["other"])
    response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}), **bearer(token))
    assert (response.status, response.error["code"], response.error["param"]) == (403, "forbidden", "model")
    assert "'demo'" in response.error["message"]
    assert (await ask(path.url, "GET", "/v1/models", **bearer(token))).json()["data"] == []
    assert path.provider.statistics().requests == 0


async def test_token_is_held_to_its_max_tokens(path: GatewayPath) -> None:
    token = await token_of(path, max_tokens=5)
    tries: list[tuple[dict[str, Any], int]] = [({"max_tokens": 5}, 200), ({"max_tokens": 6}, 403), ({}, 403)]
    for fields, expected in tries:
        response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}, **fields), **bearer(token))
        assert response.status == expected
    assert response.error["param"] == "max_tokens"
    assert path.provider.statistics().requests == 1


async def test_token_is_held_to_its_scope_on_each_request_of_a_session(path: GatewayPath) -> None:
    token = await token_of(path, models=["demo"], max_tokens=5)
    async with await Session.open(path.url, additional_headers=bearer(token)) as session:
        await session.send(type="create", request_id="r-1", request=chat({"tokens": 1}, max_tokens=50))
        assert (await session.expect("error"))["code"] == "forbidden"
        await session.send(type="create", request_id="r-2", request=chat({}, model="other", max_tokens=1))
        assert (await session.expect("error"))["param"] == "model"
        await session.create("r-3", chat({"tokens": 1}, max_tokens=5))


async def test_token_makes_no_tokens_and_sees_no_operations(path: GatewayPath) -> None:
    token = await token_of(path)
    for method, target in [("POST", TOKENS), ("GET", "/v1/pool"), ("GET", "/v1/limits")]:
        response = await ask(path.url, method, target, {} if method == "POST" else None, **bearer(token))
        assert (response.status, response.error["code"]) == (403, "forbidden")


async def test_token_never_allows_more_than_its_maker_may(path: GatewayPath) -> None:
    for fields in ({"models": ["demo", "other"]}, {"max_tokens": 11}):
        response = await ask(path.url, "POST", TOKENS, fields, **bearer(NARROW_KEY))
        assert (response.status, response.error["code"]) == (403, "forbidden")
    token = await token_of(path, NARROW_KEY)
    response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}, max_tokens=11), **bearer(token))
    assert response.status == 403


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"expires_in": 0}',
        b'{"expires_in": 3601}',
        b'{"max_tokens": 0}',
        b'{"models": []}',
        b'{"models": ["a\\r\\nb"]}',
        b'{"subject": ""}',
        b'{"subject": "a\\nb"}',
        b'{"scope": "all"}',
        b'{"tenant": "other"}',
    ],
)
async def test_malformed_token_request_is_refused(path: GatewayPath, body: bytes) -> None:
    response = await ask(path.url, "POST", TOKENS, body, **bearer(KEY))
    assert (response.status, response.error["code"]) == (400, "invalid_request")


async def test_large_token_request_is_refused_before_it_is_decoded(path: GatewayPath) -> None:
    body = b'{"models": [%b]}' % b",".join([b'"m"'] * 70_000)
    response = await ask(path.url, "POST", TOKENS, body, **bearer(KEY))
    assert (response.status, response.error["code"]) == (413, "payload_too_large")


# -- subjects ------------------------------------------------------------------------------------------


async def test_subjects_of_a_tenant_cannot_meet_each_others_streams(path: GatewayPath) -> None:
    ann, bob = [await token_of(path, subject=name) for name in ("ann", "bob")]
    async with (
        await Session.open(path.url, additional_headers=bearer(ann)) as first,
        await Session.open(path.url, additional_headers=bearer(bob)) as second,
    ):
        stream = (await first.create("r-1", chat({"tokens": 1_000_000, "interval_ms": 2})))["stream"]
        foreign = await ask(path.url, "GET", f"/v1/streams/{stream}", **bearer(bob))
        unknown = await ask(path.url, "GET", f"/v1/streams/st_{'0' * 32}", **bearer(bob))
        assert (foreign.status, foreign.headers, foreign.body) == (404, unknown.headers, unknown.body)
        # The same request id is another request, and cancels nothing of ann's.
        await second.send(type="cancel", request_id="r-1")
        own = (await second.create("r-1", chat({"tokens": 1})))["stream"]
        assert own != stream
        await first.entries(5)
        # The server that made the tokens sees what its clients do.
        for found in (stream, own):
            assert (await ask(path.url, "GET", f"/v1/streams/{found}?live=none", **bearer(KEY))).status == 200
        assert (await ask(path.url, "DELETE", f"/v1/streams/{stream}", **bearer(KEY))).status == 200


# -- over WebSocket ------------------------------------------------------------------------------------


def offering(url: str, *subprotocols: str, **options: Any) -> connect:
    target = url.replace("http", "ws", 1) + "/v1/ws/stream"
    return connect(
        target, subprotocols=[Subprotocol(name) for name in subprotocols], compression=None, proxy=None, **options
    )


async def test_token_travels_as_a_subprotocol_that_is_not_echoed(path: GatewayPath) -> None:
    token = await token_of(path)
    async with offering(path.url, SUBPROTOCOL, f"holdfast.token.{token}", origin=ORIGIN) as socket:
        assert socket.subprotocol == SUBPROTOCOL
        assert socket.response is not None
        assert token not in str(socket.response.headers)
        session = Session(socket)
        await session.send(type="hello", version=1)
        await session.expect("welcome")
        await session.create("r-1", chat({"tokens": 3}))
        entries, _ = await session.read()
        assert content(entries) == answer(3)


@pytest.mark.parametrize("carried", ["", "hft_x", KEY, "a.b.c"], ids=["nothing", "rubbish", "key", "jwt"])
async def test_subprotocol_without_a_good_token_is_refused(path: GatewayPath, carried: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await offering(path.url, SUBPROTOCOL, f"holdfast.token.{carried}")
    assert caught.value.response.status_code == 401
    assert KEY.encode() not in caught.value.response.body


async def test_two_tokens_are_refused(path: GatewayPath) -> None:
    token = await token_of(path)
    with pytest.raises(InvalidStatus) as caught:
        await offering(path.url, f"holdfast.token.{token}", "holdfast.token.x")
    assert caught.value.response.status_code == 400


@pytest.mark.parametrize("name", ["access_token", "token", "t", "x"])
async def test_token_in_the_url_is_refused_and_not_repeated(path: GatewayPath, name: str) -> None:
    token = await token_of(path)
    response = await ask(path.url, "GET", f"/v1/models?{name}={token}", **bearer(KEY))
    assert (response.status, response.error["param"]) == (400, name)
    assert token not in response.body.decode()
    response = await ask(path.url, "GET", f"/v1/models?{token}=1", **bearer(KEY))
    assert response.status == 400
    assert token not in response.body.decode()


async def test_expired_token_of_an_open_session_makes_no_new_requests(path: GatewayPath) -> None:
    token = await token_of(path, expires_in=1)
    async with await Session.open(path.url, additional_headers=bearer(token)) as session:
        stream = (await session.create("r-1", chat({"tokens": 1_000_000, "interval_ms": 50})))["stream"]
        deadline = time.monotonic() + 5
        while (message := await session.receive())["type"] != "error":
            # What runs is still delivered; each entry is an occasion to ask for more.
            assert time.monotonic() < deadline
            assert message["type"] in ("event", "events", "accepted", "end", "attached")
            # But only the long stream's: the answers of new requests would ask for ever more of them.
            if message["type"] in ("event", "events") and message["stream"] == stream:
                await session.send(type="create", request_id=f"r-{time.monotonic()}", request=chat({"tokens": 0}))
        assert message["code"] == "unauthorized"
        await session.send(type="cancel", stream=stream)
    assert (await ask(path.url, "GET", "/v1/models", **bearer(token))).status == 401


# -- forgery -------------------------------------------------------------------------------------------


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def made() -> tuple[ClientTokens, KeyTable, Clock, Principal]:
    """A maker of tokens with its table of keys, clock and caller."""
    table, clock = KeyTable(), Clock()
    principal = Principal("acme", key_id="web", generation=1)
    table.replace("store", KeySet([Key(parse_hash(HASH), principal)], 0))
    return ClientTokens(SECRET, table, clock=clock), table, clock, principal


def test_token_of_another_secret_is_refused(made: tuple[ClientTokens, KeyTable, Clock, Principal]) -> None:
    tokens, table, clock, caller = made
    for secret in (None, SECRET[::-1]):
        other = ClientTokens(secret, table, clock=clock)
        with pytest.raises(Unauthorized, match="signature"):
            tokens.read(other.issue(caller, TokenRequest()).token, None)


def test_token_ends_at_its_time_and_with_its_key(made: tuple[ClientTokens, KeyTable, Clock, Principal]) -> None:
    tokens, table, clock, caller = made
    token = tokens.issue(caller, TokenRequest(subject="ann", expires_in=60)).token
    assert tokens.read(token, None).owner == Owner("acme", "ann")
    clock.now += 60
    with pytest.raises(Unauthorized, match="expired"):
        tokens.read(token, None)
    clock.now -= 60
    table.replace("store", KeySet([], 0))
    with pytest.raises(Unauthorized, match="no longer good"):
        tokens.read(token, None)


def test_token_is_held_to_what_its_key_allows_by_now(
    made: tuple[ClientTokens, KeyTable, Clock, Principal],
) -> None:
    tokens, table, _, caller = made
    wide = tokens.issue(caller, TokenRequest()).token
    narrow = tokens.issue(caller, TokenRequest(models=["a", "b"], max_tokens=50)).token

    def change(**fields: Any) -> None:
        principal = msgspec.structs.replace(caller, **fields)
        table.replace("store", KeySet([Key(parse_hash(HASH), principal)], 0))

    change(scopes=Scopes(models=frozenset({"b", "c"}), max_tokens=100))
    assert tokens.read(wide, None).scopes == Scopes(frozenset({"b", "c"}), 100, is_server=False)
    assert tokens.read(narrow, None).scopes == Scopes(frozenset({"b"}), 50, is_server=False)
    change(scopes=Scopes(models=frozenset({"c"})))
    assert tokens.read(narrow, None).scopes == Scopes(frozenset(), 50, is_server=False), "no model is left"
    change(tenant="other")
    with pytest.raises(Unauthorized, match="no longer good"):
        tokens.read(wide, None)


def test_token_for_one_origin_is_refused_elsewhere(made: tuple[ClientTokens, KeyTable, Clock, Principal]) -> None:
    tokens, _, _, caller = made
    token = tokens.issue(caller, TokenRequest(origin=ORIGIN)).token
    assert tokens.read(token, ORIGIN).tenant == "acme"
    for origin in (None, "https://evil.example", ""):
        with pytest.raises(Forbidden):
            tokens.read(token, origin)


def test_token_of_a_token_is_not_made_and_lives_no_longer_than_its_maker(
    made: tuple[ClientTokens, KeyTable, Clock, Principal],
) -> None:
    tokens, _, clock, caller = made
    token = tokens.issue(caller, TokenRequest()).token
    with pytest.raises(Forbidden):
        tokens.issue(tokens.read(token, None), TokenRequest())
    bearer_of_jwt = Principal("acme", subject="ann", expires=clock.now + 10, scopes=Scopes(is_server=True))
    assert tokens.issue(bearer_of_jwt, TokenRequest()).expires_in == 10
    with pytest.raises(Forbidden):
        tokens.issue(bearer_of_jwt, TokenRequest(subject="bob"))


def forged(
    tokens: ClientTokens,
    *,
    key: bytes | str | None = None,
    algorithm: str = "HS256",
    typ: str | None = "holdfast-client+jwt",
    **changes: Any,
) -> str:
    claims = {"iss": "holdfast", "iat": 1_000_000, "exp": 1_000_300, "ten": "acme", **changes}
    return "hft_" + jwt.encode(
        claims, tokens._key if key is None else key, algorithm=algorithm, headers={"typ": typ}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"x" * 32},
        {"key": "", "algorithm": "none"},
        {"algorithm": "HS384", "key": b"x" * 48},
        {"typ": "JWT"},
        {"typ": None},
        {"iss": "https://idp.example"},
        {"ten": 1},
        {"exp": "never"},
        {"exp": 1_000_000},
        {"kid": "nobody"},
    ],
)
def test_forged_token_is_refused(
    made: tuple[ClientTokens, KeyTable, Clock, Principal], changes: dict[str, Any]
) -> None:
    tokens, *_ = made
    assert tokens.read(forged(tokens), None).tenant == "acme"
    with pytest.raises(Unauthorized) as caught:
        tokens.read(forged(tokens, **changes), None)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "token", ["hft_", "hft_.", "hft_..", "hft_a.b.c", "hft_\xff.\xff.\xff", "hft_" + "e30." * 3]
)
def test_rubbish_is_no_token(made: tuple[ClientTokens, KeyTable, Clock, Principal], token: str) -> None:
    with pytest.raises(Unauthorized):
        made[0].read(token, None)


def test_token_has_one_spelling(made: tuple[ClientTokens, KeyTable, Clock, Principal]) -> None:
    tokens, _, _, caller = made
    token = tokens.issue(caller, TokenRequest()).token
    assert tokens.read(token, None).tenant == caller.tenant
    for respelt in (token + "=", token + "==", token.replace(".", "=.", 1), token + ".", token + "\n"):
        with pytest.raises(Unauthorized):
            tokens.read(respelt, None)


def test_changed_token_is_refused(made: tuple[ClientTokens, KeyTable, Clock, Principal]) -> None:
    tokens, _, _, caller = made
    token = tokens.issue(caller, TokenRequest()).token
    for index in range(len(client_tokens.PREFIX), len(token), 7):
        changed = token[:index] + ("A" if token[index] != "A" else "B") + token[index + 1 :]
        with pytest.raises(Unauthorized):
            tokens.read(changed, None)


def test_repr_of_an_issued_token_holds_no_token(made: tuple[ClientTokens, KeyTable, Clock, Principal]) -> None:
    issued = made[0].issue(made[3], TokenRequest())
    assert issued.token not in repr(issued)


# -- origins and CORS ----------------------------------------------------------------------------------


async def test_page_of_another_origin_is_refused_whatever_its_key(path: GatewayPath) -> None:
    headers = {"origin": "https://evil.example", **bearer(KEY)}
    for response in (
        await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}), **headers),
        await ask(path.url, "OPTIONS", COMPLETIONS, access_control_request_method="POST", **headers),
    ):
        assert (response.status, response.error["code"]) == (403, "forbidden")
        assert "access-control-allow-origin" not in response.headers
    with pytest.raises(InvalidStatus) as caught:
        await dial(path.url, origin="https://evil.example", additional_headers=bearer(KEY))
    assert caught.value.response.status_code == 403
    assert path.provider.statistics().requests == 0


async def test_listed_page_may_call_and_read_every_answer(path: GatewayPath) -> None:
    headers = {"origin": ORIGIN, **bearer(await token_of(path, origin=ORIGIN))}
    for response, status in [
        (await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}), **headers), 200),
        (await ask(path.url, "POST", COMPLETIONS, b"rubbish", **headers), 400),
        (await ask(path.url, "GET", "/v1/models", origin=ORIGIN), 401),
        (await ask(path.url, "PUT", "/v1/models", b"", origin=ORIGIN), 405),
    ]:
        assert response.status == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["vary"] == "origin"
        assert "holdfast-stream-id" in response.headers["access-control-expose-headers"]
    async with await Session.open(
        path.url, origin=ORIGIN, additional_headers=headers | {"origin": ORIGIN}
    ) as session:
        await session.create("r-1", chat({"tokens": 1}))


async def test_preflight_is_answered_without_a_credential(path: GatewayPath) -> None:
    response = await ask(
        path.url,
        "OPTIONS",
        COMPLETIONS,
        origin=ORIGIN,
        access_control_request_method="POST",
        access_control_request_headers="authorization,content-type,x-stainless-os",
    )
    assert (response.status, response.body) == (204, b"")
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-methods"] == "POST"
    assert response.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert "access-control-allow-credentials" not in response.headers


async def test_server_without_origin_gets_no_cors_headers(path: GatewayPath) -> None:
    response = await ask(path.url, "GET", "/v1/models", **bearer(KEY))
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_contradicting_credentials_are_refused(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http:
        http.send(
            f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
            "authorization: Bearer hf_other\r\n\r\n".encode()
        )
        assert (await http.response()).status == 400


async def test_local_gateway_makes_tokens_and_holds_them_to_their_scope(make_path: MakePath) -> None:
    local = await make_path()
    token = (await ask(local.url, "POST", TOKENS, {"models": ["other"]})).json()["token"]
    response = await ask(local.url, "POST", COMPLETIONS, chat({"tokens": 1}), **bearer(token))
    assert response.status == 403
    assert json.loads(response.body)["error"]["param"] == "model"
