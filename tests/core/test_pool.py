"""The pool's decisions, told as stories of one origin: every step is a call, and what it answers is an action."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from holdfast.core.pool import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    REFUSAL_REST,
    Close,
    ConnectionPool,
    Expire,
    Fail,
    Lend,
    Open,
    PoolLimits,
    PoolRequest,
)
from holdfast.core.pool_member import Member, State


class Story:
    """A pool whose shell carries out nothing but remembers: dials are answered by the test."""

    def __init__(self, *, expected: int = 32, **limits: float) -> None:
        self.pool = ConnectionPool(PoolLimits(**limits), expected_capacity=expected)  # type: ignore[arg-type]
        self.dials: list[Member] = []
        self.lent: dict[PoolRequest, Member] = {}
        self.order: list[PoolRequest] = []
        self.failed: list[PoolRequest] = []
        self.expired: list[PoolRequest] = []
        self.closed: list[Member] = []
        self.now = 0.0

    def act(self, actions: list[Any]) -> list[Any]:
        for action in actions:
            if isinstance(action, Open):
                self.dials.append(action.member)
            elif isinstance(action, Lend):
                assert action.member.state is State.READY
                self.lent[action.request] = action.member
                self.order.append(action.request)
            elif isinstance(action, Fail):
                self.failed.append(action.request)
            elif isinstance(action, Expire):
                self.expired.append(action.request)
            else:
                assert isinstance(action, Close)
                assert action.member.used == 0
                self.closed.append(action.member)
        return actions

    def ask(self, count: int = 1) -> list[PoolRequest]:
        waiters = [PoolRequest() for _ in range(count)]
        for waiter in waiters:
            self.act(self.pool.request(waiter, self.now))
        return waiters

    def open(self, member: Member | None = None, *, capacity: int = 32) -> Member:
        member = member or self.dials[0]
        self.dials.remove(member)
        self.act(self.pool.opened(member, self.now, capacity=capacity))
        return member

    def open_all(self, *, capacity: int = 32) -> list[Member]:
        return [self.open(member, capacity=capacity) for member in list(self.dials)]

    def fail(self, member: Member | None = None) -> None:
        member = member or self.dials[0]
        self.dials.remove(member)
        self.act(self.pool.open_failed(member, self.now))

    def end(self, waiter: PoolRequest, *, keep_alive: float | None = None) -> None:
        self.act(self.pool.released(self.lent.pop(waiter), self.now, keep_alive=keep_alive))

    def at(self, now: float) -> list[Any]:
        self.now = now
        return self.act(self.pool.handle_timeout(now))

    @property
    def used(self) -> list[int]:
        return [member.used for member in self.pool.members]


def loads(story: Story) -> Counter[Member]:
    return Counter(story.lent.values())


# -- lending -------------------------------------------------------------------------------------------


def test_first_request_opens_one_connection_and_gets_it() -> None:
    story = Story()
    (waiter,) = story.ask()
    assert len(story.dials) == 1
    assert (story.pool.waiting, story.pool.connecting, story.pool.used) == (1, 1, 0)
    member = story.open()
    assert story.lent == {waiter: member}
    assert (story.pool.waiting, story.pool.connecting, story.pool.used) == (0, 0, 1)


def test_free_slot_is_lent_at_once() -> None:
    story = Story()
    story.ask()
    member = story.open()
    (waiter,) = story.ask()
    assert story.lent[waiter] is member
    assert story.dials == []


def test_waiters_are_served_in_order_and_none_overtakes() -> None:
    story = Story(expected=1, max_connections=1)
    waiters = story.ask(4)
    story.open(capacity=1)
    for waiter in waiters[:3]:
        story.end(waiter)
    assert story.order == waiters


def test_cancelled_waiter_is_passed_over_and_leaves_nothing() -> None:
    story = Story(expected=1, max_connections=1)
    first, second, third = story.ask(3)
    story.open(capacity=1)
    story.pool.cancel(second)
    story.pool.cancel(second)
    story.end(first)
    assert story.order == [first, third]
    assert story.pool.waiting == 0


def test_cancelling_one_that_was_served_changes_nothing() -> None:
    story = Story()
    (waiter,) = story.ask()
    story.open()
    story.pool.cancel(waiter)
    assert story.pool.used == 1


def test_slot_goes_to_one_waiter_alone() -> None:
    story = Story(expected=1, max_connections=1)
    first, *_ = story.ask(5)
    story.open(capacity=1)
    before = len(story.order)
    story.end(first)
    assert len(story.order) == before + 1


def test_http1_lends_the_last_connection_used_so_that_surplus_grows_idle() -> None:
    story = Story(expected=1)
    waiters = story.ask(3)
    members = story.open_all(capacity=1)
    for waiter in waiters:
        story.end(waiter)
    (again,) = story.ask()
    assert story.lent[again] is members[2]


# -- spreading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "connections"), [(1, 1), (8, 1), (9, 2), (17, 3), (25, 4), (128, 4), (129, 5)]
)
def test_requests_are_spread_over_four_connections_before_any_is_filled(requests: int, connections: int) -> None:
    story = Story()
    story.ask(requests)
    assert len(story.dials) == connections


def test_burst_on_a_cold_pool_is_shared_evenly() -> None:
    story = Story()
    story.ask(100)
    members = story.open_all()
    assert loads(story) == dict.fromkeys(members, 25)
    assert story.pool.waiting == 0


def test_load_that_grows_one_by_one_ends_evenly() -> None:
    story = Story()
    for _ in range(100):
        story.ask()
        story.open_all()
    assert max(story.used) <= 25


def test_warm_slot_is_lent_although_another_connection_is_about_to_open() -> None:
    story = Story()
    story.ask()
    member = story.open()
    waiters = story.ask(20)
    assert len(story.dials) == 2
    assert all(story.lent[waiter] is member for waiter in waiters)


def test_queue_takes_free_slots_without_regard_to_fairness_once_a_dial_is_overdue() -> None:
    story = Story(patience=1.0)
    story.ask(40)
    story.open()
    assert story.used == [10]
    story.at(1.0)
    assert story.used == [32]


def test_light_load_uses_the_oldest_connections_so_that_surplus_grows_idle() -> None:
    story = Story()
    waiters = story.ask(100)
    members = story.open_all()
    for waiter in waiters:
        story.end(waiter)
    story.ask(8)
    assert [member.used for member in members] == [8, 0, 0, 0]


def test_request_beyond_the_wanted_connections_takes_any_that_is_free() -> None:
    story = Story(spread=1)
    story.ask(64)
    first, second = story.open_all()
    story.act(story.pool.resized(first, 0.0, 0))
    story.act(story.pool.resized(second, 0.0, 40))
    waiters = list(story.lent)
    for waiter in [waiter for waiter in waiters if story.lent[waiter] is second]:
        story.end(waiter)
    (again,) = story.ask()
    assert story.lent[again] is second


# -- limits --------------------------------------------------------------------------------------------


def test_connections_never_exceed_their_maximum() -> None:
    story = Story(expected=1, max_connections=3)
    story.ask(10)
    assert len(story.dials) == 3
    story.open_all(capacity=1)
    assert (story.dials, story.pool.waiting) == ([], 7)


def test_own_limit_holds_where_the_peer_allows_more() -> None:
    story = Story(streams_per_connection=2, expected=2, max_connections=1)
    story.ask(3)
    story.open(capacity=100)
    assert (story.used, story.pool.waiting) == ([2], 1)


def test_peers_limit_holds_where_we_would_take_more() -> None:
    story = Story(max_connections=1)
    story.ask(3)
    story.open(capacity=2)
    assert (story.used, story.pool.waiting) == ([2], 1)


def test_lowered_limit_keeps_what_runs_and_lends_no_more() -> None:
    story = Story(max_connections=1)
    waiters = story.ask(4)
    member = story.open()
    story.act(story.pool.resized(member, 0.0, 2))
    story.ask()
    story.end(waiters[0])
    story.end(waiters[1])
    assert (story.used, story.pool.waiting) == ([2], 1)
    story.end(waiters[2])
    assert (story.used, story.pool.waiting) == ([2], 0)


def test_raised_limit_serves_those_who_wait() -> None:
    story = Story(max_connections=1)
    story.ask(3)
    member = story.open(capacity=1)
    story.act(story.pool.resized(member, 0.0, 3))
    assert story.used == [3]


def test_peer_that_takes_nothing_is_not_dialled_again_and_again() -> None:
    story = Story()
    story.ask(3)
    member = story.open(capacity=0)
    assert (story.dials, story.pool.waiting) == ([], 3)
    story.ask(3)
    assert story.dials == []
    story.act(story.pool.closed(member, 0.0))
    assert len(story.dials) == 1
    story.ask()
    assert len(story.dials) == 1


def test_size_of_a_connection_that_is_not_lent_from_is_of_no_interest() -> None:
    story = Story()
    story.ask()
    member = story.open()
    story.act(story.pool.drain(member, 0.0))
    assert story.pool.resized(member, 0.0, 5) == []


def test_unknown_protocol_turns_out_as_http1_and_more_connections_are_opened() -> None:
    story = Story()
    story.ask(20)
    assert len(story.dials) == 3
    story.open(capacity=1)
    assert len(story.dials) == 19
    story.open_all(capacity=1)
    assert story.pool.waiting == 0


# -- dials that fail or hang ---------------------------------------------------------------------------


def test_failed_dial_fails_those_who_waited_since_before_it_and_dials_for_the_others() -> None:
    story = Story()
    first, *others = story.ask(5)
    story.fail()
    assert story.failed == [first]
    assert len(story.dials) == 1
    story.fail()
    assert story.failed == [first, *others]
    assert (story.dials, story.pool.waiting, story.pool.connecting) == ([], 0, 0)


def test_failed_http1_dial_fails_one_waiter() -> None:
    story = Story(expected=1)
    waiters = story.ask(3)
    story.fail(story.dials[2])
    assert story.failed == [waiters[0]]
    assert len(story.dials) == 2


def test_failed_dial_of_one_whom_another_connection_has_served_harms_nobody() -> None:
    story = Story(expected=1)
    first, second, third = story.ask(3)
    story.open(story.dials[1], capacity=1)
    story.open(story.dials[1], capacity=1)
    assert story.order == [first, second]
    story.fail()
    assert story.failed == []
    assert len(story.dials) == 1
    story.open(capacity=1)
    assert story.order == [first, second, third]


def test_hung_dial_is_helped_by_another_and_each_further_one_gets_more_time() -> None:
    story = Story(patience=1.0)
    (waiter,) = story.ask()
    assert story.pool.next_deadline() == 1.0
    story.at(0.9)
    assert len(story.dials) == 1
    story.at(1.0)
    assert len(story.dials) == 2
    assert story.pool.next_deadline() == 3.0
    story.at(2.9)
    assert len(story.dials) == 2
    story.at(3.0)
    assert len(story.dials) == 3
    assert story.pool.next_deadline() == 7.0
    member = story.open(story.dials[1])
    assert story.lent == {waiter: member}
    story.fail()
    assert story.failed == []


def test_dial_that_hangs_while_nobody_waits_is_not_helped() -> None:
    story = Story(patience=1.0)
    (waiter,) = story.ask()
    story.pool.cancel(waiter)
    story.at(5.0)
    assert len(story.dials) == 1
    assert story.pool.next_deadline() == math.inf


def test_only_dials_that_are_due_are_given_up() -> None:
    story = Story(patience=1.0, expected=1)
    story.ask()
    story.now = 0.5
    story.ask()
    story.at(1.0)
    assert len(story.dials) == 3
    assert story.pool.next_deadline() == 1.5


def test_spare_connection_that_fails_is_tried_again_after_a_growing_pause() -> None:
    story = Story(min_warm=1)
    story.act(story.pool.start(0.0))
    pause = FIRST_PAUSE
    for _ in range(10):
        story.fail()
        assert story.dials == []
        assert story.pool.next_deadline() == story.now + pause
        story.at(story.now + pause)
        assert len(story.dials) == 1
        pause = min(pause * 2, LONGEST_PAUSE)
    story.open()
    story.act(story.pool.closed(next(story.pool.members), story.now))
    assert len(story.dials) == 1
    story.fail()
    assert story.pool.next_deadline() == story.now + FIRST_PAUSE


def test_request_does_not_wait_for_the_pause_of_spare_connections() -> None:
    story = Story(min_warm=1)
    story.act(story.pool.start(0.0))
    story.fail()
    story.ask()
    assert len(story.dials) == 1


# -- waiting -------------------------------------------------------------------------------------------


def test_waiter_gives_up_at_its_deadline_and_later_ones_go_on() -> None:
    story = Story(wait_timeout=5.0, max_connections=1, expected=1)
    _, second = story.ask(2)
    story.open(capacity=1)
    story.now = 2.0
    (third,) = story.ask()
    story.at(2.0)
    assert story.pool.next_deadline() == 5.0
    story.at(5.0)
    assert story.expired == [second]
    assert story.pool.next_deadline() == 7.0
    story.at(7.0)
    assert story.expired == [second, third]


# -- connections that go -------------------------------------------------------------------------------


def test_draining_connection_is_not_lent_and_closes_after_its_last_request() -> None:
    story = Story()
    first, second = story.ask(2)
    member = story.open()
    story.act(story.pool.drain(member, 0.0))
    assert member.state is State.DRAINING
    (third,) = story.ask()
    other = story.open()
    assert story.lent[third] is other
    story.end(first)
    assert story.closed == []
    story.end(second)
    assert story.closed == [member]
    assert member.state is State.GONE
    assert story.used == [1]


def test_drain_without_requests_closes_at_once() -> None:
    story = Story()
    (waiter,) = story.ask()
    member = story.open()
    story.end(waiter)
    story.act(story.pool.drain(member, 0.0))
    assert story.closed == [member]
    assert story.pool.drain(member, 0.0) == []


def test_drained_http2_connection_is_replaced_before_the_next_request() -> None:
    story = Story()
    story.ask(2)
    story.act(story.pool.drain(story.open(), 0.0))
    assert len(story.dials) == 1


def test_drained_http1_connection_is_not_replaced_without_need() -> None:
    story = Story(expected=1)
    story.ask()
    story.act(story.pool.drain(story.open(capacity=1), 0.0))
    assert story.dials == []


def test_lost_connection_frees_its_slots_and_is_never_lent_again() -> None:
    story = Story()
    waiters = story.ask(8)
    member = story.open()
    story.act(story.pool.closed(member, 0.0))
    assert (story.used, story.pool.used) == ([], 0)
    for waiter in waiters:
        story.end(waiter)
    assert story.pool.used == 0
    (again,) = story.ask()
    assert story.lent.get(again) is None
    assert story.open() is not member


def test_lost_draining_connection_is_forgotten() -> None:
    story = Story(expected=1)
    story.ask()
    member = story.open(capacity=1)
    story.act(story.pool.drain(member, 0.0))
    story.act(story.pool.closed(member, 0.0))
    assert (story.used, story.pool.used, story.closed) == ([], 0, [])
    assert story.pool.closed(member, 0.0) == []


def test_connection_that_refused_rests_while_there_is_another() -> None:
    story = Story(min_warm=2)
    story.act(story.pool.start(0.0))
    first, second = story.open_all()
    story.pool.refused(first, 0.0)
    (waiter,) = story.ask()
    assert story.lent[waiter] is second
    story.end(waiter)
    story.now = REFUSAL_REST
    (waiter,) = story.ask()
    assert story.lent[waiter] is first


def test_connection_that_refused_is_lent_where_there_is_no_other() -> None:
    story = Story()
    story.ask()
    member = story.open()
    story.pool.refused(member, 0.0)
    (waiter,) = story.ask()
    assert story.lent[waiter] is member


# -- age and idleness ----------------------------------------------------------------------------------


def test_connection_retires_before_its_greatest_age_by_chance() -> None:
    story = Story(max_age=100.0, idle_timeout=1000.0)
    story.ask()
    member = story.dials.pop()
    story.act(story.pool.opened(member, 0.0, capacity=32, lifetime=0.0))
    assert story.pool.next_deadline() == 80.0
    story.at(79.9)
    assert member.state is State.READY
    story.at(80.0)
    assert member.state is State.DRAINING
    assert len(story.dials) == 1


def test_idle_connection_is_closed_and_a_used_one_is_not() -> None:
    story = Story(idle_timeout=10.0, expected=1)
    first, second = story.ask(2)
    busy, idle = story.open_all(capacity=1)
    story.now = 5.0
    story.end(second)
    story.at(14.9)
    assert story.closed == []
    story.at(15.0)
    assert story.closed == [idle]
    assert busy.state is State.READY
    story.end(first)
    story.at(25.0)
    assert story.closed == [idle, busy]
    assert story.pool.next_deadline() == math.inf


def test_warm_connections_stay_and_are_replaced_when_lost() -> None:
    story = Story(min_warm=2, idle_timeout=10.0, max_age=1000.0)
    story.act(story.pool.start(0.0))
    members = story.open_all()
    story.at(10.0)
    assert story.closed == []
    assert story.pool.next_deadline() == 20.0
    story.at(20.0)
    assert story.closed == []
    story.act(story.pool.closed(members[0], 20.0))
    assert len(story.dials) == 1


def test_surplus_is_closed_newest_first_when_the_load_is_gone() -> None:
    story = Story(idle_timeout=10.0)
    waiters = story.ask(25)
    members = story.open_all()
    for waiter in waiters[1:]:
        story.end(waiter)
    story.at(10.0)
    assert story.closed == [members[3], members[2], members[1]]


# -- the end -------------------------------------------------------------------------------------------


def test_close_ends_everything_and_opens_nothing() -> None:
    story = Story(expected=1, max_connections=3, min_warm=1)
    waiters = story.ask(5)
    ready = story.open(capacity=1)
    draining = story.open(capacity=1)
    story.act(story.pool.drain(draining, 0.0))
    dials = list(story.dials)
    story.act(story.pool.close())
    assert story.expired == waiters[2:]
    assert set(story.closed) == {ready, draining, *dials}
    assert (story.used, story.pool.used, story.pool.waiting, story.pool.connecting) == ([], 0, 0, 0)
    assert story.pool.next_deadline() == math.inf
    assert story.pool.opened(dials[0], 0.0, capacity=1) == []
    assert story.pool.open_failed(dials[0], 0.0) == []
    assert story.at(100.0) == []


# -- kept-alive HTTP/1.1 connections -------------------------------------------------------------------


def idle(count: int, **limits: float) -> tuple[Story, list[Member]]:
    """HTTP/1.1 connections that were used and are free, the last one used at the end."""
    story = Story(expected=1, **limits)
    waiters = story.ask(count)
    members = story.open_all(capacity=1)
    for waiter in waiters:
        story.end(waiter)
    return story, members


def test_waiter_whose_connection_is_found_closed_keeps_its_place_and_deadline() -> None:
    story, (member,) = idle(1, max_connections=1, wait_timeout=30.0)
    first, second = story.ask(2)
    story.at(10.0)
    assert story.lent.pop(first) is member
    story.act(story.pool.lend_failed(first, member, story.now))
    assert member.state is State.GONE
    assert story.pool.waiting == 2
    assert list(story.pool.members) == []
    story.open(capacity=1)
    assert story.order[-1] is first
    story.at(30.0)
    assert story.expired == [second]


def test_waiter_gets_the_next_connection_where_the_first_is_found_closed() -> None:
    story, (other, member) = idle(2)
    (waiter,) = story.ask()
    assert story.lent.pop(waiter) is member
    story.act(story.pool.lend_failed(waiter, member, story.now))
    assert story.lent == {waiter: other}
    assert story.dials == []


def test_end_of_a_kept_connection_closes_those_that_were_idle_for_longer() -> None:
    story, (first, second, _) = idle(3)
    story.ask()
    busy = story.lent[story.ask()[0]]
    assert busy is second
    story.act(story.pool.found_stale(story.now))
    assert story.closed == [first]
    assert busy.state is State.READY


def test_end_of_a_kept_connection_says_nothing_of_http2() -> None:
    story = Story()
    (waiter,) = story.ask()
    member = story.open()
    story.end(waiter)
    assert story.act(story.pool.found_stale(story.now)) == []
    assert member.state is State.READY


@pytest.mark.parametrize(("keep_alive", "until"), [(5.0, 4.0), (1.0, 0.5)])
def test_connection_is_given_up_before_its_peer_does_so_however_many_are_kept_warm(
    keep_alive: float, until: float
) -> None:
    story = Story(expected=1, min_warm=1)
    story.act(story.pool.start(0.0))
    member = story.open(capacity=1)
    (waiter,) = story.ask()
    story.end(waiter, keep_alive=keep_alive)
    assert story.pool.next_deadline() == until
    story.at(until - 0.01)
    assert story.closed == []
    story.at(until)
    assert story.closed == [member]
    assert len(story.dials) == 1


def test_connection_that_its_peer_is_about_to_close_is_not_lent() -> None:
    story, _ = idle(1)
    (waiter,) = story.ask()
    story.end(waiter, keep_alive=5.0)
    story.now = 4.5  # before the timer was looked at
    (waiter,) = story.ask()
    assert story.lent == {}
    new = story.open(capacity=1)
    assert story.lent == {waiter: new}


def test_answer_that_says_nothing_ends_what_an_earlier_one_said() -> None:
    story, (member,) = idle(1, idle_timeout=60.0)
    for keep_alive in (5.0, None):
        (waiter,) = story.ask()
        story.end(waiter, keep_alive=keep_alive)
    story.at(59.0)
    assert story.closed == []
    story.at(60.0)
    assert story.closed == [member]
