"""Processes under test: pinned to a core, waited for until they listen, measured as trees, stopped cleanly."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: The gateway under test has one core for itself; the provider and the load share the other one.
GATEWAY_CORE, LOAD_CORE = 0, 1
#: Seconds until a process must listen, and those that it has to end.
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 10.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Seconds between two tries to connect to a server that says nothing when it listens.
_TRY_AGAIN = 0.02
#: What `holdfast` prints when it listens.
_LISTENS = re.compile(r"http://127\.0\.0\.1:(\d+)")
#: Descriptors that a process needs beside its connections.
_SPARE_DESCRIPTORS = 512


class ProcessFailed(Exception):
    """A process did not come to listen; the message has the end of what it wrote."""


@dataclass(frozen=True)
class Server:
    """A server that listens on 127.0.0.1. Its process is the first one of a tree."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def pinned(core: int | None) -> list[str]:
    """What is put before a command to run it on one core, with all its threads and children; None: on any."""
    return [] if core is None else ["taskset", "-c", str(core)]


def free_port() -> int:
    """A port that is free now. Somebody else could take it, so ask for one just before it is needed."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def raise_descriptor_limit() -> int:
    """Let this process and its children open as many files as they may; return how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def max_connections() -> int:
    """How many connections one process may hold, with room for what else it has open."""
    return raise_descriptor_limit() - _SPARE_DESCRIPTORS


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    core: int | None,
    port: int,
    *,
    environment: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    cwd: str | None = None,
) -> Iterator[Server]:
    """Run a server from when it listens on `port` until the block is over, on one core where one is given.

    Its children end with it: it leads a process group of its own. Raises `ProcessFailed` if it does not listen.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = _start(command, core, environment, output, subprocess.STDOUT, cwd)
        try:
            _wait_until_it_listens(process, command[0], port, output)
            yield Server(process, port)
        finally:
            _end(process, stop)


@contextlib.contextmanager
def holdfast(
    arguments: Sequence[str],
    core: int | None,
    *,
    environment: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGINT,
) -> Iterator[Server]:
    """Run a command of `holdfast` as `serving` does; it says itself when it listens, and where.

    By default it is stopped by SIGINT: SIGTERM would let running streams come to their end first.
    """
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "holdfast.cli", *arguments]
        process = _start(command, core, environment, subprocess.PIPE, errors)
        try:
            yield Server(process, _said_port(process, f"holdfast {arguments[0]}", errors))
        finally:
            _end(process, stop)
            if process.stdout is not None:
                process.stdout.close()


def simulated_provider(core: int | None = LOAD_CORE, *arguments: str) -> contextlib.AbstractContextManager[Server]:
    """Run the simulated provider, which speaks HTTP/1.1 and HTTP/2 with prior knowledge."""
    return holdfast(["simulate", "--port", "0", *arguments], core)


def _start(
    command: Sequence[str],
    core: int | None,
    environment: Mapping[str, str] | None,
    output: IO[str] | int,
    errors: IO[str] | int,
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    raise_descriptor_limit()
    return subprocess.Popen(
        [*pinned(core), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        # Ctrl-C in a terminal is for the benchmark, which then ends what it started.
        start_new_session=True,
    )


def _wait_until_it_listens(process: subprocess.Popen[bytes], name: str, port: int, output: IO[str]) -> None:
    """Try to connect until somebody answers: the servers of others have no sign in common that they listen."""
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(_TRY_AGAIN)
    raise _failed(process, name, output)


def _said_port(process: subprocess.Popen[bytes], name: str, errors: IO[str]) -> int:
    """Read the line that says where it listens."""
    output = process.stdout
    if output is None:
        raise ValueError("a process whose output is not read says nothing")
    deadline = time.monotonic() + _START_TIMEOUT
    text = b""
    while select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(output.fileno(), 4096)
        text += data
        match = _LISTENS.search(text.rpartition(b"\n")[0].decode())
        if match is not None:
            return int(match[1])
        if not data:
            process.wait(_STOP_TIMEOUT)
            break
    raise _failed(process, name, errors)


def _failed(process: subprocess.Popen[bytes], name: str, output: IO[str]) -> ProcessFailed:
    output.seek(0)
    ended = "did not listen" if process.poll() is None else f"ended with status {process.returncode}"
    return ProcessFailed(f"{name} {ended}: {output.read()[-600:].strip()}")


def _end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    with _watched(tree(process.pid)) as members:
        process.send_signal(stop)
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        # What is left of its group: a server that was killed, or children that outlived it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Children that outlived it are nobody's here, and what comes next must not share the core with them.
        deadline = time.monotonic() + _STOP_TIMEOUT
        for member in members:
            select.select([member], [], [], max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def _watched(pids: Iterable[int]) -> Iterator[list[int]]:
    """Give a descriptor for each process that runs; it becomes readable when the process ends (pidfd_open(2))."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(pid))
                stack.callback(os.close, descriptors[-1])
        yield descriptors


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
