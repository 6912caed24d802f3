"""Any interleaving of requests, dials, peers and time leaves no slot and no waiter behind, and breaks no limit."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast.core.pool import (
    Action,
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
from holdfast.core.retry import parse_retry_after

indices = st.integers(0, 1000)


class PoolMachine(RuleBasedStateMachine):
    """Plays the shell, the peer and the clock, and keeps its own books."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = PoolLimits(
            streams_per_connection=4,
            spread=2,
            max_connections=3,
            max_age=50.0,
            idle_timeout=10.0,
            wait_timeout=20.0,
            patience=1.0,
        )
        self.pool = ConnectionPool(self.limits, expected_capacity=4)
        self.now = 0.0
        self.waiting: list[PoolRequest] = []
        self.lent: list[tuple[PoolRequest, Member]] = []
        self.dials: list[Member] = []
        self.open: list[Member] = []

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Open):
                self.dials.append(action.member)
            elif isinstance(action, Lend):
                assert action.request is self.waiting[0], "somebody overtook"
                assert action.member.state is State.READY
                assert action.member in self.open
                carried = sum(1 for _, member in self.lent if member is action.member)
                assert carried < min(action.member.capacity, self.limits.streams_per_connection)
                self.waiting.pop(0)
                self.lent.append((action.request, action.member))
            elif isinstance(action, (Fail, Expire)):
                self.waiting.remove(action.request)
            else:
                assert isinstance(action, Close)
                assert not any(member is action.member for _, member in self.lent)
                self.open.remove(action.member)

    @rule()
    def request(self) -> None:
        waiter = PoolRequest()
        self.waiting.append(waiter)
        self.act(self.pool.request(waiter, self.now))

    @precondition(lambda self: self.waiting)
    @rule(index=indices)
    def cancel(self, index: int) -> None:
        self.pool.cancel(self.waiting.pop(index % len(self.waiting)))

    @precondition(lambda self: self.lent)
    @rule(index=indices, keep_alive=st.sampled_from([None, 1.0, 5.0]))
    def end_request(self, index: int, keep_alive: float | None = None) -> None:
        _, member = self.lent.pop(index % len(self.lent))
        self.act(self.pool.released(member, self.now, keep_alive=keep_alive))

    @precondition(lambda self: self.lent)
    @rule(index=indices)
    def lent_connection_is_found_closed(self, index: int) -> None:
        waiter, member = self.lent[index % len(self.lent)]
        if sum(1 for _, other in self.lent if other is member) > 1:
            return  # a connection that carries requests is not asked
        self.lent = [(other, place) for other, place in self.lent if place is not member]
        self.open.remove(member)
        self.waiting.insert(0, waiter)
        self.act(self.pool.lend_failed(waiter, member, self.now))

    @rule()
    def request_meets_the_end_of_a_kept_connection(self) -> None:
        self.act(self.pool.found_stale(self.now))

    @precondition(lambda self: self.dials)
    @rule(index=indices, capacity=st.sampled_from([0, 1, 2, 4, 100]), lifetime=st.floats(0, 1))
    def dial_succeeds(self, index: int, capacity: int, lifetime: float) -> None:
        member = self.dials.pop(index % len(self.dials))
        self.open.append(member)
        self.act(self.pool.opened(member, self.now, capacity=capacity, lifetime=lifetime))

    @precondition(lambda self: self.dials)
    @rule(index=indices)
    def dial_fails(self, index: int) -> None:
        self.act(self.pool.open_failed(self.dials.pop(index % len(self.dials)), self.now))

    @precondition(lambda self: self.open)
    @rule(index=indices, capacity=st.sampled_from([0, 1, 3, 4, 100]))
    def peer_changes_its_limit(self, index: int, capacity: int) -> None:
        self.act(self.pool.resized(self.open[index % len(self.open)], self.now, capacity))

    @precondition(lambda self: self.open)
    @rule(index=indices)
    def peer_goes_away(self, index: int) -> None:
        self.act(self.pool.drain(self.open[index % len(self.open)], self.now))

    @precondition(lambda self: self.open)
    @rule(index=indices)
    def peer_refuses(self, index: int) -> None:
        self.pool.refused(self.open[index % len(self.open)], self.now)

    @precondition(lambda self: self.open)
    @rule(index=indices)
    def connection_breaks(self, index: int) -> None:
        member = self.open.pop(index % len(self.open))
        self.lent = [(waiter, other) for waiter, other in self.lent if other is not member]
        self.act(self.pool.closed(member, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.act(self.pool.handle_timeout(self.now))

    @invariant()
    def books_agree(self) -> None:
        assert self.pool.waiting == len(self.waiting)
        assert self.pool.used == len(self.lent) == sum(member.used for member in self.pool.members)
        assert self.pool.connecting == len(self.dials)
        assert set(self.pool.members) == set(self.open)

    @invariant()
    def limits_hold(self) -> None:
        ready = [member for member in self.open if member.state is State.READY]
        assert len(ready) + len(self.dials) <= self.limits.max_connections

    @invariant()
    def whoever_waits_has_something_to_wait_for(self) -> None:
        if self.waiting:
            assert self.pool.next_deadline() <= self.now + self.limits.wait_timeout
            assert self.open or self.dials
        if self.waiting and not self.dials:
            # With no dial under way, no slot may lie idle while somebody waits.
            ready = [member for member in self.open if member.state is State.READY]
            assert all(
                member.used >= member.capacity or (member.used == 0 and member.keep_until <= self.now)
                for member in ready
            )

    def teardown(self) -> None:
        """Let everything come to rest: then nothing is left."""
        for _ in range(200):
            while self.dials:
                self.dial_succeeds(0, 4, 1.0)
            if not self.lent and not self.waiting:
                break
            if self.lent:
                self.end_request(0)
            else:
                self.time_passes(1.0)
        assert not self.waiting
        assert not self.lent
        for _ in range(20):
            self.time_passes(self.limits.idle_timeout)
            while self.dials:
                self.dial_succeeds(0, 4, 1.0)
        self.books_agree()
        assert not self.open
        assert not self.dials


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(st.binary(max_size=80) | st.text("0123456789 ,:-+.GMTSunNovMonday", max_size=40).map(str.encode))
def test_any_retry_after_is_a_number_of_seconds_or_none(value: bytes) -> None:
    seconds = parse_retry_after(value, 1e9)
    assert seconds is None or 0.0 <= seconds < 1e12
