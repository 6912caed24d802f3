"""Starts the processes, plays the schedule, and ends everything; what happened is in the files it leaves."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from chaos.checker import Verdict, check
from chaos.journal import Journal, Record, read
from chaos.schedule import KINDS, LINKS

#: Seconds that the last streams get to end when the weather is fine again; a stream has at most 250 tokens.
_LAST_STREAMS = 60.0
_START = 30.0
#: Seconds that a gateway has to drain, after which it is killed.
_DRAIN = 15.0

CONFIG = """\
[server]
port = 0
hello_timeout = 5.0
ping_interval = 2.0
ping_timeout = 2.0
sse_keep_alive = 1.0
drain_timeout = 10.0
drain_window = 2.0

[providers.h2]
base_url = "http://127.0.0.1:{port}/v1"
http2 = "prior-knowledge"
ping_interval = 2.0
ping_timeout = 2.0
timeouts = {{ connect = 2.0, pool = 5.0, first_byte = 4.0, idle = 4.0, total = 60.0 }}
# Links and requests fail far more often than in life: the breaker is to open in outages, not all the time.
breaker = {{ failures = 50, min_requests = 100, error_rate = 0.9, open_for = 1.0, max_open_for = 2.0 }}
retry_budget = {{ ratio = 1.0 }}

[providers.h1]
base_url = "http://127.0.0.1:{port}/v1"
http2 = "off"
timeouts = {{ connect = 2.0, pool = 5.0, first_byte = 4.0, idle = 4.0, total = 60.0 }}
breaker = {{ failures = 50, min_requests = 100, error_rate = 0.9, open_for = 1.0, max_open_for = 2.0 }}
retry_budget = {{ ratio = 1.0 }}

# A lost connection may not cost a second generation; what this takes is told as an error.
[models.over-http2]
route = ["h2/demo"]
retry = {{ at_most_once = true }}
[models.over-http1]
route = ["h1/demo"]
retry = {{ at_most_once = true }}
"""


class Process:
    """A child of this run. Its standard error goes to a file; its first line of output says that it is ready."""

    def __init__(self, name: str, folder: Path, *arguments: str | Path) -> None:
        self.name = name
        self._folder = folder
        self._arguments = [str(each) for each in arguments]
        self._child: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start; return the first line of the output."""
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                # A Ctrl-C is for this process, which then ends the others.
                start_new_session=True,
            )
        output = self._child.stdout
        if output is None:
            raise RuntimeError("the child has no output")
        async with asyncio.timeout(_START):
            line = await output.readline()
        if not line:
            raise RuntimeError(f"{self.name} did not start; see {self._folder / self.name}.log")
        self._reader = asyncio.create_task(self._discard(output))
        return line.decode()

    async def _discard(self, stream: asyncio.StreamReader) -> None:
        while await stream.read(65536):
            pass

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.returncode is None

    def signal(self, number: int) -> None:
        if self._child is not None and self.is_running:
            self._child.send_signal(number)

    def order(self, order: Record) -> None:
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.write(json.dumps(order).encode() + b"\n")

    async def wait(self, timeout: float) -> bool:
        """Wait until it has ended; False if it has not in time."""
        if self._child is None:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._child.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """End it in any case."""
        if self._child is None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not await self.wait(5):
            self.signal(signal.SIGKILL)
            await self._child.wait()
        if self._reader is not None:
            await self._reader


