"""Keys that come and go while the gateway runs: from the command line, and over the admin API."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.admission.key_store import KeyStore, NewKey
from holdfast.admission.keys import create_key, hash_key
from holdfast.cli import main
from holdfast.config import parse
from holdfast.config.auth import AuthConfig
from holdfast.errors import ConfigError
from holdfast.streams.stream import Stream
from tests.support.gateway_client import Http, Session, ask, chat, read_stream, whole
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

COMPLETIONS = "/v1/chat/completions"
ADMIN_KEY, ADMIN_HASH = create_key()
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
KEYS = "/v1/admin/keys"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    store = KeyStore(tmp_path / "keys.db")
    store.prepare()
    return store


@pytest.fixture
async def stored(make_path: MakePath, store: KeyStore) -> GatewayPath:
    return await make_path(auth=AuthConfig(key_store=str(store.path), admin_key=ADMIN_HASH))


async def status(path: GatewayPath, key: str) -> int:
    return (await ask(path.url, "GET", "/v1/models", **bearer(key))).status


async def becomes(path: GatewayPath, key: str, expected: int, *, within: float = 1.0) -> None:
    """The key gets this status within a second, as is promised."""
    start = time.monotonic()
    while await status(path, key) != expected:
        assert time.monotonic() - start < within, f"{key[:6]} did not get {expected}"
        await asyncio.sleep(0.01)


# -- another process writes ----------------------------------------------------------------------------


async def test_key_made_by_another_process_is_in_force_within_a_second(
    stored: GatewayPath, store: KeyStore
) -> None:
    made = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "holdfast.cli", "keys", "create", "web", "--store", str(store.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    key = made.stdout.strip()
    assert key.startswith("hf_")
    assert key not in made.stderr
    await becomes(stored, key, 200)


async def test_revoked_key_ends_its_sessions_and_requests_within_a_second(
    stored: GatewayPath, store: KeyStore
) -> None:
    record, key = store.create(NewKey("web"))
    other_record, other = store.create(NewKey("other"))
    await becomes(stored, key, 200)
    async with (
        await Session.open(stored.url, additional_headers=bearer(key)) as session,
        await Session.open(stored.url, additional_headers=bearer(other)) as bystander,
    ):
        await session.create("r-1", chat({"tokens": 1_000_000, "interval_ms": 5}))
        start = time.monotonic()
        store.revoke(record.id)
        assert await session.closed() == (4401, "unauthorized")
        assert time.monotonic() - start < 1.0
        assert await status(stored, key) == 401
        await bystander.create("r-1", chat({"tokens": 1}))
    assert await status(stored, other) == 200
    assert other_record.revoked is None


#: More than a test waits for, with the first entry at once.
LONG = {"tokens": 1_000_000, "interval_ms": 20}


def running(path: GatewayPath) -> list[Stream]:
    return path.gateway.directory.running()


async def test_revoked_key_ends_its_sse_answer_within_a_second(stored: GatewayPath, store: KeyStore) -> None:
    record, key = store.create(NewKey("web"))
    _, other = store.create(NewKey("other"))
    await becomes(stored, key, 200)
    async with await Http.open(stored.url) as http, await Http.open(stored.url) as bystander:
        http.request("POST", COMPLETIONS, chat(LONG), **bearer(key))
        bystander.request("POST", COMPLETIONS, chat(LONG), **bearer(other))
        events, others = http.events(), bystander.events()
        for reader, stream in ((http, events), (bystander, others)):
            assert (await reader.head()).status == 200
            await anext(stream)
        start = time.monotonic()
        store.revoke(record.id)
        *_, last = [event async for event in events]
        assert time.monotonic() - start < 1.0
        error = json.loads(last.data)["error"]
        assert (error["code"], last.id) == ("unauthorized", "")
        assert "revoked" in error["message"]
        await eventually(lambda: len(running(stored)) == 1)  # nobody reads it any more
        await anext(others)
        # The connection itself is as good as any.
        assert (await http.ask("GET", "/v1/models", **bearer(other))).status == 200


async def test_revoked_key_leaves_a_generation_that_may_go_on_without_readers(
    stored: GatewayPath, store: KeyStore
) -> None:
    record, key = store.create(NewKey("web", tenant="acme"))
    _, other = store.create(NewKey("other", tenant="acme"))
    await becomes(stored, key, 200)
    async with await Http.open(stored.url) as http:
        body = chat({"tokens": 60, "interval_ms": 20})
        http.request("POST", COMPLETIONS, body, holdfast_on_disconnect="continue", **bearer(key))
        stream_id = (await http.head()).headers["holdfast-stream-id"]
        store.revoke(record.id)
        *_, last = [event async for event in http.events()]
        assert json.loads(last.data)["error"]["code"] == "unauthorized"
    whole(await read_stream(stored.url, stream_id, **bearer(other)))


async def test_revoked_key_ends_its_reading_of_a_stream_without_an_end(
    stored: GatewayPath, store: KeyStore
) -> None:
    record, key = store.create(NewKey("web"))
    await becomes(stored, key, 200)
    async with await Session.open(stored.url, additional_headers=bearer(key)) as session:
        accepted = await session.create("r-1", chat(LONG))
        async with await Http.open(stored.url) as http:
            http.request("GET", f"/v1/streams/{accepted['stream']}", **bearer(key))
            assert (await http.head()).status == 200
            start = time.monotonic()
            store.revoke(record.id)
            names = set()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):  # noqa: PT012 - it is a loop
                async for event in http.events():
                    names.add(event.event)
            assert names <= {""}
            assert time.monotonic() - start < 1.0


async def test_revoked_key_ends_its_waits_for_an_answer_within_a_second(
    stored: GatewayPath, store: KeyStore
) -> None:
    """Whole answers, long polls, and SSE before the first entry: nothing was sent yet, so it is a 401."""
    record, key = store.create(NewKey("web"))
    await becomes(stored, key, 200)
    silent = {"tokens": 2, "ttft_ms": 3_600_000}
    async with (
        await Http.open(stored.url) as whole_answer,
        await Http.open(stored.url) as early,
        await Http.open(stored.url) as poll,
    ):
        whole_answer.request("POST", COMPLETIONS, chat(silent, stream=False), **bearer(key))
        early.request("POST", COMPLETIONS, chat(silent), **bearer(key))
        await eventually(lambda: len(running(stored)) == 2)
        target = f"/v1/streams/{running(stored)[0].id}?live=long-poll&timeout=60"
        poll.request("GET", target, **bearer(key))
        await eventually(lambda: max(stream.reader_count for stream in running(stored)) == 2)
        start = time.monotonic()
        store.revoke(record.id)
        for http in (whole_answer, early, poll):
            response = await http.response()
            assert (response.status, response.error["code"]) == (401, "unauthorized")
        assert time.monotonic() - start < 1.0
        await eventually(lambda: not running(stored))


async def test_rotated_key_keeps_its_sessions_until_the_grace_ends(stored: GatewayPath, store: KeyStore) -> None:
    record, old = store.create(NewKey("web"))
    await becomes(stored, old, 200)
    async with await Session.open(stored.url, additional_headers=bearer(old)) as session:
        _, new = store.rotate(record.id, grace=1.5)
        await becomes(stored, new, 200)
        assert await status(stored, old) == 200
        async with await Session.open(stored.url, additional_headers=bearer(new)) as renewed:
            assert await session.closed() == (4401, "unauthorized")
            assert await status(stored, old) == 401
            await renewed.create("r-1", chat({"tokens": 1}))


async def test_replaced_file_is_followed(stored: GatewayPath, store: KeyStore, tmp_path: Path) -> None:
    _, old = store.create(NewKey("old"))
    await becomes(stored, old, 200)
    copy = KeyStore(tmp_path / "copy.db")
    copy.prepare()
    _, new = copy.create(NewKey("new"))
    for suffix in ("-wal", "-shm"):
        store.path.with_name(store.path.name + suffix).unlink(missing_ok=True)
    copy.path.rename(store.path)
    await becomes(stored, new, 200, within=2.0)
    assert await status(stored, old) == 401


async def test_unreadable_store_leaves_the_keys_as_they_were_and_is_logged_once(
    stored: GatewayPath, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    _, key = store.create(NewKey("web"))
    await becomes(stored, key, 200)
    hidden = store.path.with_name("hidden.db")
    with caplog.at_level(logging.WARNING, logger="holdfast"):
        store.path.rename(hidden)
        await eventually(lambda: "cannot be read" in caplog.text, "the error")
        assert await status(stored, key) == 200
        hidden.rename(store.path)
        await eventually(lambda: "can be read again" in caplog.text, "the recovery")
    assert caplog.text.count("cannot be read") == 1
    assert await status(stored, key) == 200


async def test_empty_store_lets_nobody_in(stored: GatewayPath) -> None:
    for headers in ({}, bearer("hf_wrong")):
        assert (await ask(stored.url, "GET", "/v1/models", **headers)).status == 401
    # The admin is known, and may ask for no model.
    assert (await ask(stored.url, "GET", "/v1/models", **ADMIN)).json()["data"] == []


async def test_limits_of_a_stored_key_hold(stored: GatewayPath) -> None:
    limits = {"requests_per_minute": 1}
    made = (await ask(stored.url, "POST", KEYS, {"name": "web", "limits": limits}, **ADMIN)).json()
    statuses = [
        (await ask(stored.url, "POST", COMPLETIONS, chat({"tokens": 1}), **bearer(made["key"]))).status
        for _ in range(2)
    ]
    assert statuses == [200, 429]


# -- the admin API -------------------------------------------------------------------------------------


async def test_admin_creates_lists_rotates_and_revokes(stored: GatewayPath) -> None:
    made = await ask(stored.url, "POST", KEYS, {"name": "web", "tenant": "acme", "models": ["demo"]}, **ADMIN)
    assert (made.status, made.headers["cache-control"]) == (201, "no-store")
    key, key_id = made.json()["key"], made.json()["id"]
    assert await status(stored, key) == 200  # at once
    listed = await ask(stored.url, "GET", KEYS, **ADMIN)
    assert [(item["id"], item["name"], item["tenant"]) for item in listed.json()["data"]] == [
        (key_id, "web", "acme")
    ]
    rotated = await ask(stored.url, "POST", f"{KEYS}/{key_id}/rotate", {"grace": 0}, **ADMIN)
    assert await status(stored, key) == 401
    assert await status(stored, rotated.json()["key"]) == 200
    revoked = await ask(stored.url, "DELETE", f"{KEYS}/{key_id}", **ADMIN)
    assert revoked.json()["revoked"] is not None
    assert await status(stored, rotated.json()["key"]) == 401
    for answer in (listed, revoked, await ask(stored.url, "GET", KEYS, **ADMIN)):
        for secret in (key, rotated.json()["key"], "sha256:", ADMIN_KEY):
            assert secret not in answer.body.decode()


async def test_admin_api_takes_the_admin_key_alone(stored: GatewayPath, store: KeyStore) -> None:
    _, key = store.create(NewKey("web"))
    await becomes(stored, key, 200)
    for headers in ({}, bearer(key), bearer(ADMIN_HASH), bearer(ADMIN_KEY[:-1]), {"x-api-key": "hf_wrong"}):
        for method, target in [
            ("GET", KEYS),
            ("POST", KEYS),
            ("DELETE", f"{KEYS}/x"),
            ("POST", f"{KEYS}/x/rotate"),
        ]:
            response = await ask(stored.url, method, target, {"name": "mine"}, **headers)
            assert (response.status, response.error["code"]) == (401, "unauthorized")
    assert [record.name for record in store.list()] == ["web"]


async def test_admin_api_is_not_there_without_its_key(make_path: MakePath, store: KeyStore) -> None:
    path = await make_path(auth=AuthConfig(key_store=str(store.path)))
    assert (await ask(path.url, "GET", KEYS, **ADMIN)).status == 404


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"name": 1}', b'{"name": "a\\nb"}', b'{"name": "x", "role": "root"}', b"\xff{"]
)
async def test_malformed_key_is_refused(stored: GatewayPath, store: KeyStore, body: bytes) -> None:
    response = await ask(stored.url, "POST", KEYS, body, **ADMIN)
    assert (response.status, response.error["code"]) == (400, "invalid_request")
    assert store.list() == []


async def test_large_request_for_a_key_is_refused_before_it_is_decoded(stored: GatewayPath) -> None:
    body = b'{"models": [%b]}' % b",".join([b'"m"'] * 70_000)
    response = await ask(stored.url, "POST", KEYS, body, **ADMIN)
    assert (response.status, response.error["code"]) == (413, "payload_too_large")


async def test_unknown_key_of_the_admin_api_is_not_found(stored: GatewayPath) -> None:
    for method, target in [("DELETE", f"{KEYS}/key_no"), ("POST", f"{KEYS}/key_no/rotate")]:
        assert (await ask(stored.url, method, target, **ADMIN)).status == 404


# -- the command line ----------------------------------------------------------------------------------


def test_command_line_manages_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "keys.db")]
    assert main(["keys", "create", "web", *store, "--model", "demo", "--limit", "requests_per_minute=5"]) == 0
    key = capsys.readouterr().out.strip()
    assert main(["keys", "list", *store]) == 0
    listing = capsys.readouterr().out
    key_id = listing.splitlines()[1].split()[0]
    assert "web" in listing
    assert key not in listing
    assert main(["keys", "rotate", key_id, *store, "--grace", "10"]) == 0
    assert capsys.readouterr().out.strip() not in ("", key)
    assert main(["keys", "revoke", key_id, *store]) == 0
    assert main(["keys", "list", *store]) == 0
    assert "revoked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "a\nb"],
        ["create", "web", "--limit", "nonsense=1"],
        ["create", "web", "--limit", "requests_per_minute=x"],
        ["revoke", "key_no"],
        ["rotate", "key_no"],
        ["rotate", "key_no", "--grace", "-1"],
    ],
)
def test_wrong_use_of_a_store_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    store = tmp_path / "keys.db"
    KeyStore(store).prepare()
    assert main(["keys", *arguments, "--store", str(store)]) == 2
    assert capsys.readouterr().err.startswith("holdfast: ")
    assert KeyStore(store).list() == []


# -- the configuration ---------------------------------------------------------------------------------

SECRET = "s3cret-" * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[server]\nhost = "0.0.0.0"', "there are no"),
        (f'[keys."a\\nb"]\nhash = "{ADMIN_HASH}"\ntenant = "t"', "expected printable names"),
        (f'[keys.a]\nhash = "{ADMIN_HASH}"\ntenant = "t\\r"', "expected printable names"),
        (f'[keys."sub:ann"]\nhash = "{ADMIN_HASH}"', "begins with `sub:`"),
        (f'[auth]\nkey_store = "k.db"\nadmin_key = "{SECRET}"', "auth.admin_key: expected at least 32"),
        (f'[keys.a]\nhash = "{ADMIN_HASH}"\n[auth]\nadmin_key = "{ADMIN_HASH}"', "keys.a.hash: is that of"),
        (f'[keys.a]\nhash = "{hash_key(SECRET * 2)}"\n[auth]\nadmin_key = "{SECRET * 2}"', "keys.a.hash: is"),
        (f'[auth]\ntoken_secret = "{SECRET}"', "auth.token_secret: expected at least 32"),
        ('[server]\nallowed_origins = ["https://app.example/"]', "allowed_origins[0]: expected scheme"),
        ('[server]\nallowed_origins = ["app.example"]', "allowed_origins[0]: expected scheme"),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"', "either jwks_url or jwks_file"),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_url = "http://idp.example/k"', "expected https"),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_url = "file:///etc/passwd"', "expected https"),
        ('[auth.jwt]\nissuer = "i"\naudience = []\njwks_file = "k"', "at least one audience"),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_file = "k"\nalgorithms = ["HS256"]', "algorithms"),
        ('[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_file = "k"\nalgorithms = ["none"]', "algorithms"),
    ],
)
def test_configuration_that_cannot_be_safe_is_refused_without_its_secrets(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in caught.value.message
    assert SECRET not in caught.value.message


def test_repr_of_the_configuration_holds_no_secret() -> None:
    config = parse(f'[auth]\nkey_store = "k"\nadmin_key = "{SECRET * 2}"\ntoken_secret = "{SECRET * 2}"')
    assert SECRET not in repr(config)
