"""What is taken for the answer of a provider of chat completions, streamed and whole."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from holdfast.core.entries import MAX_COUNT as MOST
from holdfast.core.entries import Usage
from holdfast.dialects.chat import CHAT
from holdfast.dialects.chat_answers import CompletionReader, StreamReader
from holdfast.dialects.dialect import AnswerReader
from holdfast.errors import ProviderError, UpstreamError, UpstreamMalformed, UpstreamTruncated

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
    assert reader.receive([event(LAST) + DONE + event(ANSWER)]) == [LAST]
    assert reader.receive([event(ANSWER)]) == []
    assert (reader.is_finished, reader.units) == (True, 1)


def test_body_that_ends_without_terminal_event_and_finish_reason_is_truncated() -> None:
    for rest in (b"", event(USAGE), b"data: [DO", b'data: {"choices":[{"finish_reason":"st'):
        reader = stream_reader(hide_usage=True)
        assert len(reader.receive([ANSWER + rest])) == 1
        assert reader.end() == []
        assert fault(reader) is UpstreamTruncated


def test_body_that_ends_behind_the_finish_reason_is_complete() -> None:
    reader = stream_reader()
    assert reader.receive([event(LAST)]) == [LAST]
    assert (reader.is_answered, reader.is_finished) == (True, False)
    assert reader.end() == []
    assert (reader.is_finished, reader.error) == (True, None)


@pytest.mark.parametrize("rest", [b"data: [DONE]", b"data: [DONE]\n", b"data: " + LAST, b"data: " + LAST + b"\r"])
def test_last_event_without_its_blank_line_counts_where_it_is_whole(rest: bytes) -> None:
    reader = stream_reader(requires_finish_reason=False)
    entries = reader.receive([ANSWER + rest]) + reader.end()
    assert len(entries) == 1 + (LAST in rest)
    assert reader.is_finished


def test_last_event_without_its_blank_line_may_be_an_error() -> None:
    reader = stream_reader()
    assert len(reader.receive([ANSWER + b'event: error\ndata: {"message":"boom"}'])) == 1
    assert reader.end() == []
    assert str(reader.error) == "boom"


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


@pytest.mark.parametrize("reason", [b'""', b'"null"', b"null", b"{}", b"9" * 30])
def test_what_stands_for_no_finish_reason_is_none(reason: bytes) -> None:
    reader = stream_reader()
    reader.receive([event(b'{"choices":[{"delta":{"content":"a"},"finish_reason":' + reason + b"}]}")])
    assert (reader.is_answered, reader.finish_reason) == (False, None)
    assert reader.end() == []
    assert fault(reader) is UpstreamTruncated


@pytest.mark.parametrize(
    ("reason", "read"), [(b"7", "7"), (b'"\\ud83d"', "?"), (b'"' + b"x" * 500 + b'"', "x" * 100)]
)
def test_odd_finish_reason_is_one(reason: bytes, read: str) -> None:
    reader = stream_reader()
    reader.receive([event(b'{"choices":[{"finish_reason":' + reason + b"}]}") + DONE])
    assert (reader.finish_reason, reader.is_finished) == (read, True)


def test_every_choice_needs_its_own_finish_reason() -> None:
    two = [b'{"choices":[{"index":%d,"delta":{"content":"a"}}]}' % index for index in range(2)]
    ends = [b'{"choices":[{"index":%d,"finish_reason":"%s"}]}' % end for end in ((0, b"stop"), (1, b"length"))]
    cut = stream_reader(choices=2)
    assert len(cut.receive([event(two[0]) + event(two[1]) + event(ends[0]) + event(two[0])])) == 4
    assert not cut.is_answered
    assert cut.receive([DONE]) == []
    assert fault(cut) is UpstreamTruncated
    whole = stream_reader(choices=2)
    whole.receive([event(two[0]) + event(ends[0])])
    assert not whole.is_answered, "the second choice has yet to begin"
    whole.receive([event(two[1]) + event(ends[1])])
    assert whole.is_answered
    whole.receive([DONE])
    assert (whole.is_finished, whole.finish_reason) == (True, "stop")


def test_number_of_choices_that_are_tracked_is_bounded() -> None:
    reader = stream_reader(max_event=1 << 20, choices=2)
    many = [b'{"index":%d,"delta":{"content":"a"}}' % index for index in range(5000)]
    reader.receive([event(b'{"choices":[' + b",".join(many) + b"]}")])
    assert len(reader._open) == 128
    odd = [b'{"index":%d.0,"finish_reason":"stop"}' % index for index in range(5000)]
    reader.receive([event(b'{"choices":[' + b",".join(odd) + b"]}")])
    assert reader.is_answered
    assert len(reader._done) <= 128


def test_only_the_first_choice_counts_where_one_was_asked_for() -> None:
    reader = stream_reader()
    reader.receive([event(b'{"choices":[{"index":1.0,"finish_reason":"stop"},{"index":2}]}')])
    assert (reader.is_answered, reader.finish_reason) == (True, "stop")


def test_answer_that_is_done_before_it_begins_is_none() -> None:
    for body in (DONE, event(USAGE) + DONE):
        reader = stream_reader()
        assert reader.receive([body]) == []
        assert fault(reader) is UpstreamTruncated
        whole = CompletionReader(max_size=1000)
        assert whole.receive([body]) == whole.end() == []
        assert fault(whole) is UpstreamTruncated
    lenient = stream_reader(requires_finish_reason=False)
    assert lenient.receive([DONE]) == []
    assert lenient.is_finished


def test_body_without_anything_is_truncated_whatever_was_asked_for() -> None:
    for body in (b"", b"\n"):
        whole = CompletionReader(max_size=1000)
        assert whole.receive([body]) + whole.end() == []
        assert fault(whole) is UpstreamTruncated
        assert whole.error is not None
        assert whole.error.retryable


def test_answer_without_any_content_is_not_asked_for_again_at_the_same_endpoint() -> None:
    for body in (b"", b": ping\n\n", event(ROLE)):
        reader = stream_reader()
        assert reader.receive([body or b"\n"]) + reader.end() == []
        assert fault(reader) is UpstreamTruncated
        assert reader.error is not None
        assert not reader.error.same_endpoint_retry
    begun = stream_reader()
    begun.receive([ANSWER])
    begun.end()
    assert begun.error is not None
    assert begun.error.same_endpoint_retry


# -- what is no chunk ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"Hold",
        b"[]",
        b"17",
        b'{"choices":',
        b'{"choices":[]}{',
        b'"}]}, {"x": "',
        b'{"text":NaN,}',
        b"[NaN]",
        b'{"text":"\xff",}',
        b'{"text":NaN,"long":"' + b"x" * 300_000 + b'"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_event_that_is_no_object_is_malformed_and_what_came_before_it_is_kept(payload: bytes) -> None:
    reader = stream_reader(max_event=1 << 20)
    assert len(reader.receive([ANSWER + event(payload) + event(LAST)])) == 1
    error = reader.error
    assert type(error) is UpstreamMalformed
    assert "not a chat chunk" in error.message
    assert not error.same_endpoint_retry
    assert reader.receive([DONE]) == reader.end() == []
    assert reader.error is error


def test_rubbish_behind_a_complete_answer_does_not_make_it_incomplete() -> None:
    for rubbish in (event(b"Hold"), b"data: " + b"x" * 10_001 + b"\n"):
        reader = stream_reader()
        assert reader.receive([event(LAST) + rubbish]) == [LAST]
        assert reader.receive([DONE]) == reader.end() == []
        assert (reader.is_finished, reader.error) == (True, None)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"choices":"none"}',
        b'{"choices":["none",{"index":"x","delta":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"content":"a"},"finish_reason":{}}]}',
        b'{"usage":{"prompt_tokens":"many"}}',
        b'{"usage":{"prompt_tokens":' + b"9" * 4000 + b"}}",
        b'{"usage":1e999}',
        # Where a server cuts a character in two.
        b'{"choices":[{"delta":{"content":"Hold\\ud83d"}}]}',
        b'{"choices":[{"delta":{"content":"\\ude00"}}]}',
        b'{"choices":[{"delta":{"content":"a","tool_calls":[]}}],"error":""}',
        b'{"choices":[],"error":false}',
        b'{"choices":[],"error":null}',
        b'{"choices":[],"error":{"message":"","code":null}}',
        b'{"type":"ping"}',
    ],
)
def test_object_that_can_be_spliced_passes_to_the_letter(payload: bytes) -> None:
    reader = stream_reader()
    assert reader.receive([ANSWER + event(payload)])[1:] == [payload]
    assert reader.error is None
    assert not reader.is_answered


@pytest.mark.parametrize(
    ("payload", "entry"),
    [
        (b'{"text":"\xff"}', '{"text":"\ufffd"}'),
        (b'{"text":"\xed\xa0\x80"}', '{"text":"\ufffd\ufffd\ufffd"}'),
        (b'{"text":"\xf0\x9f"}', '{"text":"\ufffd"}'),
        (b'{"text": "a\x01\tb"}', '{"text":"a\\u0001\\tb"}'),
        (b'{"x":"\xc3\xa9","logprob":NaN,"y":[Infinity,-Infinity]}', '{"x":"é","logprob":null,"y":[null,null]}'),
        (b'{"x":"\\ud83d","logprob":NaN,"y":1.50}', '{"x":"\\ud83d","logprob":null,"y":1.5}'),
        (b'{"x":NaN,"y":1e999,"z":2.0}', '{"x":null,"y":null,"z":2.0}'),
        (
            b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b',"total":7}}',
            '{"usage":{"prompt_tokens":null,"total":7}}',
        ),
    ],
)
def test_object_that_cannot_be_spliced_is_written_anew(payload: bytes, entry: str) -> None:
    reader = stream_reader()
    entries = reader.receive([ANSWER + event(payload) + event(LAST) + DONE])
    assert [entries[1].decode(), entries[2]] == [entry, LAST]
    assert reader.is_finished


@pytest.mark.parametrize(
    "beat",
    [
        b"data:\n\n",
        b"data: \n\n",
        b": ping\n\n",
        b"event: ping\ndata: ping\n\n",
        b"event: ping\n\n",
        b"data: ping\n\n",
        b"data: PING\n\n",
    ],
)
def test_heartbeat_is_ignored_anywhere(beat: bytes) -> None:
    reader = stream_reader()
    assert len(reader.receive([beat + ANSWER + beat + event(LAST) + beat + DONE])) == 2
    assert reader.is_finished


def test_words_before_the_answer_are_ignored_and_shown_where_none_comes() -> None:
    beat = b"data: ping\n\n"
    reader = stream_reader()
    assert len(reader.receive([beat + event(ROLE) + beat + ANSWER + event(LAST) + DONE])) == 3
    assert reader.is_finished
    silent = stream_reader()
    assert silent.receive([b"data: model is loading\n\n" + beat]) == silent.end() == []
    assert fault(silent) is UpstreamTruncated
    assert "'model is loading'" in str(silent.error)


def test_event_beyond_the_bound_is_malformed_at_once() -> None:
    reader = stream_reader(max_event=100)
    assert len(reader.receive([ANSWER])) == 1
    assert reader.receive([b"data: " + b"x" * 101]) == []
    assert type(reader.error) is UpstreamMalformed


def test_event_beyond_the_bound_is_malformed_also_where_the_body_ends_behind_it() -> None:
    reader = stream_reader(max_event=100)
    assert len(reader.receive([ANSWER + b"data: " + b"x" * 101])) == 1
    assert fault(reader) is type(None)
    assert reader.end() == []
    assert fault(reader) is UpstreamMalformed


# -- what is held back ---------------------------------------------------------------------------------

ROLE = b'{"choices":[{"delta":{"role":"assistant","content":"","tool_calls":null,"refusal":[]}}]}'


@pytest.mark.parametrize(
    "shown",
    [
        b'{"choices":[{"delta":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"reasoning_content":"a"}}]}',
        b'{"choices":[{"delta":{"role":"assistant","tool_calls":[{"index":0}]}}]}',
        b'{"choices":[{"delta":"a"}]}',
        b'{"choices":[{"text":"a"}]}',
        b'{"choices":[{"message":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"content":"\\ud83d"}}]}',
        LAST,
    ],
)
def test_chunks_that_show_nothing_wait_for_the_first_that_does(shown: bytes) -> None:
    reader = stream_reader()
    assert reader.receive([event(ROLE), event(USAGE), event(b'{"choices":[{}]}')]) == []
    assert reader.units == 0
    assert reader.receive([event(shown)]) == [ROLE, USAGE, b'{"choices":[{}]}', shown]
    assert reader.receive([event(ROLE)]) == [ROLE]
    assert reader.units == 5


def test_chunks_that_show_nothing_are_the_answer_where_it_is_done() -> None:
    reader = stream_reader(requires_finish_reason=False)
    assert reader.receive([event(ROLE)]) == []
    assert reader.receive([DONE]) == [ROLE]


def test_chunks_that_show_nothing_are_dropped_with_an_error() -> None:
    reader = stream_reader()
    assert reader.receive([event(ROLE)]) == []
    assert reader.receive([event(ROLE) + event(b'{"error":"no"}')]) == []
    assert (str(reader.error), reader.units) == ("no", 0)


def test_what_is_held_back_is_bounded() -> None:
    many = stream_reader()
    assert many.receive([event(ROLE) * 64]) == []
    assert len(many.receive([event(ROLE)])) == 65
    assert len(many.receive([event(ROLE)])) == 1
    large = stream_reader(max_event=1 << 20)
    assert len(large.receive([event(b'{"filter":"' + b"x" * 70_000 + b'"}')])) == 1


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
            Usage(7, cached_tokens=6, reasoning_tokens=1),
        ),
        ({"prompt_tokens_details": {"cached_tokens": True}}, Usage()),
        # Servers write counts as they like, and may lie.
        ({"prompt_tokens": 7.0, "completion_tokens": "5", "total_tokens": " 12.0 "}, Usage(7, 5, 12)),
        ({"prompt_tokens": -7, "completion_tokens": -1e300, "total_tokens": "-inf"}, Usage()),
        ({"prompt_tokens": 10**30, "completion_tokens": 1e300, "total_tokens": "1e999"}, Usage(MOST, MOST, MOST)),
        ({"prompt_tokens": math.nan, "completion_tokens": math.inf, "total_tokens": "nan"}, Usage(0, 0, 0)),
        ({"prompt_tokens": "many", "completion_tokens": [5], "total_tokens": "1" * 31}, Usage()),
    ],
)
def test_usage_is_read_with_cached_and_reasoning_tokens(said: dict[str, Any], usage: Usage) -> None:
    body = json.dumps({"choices": [], "usage": said}).encode()
    streamed = stream_reader()
    streamed.receive([event(body)])
    assert streamed.receive([event(LAST) + DONE])[1:] == [LAST]
    whole, (entry,) = read_whole(body)
    assert json.loads(entry)["choices"] == []
    assert streamed.usage == whole.usage == usage
    assert min(usage.billed, MOST - usage.billed) >= 0
    assert streamed.is_finished


@pytest.mark.parametrize("said", [b"[]", b"7", b'"many"', b"false"])
def test_usage_that_cannot_be_read_is_none(said: bytes) -> None:
    reader = stream_reader(hide_usage=True)
    body = b'{"choices":[],"usage":' + said + b"}"
    assert reader.receive([event(LAST) + event(USAGE) + event(body) + DONE]) == [LAST, body]
    assert reader.usage == Usage(7, 5, 12)


def test_chunk_that_only_says_the_usage_is_hidden_from_who_did_not_ask() -> None:
    shown, hidden = stream_reader(), stream_reader(hide_usage=True)
    assert shown.receive([event(LAST) + event(USAGE)]) == [LAST, USAGE]
    assert hidden.receive([event(LAST) + event(USAGE)]) == [LAST]
    assert shown.usage == hidden.usage == Usage(7, 5, 12)
    assert (shown.units, hidden.units) == (2, 1)


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


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b'event: error\ndata: {"message":"boom","code":500}\n\n', ProviderError("boom", "500", status=500)),
        (b"event: error\ndata: boom\n\n", ProviderError("boom")),
        (b"event: error\ndata:\n\n", None),
        (b'event: error\ndata: {"choices":[{"delta":{"content":"a"}}]}\n\n', None),
        (
            b'data: {"object":"error","message":"too long","code":400}\n\n',
            ProviderError("too long", "400", status=400),
        ),
        (
            b'data: {"choices":[],"error":{"code":429,"message":"slow"}}\n\n',
            ProviderError("slow", "429", status=429),
        ),
        (b'data: {"choices":[{"delta":{"content":""}}],"error":{}}\n\n', ProviderError()),
    ],
)
def test_error_event_is_an_error_with_the_providers_words(said: bytes, expected: ProviderError | None) -> None:
    for before in (b"", ANSWER, event(LAST)):
        reader = stream_reader()
        assert len(reader.receive([before + said])) == bool(before)
        assert type(reader.error) is UpstreamError
        assert reader.error.told == expected
        assert reader.error.message == ((expected and expected.message) or "the provider reported an error")


@pytest.mark.parametrize("name", [b"message", b"completion.chunk", b""])
def test_other_names_of_events_mean_nothing(name: bytes) -> None:
    reader = stream_reader()
    assert len(reader.receive([b"event: " + name + b"\n" + ANSWER])) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"Slow down."}}', "Slow down."),
        (b'{"error":{"message":""}}', "the provider answered with status 429"),
        (b'{"error":null}', "the provider answered with status 429"),
        (b"<html>", "the provider answered with status 429"),
        (b'{"detail":"not here"}', "not here"),
        (b'{"error":"\xff"}', "\ufffd"),
        (b"", "the provider answered with status 429"),
    ],
)
def test_error_status_keeps_the_message_of_the_provider(body: bytes, message: str) -> None:
    error = CHAT.status_error(429, body, retry_after=3.0)
    assert (error.message, error.status, error.retry_after, error.body) == (message, 429, 3.0, body)
