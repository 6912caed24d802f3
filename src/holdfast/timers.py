"""The process's one clock for deadlines: a timing wheel driven by a single loop timer.

An idle connection or a waiting stream costs one wheel entry, not a task or a loop timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast.core.timing_wheel import Timer, TimingWheel

logger = logging.getLogger("holdfast")

#: Callbacks fire at most two of these late, in seconds.
RESOLUTION = 0.05

#: A tick that comes so many seconds late was held up by more than load: the process was stopped, or its machine.
_PAUSE = 1.0


class Deadline:
    """A callback that is due some time. `cancel` is idempotent, and holds even in the turn in which it is due."""

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
    """Calls back after a delay in seconds, never early and at most two ticks late.

    After a pause of the whole process what is due waits for one more tick, so that what has arrived meanwhile is
    read first: peers are not to be blamed for our own silence.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._wheel: TimingWheel[Deadline] = TimingWheel(resolution=RESOLUTION)
        self._tick: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        #: The loop's clock, in seconds.
        self.now = self._loop.time

    def after(self, delay: float, callback: Callable[[], None]) -> Deadline:
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
        """Stop the clock; pending callbacks are not called."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
