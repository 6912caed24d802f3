"""The audit log: which events have a line, what it says, and that nothing can cut, crowd out or forge one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from holdfast.admission.keys import create_key
from holdfast.config import KeyConfig
from holdfast.config.auth import AuthConfig
from holdfast.config.logging import LoggingConfig
from holdfast.logs import AUDIT, MAX_LINE, ConsoleFormatter, JsonFormatter, Logs, QueueHandler
from holdfast.observe.audit import audit
from holdfast.server.listener.admitted import MAX_REFUSED
from tests.io.test_gateway_logs import Stuck, record
from tests.io.test_security_tokens import offering
from tests.support.gateway_client import Http, ask, dial
from tests.support.gateway_path import GatewayPath, MakePath

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
    event.is_audit = True
    handler.emit(event)
    stream.gate.set()
    handler.close()
    assert '"message": "key_created"' in stream.getvalue()


def events(caplog: Any, name: str) -> list[dict[str, Any]]:
    return [entry.fields for entry in caplog.records if entry.name == AUDIT and entry.getMessage() == name]


def loud(caplog: Any) -> None:
    caplog.set_level(logging.INFO, AUDIT)


# -- what a gateway tells ------------------------------------------------------------------------------

KEY, KEY_HASH = create_key()
ADMIN_KEY, ADMIN_HASH = create_key()


@pytest.fixture
async def keyed(make_path: MakePath, caplog: pytest.LogCaptureFixture) -> GatewayPath:
    loud(caplog)
    return await make_path(keys={"web": KeyConfig(hash=KEY_HASH)}, auth=AuthConfig(admin_key=ADMIN_HASH))


async def test_refused_credential_is_told_without_the_secret(
    keyed: GatewayPath, caplog: pytest.LogCaptureFixture
) -> None:
    wrong, hashed = create_key()
    jwt = "eyJhbGciOiJub25lIn0.e30."
    for headers in ({"x-api-key": wrong}, {"authorization": "Bearer hunter2"}, {"x-api-key": jwt}, {}):
        assert (await ask(keyed.url, "GET", "/v1/models", **headers)).status == 401
    assert (await ask(keyed.url, "GET", f"/v1/models?key={wrong}", authorization=f"Bearer {KEY}")).status == 400
    told = events(caplog, "auth_failed")
    assert [event["credential"] for event in told[:4]] == [f"key {hashed[:15]}", "unknown", "jwt", "none"]
    assert told[0]["reason"] == "the key is not known here"
    assert (told[0]["address"], told[0]["route"], told[0]["error"]) == ("127.0.0.1", "/v1/models", "unauthorized")
    assert told[4]["error"] == "invalid_request"
    for secret in (wrong, "hunter2", jwt, KEY):
        assert secret not in str(told)


async def test_key_that_may_not_and_page_that_may_not_are_told(
    keyed: GatewayPath, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    assert (await ask(keyed.url, "GET", "/v1/admin/keys", **headers)).status == 401
    assert (await ask(keyed.url, "GET", "/v1/models", origin="https://evil.example", **headers)).status == 403
    first, second = events(caplog, "auth_failed")
    assert (first["route"], first["reason"]) == (
        "/v1/admin/keys",
        "this needs the admin key, as `Authorization: Bearer ...`",
    )
    assert "evil.example" in second["reason"]


async def test_refused_handshake_is_told(keyed: GatewayPath, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidStatus):
        await dial(keyed.url, additional_headers={"authorization": "Bearer hf_no"})
    with pytest.raises(InvalidStatus):
        await offering(keyed.url, "holdfast.v1", "holdfast.token.hft_no")
    first, second = events(caplog, "auth_failed")
    assert (first["method"], first["route"], first["credential"]) == ("WebSocket", "/v1/ws/stream", "unknown")
    assert second["credential"] == "client token"


async def test_good_caller_is_not_told(keyed: GatewayPath, caplog: pytest.LogCaptureFixture) -> None:
    assert (await ask(keyed.url, "GET", "/v1/models", authorization=f"Bearer {KEY}")).status == 200
    assert (await ask(keyed.url, "GET", "/nowhere")).status == 404
    assert not events(caplog, "auth_failed")


async def test_connection_that_guesses_on_is_closed(keyed: GatewayPath) -> None:
    async with await Http.open(keyed.url) as http:
        for number in range(1, MAX_REFUSED + 1):
            response = await http.ask("GET", "/v1/models", authorization="Bearer hf_wrong")
            assert response.status == 401
            assert (response.headers.get("connection") == "close") == (number == MAX_REFUSED)
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await http.ask("GET", "/v1/models", authorization=f"Bearer {KEY}")


async def test_good_credential_between_wrong_ones_keeps_the_connection(keyed: GatewayPath) -> None:
    async with await Http.open(keyed.url) as http:
        for number in range(3 * MAX_REFUSED):
            key = KEY if number % 5 == 4 else "hf_wrong"
            response = await http.ask("GET", "/v1/models", authorization=f"Bearer {key}")
            assert "connection" not in response.headers


async def test_drain_is_told(keyed: GatewayPath, caplog: pytest.LogCaptureFixture) -> None:
    assert await keyed.gateway.drain()
    (began,) = events(caplog, "drain_began")
    assert (began["streams"], began["sessions"]) == (0, 0)
    (ended,) = events(caplog, "drain_ended")
    assert ended["is_complete"] is True
