"""What is wrong with a configuration: where, and what would be right. All of it at once, with its lines."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from holdfast.config.names import Path, dotted
from holdfast.errors import ConfigError

#: How many problems are shown; a file that is another kind of file has one in each line.
MAX_SHOWN = 30


class Problem(Struct, frozen=True):
    """One thing that is wrong. A warning keeps nobody from using the configuration."""

    path: Path
    message: str
    is_warning: bool = False

    def within(self, path: Path) -> Problem:
        """The same, of a part that stands at `path`."""
        return Problem((*path, *self.path), self.message, self.is_warning)


def lines_of(problems: Iterable[Problem], source: str, text: str | None = None) -> list[str]:
    """Write each problem as one line, in the file's order. `text` is the file's, to find their lines in."""
    found = list(problems)
    numbered = [(None if text is None else line_of(text, problem.path), problem) for problem in found[:MAX_SHOWN]]
    numbered.sort(key=lambda entry: entry[0] or 0)
    lines = [
        f"{source}{'' if line is None else f':{line}'}: "
        f"{dotted(problem.path)}{': ' if problem.path else ''}{problem.message}"
        for line, problem in numbered
    ]
    if len(found) > MAX_SHOWN:
        lines.append(f"{source}: and {len(found) - MAX_SHOWN} more")
    return lines


def refuse(problems: Iterable[Problem], source: str, text: str | None = None) -> None:
    """Raise `ConfigError` with every problem that is no warning, one a line; return where there is none."""
    errors = [problem for problem in problems if not problem.is_warning]
    if errors:
        raise ConfigError("\n".join(lines_of(errors, source, text)))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` where one of the known names is like it, else nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return f"; did you mean `{close[0]}`?" if close else ""


def line_of(text: str, path: Path) -> int | None:
    """Return the line in which a setting begins, or what it would stand in; None where neither is there.

    The text is TOML. Its beginnings are parsed, to find the shortest one that has the setting: so quotes, dotted
    keys and strings of several lines are read by the one parser that knows them.
    """
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
    while path and not _has(whole, path):
        path = path[:-1]
    if not path:
        return None
    lines = text.replace("\r\n", "\n").split("\n")
    without, having = 0, len(lines)
    while having - without > 1:
        middle = (without + having) // 2
        # A beginning that ends within a statement cannot be parsed: the next one that can, or else the one before.
        around = [*range(middle, having), *range(middle - 1, without, -1)]
        for count in around:
            beginning = _parsed("\n".join(lines[:count]))
            if beginning is not None:
                if _has(beginning, path):
                    having = count
                else:
                    without = count
                break
        else:
            break
    return without + 1


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _has(value: Any, path: Path) -> bool:
    for part in path:
        if isinstance(part, int):
            if not isinstance(value, list) or part >= len(value):
                return False
        elif not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
