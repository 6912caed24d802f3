"""Fixtures of the I/O tests: a real gateway in front of a real simulated provider; nothing may be left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from holdfast.app import Gateway
from holdfast.config import Config, ModelConfig, ProviderConfig, ServerConfig, StreamsConfig
from holdfast_tools.simulate.server import SimulatedProvider
from tests.support.gateway_path import GatewayPath, MakePath


@pytest.fixture
async def make_path() -> AsyncIterator[MakePath]:
    """Make gateways with given `server`, `streams`, `provider` and `model` settings; all are closed at the end."""
    paths: list[GatewayPath] = []

    async def make(
        *,
        server: dict[str, object] | None = None,
        streams: dict[str, object] | None = None,
        provider: dict[str, object] | None = None,
        model: dict[str, object] | None = None,
        **config: object,
    ) -> GatewayPath:
        simulated = SimulatedProvider()
        await simulated.start()
        settings = Config(
            server=msgspec.convert({"port": 0, **(server or {})}, ServerConfig),
            streams=msgspec.convert(streams or {}, StreamsConfig),
            providers={
                "sim": msgspec.convert({"base_url": simulated.base_url, **(provider or {})}, ProviderConfig)
            },
            models={"demo": msgspec.convert({"route": ["sim/demo"], **(model or {})}, ModelConfig)},
            **config,  # type: ignore[arg-type]
        )
        gateway = Gateway(settings)
        try:
            await gateway.start()
        except BaseException:
            await simulated.aclose()
            raise
        paths.append(GatewayPath(gateway, simulated))
        return paths[-1]

    yield make
    for path in paths:
        await close_path(path)


async def close_path(path: GatewayPath) -> None:
    """Close, and assert that no task, connection, log, lease or place in the queue is left."""
    await path.gateway.aclose()
    await path.provider.aclose()
    gateway = path.gateway
    assert len(gateway.peers) == 0
    statistics = gateway.directory.statistics()
    assert (statistics.streams, statistics.log_bytes) == (0, 0)
    assert gateway.directory.budget.used == 0, gateway.directory.budget.by_kind
    assert set(gateway.admission.held.values()) == {0}, gateway.admission.held
    assert not any(entry.concurrency.in_flight for entry in gateway.pool_statistics() if entry.concurrency)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for _ in range(100):  # transports close in later turns of the loop
        left = [task for task in left if not task.done()]
        if not left:
            break
        await asyncio.sleep(0.005)
    assert not left, left


@pytest.fixture
async def path(make_path: MakePath) -> GatewayPath:
    """A gateway with default settings."""
    return await make_path()
