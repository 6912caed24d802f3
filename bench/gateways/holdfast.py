"""The gateway of this repository, from the environment that runs the benchmark."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bench.gateways.gateway import Running
from bench.processes import free_port, serving

_CONFIG = """\
[server]
port = {port}

# Short, or the logs and the streams that one visit leaves behind would be memory that the next one lacks.
[streams]
detach_grace = 0.5
retention = 0.5
retention_acknowledged = 0.5

[providers.sim]
base_url = "{provider_url}"
http2 = "{http2}"

[models.demo]
route = ["sim/demo"]
"""


def available() -> str | None:
    return None


@contextmanager
def start(provider_url: str, core: int, *, http2: bool = True) -> Iterator[Running]:
    port = free_port()
    protocol = "prior-knowledge" if http2 else "off"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(_CONFIG.format(port=port, provider_url=provider_url, http2=protocol))
        file.flush()
        command = [sys.executable, "-m", "holdfast.cli", "serve", "--config", file.name, "--log-level", "error"]
        # SIGTERM would let running streams come to their end first.
        with serving(command, core, port, stop=signal.SIGINT) as server:
            yield Running(server.url, server.pid)
