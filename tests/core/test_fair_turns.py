"""Whose turn it is: those that send now and then come before those that send without end."""

from __future__ import annotations

from holdfast.core.fair_turns import MAX_DEBT, FairTurns, UserTurns


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


# -- users --


def serve_user(turns: UserTurns[str, str], user: str, *, cost: float = 1.0, has_more: bool = True) -> str:
    """Serve the next peer, which is this user's; return who it was."""
    peer = turns.next()
    assert peer is not None
    turns.served(peer, user, cost, has_more=has_more)
    return peer


def test_one_peer_of_a_user_does_not_wait_for_all_of_another_one() -> None:
    turns = UserTurns[str, str](1.0)
    for number in range(50):
        turns.enter(f"{number}", "many")
    for _ in range(60):
        serve_user(turns, "many")
    for _ in range(5):  # also where it comes again at once
        turns.enter("one", "single")
        before = 0
        while (peer := turns.next()) != "one":
            assert peer is not None
            turns.served(peer, "many", 1.0, has_more=True)
            before += 1
        turns.served("one", "single", 0.1, has_more=False)
        assert before <= 1


def test_peers_of_one_user_take_turns() -> None:
    turns = UserTurns[str, str](1.0)
    for peer in "abc":
        turns.enter(peer, "u")
    turns.enter("a", "u")
    assert len(turns) == 3
    assert "".join(serve_user(turns, "u") for _ in range(6)) == "abcabc"


def test_peer_that_has_become_another_users_waits_as_that_one() -> None:
    turns = UserTurns[str, str](1.0)
    turns.enter("x", "stranger")
    turns.enter("y", "stranger")
    assert serve_user(turns, "tenant") == "x"
    for _ in range(3):
        turns.enter("z", "tenant")
        turns.leave("z")
    assert len(turns) == 2
    assert sorted([serve_user(turns, "tenant"), serve_user(turns, "stranger")]) == ["x", "y"]
    # One that has nothing to do any more is its new user's when it comes again.
    while turns.next() != "y":
        turns.served("x", "tenant", 1.0, has_more=True)
    turns.served("y", "tenant", 1.0, has_more=False)
    assert "y" not in turns


def test_time_of_a_peer_that_has_left_is_its_users() -> None:
    turns = UserTurns[str, str](1.0)
    turns.enter("a1", "a")
    turns.enter("a2", "a")
    turns.enter("b", "b")
    assert turns.next() == "a1"
    turns.leave("a1")
    turns.leave("a1")
    turns.served("a1", "a", 3.0, has_more=False)
    assert [serve_user(turns, user) for user in "bbb"] == ["b", "b", "b"]
    assert serve_user(turns, "a") == "a2"


def test_nothing_is_kept_of_peers_that_have_done() -> None:
    turns = UserTurns[str, str](1.0)
    assert turns.next() is None
    turns.served("nobody", "u", 1.0, has_more=False)
    turns.enter("a", "u")
    turns.enter("b", "v")
    assert serve_user(turns, "u", has_more=False) == "a"
    assert "a" in turns  # it waits for its turn if it comes again
    turns.enter("c", "u")
    turns.leave("c")
    assert serve_user(turns, "v", has_more=False) == "b"
    assert len(turns) == 0
    assert turns.next() is None
    assert "a" not in turns
    assert "b" not in turns


def test_last_peer_of_a_user_that_leaves_takes_no_turn() -> None:
    turns = UserTurns[str, str](1.0)
    turns.enter("a", "u")
    turns.leave("a")
    turns.enter("b", "v")
    assert serve_user(turns, "v") == "b"
    turns.leave("b")
    assert turns.next() is None


def test_peer_that_has_had_a_round_is_nobodys() -> None:
    turns = UserTurns[str, str](1.0)
    turns.enter("a", "u")
    turns.enter("b", "u")
    serve_user(turns, "u")
    serve_user(turns, "u")
    assert serve_user(turns, "u", has_more=False) == "a"
    assert "a" not in turns
