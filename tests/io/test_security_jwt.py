"""Tokens of an external issuer: what is accepted, and every forgery that is known of JWTs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import EllipsisType
from typing import Any, cast

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from websockets.exceptions import InvalidStatus

from holdfast.admission.jwks import parse_jwks
from holdfast.app import Gateway
from holdfast.config import Config
from holdfast.config.auth import AuthConfig, JwtConfig
from holdfast.errors import ConfigError
from tests.support.gateway_client import Session, ask, chat, dial
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

ISSUER, AUDIENCE = "https://idp.example", "holdfast"
COMPLETIONS = "/v1/chat/completions"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PRIVATE: dict[str, PrivateKey] = {"RS256": RSA, "ES256": EC, "EdDSA": ED}
ALGORITHMS = list(PRIVATE)


def public_jwk(algorithm: str, key: PrivateKey, **fields: Any) -> dict[str, Any]:
    maker: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[algorithm]
    return {**json.loads(maker.to_jwk(key.public_key())), "kid": algorithm, "use": "sig", **fields}


def jwks(*keys: dict[str, Any] | int) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


ALL_KEYS = [public_jwk(algorithm, key) for algorithm, key in PRIVATE.items()]


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 60, **changes}
    return {name: value for name, value in made.items() if value is not ...}


def token(
    algorithm: str = "ES256",
    *,
    key: PrivateKey | None = None,
    kid: str | EllipsisType = ...,
    headers: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    header = {"kid": algorithm if kid is ... else kid, **(headers or {})}
    return jwt.encode(
        claims(**changes), PRIVATE[algorithm] if key is None else key, algorithm=algorithm, headers=header
    )


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def by_hand(header: dict[str, Any], body: dict[str, Any] | list[Any], secret: bytes) -> str:
    """A token as no library would make it: HMAC with whatever bytes."""
    signed = f"{part(json.dumps(header).encode())}.{part(json.dumps(body).encode())}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


@pytest.fixture
async def make_issued(make_path: MakePath, tmp_path: Path) -> MakePath:
    """Make a gateway that takes the tokens of one issuer, whose keys are in a file."""

    async def make(*, keys: list[dict[str, str]] | None = None, **settings: Any) -> GatewayPath:
        file = tmp_path / "jwks.json"
        file.write_bytes(jwks(*(ALL_KEYS if keys is None else keys)))
        config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file), **settings)
        return await make_path(auth=AuthConfig(jwt=config))

    return make


@pytest.fixture
async def issued(make_issued: MakePath) -> GatewayPath:
    return await make_issued()


async def status(path: GatewayPath, text: str) -> int:
    return (await ask(path.url, "GET", "/v1/models", **bearer(text))).status


# -- what is accepted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_token_of_the_issuer_is_accepted(issued: GatewayPath, algorithm: str) -> None:
    assert await status(issued, token(algorithm)) == 200
    assert await status(issued, token(algorithm, aud=["other", AUDIENCE])) == 200
    async with await Session.open(issued.url, additional_headers=bearer(token(algorithm))) as session:
        await session.create("r-1", chat({"tokens": 1}))


async def test_clock_of_the_issuer_may_differ_a_little(issued: GatewayPath) -> None:
    now = int(time.time())
    assert await status(issued, token(exp=now - 10)) == 200
    assert await status(issued, token(nbf=now + 10, iat=now + 10)) == 200


async def test_subjects_are_tenants_of_their_own(issued: GatewayPath) -> None:
    ann, bob = bearer(token(sub="ann")), bearer(token(sub="bob"))
    created = await ask(issued.url, "POST", COMPLETIONS, chat({"tokens": 1}), **ann)
    target = f"/v1/streams/{created.headers['holdfast-stream-id']}?live=none"
    assert (await ask(issued.url, "GET", target, **ann)).status == 200
    foreign = await ask(issued.url, "GET", target, **bob)
    unknown = await ask(issued.url, "GET", f"/v1/streams/st_{'0' * 32}?live=none", **bob)
    assert (foreign.status, foreign.headers, foreign.body) == (404, unknown.headers, unknown.body)


async def test_tenant_claim_names_the_tenant_and_must_be_there(make_issued: MakePath) -> None:
    path = await make_issued(tenant_claim="org")
    server = bearer(token(sub="backend", org="acme", scope="holdfast:server"))
    assert (await ask(path.url, "GET", "/v1/models", **server)).status == 200
    for org in (..., "", 1, None, "a\nb", ["acme"]):
        response = await ask(path.url, "GET", "/v1/models", **bearer(token(org=org)))
        assert (response.status, response.error["code"]) == (403, "forbidden")


@pytest.mark.parametrize("scope", ["openid holdfast:model:small email", ["holdfast:model:small"]])
async def test_scopes_narrow_what_is_allowed(issued: GatewayPath, scope: list[str] | str) -> None:
    narrow = bearer(token(scope=scope))
    assert (await ask(issued.url, "GET", "/v1/models", **narrow)).json()["data"] == []
    response = await ask(issued.url, "POST", COMPLETIONS, chat({"tokens": 1}), **narrow)
    assert (response.status, response.error["param"]) == (403, "model")


async def test_misspelt_scope_is_refused_and_not_ignored(issued: GatewayPath) -> None:
    for scope in ("holdfast:modle:small", "holdfast:max_tokens:x", "holdfast:max_tokens:0", "holdfast:"):
        assert await status(issued, token(scope=scope)) == 403


async def test_only_a_servers_token_sees_operations_and_makes_client_tokens(issued: GatewayPath) -> None:
    for scope, expected in [("", 403), ("holdfast:server", 200)]:
        headers = bearer(token(scope=scope))
        assert (await ask(issued.url, "GET", "/v1/pool", **headers)).status == expected
        assert (await ask(issued.url, "POST", "/v1/client_tokens", {}, **headers)).status == expected


# -- what is refused -----------------------------------------------------------------------------------

NOW = int(time.time())
PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DER = RSA.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
STRANGER = ec.generate_private_key(ec.SECP256R1())


def respelt(text: str) -> str:
    """Change the bits of the last character that stand for no bit of the signature."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + letters[letters.index(text[-1]) ^ 1]


