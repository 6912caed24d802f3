"""The set of open connections, whatever they speak."""

from __future__ import annotations

import pytest

from holdfast.errors import Overloaded, RateLimited
from holdfast.server.peers import RESERVED, Peers
from tests.server.stage import Stage


class ScriptedPeer:
    """A connection that notes what it is told."""

    def __init__(self, *, is_conversation: bool = True, is_busy: bool = True, address: str = "192.0.2.1") -> None:
        self.is_conversation = is_conversation
        self.is_busy = is_busy
        self.stream_count = 0
        self.address = address
        self.number = 0
        self.is_limited = False
        self.descriptor: int | None = None
        self.calls: list[str] = []

    def drain(self, window: float) -> None:
        self.calls.append(f"drain {window:g}")

    def close_when_idle(self) -> None:
        self.calls.append("close when idle")

    def say_goodbye(self) -> None:
        self.calls.append("goodbye")

    def revoke(self, removed: object) -> None:
        self.calls.append(f"revoke {removed}")

    def abort(self) -> None:
        self.calls.append("abort")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_connections_are_numbered_and_counted_until_they_are_gone(stage: Stage) -> None:
    peers = Peers(stage.timers, max_connections=2)
    first, second, third = (ScriptedPeer() for _ in range(3))
    assert [peers.admit(first), peers.admit(second), peers.admit(third)] == [None, None, None]
    assert [first.number, second.number, third.number] == [1, 2, 3]
    assert [peer.is_limited for peer in (first, second, third)] == [False, False, True]
    peers.discard(third)
    peers.discard(third)
    peers.discard(first)
    assert len(peers) == 1
    assert peers.admit(fourth := ScriptedPeer()) is None
    assert not fourth.is_limited


def test_oldest_idle_stranger_goes_first_where_all_slots_are_taken(stage: Stage) -> None:
    peers = Peers(stage.timers, max_connections=3)
    known, busy, idle = ScriptedPeer(is_busy=False), ScriptedPeer(), ScriptedPeer(is_busy=False)
    for peer in (known, busy, idle):
        peers.admit(peer)
    peers.known(known)
    peers.known(known)
    peers.admit(first := ScriptedPeer(is_busy=False))
    assert (known.calls, busy.calls, idle.calls) == ([], [], ["abort"])
    peers.admit(second := ScriptedPeer(is_busy=False))
    assert first.calls == ["abort"]
    assert (len(peers), second.is_limited) == (3, False)


def test_probes_get_in_while_all_slots_are_held(stage: Stage) -> None:
    peers = Peers(stage.timers, max_connections=2)
    for peer in (ScriptedPeer(), ScriptedPeer()):
        peers.admit(peer)
        peers.known(peer)
    probes = [ScriptedPeer(is_busy=False) for _ in range(RESERVED)]
    for probe in probes:
        assert peers.admit(probe) is None
        with pytest.raises(Overloaded):
            peers.check_slot(probe)
    assert all(probe.calls == [] for probe in probes)
    assert peers.admit(another := ScriptedPeer()) is None
    assert (another.is_limited, probes[0].calls, probes[1].calls) == (True, ["abort"], [])
    assert len(peers) == 2 + RESERVED


def test_who_is_refused_lingers_only_while_few_do(stage: Stage) -> None:
    peers = Peers(stage.timers, max_connections=1)
    for _ in range(1 + RESERVED):
        assert peers.admit(ScriptedPeer()) is None
    refused = [ScriptedPeer() for _ in range(RESERVED + 1)]
    assert all(isinstance(peers.admit(peer), Overloaded) for peer in refused)
    assert [peer.calls for peer in refused] == [[]] * RESERVED + [["abort"]]
    for peer in refused:
        peers.discard(peer)
    assert len(peers) == 1 + RESERVED


def test_last_descriptors_are_for_probes_and_said_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    peers = Peers(stage.timers, max_connections=100, max_descriptor=50)
    first, second, third = ScriptedPeer(), ScriptedPeer(is_busy=False), ScriptedPeer()
    first.descriptor, second.descriptor, third.descriptor = 49, 50, 51
    for peer in (first, second, third):
        assert peers.admit(peer) is None
    assert [peer.is_limited for peer in (first, second, third)] == [False, True, True]
    (warning,) = caplog.records
    assert warning.message.startswith("50 descriptors are in use, nearly as many as may be (ulimit -n)")


