"""After clients that leave at every phase, faults and cancels, admission holds nothing."""

from __future__ import annotations

from chaos.admission import CONCURRENCY, HTTP, SESSION, run_chaos


async def test_chaos_leaves_no_lease_reservation_or_place() -> None:
    run = await run_chaos(1000, 7)  # it waits until nothing is held, and raises where a bound was exceeded
    assert run.outcomes.total() == 1000
    assert run.peak["models"] == CONCURRENCY
    assert run.peak["places"] > 10
    assert run.peak["reservations"] > 0
    told = "\n".join(run.outcomes)
    for phase in (*HTTP, *SESSION):
        assert phase in told
    for outcome in ("200", "429", "503", "completed", "incomplete", "cancelled", "queue_full", "queue_timeout"):
        assert outcome in told


async def test_chaos_leaves_no_place_at_a_provider_with_an_adaptive_limit() -> None:
    run = await run_chaos(500, 7, adaptive=True)
    assert run.outcomes.total() == 500
    assert 2 <= run.peak["in flight"] <= CONCURRENCY
    assert run.peak["places"] > 10
