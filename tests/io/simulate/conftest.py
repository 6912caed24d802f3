"""Fixtures of the simulated provider's own tests, which run on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from holdfast_tools.simulate import SimulatedProvider
from tests.support.simulate_client import Serve


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], object]]:
    if item.path.name == "test_simulate_command.py":  # the process under test has a loop of its own
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start simulated providers; afterwards nothing of them may be left."""
    providers: list[SimulatedProvider] = []

    async def start(*, ssl_context: object = None, **options: object) -> SimulatedProvider:
        provider = SimulatedProvider(**options)  # type: ignore[arg-type]
        await provider.start(ssl_context=ssl_context)  # type: ignore[arg-type]
        providers.append(provider)
        return provider

    yield start
    for provider in providers:
        await provider.aclose()
        left = provider.statistics()
        assert (left.open_connections, left.open_streams, left.streaming) == (0, 0, 0)
        assert left.requests == left.completed + left.cancelled + left.failed
    if closing := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(closing, timeout=2)  # clients may still be closing their generators
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def provider(serve: Serve) -> SimulatedProvider:
    return await serve()
