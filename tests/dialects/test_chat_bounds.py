"""How much a request of chat completions may take: read from the fields that its API obeys, and from no others."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from holdfast.dialects.ask import Bounds
from holdfast.dialects.chat import CHAT

ABSENT: Any = object()
HELLO = [{"role": "user", "content": "hi"}]
LIMITS = (ABSENT, None, 1, 5, 9, 0, -1, True, "7", 2.5, 9.0, [5], 10**15)
CHOICES = (ABSENT, None, 1, 4, 0, -2, True, "4", 1.5)


def bounds(messages: list[dict[str, Any]] = HELLO, **fields: Any) -> Bounds:
    given = {name: value for name, value in fields.items() if value is not ABSENT}
    return CHAT.parse(json.dumps({"model": "m", "messages": messages, **given})).bounds


def is_given(value: Any) -> bool:
    return value is not ABSENT and value is not None


def is_count(value: Any) -> bool:
    return value in (1, 4, 5, 9) and isinstance(value, int) and not isinstance(value, bool)


def test_larger_of_both_limits_counts_and_what_is_no_count_is_named() -> None:
    for newer, older, n in itertools.product(LIMITS, LIMITS, CHOICES):
        found = bounds(max_completion_tokens=newer, max_tokens=older, n=n)
        counts = [value for value in (newer, older) if is_count(value)]
        assert found.max_output == max(counts, default=None)
        assert found.choices == (n if is_count(n) else 1)
        if counts:
            asked = {"max_completion_tokens": newer, "max_tokens": older}[found.output_field]
            assert asked == found.max_output
        else:
            assert found.output_field == "max_tokens"
        assert found.choices_field == "n"
        given = {"max_completion_tokens": newer, "max_tokens": older, "n": n}
        wrong = [name for name, value in given.items() if is_given(value) and not is_count(value)]
        assert found.unclear == next(iter(wrong), None)


@pytest.mark.parametrize(
    "decoy",
    [
        "max_output_tokens",  # OpenAI's Responses
        "max_tokens_to_sample",  # Anthropic's old completions
        "maxOutputTokens",  # Gemini
        "max_new_tokens",
        "num_predict",  # Ollama's own API
        "n_predict",  # llama.cpp's own API
        "best_of",
        "MAX_TOKENS",
        "max_tokens ",
    ],
)
@pytest.mark.parametrize("value", [1, "x"])
def test_field_that_chat_does_not_obey_bounds_nothing(decoy: str, value: Any) -> None:
    found = bounds(**{decoy: value})
    assert (found.max_output, found.choices, found.unclear) == (None, 1, None)
    assert bounds(**{decoy: value, "max_tokens": 100}).max_output == 100
    nested = bounds(options={decoy: value, "max_tokens": 1}, stream_options={"max_tokens": 1})
    assert nested.max_output is None


def test_name_that_comes_twice_counts_as_the_provider_is_sent_it() -> None:
    raw = b'{"model":"m","messages":[{}],"max_tokens":1,"max_tokens":900}'
    ask = CHAT.parse(raw)
    sent = CHAT.request(ask, "m", CHAT.options({}), path="", stream_id="st_1")
    assert json.loads(sent.body)["max_tokens"] == ask.bounds.max_output == 900


def test_size_is_that_of_the_request() -> None:
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 1000}]})
    assert CHAT.parse(raw).bounds.size == CHAT.parse(raw.encode()).bounds.size == len(raw)
    assert CHAT.parse(raw).bounds.media == 0


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "image", "document"])
def test_media_are_counted_and_their_bytes_are_not(kind: str) -> None:
    part = {"type": kind, "payload": "A" * 100_000}
    text = {"type": "text", "text": "What is this?"}
    found = bounds([{"role": "user", "content": [text, part, part]}, {"role": "user", "content": [part]}])
    assert found.media == 3
    assert 0 < found.size < 1000


def test_long_text_is_no_media_whatever_its_shape() -> None:
    parts = [{"type": "text", "text": "x" * 1000}, {"type": "of_tomorrow", "image_url": "x" * 1000}, "x" * 1000, 7]
    found = bounds([{"role": "user", "content": parts}, {"role": "user"}, {"role": "user", "content": {"a": 1}}])
    assert found.media == 0
    assert found.size > 3000


def test_media_are_as_large_as_they_came() -> None:
    part = b'{"type" : "image", "a":[' + b",".join([b"1e15"] * 100) + b"]}"
    rest = b'{"model":"m","messages":[{"content":[' + b"]}]}"
    found = CHAT.parse(rest[:-4] + part + rest[-4:]).bounds
    assert (found.media, found.size) == (1, len(rest))


@pytest.mark.parametrize(
    "messages",
    [
        [{"content": [{"type": "text", "text": "a,b," * 30_000}, {"type": "image"}]}],
        [{"content": [{"type": "image"}]}, "no message"],
    ],
)
def test_messages_that_cannot_be_looked_into_cheaply_count_in_full(messages: list[Any]) -> None:
    raw = json.dumps({"model": "m", "messages": messages})
    found = CHAT.parse(raw).bounds
    assert (found.media, found.size) == (0, len(raw))


def test_least_text_is_everything_where_there_can_be_no_media() -> None:
    text = json.dumps({"model": "m", "messages": [{"content": [{"type": "text", "text": "an image"}]}]}).encode()
    assert CHAT.least_text(text) == len(text)
    assert CHAT.least_text(text.replace(b'"text"', b'"image_url"')) == 0
