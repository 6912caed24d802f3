"""`answer_of`: waits for what a call answers by its callback."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.streams.store import Done, answer_of


async def test_answer_in_the_same_turn_and_in_a_later_one() -> None:
    def at_once(done: Done[int]) -> None:
        done(7)

    def later(done: Done[int]) -> None:
        asyncio.get_running_loop().call_soon(done, 8)

    assert await answer_of(at_once) == 7
    assert await answer_of(later) == 8


async def test_answer_behind_a_cancellation_is_dropped() -> None:
    begun: list[Done[int]] = []
    waiting = asyncio.create_task(answer_of(begun.append))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    begun[0](1)
