"""A soak: hours of work in bad weather, to see whether memory grows or counts drift.

    make soak                               20 minutes
    make soak ARGS="--minutes 2 --clients 20"

A simulated provider, a gateway and the clients are three processes. Requests fail at random in every way that the
provider knows, connections are hit at random, clients leave at random. Memory is the gateway's resident set as the
kernel counts it, as medians over a tenth of the time: the second, the sixth and the last. The first half is
warm-up, since glibc's allocator takes about ten minutes of this to come near its plateau: once it has seen a large
block freed, it keeps such blocks (mallopt(3), M_MMAP_THRESHOLD), unless `--mmap-threshold 65536` forbids it. The
exit status is 1 if memory has grown by more than 5 % over the second half, or if anything is left at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from bench.processes import Server, holdfast, resident, simulated_provider

MAX_GROWTH = 0.05

CONFIG = """
[server]
port = 0
[streams]
retention = 2.0
retention_acknowledged = 1.0
[providers.sim]
base_url = "{base_url}"
http2 = "{http2}"
max_age = 30.0
idle_timeout = 5.0
ping_interval = 2.0
ping_timeout = 2.0
timeouts = {{ connect = 2.0, pool = 5.0, first_byte = 2.0, idle = 2.0, total = 10.0 }}
breaker = {{ failures = 50, open_for = 1.0, max_open_for = 2.0 }}
[models.demo]
route = ["sim/demo"]
"""

#: Faults of single requests; three quarters of the requests have none.
REQUEST_FAULTS: list[dict[str, Any]] = [
    {"kind": "stall", "after_tokens": 5},
    {"kind": "end_early", "after_tokens": 5},
    {"kind": "cut", "after_tokens": 5},
    {"kind": "cut", "before_head": True},
    {"kind": "reset", "after_tokens": 5},
    {"kind": "reset", "before_head": True},
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 429, "retry_after": 1},
    {"kind": "error_event", "after_tokens": 5},
    {"kind": "malformed", "after_tokens": 5},
    {"kind": "huge_event", "bytes": 300_000},
    {"kind": "no_answer"},
]
#: Faults of connections; every two seconds one of them hits all connections or the next one.
CONNECTION_FAULTS: list[dict[str, Any]] = [
    {"kind": "goaway"},
    {"kind": "goaway", "unprocessed": 2},
    {"kind": "goaway", "close": True},
    {"kind": "reset_streams", "which": "oldest"},
    {"kind": "reset_streams", "which": "newest", "error_code": 7},
    {"kind": "settings", "max_concurrent_streams": 3},
    {"kind": "settings", "initial_window_size": 100},
    {"kind": "no_ping_answer"},
    {"kind": "hang_handshake"},
    {"kind": "black_hole", "after_bytes": 5000},
    {"kind": "reset", "after_bytes": 5000},
    {"kind": "close"},
]


def sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(link).startswith("socket:")
    return count


def call(url: str, method: str = "GET", body: Any = None, *, timeout: float = 10) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.loads(response.read())


async def ask(port: int, rng: random.Random, ends: Counter[str]) -> None:
    """Ask the gateway for an answer and read it, or leave in the middle; count how it ended."""
    sim: dict[str, Any] = {"tokens": rng.randrange(1, 60), "interval_ms": rng.choice([0, 2, 10]), "ttft_ms": 5}
    if rng.random() < 0.25:
        sim["fault"] = rng.choice(REQUEST_FAULTS)
    streaming = rng.random() < 0.9
    leaves_after = rng.randrange(1, 4000) if rng.random() < 0.15 else None
    message = {"role": "user", "content": "hi"}
    body = json.dumps({"model": "demo", "stream": streaming, "messages": [message], "sim": sim}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        received = b""
        async with asyncio.timeout(60):
            while part := await reader.read(65_536):
                received += part
                if leaves_after is not None and len(received) >= leaves_after:
                    ends["left"] += 1
                    return
        status = received[9:12].decode()
        whole = b"data: [DONE]" in received or not streaming
        ends["completed" if status == "200" and whole else f"status {status}" if status != "200" else "cut"] += 1
    except (OSError, TimeoutError) as exc:
        ends[type(exc).__name__] += 1
    finally:
        writer.close()


async def run_client(port: int, until: float, seed: int, ends: Counter[str]) -> None:
    """Ask for one answer after another."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        await ask(port, rng, ends)
        await asyncio.sleep(rng.random() * 0.1)


async def give_order(url: str, method: str, body: Any = None) -> None:
    """Steer the provider. A fault may hit the connection that brings the order, so try several times."""
    for _ in range(20):
        try:
            await asyncio.to_thread(call, url, method, body, timeout=1)
        except OSError:
            continue
        return


