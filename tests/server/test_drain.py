"""A process that goes: what it waits for, and that each end is an event which it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from holdfast.generation.launcher import Launcher
from holdfast.server.drain import Drain
from holdfast.server.peers import Peers
from holdfast.streams.directory import Directory
from holdfast.timers import Timers
from tests.server.test_peers import ScriptedPeer
from tests.support.waiting import eventually


class ScriptedStreams:
    """Stands for launcher and directory: the test says what is unfinished."""

    def __init__(self) -> None:
        self.unfinished = 0
        self.awaited_until = 0.0
        self.is_draining = False
        self._done: Callable[[], None] = lambda: None

    def drain(self) -> None:
        self.is_draining = True

    def after_running(self, done: Callable[[], None]) -> None:
        self._done = done

    def end(self) -> None:
        self.unfinished = 0
        self._done()


class World:
    def __init__(self) -> None:
        self.timers = Timers()
        self.peers = Peers(self.timers, max_connections=10)
        self.streams = ScriptedStreams()
        self.drain = Drain(self.peers, cast(Directory, self.streams), cast(Launcher, self.streams), self.timers)

    async def begin(self, *, timeout: float = 30.0, window: float = 0.0) -> asyncio.Task[bool]:
        task = asyncio.create_task(self.drain.run(timeout=timeout, window=window))
        for _ in range(3):
            await asyncio.sleep(0)
        return task


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.timers.close()


async def test_process_without_work_is_drained_at_once(world: World) -> None:
    probe = ScriptedPeer(is_conversation=False, is_busy=False)
    world.peers.admit(probe)
    assert await world.drain.run(timeout=0.0, window=30.0)
    assert world.streams.is_draining
    assert probe.calls == ["drain 0"]


async def test_running_streams_are_waited_for_without_a_look_at_the_clock(world: World) -> None:
    world.streams.unfinished = 1
    task = await world.begin()
    assert not task.done()
    world.streams.end()
    assert await task


async def test_connections_are_waited_for(world: World) -> None:
    socket, answering = ScriptedPeer(), ScriptedPeer(is_conversation=False)
    world.peers.add(socket)
    world.peers.admit(answering)
    task = await world.begin()
    world.peers.discard(socket)
    answering.is_busy = False
    assert not task.done()
    world.peers.check_settled()
    assert await task


async def test_end_that_a_lost_reader_may_come_back_for_is_waited_for(world: World) -> None:
    world.streams.unfinished = 1
    world.streams.awaited_until = world.timers.now() + 0.05
    task = await world.begin()
    assert not task.done()
    world.streams.unfinished = 0  # its time passes, and nothing tells
    assert await task


async def test_conversations_are_told_their_share_of_the_window_and_closed_behind_it(world: World) -> None:
    peer = ScriptedPeer()
    world.peers.add(peer)
    task = await world.begin(window=20.0)
    assert peer.calls == ["drain 0.02"]
    await eventually(lambda: "close when idle" in peer.calls)
    world.peers.discard(peer)
    assert await task


async def test_time_that_is_up_ends_the_wait(world: World) -> None:
    world.peers.add(ScriptedPeer())
    assert not await world.drain.run(timeout=0.01, window=0.0)
    assert world.peers.on_settled is None


async def test_last_words_are_waited_for_as_long_as_there_is_grace(world: World) -> None:
    peer = ScriptedPeer()
    world.peers.add(peer)
    task = asyncio.create_task(world.drain.finish(grace=30.0))
    for _ in range(3):
        await asyncio.sleep(0)
    assert peer.calls == ["close when idle"]
    world.peers.discard(peer)
    await task
    silent = ScriptedPeer()
    world.peers.add(silent)
    await world.drain.finish(grace=0.01)
    assert silent.calls[-1] == "goodbye"
