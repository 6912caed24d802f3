"""Corks writes: all that becomes due in one turn of the loop is written at once, per connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Protocol

from holdfast.core.moderation import ReadModeration

logger = logging.getLogger("holdfast")

#: Seconds of a turn of the loop, about, for those that have more to write than one write carries.
MORE = 0.004


class Flushable(Protocol):
    def flush(self, *, more: bool = False) -> int:
        """Write what is due, and return about how many events that was.

        It is one write. Who has more calls `add_more`, and is called again with `more`, for several.
        """


class Flusher:
    """Collects connections with something to write and flushes each once, after the turn's reads.

    The caller keeps its own mark, so that it is added once per turn. Under load the next turn is then held back
    for a moment, so that its reads and writes carry more: see `ReadModeration`.

    Those that catch up with long logs go on one after the other, and have together their share of a turn's time.
    """

    __slots__ = ("_loop", "_moderation", "_more", "_pending")

    def __init__(self, moderation: ReadModeration, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._moderation = moderation
        self._pending: list[Flushable] = []
        self._more: deque[Flushable] = deque()

    def add(self, connection: Flushable) -> None:
        pending = self._pending
        if not pending:
            self._loop.call_soon(self._run)
        pending.append(connection)

    def add_more(self, connection: Flushable) -> None:
        """Have a connection go on that has written as much as one write carries. It is added once."""
        more = self._more
        if not more:
            self._loop.call_soon(self._run_more)
        more.append(connection)

    def _run_more(self) -> None:
        more = self._more
        end = time.monotonic() + MORE
        for _ in range(len(more)):
            try:
                more[0].flush(more=True)
            except Exception:
                logger.exception("a flush failed")
            # Not before: while it is there, nobody schedules another run.
            more.popleft()
            if time.monotonic() >= end:
                break
        if more:
            self._loop.call_soon(self._run_more)

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
