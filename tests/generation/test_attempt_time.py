"""How long an attempt waits for what, in virtual time."""

from __future__ import annotations

import json

import pytest

from holdfast.core.entries import EndBody
from holdfast.errors import UpstreamReset
from tests.support.clock import Clock
from tests.support.generating import Gateway, request
from tests.support.reading import Reading
from tests.support.scripted_upstream import FINISH, chunk

NO_RETRY = {"max_attempts": 1}
ROLE = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}).encode()


def outcome(reading: Reading) -> tuple[str, str | None]:
    end = ended(reading)
    return end.status, None if end.error is None else end.error.code


def ended(reading: Reading) -> EndBody:
    assert reading.end is not None, "the stream has not ended"
    return reading.end


def test_usage_is_waited_for_two_seconds_and_heartbeats_do_not_lengthen_them(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head().tokens("Hi").events(FINISH)
    for _ in range(19):
        clock.advance(0.1)
        call.data(b": still here\n\n")
    assert reading.end is None
    clock.advance(0.2)
    assert outcome(reading) == ("completed", None)
    assert call.told == ["cancel"]
    assert gateway.held == {}


def test_usage_that_comes_within_that_time_counts(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head().tokens("Hi").events(FINISH)
    clock.advance(1.0)
    call.events(chunk(usage={"prompt_tokens": 7}))
    clock.advance(1.5)
    end = ended(reading)
    assert end.usage is not None
    assert (end.status, end.usage.prompt_tokens) == ("completed", 7)


@pytest.mark.parametrize("stream", [True, False])
def test_text_behind_a_finish_reason_is_waited_for_like_any_other(clock: Clock, stream: bool) -> None:
    """Some APIs write one into every chunk."""
    gateway = Gateway(clock)
    reading = Reading(gateway.start(raw=request(stream=stream)))
    call = gateway.upstream().call
    call.head()
    for _ in range(6):
        call.events(b'{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}')
        clock.advance(1.5)
    assert not reading.stream.is_ended
    clock.advance(1.0)
    assert outcome(reading) == ("completed", None)
    assert b"".join(reading.entries).count(b"Hi") == 6


def test_answer_that_is_cut_behind_its_finish_reason_is_complete(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    gateway.upstream().call.head().tokens("Hi").events(FINISH).fail(UpstreamReset("cut"))
    gateway.settle()
    assert outcome(reading) == ("completed", None)
    assert len(gateway.upstream().calls) == 1


def test_time_for_the_usage_begins_when_a_slow_reader_has_made_room(clock: Clock) -> None:
    gateway = Gateway(clock, streams={"log_bytes": 1100})
    reading = Reading(gateway.start(), is_slow=True)
    call = gateway.upstream().call
    call.head().tokens(*["x" * 300] * 3).events(FINISH)
    call.data(b": more\n\n")
    assert call.told == ["pause"]
    clock.advance(9.0)
    assert not reading.stream.is_ended
    reading.advance()
    call.events(chunk(usage={"prompt_tokens": 7}))
    clock.advance(1.5)
    assert not reading.stream.is_ended
    clock.advance(1.0)
    assert reading.stream.end is not None
    assert reading.stream.end.status == "completed"
    assert reading.stream.end.usage is not None


def test_silence_behind_a_finish_reason_that_fills_the_log_is_not_waited_out(clock: Clock) -> None:
    gateway = Gateway(clock, streams={"log_bytes": 1100})
    reading = Reading(gateway.start(), is_slow=True)
    call = gateway.upstream().call
    call.head().events(*[chunk("x" * 300)] * 3, FINISH)
    assert call.told == ["pause"]
    clock.advance(5.0)
    assert not reading.stream.is_ended
    reading.advance()
    clock.advance(2.5)
    assert reading.stream.end is not None
    assert (reading.stream.end.status, call.told) == ("completed", ["pause", "resume", "cancel"])


def test_reader_that_takes_a_whole_answer_too_slowly_has_it_whole(clock: Clock) -> None:
    gateway = Gateway(clock, streams={"log_bytes": 1100})
    reading = Reading(gateway.start(), is_slow=True)
    gateway.upstream().call.head().tokens(*["x" * 300] * 3).events(FINISH)
    clock.advance(301.0)
    assert reading.stream.end is not None
    assert reading.stream.end.status == "completed"


def test_total_deadline_does_not_undo_an_answer_with_its_finish_reason(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head()
    for _ in range(299):
        call.tokens("Hi")
        clock.advance(1.0)
    call.events(FINISH)
    clock.advance(1.5)
    assert outcome(reading) == ("completed", None)


def test_silence_before_the_first_content_may_last_as_long_as_before_the_first_byte(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head().data(b": thinking\n\n")
    clock.advance(29.0)
    call.events(ROLE)
    clock.advance(29.0)
    assert reading.entries == []
    call.tokens("Hi")
    gateway.settle()
    assert reading.entries[0] == ROLE
    clock.advance(10.5)
    assert outcome(reading) == ("incomplete", "idle_timeout")


@pytest.mark.parametrize("shown", [b": thinking\n\n", b"data: " + ROLE + b"\n\n"])
def test_provider_that_shows_nothing_is_replaced(clock: Clock, shown: bytes) -> None:
    gateway = Gateway(clock, "one", "two")
    reading = Reading(gateway.start())
    gateway.upstream("one").call.head().data(shown)
    clock.advance(30.5)
    gateway.upstream("two").call.answer("Hi")
    gateway.settle()
    assert outcome(reading) == ("completed", None)
    assert [attempt.error for attempt in ended(reading).attempts] == ["idle_timeout", None]


def test_body_of_an_error_is_waited_for_five_seconds(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head(400).data(b'{"error":')
    clock.advance(4.5)
    call.data(b'"no"}')
    assert reading.end is None
    clock.advance(1.0)
    assert outcome(reading) == ("failed", "upstream_status")
    error = ended(reading).error
    assert error is not None
    assert (error.status, error.message) == (400, "no")
    assert call.told == ["cancel"]


def test_endless_body_of_an_error_is_read_no_further_than_its_bound(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head(400).data(b"x" * 65_000).data(b"x" * 1000).data(b"x" * 1000)
    gateway.settle()
    assert outcome(reading) == ("failed", "upstream_status")
    assert call.told == ["cancel"]


@pytest.mark.parametrize("begun", [b"", b'{"error":{"message":"wrong key"'])
def test_refusal_whose_body_is_cut_is_a_refusal(clock: Clock, begun: bytes) -> None:
    """Who refuses a request before it is sent whole may reset the connection under its own answer."""
    gateway = Gateway(clock)
    reading = Reading(gateway.start())
    call = gateway.upstream().call
    call.head(413)
    if begun:
        call.data(begun)
    call.fail(UpstreamReset("cut"))
    clock.advance(5.0)
    assert outcome(reading) == ("failed", "upstream_status")
    error = ended(reading).error
    assert error is not None
    assert (error.status, error.retryable, len(gateway.upstream().calls)) == (413, False, 1)


def test_nothing_is_appended_to_an_answer_that_was_refused(clock: Clock) -> None:
    gateway = Gateway(clock, retry=NO_RETRY)
    reading = Reading(gateway.start())
    gateway.upstream().call.head(content_encoding="gzip").tokens("Hi").complete()
    gateway.upstream().call.end()
    gateway.settle()
    assert outcome(reading) == ("failed", "upstream_malformed")
    assert reading.entries == []
