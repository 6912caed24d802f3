"""Corks writes: whatever becomes due in one turn of the loop goes out in one write per connection."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from holdfast.core.moderation import ReadModeration

logger = logging.getLogger("holdfast")


class Flushable(Protocol):
    def flush(self) -> None: ...


class Flusher:
    """Collects connections with something to write and flushes each once, after the turn's reads.

    The caller keeps its own mark, so that it is added once per turn. Under load the next turn is then held back
    for a moment, so that its reads and writes carry more: see `ReadModeration`.
    """

    __slots__ = ("_loop", "_moderation", "_pending")

    def __init__(self, moderation: ReadModeration, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._moderation = moderation
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
                # One broken connection must not keep the others from their writes.
                logger.exception("a flush failed")
        hold = self._moderation.hold(len(pending), self._loop.time())
        if hold:
            # What is due is written. To sleep here, rather than in the selector, lets more gather in the sockets;
            # the bound is a millisecond, so no timer suffers.
            time.sleep(hold)
