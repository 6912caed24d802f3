"""`Launcher`: what is refused holds nothing, what is a duplicate is found, what waits is admitted or not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from holdfast.admission.principal import Principal, Scopes
from holdfast.core.json_object import Members
from holdfast.core.limits.budget import Kind
from holdfast.dialects.chat import CHAT, ChatDialect
from holdfast.errors import (
    Draining,
    DuplicateRequest,
    Forbidden,
    HoldfastError,
    InvalidRequest,
    Overloaded,
    QueueFull,
    RateLimited,
    Unauthorized,
    UnknownModel,
)
from holdfast.generation.launcher import Started, Terms
from holdfast.observe.events import RequestEnded, RequestQueued, RequestRefused, RequestStarted
from holdfast.streams.memory_store import MemoryStore
from holdfast.streams.store import Batch, Claim
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.generating import ALICE, Gateway, Raising, request
from tests.support.reading import Reading
from tests.support.stores import LateStore, Line


class EchoDialect(ChatDialect):
    """A dialect of clients that no provider of the table can answer."""

    name = "echo"

    def parse(self, raw: bytes | str, *, stream: bool | None = None, found: Members | None = None) -> Any:
        ask = super().parse(raw, stream=stream, found=found)
        return type(ask)("echo", ask.model, ask.stream, ask.body, ask.bounds, ask.wants_usage)


def error_code(reading: Reading) -> str | None:
    end = reading.end
    assert end is not None
    return None if end.error is None else end.error.code


def is_claimed(gateway: Gateway, request_id: str) -> bool:
    found: list[object] = []
    gateway.directory.find_request(ALICE.owner, request_id, found.append)
    gateway.settle()
    return found != [None]


# -- a request that is served --


def test_request_is_answered_and_holds_nothing_afterwards(clock: Clock) -> None:
    gateway = Gateway(clock)
    stream = gateway.start("r-1")
    reading = Reading(stream)
    call = gateway.upstream().call
    assert call.body["model"] == "large"
    assert gateway.held["pumps"] == 1
    call.answer("Hello", " world")
    gateway.settle()
    assert reading.end is not None
    assert (reading.end.status, reading.end.finish_reason) == ("completed", "stop")
    assert reading.end.usage is not None
    assert reading.end.usage.total_tokens == 10
    assert [json.loads(entry)["choices"][0]["delta"].get("content") for entry in reading.entries] == [
        "Hello",
        " world",
        None,
    ]
    assert call.told == ["leave"]
    assert gateway.held == {}


def test_observers_are_told_of_the_whole_life_of_a_request(clock: Clock) -> None:
    gateway = Gateway(clock)
    gateway.start("r-1", session="s-1")
    clock.advance(2.0)
    gateway.upstream().call.head(x_request_id="req_9").tokens("Hi")
    clock.advance(1.0)
    gateway.upstream().call.complete()
    gateway.settle()
    assert gateway.recorder.names == ["RequestStarted", "FirstEntry", "AttemptEnded", "RequestEnded"]
    started = gateway.recorder.one(RequestStarted)
    assert (started.caller.key, started.caller.connection, started.caller.session) == ("alice", 1, "s-1")
    assert started.prompt() == [{"role": "user", "content": "hi"}]
    ended = gateway.recorder.one(RequestEnded)
    assert (ended.duration, ended.queued, ended.entries) == (3.0, 0.0, 2)
    assert ended.caller == started.caller


def test_observer_that_raises_harms_nobody(clock: Clock) -> None:
    gateway = Gateway(clock, observer=Raising())
    reading = Reading(gateway.start("r-1"))
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert error_code(reading) is None
    assert len(gateway.recorder.of(RequestEnded)) == 1
    assert isinstance(gateway.create("r-2", raw=request("none")), UnknownModel)
    assert len(gateway.recorder.of(RequestRefused)) == 1
    assert gateway.held == {}


# -- refusals --


def refused(gateway: Gateway, error: type[HoldfastError], **options: Any) -> None:
    """Ask, and check that the refusal leaves nothing: no claim, no ticket, no stream, and nothing was sent."""
    before, calls = gateway.held, sum(len(upstream.calls) for upstream in gateway.upstreams.values())
    created = gateway.directory.statistics().created
    answer = gateway.create("r-refused", **options)
    assert type(answer) is error
    assert gateway.held == before
    assert gateway.directory.statistics().created == created
    assert sum(len(upstream.calls) for upstream in gateway.upstreams.values()) == calls
    assert not is_claimed(gateway, "r-refused")
    told = gateway.recorder.of(RequestRefused)
    if told:  # what is no request of this API, or may not be asked, has no model to be told of
        assert (told[-1].error, told[-1].request_id, told[-1].caller.tenant) == (answer, "r-refused", "acme")


def test_bad_request_is_refused(clock: Clock) -> None:
    refused(Gateway(clock), InvalidRequest, raw=b"{}")


def test_request_beyond_the_scopes_is_refused(clock: Clock) -> None:
    principal = Principal("acme", scopes=Scopes(models=frozenset({"small"})))
    refused(Gateway(clock), Forbidden, principal=principal)


def test_expired_credential_is_refused(clock: Clock) -> None:
    gateway = Gateway(clock)
    clock.advance(10.0)
    refused(gateway, Unauthorized, principal=Principal("acme", expires=10.0))


def test_unknown_model_is_refused(clock: Clock) -> None:
    gateway = Gateway(clock)
    refused(gateway, UnknownModel, raw=request("none"))
    assert gateway.recorder.names == ["RequestRefused"]


def test_request_of_an_api_that_no_provider_can_answer_is_refused(clock: Clock) -> None:
    gateway = Gateway(clock)
    refused(gateway, InvalidRequest, dialect=EchoDialect())
    assert "`echo`" in gateway.recorder.one(RequestRefused).error.message


def test_draining_gateway_refuses_new_requests_and_finds_the_known_ones(clock: Clock) -> None:
    gateway = Gateway(clock)
    stream = gateway.start("r-1")
    gateway.launcher.drain()
    refused(gateway, Draining)
    assert gateway.create("r-1") == Started(stream, True, True)
    reading = Reading(stream)
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert error_code(reading) is None


def test_request_without_room_is_refused(clock: Clock) -> None:
    gateway = Gateway(clock, streams={"max_streams": 1})
    gateway.start("r-1")
    refused(gateway, Overloaded)


def test_requests_that_wait_or_run_count_against_their_tenants_memory(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1}, memory=200_000)
    large = request(padding="x" * 20_000)
    readings = [Reading(gateway.start(f"r-{number}", raw=large)) for number in range(3)]
    # As they came, and as they are written for the provider.
    assert gateway.budget.by_kind[Kind.REQUESTS] == 3 * 2 * len(large)
    error = gateway.create("r-3", raw=large)
    assert isinstance(error, Overloaded)
    assert "the tenant's share" in error.message
    assert not is_claimed(gateway, "r-3")
    other = Principal("other")
    assert isinstance(gateway.create("r-4", principal=other), Started)
    for reading in readings:
        reading.stream.cancel()
    gateway.settle()
    assert gateway.budget.by_kind[Kind.REQUESTS] == 2 * len(request())


def test_request_that_is_not_admitted_holds_no_memory(clock: Clock) -> None:
    gateway = Gateway(clock, admission={"requests_per_minute": 1})
    gateway.start("r-1").cancel()
    gateway.settle()
    refused(gateway, RateLimited)
    assert gateway.budget.by_kind[Kind.REQUESTS] == 0


def test_request_beyond_a_rate_limit_is_refused(clock: Clock) -> None:
    gateway = Gateway(clock, admission={"requests_per_minute": 1})
    gateway.start("r-1")
    refused(gateway, RateLimited)


def test_request_is_refused_where_the_queue_is_full(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1}, queue={"max_waiting": 1})
    gateway.start("r-1")
    gateway.start("r-2")
    refused(gateway, QueueFull)


def test_refused_request_may_be_sent_again_under_its_id(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1}, queue={"max_waiting": 0})
    Reading(gateway.start("r-1"))
    assert isinstance(gateway.create("r-2"), QueueFull)
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert not gateway.create("r-2").is_duplicate  # type: ignore[union-attr]


def test_what_a_surface_raises_is_no_refusal(clock: Clock) -> None:
    gateway = Gateway(clock)
    answers: list[object] = []

    def done(answer: Started | HoldfastError) -> None:
        answers.append(answer)
        raise Overloaded

    with pytest.raises(Overloaded):
        gateway.launcher.create(ALICE, CHAT, request(), Terms(60.0), done)
    assert len(answers) == 1
    assert gateway.recorder.names == ["RequestStarted"]


# -- large requests --

#: Invalid behind its first bytes, so that whoever decodes it finds another fault than the size.
LARGE = b'{"model":"demo","messages":[{"content":"' + b"x" * 100_000


class Undecoded(ChatDialect):
    """Fails where a request is decoded."""

    def parse(self, raw: bytes | str, *, stream: bool | None = None, found: Members | None = None) -> Any:
        raise AssertionError("the request was decoded")


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"requests_per_minute": 1}, RateLimited),
        ({"tenant": {"requests_per_minute": 1}}, RateLimited),
        ({"concurrent_streams": 1}, RateLimited),
        ({"tokens_per_minute": 20_000}, InvalidRequest),
        ({"tenant": {"tokens_per_minute": 25_020}}, RateLimited),
    ],
)
def test_large_request_beyond_a_limit_is_refused_before_it_is_decoded(
    clock: Clock, limits: dict[str, Any], error: type[HoldfastError]
) -> None:
    gateway = Gateway(clock, admission=limits)
    gateway.start("r-1")
    refused(gateway, error, raw=LARGE, dialect=Undecoded())
    assert gateway.recorder.of(RequestRefused)[-1].model is None
    assert type(gateway.create(None, raw=LARGE, dialect=Undecoded())) is error
    assert gateway.admission.refused == (2 if error is RateLimited else 0)


def test_large_request_with_an_expired_credential_or_while_draining_is_refused_before_it_is_decoded(
    clock: Clock,
) -> None:
    gateway = Gateway(clock)
    clock.advance(10.0)
    expired = Principal("acme", expires=10.0)
    refused(gateway, Unauthorized, raw=LARGE, dialect=Undecoded(), principal=expired)
    gateway.launcher.drain()
    refused(gateway, Draining, raw=LARGE, dialect=Undecoded())


def test_large_request_within_its_limits_is_decoded(clock: Clock) -> None:
    limits = {"requests_per_minute": 1, "tokens_per_minute": 25_030}
    refused(Gateway(clock, admission=limits), InvalidRequest, raw=LARGE)
    gateway = Gateway(clock, admission={"requests_per_minute": 1, "tokens_per_minute": 2000})
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    gateway.start("r-1", raw=request(messages=[{"role": "user", "content": [image]}], max_tokens=10))


def test_large_request_that_is_sent_again_is_found_though_no_new_one_would_be_taken(clock: Clock) -> None:
    gateway = Gateway(clock, admission={"requests_per_minute": 1})
    raw = request(messages=[{"role": "user", "content": "x" * 100_000}])
    stream = gateway.start("r-1", raw=raw)
    assert gateway.create("r-1", raw=raw) == Started(stream, True, True)
    assert isinstance(gateway.create("r-1", raw=raw + b" "), DuplicateRequest)
    assert isinstance(gateway.create("r-2", raw=raw), RateLimited)


def test_request_with_more_fields_than_any_api_has_fails_and_no_provider_is_blamed(clock: Clock) -> None:
    gateway = Gateway(clock)
    reading = Reading(gateway.start("r-1", raw=request(**dict.fromkeys(map(str, range(300)), ""))))
    gateway.settle()
    assert error_code(reading) == "invalid_request"
    assert gateway.upstream().calls == []
    assert gateway.held == {}


# -- duplicates --


def test_repeated_request_gets_the_same_stream_and_is_sent_once(clock: Clock) -> None:
    gateway = Gateway(clock)
    stream = gateway.start("r-1")
    assert gateway.create("r-1") == Started(stream, True, True)
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert gateway.create("r-1") == Started(stream, True, True)
    assert len(gateway.upstream().calls) == 1
    assert len(gateway.recorder.of(RequestStarted)) == 1


@pytest.mark.parametrize(
    "other", [{"raw": request(temperature=0)}, {"stream": False}], ids=["other bytes", "not streamed"]
)
def test_other_request_under_the_same_id_is_refused(clock: Clock, other: dict[str, Any]) -> None:
    gateway = Gateway(clock)
    gateway.start("r-1")
    assert isinstance(gateway.create("r-1", **other), DuplicateRequest)
    assert is_claimed(gateway, "r-1")
    assert len(gateway.upstream().calls) == 1


def test_same_id_of_another_subject_is_another_request(clock: Clock) -> None:
    gateway = Gateway(clock)
    first = gateway.start("r-1")
    second = gateway.start("r-1", principal=Principal("acme", key_id="alice", subject="bob"))
    assert first is not second


def test_request_that_shall_go_on_outlives_its_reader(clock: Clock) -> None:
    gateway = Gateway(clock)
    stream = gateway.start("r-1", grace=0.0)
    gateway.start("r-1", grace=0.0, keeps_running=True)
    stream.lose(Reading(stream).cursor)
    assert not stream.is_ended


# -- the queue --


def test_queued_request_is_admitted_when_there_is_room(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1})
    first, second = gateway.start("r-1"), gateway.start("r-2")
    reading = Reading(second)
    assert (second.status, second.queue_position, len(gateway.upstream().calls)) == ("queued", 0, 1)
    clock.advance(5.0)
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert first.is_ended
    assert (second.status, len(gateway.upstream().calls)) == ("running", 2)
    gateway.upstream().call.answer("Ho")
    gateway.settle()
    assert error_code(reading) is None
    assert [event.position for event in gateway.recorder.of(RequestQueued)] == [0]
    assert [event.queued for event in gateway.recorder.of(RequestEnded)] == [0.0, 5.0]
    assert gateway.held == {}


def test_readers_of_queued_requests_are_told_how_the_queue_moves(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1})
    gateway.start("r-1")
    waiting = gateway.start("r-2")
    reading = Reading(gateway.start("r-3"))
    assert reading.stream.queue_position == 1
    waiting.cancel()
    clock.pass_by(1.0)
    assert reading.told == [("position", 0)]
    assert len(gateway.recorder.of(RequestQueued)) == 2


def test_queued_request_expires(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1}, queue={"deadline": 5.0})
    gateway.start("r-1")
    reading = Reading(gateway.start("r-2"))
    clock.pass_by(5.0)
    assert error_code(reading) == "queue_timeout"
    assert len(gateway.upstream().calls) == 1
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    ended = gateway.recorder.of(RequestEnded)[0]
    assert (ended.stream, ended.entries) == (reading.stream.id, 0)
    assert ended.queued == pytest.approx(5.0, abs=0.2)
    assert len(gateway.upstream().calls) == 1
    assert gateway.held == {}


@pytest.mark.parametrize("how", ["cancel", "abandon"])
def test_queued_request_that_is_given_up_leaves_the_queue(clock: Clock, how: str) -> None:
    gateway = Gateway(clock, limits={"sim": 1})
    gateway.start("r-1")
    stream = gateway.start("r-2", grace=3.0)
    reading = Reading(stream)
    if how == "cancel":
        clock.advance(3.0)
        stream.cancel("enough")
    else:
        stream.lose(reading.cursor)
        clock.pass_by(3.0)
    assert stream.end is not None
    assert stream.end.status == "cancelled"
    assert gateway.admission.waiting_for("demo") == 0
    assert gateway.recorder.one(RequestEnded).queued == pytest.approx(3.0, abs=0.2)
    gateway.upstream().call.answer("Hi")
    gateway.settle()
    assert len(gateway.upstream().calls) == 1
    assert gateway.held == {}


def test_queued_request_takes_the_route_that_its_model_has_when_it_is_admitted(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1})
    gateway.start("r-1")
    stream = gateway.start("r-2")
    gateway.add_provider("new")
    gateway.routes["demo"] = gateway.route("new")
    gateway.admission.admit_waiting()
    gateway.settle()
    gateway.upstream("new").call.answer("Hi")
    gateway.settle()
    assert stream.end is not None
    assert [attempt.provider for attempt in stream.end.attempts] == ["new"]


@pytest.mark.parametrize("change", ["gone", "other API"])
def test_queued_request_keeps_its_route_where_there_is_no_other_for_it(clock: Clock, change: str) -> None:
    gateway = Gateway(clock, models={"demo": 1})
    gateway.start("r-1")
    stream = gateway.start("r-2")
    call = gateway.upstream().call
    if change == "gone":
        del gateway.routes["demo"]
    else:
        gateway.routes["demo"] = gateway.route()
    call.answer("Hi")
    gateway.settle()
    gateway.upstream().call.answer("Ho")
    gateway.settle()
    assert stream.end is not None
    assert stream.end.status == "completed"
    assert gateway.held == {}


# -- the end of the process --


def test_sealed_launcher_ends_what_runs_and_what_waits(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1})
    readings = [Reading(gateway.start("r-1")), Reading(gateway.start("r-2"))]
    gateway.upstream().call.head().tokens("Hi")
    gateway.launcher.seal()
    assert [error_code(reading) for reading in readings] == ["shutdown", "shutdown"]
    closing = clock.create_task(gateway.launcher.aclose())
    gateway.settle()
    assert closing.done()
    assert gateway.upstream().call.told == ["cancel"]
    assert gateway.held == {}
    assert gateway.directory.statistics().streams == 0


def test_running_generations_are_waited_for_until_they_have_let_go_of_their_providers(clock: Clock) -> None:
    gateway = Gateway(clock)
    told: list[str] = []
    gateway.launcher.after_running(lambda: told.append("none"))
    first, second = gateway.start("r-1"), gateway.start("r-2")
    gateway.launcher.after_running(lambda: told.append("both"))
    first.cancel()
    gateway.settle()
    gateway.start("r-3")
    assert told == ["none"]
    second.cancel()
    assert told == ["none"]
    gateway.settle()
    assert told == ["none", "both"]


def test_generation_that_is_cancelled_before_its_first_step_lets_go_of_everything(clock: Clock) -> None:
    gateway = Gateway(clock, limits={"sim": 1})
    answers: list[Any] = []
    gateway.launcher.create(ALICE, CHAT, request(), Terms(60.0), answers.append)
    answers[0].stream.cancel()
    assert asyncio.all_tasks(clock)
    gateway.settle()
    assert gateway.upstream().calls == []
    assert gateway.held == {}


# -- with a store whose answers come later --


class LateGateway(Gateway):
    """One whose store answers when the test says so."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.line = Line()
        self.shared = MemoryStore(Timers(clock), is_shared=True)
        super().__init__(clock, store=LateStore(self.shared, self.line), **options)

    def begin(self, request_id: str) -> list[Started | HoldfastError]:
        """Ask, and let nothing be answered yet."""
        answers: list[Started | HoldfastError] = []
        self.launcher.create(ALICE, CHAT, request(), Terms(60.0, request_id=request_id), answers.append)
        return answers

    def settle(self) -> None:
        while self.line:
            self.line.settle()
            super().settle()
        super().settle()


