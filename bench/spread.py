"""The few statistics that reports need: the spread of windows, percentiles, and the exponent of a power law."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Median, least and most of the windows."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError where there is no value."""
    if not values:
        raise ValueError("no window has a value")
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], q: float) -> float:
    """The value at place `q` (0 to 1) of all in order, by nearest rank: one that was measured, none in between.

    Raises ValueError where there is no value, or for a `q` beyond its bounds.
    """
    if not values:
        raise ValueError("no percentile of no values")
    if not 0 <= q <= 1:
        raise ValueError(f"q must be from 0 to 1, not {q}")
    return sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]


class PowerLaw(NamedTuple):
    """y = factor * x ** exponent; `r2` is 1 where all points lie on it, and 0 where the fit explains nothing."""

    exponent: float
    factor: float
    r2: float


def fit_power_law(points: Sequence[tuple[float, float]]) -> PowerLaw:
    """Fit by least squares in logarithms. Raises ValueError for fewer than two places or numbers not above 0."""
    if any(x <= 0 or y <= 0 for x, y in points):
        raise ValueError("a power law takes numbers above 0")
    if len({x for x, _ in points}) < 2:
        raise ValueError("a power law needs points at two places at least")
    xs = [math.log(x) for x, _ in points]
    ys = [math.log(y) for _, y in points]
    exponent, offset = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(ys)
    total = sum((y - mean) ** 2 for y in ys)
    left = sum((y - offset - exponent * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return PowerLaw(exponent, math.exp(offset), 1 - left / total if total > 0 else 1.0)
