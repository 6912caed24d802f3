"""What an error of a provider means, by its status or by what it calls itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.dialects.chat import CHAT
from holdfast.dialects.chat_errors import error_in
from holdfast.errors import UpstreamError, UpstreamRefused, UpstreamReset


def answered(status: int, error: Any) -> UpstreamError:
    return CHAT.judged(CHAT.status_error(status, json.dumps({"error": error}).encode(), retry_after=None))


def within(error: Any) -> UpstreamError:
    """The error as an event or body of an answer of 200."""
    found = error_in(json.dumps({"choices": [], "error": error}).encode(), b"")
    assert found is not None
    return CHAT.judged(found)


@pytest.mark.parametrize(
    ("status", "is_retryable"),
    [
        (400, False),
        (404, False),
        (405, False),
        (413, False),
        (422, False),
        (408, True),
        (409, True),
        (425, True),
        (429, True),
        (500, True),
        (503, True),
        (529, True),
    ],
)
def test_status_says_whether_the_same_request_may_succeed_later(status: int, is_retryable: bool) -> None:
    error = answered(status, {"message": "no", "type": "some_error", "code": "some_code", "param": "messages"})
    assert (error.status, error.retryable) == (status, is_retryable)
    assert (error.provider_code, error.provider_type, error.param) == ("some_code", "some_error", "messages")
    assert error.message == "no"


@pytest.mark.parametrize(
    ("error", "status", "is_retryable"),
    [
        ({"message": "too long", "code": 400}, 400, False),
        ({"message": "slow down", "code": 429}, 429, True),
        ({"message": "down", "code": 503}, 503, True),
        ({"message": "down", "code": "503"}, 503, True),
        ({"message": "too long", "code": "context_length_exceeded"}, 400, False),
        ({"message": "no", "type": "invalid_request_error"}, 400, False),
        ({"message": "no", "type": "rate_limit_error"}, 429, True),
        ({"message": "no", "type": "overloaded_error"}, 529, True),
        ({"message": "no", "code": "model_not_found"}, 404, False),
        ({"message": "no", "code": "something_else"}, None, True),
        ("just a text", None, True),
    ],
)
def test_code_within_an_answer_decides_like_a_status(error: Any, status: int | None, is_retryable: bool) -> None:
    found = within(error)
    assert (found.code, found.status, found.retryable) == ("upstream_error", status, is_retryable)


REFUSALS = [
    (401, {"message": "Incorrect API key provided: sk-1", "code": "invalid_api_key"}, True),
    (401, "no", True),
    (407, "no", True),
    (403, {"message": "no", "type": "permission_error"}, True),
    (403, "no", True),
    (429, {"message": "quota", "code": "insufficient_quota"}, True),
    (429, {"message": "quota", "type": "insufficient_quota", "code": None}, True),
    (429, {"message": "limit", "code": "billing_hard_limit_reached"}, True),
    (402, {"message": "quota", "code": "insufficient_quota"}, True),
    # It may be of this request alone, or of this model.
    (402, {"message": "fewer max_tokens"}, False),
    (403, {"message": "no access", "code": "model_not_found"}, False),
]


@pytest.mark.parametrize(("status", "error", "is_certain"), REFUSALS)
def test_refusal_of_the_gateway_itself_is_told_without_the_providers_words(
    status: int, error: Any, is_certain: bool
) -> None:
    refused = answered(status, error)
    assert isinstance(refused, UpstreamRefused)
    assert (refused.status, refused.provider_code, refused.provider_type) == (None, None, None)
    assert (refused.retryable, refused.http_status, refused.is_certain) == (False, 502, is_certain)
    assert "sk-1" not in f"{refused.message} {refused.reason}"
    assert str(status) in refused.reason
    assert str(status) not in refused.message


@pytest.mark.parametrize("body", [b"<html>Blocked</html>", b"", b"{}"])
def test_refusal_that_the_api_itself_does_not_speak_may_be_of_this_request(body: bytes) -> None:
    refused = CHAT.judged(CHAT.status_error(403, body, retry_after=None))
    assert isinstance(refused, UpstreamRefused)
    assert not refused.is_certain
    assert "credential" not in refused.message


@pytest.mark.parametrize(
    "error",
    [
        {"message": "quota", "code": "insufficient_quota"},
        {"message": "no", "code": 401},
        {"message": "no", "code": "invalid_api_key"},
        {"message": "no", "type": "permission_error"},
    ],
)
def test_refusal_of_the_gateway_within_an_answer_is_one_too(error: Any) -> None:
    assert isinstance(within(error), UpstreamRefused)


@pytest.mark.parametrize(
    "error",
    [
        {"message": "no", "code": "content_filter"},
        {"message": "Your input was flagged"},
        {"message": "requires moderation", "code": 403},
    ],
)
def test_refusal_of_what_was_asked_is_the_callers(error: Any) -> None:
    found = answered(403, error)
    assert not isinstance(found, UpstreamRefused)
    assert (found.status, found.retryable, found.message) == (400, False, error["message"])


def test_error_of_the_connection_means_what_it_says() -> None:
    error = UpstreamReset("cut")
    assert CHAT.judged(error) is error
