"""Portkey's open-source gateway (TypeScript), pointed to a custom host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from bench.gateways.gateway import PEERS, Running, peer_missing
from bench.processes import free_port, serving

_SERVER = PEERS / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"


def available() -> str | None:
    if shutil.which("node") is None:
        return "node is not installed (Debian: apt-get install nodejs npm)"
    return peer_missing(_SERVER)


@contextmanager
def start(provider_url: str, core: int) -> Iterator[Running]:
    port = free_port()
    command = ["node", str(_SERVER), "--headless", f"--port={port}"]
    headers = {
        "authorization": "Bearer none",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": provider_url,
    }
    with serving(command, core, port) as server:
        yield Running(server.url, server.pid, headers, steer_by="prompt")
