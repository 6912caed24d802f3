"""How the place of a setting in the file is written: `models."gpt-4.1".route[0]`, as in the file itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TypeAlias

#: The keys and indexes that lead to a setting.
Path: TypeAlias = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
#: The longest name that is shown whole.
_MAX_SHOWN = 100


def dotted(path: Iterable[str | int]) -> str:
    """Write a path as TOML writes dotted keys: names that are not bare keys are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + quoted(part)
    return text


def quoted(name: str) -> str:
    """Write one key as in TOML."""
    if _BARE.fullmatch(name):
        return name
    return json.dumps(name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "...", ensure_ascii=False)
