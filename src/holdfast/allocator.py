"""Gives memory back to the system behind a burst: the collector and the allocator would keep it for the next one.

CPython looks for cycles when enough was allocated, and glibc returns what is free at the top of its heap alone. So
a process that was busy once stays large for as long as it idles, and nobody can tell that from a leak.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
#: Seconds between two looks.
INTERVAL = 2.0
#: Where memory differs by a larger part than this from one look to the next, it is still being taken or freed.
_MOVES = 0.01
#: A smaller change than this, of what there was after the last return, is not worth the search.
_WORTH = 0.02


class MemoryReturn:
    """Decides when to return memory; `collect` and `trim` do it, `resident` says how much the process has.

    A collection stops the event loop in proportion to what lives, so there is one only where `is_quiet` says that
    little does. To trim does not: it runs in a thread, without the interpreter's lock.
    """

    def __init__(
        self,
        is_quiet: Callable[[], bool],
        *,
        resident: Callable[[], int] | None = None,
        collect: Callable[[], object] = gc.collect,
        trim: Callable[[], object] | None = None,
    ) -> None:
        self._is_quiet = is_quiet
        self._resident = resident or _resident
        self._collect = collect
        self._trim = trim or _trimmer()
        self._last = self._returned = self._resident()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        now = self._resident()
        is_moving, self._last = _differ(now, self._last, _MOVES), now
        # Less than then is a change as well: what had the memory has gone, and may have left more to find.
        if is_moving or not _differ(now, self._returned, _WORTH):
            return
        if self._is_quiet():
            self._collect()
        await asyncio.to_thread(self._trim)
        # What is left is in use: it is not looked for again before that changes.
        self._last = self._returned = self._resident()


def _differ(one: int, other: int, part: float) -> bool:
    return abs(one - other) > part * other


def _resident() -> int:
    """Return the bytes of memory that this process has; 0 where the system does not say so."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _trimmer() -> Callable[[], object]:
    """Return the allocator's function that returns all free pages, or what does nothing where it has none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return lambda: None
    return lambda: trim(0)
