"""Corks writes: all that becomes due in one turn of the loop is written at once, per connection."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from holdfast.core.moderation import ReadModeration

logger = logging.getLogger("holdfast")


class Flushable(Protocol):
    def flush(self) -> int:
        """Write what is due, and return about how many events that was."""


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
        events = 0
        for connection in pending:
            try:
                events += connection.flush()
            except Exception:
                # One broken connection must not keep the others from their writes.
                logger.exception("a flush failed")
        # The loop's own clock stands still throughout a turn, and may count in milliseconds.
        hold = self._moderation.hold(events, time.monotonic())
        if hold:
            # What is due is written. To sleep here, rather than in the selector, lets more gather in the sockets;
            # the bound is a millisecond or two, so no timer suffers.
            time.sleep(hold)
