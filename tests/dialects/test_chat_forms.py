"""An answer in JSON, and what is made of one that has the other form than was asked for."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from holdfast.core.entries import Usage
from holdfast.dialects.beginning import Beginning
from holdfast.dialects.chat import CHAT, ChatOptions
from holdfast.dialects.chat_answers import CompletionReader, StreamReader
from holdfast.dialects.dialect import AnswerReader
from holdfast.errors import UpstreamError, UpstreamMalformed, UpstreamTruncated

EVENTS = b"text/event-stream; charset=utf-8"
JSON = b"application/json"
DONE = b"data: [DONE]\n\n"
COMPLETION: dict[str, Any] = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hold fast"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}


def fed(reader: AnswerReader, body: bytes, content_type: bytes = b"") -> list[bytes]:
    reader.begin(content_type)
    entries = reader.receive([body]) if body else []
    return entries + reader.end()


def stream_reader(*, hide_usage: bool = False, choices: int = 1) -> StreamReader:
    return StreamReader(max_event=10_000, hide_usage=hide_usage, choices=choices)


def events(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def fault(reader: AnswerReader) -> type[UpstreamError | None]:
    return type(reader.error)


# -- what it is, by its first bytes --------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [b"", EVENTS, JSON, b"text/plain", b"text/html"])
@pytest.mark.parametrize(
    ("body", "is_events"),
    [
        (b"data: x\n", True),
        (b"data:x", True),
        (b": ping\n", True),
        (b"event: error\n", True),
        (b"id: 1\n", True),
        (b"retry: 1\n", True),
        (b"\r\n\n \tdata: x\n", True),
        (b"\xef\xbb\xbfdata: x\n", True),
        (b'{"a":1}', False),
        (b'\n\n \xef\xbb\xbf{"a":1}', False),
        (b'\xef\xbb\xbf\n{"a":1}', False),
        (b"[{}]", False),
    ],
)
def test_events_and_json_are_known_by_their_first_bytes_whatever_the_content_type(
    content_type: bytes, body: bytes, is_events: bool
) -> None:
    whole, dripped = Beginning(), Beginning()
    for beginning in (whole, dripped):
        beginning.begin(content_type)
    taken = whole.receive(body)
    assert body.endswith(taken)
    index, first = 0, b""
    while dripped.is_events is None:
        first, index = dripped.receive(body[index : index + 1]), index + 1
    assert first + body[index:] == taken
    assert (whole.is_events, dripped.is_events) == (is_events, is_events)


@pytest.mark.parametrize("body", [b"<html>", b"Hold fast", b"dat4", b"\x1f\x8b\x08", b"\xef\xbb\xbf<", b"datum:"])
def test_body_that_is_neither_is_refused_with_its_content_type(body: bytes) -> None:
    for reader in (stream_reader(), CompletionReader(max_size=10_000)):
        reader.begin(b"text/html" * 100)
        for index in range(len(body)):
            assert reader.receive([body[index : index + 1]]) == []
        assert reader.end() == []
        assert type(reader.error) is UpstreamMalformed
        assert reader.error.message.startswith("the provider answered with content type 'text/html")
        assert len(reader.error.message) < 250
        assert not reader.error.same_endpoint_retry


def test_lines_without_a_field_may_begin_what_is_said_to_be_an_event_stream() -> None:
    reader = stream_reader()
    assert fed(reader, b"rubbish\n\n" + events(*[{"choices": [{"finish_reason": "stop"}]}]), EVENTS) != []
    assert reader.is_finished


# -- whole, as asked -----------------------------------------------------------------------------------


def read_whole(body: bytes, *, max_size: int = 10_000) -> tuple[CompletionReader, list[bytes]]:
    reader = CompletionReader(max_size=max_size)
    return reader, fed(reader, body, JSON)


def test_completion_is_one_entry_to_the_letter() -> None:
    body = b'{ "choices": [ {"finish_reason": "length"} ], "usage": {"prompt_tokens": 1} }'
    reader, entries = read_whole(b"\n" + body + b"\n")
    assert entries == [body]
    assert (reader.is_finished, reader.units, reader.finish_reason) == (True, 1, "length")
    assert reader.usage == Usage(1)
    assert reader.error is None


def test_completion_without_choices_and_usage_is_one() -> None:
    reader, entries = read_whole(b"{}")
    assert entries == [b"{}"]
    assert (reader.finish_reason, reader.usage) == (None, None)


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"finish_reason":7,"message":"\\ud83d"}],"usage":{"prompt_tokens":1.0}}',
        b'{"choices":[],"error":""}',
    ],
)
def test_odd_completion_passes_to_the_letter(body: bytes) -> None:
    reader, entries = read_whole(body)
    assert entries == [body]
    assert reader.error is None


def test_completion_that_cannot_be_spliced_is_written_anew() -> None:
    reader, entries = read_whole(b'{"choices":[{"finish_reason":"stop","logprobs":NaN,"message":"\xff"}]}')
    assert entries == ['{"choices":[{"finish_reason":"stop","logprobs":null,"message":"\ufffd"}]}'.encode()]
    assert reader.finish_reason == "stop"


@pytest.mark.parametrize("body", [b"Hold", b"[]", b'{"choices":', b'{"choices":[]}}', b"[" * 9000])
def test_body_that_is_no_completion_is_malformed(body: bytes) -> None:
    reader, entries = read_whole(body)
    assert entries == []
    assert type(reader.error) is UpstreamMalformed
    assert not reader.is_finished
    assert reader.receive([b"{}"]) == reader.end() == []


def test_completion_beyond_the_bound_is_malformed_before_it_has_ended() -> None:
    reader = CompletionReader(max_size=10)
    reader.receive([b"{" + b" " * 9])
    assert fault(reader) is type(None)
    reader.receive([b"}"])
    assert fault(reader) is UpstreamMalformed
    assert "larger than 10 bytes" in str(reader.error)
    assert reader.end() == []


# -- an error with a good status -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"quota","code":"insufficient_quota"}}', "quota"),
        (b'{"error":"quota"}', "quota"),
        (b'{"object":"error","message":"quota","code":400}', "quota"),
        (b'[{"error":{"message":"quota"}}]', "quota"),
        (b'{"error":{}}', "the provider reported an error"),
    ],
)
def test_error_in_json_is_an_error_whatever_was_asked_for(body: bytes, message: str) -> None:
    for reader in (stream_reader(), CompletionReader(max_size=10_000)):
        assert fed(reader, body, JSON) == []
        assert type(reader.error) is UpstreamError
        assert reader.error.message == message
        assert reader.error.told is not None


def test_other_json_to_a_streamed_request_is_no_answer() -> None:
    told, silent = stream_reader(), stream_reader()
    assert fed(told, b'{"detail":"not here"}') == fed(silent, b'{"id":"c-1"}') == []
    assert (fault(told), str(told.error)) == (UpstreamError, "not here")
    assert (fault(silent), "not a chat completion" in str(silent.error)) == (UpstreamMalformed, True)
    cut = stream_reader()
    assert fed(cut, b'{"choices":[') == []
    assert fault(cut) is UpstreamMalformed


def test_json_to_a_streamed_request_is_bounded() -> None:
    reader = stream_reader()
    assert reader.receive([b"{"]) == reader.receive([b" " * 10_000]) == []
    assert fault(reader) is UpstreamMalformed
    assert reader.receive([b"}"]) == reader.end() == []


# -- the other form ------------------------------------------------------------------------------------


def test_completion_to_a_streamed_request_is_one_chunk() -> None:
    reader = stream_reader()
    (entry,) = fed(reader, json.dumps(COMPLETION).encode(), JSON)
    chunk = json.loads(entry)
    choice = COMPLETION["choices"][0]
    assert chunk == {
        **COMPLETION,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": choice["message"], "logprobs": None, "finish_reason": "stop"}],
    }
    assert (reader.is_finished, reader.finish_reason, reader.units) == (True, "stop", 1)
    assert reader.usage == Usage(7, 2, 9)


def test_tool_calls_of_a_completion_are_numbered_in_a_chunk() -> None:
    calls = [{"id": "a", "function": {"name": "f", "arguments": "{}"}}, "odd", {"index": 7, "id": "b"}]
    body = {"choices": [{"message": {"tool_calls": calls}}, "odd", {"message": "odd"}]}
    reader = stream_reader(hide_usage=True)
    (entry,) = fed(reader, json.dumps({**body, "usage": {"prompt_tokens": 1}}).encode())
    chunk = json.loads(entry)
    assert chunk["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **calls[0]}, calls[2]]  # type: ignore[dict-item]
    assert chunk["choices"][1:] == [{"delta": {}}]
    assert "usage" not in chunk
    assert reader.usage == Usage(1)


def test_event_stream_to_a_request_for_a_completion_is_put_together() -> None:
    head = {"id": "c-1", "object": "chat.completion.chunk", "model": "m"}
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": ""}}
    body = events(
        {**head, "choices": [{"index": 1, "delta": {"role": "assistant", "content": ""}}]},
        {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hold"}, "logprobs": None}]},
        {**head, "choices": [{"index": 0, "delta": {"content": " fast"}, "logprobs": {"content": [1]}}]},
        {**head, "choices": [{"index": 0, "delta": {}, "logprobs": {"content": [2]}}]},
        {**head, "choices": [{"index": 1, "delta": {"reasoning_content": "hm", "tool_calls": [call]}}]},
        {"choices": [{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]},
        {"choices": [{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
    )
    reader = CompletionReader(max_size=10_000, choices=2)
    reader.begin(EVENTS)
    assert reader.receive([body]) == []
    assert (reader.is_answered, reader.is_finished) == (True, False)
    (entry,) = reader.receive([DONE])
    function = {"name": "f", "arguments": "{}"}
    assert json.loads(entry) == {
        "id": "c-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hold fast"},
                "logprobs": {"content": [1, 2]},
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {
                    "role": "assistant",
                    "content": "",
                    "reasoning_content": "hm",
                    "tool_calls": [{"id": "call-1", "type": "function", "function": function}],
                },
                "finish_reason": "tool_calls",
            },
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
    assert (reader.is_finished, reader.finish_reason, reader.usage) == (True, "stop", Usage(7, 2))
    assert reader.receive([DONE]) == reader.end() == []


def test_provider_that_sends_no_finish_reason_is_put_together_where_its_options_say_so() -> None:
    ask = CHAT.parse(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}')
    for is_strict in (True, False):
        reader = CHAT.reader(ask, ChatOptions(requires_finish_reason=is_strict), max_entry=1000)
        entries = fed(reader, events({"choices": [{"delta": {"content": "Hold"}}]}) + DONE)
        assert bool(entries) != is_strict
        assert reader.is_finished != is_strict


def test_odd_chunks_are_put_together_as_far_as_they_can_be() -> None:
    body = (
        b'data: {"choices":[{"delta":{"content":"a\\ud83d"}},"odd"]}\n\n'
        b'data: {"choices":[{"delta":"odd","finish_reason":null}]}\n\n'
        b'data: {"choices":[{"delta":{"content":7,"tool_calls":["odd",{"id":"x"},{"function":"odd"}]}}]}\n\n'
        b'data: {"choices":"odd"}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    )
    reader = CompletionReader(max_size=10_000)
    (entry,) = fed(reader, body)
    choice = json.loads(entry)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [{}, {}]


def test_event_stream_that_is_put_together_is_bounded() -> None:
    reader = CompletionReader(max_size=1000)
    chunk = events({"choices": [{"delta": {"content": "x" * 400}}]})
    reader.receive([chunk * 2])
    assert fault(reader) is type(None)
    assert reader.receive([chunk]) == []
    assert (fault(reader), "larger than 1000" in str(reader.error)) == (UpstreamMalformed, True)


MANY = b"[" + b"[]," * 400_000 + b"[]]"
HIDDEN = b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}],"x":' + MANY + b"}"


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("as_events", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{}],"usage":' + MANY + b"}",
        b'{"choices":[{}],"usage":{"prompt_tokens":' + MANY + b"}}",
        b'{"choices":[],"error":' + MANY + b"}",
        b'{"choices":[],"error":{"message":' + MANY + b"}}",
        b'{"choices":{},"x":' + MANY + b"}",
        HIDDEN,
        MANY,
    ],
    ids=["usage", "count", "error", "message", "choices", "hidden", "bare"],
)
def test_no_object_is_made_of_each_part_of_an_answer(body: bytes, *, as_events: bool, is_streamed: bool) -> None:
    """That would hold everybody up for a second, and take fifty times the memory of the answer."""
    size = 2 * len(body)
    reader = StreamReader(max_event=size, hide_usage=True) if is_streamed else CompletionReader(max_size=size)
    raw = b"data: " + body + b"\n\ndata: [DONE]\n\n" if as_events else body
    tracemalloc.start()
    try:
        entries = fed(reader, raw)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * len(body)
    assert bool(entries) != (reader.error is not None)
    if body is HIDDEN and as_events == is_streamed:
        assert entries == [body]  # it passes to the letter


def test_number_of_choices_calls_and_fields_that_are_put_together_is_bounded() -> None:
    calls = [{"index": index, "id": "x"} for index in range(300)]
    choices = [{"index": index, "delta": {"tool_calls": calls}} for index in range(100)]
    more = [{"index": index + 100, "delta": {}} for index in range(100)]
    fields = {f"f{index}": index for index in range(300)}
    reader = CompletionReader(max_size=10_000_000)
    body = events({"choices": choices, **fields}, {"choices": more}, {"choices": []})
    reader.receive([body])
    completion = json.loads(reader._collector.completion())
    assert len(completion["choices"]) == len(completion["choices"][0]["message"]["tool_calls"]) == 128
    assert len(completion) < 135


@pytest.mark.parametrize("form", ["chunk", "completion"])
def test_answer_that_is_too_deep_to_be_written_in_the_other_form_is_malformed(form: str) -> None:
    """A little more can be decoded than encoded again; how deep that is depends on the stack."""
    for depth in range(800, 1100):
        deep = b"[" * depth + b"]" * depth
        reader: AnswerReader
        if form == "chunk":
            reader = stream_reader()
            entries = fed(reader, b'{"choices":[{"message":{"x":' + deep + b"}}]}")
        else:
            reader = CompletionReader(max_size=10_000)
            said = b'{"choices":[{"delta":{"x":' + deep + b'},"finish_reason":"stop"}]}'
            entries = fed(reader, b"data: " + said + b"\n\n")
        if not entries:
            assert fault(reader) is UpstreamMalformed
            assert "cannot be written" in str(reader.error)
            return
    raise AssertionError("every depth was written")


def test_event_stream_that_is_cut_or_an_error_is_no_completion() -> None:
    begun = events({"choices": [{"delta": {"content": "a"}}]})
    cut, wrong = CompletionReader(max_size=10_000), CompletionReader(max_size=10_000)
    assert fed(cut, begun) == fed(wrong, begun + b'event: error\ndata: {"message":"boom"}\n\n') == []
    assert fault(cut) is UpstreamTruncated
    assert (fault(wrong), str(wrong.error)) == (UpstreamError, "boom")
