"""What is taken for the answer of a provider of chat completions, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.core.entries import Usage
from holdfast.dialects.chat import CHAT
from holdfast.dialects.chat_answers import CompletionReader, StreamReader
from holdfast.dialects.dialect import AnswerReader
from holdfast.errors import UpstreamError, UpstreamMalformed, UpstreamTruncated

ANSWER = b'data: {"choices": [{"delta": {"content": "Hold"}, "finish_reason": null}]}\n\n'
LAST = b'{"choices":[{"delta":{},"finish_reason":"stop"}]}'
DONE = b"data: [DONE]\n\n"


def stream_reader(**options: Any) -> StreamReader:
    return StreamReader(**{"max_event": 10_000, "hide_usage": False, **options})


def read_whole(body: bytes, *, max_size: int = 10_000) -> tuple[CompletionReader, list[bytes]]:
    reader = CompletionReader(max_size=max_size)
    assert reader.receive([body]) == []
    return reader, reader.end()


def fault(reader: AnswerReader) -> type[UpstreamError | None]:
    return type(reader.error)


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


# -- streamed ------------------------------------------------------------------------------------------


def test_chunks_are_entries_to_the_letter_without_the_white_space_around_them() -> None:
    reader = stream_reader()
    odd = b'{ "choices" : [ ], "of_tomorrow" : 1.50e1, "text" : "\xc3\xa9\\u00e9" }'
    assert reader.receive([event(b" " + odd + b"\t"), event(LAST)]) == [odd, LAST]
    assert (reader.units, reader.finish_reason, reader.is_finished) == (2, "stop", False)
    assert reader.receive([DONE]) == []
    assert reader.is_finished
    assert reader.end() == []
    assert reader.error is None


def test_nothing_is_read_behind_the_terminal_event() -> None:
    reader = stream_reader()
    assert reader.receive([DONE + event(LAST)]) == []
    assert reader.receive([event(LAST)]) == []
    assert (reader.is_finished, reader.units) == (True, 0)


def test_body_that_ends_without_its_terminal_event_is_truncated() -> None:
    reader = stream_reader()
    assert reader.receive([event(LAST)]) == [LAST]
    assert reader.end() == []
    assert type(reader.error) is UpstreamTruncated


def test_answer_without_a_finish_reason_is_truncated() -> None:
    """llama-cpp-python's server ends a running answer so when a new request interrupts it."""
    reader = stream_reader()
    assert len(reader.receive([ANSWER + DONE])) == 1
    assert not reader.is_finished
    assert isinstance(reader.error, UpstreamTruncated)


def test_answer_without_a_finish_reason_is_taken_where_the_provider_never_sends_one() -> None:
    reader = stream_reader(requires_finish_reason=False)
    reader.receive([ANSWER + DONE])
    assert reader.is_finished


def test_empty_answer_needs_no_finish_reason() -> None:
    reader = stream_reader()
    assert reader.receive([DONE]) == []
    assert reader.is_finished


@pytest.mark.parametrize(
    "payload",
    [
        b"Hold",
        b"",
        b"[]",
        b"17",
        b'{"choices":',
        b'{"choices":[]}{',
        b'{"choices":"none"}',
        b'{"choices":[{"finish_reason":7}]}',
        b'{"usage":{"prompt_tokens":"many"}}',
        b'{"text":"\xff"}',
        b'{"text":"\xed\xa0\x80"}',
        b"[" * 100_000,
    ],
)
def test_event_that_is_no_chunk_is_malformed_and_what_came_before_it_is_kept(payload: bytes) -> None:
    reader = stream_reader(max_event=200_000)
    assert reader.receive([event(LAST) + event(payload) + event(LAST)]) == [LAST]
    error = reader.error
    assert type(error) is UpstreamMalformed
    assert "not a chat chunk" in error.message
    assert reader.receive([DONE]) == reader.end() == []
    assert reader.error is error


def test_event_beyond_the_bound_is_malformed_at_once() -> None:
    reader = stream_reader(max_event=100)
    assert reader.receive([event(LAST)]) == [LAST]
    assert reader.receive([b"data: " + b"x" * 101]) == []
    assert type(reader.error) is UpstreamMalformed


def test_event_beyond_the_bound_is_malformed_also_where_the_body_ends_behind_it() -> None:
    reader = stream_reader(max_event=100)
    assert reader.receive([event(LAST) + b"data: " + b"x" * 101]) == [LAST]
    assert fault(reader) is type(None)
    assert reader.end() == []
    assert fault(reader) is UpstreamMalformed


# -- usage ---------------------------------------------------------------------------------------------

