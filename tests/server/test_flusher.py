"""Whoever has little to write does not wait for those that have much."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from holdfast.core.moderation import ReadModeration
from holdfast.server.delivery import flusher as module
from holdfast.server.delivery.flusher import Flusher
from tests.server.stage import ManualLoop


class OneTurnLoop(ManualLoop):
    """A loop whose turns are single: what is called soon is called in the next."""

    def turn_once(self) -> None:
        for _ in range(len(self._soon)):
            callback, args = self._soon.popleft()
            callback(*args)


class Reader:
    """Has so many writes to go on with behind its first."""

    def __init__(self, flusher: Flusher, written: list[str], name: str, *, left: int = 0) -> None:
        self._flusher = flusher
        self._written = written
        self._name = name
        self._left = left
        self.is_failing = False

    def flush(self, *, more: bool = False) -> int:
        if self.is_failing:
            raise RuntimeError("planted")
        self._written.append(self._name + "+" * more)
        self._left -= more
        if self._left:
            self._flusher.add_more(self)
        return 1


@pytest.fixture
def loop() -> OneTurnLoop:
    return OneTurnLoop()


@pytest.fixture
def flusher(loop: OneTurnLoop, monkeypatch: pytest.MonkeyPatch) -> Flusher:
    monkeypatch.setattr(module, "MORE", 0.0)
    return Flusher(ReadModeration(max_hold=0.0), cast(asyncio.AbstractEventLoop, loop))


def test_those_that_catch_up_go_on_one_after_the_other_while_others_have_every_turn(
    loop: OneTurnLoop, flusher: Flusher
) -> None:
    written: list[str] = []
    for name in "ab":
        flusher.add(Reader(flusher, written, name, left=2))
    flusher.add(Reader(flusher, written, "c"))
    turns = []
    for _ in range(5):
        flusher.add(Reader(flusher, written, "-"))
        loop.turn_once()
        turns.append("".join(written))
        written.clear()
    assert turns == ["abc-", "a+-", "b+-", "a+-", "b+-"]
    loop.turn_once()
    assert not loop._soon


def test_one_that_fails_keeps_nobody_from_going_on(loop: OneTurnLoop, flusher: Flusher) -> None:
    written: list[str] = []
    readers = [Reader(flusher, written, name, left=1) for name in "ab"]
    for reader in readers:
        flusher.add(reader)
    loop.turn_once()
    readers[0].is_failing = True
    loop.turn_once()
    loop.turn_once()
    assert written == ["a", "b", "b+"]
