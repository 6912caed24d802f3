"""What the log says, and what it must not: no content, no forged lines, and never a pause of the loop."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config.logging import LoggingConfig
from holdfast.core.masking import Masking
from holdfast.logs import ConsoleFormatter, JsonFormatter, Logs, QueueHandler, escape
from tests.support.gateway_client import Session, ask, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

SECRET = "the prompt nobody may see"


def record(message: str, fields: dict[str, Any] | None = None, **options: Any) -> logging.LogRecord:
    made = logging.LogRecord("holdfast", logging.INFO, "", 0, message, None, options.get("exc_info"))
    if fields is not None:
        made.fields = fields
    return made


def lines_of(caplog: Any, message: str) -> list[dict[str, Any]]:
    return [entry.fields for entry in caplog.records if entry.getMessage() == message]


@given(st.text(), st.text())
def test_whatever_comes_from_outside_stays_on_its_line(message: str, value: str) -> None:
    for formatter in (ConsoleFormatter(), JsonFormatter()):
        line = formatter.format(record(message, {"name": value}))
        assert len(line.splitlines()) == 1
        assert line.isprintable()
    assert json.loads(JsonFormatter().format(record(message, {"name": value})))["name"] == value


def test_control_characters_are_written_as_numbers() -> None:
    assert escape("a\r\nb\x1b[2Jc\u2028d") == "a\\x0d\\x0ab\\x1b[2Jc\\u2028d"


def test_traceback_cannot_look_like_a_line_of_the_log() -> None:
    try:
        raise ValueError("x\n2026-01-01T00:00:00.000Z INFO forged")
    except ValueError as exc:
        info = (type(exc), exc, exc.__traceback__)
    first, *rest = ConsoleFormatter().format(record("failed", exc_info=info)).split("\n")
    assert first.endswith("failed")
    assert all(line.startswith("    | ") for line in rest)
    assert "forged" in json.loads(JsonFormatter().format(record("failed", exc_info=info)))["exception"]


KEY = "sk-live-1234567890abcdef"


@pytest.mark.parametrize(
    "value", [f'the key "{KEY}" is wrong', f"C:\\{KEY}\\", [f'"{KEY}"'], {"key": KEY, "n": 1}]
)
def test_line_from_which_a_secret_is_taken_is_still_json(value: object) -> None:
    line = JsonFormatter(Masking([KEY]).mask).format(record(f'"{KEY}"', {"reason": value, "status": 401}))
    assert KEY not in line
    fields = json.loads(line)
    assert fields["message"].startswith('"***')
    assert "***" in fields["reason"]
    assert fields["status"] == 401


def test_secret_that_a_shortened_field_would_be_cut_within_is_taken_out_whole() -> None:
    field = "x" * (16 * 1024 - 4) + KEY + "y " * 40_000
    fields = json.loads(JsonFormatter(Masking([KEY]).mask).format(record("long", {"prompt": field})))
    assert fields["is_shortened"]
    assert KEY[:3] not in fields["prompt"]


class Stuck(io.StringIO):
    """A stream that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def write(self, text: str) -> int:
        self.gate.wait(10)
        return super().write(text)


def test_log_that_nobody_reads_costs_lines_and_no_time() -> None:
    stream = Stuck()
    handler = QueueHandler(stream, max_waiting=10)
    handler.setFormatter(ConsoleFormatter())
    for number in range(1000):  # would never end if it waited
        handler.emit(record(f"line {number}"))
    dropped = handler.dropped
    assert 1000 - 11 <= dropped <= 1000 - 10  # the writer may have taken one by then
    stream.gate.set()
    handler.close()
    lines = stream.getvalue().splitlines()
    written = [int(line.rpartition(" ")[2]) for line in lines if " line " in line]
    assert len(written) == 1000 - dropped
    assert written[0] == 0
    assert written == sorted(set(written))
    notices = re.findall(r"(\d+) lines of the log were dropped", stream.getvalue())
    assert sum(map(int, notices)) == dropped


def test_format_and_level_can_change_while_lines_are_written() -> None:
    stream = io.StringIO()
    with Logs(LoggingConfig(), stream) as logs:
        logger = logging.getLogger("holdfast")
        logger.debug("unseen")
        logger.info("first")
        logs.configure(LoggingConfig(format="json", level="debug"))
        logger.debug("second")
    first, second = stream.getvalue().splitlines()
    assert "INFO" in first
    assert json.loads(second)["message"] == "second"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "holdfast")
    return caplog


def request(**sim: Any) -> dict[str, Any]:
    return chat({"tokens": 3, **sim}, messages=[{"role": "user", "content": SECRET}])


async def test_request_and_connection_have_a_line_at_their_end(
    path: GatewayPath, log: pytest.LogCaptureFixture
) -> None:
    async with await Session.open(path.url) as session:
        accepted = await session.create("r-1", request())
        await session.read()
    await eventually(lambda: lines_of(log, "connection ended"))
    (ended,) = lines_of(log, "request ended")
    (closed,) = lines_of(log, "connection ended")
    assert ended["stream"] == accepted["stream"]
    assert (ended["request"], ended["model"], ended["status"]) == ("r-1", "demo", "completed")
    assert (ended["tenant"], ended["provider"], ended["attempts"]) == ("local", "sim", 1)
    assert ended["completion_tokens"] == 3
    assert ended["duration"] >= 0
    assert ended["connection"] == closed["connection"] > 0
    assert ended["session"] == closed["session"] == session.welcome["session"][:8]
    assert closed["close_code"] == 1000


async def test_refusal_and_failure_of_a_provider_have_lines(
    make_path: MakePath, log: pytest.LogCaptureFixture
) -> None:
    path = await make_path(model={"retry": {"max_attempts": 1}})
    assert (await ask(path.url, "POST", "/v1/chat/completions", request(), authorization="Bearer x")).status == 200
    body = request(fault={"kind": "status", "status": 400, "message": SECRET})
    assert (await ask(path.url, "POST", "/v1/chat/completions", body)).status == 400
    (failed,) = lines_of(log, "provider failed")
    assert (failed["provider"], failed["error"], failed["http_status"]) == ("sim", "upstream_status", 400)
    unknown = await ask(path.url, "POST", "/v1/chat/completions", request() | {"model": "none"})
    assert unknown.status == 404
    assert lines_of(log, "request refused")[0]["error"] == "model_not_found"
    assert [line["status"] for line in lines_of(log, "request ended")] == ["completed", "failed"]


@pytest.mark.parametrize("content", [False, True])
async def test_content_is_logged_only_where_it_was_asked_for(
    make_path: MakePath, log: pytest.LogCaptureFixture, content: bool
) -> None:
    path = await make_path(logging=LoggingConfig(content=content))
    body = request(fault={"kind": "error_event", "after_tokens": 1, "message": f"quoted: {SECRET}"})
    for sent in (body, request()):
        await ask(path.url, "POST", "/v1/chat/completions", {**sent, "stream": False})
    text = "\n".join(JsonFormatter().format(entry) for entry in log.records)
    assert (SECRET in text) is content
    assert bool(lines_of(log, "request content")) is content
