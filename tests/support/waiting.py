"""Waits for what other tasks bring about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(
    condition: Callable[[], object], what: str = "the condition", *, within: float = 10.0
) -> None:
    """Wait until `condition` holds. Only for objects that signal nothing: where an event tells, wait for that."""
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true within {within} s") from None
