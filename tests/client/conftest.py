"""Fixtures for the client's own tests: a gateway whose faults are scripted, and a check that nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast import StreamingAIClient, WebSocketConfig
from tests.support.scripted_gateway import MakeClient, ScriptedGateway


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    """Closed last, after the clients; then no task is left."""
    gateway = ScriptedGateway()
    await gateway.start()
    yield gateway
    await gateway.aclose()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if left:  # callbacks of closed transports take a turn or two of the loop
        await asyncio.wait(left, timeout=1)
    assert [task for task in left if not task.done()] == []


@pytest.fixture
async def make_client(gateway: ScriptedGateway) -> AsyncIterator[MakeClient]:
    """Make clients that wait briefly between attempts; all are closed at the end."""
    clients: list[StreamingAIClient] = []

    def make(*, on_state: Any = None, **settings: Any) -> StreamingAIClient:
        settings = {"base_url": gateway.url, "initial_backoff": 0.001, "max_backoff": 0.01, **settings}
        clients.append(StreamingAIClient(WebSocketConfig(**settings), on_state=on_state))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
def client(make_client: MakeClient) -> StreamingAIClient:
    return make_client()
