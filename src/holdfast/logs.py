"""The gateway's log: one line per event, as JSON or for a terminal, written by a thread of its own.

Everything that comes from outside (names, ids, messages) is escaped, so that nobody can forge a line of the log.
If nobody reads the log, as when a pipe is full, lines are dropped and the event loop is not held up.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from holdfast.config.logging import LoggingConfig

#: How many lines may wait for the writer. Further ones are dropped and counted.
MAX_WAITING = 10_000
#: The longest line, in characters; the rest is cut off.
MAX_LINE = 64 * 1024
#: How many seconds the last lines may take to be written when the process ends.
_LAST_GRACE = 2.0

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]+")


def escape(text: str) -> str:
    r"""Write unprintable characters, such as line ends and terminal commands, as `\x0a`, `\u2028` and so on."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _number(ord(char)) for char in text)


def _number(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class JsonFormatter(logging.Formatter):
    """Formats a line as one JSON object: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # pure ASCII: control characters are escaped


class ConsoleFormatter(logging.Formatter):
    """Formats a line as time, level, message, and fields as `name=value`. A traceback is indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname.ljust(7), escape(record.getMessage())]
        for name, value in getattr(record, "fields", {}).items():
            text = str(value)
            parts.append(f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text)}")
        line = " ".join(parts)
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line = "\n    | ".join([line, *(escape(part) for part in trace.split("\n"))])
        return line


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class QueueHandler(logging.Handler):
    """Passes lines to a thread that writes them. While the queue is full, lines are dropped and counted."""

    def __init__(
        self, stream: TextIO, *, max_waiting: int = MAX_WAITING, mask: Callable[[str], str] | None = None
    ) -> None:
        super().__init__()
        self._mask = mask
        self.dropped = 0
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._mask is not None:
                line = self._mask(line)
            if len(line) > MAX_LINE:
                line = line[:MAX_LINE] + "..."
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1
        except Exception:  # noqa: BLE001 - as in `logging`'s own handlers: a bad line must not break its caller
            self.handleError(record)

    def _write(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    if self.dropped > told:
                        lost, told = self.dropped - told, self.dropped
                        self._stream.write(self.format(_notice(lost)) + "\n")
                    self._stream.flush()
            except (OSError, ValueError):
                self.dropped += 1  # the reader is gone

    def close(self) -> None:
        """Write the waiting lines, as far as the stream takes them within two seconds."""
        try:
            self._lines.put(None, timeout=_LAST_GRACE)
        except queue.Full:
            pass
        self._thread.join(_LAST_GRACE)
        super().close()


def _notice(lost: int) -> logging.LogRecord:
    return logging.LogRecord(
        "holdfast",
        logging.WARNING,
        "",
        0,
        "%d lines of the log were dropped: it is not read fast enough",
        (lost,),
        None,
    )


class Logs:
    """The log of a process. Use it as a context manager: its end writes the waiting lines.

    `mask` takes secrets out of a whole line, before it is cut.
    """

    def __init__(
        self, config: LoggingConfig, stream: TextIO | None = None, *, mask: Callable[[str], str] | None = None
    ) -> None:
        self.handler = QueueHandler(stream or sys.stderr, mask=mask)
        self.configure(config)

    def configure(self, config: LoggingConfig) -> None:
        """Set the format and the level; also while the process runs."""
        self.handler.setFormatter(JsonFormatter() if config.format == "json" else ConsoleFormatter())
        logging.getLogger("holdfast").setLevel(config.level.upper())

    def __enter__(self) -> Logs:
        logging.getLogger().addHandler(self.handler)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()
