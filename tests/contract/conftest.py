"""The stores that the suite is run against."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from holdfast.streams.memory_store import MemoryStore
from holdfast.streams.store import LogStore
from holdfast.timers import Timers
from tests.support.stores import LateStore


def memory(timers: Timers) -> LogStore:
    return MemoryStore(timers, is_shared=True)


def late_memory(timers: Timers) -> LogStore:
    return LateStore(memory(timers), asyncio.get_running_loop().call_soon)


STORES: dict[str, Callable[[Timers], LogStore]] = {"memory": memory, "late memory": late_memory}


@pytest.fixture
async def timers() -> Timers:
    return Timers()


@pytest.fixture(params=list(STORES))
async def store(request: pytest.FixtureRequest, timers: Timers) -> LogStore:
    """A shared store, as one process sees it; its answers may come in a later turn."""
    return STORES[request.param](timers)
