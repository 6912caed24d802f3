"""Clients that leave, cancel or fail at every phase of a request; afterwards admission must hold nothing.

    python -m chaos.admission [--requests 10000] [--seed 1] [--adaptive]

The gateway runs in this process, so that what its admission holds can be looked at while requests are under way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from holdfast.admission.auth import create_key
from holdfast.app import Gateway
from holdfast.config import Config, KeyConfig, ModelConfig, ProviderConfig, ServerConfig, StreamsConfig
from holdfast.config.limits import LimitsConfig, QueueConfig
from holdfast_tools.simulate.server import SimulatedProvider

AT_ONCE = 80
CONCURRENCY = 16
TENANTS = {"a1": "a", "a2": "a", "b": "b", "c": "c"}
#: Seconds that one request may take, queue and time limits included.
PATIENCE = 30.0

FAULTS: list[dict[str, Any] | None] = [
    *[None] * 24,
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 400},
    {"kind": "cut", "before_head": True},
    {"kind": "reset", "after_tokens": 5},
    {"kind": "end_early", "after_tokens": 3},
    {"kind": "error_event", "after_tokens": 2},
    {"kind": "malformed", "after_tokens": 2},
    {"kind": "stall", "after_tokens": 4},
    {"kind": "no_answer"},
]
#: How clients leave; each is drawn as often as it stands here.
HTTP = ["stays"] * 8 + [
    "mid-head",
    "mid-body",
    "at once",
    "after the head",
    "mid-answer",
    "whole",
    "whole at once",
]
SESSION = ["stays"] * 6 + ["cancel", "cancel at once", "drop", "drop at once", "detach", "create twice"]


class Chaos:
    """One run. `outcomes` counts how clients left and what they were told.

    `peak` is the most that was held at a time, by kind; `overshoots` says where that was more than allowed.
    """

    def __init__(self, gateway: Gateway, provider: SimulatedProvider, keys: dict[str, str], seed: int) -> None:
        self.gateway = gateway
        self.provider = provider
        self.outcomes: Counter[str] = Counter()
        self.overshoots: list[str] = []
        self.peak: Counter[str] = Counter()
        self._keys = keys
        self._rng = random.Random(seed)
        self._number = 0

    async def run(self, requests: int) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with gate:
                speak = self._http if self._rng.random() < 0.5 else self._session
                try:
                    async with asyncio.timeout(PATIENCE):
                        await speak()
                except (OSError, EOFError, WebSocketException) as exc:
                    self.outcomes[f"connection: {type(exc).__name__}"] += 1
                self._watch()

        await asyncio.gather(*[one() for _ in range(requests)])

    def _watch(self) -> None:
        """Look whether anything goes beyond its bound, while requests are under way."""
        admission = self.gateway.admission
        for name, count in admission.held.items():
            self.peak[name] = max(self.peak[name], count)
        for model in admission.models.values():
            if model.limit is not None and model.used > model.limit:
                self.overshoots.append(f"{model.used} streams of a model that may have {model.limit}")
        for account in [*admission.limiter.keys, *admission.limiter.tenants]:
            if account.streams.limit is not None and account.streams.used > account.streams.limit:
                self.overshoots.append(f"{account.name} has {account.streams.used} streams")

        for count in self.in_flight():
            self.peak["in flight"] = max(self.peak["in flight"], count)
            if count > CONCURRENCY:
                self.overshoots.append(f"{count} requests in flight at a provider that may have {CONCURRENCY}")

    def in_flight(self) -> list[int]:
        """Return the requests in flight at each provider whose concurrency is bounded."""
        shown = [provider.concurrency for provider in self.gateway.pool_statistics()]
        return [concurrency.in_flight for concurrency in shown if concurrency is not None]

    def _request(self, *, stream: bool) -> dict[str, Any]:
        sim: dict[str, Any] = {
            "tokens": self._rng.randrange(1, 30),
            "interval_ms": self._rng.choice([0, 1, 3]),
            "ttft_ms": self._rng.choice([0, 5, 20]),
        }
        fault = self._rng.choice(FAULTS)
        if fault is not None:
            sim["fault"] = fault
        body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": stream, "sim": sim}
        if self._rng.random() < 0.5:
            body["max_tokens"] = self._rng.randrange(1, 200)
        return body

    def _key(self) -> str:
        return self._keys[self._rng.choice(list(TENANTS))]

    # -- HTTP --

    async def _http(self) -> None:
        how = self._rng.choice(HTTP)
        body = json.dumps(self._request(stream=not how.startswith("whole"))).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self._key()}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            if how == "mid-head":
                writer.write(head[: self._rng.randrange(1, len(head))])
            elif how == "mid-body":
                writer.write(head + body[: self._rng.randrange(len(body))])
            else:
                writer.write(head + body)
            if how in ("mid-head", "mid-body", "at once", "whole at once"):
                # Sometimes before the gateway has seen any of it, sometimes while the request waits or runs.
                await asyncio.sleep(self._rng.choice([0, 0.001, 0.01, 0.1]))
                self.outcomes[f"http {how}"] += 1
                return
            status = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            self.outcomes[f"http {how} {status}"] += 1
            if how == "mid-answer":
                await reader.read(self._rng.randrange(1, 2000))
            elif how != "after the head":
                await reader.read()
        finally:
            writer.transport.abort()

    # -- sessions --

    async def _session(self) -> None:
        how = self._rng.choice(SESSION)
        headers = {"authorization": f"Bearer {self._key()}"}
        url = f"ws://127.0.0.1:{self.gateway.port}/v1/ws/stream"
        async with connect(
            url,
            additional_headers=headers,
            subprotocols=[Subprotocol("holdfast.v1")],
            compression=None,
            proxy=None,
            close_timeout=1,
        ) as socket:

            async def send(**message: Any) -> None:
                await socket.send(json.dumps(message))

            await send(type="hello", version=1)
            self._number += 1
            request_id, request = f"r-{self._number}", self._request(stream=True)
            await send(type="create", request_id=request_id, request=request)
            if how == "create twice":
                await send(type="create", request_id=request_id, request=request)
            if how == "cancel at once":
                await send(type="cancel", request_id=request_id)
            if how == "drop at once":
                await asyncio.sleep(self._rng.choice([0, 0.001, 0.01, 0.1]))
                self.outcomes[f"session {how}"] += 1
                socket.transport.abort()
                return
            while True:
                message = json.loads(await socket.recv())
                kind = message["type"]
                if kind == "end":
                    error = message.get("error", {}).get("code", "")
                    self.outcomes[f"session {how} {message['status']} {error}".rstrip()] += 1
                    return
                if kind == "error":
                    self.outcomes[f"session {how} {message['code']}"] += 1
                    return
                if kind == "accepted" and how in ("cancel", "detach"):
                    await send(type=how, stream=message["stream"])
                    if how == "detach":
                        self.outcomes["session detach"] += 1
                        return
                if kind in ("event", "events", "queued") and how == "drop":
                    self.outcomes[f"session {how}"] += 1
                    socket.transport.abort()
                    return


async def run_chaos(requests: int, seed: int, *, adaptive: bool = False) -> Chaos:
    """Run a gateway, its provider and the clients; return when admission holds nothing any more.

    With `adaptive` it is the provider whose concurrency is bounded, instead of the model. Raises AssertionError
    where a bound was exceeded, or something is still held when all clients have gone.
    """
    provider = SimulatedProvider()
    await provider.start()
    keys = {name: create_key() for name in TENANTS}
    hashes = {name: key_hash for name, (_, key_hash) in keys.items()}
    gateway = Gateway(_config(provider.base_url, hashes, requests, adaptive=adaptive))
    await gateway.start()
    try:
        run = Chaos(gateway, provider, {name: key for name, (key, _) in keys.items()}, seed)
        await run.run(requests)
        await _settled(lambda: not any(gateway.admission.held.values()), gateway)
        await _settled(lambda: not sum(run.in_flight()), gateway)
    finally:
        await gateway.aclose()
        await provider.aclose()
    if run.overshoots:
        raise AssertionError(run.overshoots[:3])
    return run


def _config(base_url: str, hashes: dict[str, str], requests: int, *, adaptive: bool) -> Config:
    provider = {
        "base_url": base_url,
        "http2": "prior-knowledge",
        "timeouts": {"first_byte": 0.2, "idle": 0.2, "total": 10.0, "pool": 5.0},
        "breaker": {"failures": 10**6, "error_rate": 1.0, "min_requests": 10**6},
        "adaptive_concurrency": {"enabled": adaptive, "min": 2, "max": CONCURRENCY},
    }
    limits = {
        "concurrent_streams": 40,
        "tokens_per_minute": 10**6,
        "requests_per_minute": 10**6,
        "connections": 60,
        "keys": {"a2": {"priority": "low"}, "c": {"requests_per_minute": max(requests // 8, 10)}},
        "tenants": {"b": {"concurrent_streams": 5, "tokens_per_minute": 10**6}},
    }
    return Config(
        server=ServerConfig(port=0, max_hold=0.0),
        streams=StreamsConfig(detach_grace=0.2, retention=5.0),
        providers={"sim": msgspec.convert(provider, ProviderConfig)},
        models={"demo": ModelConfig(route=["sim/demo"], max_concurrency=None if adaptive else CONCURRENCY)},
        keys={name: KeyConfig(hash=hashes[name], tenant=tenant) for name, tenant in TENANTS.items()},
        limits=msgspec.convert(limits, LimitsConfig),
        queue=QueueConfig(max_waiting=25, max_waiting_per_tenant=20, deadline=0.3),
    )


async def _settled(condition: Callable[[], bool], gateway: Gateway) -> None:
    try:
        async with asyncio.timeout(15.0):
            while not condition():  # noqa: ASYNC110 - nothing tells when the last of it is given back
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"still held: {gateway.admission.held}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--adaptive", action="store_true", help="bound the provider's concurrency, not the model's"
    )
    options = parser.parse_args()
    began = time.monotonic()
    run = asyncio.run(run_chaos(options.requests, options.seed, adaptive=options.adaptive))
    took = time.monotonic() - began
    print(f"python {platform.python_version()}, {options.requests} requests, seed {options.seed}: {took:.1f} s")
    print("most held at a time:", dict(run.peak))
    print("held at the end:", run.gateway.admission.held)
    for outcome, count in sorted(run.outcomes.items()):
        print(f"{count:6} {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
