"""The statistics that reports are made with."""

from __future__ import annotations

import pytest

from bench.spread import fit_power_law, percentile, spread


def test_spread_of_windows_is_median_least_and_most() -> None:
    assert spread([3.0, 9.0, 1.0, 2.0, 4.0]) == (3.0, 1.0, 9.0)


def test_spread_of_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match="no window"):
        spread([])


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_percentile_is_a_value_that_was_measured(q: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), q) == expected


def test_percentile_of_a_single_value_is_that_value() -> None:
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_percentile_of_nothing_or_beyond_its_bounds_is_refused(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match=r"no values|from 0 to 1"):
        percentile(values, q)


def test_fit_of_an_exact_power_law_finds_exponent_and_factor() -> None:
    fit = fit_power_law([(x, 3.0 * x**0.7) for x in (10, 100, 1000, 10_000)])
    assert fit == pytest.approx((0.7, 3.0, 1.0))


def test_fit_of_a_constant_has_exponent_zero() -> None:
    assert fit_power_law([(10, 5.0), (100, 5.0), (1000, 5.0)]) == pytest.approx((0.0, 5.0, 1.0), abs=1e-9)


def test_fit_weighs_decades_alike_and_says_how_well_it_fits() -> None:
    # Symmetric in logarithms: the slope between the ends, and the middle one off by a factor of 2.
    fit = fit_power_law([(1, 1.0), (10, 20.0), (100, 100.0)])
    assert fit.exponent == pytest.approx(1.0)
    assert 0.9 < fit.r2 < 1.0


@pytest.mark.parametrize(
    "points", [[(1.0, 1.0)], [(1.0, 1.0), (1.0, 2.0)], [(0.0, 1.0), (1.0, 1.0)], [(1.0, -1.0), (2.0, 1.0)]]
)
def test_fit_without_two_places_above_zero_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="power law"):
        fit_power_law(points)
