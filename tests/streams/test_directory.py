"""`Directory` over the store of one process: claims, lookup by owner, room, and what becomes of ended streams."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.config import StreamsConfig
from holdfast.core.entries import EndBody, Owner
from holdfast.core.limits.budget import Budget
from holdfast.errors import HoldfastError, Overloaded, UnknownStream
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.streams.store import Claimed
from holdfast.streams.stream import Stream
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import ACME, COMPLETED, Reading
from tests.support.stores import LateStore, Line


class Script:
    def __init__(self, timers: Timers, *, memory: int = 1 << 20, **config: Any) -> None:
        self.store = MemoryStore(timers)
        self.budget = Budget(memory)
        self.directory = Directory(StreamsConfig(**config), timers, self.store, self.budget)

    def claim(self, request_id: str | None = "r-1", owner: Owner = ACME) -> Claimed:
        claims: list[Claimed | HoldfastError] = []
        self.directory.claim(owner, request_id, model="demo", digest=b"d", done=claims.append)
        (claimed,) = claims
        assert isinstance(claimed, Claimed)
        return claimed

    def add(self, request_id: str | None = "r-1", owner: Owner = ACME) -> Stream:
        return self.directory.add(self.claim(request_id, owner), detach_grace=60.0)

    def open(self, *wanted: str, owner: Owner = ACME) -> list[Stream | HoldfastError]:
        answers: list[list[Stream | HoldfastError]] = []
        self.directory.open(owner, wanted, answers.append)
        (answer,) = answers
        return answer

    def find_request(self, request_id: str, owner: Owner = ACME) -> object:
        answers: list[object] = []
        self.directory.find_request(owner, request_id, answers.append)
        (answer,) = answers
        return answer


@pytest.fixture
def script(timers: Timers) -> Script:
    return Script(timers)


def test_claim_of_the_same_request_gets_the_earlier_one(script: Script) -> None:
    first = script.claim()
    again = script.claim()
    assert (first.is_new, again.is_new) == (True, False)
    assert again.claim == first.claim
    assert script.claim(owner=Owner("acme", "alice")).is_new


def test_requests_without_an_id_are_never_the_same(script: Script) -> None:
    first, second = script.claim(None), script.claim(None)
    assert (first.is_new, second.is_new) == (True, True)
    assert first.claim.request_id == first.claim.stream != second.claim.stream


def test_claim_of_which_nothing_came_is_free_again(script: Script) -> None:
    script.directory.unclaim(script.claim())
    assert script.claim().is_new


def test_added_stream_is_found_by_its_id_and_by_its_request(script: Script) -> None:
    stream = script.add()
    assert (stream.origin.request_id, stream.origin.model, stream.log.epoch) == ("r-1", "demo", 1)
    assert script.open(stream.id) == [stream]
    assert script.find_request("r-1") is stream
    assert script.directory.follow(script.claim()) is stream
    assert script.directory.running() == [stream]


def test_many_ids_are_answered_together_and_in_order(script: Script) -> None:
    streams = [script.add(f"r-{number}") for number in range(5)]
    answers = script.open(*[stream.id for stream in reversed(streams)], "st_none", streams[0].id)
    assert answers[:5] == streams[::-1]
    assert isinstance(answers[5], UnknownStream)
    assert answers[6] is streams[0]
    assert script.open() == []


def test_foreign_and_absent_streams_give_the_same_answer(script: Script) -> None:
    alice = script.add(owner=Owner("acme", "alice"))
    tenant = script.add("r-2")
    foreign = script.open(alice.id, owner=Owner("acme", "bob")) + script.open(
        tenant.id, owner=Owner("acme", "bob")
    )
    foreign += script.open(alice.id, owner=Owner("other"))
    (absent,) = script.open("st_none")
    assert isinstance(absent, UnknownStream)
    for answer in foreign:
        assert isinstance(answer, UnknownStream)
        assert (answer.message, answer.code, answer.param) == (absent.message, absent.code, absent.param)
    # A tenant may read the streams of its subjects.
    assert script.open(alice.id) == [alice]
    assert script.find_request("r-1") is None
    assert script.find_request("r-1", Owner("acme", "alice")) is alice


def test_more_streams_than_may_be_kept_are_refused_and_ended_ones_go_first(timers: Timers) -> None:
    script = Script(timers, max_streams=2)
    first, second = script.add("r-1"), script.add("r-2")
    with pytest.raises(Overloaded, match="2 streams are running"):
        script.directory.check_room("newcomer")
    first.seal(COMPLETED)
    reading = Reading(first, is_slow=True)
    script.directory.check_room("newcomer")
    assert reading.told == ["log_trimmed"]
    assert script.open(first.id, second.id)[1] is second
    assert script.directory.statistics().streams == 1
    assert script.claim("r-1").is_new


def test_a_tenant_cannot_run_all_streams_that_may_be_kept(timers: Timers) -> None:
    script = Script(timers, max_streams=10)
    for number in range(8):
        script.directory.check_room("acme")
        script.add(f"r-{number}")
    with pytest.raises(Overloaded, match="the tenant runs its share"):
        script.directory.check_room("acme")
    script.directory.check_room("other")


def test_short_memory_refuses_new_streams_until_there_is_room(timers: Timers) -> None:
    script = Script(timers, memory=1 << 17)
    stream = script.add()
    reading = Reading(stream, is_slow=True)
    stream.offer([b"x" * 100_000])
    with pytest.raises(Overloaded, match="the tenant's share"):
        script.directory.check_room("acme")
    script.directory.check_room("other")
    stream.seal(COMPLETED)
    assert script.open(stream.id) == [stream]
    script.directory.check_room("acme")  # now it can go, read or not
    assert reading.told == ["entries", "end", "log_trimmed"]
    assert isinstance(script.open(stream.id)[0], UnknownStream)
    assert script.budget.used == 0


def test_ended_logs_that_one_tenant_reads_on_refuse_nobody(timers: Timers) -> None:
    script = Script(timers, memory=1 << 20)
    readings = []
    for number in range(19):
        script.directory.check_room("acme")
        stream = script.add(f"r-{number}")
        readings.append(Reading(stream, is_slow=True, credit=0))
        stream.offer([b"x" * 60_000])
        stream.seal(COMPLETED)
    for number in range(19):
        script.directory.check_room("other")
        stream = script.add(f"o-{number}", Owner("other"))
        Reading(stream)
        stream.offer([b"x" * 60_000])
        stream.seal(COMPLETED)
    assert readings[0].told[-1] == "log_trimmed"
    one, other = script.budget.account("acme"), script.budget.account("other")
    assert abs(one.used - other.used) < 130_000


def test_acknowledged_stream_goes_early(timers: Timers, clock: Clock) -> None:
    script = Script(timers, retention=100.0, retention_acknowledged=10.0)
    stream = script.add()
    script.directory.acknowledged(ACME, stream.id)  # it runs: nothing to acknowledge
    script.directory.acknowledged(ACME, "st_none")
    stream.seal(COMPLETED)
    script.directory.acknowledged(Owner("other"), stream.id)
    clock.advance(50.0)
    assert script.open(stream.id) == [stream]
    script.directory.acknowledged(ACME, stream.id)
    clock.pass_by(10.0)
    assert isinstance(script.open(stream.id)[0], UnknownStream)
    assert script.claim().is_new


def test_every_listener_is_told_of_each_end_once(script: Script) -> None:
    first: list[Stream] = []
    second: list[Stream] = []
    script.directory.on_ended(first.append)
    script.directory.on_ended(second.append)
    stream = script.add()
    stream.seal(COMPLETED)
    stream.seal(EndBody("failed"))
    assert first == second == [stream]


def test_unfinished_streams_are_those_that_run_or_are_awaited(script: Script, clock: Clock) -> None:
    directory = script.directory
    assert (directory.unfinished, directory.has_unfinished(ACME), directory.awaited_until) == (0, False, 0.0)
    stream = script.add()
    stream.lose(Reading(stream).cursor)
    assert (directory.unfinished, directory.has_unfinished(ACME)) == (1, True)
    assert not directory.has_unfinished(Owner("acme", "alice"))
    stream.seal(COMPLETED)
    assert (directory.unfinished, directory.awaited_until) == (1, clock.time() + 60.0)
    clock.pass_by(60.0)
    assert (directory.unfinished, directory.awaited_until) == (0, 0.0)


def test_statistics_count_streams_and_bytes(script: Script) -> None:
    running, ended = script.add("r-1"), script.add("r-2")
    running.offer([b"x" * 100])
    ended.seal(COMPLETED)
    use = script.directory.statistics()
    assert (use.streams, use.running, use.created, use.ended) == (2, 1, 2, 1)
    assert use.log_bytes == running.charged + ended.held
    assert script.directory.largest_log == running.log.bytes


def test_closed_directory_holds_nothing(script: Script, timers: Timers) -> None:
    running, ended = script.add("r-1"), script.add("r-2")
    Reading(running, is_slow=True)
    running.log.max_bytes = 50
    running.offer([b"x" * 100])
    assert running.is_full
    ended.seal(COMPLETED)
    script.directory.aclose()
    use = script.directory.statistics()
    assert (use.streams, use.running, use.log_bytes) == (0, 0, 0)
    assert (script.directory.budget.running, script.directory.budget.waiting) == (0, set())
    assert timers.pending == 0
    assert script.claim("r-1").is_new


def test_many_unknown_ids_cost_one_round_trip(timers: Timers) -> None:
    line = Line()
    directory = Directory(StreamsConfig(), timers, LateStore(MemoryStore(timers, is_shared=True), line), Budget(1))
    answers: list[list[Stream | HoldfastError]] = []
    directory.open(ACME, [f"st_{number}" for number in range(50)], answers.append)
    assert (len(line), answers) == (50, [])  # all of them asked before the first is answered
    line.settle()
    (answer,) = answers
    assert [type(found) for found in answer] == [UnknownStream] * 50