USAGE = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}'


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({}, Usage()),
        ({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}, Usage(7, 5, 12)),
        (
            {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 6, "audio_tokens": 1}},
            Usage(7, cached_tokens=6),
        ),
        ({"completion_tokens_details": {"reasoning_tokens": 4}}, Usage(reasoning_tokens=4)),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, Usage()),
        (
            {
                "prompt_tokens_details": {"cached_tokens": None},
                "completion_tokens_details": {"reasoning_tokens": None},
            },
            Usage(),
        ),
        ({"prompt_tokens_details": {}, "completion_tokens_details": {}}, Usage()),
        # What says no more than how the tokens divide must not make an answer malformed at its end.
        ({"prompt_tokens": 7, "prompt_tokens_details": [], "completion_tokens_details": "none"}, Usage(7)),
        (
            {
                "prompt_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": "6"},
                "completion_tokens_details": {"reasoning_tokens": 1.5},
            },
            Usage(7),
        ),
        ({"prompt_tokens_details": {"cached_tokens": True}}, Usage()),
    ],
)
def test_usage_is_read_with_cached_and_reasoning_tokens(said: dict[str, Any], usage: Usage) -> None:
    body = json.dumps({"choices": [], "usage": said}).encode()
    streamed = stream_reader()
    streamed.receive([event(body)])
    whole, entries = read_whole(body)
    assert entries == [body]
    assert streamed.usage == whole.usage == usage


def test_chunk_that_only_says_the_usage_is_hidden_from_who_did_not_ask() -> None:
    shown, hidden = stream_reader(), stream_reader(hide_usage=True)
    assert shown.receive([event(USAGE)]) == [USAGE]
    assert hidden.receive([event(USAGE)]) == []
    assert shown.usage == hidden.usage == Usage(7, 5, 12)
    assert (shown.units, hidden.units) == (1, 0)


def test_chunk_that_says_the_usage_beside_a_choice_is_never_hidden() -> None:
    both = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}'
    reader = stream_reader(hide_usage=True)
    assert reader.receive([event(both)]) == [both]
    assert reader.usage == Usage(1)


# -- errors within an answer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (b'{"message":"Out of tokens.","type":"server_error","code":null}', "Out of tokens."),
        (b'"Out of tokens."', "Out of tokens."),
        (b'"' + b"x" * 2000 + b'"', "x" * 1000),
        (b'{"message":"' + b"x" * 2000 + b'"}', "x" * 1000),
        (b"{}", "the provider reported an error"),
        (b"17", "the provider reported an error"),
    ],
)
def test_error_within_an_answer_is_the_providers_own(error: bytes, message: str) -> None:
    stream = stream_reader()
    assert stream.receive([b'data: {"error":' + error + b"}\n\n"]) == []
    whole = CompletionReader(max_size=10_000)
    whole.receive([b'{"error":' + error + b"}"])
    assert whole.end() == []
    for found in (stream.error, whole.error):
        assert type(found) is UpstreamError
        assert found.message == message


def test_null_in_the_place_of_an_error_is_none() -> None:
    stream = stream_reader()
    assert stream.receive([b'data: {"choices":[],"error":null}\n\n']) == [b'{"choices":[],"error":null}']
    assert stream.error is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"Slow down."}}', "Slow down."),
        (b'{"error":{"message":""}}', "the provider answered with status 429"),
        (b'{"error":null}', "the provider answered with status 429"),
        (b"<html>", "the provider answered with status 429"),
        (b'{"error":"\xff"}', "the provider answered with status 429"),
        (b"", "the provider answered with status 429"),
    ],
)
def test_error_status_keeps_the_message_of_the_provider(body: bytes, message: str) -> None:
    error = CHAT.status_error(429, body, retry_after=3.0)
    assert (error.message, error.status, error.retry_after, error.body) == (message, 429, 3.0, body)


# -- whole ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("body", [b"", b"Hold", b"[]", b'{"choices":', b'{"text":"\xff"}', b"[" * 9000])
def test_body_that_is_no_completion_is_malformed(body: bytes) -> None:
    reader, entries = read_whole(body)
    assert entries == []
    assert type(reader.error) is UpstreamMalformed
    assert not reader.is_finished


def test_completion_beyond_the_bound_is_malformed_before_it_has_ended() -> None:
    reader = CompletionReader(max_size=10)
    reader.receive([b"{" + b" " * 9])
    assert fault(reader) is type(None)
    reader.receive([b"}"])
    assert fault(reader) is UpstreamMalformed
    assert "larger than 10 bytes" in str(reader.error)
    assert reader.end() == []
