"""Whose turn it is: those that send now and then come before those that send without end."""

from __future__ import annotations

from holdfast.core.fair_turns import MAX_DEBT, FairTurns


def serve(turns: FairTurns[str], rounds: int, *, cost: float = 1.0) -> str:
    """Serve so many turns of peers that never have done; return who they were."""
    order = ""
    for _ in range(rounds):
        peer = turns.next()
        assert peer is not None
        order += peer
        turns.served(peer, cost, has_more=True)
    return order


def test_nobody_waits_at_first() -> None:
    turns = FairTurns[str](1.0)
    assert turns.next() is None
    assert len(turns) == 0


def test_peers_that_never_have_done_take_turns() -> None:
    turns = FairTurns[str](1.0)
    for peer in "abc":
        turns.enter(peer)
    turns.enter("a")
    assert len(turns) == 3
    assert serve(turns, 9) == "abcabcabc"


def test_peer_is_served_until_its_share_is_used_up() -> None:
    turns = FairTurns[str](1.0)
    turns.enter("a")
    turns.enter("b")
    assert serve(turns, 8, cost=0.5) == "aabbaabb"


def test_newcomer_is_served_before_those_that_have_had_their_share() -> None:
    turns = FairTurns[str](1.0)
    for number in range(50):
        turns.enter(f"{number}")
    for _ in range(60):
        serve(turns, 1)
    turns.enter("honest")
    assert turns.next() == "honest"


def test_peer_that_comes_again_at_once_is_no_newcomer() -> None:
    turns = FairTurns[str](1.0)
    turns.enter("a")
    turns.enter("b")
    turns.next()
    turns.served("a", 0.1, has_more=False)
    assert "a" in turns  # it waits for its turn if it comes again
    assert len(turns) == 1
    turns.enter("a")
    assert serve(turns, 3) == "bab"
    turns.leave("b")
    turns.next()
    turns.served("a", 0.1, has_more=False)
    assert "a" not in turns  # a whole round has passed
    assert turns.next() is None


def test_peer_that_has_done_is_forgotten_within_a_round() -> None:
    turns = FairTurns[str](1.0)
    turns.enter("a")
    turns.next()
    turns.served("a", 0.1, has_more=False)
    turns.enter("b")
    assert serve(turns, 2) == "bb"
    assert "a" not in turns
    turns.leave("b")
    turns.enter("a")
    turns.next()
    turns.served("a", 0.1, has_more=False)
    assert turns.next() is None
    assert "a" not in turns


def test_long_step_is_paid_for_within_bounds() -> None:
    turns = FairTurns[str](1.0)
    turns.enter("a")
    turns.enter("b")
    assert turns.next() == "a"
    turns.served("a", 1000.0, has_more=True)
    assert serve(turns, MAX_DEBT + 2) == "b" * MAX_DEBT + "ba"


def test_peer_that_leaves_while_it_is_served_is_forgotten() -> None:
    turns = FairTurns[str](1.0)
    turns.enter("a")
    turns.next()
    turns.leave("a")
    turns.served("a", 1.0, has_more=True)
    assert "a" not in turns
    assert len(turns) == 0
