"""Every program that the documents and the gateway's greeting show, and how it is started."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, all_blocks, blocks

PYTHON = dict(all_blocks("python"))
BROWSER = blocks(ROOT / "docs" / "how-to" / "read-from-a-browser.md", "js")
PAGES_IN_NODE = {"websocket": BROWSER[0:2], "bare websocket": BROWSER[2:3], "event source": BROWSER[3:5]}

#: What the pages need and Node does not have.
STAND_INS = """
globalThis.location = { origin: process.argv[2] };
globalThis.document = { body: { append: (text) => process.stdout.write(text) } };
globalThis.sessionStorage = { setItem() {} };
const log = console.log;
console.log = (...values) => {
  log("\\n" + values.map((value) => JSON.stringify(value)).join(" "));
  if (values[0] === "completed" || values[0].type === "end") process.exit(0);
};
setInterval(() => {}, 1000);
"""


class Programs:
    """A gateway, a cutting relay and all programs, started at once: most of their time they wait for the model."""

    def __init__(self, folder: Path) -> None:
        self.processes: dict[str, subprocess.Popen[str]] = {}
        gateway = self._start("gateway", sys.executable, "-m", "holdfast.cli", "serve", "--port", "0")
        self.greeting = _lines_until(gateway, "Ctrl-C")
        url = _url_in(self.greeting)
        example = str(ROOT / "examples" / "cutting_relay.py")
        address = url.removeprefix("http://")
        relay = self._start("relay", sys.executable, example, "--port", "0", "--after", "1", "--gateway", address)
        self._start_greeted()
        for place, block in PYTHON.items():
            code = block.replace("http://127.0.0.1:8080", url)
            self._start(place, sys.executable, "-W", "error", "-c", code)
        node = _node()
        if node is not None:
            cut = _url_in(_lines_until(relay, "http"))
            for name, parts in PAGES_IN_NODE.items():
                script = folder / f"{name}.mjs"
                script.write_text("\n".join([STAND_INS, *parts]), encoding="utf-8")
                flags = ("--no-warnings", "--experimental-websocket", "--experimental-eventsource")
                self._start(name, node, *flags, str(script), cut if name == "websocket" else url)

    def _start_greeted(self) -> None:
        """Start what the greeting tells a newcomer to paste."""
        python = re.search(r"^from holdfast .*?\n\n", self.greeting, re.MULTILINE | re.DOTALL)
        health = re.search(r"health +(curl .*)", self.greeting)
        chat = re.search(r"^  curl +(curl .*?'\n)", self.greeting, re.MULTILINE | re.DOTALL)
        assert python is not None
        assert health is not None
        assert chat is not None
        self._start("greeted python", sys.executable, "-W", "error", "-c", python[0])
        if shutil.which("curl") is not None:
            self._start("greeted health", "sh", "-c", health[1])
            self._start("greeted curl", "sh", "-c", chat[1])

    def _start(self, name: str, *command: str) -> subprocess.Popen[str]:
        self.processes[name] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        return self.processes[name]

    def output(self, name: str) -> str | None:
        """Wait for a program, which must end well and quietly; None if its interpreter is not there."""
        process = self.processes.get(name)
        if process is None:
            return None
        out, err = process.communicate(timeout=40)
        errors = "" if name == "greeted curl" or name == "greeted health" else err  # curl shows its progress
        assert (process.returncode, errors) == (0, ""), err
        return out

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()


def _lines_until(server: subprocess.Popen[str], beginning: str) -> str:
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if line.startswith(beginning):
            return "".join(lines)
    raise AssertionError(f"the server ended: {lines}")


def _url_in(text: str) -> str:
    match = re.search(r"http://[\d.]+:\d+", text)
    assert match is not None, text
    return match[0]


def _node() -> str | None:
    """Node, if there is one with an EventSource."""
    found = shutil.which("node")
    if found is None:
        return None
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return found if tuple(map(int, version.strip("v\n").split("."))) >= (20, 18) else None
