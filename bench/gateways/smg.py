"""SGLang's model gateway (Rust), from the package `sglang-router`, as a proxy for an OpenAI API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.gateways.gateway import PEERS, Running, peer_missing
from bench.processes import free_port, serving

_COMMAND = PEERS / "smg" / "bin" / "smg"


def available() -> str | None:
    return peer_missing(_COMMAND)


@contextmanager
def start(provider_url: str, core: int) -> Iterator[Running]:
    port = free_port()
    command = [
        *(str(_COMMAND), "launch", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend", "openai", "--worker-urls", provider_url.removesuffix("/v1"), "--history-backend", "none"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", "error"),
        # The provider has no /health; what a breaker made of that would be no property of relaying.
        *("--health-check-endpoint", "/v1/models", "--disable-circuit-breaker"),
    ]
    with serving(command, core, port) as server:
        # It decodes requests into types of its own, and so drops `sim`.
        yield Running(server.url, server.pid, steer_by="prompt")
