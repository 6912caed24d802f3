"""The gateway under attack: its configuration, its process, and what it holds."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import GATEWAY_CORE, Server, free_port, resident, serving
from chaos.hostile.verdict import MIB, Held
from chaos.hostile.wire import trusting
from holdfast.admission.keys import create_key
from holdfast.config.server import ServerConfig
from holdfast_tools.simulate.certificate import self_signed

BUDGET = 256 * MIB
_PRIORITY = -5

CONFIG = """\
[server]
port = {port}
max_connections = 500
{server}

[streams]
{streams}
retention = 2.0
retention_acknowledged = 0.5
detach_grace = 1.0

[auth]
token_secret = "hostile hostile hostile hostile hostile"

[keys.honest]
hash = "{honest}"

[keys.mallory]
hash = "{mallory}"

[keys.page]
hash = "{page}"
tenant = "mallory"

# Limits that an operator sets: wide ones for a tenant's server, narrow ones for its pages.
[limits.keys.mallory]
requests_per_minute = 30_000
concurrent_streams = 20
connections = 200

[limits.keys.page]
requests_per_minute = 60
tokens_per_minute = 10_000
concurrent_streams = 2
connections = 5

[providers.calm]
base_url = "{calm}"
http2 = "prior-knowledge"
idle_timeout = 1.0

[providers.busy]
base_url = "{busy}"
http2 = "prior-knowledge"
idle_timeout = 1.0

[models.honest]
route = ["calm/demo"]
[models.demo]
route = ["busy/demo"]
"""


@dataclass(frozen=True)
class Keys:
    honest: str
    mallory: str
    page: str


class Target:
    """A running gateway."""

    def __init__(self, server: Server, keys: Keys, log: Path, *, tls: bool) -> None:
        self._server = server
        self.keys = keys
        self.port = server.port
        self.pid = server.pid
        self.tls = tls
        self._log = log

    @property
    def is_running(self) -> bool:
        return self._server.process.poll() is None

    def call(self, path: str, key: str, body: Any = None) -> Any:
        """Ask the gateway as a tenant's server does."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {key}", "connection": "close", "content-type": "application/json"}
        url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}"
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting())]
        request = urllib.request.Request(url, data, headers)
        with urllib.request.build_opener(*handlers).open(request, timeout=10) as response:
            return json.loads(response.read())

    def token(self) -> str:
        """Have a client token issued for a page."""
        token: str = self.call("/v1/client_tokens", self.keys.page, {"expires_in": 3600})["token"]
        return token

    def held(self) -> Held:
        """Read what it holds. Raises OSError if it does not answer."""
        uses: dict[str, float] = {}
        for name, key in (("honest", self.keys.honest), ("mallory", self.keys.mallory), ("page", self.keys.page)):
            answer = self.call("/v1/limits", key)
            for whose in ("key", "tenant"):
                for what in ("streams", "connections"):
                    uses[f"{what} of {whose} {name}"] = answer[whose][what]["used"]
            uses[f"requests of {name} that wait"] = answer["tenant"]["waiting"]
            # The last answer has the whole process as well, as each does.
            for bound in answer["bounds"]:
                if bound.get("used") is not None:
                    uses[bound["name"]] = bound["used"]
        return Held(resident(self.pid), len(os.listdir(f"/proc/{self.pid}/fd")), uses)

    def forget_peak(self) -> None:
        """Begin anew to look for the most memory (proc(5), clear_refs)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def peak(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel does not say how much memory the gateway has had")

    def faults(self) -> list[str]:
        """Return the lines of its log that tell of a fault of its own."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line[:300] for line in lines if "Traceback" in line or "internal_error" in line]


@contextlib.contextmanager
def target(folder: Path, calm: str, busy: str, *, tls: bool) -> Iterator[Target]:
    """Run a gateway on its core, with the rank of a service that its machine is for."""
    (honest, honest_hash), (mallory, mallory_hash), (page, page_hash) = create_key(), create_key(), create_key()
    port = free_port()
    server: list[str] = []
    streams: list[str] = []
    # Where there is no budget of the whole process yet, the logs have one.
    (server if "memory_bytes" in ServerConfig.__struct_fields__ else streams).append(f"memory_bytes = {BUDGET}")
    if tls:
        certificate, key = self_signed()
        for name, pem in (("cert", certificate), ("key", key)):
            (folder / f"{name}.pem").write_bytes(pem)
            server.append(f'tls_{name} = "{folder / name}.pem"')
    config = folder / "gateway.toml"
    config.write_text(
        CONFIG.format(
            port=port,
            server="\n".join(server),
            streams="\n".join(streams),
            honest=honest_hash,
            mallory=mallory_hash,
            page=page_hash,
            calm=calm,
            busy=busy,
        )
    )
    log = folder / "gateway.log"
    log.write_bytes(b"")
    # The shell becomes the gateway; its output is a file, so that nothing waits for who reads it.
    shell = ("sh", "-c", f'exec "$@" >"{log}" 2>&1', "gateway")
    serve = (sys.executable, "-m", "holdfast.cli", "serve", "--config", str(config), "--log-level", "warning")
    with serving([*shell, *serve], GATEWAY_CORE if (os.cpu_count() or 1) > 1 else None, port) as running:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, running.pid, _PRIORITY)
        yield Target(running, Keys(honest, mallory, page), log, tls=tls)