FORGED = {
    "expired": lambda: token(exp=NOW - 3600),
    "not yet valid": lambda: token(nbf=NOW + 3600),
    "issued in the future": lambda: token(iat=NOW + 3600),
    "wrong audience": lambda: token(aud="other"),
    "no audience": lambda: token(aud=...),
    "wrong issuer": lambda: token(iss="https://evil.example"),
    "no issuer": lambda: token(iss=...),
    "no expiry": lambda: token(exp=...),
    "no subject": lambda: token(sub=...),
    "empty subject": lambda: token(sub=""),
    "subject with line feed": lambda: token(sub="ann\nINFO forged"),
    "unknown signer": lambda: token(key=STRANGER),
    "unknown key id": lambda: token(kid="nobody"),
    "key id of another key": lambda: token("ES256", kid="RS256"),
    "key id that is no text": lambda: by_hand({"alg": "ES256", "kid": {}}, claims(), b"x"),
    "alg none": lambda: jwt.encode(claims(), cast(Any, None), algorithm="none", headers={"kid": "RS256"}),
    "alg none in capitals": lambda: (
        by_hand({"alg": "NONE", "kid": "RS256"}, claims(), b"").rpartition(".")[0] + "."
    ),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "HS256 with the public key as PEM": lambda: by_hand({"alg": "HS256", "kid": "RS256"}, claims(), PEM),
    "HS256 with the public key as DER": lambda: by_hand({"alg": "HS256", "kid": "RS256"}, claims(), DER),
    "HS256 signature under the name RS256": lambda: by_hand({"alg": "RS256", "kid": "RS256"}, claims(), PEM),
    "HS256 with an empty key": lambda: by_hand({"alg": "HS256", "kid": ""}, claims(), b""),
    "algorithm that is not configured": lambda: token("RS256", headers={"alg": "PS256"}),
    "key in the header": lambda: token(key=STRANGER, headers={"jwk": public_jwk("ES256", STRANGER)}),
    "key URL in the header": lambda: token(key=STRANGER, headers={"jku": "http://127.0.0.1:1/"}),
    "critical header": lambda: token(headers={"crit": ["exp"], "exp": 1}),
    "claims that are a list": lambda: by_hand({"alg": "ES256", "kid": "ES256"}, [], b"x"),
    "time that is text": lambda: token(nbf="soon"),
    "time that is not finite": lambda: token(nbf=10**400),
    "too long": lambda: token(filler="x" * 9000),
    "not base64": lambda: "a.b.c",
    "padding behind the signature": lambda: token() + "==",
    "padding behind the claims": lambda: "{}.{}==.{}".format(*token().split(".")),
    "signature written in another way": lambda: respelt(token()),
    "empty parts": lambda: "..",
    "header that is no object": lambda: f"{part(b'[]')}.{part(b'{}')}.x",
    "deep header": lambda: f"{part(b'[' * 3000)}.{part(b'{}')}.x",
}


