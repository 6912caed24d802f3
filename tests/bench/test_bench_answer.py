"""The judge of what a load receives: a whole answer is found whole, and each planted fault is found."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_tools.bench.answer import Answer, Script
from holdfast_tools.bench.tally import Tally
from holdfast_tools.simulate.answer import Answer as Provided
from holdfast_tools.simulate.request import ChatRequest, Message, Simulation
from holdfast_tools.simulate.text import token

SEED, TOKENS = 7, 40


def event(text: str, *, sent_ns: int = 0) -> bytes:
    stamp = f',"sim_sent_ns":{sent_ns}' if sent_ns else ""
    return f'data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]{stamp}}}\n\n'.encode()


def tokens(*numbers: int) -> list[bytes]:
    return [event(token(SEED, number)) for number in numbers]


def read(payloads: list[bytes], *, script: Script | None = None, ends: bool = True) -> Tally:
    tally = Tally()
    answer = Answer(0, script or Script(SEED, TOKENS))
    for at, payload in enumerate(payloads):
        answer.receive(payload, 1000 + at, tally)
    if ends:
        answer.end(tally)
    return tally


def test_whole_answer_is_found_whole() -> None:
    tally = read(tokens(*range(TOKENS)))
    assert (tally.tokens, tally.events, tally.answers, tally.faults, tally.errors) == (TOKENS, TOKENS, 1, {}, [])


@given(st.lists(st.integers(min_value=1, max_value=TOKENS - 1), max_size=8))
def test_any_grouping_of_events_into_reads_gives_the_same_counts(cuts: list[int]) -> None:
    events = tokens(*range(TOKENS))
    bounds = [0, *sorted(set(cuts)), TOKENS]
    grouped = [b"".join(events[a:b]) for a, b in itertools.pairwise(bounds)]
    tally = read(grouped)
    assert (tally.tokens, tally.events, tally.faults) == (TOKENS, TOKENS, {})
    assert tally.gap.total == TOKENS - 1


def test_tokens_that_a_gateway_joined_or_cut_are_the_same_text() -> None:
    text = "".join(token(SEED, number) for number in range(TOKENS))
    tally = read([event(text[:5]), event(text[5:100]), event(text[100:])])
    assert (tally.tokens, tally.events, tally.faults) == (TOKENS, 3, {})


@pytest.mark.parametrize(
    ("numbers", "faults"),
    [
        ([0, 1, 2, *range(4, TOKENS)], {"lost": 1}),
        ([*range(TOKENS - 5)], {"lost": 5}),
        ([*range(10), *range(5, TOKENS)], {"doubled": 5}),
        ([0, 1, 2, 2, *range(3, TOKENS)], {"doubled": 1}),
        ([0, 1, 3, 2, *range(4, TOKENS)], {"reordered": 1}),
        ([*range(TOKENS), TOKENS], {"foreign": 1}),
        ([1, *range(2, TOKENS)], {"lost": 1}),
    ],
)
def test_planted_fault_is_found(numbers: list[int], faults: dict[str, int]) -> None:
    tally = read(tokens(*numbers))
    assert tally.faults == faults
    assert tally.errors


def test_answers_that_were_mixed_up_are_found() -> None:
    tally = read([event(token(SEED + 1, number)) for number in range(TOKENS)], ends=False)
    # One word in 64 is the same by chance.
    assert tally.foreign >= TOKENS * 3 // 4
    assert tally.tokens + tally.foreign == TOKENS


def test_fault_is_found_within_one_read() -> None:
    assert read([b"".join(tokens(*range(10), *range(12, TOKENS)))]).faults == {"lost": 2}


def test_loss_and_late_arrival_in_two_windows_add_up() -> None:
    answer, first, second = Answer(0, Script(SEED, TOKENS)), Tally(), Tally()
    answer.receive(b"".join(tokens(0, 2)), 1, first)
    answer.receive(b"".join(tokens(1, *range(3, TOKENS))), 2, second)
    answer.end(second)
    assert (first.lost, second.lost, second.reordered) == (1, -1, 1)
    first.merge(second)
    assert first.faults == {"reordered": 1}


def test_skipped_or_repeated_sequence_number_is_found() -> None:
    for numbers, wanted in (([(0, 3), (3, 1)], 0), ([(0, 3), (4, 1)], 1), ([(0, 3), (2, 1)], 1), ([(1, 1)], 1)):
        tally, answer = Tally(), Answer(0, None)
        for first, count in numbers:
            answer.check_numbers(first, count, tally)
        assert tally.misnumbered == wanted


def test_text_of_a_real_model_is_counted_with_its_quotes() -> None:
    tally = read([event('say \\"hi\\"'), event("\\\\"), event("")], script=None, ends=False)
    answer, plain = Answer(0, None), Tally()
    for payload in (event('say \\"content\\": \\"x\\"'), event("\\\\"), event("")):
        answer.receive(payload, 1, plain)
    answer.end(plain)
    assert (plain.tokens, plain.answers, plain.faults) == (2, 1, {})
    assert tally.foreign  # which is no text of the simulated provider


def test_what_the_simulated_provider_writes_is_what_is_expected_and_timed() -> None:
    request = ChatRequest("demo", [Message("user", "hi")], sim=Simulation(tokens=TOKENS, seed=SEED))
    provided = Provided(request, answer_id="1", created=1)
    stream = provided.opening(500) + provided.content(0, TOKENS, 600) + provided.closing(700)
    tally = read([stream])
    assert (tally.tokens, tally.faults) == (TOKENS, {})
    assert tally.latency.quantile(0.5) == pytest.approx(1000 - 600, rel=1 / 64)


def test_script_is_made_as_far_as_it_is_read_and_no_further() -> None:
    script = Script(SEED, 10_000)
    assert script.text == b""
    script.grow(10)
    assert 10 <= len(script.text) < 20_000
    script.grow(10**9)
    assert script.text == "".join(token(SEED, number) for number in range(10_000)).encode()
