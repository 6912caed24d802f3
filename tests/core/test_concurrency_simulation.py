"""The limit of an endpoint in front of a provider of known capacity, in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.core.limits.gradient import Flight, GradientLimit, GradientLimits

TTFT = 0.3
DURATION = 6.0


class SlottedProvider:
    """Answers `capacity` requests at a time, as a model server does; further ones wait in its own queue."""

    def __init__(self, world: World, capacity: int) -> None:
        self.world = world
        self.capacity = capacity
        self.slowness = 1.0
        self.busy = 0
        self.queue: deque[Flight] = deque()

    def send(self, flight: Flight) -> None:
        self.queue.append(flight)
        self.serve()

    def serve(self) -> None:
        while self.queue and self.busy < self.capacity:
            self.begin(self.queue.popleft(), TTFT * self.slowness)

    def begin(self, flight: Flight, ttft: float) -> None:
        world = self.world
        self.busy += 1
        first = ttft * world.rng.lognormvariate(0.0, 0.3)
        world.after(first, lambda: world.answered(flight))
        world.after(first + world.rng.uniform(0.5, 1.5) * DURATION, lambda: self.end(flight))

    def end(self, flight: Flight) -> None:
        self.busy -= 1
        self.serve()
        self.world.ended(flight)


class SharingProvider(SlottedProvider):
    """Begins every answer at once, and later the more there are beyond its capacity: a server without a queue."""

    def serve(self) -> None:
        while self.queue:
            crowd = max(1.0, (self.busy + 1) / self.capacity)
            self.begin(self.queue.popleft(), TTFT * self.slowness * crowd)


class World:
    """Virtual time, `demand` clients that always want an answer, and the limit between them and the provider."""

    def __init__(
        self,
        kind: type[SlottedProvider],
        capacity: int,
        *,
        limits: GradientLimits | None = None,
        seed: int = 1,
        demand: int = 10_000,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.limit = GradientLimit(limits or GradientLimits(), rng=self.rng)
        self.provider = kind(self, capacity)
        self.demand = demand
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._numbers), action))

    def ask(self) -> None:
        while self.limit.in_flight < self.demand and (flight := self.limit.acquire()) is not None:
            flight.begin(self.now)
            self.provider.send(flight)

    def answered(self, flight: Flight) -> None:
        flight.answered(self.now)
        self.ask()

    def ended(self, flight: Flight) -> None:
        flight.release(self.now)
        self.ask()

    def run(self, seconds: float) -> list[int]:
        """Return the limit at each event."""
        end, seen = self.now + seconds, []
        self.ask()
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
            seen.append(self.limit.limit)
        self.now = end
        return seen


def middle(limits: list[int]) -> int:
    return sorted(limits)[len(limits) // 2]


def near(capacity: int) -> Any:
    return pytest.approx(capacity, rel=0.2, abs=1)


@pytest.mark.parametrize("capacity", [1, 5, 20, 50, 200])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_limit_finds_the_capacity_and_follows_it_down_and_up(capacity: int, seed: int) -> None:
    world = World(SlottedProvider, capacity, limits=GradientLimits(min=1, initial=10), seed=seed)
    world.run(200.0)
    assert middle(world.run(200.0)) == near(capacity)
    world.provider.capacity = halved = max(capacity // 2, 1)
    world.run(200.0)
    assert middle(world.run(200.0)) == near(halved)
    world.provider.capacity = 2 * capacity
    world.run(200.0)
    assert middle(world.run(200.0)) == near(2 * capacity)


@pytest.mark.parametrize("capacity", [20, 50])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_limit_in_front_of_a_provider_without_a_queue_stays_within_the_tolerance(capacity: int, seed: int) -> None:
    """Its answers come late in proportion to the load: what is tolerated is `tolerance` times the capacity."""
    world = World(SharingProvider, capacity, limits=GradientLimits(min=1), seed=seed)
    world.run(400.0)
    assert capacity * 0.9 < middle(world.run(800.0)) < capacity * 1.5 * 1.5


@pytest.mark.parametrize("kind", [SlottedProvider, SharingProvider])
def test_provider_that_is_slower_for_good_is_not_throttled_for_good(kind: type[SlottedProvider]) -> None:
    world = World(kind, 50)
    world.run(400.0)
    world.provider.slowness = 5.0
    world.run(200.0)
    assert middle(world.run(200.0)) >= 45
    assert world.limit.baseline == pytest.approx(TTFT * 5.0, rel=0.5)


def test_limit_does_not_grow_for_want_of_demand() -> None:
    world = World(SlottedProvider, 200, demand=12)
    limits = world.run(1000.0)
    assert max(limits) == 20


def test_bounds_hold_whatever_the_provider_does() -> None:
    """Capacity and pace change at random for an hour, and answers never cease."""
    world = World(SlottedProvider, 30, limits=GradientLimits(min=2, max=60, initial=10), seed=5)
    for _ in range(60):
        world.provider.capacity = world.rng.choice([5, 15, 30, 100])
        world.provider.slowness = world.rng.choice([0.5, 1.0, 4.0])
        world.provider.serve()
        limits = world.run(60.0)
        assert limits
        assert min(limits) >= 2
        assert max(limits) <= 60
