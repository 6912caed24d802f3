"""Whether and where a failed request is tried again: the order of a route, delays, and the budget for retries.

Decides only. Which errors may be retried at all, health and the clock are the caller's.
"""

from __future__ import annotations

import calendar
import email.utils
import math
import re
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from msgspec import Struct

from holdfast.core.backoff import Backoff, UniformRandom
from holdfast.core.sliding import SlidingCounts


class RetryLimits(Struct, frozen=True):
    """Times in seconds. `max_attempts` counts all tries of one request, over the whole route.

    A `Retry-After` above `max_retry_after` is not waited for: another endpoint is asked, or the error passed on.
    """

    max_attempts: int = 4
    initial: float = 0.25
    maximum: float = 8.0
    max_retry_after: float = 30.0


class RetryBudget:
    """Bounds retries to a share of the requests, so that an outage is not multiplied.

    Within `window` seconds, `floor` retries and as many as `ratio` of the requests.
    """

    __slots__ = ("_counts", "_floor", "_ratio")

    def __init__(self, *, ratio: float = 0.1, floor: int = 10, window: float = 10.0) -> None:
        self._ratio = ratio
        self._floor = floor
        self._counts = SlidingCounts(window)  # requests, retries

    def count_request(self, now: float) -> None:
        self._counts.add(now, 1, 0)

    def has_room(self, now: float) -> bool:
        """Whether `withdraw` would allow a retry."""
        requests, retries = self._counts.totals(now)
        return retries < self._floor + self._ratio * requests

    def withdraw(self, now: float) -> bool:
        """Take one retry from the budget; False where it is used up."""
        if not self.has_room(now):
            return False
        self._counts.add(now, 0, 1)
        return True


class Random(UniformRandom, Protocol):
    """What `order_route` needs of a `random.Random`."""

    def random(self) -> float: ...


def order_route(weights: Sequence[float | None], rng: Random) -> list[int]:
    """Return the places of a route in the order in which one request tries them.

    Neighbours with a weight share the first place among them in that proportion; without a weight, the order of
    the route is the order of preference.
    """
    order: list[int] = []
    group: list[tuple[float, int]] = []
    for place, weight in enumerate(weights):
        if weight is None:
            order += _shuffled(group)
            group = []
            order.append(place)
        else:
            # Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): sorting by u^(1/w) is
            # drawing without replacement by weight. 1 - random() is never 0.
            group.append((math.log(1.0 - rng.random()) / weight, place))
    return order + _shuffled(group)


def _shuffled(group: list[tuple[float, int]]) -> list[int]:
    return [place for _, place in sorted(group, reverse=True)]


class Step(Struct, frozen=True):
    """Try `place` of the route after `delay` seconds. `is_repetition`: the same request was tried there before."""

    place: int
    delay: float
    is_repetition: bool


class _Place:
    __slots__ = ("backoff", "is_out", "ready_at", "tries")

    def __init__(self, limits: RetryLimits) -> None:
        self.backoff = Backoff(limits.initial, max(limits.maximum, limits.initial))
        self.ready_at = -math.inf
        self.is_out = False
        self.tries = 0


class RoutePlan:
    """The tries of one request. Call `next`, try, report with `failed`, `unprocessed` or `met_end`, and so on.

    `deadline` is the time after which no try shall begin.
    """

    __slots__ = ("_deadline", "_free", "_has_met_end", "_limits", "_order", "_places", "_rng", "attempts")

    def __init__(self, order: Sequence[int], limits: RetryLimits, rng: UniformRandom, *, deadline: float) -> None:
        self._order = order
        self._limits = limits
        self._rng = rng
        self._deadline = deadline
        self._places = {place: _Place(limits) for place in order}
        self._free = limits.max_attempts  # how often a request that was not processed is sent again at once
        self._has_met_end = False
        self.attempts = 0

    def next(self, now: float, can_try: Callable[[int, bool], bool]) -> Step | None:
        """Choose the next try, None where there is none.

        `can_try(place, is_repetition)` says whether the place is healthy and, for a repetition, its budget has
        room. What has not been tried yet comes first, in the order of the route; then what is ready soonest.
        """
        if self.attempts >= self._limits.max_attempts or now >= self._deadline:
            return None
        best: Step | None = None
        for place in self._order:
            record = self._places[place]
            is_repetition = record.tries > 0
            if record.is_out or not can_try(place, is_repetition):
                continue
            delay = max(0.0, record.ready_at - now)
            if not is_repetition:
                return Step(place, delay, False)
            if now + delay < self._deadline and (best is None or delay < best.delay):
                best = Step(place, delay, True)
        return best

    def begin(self, step: Step) -> None:
        """The try begins."""
        self.attempts += 1
        self._places[step.place].tries += 1

    def failed(self, place: int, now: float, *, retry_after: float | None = None) -> None:
        """The try failed, and may be repeated there after a pause."""
        record = self._places[place]
        if retry_after is not None and retry_after > self._limits.max_retry_after:
            record.is_out = True
            return
        record.ready_at = now + record.backoff.next_delay(self._rng, retry_after=retry_after)

    def exclude(self, place: int) -> None:
        """The try failed in a way that a repetition there would not better, or that may have cost something."""
        self._places[place].is_out = True

    def unprocessed(self, place: int, now: float) -> None:
        """The provider certainly did nothing: the try does not count, as long as this does not go on and on."""
        if self._free == 0:
            self.failed(place, now)
            return
        self._free -= 1
        self._take_back(place, now)

    def met_end(self, place: int, now: float) -> None:
        """A kept-alive connection was closed as the request was sent: once in a request this does not count."""
        if self._has_met_end:
            self.failed(place, now)
            return
        self._has_met_end = True
        self._take_back(place, now)

    def _take_back(self, place: int, now: float) -> None:
        self.attempts -= 1
        self._places[place].tries -= 1
        self._places[place].ready_at = now


_SECONDS: Final = re.compile(rb"\d{1,10}(?:\.\d{1,6})?")
_MAX_DATE_LENGTH: Final = 64


def parse_retry_after(value: bytes, wall_time: float) -> float | None:
    """Read `Retry-After` (RFC 9110 section 10.2.3), seconds or a date, as seconds from `wall_time`.

    `wall_time` is in seconds since 1970. Fractions, which some providers send, are read. None for anything else.
    """
    if _SECONDS.fullmatch(value):
        return float(value)
    if len(value) > _MAX_DATE_LENGTH:
        return None
    try:
        parsed = email.utils.parsedate_tz(value.decode("ascii"))
        if parsed is None:
            return None
        seconds = calendar.timegm((*parsed[:6], 0, 1, 0)) - (parsed[9] or 0)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    return max(0.0, seconds - wall_time)
