"""Corks writes: whatever becomes due in one turn of the loop goes out in one write per connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

logger = logging.getLogger("holdfast")


class Flushable(Protocol):
    def flush(self) -> None: ...


class Flusher:
    """Collects connections with something to write and flushes each once, after the turn's reads.

    The caller keeps its own mark, so that it is added once per turn.
    """

    __slots__ = ("_loop", "_pending")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._pending: list[Flushable] = []

    def add(self, connection: Flushable) -> None:
        pending = self._pending
        if not pending:
            self._loop.call_soon(self._run)
        pending.append(connection)

    def _run(self) -> None:
        pending, self._pending = self._pending, []
        for connection in pending:
            try:
                connection.flush()
            except Exception:
                logger.exception("a flush failed")
