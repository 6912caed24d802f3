"""Runs calls that block, such as reads of a file, on a thread of their own, each under a deadline."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Worker:
    """One thread, which takes its calls in order. Use it from the loop's thread.

    A call that hangs, as on a disk that is gone, holds up neither the loop nor the end of the process: the thread
    is a daemon. Calls behind it fail by their own deadlines and are then never made.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], _T], *, timeout: float) -> _T:
        """Return what `call` returns, or raise what it raises, or `TimeoutError` after so many seconds.

        The deadline and a cancellation do not interrupt a call that has begun: it may still have its effect.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: Exception | None) -> None:
            if outcome.done():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]

        def make() -> None:
            if outcome.cancelled():  # nobody waits for it any more
                return
            result: _T | None = None
            error: Exception | None = None
            try:
                result = call()
            except Exception as exc:  # noqa: BLE001 - it is raised where the call was made
                error = exc
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                pass  # the loop is closed

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._calls.put(make)
        try:
            async with asyncio.timeout(timeout):
                return await outcome
        except TimeoutError as exc:
            raise TimeoutError(f"it took longer than {timeout:g} s") from exc

    def close(self) -> None:
        """End the thread behind the calls that it has. It does not wait for it."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
