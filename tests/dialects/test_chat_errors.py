"""What a provider says of an error, in every shape that is known, and in none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.dialects.chat import CHAT
from holdfast.dialects.chat_errors import told, told_in
from holdfast.errors import ProviderError

MISSING = {"loc": ["body", "messages", 0, "role"], "msg": "Field required", "type": "missing"}
OLD = {"object": "error", "message": "too long", "type": "BadRequestError", "param": None, "code": 400}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"error": {"message": "quota", "type": "t", "code": "insufficient_quota", "param": "p"}},
            ProviderError("quota", "insufficient_quota", "t", "p"),
        ),
        ({"error": {"message": "no", "code": 429}}, ProviderError("no", "429", status=429)),
        ({"error": {"message": "no", "code": "503"}}, ProviderError("no", "503", status=503)),
        ({"error": {"message": "no", "code": 17}}, ProviderError("no", "17")),
        ({"error": {"message": "no", "status": 422, "code": "bad"}}, ProviderError("no", "bad", status=422)),
        ({"error": {"message": "no", "status_code": 401}}, ProviderError("no", status=401)),
        (
            {"error": {"message": "no", "code": 400, "status": "INVALID_ARGUMENT"}},
            ProviderError("no", "400", "INVALID_ARGUMENT", status=400),
        ),
        ([{"error": {"message": "no", "code": 400}}], ProviderError("no", "400", status=400)),
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            ProviderError("Overloaded", type="overloaded_error"),
        ),
        ({"error": "text", "code": 1}, ProviderError("text")),
        ({"error": 529}, ProviderError(code="529", status=529)),
        ({"error": True}, ProviderError()),
        ({"error": {}}, ProviderError()),
        (OLD, ProviderError("too long", "400", "BadRequestError", status=400)),
        ({"object": "error"}, ProviderError()),
        # These say only by their status, or by the name of their event, that they are errors.
        ({"message": "boom", "code": 500}, None),
        ({"detail": "no"}, None),
        ({"choices": [], "error": None}, None),
        ({"choices": [], "error": ""}, None),
        ({"choices": [], "error": False}, None),
        ({"choices": [], "error": {"message": "", "code": None}}, None),
        ([], None),
        ("text", None),
    ],
)
def test_error_is_read_from_what_says_itself_that_it_is_one(said: Any, expected: ProviderError | None) -> None:
    assert told(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"message": "boom", "code": 500}, ProviderError("boom", "500", status=500)),
        ({"msg": "boom"}, ProviderError("boom")),
        ({"detail": "bad x"}, ProviderError("bad x")),
        ({"detail": {"message": "bad x", "code": "c"}}, ProviderError("bad x", "c")),
        (
            {"detail": [MISSING, {"msg": "bad x"}, "odd", 7]},
            ProviderError(
                "messages.0.role: Field required; bad x; odd; 7", type="missing", param="messages.0.role"
            ),
        ),
        ({"detail": [{"loc": "x", "msg": None}]}, None),
        ({"detail": []}, None),
        ({"errors": [{"code": 7003, "message": "no route"}], "success": False}, ProviderError("no route", "7003")),
        ("boom", ProviderError("boom")),
        (500, ProviderError(code="500", status=500)),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_error_is_read_from_what_is_known_to_be_one(said: Any, expected: ProviderError | None) -> None:
    assert told(said, is_error=True) == expected
    assert told_in(json.dumps(said).encode()) == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error":"', b"[" * 100_000])
def test_body_that_is_not_json_says_nothing(body: bytes) -> None:
    assert told_in(body) is None


def test_status_error_brings_the_providers_words_along() -> None:
    error = CHAT.status_error(422, json.dumps({"detail": [MISSING]}).encode(), retry_after=None)
    assert error.message == "messages.0.role: Field required"
    assert error.told == ProviderError(error.message, type="missing", param="messages.0.role")
    assert CHAT.status_error(422, b"", retry_after=None).told is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2000) | st.just("\ud83d" * 2000),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "type", "param", "status", "detail", "loc", "msg"]), inner
        )
    ),
)


@given(json_values, st.booleans())
def test_whatever_is_said_the_error_is_bounded_and_can_be_written(said: Any, is_error: bool) -> None:
    found = told(said, is_error=is_error)
    if found is not None:
        assert len(found.message.encode().decode()) <= 1000
        assert all(len(word.encode().decode()) <= 100 for word in (found.code, found.type, found.param))
        assert found.status is None or 400 <= found.status < 600
