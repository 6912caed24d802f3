"""The processes of a benchmark: a gateway, a simulated provider and a crowd of clients, and what they cost.

Each runs on cores of its own where there are several: the gateway on the first, everything else on the others, so
that its CPU time is not blurred by what measures it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: The API key that every client of these benchmarks has.
KEY = "hf_" + "bench" * 8
_LISTENS = r"http://127\.0\.0\.1:(\d+)"
#: Descriptors that a process needs beside its connections.
_SPARE_DESCRIPTORS = 512
#: Seconds that clients may take for one thing; the longest takes about half of it.
_PATIENCE = 120.0


@dataclass(frozen=True)
class Server:
    """A server process that listens on 127.0.0.1."""

    pid: int
    port: int

    def resident(self) -> int:
        """Resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """On-CPU time of all threads, to the nanosecond: the kernel's own account, not ticks of its clock."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread may just have ended
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9


def raise_descriptor_limit() -> int:
    """Let this process and its children open as many files as they may; return how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def max_connections() -> int:
    """How many connections one process may hold, with room for what else it has open."""
    return raise_descriptor_limit() - _SPARE_DESCRIPTORS


@contextlib.contextmanager
def provider() -> Iterator[Server]:
    """A simulated provider, HTTP/2 with prior knowledge or HTTP/1.1."""
    with _listening(["-m", "holdfast.cli", "simulate", "--port", "0"], is_measured=False) as server:
        yield server


@contextlib.contextmanager
def gateway(behind: Server | None = None, **settings: Mapping[str, object]) -> Iterator[Server]:
    """A gateway that takes `KEY`, in front of a provider by HTTP/2, or of its own demo. `settings` are tables of
    its configuration by name, such as `server={"max_connections": 20_000}`."""
    tables: dict[str, Mapping[str, object]] = {"server": {}, **settings}
    tables["server"] = {"port": 0, **tables["server"]}
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    tables["keys.bench"] = {"hash": f"sha256:{digest}"}
    if behind is not None:
        url = f"http://127.0.0.1:{behind.port}/v1"
        tables["providers.sim"] = {"base_url": url, "http2": "prior-knowledge"}
        tables["models.demo"] = {"route": ["sim/demo"]}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("".join(_toml(name, table) for name, table in tables.items()))
        file.flush()
        command = ["-m", "holdfast.cli", "serve", "--config", file.name, "--log-level", "error"]
        with _listening(command, is_measured=True) as server:
            yield server


def _toml(name: str, table: Mapping[str, object]) -> str:
    # Numbers, strings and lists of strings are written in TOML as in JSON.
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return f"[{name}]\n" + "\n".join(lines) + "\n"


@contextlib.contextmanager
def _listening(command: list[str], *, is_measured: bool) -> Iterator[Server]:
    with _child(command, is_measured=is_measured) as process:
        assert process.stdout is not None
        for line in process.stdout:
            match = re.search(_LISTENS, line)
            if match:
                yield Server(process.pid, int(match[1]))
                return
        raise RuntimeError(f"`{' '.join(command)}` ended before it listened")


@contextlib.contextmanager
def _child(command: list[str], *, is_measured: bool) -> Iterator[subprocess.Popen[str]]:
    raise_descriptor_limit()
    pipe = subprocess.PIPE
    # In a session of its own: Ctrl-C in a terminal is for the benchmark, which then ends what it started.
    process = subprocess.Popen(
        [sys.executable, *command], stdin=pipe, stdout=pipe, text=True, cwd=ROOT, start_new_session=True
    )
    try:
        _pin(process.pid, is_measured=is_measured)
        yield process
    finally:
        # Nothing of it is needed any more; to end in good order would let running streams come to their end first.
        process.kill()
        process.wait()


def _pin(pid: int, *, is_measured: bool) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    first, *others = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(pid, {first} if is_measured else set(others))


class Crowd:
    """Clients in a process of their own, see `bench/crowd.py`: it does one thing at a time and answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Have something done, and return the answer. Raises RuntimeError with what went wrong there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        # An answer is one line, and none is read ahead, so the pipe is readable exactly when an answer comes.
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise RuntimeError(f"the clients did not `{do}` {arguments} within {_PATIENCE:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the clients' process ended while it was asked to `{do}`")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the clients could not `{do}`: {answer['error']}")
        return answer


@contextlib.contextmanager
def crowd(server: Server) -> Iterator[Crowd]:
    with _child(["-m", "bench.crowd", str(server.port)], is_measured=False) as process:
        yield Crowd(process)
