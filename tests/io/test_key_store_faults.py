"""A key store that is edited, locked, damaged, lost or copied: it costs what is hit, no more, and is said."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from holdfast.admission import key_watcher
from holdfast.admission.key_store import KeyStore, NewKey
from holdfast.admission.keys import create_key
from holdfast.cli import main
from holdfast.config.auth import AuthConfig
from holdfast.config.limits import LimitConfig
from holdfast.errors import ConfigError
from holdfast.logs import AUDIT
from tests.io.test_audit import events
from tests.io.test_security_keys import ADMIN, ADMIN_HASH, COMPLETIONS, KEYS, bearer, becomes, status
from tests.support.gateway_client import ask, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    store = KeyStore(tmp_path / "keys.db")
    store.prepare()
    return store


@pytest.fixture
async def stored(make_path: MakePath, store: KeyStore) -> GatewayPath:
    return await make_path(auth=AuthConfig(key_store=str(store.path), admin_key=ADMIN_HASH))


def edit(store: KeyStore, statement: str, *values: object) -> None:
    """Do what somebody with an editor for SQLite may do."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute(statement, values)


async def key_store_state(path: GatewayPath) -> dict[str, object]:
    response = await ask(path.url, "GET", "/readyz")
    assert response.status == 200
    state: dict[str, object] = response.json()["sources"]["key_store"]
    return state


# -- rows without sense --------------------------------------------------------------------------------

BAD_ROWS = {
    "models that are no JSON": ("UPDATE keys SET models = ? WHERE id = ?", "gpt-4o", "models"),
    "models of another type": ("UPDATE keys SET models = ? WHERE id = ?", "{}", "models"),
    "no model at all": ("UPDATE keys SET models = ? WHERE id = ?", "[]", "models"),
    "limit that there is not": ("UPDATE keys SET limits = ? WHERE id = ?", '{"request_per_minute": 1}', "limits"),
    "limits nested without end": ("UPDATE keys SET limits = ? WHERE id = ?", "[" * 100_000, "limits"),
    "negative bound": ("UPDATE keys SET max_tokens = ? WHERE id = ?", -1, "max_tokens"),
    "hash of another kind": ("UPDATE secrets SET hash = ? WHERE key_id = ?", "md5:1", "hash"),
    "tenant with a line feed": ("UPDATE keys SET tenant = ? WHERE id = ?", "a\nINFO forged", "tenant"),
    "no tenant": ("UPDATE keys SET tenant = ? WHERE id = ?", "", "tenant"),
    "tenant that is no UTF-8": ("UPDATE keys SET tenant = CAST(? AS TEXT) WHERE id = ?", b"\xff", "tenant"),
}


