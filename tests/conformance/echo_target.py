"""Starts the echo server that a conformance suite is to judge."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ECHO_SHELL = shlex.join([sys.executable, str(Path(__file__).with_name("echo_shell.py"))])


@contextmanager
def running_server(command: str) -> Iterator[int]:
    """Run `command --port 0` and yield the port, which its first line must name as `:PORT` or at its end."""
    with subprocess.Popen([*shlex.split(command), "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r":(\d+)", line) or re.search(r"(\d+)\s*$", line)
            assert found is not None, f"{command} printed {line!r} instead of its port"
            yield int(found[1])
            assert server.poll() is None, "the echo server died"
        finally:
            server.terminate()
