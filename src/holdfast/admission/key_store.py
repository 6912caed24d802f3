"""Keys in an SQLite file, which the command line, the admin API and any number of gateways use at once.

All calls block on the disk. A gateway makes them in a thread, and looks keys up in its `KeyTable`. The file holds
hashes, never keys.

Its journal is a rollback journal, not a write-ahead log: all that is committed is in the one file, and a network
file system can hold it. A log would keep the newest keys beside the file while a gateway runs, and copies would
lack them. What a log is good at, many writers, a key store does not have.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from holdfast.admission.key_rows import BadKey, KeyRecord, encode, read_active, read_record
from holdfast.admission.keys import create_key
from holdfast.admission.principal import is_name
from holdfast.config.limits import LimitConfig
from holdfast.errors import ConfigError, InternalError, InvalidRequest, NotFound

logger = logging.getLogger("holdfast")

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
        """Create the file, or only check it if `create` is false. Raises `ConfigError` if it cannot be used.

        A file that everybody may read or write ceases to be one.
        """
        try:
            if create:
                # Created here and not by SQLite, which would give it the permissions of the umask.
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            elif not self.path.is_file():
                raise ConfigError(f"{self.path}: there is no such key store; `holdfast keys create` makes one")
            _close_to_others(self.path)
            with closing(self.connect()) as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                _use_rollback_journal(connection)
                if version == 0:
                    self._make_tables(connection)
                else:
                    check_version(connection, self.path)
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(f"{self.path}: cannot be used as a key store: {exc}") from exc

    def inspect(self) -> list[BadKey]:
        """Read the file and change nothing; return the keys that are left out. Raises `ConfigError`."""
        try:
            with closing(self.connect()) as connection:
                if self.path.stat().st_size == 0:
                    return []  # `prepare` makes the tables in an empty file
                check_version(connection, self.path)
                return read_active(connection)[1]
        except sqlite3.Error as exc:
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
        # Any lower level may lose the last commit, such as a revocation, when the power fails.
        connection.execute("PRAGMA synchronous = EXTRA")
        # What is no UTF-8 spoils its own row, not the whole query: surrogates are not printable.
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
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
                    encode(new.models),
                    new.max_tokens,
                    encode(new.limits),
                    now,
                ),
            )
            connection.execute("INSERT INTO secrets VALUES (?, ?, 1, ?, NULL)", (hashed, key_id, now))
            record = read_record(connection, key_id, self._clock())
        return record, key

    def backup(self, target: Path) -> None:
        """Write a consistent copy of the file, also while others write. Raises `InvalidRequest` if there is one.

        The copy appears under its name when it is complete and on the disk.
        """
        if target.exists():
            raise InvalidRequest(f"{target} exists already; a backup overwrites nothing")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            try:
                with self._using() as source, closing(sqlite3.connect(part, isolation_level=None)) as copy:
                    source.backup(copy)
                    _use_rollback_journal(copy)
                    (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
                    if verdict != "ok":
                        raise InternalError(f"the key store is damaged: {verdict}")
                part.rename(target)
            finally:
                part.unlink(missing_ok=True)
            _sync_directory(target.parent)
        except OSError as exc:
            raise InternalError(f"{target}: cannot be written: {exc.strerror or exc}") from exc

    def list(self) -> list[KeyRecord]:
        """Return all keys, including revoked ones, in the order in which they were created."""
        with self._using() as connection:
            ids = [row[0] for row in connection.execute("SELECT id FROM keys ORDER BY created, id")]
            return [read_record(connection, key_id, self._clock()) for key_id in ids]

    def revoke(self, key_id: str) -> KeyRecord:
        """Revoke a key for good. Idempotent. Raises `NotFound`."""
        with self._writing() as connection:
            read_record(connection, key_id, self._clock())
            connection.execute(
                "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (self._clock(), key_id)
            )
            return read_record(connection, key_id, self._clock())

    def rotate(self, key_id: str, *, grace: float) -> tuple[KeyRecord, str]:
        """Give a key a new secret. The previous one stays valid for `grace` seconds; older ones end at once.

        Returns the record, and the new key. Raises `NotFound`, also for a revoked key, and `InvalidRequest`.
        """
        if not 0 <= grace <= MAX_GRACE:
            raise InvalidRequest(f"`grace` must be 0 to {MAX_GRACE:.0f} seconds", param="grace")
        key, hashed = create_key()
        now = self._clock()
        with self._writing() as connection:
            record = read_record(connection, key_id, self._clock())
            if record.revoked is not None:
                raise NotFound("this key is revoked; create another one")
            connection.execute(
                "DELETE FROM secrets WHERE key_id = ? AND generation < ?", (key_id, record.generation)
            )
            connection.execute("UPDATE secrets SET expires = ? WHERE key_id = ?", (now + grace, key_id))
            connection.execute(
                "INSERT INTO secrets VALUES (?, ?, ?, ?, NULL)", (hashed, key_id, record.generation + 1, now)
            )
            return read_record(connection, key_id, self._clock()), key


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `ConfigError` for a file of another version of Holdfast, or of another program."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION:
        raise ConfigError(f"{path}: is a key store of another version of Holdfast ({version})")


def _use_rollback_journal(connection: sqlite3.Connection) -> None:
    """See above. A file that an older version has made with a log keeps it until nobody else has it open."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete":
        return
    connection.execute(
        "PRAGMA busy_timeout = 0"
    )  # nobody is waited for: the next one who opens the file tries too
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT * 1000:.0f}")


def _close_to_others(path: Path) -> None:
    """Take the permissions from everybody else; those of a group may be meant. Say what cannot be mended."""
    if sys.platform == "win32":
        return
    mode = path.stat().st_mode
    if mode & stat.S_IRWXO:
        try:
            path.chmod(0o600)
        except OSError as exc:
            logger.warning("%s: everybody may use this key store (mode %04o): %s", path, mode & 0o7777, exc)
        else:
            logger.warning("%s: everybody could use this key store (mode %04o); now 0600", path, mode & 0o7777)
    folder = path.absolute().parent
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        logger.warning("%s: everybody may replace the key store in this folder (mode %04o)", folder, mode & 0o7777)


def _sync_directory(folder: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
