"""Who is blamed for a failed attempt, who is asked next, and what the caller is told of it."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import pytest

from holdfast.core.entries import ErrorBody
from holdfast.core.masking import Masking
from holdfast.errors import UpstreamConnectError, UpstreamError, UpstreamReset
from holdfast.generation.launcher import Started
from holdfast.generation.route import Route
from holdfast.observe.events import AttemptEnded
from holdfast.streams.stream import Retrying
from tests.generation.test_pump import NO_RETRY, outcome, reset, texts
from tests.support.clock import Clock
from tests.support.generating import Gateway, request
from tests.support.reading import Reading
from tests.support.scripted_upstream import ScriptedCall, chunk


def say(call: ScriptedCall, status: int, error: Any, **headers: str) -> None:
    """Answer with an error status, in the provider's words."""
    call.head(status, content_type="application/json", **headers)
    call.data(json.dumps({"error": error}).encode()).end()


def error_of(reading: Reading) -> ErrorBody:
    assert reading.end is not None
    assert reading.end.error is not None
    return reading.end.error


def breaker(gateway: Gateway, name: str = "sim") -> str:
    return gateway.targets[name].health.breaker.state.value


def failed_requests(gateway: Gateway, count: int, error: UpstreamError, *, tokens: bool = False) -> None:
    for _ in range(count):
        gateway.start()
        call = gateway.upstream().call
        if tokens:
            call.head().tokens("Hi")
        call.fail(error)
        gateway.settle()


# -- identity --


