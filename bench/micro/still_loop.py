"""An event loop without a selector, and transports without sockets: what is measured is our code alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any


class StillLoop(asyncio.AbstractEventLoop):
    """Its turns are taken by hand with `turn`, and its clock stands still; timers are taken and never fire.

    What a loop costs by itself is left out: a callback is called, without a handle or a context.
    """

    def __init__(self) -> None:
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._handle = asyncio.Handle(lambda: None, (), self)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be this thread's running loop, for the constructors that ask for it."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def turn(self) -> None:
        """Call what is due. What becomes due meanwhile is the next turn's."""
        ready = self._ready
        for _ in range(len(ready)):
            callback, args = ready.popleft()
            callback(*args)

    def settle(self) -> None:
        """Take turns until nothing is due."""
        while self._ready:
            self.turn()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        self._ready.append((callback, args))
        return self._handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return asyncio.TimerHandle(delay, callback, args, self, context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # asyncio's timer handles tell their loop

    def time(self) -> float:
        return 0.0

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        return asyncio.Task(coro, loop=self, **options)

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        # Without an exception it is about tasks that were pending when a benchmark let go of all its objects.
        if "exception" in context:
            raise RuntimeError(f"a benchmark's callback failed: {context['message']}") from context["exception"]


class CountingTransport(asyncio.Transport):
    """Counts what is written to it, and keeps it where asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.writes = 0
        self.kept: list[bytes] | None = None

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.writes += 1
        self.bytes += len(data)
        if self.kept is not None:
            self.kept.append(bytes(data))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise RuntimeError("the hot path does not pause its provider: the log is full, so something is amiss")

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        raise RuntimeError("a connection of the benchmark was aborted")

    def close(self) -> None:
        raise RuntimeError("a connection of the benchmark was closed")
