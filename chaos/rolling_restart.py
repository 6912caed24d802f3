"""A rolling restart under load: two gateways behind HAProxy or nginx, both replaced while streams run.

    python -m chaos.rolling_restart --streams 500

Clients of the Python SDK keep `--streams` streams running over the balancer. One gateway after the other gets
SIGTERM, drains, and is started again. Every answer is compared, token by token, with what the provider has sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.processes import Server, free_port, holdfast, raise_descriptor_limit, serving, simulated_provider
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


#: Seconds that a balancer gets to answer, and to see that a gateway is back.
_ANSWERS_WITHIN, _SEES_WITHIN = 20.0, 1.0


@dataclass(frozen=True)
class Options:
    """How many streams run at a time, how many clients share them, and for how many seconds a stream runs."""

    streams: int = 500
    clients: int = 50
    seconds: float = 12.0
    drain_timeout: float = 120.0
    balancer: str = "haproxy"


@dataclass(frozen=True)
class Result:
    """What became of the streams. `faults` counts what went wrong, in words; `restarts` has one per gateway."""

    streams_running: int
    streams_created: int
    streams_whole: int
    faults: dict[str, int]
    clients: int
    clients_told_by_goaway: int
    goaways: int
    requests_at_the_provider: int
    restarts: list[Restart]


@dataclass(frozen=True)
class Restart:
    """How a gateway's process ended, and after how many seconds of draining."""

    exit_code: int
    drained_after: float


class Place:
    """A port behind the balancer, and the gateway that has it."""

    def __init__(self, config: Path, port: int) -> None:
        self.port = port
        self._config = config
        self._running = contextlib.ExitStack()
        self._server: Server | None = None

    def start(self) -> None:
        """Start a gateway, and return when it listens."""
        gateway = holdfast(["serve", "--config", str(self._config)], None, stop=signal.SIGKILL)
        self._server = self._running.enter_context(gateway)

    def drain(self) -> Restart:
        """Tell the gateway to drain, and return when its process has ended."""
        if self._server is None:
            raise RuntimeError("no gateway runs here")
        begun = time.monotonic()
        self._server.process.send_signal(signal.SIGTERM)
        code = self._server.process.wait()
        self.close()
        return Restart(code, round(time.monotonic() - begun, 2))

    def close(self) -> None:
        """Kill the gateway, if one runs."""
        self._running.close()


@contextlib.contextmanager
def balancing(kind: str, folder: Path, places: list[Place]) -> Iterator[int]:
    """Run a balancer in front of the places; give its port."""
    port = free_port()
    template = HAPROXY if kind == "haproxy" else NGINX
    file = folder / f"{kind}.conf"
    file.write_text(template.format(port=port, a=places[0].port, b=places[1].port, folder=folder))
    program = shutil.which(kind) or kind
    options = ["-db", "-f", str(file)] if kind == "haproxy" else ["-c", str(file), "-p", str(folder)]
    with serving([program, *options], None, port, stop=signal.SIGKILL):
        _wait_for_an_answer(port)
        yield port


def _wait_for_an_answer(port: int) -> None:
    """Ask until a gateway answers: a balancer does not say when it has found one."""
    deadline = time.monotonic() + _ANSWERS_WITHIN
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2).close()
        except OSError as exc:  # an HTTPError is one, too
            if time.monotonic() > deadline:
                raise TimeoutError("the balancer finds no gateway") from exc
            time.sleep(0.02)
        else:
            return


class Load:
    """Clients that keep their streams running, and what became of each stream."""

    def __init__(self, url: str, options: Options) -> None:
        self._url = url
        self._options = options
        self._seeds = iter(range(1_000_000))
        self.is_stopping = False
        self.running = 0
        self.whole = 0
        self.created = 0
        self.faults: Counter[str] = Counter()
        self.told: Counter[int] = Counter()

    async def client(self, number: int) -> None:
        config = WebSocketConfig(self._url, max_retries=8, initial_backoff=0.2, max_backoff=2.0)
        share = self._options.streams // self._options.clients
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
        tokens = round(self._options.seconds * 1000 / INTERVAL_MS)
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


async def _restart_all(options: Options, port: int, places: list[Place], requests: Callable[[], int]) -> Result:
    load = Load(f"http://127.0.0.1:{port}", options)
    clients = [asyncio.create_task(load.client(number)) for number in range(options.clients)]
    await asyncio.sleep(options.seconds / 4)  # streams are to be at all parts of their way
    running = load.running
    restarts = []
    for place in places:
        restarts.append(await asyncio.to_thread(place.drain))
        await asyncio.to_thread(place.start)
        await asyncio.sleep(_SEES_WITHIN)
    load.is_stopping = True
    await asyncio.gather(*clients)
    return Result(
        streams_running=running,
        streams_created=load.created,
        streams_whole=load.whole,
        faults=dict(load.faults),
        clients=options.clients,
        clients_told_by_goaway=sum(1 for count in load.told.values() if count),
        goaways=sum(load.told.values()),
        requests_at_the_provider=await asyncio.to_thread(requests),
        restarts=restarts,
    )


def roll(options: Options) -> Result:
    """Run it all: the provider, two gateways, the balancer and the clients. It takes some `options.seconds`."""
    raise_descriptor_limit()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(simulated_provider(None))
        places = []
        for name in ("a", "b"):
            config, port = folder / f"gateway-{name}.toml", free_port()
            config.write_text(
                GATEWAY.format(port=port, provider=provider.url, drain_timeout=options.drain_timeout)
            )
            places.append(Place(config, port))
            stack.callback(places[-1].close)
            places[-1].start()
        port = stack.enter_context(balancing(options.balancer, folder, places))
        return asyncio.run(_restart_all(options, port, places, lambda: _requests(provider)))


def _requests(provider: Server) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{provider.port}/stats") as answer:
        return int(json.load(answer)["requests"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Options()
    add = parser.add_argument
    add("--streams", type=int, default=default.streams, help="that run at a time (default: %(default)s)")
    add("--clients", type=int, default=default.clients, help="that share them (default: %(default)s)")
    add("--seconds", type=float, default=default.seconds, help="that a stream runs (default: %(default)g)")
    add("--drain-timeout", type=float, default=default.drain_timeout)
    add("--balancer", choices=["haproxy", "nginx"], default=default.balancer)
    result = asdict(roll(Options(**vars(parser.parse_args()))))
    result["machine"] = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result["command"] = "python " + " ".join(sys.argv)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
