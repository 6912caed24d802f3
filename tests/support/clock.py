"""Virtual time: an event loop whose turns and clock a test takes by hand. No sockets, and nothing ever sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from typing import Any

from holdfast.timers import RESOLUTION

#: How late a callback of `Timers` may be, in seconds.
LATE = 2 * RESOLUTION


class Clock(asyncio.AbstractEventLoop):
    """Runs callbacks, tasks and `Timers(clock)` when the test says so, in the order of a real loop.

    `turn` takes one turn, `settle` all that are due now, `advance` lets time pass. What a callback raises reaches
    the test.
    """

    def __init__(self) -> None:
        self._time = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Clock]:
        """Be this thread's running loop. Tasks that are left at the end are cancelled."""
        asyncio._set_running_loop(self)
        try:
            yield self
            while tasks := asyncio.all_tasks(self):  # the end of one may begin another
                for task in tasks:
                    task.cancel()
                self.settle()
        finally:
            asyncio._set_running_loop(None)

    # -- the test's side --

    def turn(self) -> None:
        """Call what is due. What becomes due meanwhile is the next turn's."""
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def settle(self) -> None:
        """Take turns until nothing is due."""
        while self._ready:
            self.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what falls due on the way, each at its time."""
        end = self._time + seconds
        self.settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._time = max(self._time, when)
            if not timer.cancelled():
                timer._run()
            self.settle()
        self._time = end

    def pass_by(self, seconds: float) -> None:
        """Let so much time pass that whatever `Timers` runs in so many seconds has run."""
        self.advance(seconds + LATE)

    # -- the loop's side --

    def time(self) -> float:
        return self._time

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # asyncio's timer handles tell their loop

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        return asyncio.Task(coro, loop=self, **options)

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "exception" in context:
            raise context["exception"]
        raise AssertionError(context["message"])
