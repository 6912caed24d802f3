"""Calls that block: each has its deadline, and one that hangs holds up nothing but those behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from holdfast.admission.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test")
    yield worker
    worker.close()


async def test_call_is_made_in_another_thread_and_its_result_returned(worker: Worker) -> None:
    assert await worker.run(threading.current_thread, timeout=5) is not threading.current_thread()
    assert [await worker.run(lambda: n, timeout=5) for n in range(3)] == [0, 1, 2]  # noqa: B023 - it is awaited


async def test_error_of_a_call_is_raised(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 / 0, timeout=5)
    assert await worker.run(lambda: 1, timeout=5) == 1


async def test_call_that_hangs_ends_by_its_deadline_and_those_behind_it_are_never_made(worker: Worker) -> None:
    gate, made = threading.Event(), []
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"):
        await worker.run(gate.wait, timeout=0.05)
    with pytest.raises(TimeoutError):
        await worker.run(lambda: made.append("late"), timeout=0.05)
    gate.set()
    await worker.run(lambda: made.append("in time"), timeout=5)
    assert made == ["in time"]


async def test_call_whose_caller_is_cancelled_is_not_made(worker: Worker) -> None:
    gate, made = threading.Event(), []
    first = asyncio.create_task(worker.run(gate.wait, timeout=5))
    second = asyncio.create_task(worker.run(lambda: made.append(1), timeout=5))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    assert await first
    assert await worker.run(lambda: made, timeout=5) == []


def test_call_that_outlives_its_loop_harms_nobody(worker: Worker) -> None:
    gate = threading.Event()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await worker.run(gate.wait, timeout=0.01)

    asyncio.run(give_up())
    gate.set()

    async def again() -> int:
        return await worker.run(lambda: 1, timeout=5)

    assert asyncio.run(again()) == 1
