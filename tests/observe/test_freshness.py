"""What probes are told of what was read from outside, and how often the log says that it is old."""

from __future__ import annotations

import msgspec

from holdfast.observe.freshness import SAY_AGAIN, Freshness, Source

CONFIGURATION, CERTIFICATES = Source.CONFIGURATION, Source.CERTIFICATES


def report(freshness: Freshness) -> object:
    return msgspec.to_builtins(freshness.report())


def test_source_that_was_taken_is_reported_with_its_time_and_version() -> None:
    freshness = Freshness()
    assert report(freshness) == {}
    freshness.taken(CONFIGURATION, 100.0, version="abc")
    assert not freshness.is_stale
    assert report(freshness) == {"configuration": {"since": 100.0, "version": "abc"}}


def test_failure_keeps_what_is_in_use_and_says_since_when_it_is_old() -> None:
    freshness = Freshness()
    freshness.taken(CONFIGURATION, 100.0, version="abc")
    freshness.failed(CONFIGURATION, "refused", 110.0)
    freshness.failed(CONFIGURATION, "unreadable", 120.0)
    assert freshness.is_stale
    assert report(freshness) == {
        "configuration": {
            "since": 100.0,
            "version": "abc",
            "stale": True,
            "reason": "unreadable",
            "stale_since": 110.0,
        }
    }
    assert freshness.taken(CONFIGURATION, 130.0, version="def")
    assert not freshness.is_stale
    assert not freshness.taken(CONFIGURATION, 131.0, version="def")


def test_source_that_was_never_taken_is_stale_without_a_time() -> None:
    freshness = Freshness()
    freshness.failed(CERTIFICATES, "unreadable", 5.0)
    assert report(freshness) == {
        "certificates": {"since": None, "stale": True, "reason": "unreadable", "stale_since": 5.0}
    }


def test_failure_is_said_at_first_when_it_changes_and_once_a_minute() -> None:
    freshness = Freshness()
    assert freshness.failed(CONFIGURATION, "refused", 0.0, detail="a")
    assert not freshness.failed(CONFIGURATION, "refused", 1.0, detail="a")
    assert freshness.failed(CONFIGURATION, "refused", 2.0, detail="b")
    assert not freshness.failed(CONFIGURATION, "refused", 2.0 + SAY_AGAIN - 1, detail="b")
    assert freshness.failed(CONFIGURATION, "refused", 2.0 + SAY_AGAIN, detail="b")
    assert freshness.failed(CERTIFICATES, "refused", 3.0), "each source for itself"
    freshness.taken(CONFIGURATION, 70.0)
    assert freshness.failed(CONFIGURATION, "refused", 71.0, detail="b"), "a new failure"


def test_clock_that_is_set_back_silences_no_failure() -> None:
    freshness = Freshness()
    assert freshness.failed(CONFIGURATION, "refused", 1_000_000.0)
    assert freshness.failed(CONFIGURATION, "refused", 10.0)
