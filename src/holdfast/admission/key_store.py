"""Keys in an SQLite file, which the command line, the admin API and any number of gateways use at once.

All calls block on the disk. A gateway makes them in a thread, and looks keys up in its `KeyTable`. The file holds
hashes, never keys.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from holdfast.admission.keys import Key, create_key, parse_hash
from holdfast.admission.principal import Principal, Scopes, is_name
from holdfast.config.limits import LimitConfig
from holdfast.errors import ConfigError, InternalError, InvalidRequest, NotFound

#: The longest time that the previous secret may stay valid after a rotation, in seconds.
MAX_GRACE = 30 * 86400.0
#: How many seconds a writer waits for another one.
_BUSY_TIMEOUT = 5.0
_VERSION = 1

_SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    models TEXT,
    max_tokens INTEGER,
    limits TEXT,
    created REAL NOT NULL,
    revoked REAL
) STRICT;
CREATE TABLE secrets (
    hash TEXT PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES keys (id),
    generation INTEGER NOT NULL,
    created REAL NOT NULL,
    expires REAL,
    UNIQUE (key_id, generation)
) STRICT;
"""

_ACTIVE = """
SELECT secrets.hash, secrets.generation, secrets.expires,
    keys.id, keys.tenant, keys.models, keys.max_tokens, keys.limits
FROM secrets JOIN keys ON keys.id = secrets.key_id WHERE keys.revoked IS NULL
"""


