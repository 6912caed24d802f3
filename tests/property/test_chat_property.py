"""The readers of chat completions: any pieces of the same bytes give the same, and rubbish an error or entries."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.core.json_object import members
from holdfast.dialects.chat import CHAT
from holdfast.dialects.chat_answers import CompletionReader, StreamReader
from holdfast.dialects.dialect import AnswerReader
from holdfast.errors import InvalidRequest, UpstreamError

MAX_ENTRY = 120

# Mostly what answers are made of, so that chunks, errors, usage and the end meet in every order.
chunks = [
    b'{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}',
    b'{"choices":[{"delta":{},"finish_reason":"stop"}]}',
    b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}',
    b'{"choices":[],"usage":{"prompt_tokens_details":{"cached_tokens":1}}}',
    '{"text":"é\\u2028"}'.encode(),
    b"{}",
    b'{"choices":[{"index":1,"finish_reason":"stop"}]}',
    b'{"choices":[{"delta":{"role":"assistant"}}],"usage":{"prompt_tokens":"1.0"}}',
    b'{"text":"\\ud83d","logprob":NaN}',
    b'{"choices":[{"finish_reason":7}],"text":"\xff\x01"}',
    b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}',
]
wrong = [
    b'{"error":{"message":"no"}}',
    b'{"error":"no"}',
    b"[]",
    b"{",
    b'"\xff"',
    b"x" * (MAX_ENTRY + 1),
    b"null",
    b"ping",
    b"",
]
lines = [b"data: " + payload + b"\n\n" for payload in [*chunks, *wrong, b"[DONE]"]]
fragments = st.sampled_from(
    [*lines, *lines[:5], b": ping\n\n", b"data:", b"\r", b"\n", b"event: x\n", b"event: error\n", b"\xef\xbb\xbf"]
)
streams = st.one_of(
    st.lists(fragments, max_size=8).map(b"".join), st.binary(max_size=60), st.sampled_from([*chunks, *wrong])
)
bodies = st.one_of(
    st.sampled_from([*chunks, *wrong]),
    streams,
    st.tuples(st.sampled_from([b"", b" ", b"\n"]), st.sampled_from(chunks), st.binary(max_size=3)).map(b"".join),
    st.binary(max_size=60),
)
cuts = st.lists(st.integers(0, 400), max_size=12)
options = st.fixed_dictionaries(
    {"hide_usage": st.booleans(), "requires_finish_reason": st.booleans(), "choices": st.integers(1, 2)}
)
content_types = st.sampled_from([b"text/event-stream", b"application/json", b""])


def read(reader: AnswerReader, body: bytes, cuts: list[int], content_type: bytes) -> tuple[Any, ...]:
    """Feed the body in pieces as the network might, up to an error or the end; return all that the reader says."""
    offsets = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    entries: list[bytes] = []
    reader.begin(content_type)
    for index, (start, stop) in enumerate(pairwise(offsets)):
        piece = body[start:stop]
        # One read may bring several pieces; none of them is empty.
        pieces = [piece[:1], piece[1:]] if index % 2 and len(piece) > 1 else [piece] * bool(piece)
        if pieces:
            entries += reader.receive(pieces)
    entries += reader.end()
    error = reader.error
    assert error is None or isinstance(error, UpstreamError)
    assert reader.is_finished is (error is None)
    for entry in entries:
        assert isinstance(json.loads(entry.decode()), dict)
        assert entry == entry.strip()
    assert isinstance(reader, CompletionReader) or reader.units == len(entries)
    return entries, type(error), str(error), reader.finish_reason, reader.usage


@given(streams, cuts, options, content_types)
@example(lines[0] + b"data: " + b"x" * (MAX_ENTRY + 1), [len(lines[0])], {"hide_usage": False}, b"")
@example(lines[1] + b"data: [DONE]\n\n" + b"x" * (MAX_ENTRY + 1), [3], {"hide_usage": True}, b"")
def test_any_pieces_of_a_streamed_answer_give_the_same(
    body: bytes, cuts: list[int], options: dict[str, Any], content_type: bytes
) -> None:
    whole = read(StreamReader(max_event=MAX_ENTRY, **options), body, [], content_type)
    assert read(StreamReader(max_event=MAX_ENTRY, **options), body, cuts, content_type) == whole
    assert read(StreamReader(max_event=MAX_ENTRY, **options), body, list(range(len(body))), content_type) == whole


@given(bodies, cuts, st.integers(1, 2), content_types)
def test_any_pieces_of_a_whole_answer_give_the_same(
    body: bytes, cuts: list[int], choices: int, content_type: bytes
) -> None:
    def reader() -> CompletionReader:
        return CompletionReader(max_size=MAX_ENTRY, choices=choices)

    whole = read(reader(), body, [], content_type)
    assert len(whole[0]) == (whole[1] is type(None))
    assert read(reader(), body, cuts, content_type) == whole
    assert read(reader(), body, list(range(len(body))), content_type) == whole


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(st.fixed_dictionaries({"content": values | st.lists(values, max_size=3)}), max_size=3)
requests = st.fixed_dictionaries(
    {},
    optional={
        "model": values | st.just("m"),
        "messages": values | messages,
        "stream": values,
        "stream_options": values,
        "max_tokens": values,
        "max_completion_tokens": values,
        "n": values,
    },
)


@given(requests.map(json.dumps) | st.text(max_size=20) | st.binary(max_size=20))
def test_request_is_taken_or_refused_as_invalid_and_its_bounds_are_counts(raw: str | bytes) -> None:
    try:
        ask = CHAT.parse(raw)
    except InvalidRequest:
        return
    bounds = ask.bounds
    assert bounds.max_output is None or (type(bounds.max_output) is int and bounds.max_output > 0)
    assert type(bounds.choices) is int
    assert bounds.choices > 0
    assert min(bounds.size, bounds.media) >= 0
    sent = members(CHAT.request(ask, "m", CHAT.options({}), path="", stream_id="st_1").body)
    for field in (bounds.output_field, bounds.choices_field, "max_tokens", "max_completion_tokens", "messages"):
        assert sent.get(field) == members(ask.body).get(field)
