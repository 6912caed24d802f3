from __future__ import annotations

import math
import random

import pytest

from holdfast.core.backoff import Backoff


class Ceiling:
    """Draws the upper end of every range."""

    def uniform(self, a: float, b: float, /) -> float:
        assert a == 0
        return b


class Floor:
    def uniform(self, a: float, b: float, /) -> float:
        return a


def test_ceiling_doubles_up_to_the_maximum() -> None:
    backoff = Backoff()
    assert [backoff.next_delay(Ceiling()) for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.failures == 9


def test_jitter_is_full() -> None:
    backoff = Backoff(initial=0.5, maximum=8, multiplier=4)
    assert [backoff.next_delay(Floor()) for _ in range(5)] == [0] * 5
    assert backoff.next_delay(Ceiling()) == 8


def test_reset_starts_again_from_initial() -> None:
    backoff = Backoff(initial=3)
    for _ in range(10):
        backoff.next_delay(Ceiling())
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next_delay(Ceiling()) == 3
    assert backoff.failures == 1


def test_retry_after_is_a_floor_with_the_jitter_on_top() -> None:
    backoff = Backoff(initial=1, maximum=4)
    assert backoff.next_delay(Floor(), retry_after=30) == 30
    assert backoff.next_delay(Ceiling(), retry_after=30) == 32
    assert backoff.next_delay(Ceiling(), retry_after=0) == 4
    assert backoff.next_delay(Ceiling(), retry_after=100) == 104
    assert backoff.failures == 4


def test_thousands_of_failures_do_not_overflow() -> None:
    backoff = Backoff(initial=1e-3, maximum=1e308, multiplier=1e300)
    rng = random.Random(1)
    delays = [backoff.next_delay(rng) for _ in range(5000)]
    assert all(0 <= delay <= 1e308 for delay in delays)
    assert backoff.failures == 5000


def test_multiplier_of_one_keeps_the_ceiling() -> None:
    backoff = Backoff(initial=2, maximum=2, multiplier=1)
    assert [backoff.next_delay(Ceiling()) for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("initial", "maximum", "multiplier", "name"),
    [
        (0, 60, 2, "initial"),
        (-1, 60, 2, "initial"),
        (math.nan, 60, 2, "initial"),
        (math.inf, math.inf, 2, "initial"),
        (1, 0.5, 2, "maximum"),
        (1, math.inf, 2, "maximum"),
        (1, math.nan, 2, "maximum"),
        (1, 60, 0.5, "multiplier"),
        (1, 60, math.inf, "multiplier"),
        (1, 60, math.nan, "multiplier"),
    ],
)
def test_argument_out_of_range_is_refused(initial: float, maximum: float, multiplier: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        Backoff(initial, maximum, multiplier)


@pytest.mark.parametrize("retry_after", [-1, math.inf, math.nan])
def test_retry_after_out_of_range_is_refused_and_not_counted(retry_after: float) -> None:
    backoff = Backoff()
    with pytest.raises(ValueError, match="retry_after"):
        backoff.next_delay(Ceiling(), retry_after=retry_after)
    assert backoff.failures == 0
