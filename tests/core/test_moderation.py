"""Read moderation: nothing at light load, about ten events per turn under load, never beyond its bound."""

from __future__ import annotations

import pytest

from holdfast.core.moderation import WINDOW, ReadModeration


def feed(moderation: ReadModeration, *, rate: float, seconds: float = 0.1, start: float = 100.0) -> float:
    """One event per turn at an even rate; return the last hold."""
    hold = 0.0
    for i in range(int(rate * seconds)):
        hold = moderation.hold(1, start + i / rate)
    return hold


def test_light_load_is_never_held() -> None:
    assert feed(ReadModeration(), rate=1000) == 0.0


def test_busy_loop_is_held_for_about_ten_events() -> None:
    moderation = ReadModeration()
    assert feed(moderation, rate=20_000) == pytest.approx(10 / 20_000, rel=0.1)
    assert moderation.rate == pytest.approx(20_000, rel=0.1)


def test_hold_is_bounded() -> None:
    assert feed(ReadModeration(max_hold=0.001), rate=4000) == 0.001


def test_turn_that_carried_enough_is_not_held() -> None:
    moderation = ReadModeration(events_per_turn=10)
    feed(moderation, rate=20_000)
    assert moderation.hold(10, 100.1) == 0.0


def test_first_event_after_a_pause_is_not_held() -> None:
    moderation = ReadModeration()
    assert feed(moderation, rate=20_000) > 0
    assert moderation.hold(1, 100.1 + 20 * WINDOW) == 0.0


def test_no_hold_where_it_is_switched_off() -> None:
    assert feed(ReadModeration(max_hold=0.0), rate=20_000) == 0.0
