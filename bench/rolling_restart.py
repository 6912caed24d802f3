"""A rolling restart under load: two gateways behind HAProxy or nginx, both replaced while streams run.

    python bench/rolling_restart.py --streams 500

Clients of the Python SDK keep `--streams` streams running over the balancer. One gateway after the other gets
SIGTERM, drains, and is started again. Every answer is compared, token by token, with what the provider has sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from holdfast import StreamingAIClient, WebSocketConfig
from holdfast.errors import HoldfastError
from holdfast_tools.simulate.text import text

INTERVAL_MS = 100

GATEWAY = """\
[server]
port = {port}
drain_timeout = {drain_timeout}
drain_window = 5.0

[providers.sim]
base_url = "{provider}"

[models.demo]
route = ["sim/demo"]
"""

HAPROXY = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
    # A gateway that drains answers 503 until the next check has seen it: the other one is asked instead.
    retries 3
    option redispatch 1
    retry-on conn-failure 503
frontend clients
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    balance roundrobin
    option httpchk GET /readyz
    default-server check inter 200ms fall 1 rise 1
    server a 127.0.0.1:{a}
    server b 127.0.0.1:{b}
"""

NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream gateways {{
        # No memory of failures: with two places, both would soon count as failed and nobody would be asked.
        server 127.0.0.1:{a} max_fails=0;
        server 127.0.0.1:{b} max_fails=0;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Host $host;
            proxy_read_timeout 1h;
            # A gateway that drains answers 503: the other one is asked instead.
            proxy_next_upstream error timeout http_503 non_idempotent;
        }}
    }}
}}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return ports


def until(condition: Any, what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def status_of(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


class Gateway:
    """One place behind the balancer, and the process that has it."""

    def __init__(self, folder: Path, port: int, provider: str, drain_timeout: float) -> None:
        self.port = port
        self._config = folder / f"gateway-{port}.toml"
        self._config.write_text(GATEWAY.format(port=port, provider=provider, drain_timeout=drain_timeout))
        self._log = folder / f"gateway-{port}.log"

    def start(self) -> None:
        command = [sys.executable, "-m", "holdfast.cli", "serve", "--config", str(self._config)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: status_of(self.port, "/readyz") == 200, f"the gateway is not ready: {self._log.read_text()}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def start_balancer(kind: str, folder: Path, port: int, gateways: list[Gateway]) -> subprocess.Popen[bytes]:
    template = HAPROXY if kind == "haproxy" else NGINX
    file = folder / f"{kind}.conf"
    file.write_text(template.format(port=port, a=gateways[0].port, b=gateways[1].port, folder=folder))
    program = shutil.which(kind) or kind
    command = (
        [program, "-db", "-f", str(file)] if kind == "haproxy" else [program, "-c", str(file), "-p", str(folder)]
    )
    balancer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: status_of(port, "/healthz") == 200, f"{kind} does not answer")
    return balancer


class Load:
    """Clients that keep their streams running, and what became of each stream."""

    def __init__(self, url: str, args: argparse.Namespace) -> None:
        self._url = url
        self._args = args
        self._seeds = iter(range(1_000_000))
        self.is_stopping = False
        self.running = 0
        self.whole = 0
        self.created = 0
        self.faults: Counter[str] = Counter()
        self.told: Counter[int] = Counter()

    async def client(self, number: int) -> None:
        config = WebSocketConfig(self._url, max_retries=8, initial_backoff=0.2, max_backoff=2.0)
        share = self._args.streams // self._args.clients
        async with StreamingAIClient(config) as client:
            connections, tell = client._connections, client._connections.sent_away

            def sent_away(runner: Any, *, was_of_use: bool) -> None:
                self.told[number] += 1
                tell(runner, was_of_use=was_of_use)

            connections.sent_away = sent_away  # type: ignore[method-assign]
            await asyncio.gather(*(self._streams(client) for _ in range(share)))

    async def _streams(self, client: StreamingAIClient) -> None:
        while not self.is_stopping:
            await self._stream(client, next(self._seeds))

    async def _stream(self, client: StreamingAIClient, seed: int) -> None:
        tokens = round(self._args.seconds * 1000 / INTERVAL_MS)
        sim = {"tokens": tokens, "interval_ms": INTERVAL_MS, "ttft_ms": seed % 1000, "seed": seed}
        self.created += 1
        self.running += 1
        try:
            stream = client.stream_chat([{"role": "user", "content": "hi"}], model="demo", sim=sim)
            received = "".join([piece async for piece in stream])
        except HoldfastError as exc:
            self.faults[f"{exc.code}: {exc.message}"] += 1
        else:
            if received == text(seed, tokens):
                self.whole += 1
            else:
                self.faults["another text"] += 1
        finally:
            self.running -= 1


async def restart(gateway: Gateway) -> dict[str, object]:
    """Replace one gateway, and say how long that took and how its process ended."""
    begun = time.monotonic()
    gateway.terminate()
    code = await asyncio.to_thread(gateway.process.wait)
    drained = time.monotonic() - begun
    await asyncio.to_thread(gateway.start)
    return {"exit_code": code, "drained_after_s": round(drained, 2)}


async def measure(args: argparse.Namespace, port: int, gateways: list[Gateway]) -> dict[str, object]:
    load = Load(f"http://127.0.0.1:{port}", args)
    clients = [asyncio.create_task(load.client(number)) for number in range(args.clients)]
    await asyncio.sleep(args.seconds / 4)
    running = load.running
    restarts = []
    for gateway in gateways:
        restarts.append(await restart(gateway))
        await asyncio.sleep(1.0)  # for the balancer to see it
    load.is_stopping = True
    await asyncio.gather(*clients)
    return {
        "streams_running": running,
        "streams_created": load.created,
        "streams_whole": load.whole,
        "faults": dict(load.faults),
        "clients": args.clients,
        "clients_told_by_goaway": sum(1 for count in load.told.values() if count),
        "goaways": sum(load.told.values()),
        "restarts": restarts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=500, help="that run at a time (default: 500)")
    parser.add_argument("--clients", type=int, default=50, help="that share them (default: 50)")
    parser.add_argument("--seconds", type=float, default=12.0, help="that a stream runs (default: 12)")
    parser.add_argument("--drain-timeout", type=float, default=120.0)
    parser.add_argument("--balancer", choices=["haproxy", "nginx"], default="haproxy")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    processes: list[subprocess.Popen[Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port, *places = free_ports(3)
        provider = subprocess.Popen(
            [sys.executable, "-m", "holdfast.cli", "simulate", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        processes.append(provider)
        gateways: list[Gateway] = []
        try:
            assert provider.stdout is not None
            match = re.search(r"http://127\.0\.0\.1:\d+", provider.stdout.readline())
            assert match is not None
            gateways = [Gateway(folder, place, f"{match[0]}/v1", args.drain_timeout) for place in places]
            for gateway in gateways:
                gateway.start()
            processes.append(start_balancer(args.balancer, folder, port, gateways))
            result = asyncio.run(measure(args, port, gateways))
            with urllib.request.urlopen(f"{match[0]}/stats") as answer:
                result["requests_at_the_provider"] = json.load(answer)["requests"]
        finally:
            for process in [*processes, *(gateway.process for gateway in gateways if hasattr(gateway, "process"))]:
                process.kill()
                process.wait()
    result["machine"] = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result["command"] = "python " + " ".join(sys.argv)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