def test_nothing_is_sent_before_the_claim_is_answered(clock: Clock) -> None:
    gateway = LateGateway(clock)
    answers = gateway.begin("r-1")
    clock.settle()
    assert (answers, gateway.upstream().calls) == ([], [])
    gateway.settle()
    assert len(answers) == len(gateway.upstream().calls) == 1


def test_request_that_is_repeated_before_its_claim_is_answered_is_sent_once(clock: Clock) -> None:
    gateway = LateGateway(clock)
    first, second = gateway.begin("r-1"), gateway.begin("r-1")
    gateway.settle()
    assert isinstance(first[0], Started)
    assert isinstance(second[0], Started)
    assert (first[0].is_duplicate, second[0].is_duplicate) == (False, True)
    assert first[0].stream is second[0].stream
    assert len(gateway.upstream().calls) == 1


def test_gateway_that_drains_while_a_claim_is_under_way_refuses_and_releases_it(clock: Clock) -> None:
    gateway = LateGateway(clock)
    answers = gateway.begin("r-1")
    gateway.launcher.drain()
    gateway.settle()
    assert isinstance(answers[0], Draining)
    found: list[object] = []
    gateway.shared.find_request(ALICE.owner, "r-1", found.append)
    assert (found, gateway.held) == ([None], {})