async def break_connections(provider_url: str, until: float) -> None:
    """Hit the provider's connections with a fault every two seconds, and some more at random."""
    rng = random.Random(1)
    storm = {"status": {"429": 0.02, "503": 0.02}, "hang_handshake": 0.01, "reset": 0.01}
    await give_order(f"{provider_url}/control/random-failures", "POST", storm)
    while time.monotonic() < until:
        await asyncio.sleep(2)
        order = {"fault": rng.choice(CONNECTION_FAULTS), "connections": rng.choice(["next", "current"])}
        await give_order(f"{provider_url}/control/connection-faults", "POST", order)
    for what in ("random-failures", "connection-faults"):
        await give_order(f"{provider_url}/control/{what}", "DELETE")


async def observe(gateway: Server, until: float, samples: list[int]) -> None:
    """Take a sample of the gateway's memory each second, and print how it stands twice a minute."""
    began = time.monotonic()
    shown = began
    while time.monotonic() < until:
        await asyncio.sleep(1)
        samples.append(resident(gateway.pid))
        if time.monotonic() - shown >= 30:
            shown = time.monotonic()
            pool = (await pool_statistics(gateway))["pool"]
            print(
                f"{(shown - began) / 60:6.1f} min  {samples[-1] / 2**20:7.1f} MiB  "
                f"{sockets(gateway.pid):4} sockets  {len(pool['connections']):3} connections  "
                f"{pool['streams']:3} streams  {pool['requests']:8} requests",
                flush=True,
            )


async def pool_statistics(gateway: Server) -> Any:
    """Ask the gateway how it stands with its provider."""
    return (await asyncio.to_thread(call, f"{gateway.url}/pool"))["providers"][0]


async def soak(args: argparse.Namespace, gateway: Server, provider: Server) -> int:
    """Run the clients, print what became of it, and return the exit status."""
    sockets_before = sockets(gateway.pid)
    until = time.monotonic() + args.minutes * 60
    samples: list[int] = []
    ends: Counter[str] = Counter()
    await asyncio.gather(
        break_connections(f"http://127.0.0.1:{provider.port}", until),
        observe(gateway, until, samples),
        *[run_client(gateway.port, until, seed, ends) for seed in range(args.clients)],
    )
    statistics_at_rest = await at_rest(gateway)
    pool = statistics_at_rest["pool"]
    print(f"\nends        {dict(ends.most_common())}")
    _print_pool(pool, statistics_at_rest["health"])
    growth = _growth(samples)
    left = {
        "streams": pool["streams"],
        "waiting": pool["waiting"],
        "connecting": pool["connecting"],
        "connections": len(pool["connections"]),
        "sockets": sockets(gateway.pid) - sockets_before,
    }
    print(f"left        {left}")
    return int(growth > MAX_GROWTH or any(left.values()))


def _print_pool(pool: dict[str, Any], health: dict[str, Any]) -> None:
    connects, failures, goaways = pool["connects"], pool["connect_failures"], pool["goaways"]
    print(f"pool        connects {connects}, failures {failures}, goaways {goaways}")
    print(f"resets      {pool['resets']}")
    retries, again = health["retries"], health["resent_unprocessed"]
    print(f"attempts    {health['attempts']}, retries {retries}, sent again {again}")


def _growth(samples: list[int]) -> float:
    """Print how memory went; return by which part of itself it has grown over the second half."""
    tenth = max(1, len(samples) // 10)
    early, middle, end = (statistics.median(samples[n * tenth : (n + 1) * tenth]) for n in (1, 5, 9))
    growth = end / middle - 1
    print(
        f"memory      {early / 2**20:.1f} MiB after a tenth, {middle / 2**20:.1f} MiB after a half, "
        f"{end / 2**20:.1f} MiB at the end: {growth:+.1%} over the second half"
    )
    return growth


async def at_rest(gateway: Server) -> Any:
    """Return the statistics once the pool has closed what is idle, or after 30 seconds."""
    for _ in range(30):
        provider = await pool_statistics(gateway)
        pool = provider["pool"]
        if not (pool["streams"] or pool["connections"] or pool["connecting"] or pool["waiting"]):
            break
        await asyncio.sleep(1)  # the gateway tells nobody when its pool is empty
    await asyncio.sleep(1)
    return provider


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--mmap-threshold", type=int, metavar="BYTES", help="fix the allocator's threshold")
    parser.add_argument("--http1", action="store_true", help="speak HTTP/1.1 to the provider")
    args = parser.parse_args()
    print(
        f"$ {' '.join(sys.argv)}   Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} CPUs"
    )
    environment = {}
    if args.mmap_threshold is not None:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(args.mmap_threshold)
    with simulated_provider(None) as provider, tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(CONFIG.format(base_url=provider.url, http2="off" if args.http1 else "prior-knowledge"))
        config.flush()
        serve = ["serve", "--config", config.name, "--log-level", "error"]
        with holdfast(serve, None, environment=environment) as gateway:
            return asyncio.run(soak(args, gateway, provider))


if __name__ == "__main__":
    sys.exit(main())
