"""What is taken for a request of chat completions, and what a provider is sent for it."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import msgspec
import pytest

from holdfast.dialects.ask import Ask
from holdfast.dialects.chat import CHAT, ChatOptions
from holdfast.dialects.chat_answers import CompletionReader, StreamReader
from holdfast.dialects.dialect import header_text
from holdfast.errors import InvalidRequest

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parse(**fields: Any) -> Ask:
    return CHAT.parse(json.dumps({**BODY, **fields}))


# -- of clients ----------------------------------------------------------------------------------------


def test_request_is_kept_whole_with_fields_of_tomorrow() -> None:
    raw = json.dumps({**BODY, "of_tomorrow": [1, {"a": None}], "temperature": 0.5}).encode()
    ask = CHAT.parse(raw)
    assert (ask.dialect, ask.model, ask.stream, ask.wants_usage) == ("chat", "m", False, False)
    assert ask.body == json.loads(raw)
    assert ask.digest == hashlib.sha256(raw).digest() == CHAT.parse(raw.decode()).digest
    assert CHAT.prompt_of(ask) == BODY["messages"]


@pytest.mark.parametrize(
    ("own", "override", "stream"),
    [
        (True, None, True),
        (False, None, False),
        (None, None, False),
        (True, False, False),
        (False, True, True),
        (None, True, True),
    ],
)
def test_surface_may_override_whether_an_answer_is_streamed(
    own: bool | None, override: bool | None, stream: bool
) -> None:
    assert CHAT.parse(json.dumps({**BODY, "stream": own}), stream=override).stream is stream


@pytest.mark.parametrize(
    ("options", "wants_usage"),
    [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)],
)
def test_usage_is_wanted_where_the_stream_options_say_so(
    options: dict[str, Any] | None, wants_usage: bool
) -> None:
    assert parse(stream_options=options).wants_usage is wants_usage


@pytest.mark.parametrize("raw", [b"", b"{", b'{"model":"\xff"}', b"[" * 100_000, '{"model":"\ud800"}'])
def test_body_that_is_not_json_is_refused(raw: bytes | str) -> None:
    with pytest.raises(InvalidRequest, match="the body is not valid JSON") as caught:
        CHAT.parse(raw)
    assert caught.value.param is None


@pytest.mark.parametrize("raw", [b"[]", b'"m"', b"null", b"1"])
def test_body_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        CHAT.parse(raw)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_field_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^`{name}` is missing$") as caught:
        CHAT.parse(json.dumps({key: value for key, value in BODY.items() if key != name}))
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": 1}, "model", "`model`: expected `str`, got `int`"),
        ({"model": ""}, "model", "`model` must name a model"),
        ({"messages": "hi"}, "messages", "`messages`: expected `array`, got `str`"),
        ({"messages": []}, "messages", "`messages` must hold at least one message"),
        ({"messages": ["hi"]}, "messages[0]", "`messages[0]`: expected `object`, got `str`"),
        ({"messages": [{}, None]}, "messages[1]", "`messages[1]`: expected `object`, got `null`"),
        ({"stream": "yes"}, "stream", "`stream`: expected `bool | null`, got `str`"),
        ({"stream_options": []}, "stream_options", "`stream_options`: expected `object | null`, got `array`"),
    ],
)
def test_field_of_the_wrong_type_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.message.replace("[...]", "[0]") == message
    assert caught.value.param == param


# -- of providers --------------------------------------------------------------------------------------


def request(ask: Ask, **options: bool) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    made = CHAT.request(ask, "their-m", CHAT.options(options), path="/v1", stream_id="st_1")
    assert (made.method, made.path) == ("POST", "/v1/chat/completions")
    return json.loads(made.body), dict(made.headers)


def test_streamed_request_names_their_model_and_asks_for_usage() -> None:
    ask = parse(stream=True, seed=7, stream_options={"of_tomorrow": 1})
    body, headers = request(ask)
    options = {"of_tomorrow": 1, "include_usage": True}
    assert body == {**BODY, "model": "their-m", "seed": 7, "stream": True, "stream_options": options}
    assert headers == {
        b"content-type": b"application/json",
        b"accept": b"text/event-stream",
        b"x-request-id": b"1",
    }
    # What the caller asked is still what it asked: it is tried elsewhere after a failure.
    assert ask.body == {**BODY, "seed": 7, "stream": True, "stream_options": {"of_tomorrow": 1}}


def test_provider_that_knows_no_stream_options_gets_those_of_the_caller_alone() -> None:
    assert "stream_options" not in request(parse(stream=True), stream_usage=False)[0]
    asked = parse(stream=True, stream_options={"include_usage": True})
    assert request(asked, stream_usage=False)[0]["stream_options"] == {"include_usage": True}
    assert request(parse(stream=True, stream_options=None))[0]["stream_options"] == {"include_usage": True}


def test_whole_request_has_no_stream_options() -> None:
    ask = CHAT.parse(json.dumps({**BODY, "stream": True, "stream_options": {"include_usage": True}}), stream=False)
    body, headers = request(ask)
    assert body == {**BODY, "model": "their-m", "stream": False}
    assert headers[b"accept"] == b"application/json"


def test_request_id_of_a_stream_is_a_uuid_without_dashes() -> None:
    """llama-cpp-python's server answers 400 with an empty body to any other `x-request-id`."""
    stream_id = "st_" + uuid.uuid4().hex
    headers = dict(CHAT.request(parse(), "m", ChatOptions(), path="/v1", stream_id=stream_id).headers)
    assert uuid.UUID(headers[b"x-request-id"].decode()).hex == stream_id.removeprefix("st_")


