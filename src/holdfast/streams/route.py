"""The endpoints that serve a model: in which order they are asked, and whether any of them is healthy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.config import RetryConfig, TimeoutsConfig
from holdfast.core.retry import RetryLimits, RoutePlan, order_route
from holdfast.upstream.call import Upstream
from holdfast.upstream.health import Health
from holdfast.upstream.providers.openai import Endpoint


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


class Route:
    """A model's targets and how often a request is tried on them."""

    def __init__(
        self, targets: Sequence[Target], retry: RetryConfig | None = None, *, rng: random.Random | None = None
    ) -> None:
        retry = retry or RetryConfig()
        self.targets = list(targets)
        self._weights = [target.weight for target in targets]
        self._limits = RetryLimits(
            max_attempts=retry.max_attempts,
            initial=retry.initial,
            maximum=retry.maximum,
            max_retry_after=retry.max_retry_after,
        )
        self._rng = rng or random.SystemRandom()
        #: A request that an endpoint may have processed is asked of none again.
        self.at_most_once = retry.at_most_once

    def plan(self, *, deadline: float) -> RoutePlan:
        """Draw the order for one request, which is not to be tried again after `deadline`."""
        return RoutePlan(order_route(self._weights, self._rng), self._limits, self._rng, deadline=deadline)

    def is_healthy(self, now: float) -> bool:
        """Whether any target would be tried now."""
        return any(target.health.breaker.can_pass(now) for target in self.targets)

    def retry_after(self, now: float) -> float:
        """Seconds until the first of the targets may be tried; 0 where one may now."""
        return min(target.health.breaker.retry_after(now) for target in self.targets)
