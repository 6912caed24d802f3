"""The endpoints that serve a model: in which order they are asked, and whether any of them is healthy."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.config import RetryConfig, TimeoutsConfig
from holdfast.core.masking import Masking
from holdfast.core.retry import RetryLimits, RoutePlan, order_route
from holdfast.dialects.endpoint import Endpoint
from holdfast.upstream.call import Upstream
from holdfast.upstream.capacity import Capacity, ProviderLease
from holdfast.upstream.health import Health


@dataclass(slots=True, frozen=True)
class Target:
    """One endpoint of a route. `weight` is None where the place in the route alone counts."""

    provider: str
    model: str
    endpoint: Endpoint
    upstream: Upstream
    timeouts: TimeoutsConfig
    health: Health = field(default_factory=Health)
    weight: float | None = None
    #: None where the provider takes whatever comes.
    capacity: Capacity | None = None

    @property
    def is_full(self) -> bool:
        """Whether the provider has as many requests as it may have."""
        return self.capacity is not None and self.capacity.is_full

    def acquire(self) -> ProviderLease | None:
        """Take a slot at the provider; this alone does. None where it is full, or has no limit."""
        return None if self.capacity is None else self.capacity.acquire()


class Choice:
    """Some targets of a route, as what a request may wait for; see `upstream.capacity.Endpoints`."""

    def __init__(self, targets: Sequence[Target], rng: random.Random) -> None:
        self.targets = list(targets)
        self._weights = [target.weight for target in targets]
        self._rng = rng
        self.key = "\n".join(sorted(f"{target.provider}/{target.model}" for target in targets))

    def has_room(self, now: float) -> bool:
        """Whether any target that would be tried has room, or none would be tried: waiting does not heal it."""
        is_anyone_able = False
        for target in self.targets:
            if target.health.breaker.can_pass(now):
                if not target.is_full:
                    return True
                is_anyone_able = True
        return not is_anyone_able

    def reserve(self, now: float) -> ProviderLease | None:
        """Take a slot at the first target, in the order that is drawn for this request, which has one."""
        for index in order_route(self._weights, self._rng):
            target = self.targets[index]
            if target.health.breaker.can_pass(now):
                if target.capacity is None:
                    return None
                lease = target.acquire()
                if lease is not None:
                    return lease
        return None

    def opens_in(self, now: float) -> float:
        """Seconds until a breaker lets requests through again by time alone; infinity if none will."""
        waits = [target.health.breaker.retry_after(now) for target in self.targets]
        return min((wait for wait in waits if wait > 0), default=math.inf)


class Route(Choice):
    """A model's targets and how often a request is tried on them."""

    def __init__(
        self,
        targets: Sequence[Target],
        retry: RetryConfig | None = None,
        *,
        rng: random.Random | None = None,
        masking: Masking | None = None,
    ) -> None:
        super().__init__(targets, rng or random.SystemRandom())
        retry = retry or RetryConfig()
        self._limits = RetryLimits(
            max_attempts=retry.max_attempts,
            initial=retry.initial,
            maximum=retry.maximum,
            max_retry_after=retry.max_retry_after,
            max_total_wait=retry.max_total_wait,
        )
        #: What takes secrets out of what providers say.
        self.masking = masking or Masking()
        #: A request that an endpoint may have processed is asked of none again.
        self.at_most_once = retry.at_most_once

    def narrowed(self, targets: Sequence[Target]) -> Choice:
        """Some of the targets alone."""
        return Choice(targets, self._rng)

    def accepts(self, dialect: str) -> bool:
        """Whether any target can answer clients of this dialect."""
        return any(target.endpoint.accepts(dialect) for target in self.targets)

    def plan(self, *, deadline: float) -> RoutePlan:
        """Draw the order for one request, which is not to be tried again after `deadline`."""
        return RoutePlan(order_route(self._weights, self._rng), self._limits, self._rng, deadline=deadline)

    def is_healthy(self, now: float) -> bool:
        """Whether any target would be tried now."""
        return any(target.health.breaker.can_pass(now) for target in self.targets)

    def retry_after(self, now: float) -> float:
        """Seconds until the first of the targets may be tried; 0 where one may now."""
        return min(target.health.breaker.retry_after(now) for target in self.targets)
