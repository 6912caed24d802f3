"""The process's one clock for deadlines: a timing wheel driven by a single loop timer.

An idle connection or a waiting stream costs one wheel entry, not a task or a loop timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast.core.timing_wheel import Timer, TimingWheel

logger = logging.getLogger("holdfast")

#: Callbacks fire at most this many seconds late.
RESOLUTION = 0.05

Callback = Callable[[], None]


class Timers:
    """Calls back after a delay, never early and at most two ticks late. Times are `loop.time()` seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._wheel: TimingWheel[Callback] = TimingWheel(resolution=RESOLUTION, now=self._loop.time())
        self._tick: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._loop.time()

    def after(self, delay: float, callback: Callback) -> Timer[Callback]:
        """Call `callback` in `delay` seconds; `.cancel()` on the result is idempotent."""
        timer = self._wheel.schedule(callback, self._loop.time() + delay)
        if self._tick is None:
            self._tick = self._loop.call_later(RESOLUTION, self._run)
        return timer

    def _run(self) -> None:
        for callback in self._wheel.advance(self._loop.time()):
            try:
                callback()
            except Exception:
                logger.exception("a timer's callback failed")
        self._tick = self._loop.call_later(RESOLUTION, self._run) if len(self._wheel) else None

    def close(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
