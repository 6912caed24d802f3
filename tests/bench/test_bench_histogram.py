from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from holdfast_tools.bench.histogram import MAX_VALUE, Histogram

values = st.lists(st.integers(min_value=0, max_value=MAX_VALUE), min_size=1, max_size=200)
shares = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])


def filled(numbers: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.add_all(numbers)
    return histogram


def exact(numbers: list[int], share: float) -> int:
    """The least number that `share` of all do not exceed."""
    ordered = sorted(numbers)
    return next(n for at, n in enumerate(ordered, 1) if at >= share * len(ordered))


@given(values, shares)
def test_quantile_is_within_a_128th_of_the_exact_one(numbers: list[int], share: float) -> None:
    found = filled(numbers).quantile(share)
    wanted = exact(numbers, share)
    assert found is not None
    assert abs(found - wanted) <= wanted / 128


@given(values, values)
def test_merged_is_the_same_as_all_in_one(one: list[int], other: list[int]) -> None:
    merged = filled(one)
    merged.merge(filled(other))
    assert merged == filled(one + other)
    assert merged.total == len(one) + len(other)


@given(values)
def test_wire_form_keeps_every_count(numbers: list[int]) -> None:
    histogram = filled(numbers)
    assert msgspec.json.decode(msgspec.json.encode(histogram), type=Histogram) == histogram


def test_memory_is_bounded_whatever_comes() -> None:
    histogram = Histogram()
    histogram.add_all(1 << shift | low << max(0, shift - 6) for shift in range(64) for low in range(64))
    histogram.add(-5)
    histogram.add(1 << 200)
    assert len(histogram.counts) <= 2639
    assert histogram.quantile(0) == 0
    greatest = histogram.quantile(1)
    assert greatest is not None
    assert greatest <= MAX_VALUE * (1 + 1 / 128)


def test_empty_has_no_quantile_and_a_weight_counts() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    histogram.add(10, times=9)
    histogram.add(100)
    assert (histogram.quantile(0.5), histogram.quantile(1.0), histogram.total) == (10, 100, 10)
