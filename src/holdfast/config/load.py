"""Reads a configuration file. Errors name file, line, key and what was expected: all of them at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from holdfast.config import names
from holdfast.config.advice import advise
from holdfast.config.checks import find_problems
from holdfast.config.gateway import Config
from holdfast.config.problems import Problem, lines_of, refuse
from holdfast.config.shape import read
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError

#: Settings of earlier versions, and what to use instead.
_MOVED = (
    ("streams", "memory_bytes", "`server.memory_bytes`, which bounds all that clients can make the gateway hold"),
)
#: The largest configuration, in bytes.
MAX_SIZE = 1024 * 1024
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_TOML_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


class Loaded(NamedTuple):
    """A configuration, and what is surely not meant although it can be used: a line each."""

    config: Config
    warnings: list[str]


def load(path: str | Path, *, environ: Mapping[str, str] | None = None, dialects: Dialects = DIALECTS) -> Config:
    """Read and check a configuration file. `dialects` are the APIs that a provider may name.

    Raises `ConfigError`, which names file, line, key and what was expected, for each problem in a line of its own.
    """
    return parse(read_text(path), source=str(path), environ=environ, dialects=dialects)


def read_text(path: str | Path) -> str:
    """Read the text of a configuration file. Raises `ConfigError`."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_SIZE + 1)
        if len(content) > MAX_SIZE:
            raise ConfigError(f"{path}: is larger than {MAX_SIZE} bytes")
        return content.decode("utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not UTF-8 text: {exc}") from exc


def parse(
    text: str,
    *,
    source: str = "configuration",
    environ: Mapping[str, str] | None = None,
    dialects: Dialects = DIALECTS,
) -> Config:
    """Parse and check the text of a configuration; see `load`."""
    return examine(text, source=source, environ=environ, dialects=dialects).config


def examine(
    text: str,
    *,
    source: str = "configuration",
    environ: Mapping[str, str] | None = None,
    dialects: Dialects = DIALECTS,
) -> Loaded:
    """Parse and check the text of a configuration, and find what is surely not meant. Raises `ConfigError`."""
    config, problems = survey(text, source=source, environ=environ, dialects=dialects)
    refuse(problems, source, text)
    return Loaded(config, lines_of(problems, source, text))


def survey(
    text: str,
    *,
    source: str = "configuration",
    environ: Mapping[str, str] | None = None,
    dialects: Dialects = DIALECTS,
) -> tuple[Config, list[Problem]]:
    """Return what of a text can be used, and everything that is wrong with it, warnings included.

    Raises `ConfigError` only where it is not TOML.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        message = str(exc)
        line = _TOML_LINE.search(message)
        place = source if line is None else f"{source}:{line[1]}"
        raise ConfigError(f"{place}: is not valid TOML: {message}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{source}: is not valid TOML: it is nested too deeply") from exc
    problems: list[Problem] = []
    resolved = _resolve(raw, (), os.environ if environ is None else environ, problems)
    _take_moved(resolved, problems)
    parts = read(resolved, Config, (), problems)
    try:
        config = msgspec.convert(parts, Config)
    except msgspec.ValidationError as exc:  # what `read` passes fits, as far as we know
        raise ConfigError(f"{source}: {exc}") from exc
    # Of what is broken, the rest is checked as well, but not for what it lacks because of that.
    broken = {problem.path for problem in problems if not problem.is_warning}
    problems += find_problems(config, dialects, broken=broken)
    told = {problem.path for problem in problems}
    problems += [problem for problem in advise(config) if problem.path not in told]
    return config, problems


def _take_moved(raw: Mapping[str, Any], problems: list[Problem]) -> None:
    """Take out the settings of earlier versions, and say what stands for them now."""
    for section, name, now in _MOVED:
        table = raw.get(section)
        if isinstance(table, dict) and table.pop(name, None) is not None:
            problems.append(Problem((section, name), f"there is no such setting any more; use {now}"))


def _resolve(value: Any, path: names.Path, environ: Mapping[str, str], problems: list[Problem]) -> Any:
    """Replace each `env:NAME` by that variable. Where it cannot be, the value stays, with a problem."""
    if isinstance(value, dict):
        return {key: _resolve(item, (*path, key), environ, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, (*path, index), environ, problems) for index, item in enumerate(value)]
    if isinstance(value, str) and value.startswith("env:"):
        match = _ENV.fullmatch(value)
        if match is None:
            problems.append(Problem(path, "expected `env:NAME` with the name of an environment variable"))
        elif match[1] not in environ:
            problems.append(Problem(path, f"the environment variable {match[1]} is not set"))
        elif not environ[match[1]]:
            problems.append(
                Problem(path, f"the environment variable {match[1]} is set, but empty", is_warning=True)
            )
            return ""
        else:
            return environ[match[1]]
    return value
