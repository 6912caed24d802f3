"""Processes under test: pinned to a core, waited for until they listen, measured as trees, stopped cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: The gateway under test has one core for itself; the provider and the load share the other one.
GATEWAY_CORE, LOAD_CORE = 0, 1
#: Seconds until a process must listen, and those that it has to end.
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 10.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LOOK_AGAIN = 0.02


class ProcessFailed(Exception):
    """A process did not come to listen; the message has the end of what it wrote."""


@dataclass(frozen=True)
class Server:
    """A running server. `pid` is the first process of its tree."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def pinned(core: int) -> list[str]:
    """What is put before a command so that it runs on one core, with all its threads and children."""
    return ["taskset", "-c", str(core)]


def free_port() -> int:
    """A port that is free now. Somebody else could take it, so ask for one just before it is needed."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    core: int,
    port: int,
    *,
    environment: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    cwd: str | None = None,
) -> Iterator[Server]:
    """Run a server on one core from when it listens on `port` until the block is over.

    Its children end with it: it leads a process group of its own. Raises `ProcessFailed` if it does not listen.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*pinned(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
        try:
            _wait_until_it_listens(process, port, output)
            yield Server(process.pid, port)
        finally:
            _end(process, stop)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, output: IO[str]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(_LOOK_AGAIN)
    output.seek(0)
    ended = "did not listen" if process.poll() is None else f"ended with status {process.returncode}"
    raise ProcessFailed(f"{process.args[3]} {ended}: {output.read()[-600:].strip()}")  # type: ignore[index]


def _end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    members = tree(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(stop)
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        pass
    # What is left of its group: a server that was killed, or children that outlived it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Nobody here is told of the end of its children, and what comes next must not share the core with them.
    deadline = time.monotonic() + _STOP_TIMEOUT
    while any(is_running(member) for member in members) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)


@contextlib.contextmanager
def simulated_provider(core: int = LOAD_CORE, *arguments: str) -> Iterator[Server]:
    """The simulated provider, with as many HTTP/2 streams on a connection as anybody may want."""
    port = free_port()
    command = [sys.executable, "-m", "holdfast.cli", "simulate", "--port", str(port), *arguments]
    with serving(command, core, port, stop=signal.SIGINT) as server:
        yield server


# -- what a tree of processes takes ------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """The process and all that descend from it. The kernel lists children only where it was built to do so."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may have any character in it.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended, and that nobody has waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def cpu_ns(pid: int) -> int:
    """On-CPU time of a whole tree of processes in ns, as the scheduler counts it; what has ended is left out."""
    total = 0
    for member in tree(pid):
        for schedstat in Path(f"/proc/{member}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(schedstat.read_text().split()[0])
    return total


def resident(pid: int) -> int:
    """Bytes of memory that a whole tree holds; pages that processes share count for each of them."""
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * _PAGE
    return total
