"""What idle WebSocket connections cost a gateway, and what happens when all of them come back at once.

    python bench/idle.py --connections 10000

A gateway process is started with an API key. Clients in this process open authenticated connections, say hello,
and from then on only answer pings. Memory is `VmRSS` of the gateway before and after; connections are opened in
batches, and the first batch warms up. Heartbeats are the CPU time of the gateway over `--heartbeat` seconds.
Then all connections are cut, and made again within `--storm` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

KEY = "hf_" + "bench" * 8
CONFIG = f"""\
[server]
port = 0

[keys.bench]
hash = "sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
"""

REQUEST = (
    b"GET /v1/ws/stream HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-protocol: holdfast.v1\r\nauthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
)

_PING = 0x89


def _client_frame(text: bytes) -> bytes:
    # A mask of zeros is legal (RFC 6455 section 5.3 asks for unpredictability against proxies, not for servers).
    return bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text


HELLO = _client_frame(b'{"type":"hello","version":1,"client":"bench/1"}')


class IdleClient(asyncio.Protocol):
    """Opens a session and waits for its welcome; afterwards it only answers pings."""

    def __init__(self) -> None:
        self.welcome = asyncio.get_running_loop().create_future()
        self.started = time.perf_counter()
        self.pings = 0
        self.is_lost = False
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(REQUEST + HELLO)

    def data_received(self, data: bytes) -> None:
        if not self.welcome.done():
            self._received += data
            if b'"welcome"' in self._received:
                self.welcome.set_result(time.perf_counter() - self.started)
                self._received = b""
        elif data[0] == _PING:
            self.pings += 1
            size = data[1]
            self.transport.write(bytes((0x8A, 0x80 | size)) + b"\0\0\0\0" + data[2 : 2 + size])

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if not self.welcome.done():
            self.welcome.set_exception(ConnectionError(f"connection lost: {exc} {self._received[:200]!r}"))


def resident(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles(samples: list[float]) -> dict[str, float]:
    samples = sorted(samples)
    return {f"p{q * 100:g}": round(samples[int((len(samples) - 1) * q)] * 1e3, 1) for q in (0.5, 0.99, 1.0)}


async def open_connections(port: int, count: int, clients: list[IdleClient]) -> None:
    loop = asyncio.get_running_loop()
    for start in range(0, count, 100):
        batch = await asyncio.gather(
            *(loop.create_connection(IdleClient, "127.0.0.1", port) for _ in range(min(100, count - start)))
        )
        await asyncio.gather(*(client.welcome for _, client in batch))
        clients.extend(client for _, client in batch)


async def storm(port: int, count: int, seconds: float, clients: list[IdleClient]) -> dict[str, object]:
    """Cut all connections, and make them again at moments spread evenly over `seconds`."""
    for client in clients:
        client.transport.abort()
    clients.clear()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    waits: list[float] = []
    lost = 0

    async def come_back(number: int) -> None:
        nonlocal lost
        await asyncio.sleep(begun + seconds * number / count - loop.time())
        try:
            _, client = await loop.create_connection(IdleClient, "127.0.0.1", port)
            waits.append(await client.welcome)
        except OSError:
            lost += 1
        else:
            clients.append(client)

    await asyncio.gather(*(come_back(number) for number in range(count)))
    await asyncio.sleep(1.0)
    lost += sum(client.is_lost for client in clients)
    took = round(loop.time() - begun - 1.0, 2)
    return {"connections": count, "seconds": took, "lost": lost, "connect_to_welcome_ms": percentiles(waits)}


async def measure(args: argparse.Namespace, port: int, pid: int) -> dict[str, object]:
    clients: list[IdleClient] = []
    await open_connections(port, args.warm_up, clients)
    before, cpu_before = resident(pid), cpu_seconds(pid)
    await open_connections(port, args.connections, clients)
    cpu_opening = cpu_seconds(pid) - cpu_before
    await asyncio.sleep(args.settle)
    after = resident(pid)
    result: dict[str, object] = {
        "connections": args.connections,
        "rss_before_mib": round(before / 2**20, 2),
        "rss_after_mib": round(after / 2**20, 2),
        "bytes_per_connection": round((after - before) / args.connections),
        "cpu_us_per_accept": round(cpu_opening / args.connections * 1e6),
    }
    if args.heartbeat:
        await asyncio.sleep(args.lead)
        pings = sum(client.pings for client in clients)
        start, cpu_start = time.perf_counter(), cpu_seconds(pid)
        await asyncio.sleep(args.heartbeat)
        share = (cpu_seconds(pid) - cpu_start) / (time.perf_counter() - start)
        result["pings_per_second"] = round((sum(client.pings for client in clients) - pings) / args.heartbeat)
        result["heartbeat_cpu_percent_of_a_core"] = round(share * 100, 2)
        result["lost_while_idle"] = sum(client.is_lost for client in clients)
    if args.storm:
        result["storm"] = await storm(port, args.connections, args.storm, clients)
    for client in clients:
        client.transport.abort()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=500, help="connections opened before the first reading")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds before the second reading")
    parser.add_argument("--lead", type=float, default=20.0, help="seconds until all are being pinged")
    parser.add_argument("--heartbeat", type=float, default=40.0, help="seconds to measure the idle CPU for")
    parser.add_argument(
        "--storm", type=float, default=10.0, help="seconds within which all come back; 0: no storm"
    )
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "holdfast.toml")
        config.write_text(CONFIG)
        gateway = subprocess.Popen(
            [sys.executable, "-m", "holdfast.cli", "serve", "--config", str(config), "--log-level", "warning"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert gateway.stdout is not None
            match = re.search(r"http://127\.0\.0\.1:(\d+)", gateway.stdout.readline())
            assert match is not None
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(measure(args, int(match[1]), gateway.pid))
        finally:
            gateway.kill()
            gateway.wait()
    result["machine"] = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result["command"] = "python " + " ".join(sys.argv)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
