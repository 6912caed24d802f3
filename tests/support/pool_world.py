"""A gateway in front of simulated providers, for tests of the provider's side: streams without any client."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any, Self

import msgspec

from holdfast.app import Gateway
from holdfast.config import Config, ModelConfig, ProviderConfig, ServerConfig, StreamsConfig
from holdfast.core.entries import EndBody
from holdfast.core.log import Cursor
from holdfast.errors import HoldfastError
from holdfast.streams.stream import Stream
from holdfast.upstream.statistics import HealthStatistics, PoolStatistics
from holdfast_tools.simulate import SimulatedProvider
from holdfast_tools.simulate.certificate import context_of, self_signed
from holdfast_tools.simulate.text import text
from tests.support.launching import launch
from tests.support.waiting import eventually

DEADLINE = 10.0
PROTOCOLS = ("http1", "h2c", "h2tls")

#: No repetitions: what one attempt gives is what the stream ends with.
ONCE: dict[str, Any] = {"retry_budget": {"ratio": 0, "floor": 0}}
#: Short times, so that faults show; long enough for a machine that is busy.
QUICK: dict[str, Any] = {
    "timeouts": {"connect": 1.0, "pool": 3.0, "first_byte": 1.0, "idle": 1.0, "total": 30.0},
    "idle_timeout": 0.3,
    "ping_interval": 0.3,
    "ping_timeout": 0.3,
}


@functools.cache
def certificate() -> tuple[bytes, bytes]:
    return self_signed()


@functools.cache
def ca_file() -> str:
    path = Path(tempfile.mkdtemp()) / "ca.pem"
    path.write_bytes(certificate()[0])
    return str(path)


class Running:
    """One stream and its reader, which takes everything at once."""

    def __init__(self, stream: Stream, *, tokens: int, seed: int) -> None:
        self.stream = stream
        self.expected = text(seed, tokens)
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.payloads: list[bytes] = []
        self.cursor = stream.attach(self)

    def wake(self, cursor: Cursor) -> None:
        while cursor.position < cursor.log.next:
            self.payloads += cursor.read_payloads(1 << 20)
        cursor.consume()
        if self.payloads:
            self.begun.set()
        if self.stream.is_ended:
            self.ended.set()

    def position_changed(self, cursor: Cursor) -> None: ...

    def epoch_changed(self, cursor: Cursor) -> None: ...

    def forgotten(self, cursor: Cursor, error: HoldfastError) -> None: ...

    async def first(self) -> Self:
        async with asyncio.timeout(DEADLINE):
            await self.begun.wait()
        return self

    async def end(self) -> EndBody:
        async with asyncio.timeout(DEADLINE):
            await self.ended.wait()
        assert self.stream.end is not None
        return self.stream.end

    async def outcome(self) -> tuple[str, str | None]:
        """Status and error code; the text received must be a beginning of the right one, in any case."""
        end = await self.end()
        received = self.text
        assert self.expected.startswith(received)
        if end.status == "completed":
            assert received == self.expected
        return end.status, None if end.error is None else end.error.code

    @property
    def text(self) -> str:
        received = ""
        for payload in self.payloads[:-1] if self.stream.is_ended else self.payloads:
            for choice in json.loads(payload)["choices"]:
                received += choice.get("delta", choice.get("message", {})).get("content") or ""
        return received


class World:
    """A gateway and its providers. The model `demo` goes along the route of all providers."""

    def __init__(self, gateway: Gateway, providers: list[SimulatedProvider]) -> None:
        self.gateway = gateway
        self.providers = providers
        self._numbers = itertools.count(1)

    @classmethod
    async def start(
        cls,
        protocol: str = "h2c",
        *,
        providers: int = 1,
        settings: dict[str, Any] | None = None,
        simulated: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        streams: dict[str, Any] | None = None,
        alpn: tuple[str, ...] = ("h2", "http/1.1"),
    ) -> World:
        started = [SimulatedProvider(**(simulated or {})) for _ in range(providers)]
        how: dict[str, Any] = {"http1": {}, "h2c": {"http2": "prior-knowledge"}, "h2tls": {"ca_file": ca_file()}}
        configured = {}
        for number, provider in enumerate(started):
            tls = context_of(*certificate()) if protocol == "h2tls" else None
            await provider.start(ssl_context=tls, alpn=alpn)
            fields = {"base_url": provider.base_url, **how[protocol], **(settings or {})}
            configured[f"sim{number}"] = msgspec.convert(fields, ProviderConfig)
        route = {"route": [f"{name}/demo" for name in configured], **(model or {})}
        gateway = Gateway(
            Config(
                server=ServerConfig(port=0),
                streams=msgspec.convert(streams or {}, StreamsConfig),
                providers=configured,
                models={"demo": msgspec.convert(route, ModelConfig)},
            )
        )
        await gateway.start()
        return cls(gateway, started)

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.gateway.aclose()
        for provider in self.providers:
            await provider.aclose()

    @property
    def provider(self) -> SimulatedProvider:
        return self.providers[0]

    @property
    def pool(self) -> PoolStatistics:
        return self.gateway.pool_statistics()[0].pool

    @property
    def health(self) -> HealthStatistics:
        return self.gateway.pool_statistics()[0].health

    def stream(
        self, *, tokens: int = 10, seed: int = 7, streaming: bool = True, keeps_running: bool = True, **sim: Any
    ) -> Running:
        """Ask for an answer that comes at once, unless `sim` says otherwise."""
        number = next(self._numbers)
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": streaming,
            "user": f"user-{number}",
            "sim": {"tokens": tokens, "seed": seed, "interval_ms": 0, "ttft_ms": 0, **sim},
        }
        stream = launch(self.gateway, json.dumps(body).encode(), keeps_running=keeps_running)
        return Running(stream, tokens=tokens, seed=seed)

    async def is_at_rest(self) -> None:
        """Wait until no request is on its way, nobody waits, and no connection is being made."""
        await eventually(
            lambda: (self.pool.streams, self.pool.waiting, self.pool.connecting) == (0, 0, 0),
            f"rest of {self.pool}",
        )

    async def is_like_new(self) -> None:
        """Wait until the pool holds what a new one holds, and the providers have no connection either."""
        await self.is_at_rest()
        await eventually(lambda: not self.pool.connections, "the end of idle connections")
        for provider in self.providers:
            await provider.until(lambda s: (s.open_connections, s.streaming) == (0, 0))
