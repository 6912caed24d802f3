"""How many lines refused callers get, and that a flood of them costs neither lines nor memory without bound."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from holdfast.admission.failures import MAX_ADDRESSES, MAX_NAMED, PER_ADDRESS, PER_WINDOW, WINDOW, AuthFailures
from holdfast.errors import Forbidden, HoldfastError, Overloaded, Unauthorized
from holdfast.logs import AUDIT
from holdfast.timers import Timers
from tests.io.test_audit import events
from tests.support.clock import Clock

REFUSED = Unauthorized("the key is not known here")


@pytest.fixture
def clock(caplog: pytest.LogCaptureFixture) -> Iterator[Clock]:
    caplog.set_level(logging.INFO, AUDIT)
    with Clock().running() as clock:  # type: ignore[abstract] # what it lacks is never called
        yield clock


@pytest.fixture
def failures(clock: Clock) -> AuthFailures:
    return AuthFailures(Timers(clock))


def refuse(failures: AuthFailures, address: str = "192.0.2.1", error: HoldfastError = REFUSED) -> bool:
    return failures.note(
        error,
        address=address,
        connection=1,
        method="GET",
        route="/v1/models",
        describe=lambda: "key sha256:01234567",
    )


def test_refusal_says_who_where_why_and_with_what(
    failures: AuthFailures, caplog: pytest.LogCaptureFixture
) -> None:
    assert refuse(failures, "2001:db8::1:2", Forbidden("the origin is not allowed"))
    assert events(caplog, "auth_failed") == [
        {
            "address": "2001:db8::/64",
            "connection": 1,
            "method": "GET",
            "route": "/v1/models",
            "error": "forbidden",
            "reason": "the origin is not allowed",
            "credential": "key sha256:01234567",
        }
    ]


def test_fault_that_is_not_the_callers_is_no_refusal(
    failures: AuthFailures, caplog: pytest.LogCaptureFixture
) -> None:
    assert not refuse(failures, error=Overloaded("the keys of the token issuer cannot be fetched"))
    assert not caplog.records


def test_further_refusals_of_an_address_are_counted_and_told_after_a_minute(
    clock: Clock, failures: AuthFailures, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(8_500):
        refuse(failures)
    refuse(failures, "192.0.2.2")
    assert len(events(caplog, "auth_failed")) == PER_ADDRESS + 1
    clock.pass_by(WINDOW)
    assert events(caplog, "auth_failures") == [{"address": "192.0.2.1", "failures": 8_500, "seconds": 60}]
    (all_,) = events(caplog, "auth_failures_in_all")
    assert (all_["addresses"], all_["failures"], all_["without_line"]) == (2, 8_501, 8_500 - PER_ADDRESS)
    refuse(failures)
    assert len(events(caplog, "auth_failed")) == PER_ADDRESS + 2, "the next minute begins anew"


def test_minute_without_more_than_its_lines_has_no_sum(
    clock: Clock, failures: AuthFailures, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(failures)
    clock.pass_by(WINDOW)
    assert len(caplog.records) == 1
    clock.pass_by(WINDOW)
    assert len(caplog.records) == 1


def test_many_addresses_have_bounds_together(
    clock: Clock, failures: AuthFailures, caplog: pytest.LogCaptureFixture
) -> None:
    for round_ in range(7):
        for number in range(3_000):
            refuse(failures, f"10.0.{number // 250}.{number % 250}")
        assert len(failures._counts) == MAX_ADDRESSES, round_
    assert len(events(caplog, "auth_failed")) == PER_WINDOW
    clock.pass_by(WINDOW)
    assert len(events(caplog, "auth_failures")) == MAX_NAMED
    assert events(caplog, "auth_failures_in_all")[0]["failures"] == 21_000


def test_end_of_the_process_tells_what_is_left(failures: AuthFailures, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        refuse(failures)
    failures.close()
    failures.close()
    assert len(events(caplog, "auth_failures_in_all")) == 1
