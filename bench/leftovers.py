"""Ends what a suite has left behind, so that an interrupted benchmark leaves no process."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """All processes below one, those farthest below first. Empty where there is no `/proc`."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:  # it ended while it was looked at
            continue
        for child in children:
            found += [*descendants(child), child]
    return found


def end_descendants() -> list[int]:
    """Kill what is left of this process's children and theirs, and return their ids."""
    left = descendants(os.getpid())
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):  # it has ended, or is a child's child
            continue
    return left
