"""Keeps a `KeyTable` up to date with a key store that other processes write to."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from holdfast.admission.key_rows import BadKey, read_active
from holdfast.admission.key_store import KeyStore, check_version
from holdfast.admission.keys import KeySet, KeyTable
from holdfast.admission.principal import Principal
from holdfast.admission.worker import Worker
from holdfast.errors import ConfigError, Overloaded
from holdfast.observe.audit import audit
from holdfast.observe.freshness import SAY_AGAIN, Freshness, Source
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: Seconds between two checks of the file, so that a revoked key is refused well within a second.
POLL_INTERVAL: Final = 0.25
#: Seconds that a check, a read or a change may take, the wait for another writer included.
TIMEOUT: Final = 10.0
#: Seconds that the end waits for the thread, so that the file is closed.
_LAST_WAIT: Final = 0.5
#: Most keys that are named in one line of the log.
_MAX_NAMED: Final = 10
#: Most keys of a kind in one line of the audit log, which cuts what is longer than `audit.MAX_VALUE`.
_MAX_AUDITED: Final = 8
_SOURCE = "store"

_T = TypeVar("_T")


class _Content:
    """What a read has found, the version of the file that it was, and what differs from the keys before."""

    def __init__(self, keys: KeySet, bad: list[BadKey], version: int, before: KeySet | None) -> None:
        self.keys = keys
        self.bad = bad
        self.version = version
        self.changes = None if before is None else _changes(before, keys)


class KeyWatcher:
    """Checks whether the file has changed, and if so reads it. A thread does both: the disk may be slow, or gone.

    The check is `PRAGMA data_version`, which reads a counter in the file. While the file cannot be read, the keys
    stay as they were last read: `freshness` is told, and the log says so again and again.
    """

    def __init__(
        self,
        store: KeyStore,
        table: KeyTable,
        timers: Timers,
        *,
        freshness: Freshness,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._table = table
        self._timers = timers
        self._freshness = freshness
        self._clock = clock
        self._worker = Worker("key store")
        # The thread's own.
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)
        # What is in force; None where the file must be read, whatever its version.
        self._version: int | None = None
        self._keys: KeySet | None = None
        self._bad: list[BadKey] = []
        self._bad_said = float("-inf")
        self._timer: Deadline | None = None
        self._reading: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Read the keys once, and watch the file from then on. Raises `ConfigError`."""
        try:
            content = await self._worker.run(self._prepare, timeout=TIMEOUT)
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(f"{self._store.path}: cannot be used as a key store: {exc}") from exc
        if content is not None:
            self._apply(content)
        self._timer = self._timers.after(POLL_INTERVAL, self._poll)

    async def run(self, call: Callable[[], _T]) -> _T:
        """Make a call on the store, in its thread. Raises what it raises, or `Overloaded` if it takes too long."""
        try:
            return await self._worker.run(call, timeout=TIMEOUT)
        except TimeoutError as exc:
            raise Overloaded(
                "the key store does not answer; what was asked for may still happen", retry_after=TIMEOUT
            ) from exc

    async def refresh(self) -> bool:
        """Read the file now. On return, the table has every change that was committed before the call.

        False where the file could not be read.
        """
        if self._reading is not None:
            await asyncio.wait([self._reading])  # it may have begun before the change
        if self._reading is None and not self._is_closed:
            self._version = None
            self._start_reading()
        if self._reading is not None:
            await asyncio.wait([self._reading])
        return self._version is not None

    def revoke(self, key_id: str, *, before: int | None = None) -> None:
        """Refuse a key, or its secrets `before` a generation, from now on, also where the file cannot be read."""
        if self._keys is not None:
            self._keys = self._keys.without(key_id, before=before)
            self._table.replace(_SOURCE, self._keys)

    async def aclose(self) -> None:
        """End the watch. A disk that does not answer is not waited for."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        try:
            await self._worker.run(self._disconnect, timeout=_LAST_WAIT)
        except (OSError, sqlite3.Error):
            pass
        self._worker.close()

    # -- on the loop --

    def _poll(self) -> None:
        if self._is_closed:
            return
        self._timer = self._timers.after(POLL_INTERVAL, self._poll)
        self._table.expire(self._clock())
        if self._reading is None:
            self._start_reading()

    def _start_reading(self) -> None:
        self._reading = asyncio.get_running_loop().create_task(self._update(), name="key store")

    async def _update(self) -> None:
        try:
            content = await self._worker.run(partial(self._read, self._version, self._keys), timeout=TIMEOUT)
        except Exception as exc:  # noqa: BLE001 - a supervisor: whatever a damaged file does, it has to be said
            self._version = None
            if self._freshness.failed(
                Source.KEY_STORE, "the key store cannot be read", self._clock(), detail=str(exc)
            ):
                logger.error("%s: cannot be read, the keys stay as they were: %s", self._store.path, exc)
        else:
            if content is not None:
                self._apply(content)
            elif self._bad and self._timers.now() - self._bad_said >= SAY_AGAIN:
                self._say_bad()
        finally:
            self._reading = None

    def _apply(self, content: _Content) -> None:
        self._version = content.version
        if self._freshness.taken(Source.KEY_STORE, self._clock()):
            logger.warning("%s: can be read again", self._store.path)
        if content.changes is None:
            audit("keys_read", keys=len(content.keys.by_digest))
        else:
            _tell(content.changes)
        self._keys = content.keys
        self._table.replace(_SOURCE, content.keys)
        if content.bad != self._bad:
            self._bad = content.bad
            self._say_bad()

    def _say_bad(self) -> None:
        self._bad_said = self._timers.now()
        if self._bad:
            named = "; ".join(f"{bad.id!r}: {bad.problem}" for bad in self._bad[:_MAX_NAMED])
            logger.error("%s: %d secrets are left out: %s", self._store.path, len(self._bad), named)

    # -- in the thread --

    def _prepare(self) -> _Content | None:
        is_new = not self._store.path.exists()
        self._store.prepare()
        if is_new:
            logger.warning("%s: there was no key store; an empty one was made", self._store.path)
        return self._read(None, None)

    def _read(self, known: int | None, before: KeySet | None) -> _Content | None:
        """Read the file if it has another version than the known one. `before` are the keys that are in force."""
        if self._connection is not None and self._is_replaced():
            self._disconnect()
        if self._connection is None:
            connection = self._store.connect()
            try:
                check_version(connection, self._store.path)
                self._file = self._identity()
            except BaseException:
                connection.close()
                raise
            self._connection, known = connection, None
        # The version is read first: so the next check sees a commit between the two.
        version = int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        if version == known:
            return None
        keys, bad = read_active(self._connection)
        return _Content(KeySet(keys, self._clock()), bad, version, before)

    def _identity(self) -> tuple[int, int]:
        status = os.stat(self._store.path)
        return status.st_dev, status.st_ino

    def _is_replaced(self) -> bool:
        """Whether another file, such as a restored backup, now has this name."""
        return self._identity() != self._file

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _changes(before: KeySet, keys: KeySet) -> dict[str, list[str]]:
    """Tell which keys were added, changed (a rotation is a change) and ended."""
    old, new = _newest(before), _newest(keys)
    changed = [key_id for key_id in new.keys() & old.keys() if new[key_id] != old[key_id]]
    return {
        "added": sorted(new.keys() - old.keys()),
        "changed": sorted(changed),
        "ended": sorted(old.keys() - new.keys()),
    }


def _tell(changes: dict[str, list[str]]) -> None:
    """Name every key in the audit log: the command line, which writes the file as well, has none."""
    for start in range(0, max(map(len, changes.values())), _MAX_AUDITED):
        named = {what: ids[start : start + _MAX_AUDITED] or None for what, ids in changes.items()}
        audit("keys_changed", **named)


def _newest(keys: KeySet) -> dict[str, Principal]:
    """Return each key's principal, with its newest secret's generation."""
    newest: dict[str, Principal] = {}
    for (key_id, generation), key in keys.by_id.items():
        if key_id not in newest or newest[key_id].generation < generation:
            newest[key_id] = key.principal
    return newest
