"""Caddy as a reverse proxy that flushes at once."""

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
{{
  admin off
  auto_https off
}}
http://127.0.0.1:{port} {{
  bind 127.0.0.1
  reverse_proxy {provider} {{
    flush_interval -1
  }}
}}
"""


def available() -> str | None:
    return None if shutil.which("caddy") else "caddy is not installed (Debian: apt-get install caddy)"


@contextmanager
def start(provider_url: str, core: int) -> Iterator[Running]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "Caddyfile")
        config.write_text(_CONFIG.format(port=port, provider=urlsplit(provider_url).netloc))
        command = ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
        # It would write below the home directory.
        homes = {"XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}
        with serving(command, core, port, environment=homes) as server:
            yield Running(server.url, server.pid)
