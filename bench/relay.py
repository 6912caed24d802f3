"""What relaying one token event costs: CPU of the relaying process per event, side by side in one run.

    python bench/relay.py                                   all relays, all loads
    python bench/relay.py --relays nginx,ws-h2 --loads paced

A simulated provider and the clients run on one core, the relay under test is pinned to the other. CPU is what the
kernel accounts to the relay's process (`/proc/PID/schedstat`, in nanoseconds), so that a busy machine blurs it
less than a wall clock would. Each figure is the median of one-second windows, with the least and the most.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
RELAY_CORE, LOAD_CORE = 0, 1

#: `paced` is 50 events per second and stream, `double` twice that, `burst` brings five events per provider write,
#: `saturated` is as fast as it goes.
LOADS: dict[str, dict[str, object]] = {
    "light": {"interval_ms": 200, "tokens": 100_000, "timestamps": True},
    "paced": {"interval_ms": 20, "tokens": 100_000, "timestamps": True},
    "double": {"interval_ms": 10, "tokens": 100_000, "timestamps": True},
    "burst": {"interval_ms": 100, "burst": 5, "tokens": 100_000, "timestamps": True},
    "saturated": {"interval_ms": 0, "tokens": 10_000_000},
}

#: Name of the relay: what relays, how clients read, how the provider is spoken to.
RELAYS = {
    "direct": ("direct", "sse", "http1"),
    "nginx": ("nginx", "sse", "http1"),
    "ws-h2": ("holdfast", "ws", "http2"),
    "ws-h1": ("holdfast", "ws", "http1"),
    "sse-h2": ("holdfast", "sse", "http2"),
    "sse-h1": ("holdfast", "sse", "http1"),
    "ws-h2-mux": ("holdfast", "ws-mux", "http2"),
}


@contextlib.contextmanager
def started(command: list[str], core: int, pattern: str) -> Iterator[tuple[subprocess.Popen[str], re.Match[str]]]:
    """Run a server process on one core and wait for the line that says where it listens."""
    process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            match = re.search(pattern, line)
            if match:
                yield process, match
                break
        else:
            sys.exit(f"{command[0]} ended before it listened")
    finally:
        # SIGTERM would let the gateway's running streams come to their end first.
        process.send_signal(signal.SIGINT)
        process.wait()


@contextlib.contextmanager
def provider() -> Iterator[int]:
    command = [sys.executable, "-m", "holdfast.cli", "simulate", "--port", "0"]
    with started(command, LOAD_CORE, r"http://127\.0\.0\.1:(\d+)") as (_, match):
        yield int(match[1])


@contextlib.contextmanager
def holdfast(provider_port: int, protocol: str) -> Iterator[tuple[str, int]]:
    http2 = 'http2 = "prior-knowledge"\n' if protocol == "http2" else ""
    config = (
        "[server]\nport = 0\n"
        f'[providers.sim]\nbase_url = "http://127.0.0.1:{provider_port}/v1"\n{http2}'
        '[models.demo]\nroute = ["sim/demo"]\n'
    )
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config)
        file.flush()
        command = [sys.executable, "-m", "holdfast.cli", "serve", "--config", file.name, "--log-level", "error"]
        with started(command, RELAY_CORE, r"http://127\.0\.0\.1:(\d+)") as (process, match):
            yield f"http://127.0.0.1:{match[1]}/v1", process.pid


@contextlib.contextmanager
def nginx(provider_port: int) -> Iterator[tuple[str, int]]:
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(f"""\
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream sim {{ server 127.0.0.1:{provider_port}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://sim; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
""")
        command = ["taskset", "-c", str(RELAY_CORE), "nginx", "-p", folder, "-c", str(config)]
        process = subprocess.Popen(command)
        try:
            _wait_for_port(port)
            yield f"http://127.0.0.1:{port}/v1", process.pid
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def relay(name: str, provider_port: int) -> Iterator[tuple[str, int]]:
    kind, _, protocol = RELAYS[name]
    if kind == "direct":
        yield f"http://127.0.0.1:{provider_port}/v1", 0
    elif kind == "nginx":
        with nginx(provider_port) as found:
            yield found
    else:
        with holdfast(provider_port, protocol) as found:
            yield found


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for_port(port: int) -> None:
    import socket
    import time

    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    sys.exit(f"nothing listens on port {port}")


def cpu_ns(pid: int) -> int:
    """On-CPU time of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total


def measure(name: str, load: str, args: argparse.Namespace) -> dict[str, object]:
    """One relay under one load: windows of a second after a warm-up."""
    _, clients, _ = RELAYS[name]
    with provider() as provider_port, relay(name, provider_port) as (url, pid):
        command = [
            *("taskset", "-c", str(LOAD_CORE), sys.executable, str(HERE / "load.py"), "--url", url),
            *("--kind", "sse" if clients == "sse" else "ws", "--streams", str(args.streams)),
            *("--sockets", "4" if clients == "ws-mux" else "0", "--sim", json.dumps(LOADS[load])),
            *("--seconds", str(args.warm_up + args.windows + 1)),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines: list[tuple[dict[str, object], int]] = []
        for line in process.stdout:
            lines.append((json.loads(line), cpu_ns(pid) if pid else 0))
        process.wait()
        memory = _resident(pid) if pid else 0
    errors = lines[-1][0]["errors"]
    if errors:
        print(f"{name} {load}: {errors}", file=sys.stderr)
    lines = lines[args.warm_up - 1 :]
    rates, costs, shares, latencies = [], [], [], []
    for (before, cpu_before), (after, cpu_after) in itertools.pairwise(lines):
        seconds = float(after["t"]) - float(before["t"])  # type: ignore[arg-type]
        events = int(after["events"]) - int(before["events"])  # type: ignore[call-overload]
        rates.append(events / seconds)
        if events and pid:
            costs.append((cpu_after - cpu_before) / events / 1000)
            shares.append((cpu_after - cpu_before) / seconds / 1e9)
        if "latency_ms" in after:
            latencies.append(after["latency_ms"])
    return {
        "relay": name,
        "load": load,
        "events_per_second": _spread(rates, 0),
        "cpu_us_per_event": _spread(costs, 2),
        "core_share": _spread(shares, 3),
        "latency_p50_ms": _spread([latency[0] for latency in latencies], 3),  # type: ignore[index]
        "latency_p99_ms": _spread([latency[1] for latency in latencies], 3),  # type: ignore[index]
        "rss_mib": round(memory / 2**20, 1),
    }


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _spread(values: list[float], digits: int) -> list[float]:
    """Median, least and most."""
    return [round(f(values), digits) for f in (statistics.median, min, max)] if values else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--relays", default="nginx,ws-h2,ws-h1,sse-h2,ws-h2-mux")
    parser.add_argument("--loads", default="paced,double,burst,saturated")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--windows", type=int, default=5, help="one-second windows that count")
    parser.add_argument("--warm-up", type=int, default=2, help="seconds that do not")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if shutil.which("nginx") is None:
        print("nginx is not installed (Debian: apt-get install nginx-light); skipped", file=sys.stderr)
        args.relays = ",".join(name for name in args.relays.split(",") if name != "nginx")
    print(f"# {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"# python {' '.join(sys.argv)}")
    print("# CPU of the relay per event in µs: median (least-most); latency provider write to client read in ms")
    for load in args.loads.split(","):
        for name in args.relays.split(","):
            print(_row(measure(name, load, args)), flush=True)


def _row(result: dict[str, object]) -> str:
    def show(key: str) -> str:
        spread = result[key]
        return f"{spread[0]:>9} ({spread[1]}-{spread[2]})" if spread else "-"  # type: ignore[index]

    return (
        f"{result['load']:<10}{result['relay']:<11}{show('cpu_us_per_event'):<28}"
        f"{show('events_per_second'):<34}p50 {show('latency_p50_ms'):<26}p99 {show('latency_p99_ms'):<28}"
        f"core {show('core_share'):<26}{result['rss_mib']} MiB"
    )


if __name__ == "__main__":
    main()
