"""How clients of chat completions see a log, its end and its failures: Server-Sent Events, and HTTP errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.core.entries import EndBody, EndStatus, ErrorBody
from holdfast.core.log import Log
from holdfast.dialects.chat import CHAT
from holdfast.dialects.failure import end_error, end_http_status
from holdfast.errors import (
    Forbidden,
    HoldfastError,
    InvalidRequest,
    Overloaded,
    RateLimited,
    StreamFailed,
    UpstreamStatus,
)


def written(end: EndBody) -> bytes:
    """A log with two entries and this end, as a client is sent it."""
    log = Log("st_1", max_bytes=1000)
    cursor = log.cursor()
    log.append([b'{"a":1}'])
    out = [cursor.read(CHAT.framing, 1000)]
    log.append([b'{"a":2}', b'{"a":\n3}'])
    out.append(cursor.read(CHAT.framing, 1000))
    log.seal(end)
    out.append(cursor.read(CHAT.framing, 1000))
    assert cursor.is_done
    return b"".join(part or b"" for part in out)


ENTRIES = b'id: 1-0\ndata: {"a":1}\n\nid: 1-1\ndata: {"a":2}\n\nid: 1-2\ndata: {"a":\ndata: 3}\n\n'


def test_completed_answer_ends_with_done() -> None:
    assert written(EndBody("completed")) == ENTRIES + b"id: 1-3\ndata: [DONE]\n\n"


def test_error_that_a_provider_told_has_its_code_type_and_param_and_ours_beside() -> None:
    error = ErrorBody(
        "upstream_status",
        "too long",
        param="messages",
        status=400,
        provider_code="context_length_exceeded",
        provider_type="invalid_request_error",
        provider_request_id="req_7",
    )
    _, _, data = written(EndBody("failed", error=error)).removeprefix(ENTRIES).partition(b"data: ")
    assert json.loads(data)["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
        "param": "messages",
        "holdfast_code": "upstream_status",
        "provider_request_id": "req_7",
    }


@pytest.mark.parametrize("status", ["failed", "incomplete", "cancelled"])
def test_answer_that_did_not_complete_ends_with_an_error_and_without_done(status: EndStatus) -> None:
    end = EndBody(status, error=ErrorBody("upstream_reset", "cut"))
    head, _, data = written(end).removeprefix(ENTRIES).partition(b"data: ")
    assert head == b"id: 1-3\n"
    assert json.loads(data) == {
        "error": {"message": "cut", "type": "api_error", "code": "upstream_reset", "param": None}
    }


def test_reader_who_may_not_read_on_is_told_so() -> None:
    failure = CHAT.framing.failure(Forbidden("the key was revoked"))
    assert failure is not None
    head, _, data = failure.partition(b"data: ")
    assert head == b""  # no entry of the log, so no id to resume from
    assert json.loads(data)["error"]["code"] == "forbidden"


def test_refusal_can_be_the_status_of_an_answer() -> None:
    assert not CHAT.framing.starts_at_once


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("bad", param="n"), 400, "invalid_request_error"),
        (UpstreamStatus("no", status=404), 404, "invalid_request_error"),
        (RateLimited("later"), 429, "api_error"),
        (Overloaded("full"), 503, "api_error"),
        (UpstreamStatus("no", status=500), 500, "api_error"),
    ],
)
def test_error_has_the_shape_that_the_sdks_read(error: HoldfastError, status: int, kind: str) -> None:
    assert json.loads(CHAT.error_body(error, status)) == {
        "error": {"message": error.message, "type": kind, "code": error.code, "param": error.param}
    }


# -- failure -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 502),
        (ErrorBody("upstream_reset", "cut"), 502),
        (ErrorBody("queue_timeout", "late"), 503),
        (ErrorBody("upstream_status", "no", status=422), 422),
        (ErrorBody("upstream_status", "no", status=529), 529),
        # These are about the credentials of the gateway, not of its caller.
        (ErrorBody("upstream_status", "no", status=401), 502),
        (ErrorBody("upstream_status", "no", status=403), 502),
        # An HTTP status that is no error, or none at all.
        (ErrorBody("upstream_status", "no", status=301), 502),
        (ErrorBody("upstream_status", "no", status=999), 502),
    ],
)
def test_end_without_an_entry_has_an_http_status(error: Any, status: int) -> None:
    assert end_http_status(EndBody("failed", error=error)) == status


def test_end_that_names_no_error_failed_all_the_same() -> None:
    error = end_error(EndBody("cancelled"))
    assert type(error) is StreamFailed
    assert error.message == "the stream ended cancelled"
    assert end_error(EndBody("failed", error=ErrorBody("overloaded", "full"))).message == "full"
