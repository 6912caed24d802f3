"""Whether and where a failed request is tried again: the order of a route, the delays, and the retry budget.

It decides only. The caller knows the time and the health of the targets, and which errors may be retried at all.
A target is meant by its index in the route.
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

    After a `Retry-After` above `max_retry_after` that target is not tried again: another is, or the request fails.
    No request waits longer than `max_total_wait` in sum: a delay that would be too much is not begun.
    """

    max_attempts: int = 4
    initial: float = 0.25
    maximum: float = 8.0
    max_retry_after: float = 30.0
    max_total_wait: float = 20.0


class RetryBudget:
    """Bounds retries to a share of the requests, so that they do not multiply the load of an outage.

    Within `window` seconds it allows `floor` retries, and beyond them `ratio` times the number of requests.
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
        """Take one retry from the budget; False if it is used up."""
        if not self.has_room(now):
            return False
        self._counts.add(now, 0, 1)
        return True


class Random(UniformRandom, Protocol):
    """What `order_route` needs of a `random.Random`."""

    def random(self) -> float: ...


def order_route(weights: Sequence[float | None], rng: Random) -> list[int]:
    """Return the indexes of a route's targets in the order in which one request tries them.

    Of neighbours with a weight, each comes first in proportion to its weight. A target without a weight keeps its
    position in the route, which is the order of preference.
    """
    order: list[int] = []
    group: list[tuple[float, int]] = []
    for index, weight in enumerate(weights):
        if weight is None:
            order += _shuffled(group)
            group = []
            order.append(index)
        else:
            # Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): sorting by u^(1/w) is
            # drawing without replacement by weight. 1 - random() is never 0.
            group.append((math.log(1.0 - rng.random()) / weight, index))
    return order + _shuffled(group)


def _shuffled(group: list[tuple[float, int]]) -> list[int]:
    return [index for _, index in sorted(group, reverse=True)]


class Step(Struct, frozen=True):
    """Try this target after `delay` seconds. `is_repetition`: the request was tried there before."""

    index: int
    delay: float
    is_repetition: bool


class _Target:
    """What one request knows about one target of its route."""

    __slots__ = ("backoff", "is_out", "ready_at", "tries")

    def __init__(self, limits: RetryLimits) -> None:
        self.backoff = Backoff(limits.initial, max(limits.maximum, limits.initial))
        self.ready_at = -math.inf
        self.is_out = False
        self.tries = 0


class RoutePlan:
    """Plans the tries of one request.

    For each try, call `next`, wait for its delay, say so by `waited`, call `begin`, and report a failure by one of
    `failed`, `exclude`, `unprocessed` and `stale_connection`. No try begins after `deadline`.
    """

    __slots__ = (
        "_deadline",
        "_free",
        "_has_met_stale",
        "_limits",
        "_order",
        "_patience",
        "_rng",
        "_targets",
        "attempts",
    )

    def __init__(self, order: Sequence[int], limits: RetryLimits, rng: UniformRandom, *, deadline: float) -> None:
        self._order = order
        self._limits = limits
        self._rng = rng
        self._deadline = deadline
        self._targets = {index: _Target(limits) for index in order}
        self._patience = limits.max_total_wait  # seconds that it may still wait
        self._free = limits.max_attempts  # how many unprocessed tries do not count
        self._has_met_stale = False
        self.attempts = 0

    def next(self, now: float, can_try: Callable[[int, bool], bool]) -> Step | None:
        """Choose the next try; None if there is none.

        `can_try(index, is_repetition)` says whether the target is healthy and, for a repetition, whether its retry
        budget has room. Targets that have not been tried come first, in the order of the route; after them the
        target whose delay ends first.
        """
        if self.attempts >= self._limits.max_attempts or now >= self._deadline:
            return None
        best: Step | None = None
        for index in self._order:
            record = self._targets[index]
            is_repetition = record.tries > 0
            if record.is_out or not can_try(index, is_repetition):
                continue
            delay = max(0.0, record.ready_at - now)
            if not is_repetition:
                return Step(index, delay, False)
            is_bearable = delay <= self._patience and now + delay < self._deadline
            if is_bearable and (best is None or delay < best.delay):
                best = Step(index, delay, True)
        return best

    def waited(self, seconds: float) -> None:
        """The request has waited for a try, whether or not that begins now."""
        self._patience -= seconds

    def begin(self, step: Step) -> None:
        """The try begins."""
        self.attempts += 1
        self._targets[step.index].tries += 1

    def failed(self, index: int, now: float, *, retry_after: float | None = None) -> None:
        """The try failed, and may be repeated there after a delay, which is at least `retry_after` seconds."""
        record = self._targets[index]
        if retry_after is not None and retry_after > self._limits.max_retry_after:
            record.is_out = True
            return
        record.ready_at = now + record.backoff.next_delay(self._rng, retry_after=retry_after)

    def exclude(self, index: int) -> None:
        """Try this target no more: a repetition would fail too, or the provider may charge for the failed try."""
        self._targets[index].is_out = True

    def unprocessed(self, index: int, now: float) -> None:
        """The provider did not process the try. It does not count, for up to `max_attempts` times per request."""
        if self._free == 0:
            self.failed(index, now)
            return
        self._free -= 1
        self._take_back(index, now)

    def stale_connection(self, index: int, now: float) -> None:
        """A kept-alive connection was closed as the request was sent. Once per request, the try does not count."""
        if self._has_met_stale:
            self.failed(index, now)
            return
        self._has_met_stale = True
        self._take_back(index, now)

    def _take_back(self, index: int, now: float) -> None:
        self.attempts -= 1
        self._targets[index].tries -= 1
        self._targets[index].ready_at = now


_SECONDS: Final = re.compile(rb"\d{1,10}(?:\.\d{1,6})?")
_MAX_DATE_LENGTH: Final = 64
#: Longest wait that is passed on: there are clients that sleep for as long as they are told.
_MAX_WAIT: Final = 86_400.0


def parse_milliseconds(value: bytes) -> float | None:
    """Parse a `retry-after-ms` header, as OpenAI's SDKs do, into seconds. Returns None for anything else."""
    return min(float(value) / 1000, _MAX_WAIT) if _SECONDS.fullmatch(value) else None


def parse_retry_after(value: bytes, wall_time: float) -> float | None:
    """Parse a `Retry-After` header (RFC 9110 section 10.2.3) into seconds from `wall_time`.

    The value is a number of seconds or a date. `wall_time` is in seconds since 1970. Fractions of seconds are
    accepted, since some providers send them; more than a day is read as a day. Returns None for anything else.
    """
    if _SECONDS.fullmatch(value):
        return min(float(value), _MAX_WAIT)
    if len(value) > _MAX_DATE_LENGTH:
        return None
    try:
        parsed = email.utils.parsedate_tz(value.decode("ascii"))
        if parsed is None:
            return None
        seconds = calendar.timegm((*parsed[:6], 0, 1, 0)) - (parsed[9] or 0)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    return min(max(0.0, seconds - wall_time), _MAX_WAIT)