def test_open_connections_of_an_address_are_bounded_whatever_they_become(stage: Stage) -> None:
    peers = Peers(stage.timers, max_connections=100, per_address=2)
    first, second, other = ScriptedPeer(), ScriptedPeer(), ScriptedPeer(address="192.0.2.2")
    assert [peers.admit(first), peers.admit(second), peers.admit(other)] == [None, None, None]
    refused = ScriptedPeer()
    assert isinstance(peers.admit(refused), RateLimited)
    peers.discard(refused)
    peers.discard(first)
    peers.add(conversation := ScriptedPeer(), "192.0.2.1")
    assert isinstance(peers.admit(ScriptedPeer()), RateLimited)
    peers.discard(conversation)
    assert peers.admit(ScriptedPeer()) is None
    v6 = [ScriptedPeer(address=f"2001:db8::{number}") for number in range(3)]
    assert [type(peers.admit(peer)) for peer in v6] == [type(None), type(None), RateLimited]


def test_arrivals_are_bounded_by_address(stage: Stage) -> None:
    peers = Peers(stage.timers, max_connections=10, connection_rate=2)
    assert [peers.admit(ScriptedPeer()), peers.admit(ScriptedPeer())] == [None, None]
    assert isinstance(peers.admit(ScriptedPeer()), RateLimited)
    assert peers.admit(ScriptedPeer(address="192.0.2.2")) is None
    peers.configure(max_connections=10, connection_rate=None)
    assert peers.admit(ScriptedPeer()) is None


def test_bounds_can_change_for_connections_to_come(stage: Stage) -> None:
    peers = Peers(stage.timers, max_connections=1)
    peers.admit(ScriptedPeer())
    peers.configure(max_connections=2, connection_rate=None)
    assert peers.admit(ScriptedPeer()) is None


def test_everybody_is_told_in_every_way(stage: Stage) -> None:
    peers = stage.peers
    first, second = ScriptedPeer(), ScriptedPeer(is_conversation=False)
    peers.add(first)
    peers.admit(second)
    peers.drain(2.0)
    peers.close_when_idle()
    peers.revoke({("key", 0)})
    peers.say_goodbye()
    peers.abort()
    assert (
        first.calls
        == second.calls
        == [
            "drain 2",
            "close when idle",
            "revoke {('key', 0)}",
            "goodbye",
            "abort",
        ]
    )


def test_conversation_that_comes_late_closes_when_it_is_idle_and_a_probe_does_not(stage: Stage) -> None:
    stage.peers.close_when_idle()
    conversation, probe = ScriptedPeer(), ScriptedPeer(is_conversation=False)
    stage.peers.add(conversation)
    stage.peers.admit(probe)
    assert (conversation.calls, probe.calls) == (["close when idle"], [])


def test_settled_is_said_when_the_last_busy_connection_is_gone(stage: Stage) -> None:
    peers, settled = stage.peers, []
    busy, answering, idle = ScriptedPeer(), ScriptedPeer(), ScriptedPeer(is_busy=False)
    for peer in (busy, answering, idle):
        peers.add(peer)
    peers.on_settled = lambda: settled.append(len(peers))
    peers.discard(busy)
    assert settled == []
    answering.is_busy = False
    peers.check_settled()
    assert settled == [2]


def test_many_that_leave_while_one_is_busy_are_not_looked_through_each_time(stage: Stage) -> None:
    class Probe(ScriptedPeer):
        """Counts how often it is asked whether it is busy."""

        asked = 0

        @property
        def is_busy(self) -> bool:
            Probe.asked += 1
            return False

        @is_busy.setter
        def is_busy(self, value: bool) -> None: ...

    peers, settled = stage.peers, []
    probes = [Probe() for _ in range(100)]
    for peer in (*probes, busy := ScriptedPeer()):
        peers.add(peer)
    peers.on_settled = lambda: settled.append(len(peers))
    for probe in probes:
        peers.discard(probe)
    assert Probe.asked <= 100
    peers.discard(busy)
    assert settled == [0]


def test_statistics_tell_conversations_from_other_connections(stage: Stage) -> None:
    reader = ScriptedPeer()
    reader.stream_count = 3
    stage.peers.add(reader)
    stage.peers.add(ScriptedPeer())
    stage.peers.admit(ScriptedPeer(is_conversation=False))
    statistics = stage.peers.statistics()
    assert (statistics.open, statistics.conversations, statistics.most_streams) == (3, 2, 3)