@pytest.mark.parametrize("forgery", FORGED.values(), ids=FORGED.keys())
async def test_forged_token_is_refused(issued: GatewayPath, forgery: Callable[[], str]) -> None:
    try:
        text = forgery()
    except (TypeError, ValueError, jwt.PyJWTError):  # the library does not sign such a thing: sign it for it
        pytest.fail("the forgery could not be made")
    response = await ask(issued.url, "POST", COMPLETIONS, chat({"tokens": 1}), **bearer(text))
    assert (response.status, response.error["code"]) == (401, "unauthorized"), response.body
    for piece in filter(lambda piece: len(piece) > 8, text.split(".")):
        assert piece not in response.body.decode()
    with pytest.raises(InvalidStatus) as caught:
        await dial(issued.url, additional_headers=bearer(text))
    assert caught.value.response.status_code == 401
    assert issued.provider.statistics().requests == 0


async def test_changed_claims_are_refused(issued: GatewayPath) -> None:
    header, _, signature = token().split(".")
    body = part(json.dumps(claims(sub="root")).encode())
    assert await status(issued, f"{header}.{body}.{signature}") == 401


async def test_client_token_is_no_token_of_the_issuer_nor_the_other_way_round(issued: GatewayPath) -> None:
    server = bearer(token(scope="holdfast:server"))
    made = (await ask(issued.url, "POST", "/v1/client_tokens", {}, **server)).json()["token"]
    assert await status(issued, made) == 200
    assert await status(issued, made.removeprefix("hft_")) == 401
    assert await status(issued, "hft_" + token()) == 401


async def test_algorithms_are_those_of_the_configuration(make_issued: MakePath) -> None:
    path = await make_issued(algorithms=["EdDSA"])
    assert [await status(path, token(algorithm)) for algorithm in ALGORITHMS] == [401, 401, 200]


async def test_token_without_key_id_is_checked_where_one_key_fits(make_issued: MakePath) -> None:
    path = await make_issued(keys=[public_jwk("ES256", EC), public_jwk("EdDSA", ED)])
    assert await status(path, token("ES256", kid="")) == 401
    bare = jwt.encode(claims(), EC, algorithm="ES256")
    assert await status(path, bare) == 200


# -- key sets ------------------------------------------------------------------------------------------


def test_keys_that_are_not_for_us_are_left_out() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    keys = [
        {"kty": "oct", "k": part(b"secret" * 8), "kid": "hmac"},
        public_jwk("RS256", RSA, use="enc"),
        public_jwk("RS256", RSA, alg="RS512"),
        public_jwk("RS256", weak),
        public_jwk("ES256", EC, x="?"),
        json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key())),
        json.loads(ECAlgorithm.to_jwk(EC)),  # a private key was published: it is nobody's any more
        1,
        {},
    ]
    assert parse_jwks(jwks(*keys)) == []
    assert [kid for kid, *_ in parse_jwks(jwks(*keys, public_jwk("EdDSA", ED)))] == ["EdDSA"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"keys": {}}', b"\xff", b"[" * 5000, b'{"keys": null}'])
def test_text_that_is_no_key_set_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        parse_jwks(raw)


async def test_key_file_that_cannot_be_used_keeps_the_gateway_down(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text("{}")
    config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_file=str(file))
    gateway = Gateway(Config(auth=AuthConfig(jwt=config)))
    with pytest.raises(ConfigError, match="jwks_file"):
        await gateway.start()


class Issuer:
    """Publishes keys over HTTP; `gate` holds answers back."""

    def __init__(self) -> None:
        self.body = jwks(*ALL_KEYS)
        self.status = 200
        self.requests = 0
        self.gate = threading.Event()
        self.gate.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.gate.wait(10)
                self.send_response(issuer.status)
                self.send_header("content-length", str(len(issuer.body)))
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                self.wfile.write(issuer.body)

            def log_message(self, *args: str) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def make_fetching(make_path: MakePath, issuer: Issuer) -> MakePath:
    async def make(**settings: Any) -> GatewayPath:
        config = JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=issuer.url, **settings)
        return await make_path(auth=AuthConfig(jwt=config))

    return make


def forget_the_last_fetch(path: GatewayPath) -> None:
    assert path.gateway.access.jwks is not None
    path.gateway.access.jwks._fetched = float("-inf")


async def test_new_key_of_the_issuer_is_fetched_when_a_token_names_it(
    make_fetching: MakePath, issuer: Issuer
) -> None:
    path = await make_fetching()
    new = ec.generate_private_key(ec.SECP256R1())
    issuer.body = jwks(*ALL_KEYS, public_jwk("ES256", new, kid="new"))
    forget_the_last_fetch(path)
    assert await status(path, token(key=new, kid="new")) == 200
    assert issuer.requests == 2


