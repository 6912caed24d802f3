"""The audit log: which events have a line, what it says, and that nothing can cut, crowd out or forge one."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdfast.config.logging import LoggingConfig
from holdfast.logs import AUDIT, MAX_LINE, ConsoleFormatter, JsonFormatter, Logs, QueueHandler
from holdfast.observe.audit import audit
from tests.io.test_gateway_logs import Stuck, record

#: What a pipe takes in one piece on Linux.
PIPE_BUF = 4096


def written(config: LoggingConfig, **fields: object) -> list[str]:
    """Write one event, and return the lines that the log has of it."""
    stream = io.StringIO()
    with Logs(config, stream):
        audit("key_created", **fields)
    return stream.getvalue().splitlines()


def test_event_is_json_in_both_formats_and_at_each_level() -> None:
    for config in (LoggingConfig(format="json"), LoggingConfig(format="console", level="error")):
        (line,) = written(config, key="key_1", actor="admin", reason=None)
        decoded = json.loads(line)
        assert (decoded["logger"], decoded["message"]) == (AUDIT, "key_created")
        assert (decoded["key"], decoded["actor"]) == ("key_1", "admin")
        assert "reason" not in decoded


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,20}", fullmatch=True), st.text() | st.lists(st.text()), max_size=15),
    st.integers(1, 10_000),
)
def test_event_stays_one_whole_line_that_a_pipe_takes_in_one_piece(fields: dict[str, Any], times: int) -> None:
    fields.pop("event", None)
    (line,) = written(LoggingConfig(), **{name: value * times for name, value in fields.items()})
    assert len(line.encode()) < PIPE_BUF
    assert json.loads(line)["message"] == "key_created"


@given(st.text(min_size=1), st.integers(0, 30))
def test_json_line_that_is_too_long_is_shortened_and_not_cut(text: str, count: int) -> None:
    fields = {f"field{number}": text * (MAX_LINE // len(text)) for number in range(count)}
    line = JsonFormatter().format(record("a message", fields))
    assert len(line) <= MAX_LINE
    decoded = json.loads(line)
    assert decoded["message"] == "a message"
    assert ("is_shortened" in decoded) == (count > 0)


def test_events_are_written_where_other_lines_have_filled_the_queue() -> None:
    stream = Stuck()
    handler = QueueHandler(stream, max_waiting=10)
    handler.setFormatter(ConsoleFormatter())
    for number in range(100):
        handler.emit(record(f"line {number}"))
    event = record("key_created")
    event.name = AUDIT
    handler.emit(event)
    stream.gate.set()
    handler.close()
    assert '"message": "key_created"' in stream.getvalue()


def events(caplog: Any, name: str) -> list[dict[str, Any]]:
    return [entry.fields for entry in caplog.records if entry.name == AUDIT and entry.getMessage() == name]


def loud(caplog: Any) -> None:
    caplog.set_level(logging.INFO, AUDIT)
