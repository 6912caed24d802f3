from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from typing import cast

import pytest

from holdfast_tools.simulate.pacer import Pacer, Trickle


class Handle:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback

    def cancel(self) -> None:
        self.callback = lambda: None


class Loop:
    """An event loop's clock and callbacks, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.soon: list[Callable[[], object]] = []
        self.timers: list[tuple[float, int, Handle]] = []
        self.turns = 0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> Handle:
        handle = Handle(callback)
        heapq.heappush(self.timers, (when, len(self.timers) + self.turns * 1000, handle))
        return handle

    def turn(self) -> None:
        self.turns += 1
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            while self.soon:
                self.turn()
            if not self.timers or self.timers[0][0] > end:
                break
            when, _, handle = heapq.heappop(self.timers)
            self.now = max(self.now, when)
            self.turns += 1
            handle.callback()
        self.now = end


class Item:
    """Runs every `every` ms, `times` times, and notes when."""

    def __init__(self, pacer: Pacer, every: float, times: int, connection: Connection | None = None) -> None:
        self.pacer, self.every, self.times, self.connection = pacer, every, times, connection
        self.first = pacer.now()
        self.seen: list[float] = []
        self.failed = False

    def step(self, now: float) -> float | None:
        self.seen.append(now - self.first)
        if self.connection is not None:
            self.connection.write(self)
        if len(self.seen) == self.times:
            return None
        return self.first + len(self.seen) * self.every

    def fail(self) -> None:
        self.failed = True


class Broken(Item):
    def step(self, now: float) -> None:
        raise ValueError("broken")


class Connection:
    def __init__(self, pacer: Pacer, loop: Loop) -> None:
        self.pacer, self.loop = pacer, loop
        self.written: list[str | Item] = []
        self.flushed: list[tuple[int, int]] = []

    def write(self, what: str | Item) -> None:
        if not self.written:
            self.pacer.mark(self)
        self.written.append(what)

    def flush(self) -> None:
        self.flushed.append((self.loop.turns, len(self.written)))
        self.written.clear()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def pacer(loop: Loop) -> Pacer:
    return Pacer(cast(asyncio.AbstractEventLoop, loop))


def test_item_is_stepped_when_it_is_due_and_does_not_drift(loop: Loop, pacer: Pacer) -> None:
    item = Item(pacer, 7.3, 100)
    pacer.add(item, pacer.now())
    loop.run_for(10)
    assert len(item.seen) == 100
    assert all(0 <= seen - number * 7.3 < 1.01 for number, seen in enumerate(item.seen))


def test_items_of_one_tick_share_one_flush(loop: Loop, pacer: Pacer) -> None:
    connection = Connection(pacer, loop)
    for _ in range(5):
        pacer.add(Item(pacer, 10, 3, connection), pacer.now() + 5)
    loop.run_for(1)
    assert [written for _, written in connection.flushed] == [5, 5, 5]


def test_what_is_written_outside_of_a_tick_is_flushed_in_the_next_turn(loop: Loop, pacer: Pacer) -> None:
    connection = Connection(pacer, loop)
    connection.write("a")
    connection.write("b")
    assert connection.flushed == []
    loop.turn()
    assert [written for _, written in connection.flushed] == [2]


def test_earlier_item_is_not_held_by_a_later_one(loop: Loop, pacer: Pacer) -> None:
    late, early = Item(pacer, 1, 1), Item(pacer, 1, 1)
    pacer.add(late, pacer.now() + 500)
    pacer.add(early, pacer.now() + 5)
    loop.run_for(0.1)
    assert (len(early.seen), len(late.seen)) == (1, 0)
    loop.run_for(0.5)
    assert len(late.seen) == 1


def test_ready_item_runs_once_in_each_turn(loop: Loop, pacer: Pacer) -> None:
    item = Item(pacer, 0, 50)
    pacer.add_ready(item)
    before = loop.turns
    loop.run_for(0.001)
    assert len(item.seen) == 50
    assert loop.turns - before >= 50


def test_item_that_fails_is_told_and_the_others_go_on(
    loop: Loop, pacer: Pacer, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = Broken(pacer, 1, 1), Item(pacer, 1, 3)
    pacer.add(broken, pacer.now() + 1)
    pacer.add(whole, pacer.now() + 1)
    with caplog.at_level(logging.ERROR):
        loop.run_for(0.1)
    assert broken.failed
    assert "ValueError: broken" in caplog.text
    assert len(whole.seen) == 3


def test_cleared_pacer_steps_nothing(loop: Loop, pacer: Pacer) -> None:
    item = Item(pacer, 1, 10)
    pacer.add(item, pacer.now() + 5)
    pacer.add_ready(item)
    pacer.clear()
    loop.run_for(1)
    assert item.seen == []


def test_trickle_writes_single_bytes_over_the_time_asked_for_then_the_rest_at_once(
    loop: Loop, pacer: Pacer
) -> None:
    written = []
    empty = []
    trickle = Trickle(pacer, lambda data: written.append((loop.now, data)), lambda: empty.append(loop.now))
    start = loop.now
    trickle.feed(b"x" * 300, 0.5)
    trickle.feed(b"the rest", None)
    assert not trickle.is_empty
    loop.run_for(1)
    assert [data for _, data in written] == [b"x"] * 300 + [b"the rest"]
    assert 0.149 <= written[-1][0] - start <= 0.152
    assert trickle.is_empty
    assert len(empty) == 1


def test_trickle_that_is_dropped_writes_no_more(loop: Loop, pacer: Pacer) -> None:
    written: list[bytes] = []
    trickle = Trickle(pacer, written.append, lambda: None)
    trickle.feed(b"", 1)
    assert trickle.is_empty
    trickle.feed(b"abc", 10)
    loop.run_for(0.005)
    trickle.fail()
    loop.run_for(1)
    assert written == [b"a"]