def test_reader_suits_the_request() -> None:
    assert isinstance(CHAT.reader(parse(), ChatOptions(), max_entry=10), CompletionReader)
    usage = b'data: {"choices":[],"usage":{}}\n\n'
    begun = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    for wanted in (True, False):
        ask = parse(stream=True, stream_options={"include_usage": wanted})
        reader = CHAT.reader(ask, ChatOptions(requires_finish_reason=wanted), max_entry=1000)
        assert isinstance(reader, StreamReader)
        assert len(reader.receive([begun])) == 1
        assert len(reader.receive([usage])) == wanted
        reader.receive([b"data: [DONE]\n\n"])
        assert (reader.error is not None) is wanted
    small = CHAT.reader(parse(stream=True), ChatOptions(), max_entry=10)
    small.receive([usage])
    assert small.error is not None


def test_options_are_checked() -> None:
    assert CHAT.options({}) == ChatOptions(stream_usage=True, requires_finish_reason=True)
    assert CHAT.options({"stream_usage": False}) == ChatOptions(stream_usage=False)
    with pytest.raises(msgspec.ValidationError, match="unknown field `stream_usages`"):
        CHAT.options({"stream_usages": False})
    with pytest.raises(msgspec.ValidationError, match=r"Expected `bool`, got `str` - at `\$.stream_usage`"):
        CHAT.options({"stream_usage": "no"})


def test_credentials_are_a_bearer_token() -> None:
    assert CHAT.credentials("sk-1") == [(b"authorization", b"Bearer sk-1")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"req_1", "req_1"),
        (b"x" * 300, "x" * 256),
        (b"caf\xe9", "caf\xe9"),
        (b"a\x1b[2Jb", None),
        (b"", None),
    ],
)
def test_header_is_shown_where_it_is_printable_and_never_more_than_a_line(value: bytes, text: str | None) -> None:
    headers = [(b"date", b"now"), (b"x-request-id", value), (b"x-request-id", b"second")]
    assert header_text(headers, b"x-request-id") == CHAT.request_id(headers) == text


def test_header_that_is_missing_is_none() -> None:
    assert CHAT.request_id([(b"date", b"now")]) is None
    assert header_text([(b"date", b"yesterday")], b"date", limit=6) == "yester"