async def test_unknown_keys_cause_one_fetch_in_ten_seconds(make_fetching: MakePath, issuer: Issuer) -> None:
    path = await make_fetching()
    forget_the_last_fetch(path)
    statuses = await asyncio.gather(*(status(path, token(kid=f"made-up-{n}")) for n in range(20)))
    assert statuses == [401] * 20
    assert issuer.requests == 2


async def test_gateway_serves_others_while_keys_are_fetched(make_fetching: MakePath, issuer: Issuer) -> None:
    path = await make_fetching()
    new = ec.generate_private_key(ec.SECP256R1())
    issuer.body = jwks(*ALL_KEYS, public_jwk("ES256", new, kid="new"))
    issuer.gate.clear()
    forget_the_last_fetch(path)
    headers = bearer(token(key=new, kid="new"))
    waiting = asyncio.create_task(ask(path.url, "GET", "/v1/models", **headers))
    session = asyncio.create_task(Session.open(path.url, additional_headers=headers))
    await eventually(lambda: issuer.requests == 2, "the fetch")
    assert await status(path, token()) == 200
    assert not waiting.done()
    assert not session.done()
    issuer.gate.set()
    assert (await waiting).status == 200
    async with await session as opened:
        await opened.create("r-1", chat({"tokens": 1}))


async def test_body_is_left_in_the_socket_while_keys_are_fetched(make_fetching: MakePath, issuer: Issuer) -> None:
    path = await make_fetching()
    new = ec.generate_private_key(ec.SECP256R1())
    issuer.body = jwks(*ALL_KEYS, public_jwk("ES256", new, kid="new"))
    issuer.gate.clear()
    forget_the_last_fetch(path)
    body = json.dumps(chat({"tokens": 1}, stream=False)).encode()
    body = body[:-1] + b" " * (4 << 20) + b"}"
    headers = bearer(token(key=new, kid="new"))
    waiting = asyncio.create_task(ask(path.url, "POST", "/v1/chat/completions", body, **headers))
    await eventually(lambda: issuer.requests == 2, "the fetch")
    for _ in range(50):
        await asyncio.sleep(0.001)
        assert path.gateway.process.budget.used < 2 * 256_000  # what one read brings
    assert not waiting.done()
    issuer.gate.set()
    assert (await waiting).status == 200


async def test_client_that_leaves_while_keys_are_fetched_leaves_nothing(
    make_fetching: MakePath, issuer: Issuer
) -> None:
    path = await make_fetching()
    issuer.gate.clear()
    forget_the_last_fetch(path)
    headers = bearer(token(kid="new"))
    asking = asyncio.create_task(ask(path.url, "POST", "/v1/chat/completions", b"x", **headers))
    await eventually(lambda: issuer.requests == 2, "the fetch")
    asking.cancel()
    path.gateway.peers.abort()
    await eventually(lambda: not path.gateway.peers)
    issuer.gate.set()
    await eventually(lambda: path.gateway.process.budget.used == 0)


async def test_issuer_that_is_down_is_a_passing_failure(
    make_fetching: MakePath, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.status = 503
    path = await make_fetching()
    response = await ask(path.url, "GET", "/v1/models", **bearer(token()))
    assert (response.status, response.error["code"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1
    issuer.status = 200
    forget_the_last_fetch(path)
    assert await status(path, token()) == 200
    assert "cannot be fetched" in caplog.text


async def test_withdrawn_key_is_no_longer_good_after_the_refresh(make_fetching: MakePath, issuer: Issuer) -> None:
    path = await make_fetching(refresh=0.1)
    assert await status(path, token()) == 200
    issuer.body = jwks(public_jwk("EdDSA", ED))
    async with asyncio.timeout(5):
        while await status(path, token()) != 401:
            pass


@pytest.mark.parametrize("fault", ["redirect", "bomb", "rubbish"])
async def test_strange_answer_of_the_issuer_changes_nothing(
    make_fetching: MakePath, issuer: Issuer, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = await make_fetching()
    if fault == "redirect":
        issuer.status = 302
    else:
        issuer.body = b"x" * (2 * 1024 * 1024 if fault == "bomb" else 10)
    forget_the_last_fetch(path)
    assert await status(path, token(kid="made-up")) == 401
    assert issuer.requests == 2
    assert await status(path, token()) == 200
    assert "cannot be fetched" in caplog.text
