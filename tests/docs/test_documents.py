"""The documents agree with the code: generated parts are fresh, and the examples of PROTOCOL.md are valid."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from holdfast.core.session import messages as m
from holdfast.errors import ERRORS

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = (ROOT / "PROTOCOL.md").read_text(encoding="utf-8")
GENERATOR = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="generate")


def example_lines(side: str) -> list[str]:
    return [line[2:] for line in PROTOCOL.splitlines() if line.startswith(f"{side} {{")]


def test_generated_parts_are_fresh() -> None:
    stale = GENERATOR["stale_documents"](write=False)
    assert stale == [], "run python docs/generate.py"


def test_stale_part_is_renewed() -> None:
    generate: Callable[[str], str] = GENERATOR["generate"]
    text = generate("a\n<!-- generated: errors -->\nold\n<!-- end -->\nb\n")
    assert text.startswith("a\n<!-- generated: errors -->\n| code |")
    assert text.endswith("|\n<!-- end -->\nb\n")
    assert "old" not in text
    with pytest.raises(KeyError):
        generate("<!-- generated: nothing -->\n<!-- end -->")


def test_error_table_of_the_protocol_has_every_code_that_is_sent() -> None:
    local = {"config_error", "connection_lost", "protocol_error", "stream_failed"}
    listed = {code for code in ERRORS if f"\n| `{code}` |" in PROTOCOL}
    assert listed == set(ERRORS) - local


@pytest.mark.parametrize(("side", "decode"), [("C", m.decode_client_message), ("S", m.decode_server_message)])
def test_examples_of_the_protocol_are_valid(side: str, decode: Callable[[str], Any]) -> None:
    lines = example_lines(side)
    assert len(lines) >= 8
    for line in lines:
        decode(line)


def test_every_message_is_described_in_the_protocol() -> None:
    for cls in (*get_args(m.ClientMessage), *get_args(m.ServerMessage)):
        assert f"`{cls.__struct_config__.tag}`" in PROTOCOL
        for field in cls.__struct_fields__:
            assert f"`{field}`" in PROTOCOL
