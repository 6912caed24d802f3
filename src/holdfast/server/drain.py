"""Takes a process out of service in order: no new work, running streams to their end, clients told to go."""

from __future__ import annotations

import asyncio
import logging

from holdfast.generation.launcher import Launcher
from holdfast.observe.audit import audit
from holdfast.server.peers import Peers
from holdfast.streams.directory import Directory
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: From so many connections on clients are spread over the whole window; fewer get a share of it.
FULL_WINDOW_CONNECTIONS = 1000


class Drain:
    """Waits for what is under way in a process that goes: every end that counts is an event."""

    def __init__(self, peers: Peers, directory: Directory, launcher: Launcher, timers: Timers) -> None:
        self._peers = peers
        self._directory = directory
        self._launcher = launcher
        self._timers = timers
        # Something has ended that might have been the last of its kind.
        self._progress = asyncio.Event()
        self._awaited: Deadline | None = None

    async def run(self, *, timeout: float, window: float) -> bool:
        """Wait until nothing runs and nobody is connected; False where the time was up before.

        Times are in seconds; `window` is the longest over which clients are spread.
        """
        directory, peers = self._directory, self._peers
        begun = self._timers.now()
        conversations = peers.statistics().conversations
        window *= min(1.0, conversations / FULL_WINDOW_CONNECTIONS)
        logger.warning(
            "draining: %d running streams, %d sessions; clients leave within %.1f s",
            directory.unfinished,
            conversations,
            window,
        )
        audit("drain_began", streams=directory.unfinished, sessions=conversations, timeout=timeout)
        self._launcher.drain()
        self._launcher.after_running(self._progress.set)
        peers.on_settled = self._progress.set
        peers.drain(window)
        closing = self._timers.after(window, peers.close_when_idle)
        try:
            async with asyncio.timeout(timeout):
                while self._is_under_way():
                    await self._something_ends()
        except TimeoutError:
            elapsed = self._timers.now() - begun
            logger.warning("not drained after %.1f s: %d streams are cut off", elapsed, directory.unfinished)
            audit("drain_ended", is_complete=False, seconds=round(elapsed, 1), cut_off=directory.unfinished)
            return False
        finally:
            closing.cancel()
            peers.on_settled = None
            if self._awaited is not None:
                self._awaited.cancel()
        elapsed = self._timers.now() - begun
        logger.warning("drained after %.1f s", elapsed)
        audit("drain_ended", is_complete=True, seconds=round(elapsed, 1))
        return True

    def _is_under_way(self) -> bool:
        """Whether to wait on. Streams are counted only where no connection is left to wait for."""
        directory = self._directory
        if self._peers.is_busy:
            return True
        if not directory.unfinished:
            return False
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None
        # An end that a lost reader may come back for: nothing happens when its time is over.
        wait = directory.awaited_until - self._timers.now()
        if wait > 0:
            self._awaited = self._timers.after(wait, self._progress.set)
        return True

    async def finish(self, *, grace: float) -> None:
        """Say goodbye to everybody; before, clients have so many seconds to take what was written to them.

        What still ran must have ended.
        """
        peers = self._peers
        peers.close_when_idle()
        await asyncio.sleep(0)  # the ends are written at the end of this turn
        if grace > 0:
            peers.on_settled = self._progress.set
            try:
                async with asyncio.timeout(grace):
                    while peers.is_busy:
                        await self._something_ends()
            except TimeoutError:
                pass  # whoever has not taken it by now does without
            peers.on_settled = None
        peers.say_goodbye()

    async def _something_ends(self) -> None:
        self._progress.clear()
        await self._progress.wait()
