"""Configuration files cut at each byte, edited at random, and written in any pieces: what may be taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import parse
from holdfast.errors import ConfigError
from holdfast.reload.changes import lost_limits, refusal
from holdfast.reload.looks import SETTLE, Look, Settling

TEMPLATE = """
[providers.a]
base_url = "https://a.example/v1"
max_concurrency = {n}
[models.m]
route = ["a/x", "a/y"]
max_concurrency = {n}
[keys.one]
hash = "sha256:{one}"
tenant = "t"
max_tokens = {n}
models = ["m"]
[keys.two]
hash = "sha256:{two}"
[limits]
requests_per_minute = {n}
tokens_per_minute = {n}
concurrent_streams = {n}
[limits.tenant]
connections = {n}
[limits.keys.two]
requests_per_minute = {n}
[limits.tenants.t]
tokens_per_minute = {n}
"""
OLD = TEMPLATE.format(n=1234, one="1" * 64, two="2" * 64)
NEW = TEMPLATE.format(n=987, one="1" * 64, two="3" * 64)


def decide(old: str, contents: list[tuple[bytes | None, float]]) -> list[str]:
    """Play looks, each with the seconds since the one before; return the texts that came into force, in order."""
    running = (old, parse(old))
    settling = Settling(_look(old.encode()))
    texts, now = [], 0.0
    for content, after in contents:
        now += after
        if settling.look(_look(content), now) and content is not None:
            try:
                text = content.decode()
                new = parse(text)
            except (ConfigError, UnicodeDecodeError):
                continue
            if refusal(running, (text, new), is_asked=False) is None:
                running = (text, new)
                texts.append(text)
    return texts


def _look(content: bytes | None) -> Look:
    """The content alone tells looks apart, as if no file system told them apart by its times."""
    return Look((None if content is None else (0, 0, len(content), 0),), (content,))


def keeps_limits(text: str, old: str = OLD) -> bool:
    return not list(lost_limits(parse(old), parse(text)))


@pytest.mark.parametrize("pause", [SETTLE / 2, 10.0])
def test_file_cut_at_any_byte_brings_the_old_the_new_or_a_part_with_every_limit(pause: float) -> None:
    """A writer rewrites the file in place, and pauses behind any byte."""
    for cut in range(len(NEW) + 1):
        part, whole = NEW[:cut].encode(), NEW.encode()
        texts = decide(OLD, [(OLD.encode(), 1), (part, 1), (part, pause), (whole, 1), (whole, 1)])
        assert texts[-1:] == [NEW]
        if pause < SETTLE:
            assert texts == [NEW]
        for text in texts:
            assert text.endswith("\n")
            assert keeps_limits(text)


def test_file_left_cut_at_any_byte_takes_no_limit_away() -> None:
    for cut in range(len(OLD)):
        for text in decide(OLD, [(OLD[:cut].encode(), 1)] * 5):
            assert keeps_limits(text)
            assert parse(text).keys.keys() <= parse(OLD).keys.keys()


@given(st.sets(st.integers(0, len(NEW))), st.data())
def test_file_written_in_any_pieces_without_a_long_pause_is_the_old_or_the_new(
    cuts: set[int], data: st.DataObject
) -> None:
    looks: list[tuple[bytes | None, float]] = [(OLD.encode(), 1.0)]
    for cut in sorted(cuts):
        # Each piece may be seen several times, within less than what settles it; between two it may be gone.
        looks.append((NEW[:cut].encode(), data.draw(st.floats(0, 3))))
        looks += [(NEW[:cut].encode(), SETTLE / 4)] * data.draw(st.integers(0, 3))
        if data.draw(st.booleans()):
            looks.append((None, SETTLE / 4))
    looks += [(NEW.encode(), 1.0), (NEW.encode(), 1.0)]
    assert set(decide(OLD, looks)) == {NEW}


_edit = st.tuples(
    st.integers(0, len(OLD)), st.integers(0, 60), st.text("[]\"'=.\nkeyslimits0123456789 #", max_size=8)
)


@given(st.lists(_edit, min_size=1, max_size=4))
def test_file_edited_at_random_is_taken_whole_or_not_at_all_with_every_limit(
    edits: list[tuple[int, int, str]],
) -> None:
    text = OLD
    for start, length, put in edits:
        text = text[:start] + put + text[start + length :]
    for taken in decide(OLD, [(text.encode(), 1.0)] * 3):
        assert taken == text
        assert keeps_limits(taken)


@given(st.lists(st.tuples(st.binary(max_size=30), st.floats(0, 5)), max_size=10))
def test_garbage_changes_nothing(looks: list[tuple[bytes, float]]) -> None:
    for text in decide(OLD, list(looks)):
        assert keeps_limits(text)
