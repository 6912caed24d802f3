from __future__ import annotations

from holdfast.core.sliding import SlidingCounts


def test_counts_add_up_within_the_window() -> None:
    counts = SlidingCounts(10.0)
    counts.add(0.0, 1, 0)
    counts.add(0.5, 1, 1)
    counts.add(9.9, 2, 3)
    assert counts.totals(9.9) == (4, 4)


def test_counts_leave_the_window_a_tenth_at_a_time() -> None:
    counts = SlidingCounts(10.0)
    for second in range(10):
        counts.add(float(second), 1, 2)
    assert [counts.totals(10.0 + step)[0] for step in range(10)] == list(range(9, -1, -1))


def test_long_silence_forgets_everything() -> None:
    counts = SlidingCounts(10.0)
    counts.add(0.0, 5, 5)
    assert counts.totals(1e9) == (0, 0)


def test_clear_forgets_everything_at_once() -> None:
    counts = SlidingCounts(10.0)
    counts.add(3.0, 5, 5)
    counts.clear()
    assert counts.totals(3.0) == (0, 0)
    counts.add(3.0, 1)
    assert counts.totals(3.0) == (1, 0)
