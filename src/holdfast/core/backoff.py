"""How long to wait before the next try: exponential backoff with full jitter.

Of the variants compared in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), full jitter costs the
server the least work. The caller decides when to try and when to give up.
"""

from __future__ import annotations

import math
from typing import Protocol


class UniformRandom(Protocol):
    """What `Backoff` needs of a `random.Random`."""

    def uniform(self, a: float, b: float, /) -> float: ...


class Backoff:
    """Counts consecutive failures, and draws a delay after each from [0, min(maximum, initial * multiplier**n)].

    Times are in seconds. n, from 0, is `failures` before this one: those since the start or the last `reset`.
    """

    __slots__ = ("_ceiling", "_initial", "_maximum", "_multiplier", "failures")

    def __init__(self, initial: float = 1.0, maximum: float = 60.0, multiplier: float = 2.0) -> None:
        # NaN fails each of these comparisons.
        if not 0 < initial < math.inf:
            raise ValueError(f"initial must be a positive number of seconds, not {initial}")
        if not initial <= maximum < math.inf:
            raise ValueError(f"maximum must be a finite number of seconds, at least initial, not {maximum}")
        if not 1 <= multiplier < math.inf:
            raise ValueError(f"multiplier must be a finite number, at least 1, not {multiplier}")
        self._initial = initial
        self._maximum = maximum
        self._multiplier = multiplier
        self._ceiling = initial
        self.failures = 0

    def next_delay(self, rng: UniformRandom, *, retry_after: float | None = None) -> float:
        """Count a failure and return the delay before the next try.

        The delay is at least `retry_after`, which the peer asked for. The jitter is added to it, so that clients
        that were told the same time do not come back together: the delay is at most `retry_after` plus `maximum`.
        """
        if retry_after is not None and not 0 <= retry_after < math.inf:
            raise ValueError(f"retry_after must be a number of seconds from 0, not {retry_after}")
        jitter = rng.uniform(0.0, self._ceiling)
        self.failures += 1
        # The ceiling is kept, since a power of the count would overflow after some thousand failures.
        self._ceiling = min(self._maximum, self._ceiling * self._multiplier)
        return jitter if retry_after is None else retry_after + jitter

    def reset(self) -> None:
        """Start again from `initial`, after a success."""
        self.failures = 0
        self._ceiling = self._initial
