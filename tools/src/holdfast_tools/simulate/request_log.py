"""An append-only record of what was asked and answered, to check afterwards what would have been billed."""

from __future__ import annotations

import os
import time
from typing import Literal, TypeAlias

import msgspec

from holdfast_tools.simulate.statistics import Outcome

LogEvent: TypeAlias = Literal["began", "refused", "ended"]


class LogRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. `number` counts requests from 1; `at` is the monotonic clock, one for all processes of a host.

    A request that `began` has one `ended` later, with how many tokens were written; a refused one has neither.
    `request_id` is the header `x-request-id`, which tells apart who asked for the same key.
    """

    event: LogEvent
    at: float
    number: int
    key: str | None = None
    request_id: str | None = None
    fault: str | None = None
    outcome: Outcome | None = None
    tokens: int = 0


class RequestLog:
    """Writes each record with one system call, so that a killed process leaves whole lines."""

    def __init__(self, path: str) -> None:
        """Open the file for appending. Raises OSError."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._encoder = msgspec.json.Encoder()

    def began(self, number: int, key: str | None, request_id: str | None, fault: str | None) -> None:
        self._write(LogRecord("began", time.monotonic(), number, key, request_id, fault))

    def refused(self, number: int, key: str | None, request_id: str | None, fault: str | None) -> None:
        self._write(LogRecord("refused", time.monotonic(), number, key, request_id, fault))

    def ended(self, number: int, key: str | None, outcome: Outcome, tokens: int) -> None:
        self._write(LogRecord("ended", time.monotonic(), number, key, outcome=outcome, tokens=tokens))

    def close(self) -> None:
        os.close(self._file)

    def _write(self, record: LogRecord) -> None:
        os.write(self._file, self._encoder.encode(record) + b"\n")
