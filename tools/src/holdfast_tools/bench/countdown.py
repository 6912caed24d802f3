"""Waiting for the last of several things."""

from __future__ import annotations

import asyncio


class Countdown:
    """Counts what is still expected; `wait` returns when nothing is left."""

    def __init__(self) -> None:
        self.left = 0
        self._nothing_left = asyncio.Event()
        self._nothing_left.set()

    def expect(self, count: int) -> None:
        """Expect so many more."""
        self.left += count
        if self.left:
            self._nothing_left.clear()

    def count(self) -> None:
        """Take note of one; of no effect where none is expected."""
        if self.left:
            self.left -= 1
            if not self.left:
                self._nothing_left.set()

    async def wait(self, timeout: float) -> None:
        """Wait until nothing is left. Raises TimeoutError after so many seconds."""
        async with asyncio.timeout(timeout):
            await self._nothing_left.wait()
