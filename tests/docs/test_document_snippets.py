"""What the documents show works: configurations, commands, and programs against a running gateway."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, all_blocks, blocks

from holdfast.cli import main, make_parser
from holdfast.config import parse
from holdfast.simulate.prose import prose

EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
ENVIRONMENT = {"OPENAI_API_KEY": "sk-1", "OPENROUTER_API_KEY": "sk-2", "NAME": "value"}
PYTHON = dict(all_blocks("python"))
BROWSER = blocks(ROOT / "docs" / "how-to" / "read-from-a-browser.md", "js")


# -- what needs no gateway -----------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_configuration_passes_the_check(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    assert main(["check", "--config", str(example)]) == 0
    assert f"{example.name}: valid" in capsys.readouterr().out


@pytest.mark.parametrize(("place", "block"), all_blocks("toml"), ids=lambda value: value.split("\n")[0])
def test_configuration_in_a_document_is_valid(place: str, block: str) -> None:
    tomllib.loads(block)
    parse(block, source=place, environ=ENVIRONMENT)


_COMMAND = re.compile(r"^(?:\w+=\S+ )*(?:\.venv/bin/)?holdfast ([^>&\n]+)", re.MULTILINE)
COMMANDS = [command for _, block in all_blocks("sh") for command in _COMMAND.findall(block)]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_in_a_document_is_understood(command: str) -> None:
    make_parser().parse_args(shlex.split(command))


async def test_every_path_of_the_gateway_is_described(path: Any) -> None:
    text = (ROOT / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    api = path.gateway.api
    listed = dict(re.findall(r"^\| `(/[^`]*)` \| ([A-Z, ]+) \|", text, re.MULTILINE))
    served = {pattern.pattern.replace("([^/]+)", "{id}"): handlers for pattern, handlers in api._routes}
    served |= {place: ["GET"] for place in api._public}
    assert {place: sorted(methods) for place, methods in served.items()} == {
        place: sorted(methods.split(", ")) for place, methods in listed.items()
    }


# -- against a gateway ---------------------------------------------------------------------------------

#: What the pages of the browser's how-to need and Node does not have.
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
PAGES_IN_NODE = {"websocket": BROWSER[0:2], "bare websocket": BROWSER[2:3], "event source": BROWSER[3:5]}


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def url_of(server: subprocess.Popen[str]) -> str:
    """Wait for the line in which a server says where it listens."""
    assert server.stdout is not None
    line = server.stdout.readline()
    match = re.search(r"http://[\d.]+:\d+", line)
    assert match is not None, line
    return match[0]


def node() -> str | None:
    """Node, if there is one with an EventSource."""
    found = shutil.which("node")
    if found is None:
        return None
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return found if tuple(map(int, version.strip("v\n").split("."))) >= (20, 18) else None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Every program of the documents, all started at once: most of their time they wait for the model."""
    gateway = start(sys.executable, "-m", "holdfast.cli", "serve", "--port", "0")
    url = url_of(gateway)
    relay_of = [sys.executable, str(ROOT / "examples" / "cutting_relay.py"), "--port", "0", "--after", "1"]
    relay = start(*relay_of, "--gateway", url.removeprefix("http://"))
    processes = {"gateway": gateway, "relay": relay}
    for place, block in PYTHON.items():
        code = block.replace("http://127.0.0.1:8080", url)
        processes[place] = start(sys.executable, "-W", "error", "-c", code)
    interpreter = node()
    for name, parts in PAGES_IN_NODE.items() if interpreter else ():
        script = tmp_path_factory.mktemp("node") / "page.mjs"
        script.write_text("\n".join([STAND_INS, *parts]), encoding="utf-8")
        flags = ("--no-warnings", "--experimental-websocket", "--experimental-eventsource")
        served_by = url_of(relay) if name == "websocket" else url
        processes[name] = start(str(interpreter), *flags, str(script), served_by)
    yield processes
    for process in processes.values():
        process.terminate()
        process.communicate()


def output(running: dict[str, subprocess.Popen[str]], place: str) -> str:
    """Wait for a program, which must end well and without a word on standard error."""
    if place not in running:
        pytest.skip("there is no Node with an EventSource")
    out, err = running[place].communicate(timeout=40)
    assert (running[place].returncode, err) == (0, "")
    return out


@pytest.mark.parametrize("place", PYTHON)
def test_program_in_a_document_runs(running: dict[str, subprocess.Popen[str]], place: str) -> None:
    assert bool(output(running, place)) == ("print" in PYTHON[place])
    if "tutorial" in place:  # the second client goes on where the first one stopped
        out = running[place].communicate()[0]
        assert out == "".join(prose("What is a holdfast?")).replace(" say", " | say") + "\n"


def test_page_with_a_websocket_survives_cuts(running: dict[str, subprocess.Popen[str]]) -> None:
    text, _, end = output(running, "websocket").partition("\n")
    assert text == "".join(prose("hi"))
    assert '"completed"' in end
    running["relay"].send_signal(signal.SIGINT)
    out, err = running["relay"].communicate(timeout=10)
    assert "cut 1 connection" in out
    assert err == ""


def test_page_with_a_bare_websocket_gets_every_message(running: dict[str, subprocess.Popen[str]]) -> None:
    out = output(running, "bare websocket")
    assert '"type":"accepted"' in out
    assert '"status":"completed"' in out


def test_page_with_an_event_source_reads_the_whole_answer(running: dict[str, subprocess.Popen[str]]) -> None:
    text, _, end = output(running, "event source").partition("\n")
    assert text == "".join(prose("hi"))
    assert '"completed"' in end
