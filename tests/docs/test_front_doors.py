"""A newcomer's first minute: what the gateway prints when it starts, and an installation without the gateway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pages import ROOT

from holdfast.simulate.prose import prose

ANSWER = "".join(prose("hi"))


@pytest.fixture(scope="module")
def greeting() -> Iterator[str]:
    """What a gateway that serves the demo prints; it runs as long as the tests of this module."""
    command = [sys.executable, "-m", "holdfast.cli", "serve", "--port", "0"]
    gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert gateway.stdout is not None
    lines = []
    for line in gateway.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    yield "".join(lines)
    gateway.terminate()
    gateway.communicate()


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=env)


def test_printed_python_prints_the_answer(greeting: str) -> None:
    program = re.search(r"^from holdfast .*?\n\n", greeting, re.MULTILINE | re.DOTALL)
    assert program is not None
    result = run(sys.executable, "-W", "error", "-c", program[0])
    assert (result.stdout, result.stderr, result.returncode) == (ANSWER, "", 0)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_printed_curl_commands_get_what_they_ask_for(greeting: str) -> None:
    health = re.search(r"health +(curl .*)", greeting)
    chat = re.search(r"^  curl +(curl .*?'\n)", greeting, re.MULTILINE | re.DOTALL)
    assert health is not None
    assert chat is not None
    assert run("sh", "-c", health[1]).stdout == '{"status":"ok"}'
    events = run("sh", "-c", chat[1]).stdout
    assert "".join(re.findall(r'"delta":\{"content":"((?:[^"\\]|\\.)*)"', events)) == ANSWER.replace('"', '\\"')
    assert events.endswith("data: [DONE]\n\n")


def test_printed_chat_command_is_of_this_environment(greeting: str) -> None:
    chat = re.search(r"chat +(\S+) chat --url (\S+) --model demo", greeting)
    assert chat is not None
    program = shutil.which(chat[1])
    assert program is not None
    assert os.path.samefile(os.path.dirname(program), os.path.dirname(sys.executable))


# -- the SDK alone -------------------------------------------------------------------------------------

#: Runs the command line as if the gateway's libraries were not installed.
_SDK_ALONE = """
import sys
for name in ("httptools", "hpack", "h2", "uvloop", "cryptography", "jwt"):
    sys.modules[name] = None
from holdfast.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "command", [["serve"], ["serve", "--port", "0"], ["simulate"], ["simulate", "--port", "0"]]
)
def test_gateway_command_without_the_gateway_says_what_is_missing(command: list[str]) -> None:
    result = run(sys.executable, "-c", _SDK_ALONE, *command)
    assert result.returncode == 2
    assert result.stderr == f"holdfast {command[0]} needs the gateway: pip install 'holdfast[gateway]'\n"


@pytest.mark.parametrize("command", [["chat", "--help"], ["tail", "--help"], ["keys", "create"], ["--version"]])
def test_client_command_works_without_the_gateway(command: list[str]) -> None:
    result = run(sys.executable, "-c", _SDK_ALONE, *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_check_works_without_the_gateway() -> None:
    example = str(ROOT / "examples" / "local.toml")
    result = run(sys.executable, "-c", _SDK_ALONE, "check", "--config", example)
    assert result.returncode == 0, result.stderr
