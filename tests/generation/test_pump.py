"""`Pump` and `Attempt` at providers that the test plays: which is asked when, and what is held meanwhile."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest

from holdfast.admission.principal import Principal
from holdfast.core.entries import EndBody
from holdfast.dialects.chat import CHAT
from holdfast.dialects.dialect import Dialect
from holdfast.errors import (
    ConnectTimeout,
    UpstreamConnectError,
    UpstreamError,
    UpstreamReset,
)
from holdfast.generation.launcher import Terms
from holdfast.observe.events import AttemptEnded, FirstEntry, RequestEnded, RequestQueued
from holdfast.streams.memory_store import MemoryStore
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.generating import ALICE, Gateway, Raising, request
from tests.support.reading import Reading
from tests.support.scripted_upstream import chunk
from tests.support.stores import LateStore, Line

NO_RETRY = {"max_attempts": 1}


def texts(reading: Reading) -> list[str]:
    found = [json.loads(entry)["choices"][0]["delta"].get("content") for entry in reading.entries]
    return [text for text in found if text is not None]


def outcome(reading: Reading) -> tuple[str, str | None, list[tuple[str, str | None]]]:
    """Status, error code, and provider and error of each attempt."""
    end = reading.end
    assert end is not None, "the stream has not ended"
    attempts = [(attempt.provider, attempt.error) for attempt in end.attempts]
    return end.status, None if end.error is None else end.error.code, attempts


def reset(**flags: bool) -> UpstreamReset:
    error = UpstreamReset("the connection was closed")
    for name, value in flags.items():
        setattr(error, name, value)
    return error


# -- which provider is asked --


def test_next_target_of_the_route_is_asked_before_the_same_one_again(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start())
    gateway.upstream("one").call.refuse(503)
    gateway.settle()
    gateway.upstream("two").call.refuse(500)
    gateway.settle()
    assert [len(gateway.upstream(name).calls) for name in ("one", "two")] == [1, 1]
    clock.advance(1.0)  # after a delay, whichever is ready first
    asked = next(name for name in ("one", "two") if len(gateway.upstream(name).calls) == 2)
    gateway.upstream(asked).call.answer("Hi")
    gateway.settle()
    assert outcome(reading) == (
        "completed",
        None,
        [("one", "upstream_status"), ("two", "upstream_status"), (asked, None)],
    )
    assert texts(reading) == ["Hi"]
    assert gateway.held == {}


def test_same_target_is_asked_again_after_what_it_asked_for(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    gateway.upstream().call.refuse(429, retry_after="3")
    clock.advance(2.9)
    assert len(gateway.upstream().calls) == 1
    clock.advance(0.7)
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert outcome(reading)[0] == "completed"


def test_request_is_tried_no_more_often_than_configured(clock: Clock) -> None:
    gateway = Gateway(clock, retry={"max_attempts": 2})
    reading = Reading(gateway.start())
    for _ in range(2):
        gateway.upstream().call.refuse(503, "busy")
        clock.advance(1.0)
    assert outcome(reading) == ("failed", "upstream_status", [("sim", "upstream_status")] * 2)
    assert reading.end is not None
    assert reading.end.error is not None
    assert (reading.end.error.status, "busy" in reading.end.error.message) == (503, True)
    assert len(gateway.upstream().calls) == 2


def test_refusal_of_the_request_is_final(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start())
    gateway.upstream("one").call.refuse(400)
    gateway.settle()
    assert outcome(reading) == ("failed", "upstream_status", [("one", "upstream_status")])
    assert gateway.upstream("two").calls == []


def test_target_with_an_open_breaker_is_left_out(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    breaker = gateway.targets["one"].health.breaker
    for _ in range(5):
        permit = breaker.acquire(clock.time())
        assert permit is not None
        breaker.fail(permit, clock.time())
    reading = Reading(gateway.start())
    gateway.upstream("two").call.answer("Hi")
    gateway.settle()
    assert outcome(reading) == ("completed", None, [("two", None)])


def test_request_fails_at_once_where_every_breaker_is_open(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    for _ in range(5):
        Reading(gateway.start())
        gateway.upstream().call.fail(reset())
        gateway.settle()
    reading = Reading(gateway.start())
    assert outcome(reading) == ("failed", "circuit_open", [])
    assert reading.end is not None
    assert reading.end.error is not None
    assert (reading.end.error.retry_after or 0) > 0
    assert len(gateway.upstream().calls) == 5


def test_target_that_cannot_be_reached_is_passed_over(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    gateway.upstream("one").error = UpstreamConnectError("connection refused")
    reading = Reading(gateway.start())
    gateway.upstream("two").call.answer("Hi")
    gateway.settle()
    assert outcome(reading)[2] == [("one", "upstream_connect_error"), ("two", None)]


def test_request_that_was_not_processed_is_sent_again_at_once(clock: Clock) -> None:
    gateway = Gateway(clock, retry={"max_attempts": 1})
    reading = Reading(gateway.start())
    gateway.upstream().call.fail(reset(processed=False))
    gateway.settle()
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert outcome(reading)[0] == "completed"


def test_timeout_of_the_answer_is_not_repeated_at_the_same_target(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    clock.pass_by(30.0)
    clock.advance(1.0)
    assert outcome(reading) == ("failed", "first_byte_timeout", [("sim", "first_byte_timeout")])
    assert call.told == ["cancel"]


# -- once something was accepted --


def test_answer_that_breaks_off_is_never_generated_again(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start())
    gateway.upstream("one").call.head().tokens("Hel", "lo").fail(reset())
    clock.advance(5.0)
    assert texts(reading) == ["Hel", "lo"]
    assert outcome(reading) == ("incomplete", "upstream_reset", [("one", "upstream_reset")])
    assert gateway.upstream("two").calls == []


def test_answer_that_is_accepted_and_not_yet_visible_is_never_generated_again(clock: Clock) -> None:
    line = Line()
    store = LateStore(MemoryStore(Timers(clock), is_shared=True), line)
    gateway = Gateway(clock, "one", "two", store=store)
    answers: list[Any] = []
    gateway.launcher.create(*_create("r-1"), answers.append)
    line.settle()
    gateway.settle()
    stream = answers[0].stream
    reading = Reading(stream)
    gateway.upstream("one").call.head().tokens("Hi")
    clock.settle()  # its batch is on its way to the store
    assert (stream.accepted, stream.log.next, len(line)) == (1, 0, 1)
    gateway.upstream("one").call.fail(reset())
    clock.advance(5.0)
    assert gateway.upstream("two").calls == []
    assert not stream.is_ended
    line.settle()
    assert texts(reading) == ["Hi"]
    assert outcome(reading) == ("incomplete", "upstream_reset", [("one", "upstream_reset")])


def _create(request_id: str) -> tuple[Principal, Dialect, bytes, Terms]:
    return ALICE, CHAT, request(), Terms(60.0, request_id=request_id)


def test_usage_and_end_are_reported_though_the_end_is_stored_later(clock: Clock) -> None:
    line = Line()
    store = LateStore(MemoryStore(Timers(clock), is_shared=True), line)
    gateway = Gateway(clock, store=store, admission={"tokens_per_minute": 10_000})
    answers: list[Any] = []
    gateway.launcher.create(*_create("r-1"), answers.append)
    line.settle()
    gateway.settle()
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert gateway.recorder.of(RequestEnded) == []
    assert gateway.admission.held["streams"] == 0  # the provider is let go of
    account = next(iter(gateway.admission.limiter.keys))
    assert account.tokens is not None
    assert account.tokens.used(clock.time()) == 10
    line.settle()
    ended = gateway.recorder.one(RequestEnded)
    assert ended.end.usage is not None
    assert ended.entries == 2
    assert gateway.held == {}


# -- at most once --


@pytest.mark.parametrize("error", [reset(), UpstreamError("the answer is no chunk")], ids=["reset", "error"])
def test_request_that_may_have_been_processed_is_asked_at_most_once(clock: Clock, error: UpstreamError) -> None:
    gateway = Gateway(clock, "one", "two", retry={"at_most_once": True})
    reading = Reading(gateway.start())
    gateway.upstream("one").call.fail(error)
    clock.advance(5.0)
    assert outcome(reading) == ("failed", error.code, [("one", error.code)])
    assert reading.end is not None
    assert reading.end.error is not None
    assert not reading.end.error.retryable
    assert reading.end.attempts[0].unconfirmed
    assert gateway.upstream("two").calls == []


@pytest.mark.parametrize("how", ["refused", "not processed", "not connected"])
def test_request_that_was_certainly_not_processed_is_asked_elsewhere(clock: Clock, how: str) -> None:
    gateway = Gateway(clock, "one", "two", retry={"at_most_once": True})
    if how == "not connected":
        gateway.upstream("one").error = ConnectTimeout("no connection")
    reading = Reading(gateway.start())
    if how == "refused":
        gateway.upstream("one").call.refuse(503)
    elif how == "not processed":
        gateway.upstream("one").call.fail(reset(processed=False))
    clock.advance(5.0)
    asked = "one" if len(gateway.upstream("one").calls) == 2 else "two"
    gateway.upstream(asked).call.answer("Hi")
    gateway.settle()
    assert outcome(reading)[0] == "completed"


# -- crowded providers --


def test_full_provider_sends_the_request_to_the_next_one(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two", limits={"one": 1, "two": 1})
    gateway.start()
    gateway.start()
    assert [len(gateway.upstream(name).calls) for name in ("one", "two")] == [1, 1]
    assert gateway.held["slots of one"] == gateway.held["slots of two"] == 1
    waiting = gateway.start()
    assert waiting.queue_position == 0
    gateway.upstream("two").call.answer("Hi")
    gateway.settle()
    assert waiting.queue_position is None
    assert len(gateway.upstream("two").calls) == 2


def crowd(clock: Clock, **options: Any) -> tuple[Gateway, Reading, Any]:
    """A request whose provider `one` has failed and must be left alone, while `two` is full with another."""
    gateway = Gateway(clock, "one", "two", limits={"two": 1}, **options)
    only_two = gateway.route("two")
    both = gateway.routes["demo"]
    gateway.routes["demo"] = only_two
    gateway.start("r-other")
    gateway.routes["demo"] = both
    stream = gateway.start("r-1")
    reading = Reading(stream)
    return gateway, reading, gateway.upstream("one").call


def test_failed_request_waits_in_the_queue_for_a_crowded_target(clock: Clock) -> None:
    gateway, reading, call = crowd(clock)
    call.refuse(429, retry_after="100")
    gateway.settle()
    assert (reading.stream.status, reading.stream.queue_position) == ("queued", 0)
    assert reading.told == [("position", 0)]
    assert gateway.recorder.one(RequestQueued).stream == reading.stream.id
    clock.advance(4.0)
    gateway.upstream("two").call.answer("other")
    gateway.settle()
    assert reading.stream.status == "running"
    gateway.upstream("two").call.answer("Hi")
    gateway.settle()
    assert outcome(reading) == ("completed", None, [("one", "upstream_status"), ("two", None)])
    ended = gateway.recorder.of(RequestEnded)[-1]
    assert (ended.stream, ended.queued) == (reading.stream.id, 4.0)
    assert gateway.held == {}


def test_wait_for_a_crowded_target_ends_in_time_with_what_the_provider_said(clock: Clock) -> None:
    gateway, reading, call = crowd(clock, queue={"deadline": 5.0})
    call.refuse(429, "slow down", retry_after="100")
    clock.advance(6.0)
    assert outcome(reading) == ("failed", "upstream_status", [("one", "upstream_status")])
    assert gateway.recorder.of(RequestEnded)[-1].queued == pytest.approx(5.0, abs=0.2)
    gateway.upstream("two").call.answer("other")
    gateway.settle()
    assert gateway.held == {}


def test_full_queue_leaves_a_failed_request_with_what_the_provider_said(clock: Clock) -> None:
    gateway, reading, call = crowd(clock, queue={"max_waiting": 0})
    call.refuse(429, retry_after="100")
    gateway.settle()
    assert outcome(reading) == ("failed", "upstream_status", [("one", "upstream_status")])


def test_request_that_waits_again_is_cancelled(clock: Clock) -> None:
    gateway, reading, call = crowd(clock)
    call.refuse(429, retry_after="100")
    clock.advance(3.0)
    reading.stream.cancel()
    assert outcome(reading)[:2] == ("cancelled", "cancelled")
    gateway.settle()
    assert gateway.admission.waiting_for("demo") == 0
    assert gateway.recorder.one(RequestEnded).queued == 3.0
    gateway.upstream("two").call.answer("other")
    gateway.settle()
    assert len(gateway.upstream("two").calls) == 1
    assert gateway.held == {}


# -- cancelling --


@pytest.mark.parametrize("state", ["connecting", "sent", "head", "answering", "backing off"])
@pytest.mark.parametrize("how", ["cancel", "abandon"])
def test_cancelled_request_leaves_no_slot_permit_and_ticket(clock: Clock, state: str, how: str) -> None:
    gateway = Gateway(clock, limits={"sim": 1}, retry={"initial": 8.0})
    gateway.upstream().connects = state != "connecting"
    stream = gateway.start(grace=0.0)
    reading = Reading(stream)
    call = gateway.upstream().call
    if state in ("head", "answering"):
        call.head()
    if state == "answering":
        call.tokens("Hi")
    if state == "backing off":
        call.refuse(503)
    gateway.settle()
    if how == "cancel":
        stream.cancel("enough")
    else:
        stream.lose(reading.cursor)
    assert stream.end is not None
    assert stream.end.status == "cancelled"
    if state == "answering":
        call.tokens("too late")
    gateway.settle()
    assert gateway.held == {}
    assert stream.log.next == (2 if state == "answering" else 1)
    if state == "connecting":
        assert gateway.upstream().cancelled == 1
    elif state != "backing off":
        assert call.told == ["cancel"]
    records = [event.record.error for event in gateway.recorder.of(AttemptEnded)]
    assert records == (["upstream_status"] if state == "backing off" else ["cancelled"])
    assert gateway.recorder.one(RequestEnded).end == stream.end
    # The breaker was told: a trial that was cancelled would leave it closed to everybody.
    assert gateway.targets["sim"].health.breaker.can_pass(clock.time())


def test_cancelled_trial_leaves_the_breaker_to_the_next_request(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    for _ in range(5):
        gateway.start()
        gateway.upstream().call.fail(reset())
        gateway.settle()
    clock.advance(6.0)
    trial = gateway.start()
    assert not gateway.targets["sim"].health.breaker.can_pass(clock.time())
    trial.cancel()
    gateway.settle()
    assert gateway.targets["sim"].health.breaker.can_pass(clock.time())


def test_dialect_that_fails_leaves_the_breaker_to_the_next_request(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    for _ in range(5):
        gateway.start()
        gateway.upstream().call.fail(reset())
        gateway.settle()
    clock.advance(6.0)
    endpoint = gateway.targets["sim"].endpoint
    monkeypatch.setattr(endpoint, "exchange", Mock(side_effect=RecursionError))
    trial = Reading(gateway.start())
    gateway.settle()
    assert outcome(trial)[:2] == ("failed", "internal_error")
    assert gateway.targets["sim"].health.breaker.can_pass(clock.time())


# -- what observers are told of an attempt --


def test_attempt_tells_its_usage_its_first_entry_and_the_providers_id(clock: Clock) -> None:
    gateway = Gateway(clock)
    clock.advance(5.0)
    gateway.start("r-1")
    clock.advance(2.0)
    call = gateway.upstream().call.head(x_request_id="req_42")
    clock.advance(1.0)
    call.tokens("Hi")
    clock.advance(1.0)
    call.complete(prompt=11, completion=4)
    gateway.settle()
    told = gateway.recorder.one(AttemptEnded)
    assert (told.request_id, told.error, told.first_entry, told.provider_request_id) == (
        "r-1",
        None,
        3.0,
        "req_42",
    )
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (11, 4)
    assert (told.record.started_ms, told.record.duration_ms, told.record.status) == (0, 4000, 200)
    assert gateway.recorder.one(FirstEntry).after == 3.0


def test_every_attempt_is_told_also_one_that_broke_off(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start())
    gateway.upstream("one").call.refuse(503, x_request_id="req_1")
    clock.advance(1.0)
    call = gateway.upstream("two").call.head(x_request_id="req_2").tokens("Hi")
    call.events(chunk(usage={"prompt_tokens": 5, "completion_tokens": 1})).fail(reset())
    gateway.settle()
    first, second = gateway.recorder.of(AttemptEnded)
    assert (first.provider_request_id, first.first_entry, first.usage) == ("req_1", None, None)
    assert (second.provider_request_id, second.first_entry) == ("req_2", 1.0)
    assert second.usage is not None
    assert second.usage.prompt_tokens == 5
    assert [first.record, second.record] == (reading.end or EndBody("failed")).attempts


def test_broken_observer_costs_no_attempt(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1}, observer=Raising())
    reading = Reading(gateway.start())
    gateway.upstream().call.refuse(503)
    clock.advance(1.0)
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert outcome(reading)[0] == "completed"
    assert gateway.held == {}


# -- back-pressure and deadlines --


def test_full_log_pauses_the_provider_until_the_reader_has_advanced(clock: Clock) -> None:
    gateway = Gateway(clock, streams={"log_bytes": 1024})
    slow = Reading(gateway.start(), is_slow=True)
    call = gateway.upstream().call.head()
    while "pause" not in call.told:
        call.tokens("x" * 50)
    assert slow.stream.log.bytes < 1300
    slow.advance()
    assert call.told == ["pause", "resume"]
    call.complete()
    gateway.settle()
    slow.read()
    assert outcome(slow)[0] == "completed"


def test_room_that_comes_before_the_request_counts_as_sent_is_not_forgotten(clock: Clock) -> None:
    """A provider may answer before all of the request is sent, and the log be full and empty again by then."""
    gateway = Gateway(clock, streams={"log_bytes": 1024})
    gateway.upstream().connects = False
    slow = Reading(gateway.start(), is_slow=True)
    call = gateway.upstream().call.head().tokens("x" * 500, "y" * 500)
    assert gateway.directory.budget.waiting == {slow.stream}
    slow.advance()
    call.sent.set_result(None)
    gateway.settle()
    assert "pause" not in call.told
    call.complete()
    gateway.settle()
    slow.read()
    assert outcome(slow)[0] == "completed"


def test_full_log_before_the_request_counts_as_sent_pauses_it_then(clock: Clock) -> None:
    gateway = Gateway(clock, streams={"log_bytes": 1024})
    gateway.upstream().connects = False
    slow = Reading(gateway.start(), is_slow=True)
    call = gateway.upstream().call.head().tokens("x" * 500, "y" * 500)
    call.sent.set_result(None)
    gateway.settle()
    assert call.told == ["pause"]
    slow.advance()
    assert call.told == ["pause", "resume"]


def test_silence_of_a_paused_provider_is_not_its_own(clock: Clock) -> None:
    gateway = Gateway(clock, streams={"log_bytes": 1024})
    slow = Reading(gateway.start(), is_slow=True)
    call = gateway.upstream().call.head().tokens("x" * 500, "y" * 500)
    gateway.settle()
    clock.advance(60.0)
    assert not slow.stream.is_ended
    slow.advance()
    clock.advance(9.0)
    assert not slow.stream.is_ended
    clock.advance(2.0)
    assert call.told == ["pause", "resume", "cancel"]
    slow.read()
    assert outcome(slow)[:2] == ("incomplete", "idle_timeout")


def test_answer_has_to_be_complete_in_time(clock: Clock) -> None:
    gateway = Gateway(clock, "one", "two", retry=NO_RETRY)
    reading = Reading(gateway.start())
    call = gateway.upstream("one").call.head()
    for _ in range(60):
        call.tokens("x")
        clock.advance(5.0)
    clock.advance(1.0)
    assert outcome(reading)[:2] == ("incomplete", "total_timeout")


def test_answer_that_is_not_streamed_is_one_entry(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start(raw=request(stream=False)))
    call = gateway.upstream().call
    call.head(content_type="application/json")
    body = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {"total_tokens": 5}}'
    call.data(body[:20], body[20:]).end()
    gateway.settle()
    assert reading.entries == [body]
    assert reading.end is not None
    assert (reading.end.finish_reason, reading.end.usage and reading.end.usage.total_tokens) == ("stop", 5)


def test_other_content_type_is_no_answer(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head(content_type="text/html")
    call.data(b"<html>")
    gateway.settle()
    assert outcome(reading)[:2] == ("failed", "upstream_malformed")
    assert call.told == ["cancel"]


def test_ended_attempt_settles_what_the_answer_took_without_usage(clock: Clock) -> None:
    gateway = Gateway(clock, admission={"tokens_per_minute": 10_000}, retry=NO_RETRY)
    gateway.start()
    gateway.upstream().call.head().tokens("a", "b", "c").fail(reset())
    gateway.settle()
    account = next(iter(gateway.admission.limiter.keys))
    assert account.tokens is not None
    assert 3 < account.tokens.used(clock.time()) < 100
    gateway.start()
    used = account.tokens.used(clock.time())
    gateway.upstream().call.refuse(400)
    gateway.settle()
    assert account.tokens.used(clock.time()) <= used
    assert gateway.held == {}
