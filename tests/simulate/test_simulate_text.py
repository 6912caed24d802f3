from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from holdfast_tools.simulate.prose import prose
from holdfast_tools.simulate.text import FACTOR, PRIME, WORDS, text, token, token_range

SEEDS = st.integers(0, 0xFFFF_FFFF)


def test_known_tokens_stay_as_they_are() -> None:
    # Clients in other languages compute these too: a change here breaks them.
    assert [token(7, i) for i in range(5)] == ["orchard0", " sage1", " cedar2", " hill3", " meadow4"]
    assert text(0, 4) == "pine0 reed1 reed2 pine3"
    assert token(0xFFFF_FFFF, 1_000_000) == " beach1000000"


def test_vocabulary_has_64_different_words() -> None:
    assert len(set(WORDS)) == len(WORDS) == 64
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


def test_rule_needs_no_more_than_53_bits() -> None:
    assert (PRIME - 1) ** 2 * FACTOR < 2**53


@given(SEEDS, st.integers(0, 10**6), st.integers(0, 300))
def test_token_range_is_token_by_token(seed: int, start: int, count: int) -> None:
    assert token_range(seed, start, start + count) == [token(seed, i) for i in range(start, start + count)]


@given(st.lists(st.integers(0, 60_000), min_size=2, max_size=2, unique=True))
def test_texts_of_different_seeds_differ(seeds: list[int]) -> None:
    assert text(seeds[0], 12) != text(seeds[1], 12)


@given(SEEDS, st.integers(2, 200), st.data())
def test_loss_doubling_and_reordering_of_a_token_change_the_text(seed: int, count: int, data: DataObject) -> None:
    tokens = [token(seed, i) for i in range(count)]
    at = data.draw(st.integers(0, count - 2))
    lost = tokens[:at] + tokens[at + 1 :]
    doubled = [*tokens[:at], tokens[at], *tokens[at:]]
    moved = [*tokens[:at], tokens[at + 1], tokens[at], *tokens[at + 2 :]]
    assert text(seed, count) not in {"".join(lost), "".join(doubled), "".join(moved)}


@given(st.text())
def test_prose_is_deterministic_and_its_tokens_join_to_sentences(prompt: str) -> None:
    tokens = prose(prompt)
    assert tokens == prose(prompt)
    assert 40 < len(tokens) < 250
    joined = "".join(tokens)
    assert joined == " ".join(joined.split())
    assert joined.endswith(".")


def test_prose_of_different_prompts_differs() -> None:
    assert len({"".join(prose(f"prompt {number}")) for number in range(200)}) == 200


@pytest.mark.parametrize("prompt", ["", " \n ", "{}", "{prompt} %s \\", "\ud800", "x" * 10_000])
def test_prose_of_odd_prompts_is_of_bounded_length(prompt: str) -> None:
    assert len("".join(prose(prompt))) < 800
