"""Takes a process out of service in order: no new work, running streams to their end, clients told to go."""

from __future__ import annotations

import asyncio
import logging

from holdfast.core.session import messages as m
from holdfast.generation.launcher import Launcher
from holdfast.server.api import Api
from holdfast.server.surfaces.holdfast_session import Sessions
from holdfast.streams.directory import Directory
from holdfast.timers import Timers

logger = logging.getLogger("holdfast")

#: From so many connections on clients are spread over the whole window; fewer get a share of it.
FULL_WINDOW_CONNECTIONS = 1000
#: How often is looked at what still runs, in seconds.
_INTERVAL = 0.1


class Drain:
    """`run` once. Times are in seconds; `window` is the longest over which clients are spread."""

    def __init__(
        self,
        api: Api,
        sessions: Sessions,
        directory: Directory,
        launcher: Launcher,
        timers: Timers,
        *,
        timeout: float,
        window: float,
    ) -> None:
        self._api = api
        self._sessions = sessions
        self._directory = directory
        self._launcher = launcher
        self._timers = timers
        self._timeout = timeout
        self._window = window

    async def run(self) -> bool:
        """Wait until nothing runs and nobody is connected; False where the time was up before."""
        directory, sessions = self._directory, self._sessions
        begun = self._timers.now()
        window = self._window * min(1.0, len(sessions.open) / FULL_WINDOW_CONNECTIONS)
        logger.warning(
            "draining: %d running streams, %d sessions; clients leave within %.1f s",
            directory.unfinished,
            len(sessions.open),
            window,
        )
        self._launcher.drain()
        self._api.drain()
        # Logs are in this process's memory: nobody else could go on with them.
        sessions.drain(m.Goaway("drain", (0, round(window * 1000)), "stay"))
        while True:
            elapsed = self._timers.now() - begun
            if elapsed >= window:
                sessions.close_idle()
            if not (directory.unfinished or sessions.open or self._api.is_busy):
                logger.warning("drained after %.1f s", elapsed)
                return True
            if elapsed >= self._timeout:
                logger.warning("not drained after %.1f s: %d streams are cut off", elapsed, directory.unfinished)
                return False
            await asyncio.sleep(_INTERVAL)
