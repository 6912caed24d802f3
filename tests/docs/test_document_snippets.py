"""What the documents show works: configurations, commands, and programs against a running gateway."""

from __future__ import annotations

import re
import shlex
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli import main, make_parser
from holdfast.config import parse
from holdfast.config.auth import AuthConfig
from holdfast_tools.simulate.prose import prose
from tests.docs.pages import ROOT, all_blocks
from tests.docs.programs import PYTHON, Programs

EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
ENVIRONMENT = {"OPENAI_API_KEY": "sk-1", "OPENROUTER_API_KEY": "sk-2", "NAME": "value"}


# -- what needs no gateway -----------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_configuration_passes_the_check(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    if 'tls_cert = "' in example.read_text():  # its files are not here
        assert main(["check", "--config", str(example)]) == 2
        assert re.sub("server.tls_(cert|key): .*cannot be read.*\n", "", capsys.readouterr().err).count("\n") == 0
        return
    assert main(["check", "--strict", "--config", str(example)]) == 0
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


async def test_every_path_of_the_gateway_is_described(make_path: Any, tmp_path: Path) -> None:
    store = str(tmp_path / "keys.db")
    path = await make_path(auth=AuthConfig(key_store=store, admin_key="an admin key of 32 characters ..."))
    text = (ROOT / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(/[^`]*)` \| ([A-Z, ]+) \|", text, re.MULTILINE))
    served = {
        route.pattern.pattern.replace("([^/]+)", "{id}"): route.methods
        for route in path.gateway.process.router.routes
    }
    assert {place: sorted(methods) for place, methods in served.items()} == {
        place: sorted(methods.split(", ")) for place, methods in listed.items()
    }


# -- against a gateway ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PYTHON)
def test_program_in_a_document_runs(programs: Programs, place: str) -> None:
    out = programs.output(place)
    assert bool(out) == ("print" in PYTHON[place])
    if "tutorial" in place:  # the second client goes on where the first one stopped
        assert out == "".join(prose("What is a holdfast?")).replace(" say", " | say") + "\n"


def output_of_page(programs: Programs, name: str) -> str:
    out = programs.output(name)
    if out is None:
        pytest.skip("there is no Node with an EventSource")
    return out


def test_page_with_a_websocket_survives_cuts(programs: Programs) -> None:
    text, _, end = output_of_page(programs, "websocket").partition("\n")
    assert text == "".join(prose("hi"))
    assert '"completed"' in end
    relay = programs.processes["relay"]
    relay.send_signal(signal.SIGINT)
    out, err = relay.communicate(timeout=10)
    assert "cut 1 connection" in out
    assert err == ""


def test_page_with_a_bare_websocket_gets_every_message(programs: Programs) -> None:
    out = output_of_page(programs, "bare websocket")
    assert '"type":"accepted"' in out
    assert '"status":"completed"' in out


def test_page_with_an_event_source_reads_the_whole_answer(programs: Programs) -> None:
    text, _, end = output_of_page(programs, "event source").partition("\n")
    assert text == "".join(prose("hi"))
    assert '"completed"' in end
