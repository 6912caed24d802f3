"""The documents as the tests see them: pages, and the code blocks in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "protocol").rglob("*.md")])
#: Where a reader may copy a block and run it.
RUNNABLE = [ROOT / "README.md", *(page for page in PAGES if page.is_relative_to(ROOT / "docs"))]

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def written(page: Path) -> str:
    """What a person wrote of the page: all but its generated parts."""
    return _GENERATED.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    found = []
    for match in _BLOCK.finditer(written(page)):
        if match["language"] == language:
            lines = match["code"].splitlines(keepends=True)
            found.append("".join(line.removeprefix(match["indent"]) for line in lines))
    return found


def all_blocks(language: str) -> list[tuple[str, str]]:
    """Every block of a language in the pages that show how, with a name for it."""
    return [
        (f"{name(page)}:{number}", block)
        for page in RUNNABLE
        for number, block in enumerate(blocks(page, language))
    ]
