"""API keys: the table that requests are served from, and the store in its file."""

from __future__ import annotations

import hmac
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.admission.key_rows import read_active
from holdfast.admission.key_store import KeyStore, NewKey
from holdfast.admission.keys import Key, KeySet, KeyTable, create_key, hash_key, parse_hash
from holdfast.admission.principal import Principal
from holdfast.config.limits import LimitConfig
from holdfast.errors import ConfigError, InternalError, InvalidRequest, NotFound


def entry(key_id: str = "k", generation: int = 1, expires: float | None = None) -> tuple[bytes, Key]:
    key, hashed = create_key()
    principal = Principal("t", key_id=key_id, generation=generation)
    return key.encode(), Key(parse_hash(hashed), principal, expires)


# -- the table -----------------------------------------------------------------------------------------


def test_key_is_random_and_hashed() -> None:
    key, hashed = create_key()
    assert key.startswith("hf_")
    assert len(key) == 3 + 43  # 256 bits in base64
    assert hash_key(key) == hashed
    assert create_key()[0] != key


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "G" * 64, "md5:" + "0" * 64])
def test_text_that_is_no_hash_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected `sha256:` and 64 hex digits$"):
        parse_hash(text)


def test_key_is_found_while_it_is_in_the_table() -> None:
    table = KeyTable()
    token, key = entry()
    assert table.find(token, 0) is None
    table.replace("store", KeySet([key], 0))
    assert table.find(token, 0) is key
    assert table.find(token + b"x", 0) is None
    assert table.find(b"", 0) is None
    table.replace("store", KeySet([], 0))
    assert table.find(token, 0) is None


def test_removed_secret_is_reported_once() -> None:
    table = KeyTable()
    removed: list[set[tuple[str, int]]] = []
    table.on_removed = removed.append
    (_, one), (_, two) = entry("one"), entry("two")
    table.replace("store", KeySet([one, two], 0))
    table.replace("config", KeySet([entry("other")[1]], 0))
    table.replace("store", KeySet([two], 0))
    table.replace("store", KeySet([two], 0))
    assert removed == [{("one", 1)}]


def test_expired_secret_is_refused_at_once_and_reported_when_swept() -> None:
    table = KeyTable()
    removed: list[set[tuple[str, int]]] = []
    table.on_removed = removed.append
    token, key = entry(expires=10.0)
    table.replace("store", KeySet([key], 0))
    assert table.find(token, 9.9) is key
    assert table.find(token, 10.0) is None
    assert removed == []
    table.expire(10.0)
    assert removed == [{("k", 1)}]
    assert len(table) == 0