class KeyRecord(msgspec.Struct, frozen=True):
    """The public part of a key. Times are in Unix seconds.

    `previous_expires` is set while the secret before the last rotation is still valid.
    """

    id: str
    name: str
    tenant: str
    models: list[str] | None
    max_tokens: int | None
    limits: LimitConfig | None
    generation: int
    created: float
    rotated: float | None
    previous_expires: float | None
    revoked: float | None


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The attributes of a key to create. The tenant defaults to the name."""

    name: str
    tenant: str | None = None
    models: list[str] | None = None
    max_tokens: int | None = None
    limits: LimitConfig | None = None

    def check(self) -> None:
        """Check the attributes. Raises `InvalidRequest`, which names the field."""
        if not is_name(self.name):
            raise InvalidRequest("`name` must have 1 to 256 printable characters", param="name")
        if self.tenant is not None and not is_name(self.tenant):
            raise InvalidRequest("`tenant` must have 1 to 256 printable characters", param="tenant")
        if self.models is not None and not (self.models and all(map(is_name, self.models))):
            raise InvalidRequest("`models` must hold at least one model's name", param="models")
        if self.max_tokens is not None and not 1 <= self.max_tokens < 2**53:
            raise InvalidRequest("`max_tokens` must be at least 1", param="max_tokens")


class KeyStore:
    """One file of keys. Each call opens a connection of its own, so it may come from any thread.

    Every call blocks, and raises `InternalError` if the file cannot be used any more.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock

    def prepare(self, *, create: bool = True) -> None:
        """Create the file, or only check it if `create` is false. Raises `ConfigError` if it cannot be used."""
        try:
            if create:
                # Created here and not by SQLite, which would give it the permissions of the umask.
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            elif not self.path.is_file():
                raise ConfigError(f"{self.path}: there is no such key store; `holdfast keys create` makes one")
            with closing(self.connect()) as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    connection.execute("PRAGMA journal_mode = WAL")
                    self._make_tables(connection)
                elif version != _VERSION:
                    raise ConfigError(f"{self.path}: is a key store of another version of Holdfast ({version})")
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(f"{self.path}: cannot be used as a key store: {exc}") from exc

    @staticmethod
    def _make_tables(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have created them first.
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")

    def connect(self) -> sqlite3.Connection:
        """Open a connection, which the caller closes. One thread at a time may use it."""
        uri = f"{self.path.absolute().as_uri()}?mode=rw"  # never creates an empty file
        connection = sqlite3.connect(
            uri, uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        # In WAL mode any lower level may lose the last commits, such as a revocation, when the power fails.
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self.connect()) as connection:
                yield connection
        except sqlite3.Error as exc:
            raise InternalError(f"the key store cannot be used: {exc}") from exc

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection  # closing without COMMIT rolls back
            connection.execute("COMMIT")

    def create(self, new: NewKey) -> tuple[KeyRecord, str]:
        """Create a key. Returns its record, and the key itself, which is not stored. Raises `InvalidRequest`."""
        new.check()
        key, hashed = create_key()
        now = self._clock()
        key_id = "key_" + secrets.token_hex(8)
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
                (
                    key_id,
                    new.name,
                    new.tenant or new.name,
                    _encode(new.models),
                    new.max_tokens,
                    _encode(new.limits),
                    now,
                ),
            )
            connection.execute("INSERT INTO secrets VALUES (?, ?, 1, ?, NULL)", (hashed, key_id, now))
            record = self._record(connection, key_id)
        return record, key

    def list(self) -> list[KeyRecord]:
        """Return all keys, including revoked ones, in the order in which they were created."""
        with self._using() as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM keys ORDER BY created, id")]
            return [self._record(connection, key_id) for key_id in ids]

    def revoke(self, key_id: str) -> KeyRecord:
        """Revoke a key for good. Idempotent. Raises `NotFound`."""
        with self._writing() as connection:
            self._record(connection, key_id)
            connection.execute(
                "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (self._clock(), key_id)
            )
            return self._record(connection, key_id)

    def rotate(self, key_id: str, *, grace: float) -> tuple[KeyRecord, str]:
        """Give a key a new secret. The previous one stays valid for `grace` seconds; older ones end at once.

        Returns the record, and the new key. Raises `NotFound`, also for a revoked key, and `InvalidRequest`.
        """
        if not 0 <= grace <= MAX_GRACE:
            raise InvalidRequest(f"`grace` must be 0 to {MAX_GRACE:.0f} seconds", param="grace")
        key, hashed = create_key()
        now = self._clock()
        with self._writing() as connection:
            record = self._record(connection, key_id)
            if record.revoked is not None:
                raise NotFound("this key is revoked; create another one")
            connection.execute(
                "DELETE FROM secrets WHERE key_id = ? AND generation < ?", (key_id, record.generation)
            )
            connection.execute("UPDATE secrets SET expires = ? WHERE key_id = ?", (now + grace, key_id))
            connection.execute(
                "INSERT INTO secrets VALUES (?, ?, ?, ?, NULL)", (hashed, key_id, record.generation + 1, now)
            )
            return self._record(connection, key_id), key

    def _record(self, connection: sqlite3.Connection, key_id: str) -> KeyRecord:
        row = connection.execute(
            "SELECT id, name, tenant, models, max_tokens, limits, created, revoked FROM keys WHERE id = ?",
            (key_id,),
        ).fetchone()
        if row is None:
            raise NotFound(f"there is no key {key_id[:100]!r}")
        now = self._clock()
        generation, rotated, previous = 1, None, None
        for number, created, expires in connection.execute(
            "SELECT generation, created, expires FROM secrets WHERE key_id = ? ORDER BY generation", (key_id,)
        ):
            if expires is None:
                generation, rotated = number, created if number > 1 else None
            elif expires > now:
                previous = expires
        return KeyRecord(
            id=row[0],
            name=row[1],
            tenant=row[2],
            models=_decode_models(row[3]),
            max_tokens=row[4],
            limits=_decode_limits(row[5]),
            generation=generation,
            created=row[6],
            rotated=rotated,
            previous_expires=previous if row[7] is None else None,
            revoked=row[7],
        )


def read_active(connection: sqlite3.Connection) -> list[Key]:
    """Return the valid keys, for a `KeyTable`. Raises `sqlite3.Error`, or `ValueError` for a row without sense."""
    keys = []
    for hashed, generation, expires, key_id, tenant, models, max_tokens, limits in connection.execute(_ACTIVE):
        allowed = _decode_models(models)
        principal = Principal(
            tenant=tenant,
            key_id=key_id,
            scopes=Scopes(models=None if allowed is None else frozenset(allowed), max_tokens=max_tokens),
            limits=_decode_limits(limits),
            generation=generation,
        )
        keys.append(Key(parse_hash(hashed), principal, expires))
    return keys


def _encode(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _decode_models(text: str | None) -> list[str] | None:
    return None if text is None else msgspec.json.decode(text, type=list[str])


def _decode_limits(text: str | None) -> LimitConfig | None:
    return None if text is None else msgspec.json.decode(text, type=LimitConfig)
