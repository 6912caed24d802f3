"""Instructions per operation, by valgrind's callgrind: a measure that does not depend on a clock or on other load.

A child does an operation n and then 2n times; the difference is that of n times, without all that happens once.
The figures are those of one build of Python and its libraries: they are compared with a baseline of the same one.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.micro.operations import OPERATIONS

#: An operation may need so many times the instructions of its baseline.
TOLERANCE = 1.15
#: Options of a build of CPython that change its code by more than the tolerance.
_BUILD_OPTIONS = ("--enable-optimizations", "--with-lto", "--with-pydebug")
_MARK = "Py_SetRecursionLimit"


class Baseline(msgspec.Struct):
    """The counts that a change is compared with, and where they were made."""

    python: str
    machine: str
    instructions: dict[str, int]


class CannotCount(Exception):
    """Why instructions cannot be counted here; no fault of what is measured."""


def count(names: Iterable[str]) -> dict[str, int]:
    """Return the instructions of one operation each. Takes some ten seconds. Raises `CannotCount`."""
    names = list(names)
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CannotCount("valgrind is not installed (Debian: apt-get install valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        # Hashes of strings decide where keys lie in a dict, and so how long it takes to find them.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        program = [sys.executable, "-m", "bench.micro.counted"]
        # Without names it only imports, and compiles what it imports: under valgrind that takes half a minute.
        _run(program, environment)
        options = ["-q", "--tool=callgrind", f"--dump-before={_MARK}", f"--callgrind-out-file={folder}/profile"]
        _run([valgrind, *options, *program, *names], environment)
        profiles = [Path(folder, f"profile.{number}") for number in range(1, 3 * len(names) + 1)]
        if not all(profile.exists() for profile in profiles):
            raise CannotCount(f"callgrind does not see calls of {_MARK} in this build of Python")
        totals = [_total(profile) for profile in profiles]
    counts = {}
    for place, name in enumerate(names):
        once, twice = totals[3 * place + 1], totals[3 * place + 2]
        counts[name] = round((twice - once) / OPERATIONS[name].counted)
    return counts


def _run(command: list[str], environment: dict[str, str]) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise CannotCount(f"the counted program ended with {done.returncode}: {done.stderr[-2000:]}")


def _total(profile: Path) -> int:
    match = re.search(r"^summary: (\d+)", profile.read_text(), re.MULTILINE)
    if match is None:
        raise CannotCount(f"{profile.name} is not a profile of callgrind")
    return int(match[1])


def here() -> tuple[str, str]:
    """What decides the counts: the interpreter's minor version and how it was built, and the processor's kind."""
    version = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    built = [option for option in _BUILD_OPTIONS if option in options]
    return " ".join([version, *built]), platform.machine()


def read_baseline(path: Path) -> Baseline:
    return msgspec.json.decode(path.read_bytes(), type=Baseline)


def write_baseline(path: Path, counts: dict[str, int]) -> None:
    python, machine = here()
    encoded = msgspec.json.encode(Baseline(python, machine, dict(sorted(counts.items()))))
    path.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


def compare(baseline: dict[str, int], counts: dict[str, int]) -> list[str]:
    """Say what needs more than it may, and which counts and baselines have no counterpart."""
    faults = []
    for name, now in counts.items():
        before = baseline.get(name)
        if before is None:
            faults.append(f"{name}: has no baseline; write one with --update")
        elif now > before * TOLERANCE:
            faults.append(f"{name}: {now} instructions, {now / before:.2f} x its baseline of {before}")
    faults += [f"{name}: is in the baseline and no operation any more" for name in baseline if name not in counts]
    return faults
