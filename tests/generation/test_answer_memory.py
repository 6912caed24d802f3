"""What an attempt holds of an answer that is on its way into the log counts against the tenant's memory."""

from __future__ import annotations

import json

import pytest

from holdfast.core.limits.budget import Kind
from holdfast.errors import UpstreamReset
from tests.support.clock import Clock
from tests.support.generating import Gateway, request
from tests.support.reading import Reading


def logs(gateway: Gateway) -> int:
    return gateway.budget.by_kind[Kind.LOGS]


@pytest.mark.parametrize("stream", [True, False])
def test_answer_that_comes_without_an_entry_is_counted_until_there_is_one(clock: Clock, *, stream: bool) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start(raw=request(stream=stream)))
    call = gateway.upstream().call
    body = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 300_000}, "finish_reason": "stop"}]})
    raw = f"data: {body}\n\n".encode() if stream else body.encode()
    call.head(content_type="text/event-stream" if stream else "application/json").data(raw[:200_000])
    assert logs(gateway) == 200_000
    call.data(raw[200_000:])
    call.end()
    gateway.settle()
    assert reading.end is not None
    assert reading.end.status == "completed"
    assert 300_000 < logs(gateway) < 310_000


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_answer_that_ends_without_an_entry_leaves_nothing(clock: Clock, how: str, *, stream: bool) -> None:
    gateway = Gateway(clock, retry={"max_attempts": 1})
    reading = Reading(gateway.start(raw=request(stream=stream)))
    call = gateway.upstream().call
    call.head().data(b'data: {"' + b"x" * 200_000)
    if how == "cancel":
        reading.stream.cancel()
    else:
        call.fail(UpstreamReset("cut"))
    gateway.settle()
    assert reading.stream.is_ended
    assert logs(gateway) < 10_000


@pytest.mark.parametrize("at_most_once", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_answer_that_there_is_no_room_for_fails_and_its_provider_is_not_blamed(
    clock: Clock, *, stream: bool, at_most_once: bool
) -> None:
    gateway = Gateway(clock, memory=1 << 20, retry={"at_most_once": at_most_once})
    reading = Reading(gateway.start(raw=request(stream=stream)))
    call = gateway.upstream().call
    call.head()
    call.data(b'data: {"' + b"x" * 500_000)
    assert not reading.stream.is_ended
    for _ in range(5):
        call.data(b"x" * 100_000)
    gateway.settle()
    assert reading.end is not None
    error = reading.end.error
    assert error is not None
    assert (error.code, error.retryable, error.retry_after) == ("no_room_for_answer", not at_most_once, 1.0)
    assert logs(gateway) < 10_000
    assert len(gateway.upstream().calls) == 1
    assert gateway.targets["sim"].health.statistics(clock.time()).breaker == "closed"
