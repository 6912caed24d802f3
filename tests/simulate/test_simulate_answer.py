from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_tools.simulate.answer import Answer, error_event, malformed_event
from holdfast_tools.simulate.faults import ErrorEvent, Malformed
from holdfast_tools.simulate.prose import prose
from holdfast_tools.simulate.request import ChatRequest, Message, Simulation, StreamOptions
from holdfast_tools.simulate.text import text


def answer_of(
    sim: Simulation | None = None,
    *,
    model: str = "m",
    prompt: str = "hi",
    usage: bool = False,
    limit: int | None = None,
) -> Answer:
    request = ChatRequest(
        model,
        [Message("user", prompt)],
        stream_options=StreamOptions(include_usage=usage),
        max_tokens=limit,
        sim=sim,
    )
    return Answer(request, answer_id="id", created=1)


def events(data: bytes) -> list[Any]:
    assert data.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in data[:-2].split(b"\n\n")]


def content(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


@given(st.lists(st.integers(0, 40), max_size=10), st.integers(0, 1000), st.booleans(), st.sampled_from([0, 123]))
def test_any_cutting_into_ranges_gives_the_same_events(
    cuts: list[int], seed: int, usage: bool, sent_ns: int
) -> None:
    answer = answer_of(Simulation(tokens=40, seed=seed), usage=usage)
    edges = [0, *sorted(cuts), 40]
    pieces = [answer.content(start, stop, sent_ns) for start, stop in itertools.pairwise(edges)]
    joined = b"".join(pieces)
    assert joined == answer.content(0, 40, sent_ns)
    chunks = events(joined)
    assert len(chunks) == 40
    assert content(chunks) == text(seed, 40)
    assert {chunk.get("sim_sent_ns", 0) for chunk in chunks} == {sent_ns}
    assert all(("usage" in chunk) == usage for chunk in chunks)


@given(st.text(), st.text())
def test_any_model_and_prompt_give_valid_json(model: str, prompt: str) -> None:
    model = model.encode("utf-8", "replace").decode()
    prompt = prompt.encode("utf-8", "replace").decode()
    answer = answer_of(model=model, prompt=prompt, usage=True)
    tokens = prose(prompt)
    chunks = events(answer.opening()) + events(answer.content(0, answer.tokens))
    assert content(chunks) == "".join(tokens)
    assert {chunk["model"] for chunk in chunks} == {model}
    whole = json.loads(answer.whole())
    assert whole["choices"][0]["message"]["content"] == "".join(tokens)
    assert (whole["object"], whole["model"]) == ("chat.completion", model)


def test_model_that_looks_like_the_object_name_is_left_alone() -> None:
    whole = json.loads(answer_of(Simulation(tokens=1), model="chat.completion.chunk").whole())
    assert (whole["object"], whole["model"]) == ("chat.completion", "chat.completion.chunk")


@pytest.mark.parametrize(("limit", "tokens", "finish"), [(None, 9, "stop"), (9, 9, "stop"), (8, 8, "length")])
def test_token_limit_cuts_the_answer(limit: int | None, tokens: int, finish: str) -> None:
    answer = answer_of(Simulation(tokens=9), limit=limit, usage=True)
    *_, end, usage, done = answer.closing().split(b"\n\n")[:-1]
    assert json.loads(end[6:])["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": finish,
    }
    assert json.loads(usage[6:])["usage"]["completion_tokens"] == answer.tokens == tokens
    assert done == b"data: [DONE]"


@pytest.mark.parametrize("size", [1024, 1025, 100_000])
def test_huge_event_has_the_exact_size(size: int) -> None:
    event = answer_of(Simulation(), model="m" * 300).huge(size)
    assert len(event) == size
    events(event)


def test_malformed_events_are_what_they_claim() -> None:
    assert events(b'data: [{"a":1},{"b":2}]\n\n') == [[{"a": 1}, {"b": 2}]]
    breakout = malformed_event(Malformed(variant="breakout"))
    assert events(breakout.replace(b"data: ", b"data: [").replace(b"}\n", b"}]\n")) == [[{"a": 1}, {"b": 2}]]
    with pytest.raises(json.JSONDecodeError):
        json.loads(malformed_event(Malformed(variant="invalid_json"))[6:])
    with pytest.raises(UnicodeDecodeError):
        malformed_event(Malformed(variant="invalid_utf8")).decode()
    assert not malformed_event(Malformed(variant="rubbish")).startswith(b"data:")


def test_error_event_is_an_openai_error() -> None:
    event = error_event(ErrorEvent(message="a", type="b", code="c"))
    assert events(event) == [{"error": {"message": "a", "type": "b", "param": None, "code": "c"}}]