class Run:
    """One run of a schedule in a folder of its own."""

    def __init__(self, schedule: Record, folder: Path, *, kinds: tuple[str, ...] = KINDS) -> None:
        self._schedule = schedule
        self._folder = folder
        self._kinds = kinds
        self._faults = Journal(folder / "faults.jsonl")
        self._links: dict[str, Process] = {}
        self.clients: dict[str, Process] = {}
        self._gateways: list[Process] = []
        self._gateway_busy = False
        self._clients_down: set[str] = set()
        self._busy: set[asyncio.Task[None]] = set()

    async def play(self) -> None:
        """Run it all; raises only if a process of the run itself cannot be started."""
        try:
            await self._start()
            await self._play_faults()
            await self._heal()
            await self._end_clients()
        finally:
            for task in self._busy:
                task.cancel()
            for process in self._processes():
                await process.stop()
            self._faults.close()

    def _processes(self) -> list[Process]:
        provider = [self.provider] if hasattr(self, "provider") else []
        return [*self.clients.values(), *self._gateways, *provider, *self._links.values()]

    # -- starting --

    async def _start(self) -> None:
        folder = self._folder
        simulate = ("-m", "holdfast.cli", "simulate", "--port", "0", "--log", folder / "provider.jsonl")
        self.provider = Process("provider", folder, *simulate)
        self.provider_url = _url(await self.provider.start())
        ports = {}
        for link in LINKS:
            process = Process(link, folder, "-m", "chaos.proxy", link, folder / f"{link}.jsonl")
            self._links[link] = process
            ports[link] = int(await process.start())
        self._links["provider_link"].order({"kind": "target", "port": _port(self.provider_url)})
        (folder / "gateway.toml").write_text(CONFIG.format(port=ports["provider_link"]))
        await self._start_gateway()
        url = f"http://127.0.0.1:{ports['client_link']}"
        self.clients = {kind: self._client(kind, url) for kind in self._kinds}
        await asyncio.gather(*(client.start() for client in self.clients.values()))

    def _client(self, kind: str, url: str) -> Process:
        schedule, journal = self._schedule, self._folder / f"client-{kind}.jsonl"
        options = ("--url", url, "--journal", journal, "--seed", str(schedule["seed"]))
        width = str(schedule["width"])
        return Process(kind, self._folder, "-m", "chaos.clients.worker", kind, *options, "--width", width)

    async def _start_gateway(self) -> None:
        """Start a process, and let new connections go to it; one that drains keeps those that it has."""
        serve = ("-m", "holdfast.cli", "serve", "--config", self._folder / "gateway.toml")
        self.gateway = Process("gateway", self._folder, *serve)
        self._gateways.append(self.gateway)
        url = _url(await self.gateway.start())
        self._links["client_link"].order({"kind": "target", "port": _port(url)})

    # -- faults --

    async def _play_faults(self) -> None:
        start = time.monotonic()
        for fault in self._schedule["faults"]:
            await asyncio.sleep(max(0.0, start + fault["at"] - time.monotonic()))
            self._carry_out(fault)
        await asyncio.sleep(max(0.0, start + self._schedule["seconds"] - time.monotonic()))

    def _carry_out(self, fault: Record) -> None:
        target = fault["target"]
        if target in LINKS:
            self._links[target].order(fault)  # the link writes down when it happens
        elif target == "provider":
            self._spawn(self._fault_provider(fault))
        elif target == "gateway":
            self._spawn(self._fault_gateway(fault))
        elif fault["name"] in self.clients:
            self._spawn(self._kill_client(fault))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._busy.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._faults.write(target="run", kind="failed", message=repr(task.exception()))
            print(f"chaos: a fault could not be carried out: {task.exception()!r}", file=sys.stderr)

    async def _fault_provider(self, fault: Record) -> None:
        self._faults.write(target="provider", kind=fault["kind"])
        order = {"fault": {"kind": fault["kind"]}, "connections": "current"}
        await asyncio.to_thread(_post, f"{self.provider_url}/control/connection-faults", order)

    async def _fault_gateway(self, fault: Record) -> None:
        gateway, kind, seconds = self.gateway, fault["kind"], fault["seconds"]
        if self._gateway_busy:
            return  # it is down or stopped already
        self._gateway_busy = True
        try:
            now = time.monotonic()
            if kind == "stop":
                self._faults.write(target="gateway", kind=kind, until=now + seconds)
                gateway.signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                gateway.signal(signal.SIGCONT)
                return
            self._faults.write(target="gateway", kind=kind, until=now + seconds + 1.0)
            if kind == "kill":
                gateway.signal(signal.SIGKILL)
                await gateway.wait(10)
                self._faults.write(target="gateway", kind="ended", since=now)
                await asyncio.sleep(seconds)
                await self._start_gateway()
                return
            gateway.signal(signal.SIGTERM)
            if fault["rolling"]:
                await self._start_gateway()
            if not await gateway.wait(_DRAIN):
                self._faults.write(target="gateway", kind="kill", until=time.monotonic() + 1.0)
                gateway.signal(signal.SIGKILL)
                await gateway.wait(10)
            self._faults.write(target="gateway", kind="ended", since=now)
            if not fault["rolling"]:
                await asyncio.sleep(seconds)
                await self._start_gateway()
        finally:
            self._gateway_busy = False

    async def _kill_client(self, fault: Record) -> None:
        client = self.clients[fault["name"]]
        if client.name in self._clients_down:
            return
        self._clients_down.add(client.name)
        self._faults.write(
            target="client", kind="kill", name=fault["name"], until=time.monotonic() + fault["seconds"]
        )
        client.signal(signal.SIGKILL)
        await client.wait(10)
        await asyncio.sleep(fault["seconds"])
        await client.start()
        self._clients_down.discard(client.name)

    # -- the end --

    async def _heal(self) -> None:
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=_START)
        for link in self._links.values():
            link.order({"kind": "heal"})

    async def _end_clients(self) -> None:
        for client in self.clients.values():
            client.signal(signal.SIGTERM)
        await asyncio.gather(*(client.wait(_LAST_STREAMS) for client in self.clients.values()))
        for client in self.clients.values():
            if client.is_running:
                print(f"chaos: {client.name} has not ended", file=sys.stderr)
                client.signal(signal.SIGKILL)


def judge(folder: Path) -> Verdict:
    """Check what a run has left in its folder."""
    faults = [record for name in ("faults", *LINKS) for record in read(folder / f"{name}.jsonl")]
    journals = (read(path) for path in sorted(folder.glob("client-*.jsonl")))
    verdict = check(journals, read(folder / "provider.jsonl"), faults)
    for record in faults:
        if record["target"] == "run":
            verdict.unexplained += 1
            verdict.findings.append(f"unexplained 1: {record['message']}")
    return verdict


def _url(line: str) -> str:
    match = re.search(r"http://127\.0\.0\.1:\d+", line)
    if match is None:
        raise RuntimeError(f"no address in {line!r}")
    return match[0]


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _post(url: str, body: Record) -> None:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=5) as response:
        response.read()