def test_error_has_the_providers_code_type_param_status_and_request_id(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    said = {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
    say(gateway.upstream().call, 400, {**said, "param": "messages"}, x_request_id="req_7")
    gateway.settle()
    assert error_of(reading) == ErrorBody(
        "upstream_status",
        "too long",
        param="messages",
        status=400,
        provider_code="context_length_exceeded",
        provider_type="invalid_request_error",
        provider_request_id="req_7",
    )
    assert reading.end is not None
    assert reading.end.attempts[0].provider_request_id == "req_7"


@pytest.mark.parametrize(
    ("status", "should_retry", "tries", "is_retryable"),
    [
        (429, None, 4, True),
        (429, "false", 1, False),
        (503, "false", 1, False),
        (409, None, 4, True),
        (400, None, 1, False),
        (400, "true", 4, True),
        (404, None, 1, False),
        (422, "nonsense", 1, False),
    ],
)
def test_status_and_the_providers_word_decide_whether_it_is_asked_again(
    clock: Clock, status: int, should_retry: str | None, tries: int, is_retryable: bool
) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    headers = {} if should_retry is None else {"x_should_retry": should_retry}
    for _ in range(tries):
        say(gateway.upstream().call, status, "no", **headers)
        clock.advance(4.0)
    assert len(gateway.upstream().calls) == tries
    assert (error_of(reading).status, error_of(reading).retryable) == (status, is_retryable)


def test_refusal_that_is_not_to_be_repeated_fails_over(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start())
    say(gateway.upstream("one").call, 429, "no", x_should_retry="false")
    gateway.settle()
    gateway.upstream("two").call.answer("Hi")
    gateway.settle()
    assert texts(reading) == ["Hi"]


def test_milliseconds_are_waited_for(clock: Clock) -> None:
    gateway = Gateway(clock)
    Reading(gateway.start())
    say(gateway.upstream().call, 429, "no", retry_after_ms="1500", retry_after="9")
    clock.advance(1.4)
    assert len(gateway.upstream().calls) == 1
    clock.advance(0.7)
    assert len(gateway.upstream().calls) == 2


@pytest.mark.parametrize(("code", "tries"), [(400, 1), (429, 4), (503, 4)])
def test_code_within_an_answer_decides_before_any_text(clock: Clock, code: int, tries: int) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    for _ in range(tries):
        call = gateway.upstream().call
        call.head().events(json.dumps({"choices": [], "error": {"message": "no", "code": code}}).encode())
        clock.advance(6.0)
    assert len(gateway.upstream().calls) == tries
    assert outcome(reading)[:2] == ("failed", "upstream_error")
    assert (error_of(reading).status, error_of(reading).provider_code) == (code, str(code))
    assert breaker(gateway) == "closed"


# -- a refusal of the gateway itself --

REVOKED = {"message": "Incorrect API key provided: sk-ab***", "code": "invalid_api_key"}
QUOTA = {"message": "You exceeded your quota", "type": "insufficient_quota", "code": "insufficient_quota"}


@pytest.mark.parametrize(("status", "error"), [(401, REVOKED), (403, REVOKED), (429, QUOTA), (402, QUOTA)])
@pytest.mark.parametrize("streamed", [True, False])
def test_revoked_key_or_used_up_quota_fails_over_and_is_left_alone_with_one_loud_line(
    clock: Clock, caplog: pytest.LogCaptureFixture, status: int, error: dict[str, str], streamed: bool
) -> None:
    gateway = Gateway(clock, "one", "two")
    first = Reading(gateway.start(raw=request(stream=streamed)))
    second = Reading(gateway.start(raw=request(stream=streamed)))
    for call in gateway.upstream("one").calls:
        say(call, status, error)
    gateway.settle()
    lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 1
    assert (error["code"] in lines[0].getMessage(), "sk-ab" in lines[0].getMessage()) == (True, False)
    assert len(gateway.upstream("two").calls) == 2
    for reading in (first, second):
        reading.stream.cancel()
    gateway.settle()
    Reading(gateway.start())
    assert len(gateway.upstream("one").calls) == 2  # it is left alone
    statistics = gateway.targets["one"].health.statistics(clock.time())
    assert (statistics.breaker, statistics.opened) == ("open", 1)
    assert error["code"] in (statistics.reason or "")
    assert 59.0 <= statistics.retry_after <= 60.0


def test_refusal_of_the_only_provider_is_told_neutrally(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    say(gateway.upstream().call, 401, REVOKED)
    gateway.settle()
    error = error_of(reading)
    assert (error.code, error.retryable) == ("upstream_refused", False)
    assert (error.status, error.provider_code, error.provider_type) == (None, None, None)
    assert "sk-ab" not in error.message
    assert len(gateway.upstream().calls) == 1
    assert outcome(Reading(gateway.start()))[:2] == ("failed", "circuit_open")


@pytest.mark.parametrize("order", [("busy", "revoked"), ("revoked", "busy")])
def test_what_another_try_may_better_is_told_rather_than_what_it_cannot(
    clock: Clock, order: tuple[str, str]
) -> None:
    gateway = Gateway(clock, *order)
    reading = Reading(gateway.start())
    for name in order:
        if name == "busy":
            gateway.upstream(name).call.refuse(429, "slow down", retry_after="25")
        else:
            say(gateway.upstream(name).call, 401, "wrong key")
        gateway.settle()
    error = error_of(reading)
    assert (error.message, error.retryable, error.retry_after) == ("slow down", True, 25.0)


def test_provider_whose_key_is_good_again_is_found_by_a_trial(clock: Clock) -> None:
    gateway = Gateway(clock)
    gateway.start()
    say(gateway.upstream().call, 401, REVOKED)
    clock.advance(61.0)
    reading = Reading(gateway.start())
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert outcome(reading)[0] == "completed"
    assert gateway.targets["sim"].health.statistics(clock.time()).reason is None


@pytest.mark.parametrize(
    ("status", "error"), [(402, "fewer max_tokens"), (403, {"message": "no", "code": "model_not_found"})]
)
def test_refusal_of_one_request_or_model_fails_over_and_harms_no_other(
    clock: Clock, status: int, error: Any
) -> None:
    gateway = Gateway(clock, "one", "two")
    for _ in range(10):
        gateway.start()
        say(gateway.upstream("one").call, status, error)
        gateway.settle()
    assert len(gateway.upstream("two").calls) == 10
    assert breaker(gateway, "one") == "closed"


def test_quota_is_no_overload(clock: Clock) -> None:
    gateway = Gateway(clock, "one", limits={"one": 1})
    Reading(gateway.start())
    say(gateway.upstream("one").call, 429, QUOTA)
    gateway.settle()
    assert gateway.held == {}


# -- what counts against an endpoint --


def test_streams_of_one_dead_connection_count_as_one_event(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    for _ in range(9):
        gateway.start()
    lost = object.__new__(Route)  # any object that is the same for all
    for call in list(gateway.upstream().calls):
        error = reset()
        error.incident = lost
        call.fail(error)
    gateway.settle()
    assert breaker(gateway) == "closed"
    assert gateway.targets["sim"].health.failures["upstream_reset"] == 9


def test_requests_that_waited_for_one_connection_count_as_one_event(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    gateway.upstream().error = UpstreamConnectError("refused")
    for _ in range(9):
        gateway.start()
    gateway.settle()
    assert breaker(gateway) == "closed"


def test_connections_that_die_one_by_one_count_each(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    for _ in range(5):
        failed_requests(gateway, 1, reset())
    assert breaker(gateway) == "open"
    assert gateway.targets["sim"].health.statistics(clock.time()).reason == "upstream_reset"


@pytest.mark.parametrize("ending", ["malformed", "truncated", "reset", "error", "503"])
def test_answer_that_delivered_text_is_no_evidence_against_the_endpoint(clock: Clock, ending: str) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    for _ in range(20):
        gateway.start()
        call = gateway.upstream().call.head().tokens("Hi")
        if ending == "malformed":
            call.events(b'{"choices": 5').end()
        elif ending == "truncated":
            call.end()
        elif ending == "reset":
            call.fail(reset())
        else:
            code = 503 if ending == "503" else "x"
            call.events(json.dumps({"error": {"message": "no", "code": code}}).encode())
        gateway.settle()
    assert breaker(gateway) == "closed"
    assert {event.error is None for event in gateway.recorder.of(AttemptEnded)} == {False}


def test_our_bound_of_an_entry_is_not_the_providers_failure_and_not_asked_again(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two", streams={"log_bytes": 2048})
    for _ in range(20):
        reading = Reading(gateway.start())
        gateway.upstream("one").call.head().events(chunk("x" * 5000))
        gateway.settle()
        assert outcome(reading)[:2] == ("failed", "upstream_malformed")
    assert (breaker(gateway, "one"), gateway.upstream("two").calls) == ("closed", [])


def test_request_counts_once_however_often_it_is_tried(clock: Clock) -> None:
    gateway = Gateway(clock)
    for number in range(4):
        Reading(gateway.start())
        for _ in range(4):
            gateway.upstream().call.fail(reset())
            clock.advance(5.0)
        assert len(gateway.upstream().calls) == (number + 1) * 4
        assert breaker(gateway) == "closed"
    Reading(gateway.start())
    gateway.upstream().call.fail(reset())
    gateway.settle()
    assert breaker(gateway) == "open"


def test_trial_that_fails_opens_the_breaker_again_also_for_a_request_that_has_counted(clock: Clock) -> None:
    gateway = Gateway(clock, retry={"initial": 8.0, "maximum": 8.0})
    health = gateway.targets["sim"].health
    Reading(gateway.start())
    gateway.upstream().call.fail(reset())
    gateway.settle()
    for _ in range(4):
        permit = health.breaker.acquire(clock.time())
        assert permit is not None
        health.record(permit, reset(), clock.time())
    assert breaker(gateway) == "open"
    while len(gateway.upstream().calls) == 1 and clock.time() < 20:
        clock.advance(0.5)
    if len(gateway.upstream().calls) == 2:  # the delay was drawn behind the pause
        gateway.upstream().call.fail(reset())
        gateway.settle()
        assert breaker(gateway) == "open"


def test_empty_answer_fails_over_and_is_not_repeated_at_the_same_endpoint(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start())
    gateway.upstream("one").call.head().end()
    gateway.settle()
    gateway.upstream("two").call.head().end()
    clock.advance(30.0)
    assert outcome(reading) == (
        "failed",
        "upstream_truncated",
        [("one", "upstream_truncated"), ("two", "upstream_truncated")],
    )


# -- waits --


def test_caller_is_told_of_a_wait_and_of_its_cause(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    reading.told.clear()
    say(gateway.upstream().call, 429, "no", retry_after="3")
    gateway.settle()
    assert reading.told == [("position", None)]
    waiting = reading.stream.retrying
    assert waiting is not None
    assert (waiting.attempt, waiting.code) == (2, "upstream_status")
    assert 3.0 <= waiting.delay <= 3.5
    assert reading.stream.status == "running"
    clock.advance(4.0)
    assert reading.stream.retrying is None
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert outcome(reading)[0] == "completed"


def test_wait_beyond_the_bound_fails_at_once_with_what_the_provider_asked_for(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    say(gateway.upstream().call, 429, "no", retry_after="20")
    gateway.settle()
    assert outcome(reading)[:2] == ("failed", "upstream_status")
    assert error_of(reading).retry_after == 20.0


def test_waits_of_one_request_are_bounded_in_sum(clock: Clock) -> None:
    gateway = Gateway(clock, retry={"max_attempts": 100})
    reading = Reading(gateway.start())
    while reading.end is None:
        call = gateway.upstream().call
        say(call, 429, "no", retry_after="6")
        while gateway.upstream().call is call and reading.end is None:
            clock.advance(1.0)
    attempts = reading.end.attempts
    waits = [
        later.started_ms - earlier.started_ms - earlier.duration_ms
        for earlier, later in itertools.pairwise(attempts)
    ]
    assert 2 <= len(waits) <= 3
    assert 12_000 <= sum(waits) <= 20_000


def test_end_takes_the_news_of_a_wait_with_it(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    say(gateway.upstream().call, 429, "no", retry_after="5")
    gateway.settle()
    assert isinstance(reading.stream.retrying, Retrying)
    reading.stream.cancel()
    assert reading.stream.retrying is None


# -- who has been waited for --


def test_cancelled_request_names_the_provider_that_it_has_waited_for(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start(raw=request(stream=False)))
    say(gateway.upstream("one").call, 503, "no")
    clock.advance(20.0)
    statistics = gateway.targets["two"].health.statistics(clock.time())
    assert (statistics.waiting, statistics.oldest_wait) == (1, 20.0)
    reading.stream.cancel("enough")
    assert reading.end is not None
    assert [(attempt.provider, attempt.error) for attempt in reading.end.attempts] == [
        ("one", "upstream_status"),
        ("two", "cancelled"),
    ]
    assert reading.end.attempts[1].duration_ms == 20_000
    gateway.settle()
    assert gateway.targets["two"].health.statistics(clock.time()).waiting == 0


def test_attempt_waits_no_more_once_its_answer_has_begun(clock: Clock) -> None:
    gateway = Gateway(clock)
    gateway.start()
    clock.advance(3.0)
    health = gateway.targets["sim"].health
    assert health.statistics(clock.time()).oldest_wait == 3.0
    gateway.upstream().call.head().tokens("Hi")
    assert (health.statistics(clock.time()).waiting, health.statistics(clock.time()).oldest_wait) == (0, 0.0)


def test_answer_that_is_not_streamed_has_a_deadline_of_its_own(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two", total=1800.0)
    reading = Reading(gateway.start(raw=request(stream=False)))
    clock.pass_by(599.0)
    assert gateway.upstream("two").calls == []
    clock.pass_by(1.0)
    assert len(gateway.upstream("two").calls) == 1
    clock.pass_by(600.0)
    assert outcome(reading) == ("failed", "answer_timeout", [("one", "answer_timeout"), ("two", "answer_timeout")])


# -- secrets --


def test_secret_that_a_provider_quotes_reaches_neither_caller_nor_observer(clock: Clock) -> None:
    secret = "sk-very-secret-key-0123456789"
    gateway = Gateway(clock, masking=Masking([secret]))
    for status in (400, 500):
        reading = Reading(gateway.start())
        error = {"message": f"{'x' * 990} {secret}", "code": secret, "type": secret, "param": secret}
        say(gateway.upstream().call, status, error, x_request_id=f"req-{secret}", x_should_retry="false")
        gateway.settle()
        assert secret[:12] not in repr(reading.end)
        assert error_of(reading).provider_code == "***"
    reading = Reading(gateway.start())
    gateway.upstream().call.head().tokens("Hi").events(
        json.dumps({"error": {"message": f"wrong key {secret}"}}).encode()
    )
    gateway.settle()
    assert error_of(reading).message == "wrong key ***"
    told = [repr(vars(event.error)) for event in gateway.recorder.of(AttemptEnded) if event.error is not None]
    assert not any(secret[:12] in text for text in told)


# -- a request id stands for an answer --


@pytest.mark.parametrize(("status", "code"), [(503, "upstream_status"), (402, "upstream_refused")])
def test_request_id_of_a_passing_failure_starts_anew(clock: Clock, status: int, code: str) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    first = Reading(gateway.start("r-1"))
    gateway.upstream().call.refuse(status)
    gateway.settle()
    assert outcome(first)[:2] == ("failed", code)
    second = gateway.create("r-1")
    assert isinstance(second, Started)
    assert not second.is_duplicate
    assert second.stream is not first.stream
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    third = gateway.create("r-1")
    assert isinstance(third, Started)
    assert (third.is_duplicate, third.stream) == (True, second.stream)
    assert len(gateway.upstream().calls) == 2
    first.stream.release(first.cursor)
    clock.advance(2000.0)  # the retention of both is over
    assert gateway.directory.statistics().streams == 0


@pytest.mark.parametrize("how", ["refused", "delivered", "cancelled", "running"])
def test_request_id_of_anything_else_stands_for_its_stream(clock: Clock, how: str) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    first = gateway.start("r-1")
    Reading(first)
    call = gateway.upstream().call
    if how == "refused":
        call.refuse(400)
    elif how == "delivered":
        call.head().tokens("Hi").fail(UpstreamReset("cut"))
    elif how == "cancelled":
        first.cancel()
    gateway.settle()
    again = gateway.create("r-1")
    assert isinstance(again, Started)
    assert (again.is_duplicate, again.stream) == (True, first)
    assert len(gateway.upstream().calls) == 1


def test_request_that_is_not_to_be_billed_twice_stands_for_its_failure(clock: Clock) -> None:
    gateway = Gateway(clock, retry={"at_most_once": True})
    first = gateway.start("r-1")
    gateway.upstream().call.fail(reset())
    gateway.settle()
    again = gateway.create("r-1")
    assert isinstance(again, Started)
    assert (again.is_duplicate, again.stream) == (True, first)