def test_queued_request_whose_end_is_not_stored_yet_is_not_admitted(clock: Clock) -> None:
    gateway = LateGateway(clock, limits={"sim": 1})
    gateway.begin("r-1")
    answers = gateway.begin("r-2")
    gateway.settle()
    assert isinstance(answers[0], Started)
    stream = answers[0].stream
    stream.cancel()
    gateway.upstream().call.answer("Hi")
    clock.settle()
    assert (stream.is_ended, len(gateway.upstream().calls)) == (False, 1)
    gateway.settle()
    assert stream.end is not None
    assert stream.end.status == "cancelled"
    assert len(gateway.recorder.of(RequestEnded)) == 2
    assert gateway.held == {}


def test_sealed_launcher_leaves_the_streams_of_other_processes_alone(clock: Clock) -> None:
    gateway = LateGateway(clock)
    claim = Claim(ALICE.owner, "r-1", "st_elsewhere", "demo", b"")
    gateway.shared.claim(claim, lambda _: None)
    found: list[Any] = []
    gateway.directory.open(ALICE.owner, ["st_elsewhere"], found.extend)
    gateway.settle()
    reading = Reading(found[0])
    gateway.launcher.seal()
    gateway.shared.write(Batch("st_elsewhere", 1, 0, [b"0"]), lambda _: None)
    gateway.settle()
    assert (reading.entries, reading.end) == ([b"0"], None)
