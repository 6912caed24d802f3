"""When a file that changes is taken: a script of looks, without a file or a clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.reload.looks import SETTLE, Look, Settling, look_at

OLD, NEW, PART = (Look(((n, n, n, n),), (text,)) for n, text in enumerate((b"old", b"new", b"part")))
GONE = Look((None,), (None,))


def taken(settling: Settling, *looks: Look, apart: float = 1.0, start: float = 0.0) -> list[bytes | None]:
    """Look again and again; return what is to be dealt with."""
    return [look.contents[0] for i, look in enumerate(looks) if settling.look(look, start + i * apart)]


def test_change_is_taken_once_two_looks_have_seen_it() -> None:
    assert taken(Settling(OLD), OLD, NEW, NEW, NEW, NEW) == [b"new"]


def test_file_that_changes_on_is_taken_only_when_it_has_come_to_rest() -> None:
    assert taken(Settling(OLD), OLD, PART, NEW, PART, NEW, NEW, NEW) == [b"new"]


def test_two_looks_too_close_together_confirm_nothing() -> None:
    settling = Settling(OLD)
    assert taken(settling, NEW, NEW, NEW, apart=SETTLE / 3) == []
    assert taken(settling, NEW, start=SETTLE) == [b"new"]


def test_file_that_is_gone_for_one_look_changes_nothing_and_for_two_is_dealt_with() -> None:
    assert taken(Settling(OLD), GONE, OLD, GONE, OLD) == []
    assert taken(Settling(OLD), GONE, NEW, NEW) == [b"new"]
    assert taken(Settling(OLD), GONE, GONE, GONE) == [None]


def test_change_that_is_taken_back_changes_nothing() -> None:
    assert taken(Settling(OLD), NEW, OLD, NEW, OLD) == []


def test_whoever_asks_gets_the_file_even_if_it_is_the_same() -> None:
    settling = Settling(OLD)
    settling.ask()
    assert taken(settling, OLD, OLD, OLD, OLD) == [b"old"]


def test_whoever_asks_gets_no_file_that_is_being_written() -> None:
    settling = Settling(OLD)
    settling.look(PART, 0.0)
    settling.ask()
    assert not settling.look(PART, 1.0), "what was seen before the question confirms nothing"
    assert not settling.look(NEW, 2.0)
    assert settling.is_restless
    assert settling.look(NEW, 3.0)


def test_asking_again_and_again_puts_nothing_off() -> None:
    settling = Settling(OLD)
    found = []
    for turn in range(4):
        settling.ask()
        found.append(settling.look(NEW, turn * 1.0))
    assert found == [False, True, False, True]


def test_file_is_read_again_only_when_its_signature_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = look_at([path], None, max_size=10)
    assert look_at([path], first, max_size=10) is first
    path.write_bytes(b"more")
    assert look_at([path], first, max_size=10).contents == (b"more",)
    path.write_bytes(b"far too much")
    assert look_at([path, tmp_path / "none"], first, max_size=10).contents == (None, None)


def test_pipe_is_never_opened_by_a_look(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)  # to open it would block, since nobody writes
    assert look_at([path], None, max_size=10) == Look((None,), (None,))
    assert look_at([tmp_path], None, max_size=10).contents == (None,)
