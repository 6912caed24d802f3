"""What is taken for a request of chat completions, and what a provider is sent for it."""

from __future__ import annotations

import contextlib
import json
import re
import tracemalloc
import uuid
from typing import Any

import msgspec
import pytest

from holdfast.core.json_object import members
from holdfast.dialects import chat_requests
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
    assert ask.body == raw == CHAT.parse(raw.decode()).body
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


@pytest.mark.parametrize("raw", [b"", b"{", b'{"model":"\xff"}', b'{"a":' + b"[" * 100_000, '{"model":"\ud800"}'])
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
        ({"model": ""}, "model", "`model` must name a model, in at most 256 characters"),
        ({"model": "m" * 257}, "model", "`model` must name a model, in at most 256 characters"),
        ({"messages": "hi"}, "messages", "`messages`: expected `array`, got `str`"),
        ({"messages": []}, "messages", "`messages`: expected `array` of at least length 1, got 0"),
        ({"messages": ["hi"]}, "messages[0]", "`messages[0]`: expected `object`, got `str`"),
        ({"stream": "yes"}, "stream", "`stream`: expected `bool | null`, got `str`"),
        (
            {"stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "`stream_options.include_usage`: expected `bool | null`, got `int`",
        ),
        ({"stream_options": []}, "stream_options", "`stream_options`: expected `object | null`, got `array`"),
    ],
)
def test_field_of_the_wrong_type_is_named(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.message == message
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
    assert json.loads(ask.body) == {**BODY, "seed": 7, "stream": True, "stream_options": {"of_tomorrow": 1}}


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


# -- to the letter, and cheaply ------------------------------------------------------------------------


def test_provider_gets_what_the_gateway_does_not_read_to_the_letter() -> None:
    """Numbers of any length, escapes, white space and names that come twice inside are the provider's matter."""
    values = {
        b"messages": b'[ {"content" :"\\u00e9\\/", "content":"\xc3\xa9"},\n null , 1e400 ]',
        b"seed": b"123456789012345678901234567890.10",
        b"of_tomorrow": b'{"model" : "theirs","a":1,"a":2 }',
    }
    raw = b'\t{"model":"m",' + b" ,".join(b'"%b" : %b' % item for item in values.items()) + b"\n}\r"
    sent = CHAT.request(CHAT.parse(raw), "their-m", ChatOptions(), path="", stream_id="st_1").body
    for name, value in values.items():
        assert b'"%b":%b' % (name, value) in sent
    assert sent.startswith(b'{"model":"their-m",')
    assert sent.endswith(b',"stream":false}')


@pytest.mark.parametrize("name", [b"model", b"m\\u006fdel"])
def test_provider_cannot_read_another_model_than_the_one_that_was_judged(name: bytes) -> None:
    raw = b'{"model":"a","messages":[{}],"stream":false,"%b":"b","stream":true,"messages":[{"n":1}]}' % name
    ask = CHAT.parse(raw)
    assert (ask.model, ask.stream) == ("b", True)
    sent = CHAT.request(ask, "their-b", ChatOptions(stream_usage=False), path="", stream_id="st_1").body
    assert sent == b'{"model":"their-b","messages":[{"n":1}],"stream":true}'


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("MODEL", "model"),
        ("Stream", "stream"),
        ("\u017ftream", "stream"),
        ("Max_Tokens", "max_tokens"),
        ("N", "n"),
    ],
)
def test_field_that_a_provider_may_take_for_another_is_refused(name: str, spelled: str) -> None:
    """Parsers that do not look at case are common, Go's among them; the last field counts for them."""
    with pytest.raises(InvalidRequest, match=f"must be spelled `{spelled}`") as caught:
        request(parse(**{name: "x"}))
    assert caught.value.param == name
    assert request(parse(Metadata={"MODEL": 1}))[0]["Metadata"] == {"MODEL": 1}


def test_request_with_more_fields_than_any_api_has_is_refused() -> None:
    ask = parse(**{f"field_{number}": 1 for number in range(257)})
    with pytest.raises(InvalidRequest, match="more than 256 fields"):
        request(ask)
    assert CHAT.prompt_of(ask) == BODY["messages"]  # it is logged before it is refused
    with pytest.raises(InvalidRequest, match="more than 256 fields"):
        parse(**{f"field_{number}": 1 for number in range(10_000)})


