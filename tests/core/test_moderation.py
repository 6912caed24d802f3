"""Read moderation: nothing at light load, about ten events per turn under load, never beyond its bound."""

from __future__ import annotations

import pytest

from holdfast.core.moderation import MIN_HOLD, WINDOW, ReadModeration


def feed(
    moderation: ReadModeration, *, rate: float, work: float = 0.0, seconds: float = 0.2, start: float = 100.0
) -> list[float]:
    """Turns at an even rate of events, each of which takes `work` seconds; return the holds of the last half."""
    now, begun, owed, holds = start, start, 0.0, []
    while now < start + seconds:
        now += work or 1e-6
        owed += (now - begun) * rate
        begun = now
        events, owed = int(owed), owed % 1
        hold = moderation.hold(events, now)
        # A turn without a hold begins when the next event is there.
        now += hold or max(0.0, (1 - owed) / rate - work)
        holds.append(hold)
    return holds[len(holds) // 2 :]


def test_light_load_is_never_held() -> None:
    assert set(feed(ReadModeration(), rate=1000)) == {0.0}


def test_busy_loop_is_held_for_about_ten_events() -> None:
    moderation = ReadModeration(max_hold=0.01, events_per_turn=10)
    holds = [hold for hold in feed(moderation, rate=20_000) if hold]
    assert sum(holds) / len(holds) == pytest.approx(10 / 20_000, rel=0.2)
    assert moderation.rate == pytest.approx(20_000, rel=0.1)


def test_hold_is_bounded() -> None:
    assert max(feed(ReadModeration(max_hold=0.001), rate=4000)) == pytest.approx(0.001, rel=0.01)


def test_time_that_a_turn_takes_counts() -> None:
    holds = feed(ReadModeration(max_hold=0.001), rate=8000, work=0.0004)
    assert sum(holds) / len(holds) == pytest.approx(0.0006, rel=0.1)


def test_saturated_loop_is_not_held() -> None:
    assert set(feed(ReadModeration(max_hold=0.001), rate=10_000, work=0.001 - MIN_HOLD / 2)) == {0.0}


def test_turn_that_carried_enough_is_not_held() -> None:
    moderation = ReadModeration(events_per_turn=10)
    feed(moderation, rate=20_000)
    moderation.hold(1, 100.205)
    assert moderation.hold(9, 100.2051) > 0.0
    assert moderation.hold(10, 100.2052) == 0.0


def test_first_event_after_a_pause_is_not_held() -> None:
    moderation = ReadModeration()
    assert max(feed(moderation, rate=20_000)) > 0
    assert moderation.hold(1, 100.2 + 20 * WINDOW) == 0.0


def test_no_hold_where_it_is_switched_off() -> None:
    assert set(feed(ReadModeration(max_hold=0.0), rate=20_000)) == {0.0}
