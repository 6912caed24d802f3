"""The process's one clock for deadlines: a timing wheel that a single timer of the event loop drives.

An idle connection or a waiting stream costs one entry of the wheel, not a task or a loop timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast.core.timing_wheel import Timer, TimingWheel

logger = logging.getLogger("holdfast")

#: Seconds per tick. Callbacks run at most two ticks late.
RESOLUTION = 0.05

#: If a tick is so many seconds late, the reason is not load: the process, or its machine, was stopped.
_PAUSE = 1.0


class Deadline:
    """A callback with a deadline. `cancel` is idempotent, and works even in the turn in which it is due."""

    __slots__ = ("_callback", "_timer")

    def __init__(self, wheel: TimingWheel[Deadline], when: float, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback
        self._timer: Timer[Deadline] | None = wheel.schedule(self, when)

    def cancel(self) -> None:
        self._callback = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def run(self) -> None:
        callback, self._callback = self._callback, None
        self._timer = None
        if callback is not None:
            callback()


class Timers:
    """Runs callbacks after a delay in seconds, never early and at most two ticks late.

    After a pause of the whole process, due callbacks wait for one more tick, so that the loop first reads what has
    arrived meanwhile. Otherwise peers would time out although it was we who were silent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._wheel: TimingWheel[Deadline] = TimingWheel(resolution=RESOLUTION)
        self._tick: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        #: The loop's clock, in seconds.
        self.now = self._loop.time

    def after(self, delay: float, callback: Callable[[], None]) -> Deadline:
        """Run `callback` in `delay` seconds, unless the returned deadline is cancelled."""
        deadline = Deadline(self._wheel, self._loop.time() + delay, callback)
        if self._tick is None:
            self._schedule(self._run)
        return deadline

    @property
    def pending(self) -> int:
        return len(self._wheel)

    def _schedule(self, tick: Callable[[], None]) -> None:
        self._tick_due = self._loop.time() + RESOLUTION
        self._tick = self._loop.call_later(RESOLUTION, tick)

    def _run(self) -> None:
        if self._loop.time() - self._tick_due >= _PAUSE:
            self._schedule(self._run_due)
        else:
            self._run_due()

    def _run_due(self) -> None:
        for deadline in self._wheel.advance(self._loop.time()):
            try:
                deadline.run()
            except Exception:
                # One broken callback must not stop the clock of all others.
                logger.exception("a timer's callback failed")
        if len(self._wheel):
            self._schedule(self._run)
        else:
            self._tick = None

    def close(self) -> None:
        """Stop the clock. Pending callbacks never run."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