@pytest.mark.parametrize(("statement", "value", "column"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
async def test_bad_row_costs_its_own_key_and_is_named(
    stored: GatewayPath,
    store: KeyStore,
    caplog: pytest.LogCaptureFixture,
    statement: str,
    value: object,
    column: str,
) -> None:
    record, spoilt = store.create(NewKey("spoilt", models=["demo"]))
    await becomes(stored, spoilt, 200)
    edit(store, statement, value, record.id)
    await becomes(stored, spoilt, 401)
    _, later = store.create(NewKey("later"))
    await becomes(stored, later, 200)
    (line,) = [text for text in caplog.messages if "left out" in text]
    assert record.id in line
    assert column in line
    listed = (await ask(stored.url, "GET", KEYS, **ADMIN)).json()["data"]
    assert listed[0]["id"] == record.id
    # It can be ended like any other.
    assert (await ask(stored.url, "DELETE", f"{KEYS}/{record.id}", **ADMIN)).status == 200


@pytest.mark.parametrize(
    ("statement", "column"),
    [
        ("UPDATE keys SET limits = '[' WHERE id = ?", "limits"),
        ("UPDATE secrets SET hash = 'md5:1' WHERE key_id = ? AND expires IS NULL", "hash"),
    ],
)
def test_list_says_which_key_is_left_out(
    store: KeyStore, capsys: pytest.CaptureFixture[str], statement: str, column: str
) -> None:
    record, _ = store.create(NewKey("web"))
    store.rotate(record.id, grace=60)
    edit(store, statement, record.id)
    assert main(["keys", "list", "--store", str(store.path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(record.id)]
    assert f"left out: {column}" in line


# -- a file that is lost, damaged or locked ------------------------------------------------------------


def vanish(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(b"rubbish" * 10_000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_another(path: Path) -> None:
    other = path.with_name("other.db")
    with closing(sqlite3.connect(other, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 7")
    other.rename(path)


@pytest.mark.parametrize("harm", [vanish, damage, empty, replace_by_another])
async def test_lost_store_leaves_the_known_keys_and_is_told(
    stored: GatewayPath, store: KeyStore, caplog: pytest.LogCaptureFixture, harm: object, tmp_path: Path
) -> None:
    _, key = store.create(NewKey("web"))
    await becomes(stored, key, 200)
    saved = tmp_path / "saved.db"
    store.backup(saved)
    assert callable(harm)
    harm(store.path)
    await eventually(lambda: "cannot be read" in caplog.text)
    assert await status(stored, key) == 200
    assert await status(stored, create_key()[0]) == 401
    state = await key_store_state(stored)
    assert (state["stale"], state["reason"]) == (True, "the key store cannot be read")
    assert str(store.path) not in json.dumps(state)
    saved.rename(store.path)
    await eventually(lambda: "can be read again" in caplog.text)
    assert await status(stored, key) == 200
    assert "stale" not in await key_store_state(stored)


async def test_failure_that_lasts_is_said_again(
    make_path: MakePath, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    path = await make_path(auth=AuthConfig(key_store=str(store.path)))
    now = time.time()
    watcher = path.gateway.access.watcher
    assert watcher is not None
    watcher._clock = lambda: now
    store.path.unlink()
    await eventually(lambda: caplog.text.count("cannot be read") == 1)
    now += 61
    await eventually(lambda: caplog.text.count("cannot be read") == 2)


@contextmanager
def locked(store: KeyStore) -> Iterator[None]:
    """Lock the file as a writer does while it commits; here it takes its time."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


async def test_locked_store_holds_up_neither_the_loop_nor_the_end(
    stored: GatewayPath, store: KeyStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(key_watcher, "TIMEOUT", 0.5)
    _, key = store.create(NewKey("web"))
    await becomes(stored, key, 200)
    loop = asyncio.get_running_loop()
    with locked(store):
        await eventually(lambda: "cannot be read" in caplog.text)
        slowest = 0.0
        for _ in range(50):
            start = loop.time()
            assert await status(stored, key) == 200
            slowest = max(slowest, loop.time() - start)
            await asyncio.sleep(0.01)
        assert slowest < 0.4, "SQLite would wait for five seconds"
        response = await ask(stored.url, "POST", KEYS, {"name": "late"}, **ADMIN)
        assert (response.status, response.error["code"]) == (503, "overloaded")
        start = loop.time()
        await stored.gateway.aclose()
        assert loop.time() - start < 2.0


@pytest.mark.parametrize(("grace", "left"), [(0, 401), (60, 200)])
async def test_secret_that_was_replaced_is_refused_where_the_store_is_lost_behind_the_change(
    stored: GatewayPath, store: KeyStore, monkeypatch: pytest.MonkeyPatch, grace: float, left: int
) -> None:
    record, first = store.create(NewKey("web"))
    await becomes(stored, first, 200)
    _, second = store.rotate(record.id, grace=600.0)
    await becomes(stored, second, 200)
    used, rotate = stored.gateway.access.store, store.rotate
    assert used is not None

    def rotate_and_lose(key_id: str, *, grace: float) -> object:
        done = rotate(key_id, grace=grace)
        store.path.unlink()
        return done

    monkeypatch.setattr(used, "rotate", rotate_and_lose)
    answer = await ask(stored.url, "POST", f"{KEYS}/{record.id}/rotate", {"grace": grace}, **ADMIN)
    assert answer.status == 200
    assert await status(stored, first) == 401
    assert await status(stored, second) == left


async def test_rows_of_other_types_cost_their_own_keys(
    stored: GatewayPath, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite holds the columns to their types only as long as nobody makes the tables anew."""
    good, key = store.create(NewKey("good"))
    spoilt, other = store.create(NewKey("spoilt"))
    await becomes(stored, other, 200)
    edit(store, "CREATE TABLE loose AS SELECT * FROM keys")
    edit(store, "UPDATE loose SET tenant = NULL WHERE id = ?", spoilt.id)
    edit(store, "PRAGMA foreign_keys = OFF")
    edit(store, "DROP TABLE keys")
    edit(store, "ALTER TABLE loose RENAME TO keys")
    await becomes(stored, other, 401)
    await becomes(stored, key, 200)
    assert f"{spoilt.id!r}: Expected `str`, got `null` - at `$.tenant`" in caplog.text
    store.revoke(good.id)
    await becomes(stored, key, 401)


# -- copies --------------------------------------------------------------------------------------------


async def test_plain_copy_of_a_store_in_use_has_the_newest_key(stored: GatewayPath, store: KeyStore) -> None:
    made = (await ask(stored.url, "POST", KEYS, {"name": "web"}, **ADMIN)).json()
    copy = store.path.with_name("copy.db")
    await asyncio.to_thread(os.system, f"cp '{store.path}' '{copy}'")
    assert [record.id for record in KeyStore(copy).list()] == [made["id"]]


async def test_store_of_an_older_version_loses_its_log_at_the_start(make_path: MakePath, store: KeyStore) -> None:
    edit(store, "PRAGMA journal_mode = WAL")
    _, key = store.create(NewKey("web"))
    path = await make_path(auth=AuthConfig(key_store=str(store.path)))
    assert await status(path, key) == 200
    assert sorted(file.name for file in store.path.parent.glob("keys.db*")) == ["keys.db"]


async def test_store_with_a_log_that_others_use_is_used_as_it_is(make_path: MakePath, store: KeyStore) -> None:
    edit(store, "PRAGMA journal_mode = WAL")
    with closing(store.connect()) as other:
        other.execute("SELECT * FROM keys").fetchall()
        start = time.monotonic()
        path = await make_path(auth=AuthConfig(key_store=str(store.path)))
        assert time.monotonic() - start < 4.0
        _, key = store.create(NewKey("web"))
        await becomes(path, key, 200)


def test_backup_is_complete_private_and_overwrites_nothing(
    store: KeyStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(store, "PRAGMA journal_mode = WAL")
    with closing(store.connect()) as other:  # keeps the log where it is
        other.execute("SELECT * FROM keys").fetchall()
        record, _ = store.create(NewKey("web"))
        target = tmp_path / "backup.db"
        assert main(["keys", "backup", "--store", str(store.path), str(target)]) == 0
    assert "a copy of 1 keys" in capsys.readouterr().err
    assert [copied.id for copied in KeyStore(target).list()] == [record.id]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert main(["keys", "backup", "--store", str(store.path), str(target)]) == 2
    assert "overwrites nothing" in capsys.readouterr().err
    assert main(["keys", "backup", "--store", str(store.path), str(tmp_path / "no" / "x.db")]) == 2
    assert sorted(file.name for file in tmp_path.glob("*backup*")) == ["backup.db"]


# -- permissions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o600), (0o666, 0o600), (0o640, 0o640), (0o600, 0o600)])
def test_store_ceases_to_be_everybodys(
    store: KeyStore, caplog: pytest.LogCaptureFixture, before: int, after: int
) -> None:
    store.path.chmod(before)
    store.prepare()
    assert stat.S_IMODE(store.path.stat().st_mode) == after
    assert ("everybody could use this key store" in caplog.text) == (before != after)


def test_folder_in_which_everybody_may_replace_the_store_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    KeyStore(folder / "keys.db").prepare()
    assert "everybody may replace the key store" in caplog.text
    caplog.clear()
    folder.chmod(0o1777)  # with the sticky bit only owners rename their files
    KeyStore(folder / "keys.db").prepare()
    assert caplog.text == ""


async def test_store_that_is_made_at_the_start_is_told(
    make_path: MakePath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await make_path(auth=AuthConfig(key_store=str(tmp_path / "new.db")))
    assert "there was no key store; an empty one was made" in caplog.text
    assert await status(path, "hf_any") == 401


def test_store_of_another_version_is_refused(store: KeyStore) -> None:
    edit(store, "PRAGMA user_version = 2")
    with pytest.raises(ConfigError, match="another version"):
        store.prepare()


async def test_limits_that_change_in_the_store_are_in_force(stored: GatewayPath, store: KeyStore) -> None:
    record, key = store.create(NewKey("web", limits=LimitConfig(requests_per_minute=1)))
    await becomes(stored, key, 200)

    async def asked() -> int:
        body = chat({"tokens": 1})
        return (await ask(stored.url, "POST", COMPLETIONS, body, **bearer(key))).status

    assert [await asked(), await asked()] == [200, 429]
    edit(store, "UPDATE keys SET limits = ? WHERE id = ?", '{"requests_per_minute": 100}', record.id)
    async with asyncio.timeout(2):
        while await asked() != 200:
            pass


# -- the audit log -------------------------------------------------------------------------------------


async def test_changes_over_http_are_told_with_their_actor(
    stored: GatewayPath, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AUDIT)
    body = {"name": "web", "tenant": "acme", "limits": {"requests_per_minute": 5}}
    made = (await ask(stored.url, "POST", KEYS, body, **ADMIN)).json()
    rotated = (await ask(stored.url, "POST", f"{KEYS}/{made['id']}/rotate", {"grace": 7}, **ADMIN)).json()
    await ask(stored.url, "DELETE", f"{KEYS}/{made['id']}", **ADMIN)
    (created,) = events(caplog, "key_created")
    assert (created["actor"], created["address"], created["key"]) == ("admin", "127.0.0.1", made["id"])
    assert (created["tenant"], created["limits"]["requests_per_minute"]) == ("acme", 5)
    assert [event["grace"] for event in events(caplog, "key_rotated")] == [7]
    assert [event["key"] for event in events(caplog, "key_revoked")] == [made["id"]]
    for secret in (made["key"], rotated["key"]):
        assert secret not in caplog.text


async def test_changes_by_other_processes_are_told(
    stored: GatewayPath, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AUDIT)
    record, _ = store.create(NewKey("web"))
    await eventually(lambda: events(caplog, "keys_changed") == [{"added": [record.id]}])
    store.rotate(record.id, grace=60)
    await eventually(lambda: events(caplog, "keys_changed")[1:] == [{"changed": [record.id]}])
    edit(store, "UPDATE keys SET tenant = 'other' WHERE id = ?", record.id)
    await eventually(lambda: events(caplog, "keys_changed")[2:] == [{"changed": [record.id]}])
    store.revoke(record.id)
    await eventually(lambda: events(caplog, "keys_changed")[3:] == [{"ended": [record.id]}])


async def test_change_of_many_keys_names_every_one(
    stored: GatewayPath, store: KeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, AUDIT)
    ids = {store.create(NewKey("web"))[0].id for _ in range(20)}

    def named(what: str) -> set[str]:
        return {key_id for event in events(caplog, "keys_changed") for key_id in event.get(what, ())}

    await eventually(lambda: named("added") == ids)
    edit(store, "UPDATE keys SET tenant = 'other'")
    await eventually(lambda: named("changed") == ids)
