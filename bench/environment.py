"""Where a benchmark ran: the machine, its kernel, and the versions of what took part."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import ssl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_PACKAGES = ("holdfast", "uvloop", "msgspec", "httptools", "websockets", "h2", "hpack")
#: Programs that a suite may use, and what makes each say its version.
_PROGRAMS = {"nginx": ["nginx", "-v"], "valgrind": ["valgrind", "--version"]}


@dataclass
class Environment:
    """`memory_gib` and `cores` are what the machine has, not what is free. `date` is UTC."""

    date: str
    system: str
    cpu: str
    cores: int
    memory_gib: float
    versions: dict[str, str] = field(default_factory=dict)


def describe() -> Environment:
    return Environment(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        versions=_versions(),
    )


def _cpu() -> str:
    try:
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        match = None
    return match[1] if match else platform.processor() or "unknown"


def _versions() -> dict[str, str]:
    versions = {platform.python_implementation(): platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["OpenSSL"] = ssl.OPENSSL_VERSION.split()[1]
    for program, command in _PROGRAMS.items():
        version = _program_version(command)
        if version is not None:
            versions[program] = version
    return versions


def _program_version(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\d+\.\d+[\w.]*", done.stdout + done.stderr)
    return match[0] if match else None
