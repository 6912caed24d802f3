"""HAProxy as an HTTP reverse proxy with one thread."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.gateways.gateway import Running
from bench.processes import free_port, serving

_CONFIG = """\
global
  maxconn 8192
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-no-delay
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  default_backend provider
backend provider
  server provider {provider}
"""


def available() -> str | None:
    return None if shutil.which("haproxy") else "haproxy is not installed (Debian: apt-get install haproxy)"


@contextmanager
def start(provider_url: str, core: int) -> Iterator[Running]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "haproxy.cfg")
        config.write_text(_CONFIG.format(port=port, provider=urlsplit(provider_url).netloc))
        with serving(["haproxy", "-db", "-f", str(config)], core, port) as server:
            yield Running(server.url, server.pid)
