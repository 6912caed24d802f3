"""The two servers under test as processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_START_TIMEOUT = 120.0
_STOP_TIMEOUT = 15.0


class Process:
    """A server as a child process that says in its log where it listens. Its output goes to `log`."""

    def __init__(self, command: Sequence[str | Path], log: Path, *, listening: str, env: dict[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            )
        try:
            self.port = int(self.wait_for(listening)[1])
        except BaseException:
            self.stop()
            raise

    def wait_for(self, pattern: str, *, timeout: float = _START_TIMEOUT) -> re.Match[str]:
        """Wait until the log matches."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            match = re.search(pattern, self.log.read_text(errors="replace"))
            if match is not None:
                return match
            if self._child.poll() is not None:
                raise RuntimeError(f"{self._child.args!r} ended with {self._child.returncode}:\n{self.tail()}")
            time.sleep(0.02)
        raise TimeoutError(f"{self.log} has no {pattern!r} after {timeout:g} s:\n{self.tail()}")

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.log.read_text(errors="replace")))

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def stop(self) -> None:
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()


class ModelServer(Process):
    """llama-cpp-python's server with one model. `port` 0 takes a free one."""

    def __init__(self, model: Path, log: Path, *, context: int, api_key: str, port: int = 0) -> None:
        command: list[str | Path] = [
            *(sys.executable, "-m", "llama_cpp.server"),
            *("--model", model, "--model_alias", "random", "--n_ctx", str(context)),
            *("--host", "127.0.0.1", "--port", str(port), "--logits_all", "false"),
            # By default a new request ends the one that runs. Here it has to wait for the slot, which shows
            # whether a cancelled one has given it back.
            *("--interrupt_requests", "false"),
        ]
        listening = r"Uvicorn running on http://127\.0\.0\.1:(\d+)"
        super().__init__(command, log, listening=listening, env={"API_KEY": api_key})
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> int:
        """How many completions were asked for."""
        return self.count(r"POST /v1/chat/completions HTTP")


class GatewayProcess(Process):
    """`holdfast serve` with one provider and one key."""

    def __init__(self, config: Path, log: Path, *, env: dict[str, str]) -> None:
        command: list[str | Path] = [
            Path(sys.executable).with_name("holdfast"),
            "serve",
            "--config",
            config,
            "--port",
            "0",
        ]
        super().__init__(command, log, listening=r"serves on http://127\.0\.0\.1:(\d+)", env=env)
