"""The gateway's log: one line per event, as JSON or for a terminal, written by a thread of its own.

Everything that comes from outside (names, ids, messages) is escaped, so that nobody can forge a line of the log.
If nobody reads the log, as when a pipe is full, lines are dropped and the event loop is not held up. A JSON line
that would be too long has its fields shortened; it is never cut in the middle.
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
from typing import Any, Final, TextIO, TypeAlias

from holdfast.config.logging import LoggingConfig

#: The logger of `observe.audit`, which marks its records. They are JSON in both formats, are written at each
#: level, and have a reserve in the queue: what others write cannot crowd them out.
AUDIT: Final = "holdfast.audit"
#: How many lines may wait for the writer. Further ones are dropped and counted.
MAX_WAITING = 10_000
_AUDIT_RESERVE = 1_000
#: The longest line, in characters. The rest is cut off; of a JSON line, each long field's.
MAX_LINE = 64 * 1024
_FIELD_SIZES = (16 * 1024, 1024)
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


#: Takes secrets out of a text.
Mask: TypeAlias = Callable[[str], str]


def _unmasked(text: str) -> str:
    return text


class JsonFormatter(logging.Formatter):
    """Formats a line as one JSON object: time, level, logger, message, then the fields.

    Each value is masked before it becomes JSON, and before it is shortened: a mask knows nothing of the quotes and
    backslashes around a secret.
    """

    def __init__(self, mask: Mask = _unmasked) -> None:
        super().__init__()
        self._mask = mask

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
        self._take_secrets(line)
        text = json.dumps(line, default=str)  # pure ASCII: control characters are escaped
        return text if len(text) <= MAX_LINE else _shortened(line)

    def _take_secrets(self, line: dict[str, Any]) -> None:
        """Mask the values; of a list or a table with a secret in it the text of it."""
        texts = {
            name: value if isinstance(value, str) else json.dumps(value, default=str)
            for name, value in line.items()
            if not (value is None or isinstance(value, bool | int | float))
        }
        # Most lines have none: one look at all of it says so.
        whole = "\n".join(texts.values())
        if self._mask(whole) == whole:
            return
        for name, text in texts.items():
            masked = self._mask(text)
            if masked != text:
                line[name] = masked


def _shortened(line: dict[str, Any]) -> str:
    """Write a line that is too long as one that still is JSON, with the beginning of each field."""
    for size in _FIELD_SIZES:
        short: dict[str, Any] = {"is_shortened": True}
        for name, value in line.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            short[name] = value if len(text) <= size else text[:size] + "..."
        text = json.dumps(short, default=str)
        if len(text) <= MAX_LINE:
            return text
    # It has more fields than there is room for.
    return json.dumps({name: short[name] for name in ("is_shortened", "time", "level", "logger", "message")})


class ConsoleFormatter(logging.Formatter):
    """Formats a line as time, level, message, and fields as `name=value`. A traceback is indented below it.

    Audit lines are JSON here too: programs read them.
    """

    def __init__(self, mask: Mask = _unmasked) -> None:
        super().__init__()
        self._mask = mask
        self._json = JsonFormatter(mask)

    def format(self, record: logging.LogRecord) -> str:
        if _is_audit(record):
            return self._json.format(record)
        parts = [_time(record), record.levelname.ljust(7), escape(record.getMessage())]
        for name, value in getattr(record, "fields", {}).items():
            text = str(value)
            parts.append(f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text)}")
        line = " ".join(parts)
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line = "\n    | ".join([line, *(escape(part) for part in trace.split("\n"))])
        return self._mask(line)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _is_audit(record: logging.LogRecord) -> bool:
    return bool(getattr(record, "is_audit", False))


class QueueHandler(logging.Handler):
    """Passes lines to a thread that writes them. While the queue is full, lines are dropped and counted."""

    def __init__(self, stream: TextIO, *, max_waiting: int = MAX_WAITING) -> None:
        super().__init__()
        self.dropped = 0
        self._told = 0
        self._stream = stream
        self._max_waiting = max_waiting
        self._lines: queue.Queue[str | None] = queue.Queue(max_waiting + _AUDIT_RESERVE)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lines.qsize() >= self._max_waiting and not _is_audit(record):
                raise queue.Full
            line = self.format(record)
            if len(line) > MAX_LINE:
                line = line[:MAX_LINE] + "..."
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1
        except Exception:  # noqa: BLE001 - as in `logging`'s own handlers: a bad line must not break its caller
            self.handleError(record)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._tell_of_dropped()
                    self._stream.flush()
            except (OSError, ValueError):
                self.dropped += 1  # the reader is gone
        try:
            self._tell_of_dropped()
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def _tell_of_dropped(self) -> None:
        if self.dropped > self._told:
            lost, self._told = self.dropped - self._told, self.dropped
            self._stream.write(self.format(_notice(lost)) + "\n")

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

    `mask` takes secrets out of each line, before it is cut.
    """

    def __init__(self, config: LoggingConfig, stream: TextIO | None = None, *, mask: Mask = _unmasked) -> None:
        self._mask = mask
        self.handler = QueueHandler(stream or sys.stderr)
        self.configure(config)

    def configure(self, config: LoggingConfig) -> None:
        """Set the format and the level; also while the process runs."""
        is_json = config.format == "json"
        self.handler.setFormatter(JsonFormatter(self._mask) if is_json else ConsoleFormatter(self._mask))
        logging.getLogger("holdfast").setLevel(config.level.upper())
        logging.getLogger(AUDIT).setLevel(logging.INFO)  # whatever the level of the rest

    def __enter__(self) -> Logs:
        logging.getLogger().addHandler(self.handler)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()
