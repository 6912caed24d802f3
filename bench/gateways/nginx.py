"""nginx as a reverse proxy that does not buffer: what relaying costs without any knowledge of what is relayed."""

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
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream provider {{ server {provider}; keepalive 4096; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s; keepalive_requests 100000;
    }}
  }}
}}
"""


def available() -> str | None:
    return None if shutil.which("nginx") else "nginx is not installed (Debian: apt-get install nginx-light)"


@contextmanager
def start(provider_url: str, core: int) -> Iterator[Running]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(_CONFIG.format(folder=folder, port=port, provider=urlsplit(provider_url).netloc))
        with serving(["nginx", "-p", folder, "-c", str(config)], core, port) as server:
            yield Running(server.url, server.pid)
