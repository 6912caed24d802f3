"""In which line of a TOML text each setting begins."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from holdfast.config.names import Path

#: What ends a statement of several lines: a list, a table, or a string.
_ENDS = ("]", "}", '"""', "'''")


def line_map(text: str) -> dict[Path, int]:
    """Return the first line of every setting and table in a valid text.

    Each statement of TOML - a header, or a key with its value - is a text of its own: so the one parser that knows
    quotes, dotted keys and strings of several lines is asked about each of them alone.
    """
    found: dict[Path, int] = {}
    arrays: dict[Path, int] = {}
    header: Path = ()
    for line, statement, parsed in _statements(text):
        if statement.lstrip().startswith("["):
            header = _header(parsed, arrays)
            paths: Iterator[Path] = iter([header])
        else:
            paths = ((*header, *path) for path in _paths(parsed))
        for path in paths:
            for length in range(1, len(path) + 1):
                found.setdefault(path[:length], line)
    return found


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """Return the line of a setting, or of the table that it is missing from; None where neither is there."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Split a text into its statements: the line, the text of it, and what it says."""
    lines = text.replace("\r\n", "\n").split("\n")
    start = 0
    while start < len(lines):
        end = start + 1
        parsed = _parsed(lines[start])
        while parsed is None and end < len(lines):
            end += 1
            if any(mark in lines[end - 1] for mark in _ENDS):
                parsed = _parsed("\n".join(lines[start:end]))
        if parsed:
            yield start + 1, lines[start], parsed
        start = end


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return None


def _header(parsed: Any, arrays: dict[Path, int]) -> Path:
    """Return the path of `[a.b]`, or of a new entry of `[[a.b]]`. `arrays` has the index of each last entry."""
    path: Path = ()
    while isinstance(parsed, dict) and parsed:
        (name, parsed), *_ = parsed.items()
        path = (*path, name)
        if isinstance(parsed, list):
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _paths(value: Any) -> Iterator[Path]:
    entries: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, part in entries:
        yield (name,)
        for path in _paths(part):
            yield (name, *path)
