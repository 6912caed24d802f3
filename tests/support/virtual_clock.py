"""A clock that a test moves on: hours of silence in milliseconds."""

from __future__ import annotations

import asyncio


class VirtualClock:
    """Lets the loop's clock jump. Between two jumps sockets get the real time that they need.

    Make it before what looks at the clock. uvloop's clock cannot be moved.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._offset = 0.0
        real = loop.time
        loop.time = lambda: real() + self._offset  # type: ignore[method-assign]

    def jump(self, seconds: float) -> None:
        """Move the time on, within this call."""
        self._offset += seconds

    async def pass_time(self, seconds: float, *, step: float) -> None:
        while seconds > 0:
            self.jump(min(step, seconds))
            seconds -= step
            # A ping goes out, is answered, and the answer is read: each a few turns of the loop.
            for _ in range(20):
                await asyncio.sleep(0)
            await asyncio.sleep(0.003)
