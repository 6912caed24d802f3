"""Sockets share the turns of the loop: what they take is measured, and nobody waits for those who send most."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from holdfast.core.limits.budget import Budget, Kind
from holdfast.server.listener.turns import BACKLOG, NOT_WRITABLE, SHARE, TURN, FairProtocol, Turns
from tests.server.stage import ManualLoop, MemoryTransport


class Clock:
    """Moves only where a socket's work moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Pieces(FairProtocol):
    """A socket whose bytes are pieces of work that take `cost` seconds each."""

    def __init__(self, world: World, name: str, *, cost: float) -> None:
        super().__init__(world.turns, world.budget.account(name))
        self.name = name
        self.transport = self.carrier = MemoryTransport()
        self.carrier.protocol = self
        self._world = world
        self._cost = cost
        self.waiting = self.counted = 0
        self.bytes_of_a_read = 0
        self.is_failing = False
        self.body = 0

    def receive(self, pieces: int) -> None:
        self.waiting += pieces
        self.turns.received(self, self.bytes_of_a_read)

    def count_waiting(self) -> None:
        self.counted = self.waiting

    @property
    def can_go_on(self) -> bool:
        return self.waiting > 0 and not self.is_paused

    def take(self, until: float) -> bool:
        if self.is_failing:
            raise RuntimeError("planted")
        while self.can_go_on:
            self.waiting -= 1
            self._world.clock.now += self._cost
            self._world.served.append(self.name)
            self.turns.read_later(self.body)
            if self._world.clock.now >= until:
                break
        return self.can_go_on


class OneTurnLoop(ManualLoop):
    """A loop whose turns are single: what is called soon is called in the next."""

    def turn_once(self) -> None:
        for _ in range(len(self._soon)):
            callback, args = self._soon.popleft()
            callback(*args)


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.loop = OneTurnLoop()
        self.turns = Turns(cast(asyncio.AbstractEventLoop, self.loop), clock=self.clock)
        self.budget = Budget(1 << 20)
        self.served: list[str] = []

    def socket(self, name: str, *, cost: float = SHARE / 10) -> Pieces:
        return Pieces(self, name, cost=cost)


@pytest.fixture
def world() -> World:
    return World()


def test_little_is_handled_at_once(world: World) -> None:
    socket = world.socket("a")
    socket.receive(3)
    assert world.served == ["a"] * 3
    assert socket.carrier.is_read


def test_much_is_handled_in_shares_and_not_read_meanwhile(world: World) -> None:
    socket = world.socket("a")
    socket.receive(1000)
    assert 10 <= len(world.served) <= 12
    assert not socket.carrier.is_read
    before = world.clock.now
    world.loop.turn_once()
    assert world.clock.now - before < TURN + 2 * SHARE
    world.loop.turn()
    assert world.served == ["a"] * 1000
    assert socket.carrier.is_read
    assert len(world.turns) == 0


def test_one_turn_of_the_loop_has_time_for_so_much_whoever_sends(world: World) -> None:
    sockets = [world.socket(f"{number}") for number in range(100)]
    for socket in sockets:
        socket.receive(10)
    assert world.clock.now < TURN + 2 * SHARE
    before = world.clock.now
    world.loop.turn_once()
    assert world.clock.now - before < TURN + 2 * SHARE
    world.loop.turn()
    assert len(world.served) == 1000


def test_who_sends_little_waits_for_nobody_who_sends_much(world: World) -> None:
    for number in range(50):
        world.socket(f"busy {number}").receive(10_000)
    for _ in range(20):
        world.loop.turn_once()
    honest = world.socket("honest")
    world.served.clear()
    honest.receive(1)
    world.loop.turn_once()
    assert world.served[0] == "honest"


def test_work_of_a_quiet_loop_counts_for_its_turn_alone(world: World) -> None:
    socket = world.socket("a", cost=SHARE / 2)
    for _ in range(100):
        socket.receive(1)
        assert socket.waiting == 0
        world.loop.turn_once()


def test_reading_much_costs_a_turn_as_well(world: World) -> None:
    """Bytes that are read and thrown away have their price: of many sockets, some are read in each turn."""
    sockets = [world.socket(f"{number}", cost=0.0) for number in range(100)]
    for socket in sockets:
        socket.bytes_of_a_read = 256_000
        socket.receive(1)
    assert sum(socket.waiting for socket in sockets) > 50
    read_again = []
    for _ in range(3):
        world.loop.turn_once()
        read_again.append(sum(socket.carrier.is_read for socket in sockets))
    assert read_again == sorted(set(read_again))
    assert read_again[0] < 70
    assert read_again[-1] == 100


