"""A soak: hours of work in bad weather, to see whether memory grows or counts drift.

    python bench/soak.py                    20 minutes
    python bench/soak.py --minutes 2 --clients 20

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
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
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


@contextlib.contextmanager
def started(*command: str, mmap_threshold: int | None = None) -> Iterator[tuple[int, str]]:
    """Run a `holdfast` command; give its process id and the URL at which it listens."""
    environ = dict(os.environ)
    if mmap_threshold is not None:
        environ["MALLOC_MMAP_THRESHOLD_"] = str(mmap_threshold)
    arguments = [sys.executable, "-m", "holdfast.cli", *command]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield process.pid, match[0]
                break
        else:
            sys.exit(f"holdfast {command[0]} ended before it listened")
    finally:
        process.terminate()
        process.wait()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def sockets(pid: int) -> int:
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


async def one_request(url: str, rng: random.Random, ends: Counter[str]) -> None:
    """Ask for an answer and read it, or leave in the middle."""
    sim: dict[str, Any] = {"tokens": rng.randrange(1, 60), "interval_ms": rng.choice([0, 2, 10]), "ttft_ms": 5}
    if rng.random() < 0.25:
        sim["fault"] = rng.choice(REQUEST_FAULTS)
    streaming = rng.random() < 0.9
    leaves_after = rng.randrange(1, 4000) if rng.random() < 0.15 else None
    message = {"role": "user", "content": "hi"}
    body = json.dumps({"model": "demo", "stream": streaming, "messages": [message], "sim": sim}).encode()
    port = int(url.rsplit(":", 1)[1])
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


async def client(url: str, until: float, seed: int, ends: Counter[str]) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        await one_request(url, rng, ends)
        await asyncio.sleep(rng.random() * 0.1)


async def give_order(url: str, method: str, body: Any = None) -> None:
    """Steer the provider; the connection that brings the order may itself be hit, so more than once if need be."""
    for _ in range(20):
        try:
            await asyncio.to_thread(call, url, method, body, timeout=1)
        except OSError:
            continue
        return


async def weather(provider_url: str, until: float) -> None:
    """Hit connections at random."""
    rng = random.Random(1)
    storm = {"status": {"429": 0.02, "503": 0.02}, "hang_handshake": 0.01, "reset": 0.01}
    await give_order(f"{provider_url}/control/random-failures", "POST", storm)
    while time.monotonic() < until:
        await asyncio.sleep(2)
        order = {"fault": rng.choice(CONNECTION_FAULTS), "connections": rng.choice(["next", "current"])}
        await give_order(f"{provider_url}/control/connection-faults", "POST", order)
    for what in ("random-failures", "connection-faults"):
        await give_order(f"{provider_url}/control/{what}", "DELETE")


async def observe(pid: int, url: str, until: float, samples: list[int]) -> None:
    began = time.monotonic()
    shown = began
    while time.monotonic() < until:
        await asyncio.sleep(1)
        samples.append(resident(pid))
        if time.monotonic() - shown >= 30:
            shown = time.monotonic()
            pool = (await asyncio.to_thread(call, f"{url}/v1/pool"))["providers"][0]["pool"]
            print(
                f"{(shown - began) / 60:6.1f} min  {samples[-1] / 2**20:7.1f} MiB  {sockets(pid):4} sockets  "
                f"{len(pool['connections']):3} connections  {pool['streams']:3} streams  "
                f"{pool['requests']:8} requests",
                flush=True,
            )


async def soak(args: argparse.Namespace, pid: int, url: str, provider_url: str) -> int:
    sockets_before = sockets(pid)
    until = time.monotonic() + args.minutes * 60
    samples: list[int] = []
    ends: Counter[str] = Counter()
    await asyncio.gather(
        weather(provider_url, until),
        observe(pid, url, until, samples),
        *[client(url, until, seed, ends) for seed in range(args.clients)],
    )
    provider = await at_rest(url)
    pool, health = provider["pool"], provider["health"]
    tenth = max(1, len(samples) // 10)
    early, middle, end = (statistics.median(samples[n * tenth : (n + 1) * tenth]) for n in (1, 5, 9))
    growth = end / middle - 1
    print(f"\nends        {dict(ends.most_common())}")
    print(
        f"pool        connects {pool['connects']}, failures {pool['connect_failures']}, goaways {pool['goaways']}"
    )
    print(f"resets      {pool['resets']}")
    print(
        f"attempts    {health['attempts']}, retries {health['retries']}, sent again {health['resent_unprocessed']}"
    )
    print(
        f"memory      {early / 2**20:.1f} MiB after a tenth, {middle / 2**20:.1f} MiB after a half, "
        f"{end / 2**20:.1f} MiB at the end: {growth:+.1%} over the second half"
    )
    left = {
        "streams": pool["streams"],
        "waiting": pool["waiting"],
        "connecting": pool["connecting"],
        "connections": len(pool["connections"]),
        "sockets": sockets(pid) - sockets_before,
    }
    print(f"left        {left}")
    return int(growth > MAX_GROWTH or any(left.values()))


async def at_rest(url: str) -> Any:
    """Wait until the pool has closed what is idle, or 30 seconds."""
    for _ in range(30):
        provider = (await asyncio.to_thread(call, f"{url}/v1/pool"))["providers"][0]
        pool = provider["pool"]
        if not (pool["streams"] or pool["connections"] or pool["connecting"] or pool["waiting"]):
            break
        await asyncio.sleep(1)
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
    with started("simulate", "--port", "0") as (_, provider_url), tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "holdfast.toml"
        http2 = "off" if args.http1 else "prior-knowledge"
        config.write_text(CONFIG.format(base_url=f"{provider_url}/v1", http2=http2))
        serve = ("serve", "--config", str(config), "--log-level", "error")
        with started(*serve, mmap_threshold=args.mmap_threshold) as (pid, url):
            return asyncio.run(soak(args, pid, url, provider_url))


if __name__ == "__main__":
    sys.exit(main())
