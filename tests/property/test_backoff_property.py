from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.backoff import Backoff

waits = st.none() | st.floats(0, 1e6)


@given(st.floats(1e-3, 1e3), st.floats(1, 1e4), st.floats(1, 100), st.lists(waits, max_size=40), st.integers())
def test_delay_is_within_its_bounds_for_any_run_of_failures(
    initial: float, factor: float, multiplier: float, run: list[float | None], seed: int
) -> None:
    maximum = initial * factor
    backoff = Backoff(initial, maximum, multiplier)
    rng = random.Random(seed)
    for n, retry_after in enumerate(run):
        floor = retry_after or 0.0
        delay = backoff.next_delay(rng, retry_after=retry_after)
        ceiling = min(maximum, initial * multiplier**n)  # 100**40 still fits a float
        assert floor <= delay <= floor + ceiling * (1 + 1e-9)
        assert backoff.failures == n + 1