def test_socket_that_fails_is_cut_and_the_others_go_on(world: World) -> None:
    failing, other = world.socket("a"), world.socket("b")
    failing.receive(100)
    other.receive(100)
    failing.is_failing = True
    world.loop.turn()
    assert failing.carrier.is_aborted
    assert world.served.count("b") == 100


def test_socket_is_read_when_the_last_reason_is_gone(world: World) -> None:
    socket = world.socket("a")
    socket.pause(BACKLOG)
    socket.pause(NOT_WRITABLE)
    socket.resume(NOT_WRITABLE)
    assert not socket.carrier.is_read
    socket.resume(NOT_WRITABLE)  # is not set
    socket.resume(BACKLOG)
    assert socket.carrier.is_read


def test_what_has_waited_is_handled_before_more_is_read(world: World) -> None:
    socket = world.socket("a")
    socket.pause(BACKLOG)
    socket.receive(2)
    assert world.served == []
    socket.resume(BACKLOG)
    assert not socket.carrier.is_read
    world.loop.turn()
    assert world.served == ["a", "a"]
    assert socket.carrier.is_read


def test_socket_that_leaves_is_served_no_more(world: World) -> None:
    socket = world.socket("a")
    socket.receive(1000)
    world.turns.leave(socket)
    world.served.clear()
    world.loop.turn()
    assert world.served == []


def test_unsent_output_is_charged_until_it_is_taken(world: World) -> None:
    socket = world.socket("a")
    socket.carrier.stall()
    socket.carrier.write(bytes(100_000))
    assert world.budget.by_kind[Kind.OUTPUT] == 100_000
    assert not socket.carrier.is_read
    socket.carrier.unstall()
    assert world.budget.used == 0
    assert socket.carrier.is_read


def test_connection_whose_output_does_not_fit_is_cut(world: World) -> None:
    sockets = [world.socket("a") for _ in range(20)]
    for socket in sockets:
        socket.carrier.stall()
        socket.carrier.write(bytes(100_000))
    assert 0 < sum(socket.carrier.is_aborted for socket in sockets) < 20
    assert world.budget.used <= world.budget.limit
    for socket in sockets:
        socket.free_output()
    assert world.budget.used == 0


def test_end_of_writing_on_a_socket_that_was_reset_cuts_it(world: World) -> None:
    socket = world.socket("a")

    def fail() -> Any:
        raise OSError("not connected")

    socket.carrier.write_eof = fail  # type: ignore[method-assign]
    socket.write_eof()
    assert socket.carrier.is_aborted


# -- long steps --


def test_account_that_owes_time_is_not_read_on_in_the_middle_of_something_large(world: World) -> None:
    socket = world.socket("a", cost=0.1)
    assert not world.turns.repay(socket)
    socket.receive(1)
    first, second, gone, other = socket, world.socket("a"), world.socket("a"), world.socket("b")
    assert world.turns.repay(first)
    assert world.turns.repay(second)
    assert world.turns.repay(gone)
    assert not world.turns.repay(other)
    world.turns.leave(gone)
    world.loop.pass_time(7.9)
    assert not first.carrier.is_read
    world.loop.pass_time(0.11)
    assert first.carrier.is_read
    assert not second.carrier.is_read, "all at once would be several long steps in a row"
    world.loop.pass_time(0.2)
    assert second.carrier.is_read
    assert not gone.carrier.is_read


def test_what_is_owed_by_what_has_waited_is_paid_before_the_next_socket(world: World) -> None:
    first, second = world.socket("a", cost=0.1), world.socket("a", cost=0.1)
    first.receive(2)
    world.turns.repay(second)
    world.loop.turn()
    world.loop.pass_time(8.1)
    assert not second.carrier.is_read, "the second step is owed as well"
    world.loop.pass_time(8.0)
    assert second.carrier.is_read


def test_what_is_done_outside_of_turns_keeps_others_from_beginning_it(world: World) -> None:
    """Of large bodies that are complete at the same time, one or two are looked through in a turn of the loop."""
    sockets = [world.socket(f"{number}", cost=0.0) for number in range(10)]
    for socket in sockets:
        socket.body = 8 << 20
        socket.receive(1)
    assert len(world.served) == 1
    for turn in range(2, 6):
        world.loop.turn_once()
        assert len(world.served) == turn
    world.loop.turn()
    assert len(world.served) == 10