def test_prompt_is_that_of_the_caller_and_the_beginning_of_a_large_one() -> None:
    assert CHAT.prompt_of(CHAT.parse(b'{"model":"m","messages":[{"a":1e2}]}')) == [{"a": 100.0}]
    assert CHAT.prompt_of(CHAT.parse(b'{"model":"m","messages":[{"a":1e400}]}')) == '[{"a":1e400}]'
    text = "\u00e9" * 40_000
    prompt = CHAT.prompt_of(CHAT.parse(json.dumps({"model": "m", "messages": [{"a": text}]}, ensure_ascii=False)))
    assert isinstance(prompt, str)
    assert prompt == '[{"a": "' + text[: len(prompt) - 8]
    assert 60_000 < len(prompt.encode()) <= 64 * 1024


HOSTILE = {
    "messages": b'"messages":[%b]' % b",".join([b"{}"] * 1_000_000),
    "fields": b'"messages":[{}],%b' % b",".join(b'"%d":1' % number for number in range(300_000)),
    "options": b'"messages":[{}],"stream_options":{%b}' % b",".join(b'"%d":1' % n for n in range(300_000)),
    "media": b'"messages":[{"content":[{"type":"image"},%b]}]' % b",".join([b"{}"] * 1_000_000),
    "digits": b'"messages":[{}],"max_tokens":' + b"1" * 3_000_000,
    "nested": b'"messages":[{}],"tools":[%b]' % b",".join([b'{"a":[]}'] * 300_000),
    "emoji": b'"messages":[{"content":"%b"}]' % ("\N{GRINNING FACE}" * 750_000).encode(),
    "model": b'"messages":[{}],"model":"%b"' % (b"m" * 3_000_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_large_request_takes_no_more_memory_than_its_copy_whatever_is_in_it(kind: str) -> None:
    """Also with many values, which decoded would take a hundred times their size, and a second for 16 MiB."""
    raw = b'{"model":"m",' + HOSTILE[kind] + b"}"
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidRequest):
            ask = CHAT.parse(raw)
            assert tracemalloc.get_traced_memory()[1] < 500_000
            CHAT.request(ask, "m", ChatOptions(), path="", stream_id="st_1")
        assert tracemalloc.get_traced_memory()[1] < 1.6 * len(raw)  # the encoder grows by halves
    finally:
        tracemalloc.stop()


# -- large ones --


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (b"[{}]", ""),
        (b"[ \n {}, 1]", ""),
        (b"[]", "expected `array` of at least length 1, got 0"),
        (b"[[{}]]", "`messages[0]`: expected `object`, got `array`"),
        (b'["x"]', "`messages[0]`: expected `object`, got `str`"),
        (b"[null]", "`messages[0]`: expected `object`, got `null`"),
        (b"[true]", "`messages[0]`: expected `object`, got `bool`"),
        (b"[-1]", "`messages[0]`: expected `object`, got `int`"),
        (b"{}", "`messages`: expected `array`, got `object`"),
        (b"null", "`messages`: expected `array`, got `null`"),
        (None, "`messages` is missing"),
    ],
)
@pytest.mark.parametrize("size", [0, 100_000])
def test_large_request_is_judged_as_a_small_one(messages: bytes | None, fault: str, size: int) -> None:
    of_messages = b"" if messages is None else b'"messages":%b,' % messages
    raw = b'{"model":"m",%b"n":2,"x":"%b"}' % (of_messages, b"x" * size)
    if fault:
        with pytest.raises(InvalidRequest, match=re.escape(fault)):
            CHAT.parse(raw)
        return
    ask = CHAT.parse(raw)
    assert (ask.model, ask.bounds.choices, ask.body) == ("m", 2, raw)
    assert (ask.members is not None) is (size > 0)
    assert CHAT.prompt_of(ask) == json.loads(messages or b"")
    sent = json.loads(CHAT.request(ask, "their", ChatOptions(), path="", stream_id="st_1").body)
    assert sent == {**json.loads(raw), "model": "their", "stream": False}
    assert CHAT.parse(raw, found=members(raw)).bounds == ask.bounds


def test_large_request_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an attempt nor the log look through what was split when it came."""
    raw = b'{"model":"m","messages":[%b{}]}' % (b"{}," * 50_000)
    found = members(raw)
    monkeypatch.setattr(chat_requests, "members", None)
    ask = CHAT.parse(raw, found=found)
    for _ in range(2):
        sent = CHAT.request(ask, "their", ChatOptions(), path="", stream_id="st_1").body
        assert sent == b'{"model":"their","messages":%b,"stream":false}' % bytes(found["messages"])
