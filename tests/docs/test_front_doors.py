"""A newcomer's first minute: what the gateway prints when it starts, and an installation without the gateway."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from holdfast_tools.simulate.prose import prose
from tests.docs.pages import ROOT
from tests.docs.programs import Programs

ANSWER = "".join(prose("hi"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_printed_python_prints_the_answer(programs: Programs) -> None:
    assert programs.output("greeted python") == ANSWER


def test_printed_curl_commands_get_what_they_ask_for(programs: Programs) -> None:
    health, events = programs.output("greeted health"), programs.output("greeted curl")
    if health is None or events is None:
        pytest.skip("curl is not installed")
    assert health == '{"status":"ok"}'
    pieces = re.findall(r'"delta":\{"content":("(?:[^"\\]|\\.)*")', events)
    assert "".join(map(json.loads, pieces)) == ANSWER
    assert events.endswith("data: [DONE]\n\n")


def test_printed_chat_command_is_of_this_environment(programs: Programs) -> None:
    chat = re.search(r"chat +(\S+) chat --url (\S+) --model demo", programs.greeting)
    assert chat is not None
    program = shutil.which(chat[1], path=f"{ROOT}:{os.environ['PATH']}") or str(ROOT / chat[1])
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