def test_lookup_of_unknown_and_of_wrong_key_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time is one hash, one look into a table by it, and one comparison of whole digests."""
    compared = []
    compare = hmac.compare_digest

    def record(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", record)
    table = KeyTable()
    token, key = entry()
    table.replace("store", KeySet([key], 0))
    for tried in (token, b"x" * len(token), token[:-1] + b"!"):
        compared.clear()
        table.find(tried, 0)
        assert compared == [(32, 32)]


def test_repr_holds_no_hash() -> None:
    _, key = entry()
    assert key.digest.hex() not in repr(key)
    assert repr(key.digest) not in repr(key)


# -- the store -----------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> KeyStore:
    store = KeyStore(tmp_path / "keys.db", clock=clock)
    store.prepare()
    return store


def active(store: KeyStore) -> set[tuple[tuple[str, int], float | None]]:
    with closing(store.connect()) as connection:
        return {(key.id, key.expires) for key in read_active(connection)[0]}


def found(store: KeyStore, key: str) -> Key | None:
    with closing(store.connect()) as connection:
        table = KeyTable()
        table.replace("store", KeySet(read_active(connection)[0], store._clock()))
    return table.find(key.encode(), store._clock())


def principal_of(store: KeyStore, key: str) -> Principal:
    known = found(store, key)
    assert known is not None
    return known.principal


def test_created_key_is_found_with_what_it_may_do(store: KeyStore) -> None:
    limits = LimitConfig(requests_per_minute=60)
    record, key = store.create(NewKey("web", tenant="acme", models=["demo"], max_tokens=5, limits=limits))
    principal = principal_of(store, key)
    assert (principal.tenant, principal.key_id, principal.generation) == ("acme", record.id, 1)
    assert (principal.scopes.models, principal.scopes.max_tokens) == ({"demo"}, 5)
    assert principal.limits == limits
    assert store.list() == [record]
    assert (record.created, record.revoked, record.rotated) == (1000.0, None, None)


def test_file_holds_no_key_and_is_its_owners_alone(store: KeyStore) -> None:
    _, key = store.create(NewKey("web"))
    for path in store.path.parent.iterdir():
        assert key.encode() not in path.read_bytes()
        assert key[3:].encode() not in path.read_bytes()
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o600


def test_revoked_key_is_not_found_and_stays_listed(store: KeyStore, clock: Clock) -> None:
    record, key = store.create(NewKey("web"))
    clock.now = 1001.0
    assert store.revoke(record.id).revoked == 1001.0
    clock.now = 1002.0
    assert store.revoke(record.id).revoked == 1001.0
    assert found(store, key) is None
    assert [listed.revoked for listed in store.list()] == [1001.0]
    with pytest.raises(NotFound):
        store.rotate(record.id, grace=0)


def test_rotated_key_has_both_secrets_until_the_grace_ends(store: KeyStore, clock: Clock) -> None:
    record, old = store.create(NewKey("web"))
    rotated, new = store.rotate(record.id, grace=60)
    assert (rotated.id, rotated.generation, rotated.previous_expires) == (record.id, 2, 1060.0)
    assert principal_of(store, old).generation == 1
    assert principal_of(store, new).generation == 2
    clock.now = 1060.0
    assert found(store, old) is None
    assert found(store, new) is not None
    assert store.list()[0].previous_expires is None


def test_second_rotation_ends_the_oldest_secret(store: KeyStore) -> None:
    record, first = store.create(NewKey("web"))
    _, second = store.rotate(record.id, grace=60)
    _, third = store.rotate(record.id, grace=60)
    assert [found(store, key) is not None for key in (first, second, third)] == [False, True, True]
    assert len(active(store)) == 2


def test_rotation_without_grace_ends_the_old_secret_at_once(store: KeyStore) -> None:
    record, old = store.create(NewKey("web"))
    store.rotate(record.id, grace=0)
    assert found(store, old) is None


@pytest.mark.parametrize("grace", [-1, 31 * 86400, float("nan"), float("inf")])
def test_impossible_grace_is_refused(store: KeyStore, grace: float) -> None:
    record, key = store.create(NewKey("web"))
    with pytest.raises(InvalidRequest):
        store.rotate(record.id, grace=grace)
    assert found(store, key) is not None


@pytest.mark.parametrize(
    "new",
    [
        NewKey(""),
        NewKey("x" * 257),
        NewKey("two\nlines"),
        NewKey("x", tenant="\r"),
        NewKey("x", models=[]),
        NewKey("x", models=["\x1b[31m"]),
        NewKey("x", max_tokens=0),
    ],
)
def test_key_with_impossible_fields_is_refused(store: KeyStore, new: NewKey) -> None:
    with pytest.raises(InvalidRequest):
        store.create(new)
    assert store.list() == []


@pytest.mark.parametrize("call", ["revoke", "rotate"])
def test_unknown_key_is_refused_and_not_repeated_raw(store: KeyStore, call: str) -> None:
    arguments = {"grace": 0.0} if call == "rotate" else {}
    with pytest.raises(NotFound) as caught:
        getattr(store, call)("key_\r\nforged", **arguments)
    assert "\n" not in caught.value.message


def test_store_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"keys\.db: cannot be used as a key store"):
        KeyStore(path).prepare()


def test_store_of_another_version_is_refused(store: KeyStore) -> None:
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="another version"):
        store.prepare()


def test_absent_store_is_made_only_where_asked_for(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    with pytest.raises(ConfigError, match="there is no such key store"):
        store.prepare(create=False)
    assert not store.path.exists()


def test_store_that_breaks_later_is_an_error_of_its_own(store: KeyStore) -> None:
    store.path.write_bytes(b"broken" * 1000)
    with pytest.raises(InternalError, match="the key store cannot be used"):
        store.list()
