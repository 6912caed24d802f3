"""What is wrong with a configuration: where, and what would be right. All of it at once, with its lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from msgspec import Struct

from holdfast.config.lines import line_map, line_of
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
    places = {} if text is None or not found else line_map(text)
    numbered = [(line_of(places, problem.path), problem) for problem in found[:MAX_SHOWN]]
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
