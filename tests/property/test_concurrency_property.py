"""Whatever comes in whatever order: the adaptive limit keeps its bounds, no place is lost, nobody starves."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdfast.admission.queue import Admission, Ticket
from holdfast.config import BreakerConfig, ProviderConfig, TimeoutsConfig
from holdfast.config.limits import AdaptiveConcurrencyConfig, LimitConfig, LimitsConfig, QueueConfig
from holdfast.core.limits.gradient import Flight, GradientLimit, GradientLimits
from holdfast.dialects.ask import Ask, Bounds
from holdfast.errors import HoldfastError, QueueFull, RateLimited
from holdfast.generation.route import Choice, Route, Target
from holdfast.upstream.capacity import Capacity, ProviderLease, capacity_of
from holdfast.upstream.health import Health

# -- the limit -------------------------------------------------------------------------------------------

step = st.one_of(
    st.tuples(st.just("fill"), st.integers(1, 40)),
    st.tuples(st.just("answer"), st.integers(0, 40)),
    st.tuples(st.just("release"), st.integers(0, 40)),
    st.tuples(st.just("overload"), st.integers(0, 40)),
    st.tuples(st.just("wait"), st.integers(0, 400)),
)


@given(
    st.integers(1, 8),
    st.integers(0, 30),
    st.integers(0, 30),
    st.floats(1, 4),
    st.floats(0.5, 60),
    st.lists(st.tuples(step, st.floats(0, 30)), max_size=200),
    st.integers(0, 2**32),
)
def test_limit_stays_within_its_bounds_and_grants_no_more(
    least: int, more: int, most: int, tolerance: float, interval: float, steps: list[Any], seed: int
) -> None:
    limits = GradientLimits(
        min=least,
        initial=least + more,
        max=least + more + most,
        tolerance=tolerance,
        baseline_interval=interval,
    )
    limit = GradientLimit(limits, rng=random.Random(seed))
    now = 0.0
    flights: list[Flight] = []
    for (kind, number), delay in steps:
        now += delay
        if kind == "fill":
            for _ in range(number):
                before = limit.limit
                flight = limit.acquire()
                assert (flight is None) == (len(flights) >= before)
                if flight is None:
                    break
                flights.append(flight)
                if number % 3:
                    flight.begin(now)
        elif kind == "wait":
            now += number
        elif kind == "answer":
            for flight in flights[:number]:
                flight.answered(now)
        else:
            for flight in flights[:number]:
                flight.release(now, is_overload=kind == "overload", is_complete=number % 2 == 0)
            del flights[:number]
        assert least <= limit.limit <= limits.max
        assert limit.in_flight == len(flights)
    for flight in flights:
        flight.release(now)
    assert limit.in_flight == 0
    assert limit.acquire() is not None


# -- the queue in front of it ----------------------------------------------------------------------------

KEYS = {"k0": "t0", "k1": "t0", "k2": "t1", "k3": "t2"}
ROUTES = {"one": ["a"], "two": ["b"], "both": ["a", "b"], "open": ["a", "c"]}
MODELS = {"one": None, "two": 3, "both": None, "open": None}


class Clock:
    """Timers that the test drives."""

    def __init__(self) -> None:
        self.time = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.time

    def after(self, delay: float, callback: Callable[[], None]) -> Any:
        entry = (self.time + delay, callback)
        self._due.append(entry)
        return SimpleNamespace(cancel=lambda: self._due.remove(entry))

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while due := [entry for entry in self._due if entry[0] <= end]:
            entry = min(due, key=lambda entry: entry[0])
            self._due.remove(entry)
            self.time = max(self.time, entry[0])
            entry[1]()
        self.time = end


class Asked:
    """A request as registry and pump would treat it."""

    def __init__(self, world: World, key: str, model: str) -> None:
        self.world = world
        self.key = key
        self.model = model
        self.ticket: Ticket | None = None
        self.lease: ProviderLease | None = None
        self.state = "queued"

    def admitted(self) -> None:
        assert self.state == "queued"
        assert self.ticket is not None
        self.state = "running"
        self.lease = self.ticket.take_lease()
        if self.lease is None:
            endpoints = self.ticket.endpoints or self.world.routes[self.model]
            assert isinstance(endpoints, Choice)
            able = [
                target for target in endpoints.targets if target.health.breaker.can_pass(self.world.clock.time)
            ]
            assert not able or any(target.capacity is None for target in able)
        else:
            assert self.lease.capacity.statistics().in_flight <= self.world.limit_at_grant(self.lease.capacity)
            self.lease.begin()

    def expired(self, error: HoldfastError) -> None:
        assert self.state == "queued"
        self.finish()

    def position_changed(self, position: int) -> None:
        assert self.state == "queued"

    def finish(self, *, is_overload: bool = False) -> None:
        assert self.ticket is not None
        self.state = "ended"
        if self.lease is not None:
            self.lease.release(is_overload=is_overload)
        self.ticket.close(None, 0)

    def fail_over(self) -> bool:
        """The provider has failed it: it waits for the others, if they are full. False where it did not."""
        others = [
            target
            for target in self.world.routes[self.model].targets
            if self.lease is not None and target.capacity not in (None, self.lease.capacity)
        ]
        if not others or any(target.capacity is not None and not target.capacity.is_full for target in others):
            return False
        assert self.lease is not None
        assert self.ticket is not None
        self.lease.release()
        self.lease = None
        if self.state != "running":  # the place that it gave back has brought others in, and it was one of them
            return False
        self.state = "queued"
        if not self.ticket.wait_again(self.world.routes[self.model].narrowed(others), self):
            self.state = "running"
            return False
        return True


def limit_of(limited: ProviderConfig, timers: Any) -> Capacity:
    capacity = capacity_of(limited, timers, rng=random.Random(1))
    assert capacity is not None
    return capacity


class World:
    """Admission, and three providers of which two have a limit."""

    def __init__(self) -> None:
        self.clock = Clock()
        adaptive = AdaptiveConcurrencyConfig(enabled=True, min=1, initial=3, max=5)
        limited = ProviderConfig(base_url="http://provider", adaptive_concurrency=adaptive)
        timers: Any = self.clock
        self.capacities = {name: limit_of(limited, timers) for name in "ab"}
        self.health = {name: Health(BreakerConfig(failures=1, open_for=10.0)) for name in "abc"}
        nothing: Any = None
        self.routes = {
            model: Route(
                [
                    Target(
                        name,
                        model,
                        nothing,
                        nothing,
                        TimeoutsConfig(),
                        self.health[name],
                        capacity=self.capacities.get(name),
                    )
                    for name in names
                ],
                rng=random.Random(1),
            )
            for model, names in ROUTES.items()
        }
        limits = LimitsConfig(tenant=LimitConfig(concurrent_streams=4), keys={"k1": LimitConfig(priority="high")})
        queue = QueueConfig(max_waiting=8, max_waiting_per_tenant=5, deadline=20.0)
        self.admission = Admission(limits, queue, MODELS, timers, self.routes)
        for capacity in self.capacities.values():
            capacity.on_room = self.admission.admit_waiting
        self.alive: list[Asked] = []

    def limit_at_grant(self, capacity: Capacity) -> int:
        return capacity.statistics().limit

    def ask(self, key: str, model: str) -> None:
        request = Ask("chat", model, True, b"{}", Bounds(None, 1, 0, 40, "max_tokens"), False)
        asked = Asked(self, key, model)
        before = self.admission.held
        try:
            asked.ticket = self.admission.enter(KEYS[key], key, request)
        except (RateLimited, QueueFull):
            assert self.admission.held == before
            return
        self.alive.append(asked)
        if asked.ticket.position is None:
            asked.admitted()
        else:
            asked.ticket.wait(asked)

    def check(self) -> None:
        self.alive = [asked for asked in self.alive if asked.state != "ended"]
        running = [asked for asked in self.alive if asked.state == "running"]
        queued = [asked for asked in self.alive if asked.state == "queued"]
        for capacity in self.capacities.values():
            held = sum(asked.lease is not None and asked.lease.capacity is capacity for asked in running)
            assert capacity.statistics().in_flight == held
        assert self.admission.held["places"] == len(queued) <= 8
        assert self.admission.held["models"] == len(running)
        tenants = {tenant: sum(KEYS[asked.key] == tenant for asked in running) for tenant in KEYS.values()}
        assert max(tenants.values()) <= 4
        for asked in queued:
            # Nobody waits for what is free.
            ticket = asked.ticket
            assert ticket is not None
            endpoints = ticket.endpoints or self.routes[asked.model]
            assert (
                self.admission.models[asked.model].is_full
                or tenants[KEYS[asked.key]] >= 4
                or not endpoints.has_room(self.clock.time)
            )


act = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("ask"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("end"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("answer"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("overload"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("answer"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("pause"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("fail over"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("break"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 12), st.just(0)),
)


@given(st.lists(act, max_size=120))
def test_no_interleaving_loses_a_place_or_leaves_somebody_waiting(acts: list[tuple[str, int, int]]) -> None:
    world = World()
    for model in ["one", "two", "both"] * 3:  # both providers are full, and some wait
        world.ask("k0" if model == "one" else "k2", model)
    assert all(capacity.is_full for capacity in world.capacities.values())
    assert world.admission.held["places"] == 3
    for kind, number, other in acts:
        if kind == "ask":
            world.ask(list(KEYS)[number], list(ROUTES)[other])
        elif kind == "wait":
            world.clock.advance(number)
        else:
            able = [asked for asked in world.alive if kind == "cancel" or asked.state == "running"]
            if able:
                one(world, kind, able[number % len(able)])
        world.check()
    # Without new requests everybody who waits is served, if only others end.
    for _ in range(200):
        running = [asked for asked in world.alive if asked.state == "running"]
        if not running:
            break
        running[0].finish()
        world.check()
    assert not world.alive
    assert set(world.admission.held.values()) == {0}
    assert all(capacity.statistics().in_flight == 0 for capacity in world.capacities.values())


def one(world: World, kind: str, asked: Asked) -> None:
    """Let something happen to one request."""
    if kind in ("end", "cancel", "overload"):
        asked.finish(is_overload=kind == "overload")
    elif kind == "answer" and asked.lease is not None:
        world.clock.advance(0.5)  # with what is due: a breaker may open the way
        asked.lease.answered()
    elif kind == "pause" and asked.lease is not None:
        asked.lease.release()  # its try has failed, and the next one has yet to begin
        asked.lease = None
    elif kind == "fail over" and asked.lease is not None:
        if not asked.fail_over() and asked.state == "running":
            asked.finish()
    elif kind == "break" and asked.lease is not None:
        name = next(name for name, capacity in world.capacities.items() if capacity is asked.lease.capacity)
        breaker = world.health[name].breaker
        granted = breaker.acquire(world.clock.time)
        if granted is not None:
            breaker.fail(granted, world.clock.time)
        asked.finish()
