"""Runs the `holdfast` command as a process, from a folder of its own, as somebody does who installed it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

COMMAND = [str(Path(sys.executable).with_name("holdfast"))]
#: Seconds that a test waits for anything.
DEADLINE = 20.0


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would configure the command, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return kept | variables


def run(*arguments: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment(),
        check=False,
    )


class Server:
    """A command that serves, from its first line until it is told to stop."""

    def __init__(
        self, *arguments: str, cwd: Path, last_line: str, nofile: int | str | None = None, **variables: str
    ) -> None:
        """`nofile` is how many descriptors it may have open, or `soft:hard`."""
        limit = [] if nofile is None else ["prlimit", f"--nofile={nofile}"]
        self._errors = (cwd / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [*limit, *COMMAND, *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(**variables),
        )
        self.greeting = ""
        try:
            self._read_until(last_line)
            found = re.search(r"https?://[^\s/]+:(\d+)", self.greeting)
            assert found is not None, self.greeting
        except BaseException:
            self.kill()
            raise
        self.url = found[0]
        self.port = int(found[1])

    def _read_until(self, last_line: str) -> None:
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE
        while last_line not in self.greeting:
            ready, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            data = os.read(self.process.stdout.fileno(), 65536).decode() if ready else ""
            assert data, f"no greeting, but {self.greeting!r} and {self.errors!r}"
            self.greeting += data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        self._errors.flush()
        self._errors.seek(0)
        return self._errors.read()

    @property
    def resident(self) -> int:
        """Bytes of memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal and wait for the end; return the exit status and the seconds that this took."""
        started = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE)
        return status, time.monotonic() - started

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


def serve(*arguments: str, cwd: Path, nofile: int | str | None = None, **variables: str) -> Server:
    """A gateway on a free port."""
    return Server(
        "serve", "--port", "0", *arguments, cwd=cwd, last_line="Ctrl-C stops", nofile=nofile, **variables
    )
