"""Clients that send what serves nothing are slowed down, then closed; honest ones never are."""

from __future__ import annotations

from holdfast.core.patience import (
    CLOSED_PAST,
    FORGOTTEN_PER_SECOND,
    SLOWED_PAST,
    SLOWED_PER_SECOND,
    Patience,
    Verdict,
    delay_of,
)


def test_burst_of_refusals_goes_on() -> None:
    assert Patience(0.0).count(SLOWED_PAST, 0.0) is Verdict.GO_ON


def test_what_lies_back_is_forgotten() -> None:
    patience = Patience(0.0)
    for second in range(1, 1000):
        assert patience.count(round(FORGOTTEN_PER_SECOND), float(second)) is Verdict.GO_ON
    assert patience.count(SLOWED_PAST, 2000.0) is Verdict.GO_ON


def test_more_is_slowed_down_and_then_closed() -> None:
    patience = Patience(0.0)
    assert patience.count(SLOWED_PAST + 1, 0.0) is Verdict.SLOW_DOWN
    assert patience.count(CLOSED_PAST - SLOWED_PAST, 0.0) is Verdict.CLOSE


def test_client_that_goes_on_at_the_slowed_rate_is_closed() -> None:
    patience = Patience(0.0)
    now, sent, verdict = 0.0, 0, Verdict.GO_ON
    while verdict is not Verdict.CLOSE:
        verdict = patience.count(16, now)
        sent += 16
        if verdict is Verdict.SLOW_DOWN:
            now += delay_of(16)
    assert now < 2 * (CLOSED_PAST - SLOWED_PAST) / (SLOWED_PER_SECOND - FORGOTTEN_PER_SECOND)
    assert sent > CLOSED_PAST
