"""Keeps a `KeyTable` up to date with a key store that other processes write to."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable

from holdfast.admission.key_store import KeyStore, read_active
from holdfast.admission.keys import KeySet, KeyTable
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: Seconds between two checks of the file, so that a revoked key is refused well within a second.
POLL_INTERVAL = 0.25
_SOURCE = "store"


class KeyWatcher:
    """Checks whether the file has changed, and if so reads it in a thread.

    The check is `PRAGMA data_version`, which reads a counter in shared memory and takes the loop about 10 µs.
    While the file cannot be read, the keys stay as they were last read.
    """

    def __init__(
        self, store: KeyStore, table: KeyTable, timers: Timers, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._table = table
        self._timers = timers
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)
        self._version = -1
        self._timer: Deadline | None = None
        self._reading: asyncio.Task[None] | None = None
        self._is_failing = False
        self._is_closed = False

    def start(self) -> None:
        """Read the keys once, blocking, and watch the file from then on. Raises `ConfigError`."""
        self._store.prepare()
        self._apply(*self._read())
        self._timer = self._timers.after(POLL_INTERVAL, self._poll)

    async def refresh(self) -> None:
        """Read the file now. On return, the table has every change that was committed before the call."""
        if self._reading is not None:
            await asyncio.wait([self._reading])  # it may have begun before the change
        if self._reading is None and not self._is_closed:
            self._start_reading()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def aclose(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reading is not None:
            await asyncio.wait([self._reading])
        self._disconnect()

    def _poll(self) -> None:
        if self._is_closed:
            return
        self._timer = self._timers.after(POLL_INTERVAL, self._poll)
        self._table.expire(self._clock())
        if self._reading is not None:
            return  # the connection is in use
        try:
            is_changed = self._is_failing or self._is_replaced() or self._data_version() != self._version
        except (OSError, sqlite3.Error):
            is_changed = True  # reading it reports what is wrong
        if is_changed:
            self._start_reading()

    def _start_reading(self) -> None:
        self._reading = asyncio.get_running_loop().create_task(self._reload(), name="key store")

    async def _reload(self) -> None:
        try:
            keys, version = await asyncio.to_thread(self._read)
        except (OSError, sqlite3.Error, ValueError) as exc:
            if not self._is_failing:
                logger.error("%s: cannot be read, the keys stay as they were: %s", self._store.path, exc)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.warning("%s: can be read again", self._store.path)
            self._is_failing = False
            self._apply(keys, version)
        finally:
            self._reading = None

    def _apply(self, keys: KeySet, version: int) -> None:
        self._version = version
        self._table.replace(_SOURCE, keys)

    def _read(self) -> tuple[KeySet, int]:
        if self._connection is not None and self._is_replaced():
            self._disconnect()
        if self._connection is None:
            self._connection = self._store.connect()
            self._file = self._identity()
        # The version is read first: so the next check sees a commit between the two.
        version = self._data_version()
        return KeySet(read_active(self._connection), self._clock()), version

    def _data_version(self) -> int:
        if self._connection is None:
            return -1
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

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
