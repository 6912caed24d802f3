"""The clock of all deadlines, on a loop whose time the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from holdfast.timers import RESOLUTION, Timers


class Handle:
    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when, self.callback, self.is_cancelled = when, callback, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """`sleep` moves the time and runs one turn, as a loop does that was held up for so long."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.handles: list[Handle] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> Handle:
        self.handles.append(Handle(self.now + delay, callback))
        return self.handles[-1]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [handle for handle in self.handles if handle.when <= self.now + 1e-9]
        self.handles = [handle for handle in self.handles if handle not in due]
        for handle in due:
            if not handle.is_cancelled:
                handle.callback()

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.sleep(RESOLUTION)


def timers_on(loop: Loop) -> Timers:
    return Timers(cast(asyncio.AbstractEventLoop, loop))


def test_deadline_is_called_within_two_ticks() -> None:
    loop = Loop()
    calls = []
    timers_on(loop).after(0.2, lambda: calls.append(loop.now))
    loop.tick(3)
    assert calls == []
    loop.tick(3)
    assert len(calls) == 1
    assert loop.handles == []


def test_deadline_that_passed_in_a_pause_waits_for_what_was_not_read() -> None:
    loop = Loop()
    timers = timers_on(loop)
    last_read = loop.now
    blamed = []

    def check() -> None:
        if loop.now - last_read >= 4.0:
            blamed.append("provider")

    timers.after(4.0, check)
    loop.sleep(4.7)  # SIGSTOP and SIGCONT: the timer is seen before the sockets are
    last_read = loop.now  # they are read in the same turn
    loop.tick(2)
    assert blamed == []
    assert timers.pending == 0


def test_silence_of_the_peer_is_noticed_after_a_pause() -> None:
    loop = Loop()
    calls = []
    timers_on(loop).after(4.0, lambda: calls.append(loop.now))
    loop.sleep(30.0)
    assert calls == []
    loop.sleep(5.0)  # a second pause puts nothing off any further
    assert len(calls) == 1


def test_load_puts_nothing_off() -> None:
    loop = Loop()
    calls = []
    timers_on(loop).after(0.2, lambda: calls.append(loop.now))
    loop.tick(3)
    loop.sleep(0.9)
    assert len(calls) == 1
