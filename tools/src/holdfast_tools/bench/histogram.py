"""A histogram of durations: bounded memory, bounded error, and a merge that loses nothing."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

#: An octave has 64 buckets, so that a value read back is at most 1/128 off. Below 128 ns every value is its own.
_BITS = 6
_LINEAR = 1 << (_BITS + 1)
#: A day in nanoseconds. Longer durations count as this; with it a histogram has at most 2,639 buckets.
MAX_VALUE = 86_400 * 10**9


class Histogram(msgspec.Struct):
    """Counts of durations in nanoseconds, in buckets that are linear within each power of two.

    Values below 0 count as 0 (two clocks may disagree), values above a day as a day.
    """

    counts: dict[int, int] = {}

    def add(self, value: int, times: int = 1) -> None:
        bucket = _bucket(value)
        self.counts[bucket] = self.counts.get(bucket, 0) + times

    def add_all(self, values: Iterable[int]) -> None:
        counts = self.counts
        for value in values:
            bucket = _bucket(value)
            counts[bucket] = counts.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        counts = self.counts
        for bucket, times in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + times

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def quantile(self, share: float) -> float | None:
        """Return the least duration that `share` (0 to 1) of all do not exceed, in ns; None if there are none."""
        rank = share * self.total
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return _middle(bucket)
        return None


def _bucket(value: int) -> int:
    if value < _LINEAR:
        return max(value, 0)
    shift = min(value, MAX_VALUE).bit_length() - _BITS - 1
    return (shift << _BITS) + (min(value, MAX_VALUE) >> shift)


def _middle(bucket: int) -> float:
    if bucket < _LINEAR:
        return float(bucket)
    shift = (bucket >> _BITS) - 1
    least = (bucket - (shift << _BITS)) << shift
    return least + ((1 << shift) - 1) / 2
