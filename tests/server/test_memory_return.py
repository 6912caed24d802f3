"""Memory is given back when a burst is over, and is not searched for again and again."""

from __future__ import annotations

import pytest

from holdfast.allocator import MemoryReturn

MIB = 2**20


class Memory:
    """A process whose memory the test sets; what `trim` frees goes with the next return."""

    def __init__(self) -> None:
        self.resident = 50 * MIB
        self.free = 0
        self.calls: list[str] = []
        self.is_quiet = True
        self.returning = MemoryReturn(
            lambda: self.is_quiet,
            resident=lambda: self.resident,
            collect=lambda: self.calls.append("collect"),
            trim=self._trim,
        )

    def _trim(self) -> None:
        self.calls.append("trim")
        self.resident -= self.free
        self.free = 0

    async def look(self, resident: int | None = None) -> list[str]:
        """Return what was done."""
        if resident is not None:
            self.resident = resident
        self.calls.clear()
        await self.returning.look()
        return list(self.calls)


@pytest.fixture
def memory() -> Memory:
    return Memory()


async def test_memory_that_has_not_grown_is_left_alone(memory: Memory) -> None:
    assert await memory.look() == []


async def test_memory_that_grows_is_left_alone(memory: Memory) -> None:
    assert await memory.look(100 * MIB) == []
    assert await memory.look(200 * MIB) == []


async def test_memory_that_has_grown_is_returned_once_it_stays(memory: Memory) -> None:
    assert await memory.look(200 * MIB) == []
    memory.free = 140 * MIB
    assert await memory.look() == ["collect", "trim"]
    assert await memory.look() == []


async def test_memory_that_hardly_grows_is_returned(memory: Memory) -> None:
    """Probes that come meanwhile leave a little each time."""
    await memory.look(100 * MIB)
    assert await memory.look(100 * MIB + 50_000) == ["collect", "trim"]


async def test_memory_in_use_is_not_searched_twice(memory: Memory) -> None:
    await memory.look(200 * MIB)
    assert await memory.look() == ["collect", "trim"]
    assert await memory.look() == []
    await memory.look(300 * MIB)
    assert await memory.look() == ["collect", "trim"]


async def test_memory_that_fell_is_searched_once_more(memory: Memory) -> None:
    """It was searched while the burst went on, and stayed; what the burst left is found when it is over."""
    await memory.look(200 * MIB)
    assert await memory.look() == ["collect", "trim"]
    assert await memory.look(100 * MIB) == []
    memory.free = 40 * MIB
    assert await memory.look() == ["collect", "trim"]
    assert await memory.look() == []


async def test_busy_process_is_trimmed_but_not_stopped_for_a_collection(memory: Memory) -> None:
    memory.is_quiet = False
    await memory.look(200 * MIB)
    assert await memory.look() == ["trim"]


async def test_process_itself_can_be_trimmed() -> None:
    await MemoryReturn(lambda: True).look()
