"""A suite's result as a file: what was measured, where, with which options, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.environment import Environment
from bench.results import Options, SuiteResult


@dataclass
class Record:
    """`seconds` is how long the suite took in all."""

    environment: Environment
    options: Options
    seconds: float
    result: SuiteResult


class UnreadableRecord(Exception):
    """A file is no result of a suite; the message names it and says why."""


def write(record: Record, folder: Path) -> Path:
    """Write `<suite>.json` into a folder that exists."""
    path = folder / f"{record.result.name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return path


def read(path: Path) -> Record:
    """Raises `UnreadableRecord`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as exc:
        raise UnreadableRecord(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except msgspec.DecodeError as exc:
        raise UnreadableRecord(f"{path} is not a result of `python -m bench`: {exc}") from exc


def read_all(path: Path) -> dict[str, Record]:
    """Read one result, or all of a folder, by the name of their suite. Raises `UnreadableRecord`."""
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise UnreadableRecord(f"there is no result of `python -m bench` in {path}")
    records = [read(found) for found in paths]
    return {record.result.name: record for record in records}
