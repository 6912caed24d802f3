"""What an idle WebSocket connection costs: resident memory of the gateway process per connection.

    python bench/idle.py --connections 5000

A gateway process is started, and clients in this process open connections, say hello and stay silent. Memory is
`VmRSS` of the gateway before and after; connections are opened in batches, and the first batch warms up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time

REQUEST = (
    b"GET /v1/ws/stream HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"sec-websocket-protocol: holdfast.v1\r\n\r\n"
)


def _client_frame(text: bytes) -> bytes:
    # A mask of zeros is legal (RFC 6455 section 5.3 asks for unpredictability against proxies, not for servers).
    return bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text


HELLO = _client_frame(b'{"type":"hello","version":1,"client":"bench/1"}')


class IdleClient(asyncio.Protocol):
    """Opens a session and waits for its welcome; afterwards it answers nothing and sends nothing."""

    def __init__(self) -> None:
        self.welcome = asyncio.get_running_loop().create_future()
        self.started = time.perf_counter()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(REQUEST + HELLO)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.welcome.done():
            self._received += data
            if b'"welcome"' in self._received:
                self.welcome.set_result(time.perf_counter() - self.started)
                self._received = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(ConnectionError(f"connection lost: {exc} {self._received[:200]!r}"))


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        match = re.search(r"VmRSS:\s+(\d+) kB", file.read())
    assert match is not None
    return int(match[1]) * 1024


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def open_connections(port: int, count: int, clients: list[IdleClient]) -> None:
    loop = asyncio.get_running_loop()
    for start in range(0, count, 100):
        batch = await asyncio.gather(
            *(loop.create_connection(IdleClient, "127.0.0.1", port) for _ in range(min(100, count - start)))
        )
        await asyncio.gather(*(client.welcome for _, client in batch))
        clients.extend(client for _, client in batch)


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
        start, cpu_start = time.perf_counter(), cpu_seconds(pid)
        await asyncio.sleep(args.heartbeat)
        share = (cpu_seconds(pid) - cpu_start) / (time.perf_counter() - start)
        result["idle_cpu_percent_of_a_core"] = round(share * 100, 2)
    for client in clients:
        client.transport.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--warm-up", type=int, default=500, help="connections opened before the first reading")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds before the second reading")
    parser.add_argument("--heartbeat", type=float, default=0.0, help="seconds to measure the idle CPU for")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    gateway = subprocess.Popen(
        [sys.executable, "-m", "holdfast.cli", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert gateway.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:(\d+)", gateway.stdout.readline())
        assert match is not None
        result = asyncio.run(measure(args, int(match[1]), gateway.pid))
    finally:
        gateway.terminate()
        gateway.wait()
    result["machine"] = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result["command"] = "python " + " ".join(sys.argv)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
