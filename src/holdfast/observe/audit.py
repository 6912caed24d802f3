"""The audit log: who was refused, who changed what, when the process was reloaded and drained.

Each event is one line of the logger `holdfast.audit`: JSON in both formats of the log and at each of its levels. A
line is shorter than what a pipe takes in one piece (4096 bytes on Linux), so that processes that share one log
cannot cut each other's lines. Secrets do not belong in it.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from holdfast.logs import AUDIT

#: Longest value and most fields of a line, so that it stays below 4096 bytes with its time and its names.
MAX_VALUE: Final = 256
_MAX_FIELDS: Final = 12

_logger = logging.getLogger(AUDIT)


def audit(event: str, **fields: object) -> None:
    """Write one event, a word such as `key_created`. Fields that are None are left out, long texts are cut.

    It does not block, and it may be called from any thread.
    """
    named = [(name, value) for name, value in fields.items() if value is not None][:_MAX_FIELDS]
    bounded = {name: _bounded(value) for name, value in named}
    _logger.info(event, extra={"fields": bounded, "is_audit": True})


def _bounded(value: object) -> Any:
    """Return the value, or a text of it that takes no more than `MAX_VALUE` bytes in a line."""
    if isinstance(value, bool | int | float) and -(2**63) < value < 2**63:
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) <= MAX_VALUE and _size(text) <= MAX_VALUE:
        return value
    text = text[:MAX_VALUE]
    while _size(text) > MAX_VALUE - 3:
        # A character takes up to 12 bytes as JSON (RFC 8259 section 7).
        text = text[: min(len(text) - 1, len(text) * MAX_VALUE // _size(text))]
    return text + "..."


def _size(text: str) -> int:
    return len(json.dumps(text))
