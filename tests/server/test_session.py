"""The session surface, as scripts of what the client says, what the streams do, and what the client hears."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.admission.principal import Principal, Scopes
from holdfast.core.entries import Owner
from holdfast.core.limits.budget import Kind
from holdfast.core.session.server import MAX_HELD_MESSAGES, MAX_INVALID_MESSAGES
from holdfast.errors import LogTrimmed, Overloaded
from holdfast.observe.events import ConnectionEnded, ConnectionOpened
from holdfast_tools.bench.frames import client_frame
from tests.server.stage import TENANT, Client, Stage

REQUEST: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def stage() -> Stage:
    return Stage()


def welcomed(stage: Stage, principal: Principal = TENANT, **hello: Any) -> Client:
    client = stage.greet(principal, **hello)
    assert client.types() == ["welcome"]
    return client


def created(stage: Stage, client: Client, request_id: str = "r-1", **fields: Any) -> Any:
    """Have a stream created, and return its source."""
    client.say("create", request_id=request_id, request=REQUEST, **fields)
    (accepted,) = client.hear()
    assert accepted["type"] == "accepted"
    return stage.streams.source(accepted["stream"])


# -- creating and reading ------------------------------------------------------------------------------


def test_created_stream_is_accepted_and_delivered_to_its_end(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    source.say(1)
    source.say(2, 3)
    assert client.hear() == [
        {"type": "events", "stream": "st_1", "seq": 0, "data": [{"n": 1}, {"n": 2}, {"n": 3}]},
    ]
    source.say(4)
    source.end()
    event, end = client.hear()
    assert (event["seq"], end["type"], end["seq"], end["status"]) == (3, "end", 4, "completed")
    assert source.stream.reader_count == 0
    assert client.session.outlet.streams == {}


def test_refused_create_is_told_under_its_request_id(stage: Stage) -> None:
    client = welcomed(stage)
    stage.streams.refusal = Overloaded("full", retry_after=2.0)
    client.say("create", request_id="r-1", request=REQUEST)
    (error,) = client.hear()
    assert (error["type"], error["code"], error["request_id"]) == ("error", "overloaded", "r-1")


def test_terms_of_a_session_say_whose_connection_and_session_it_is(stage: Stage) -> None:
    client = stage.greet()
    (welcome,) = client.hear()
    created(stage, client)
    (terms,) = stage.streams.terms
    assert (terms.connection, terms.session, terms.stream) == (7, welcome["session"][:8], True)
    assert (terms.request_id, terms.detach_grace) == ("r-1", 60.0)


def test_streams_are_delivered_in_turn(stage: Stage) -> None:
    client = welcomed(stage)
    sources = [created(stage, client, f"r-{number}") for number in range(3)]
    for source in sources:
        source.say(*range(20_000))
    seen = [message["stream"] for message in client.hear()]
    assert seen[:6] == ["st_1", "st_2", "st_3"] * 2


def test_control_messages_go_before_entries(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    source.say(1)
    client.say("ping", t=1)
    assert client.types() == ["pong", "event"]


def test_position_in_the_queue_is_told_once_a_turn(stage: Stage) -> None:
    client = welcomed(stage)
    stream = created(stage, client).stream
    for position in (3, 2, 1):
        stream.wait_at(position)
    assert client.hear() == [{"type": "queued", "stream": "st_1", "position": 1}]
    stream.wait_at(1)
    stream.wait_at(None)
    assert client.hear() == []


def test_new_epoch_is_told_before_its_first_entry(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    source.stream.begin_epoch(2)
    source.say(1)
    epoch, event = client.hear()
    assert epoch == {"type": "epoch", "stream": "st_1", "epoch": 2}
    assert event["type"] == "event"


def test_client_that_takes_nothing_is_written_no_more(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    client.transport.stall()
    for _ in range(20):
        source.say(*range(5_000))
        stage.loop.turn()
    assert len(client.transport.buffer) < 512 * 1024
    client.transport.unstall()
    got = sum(len(message["data"]) for message in client.hear())
    while (messages := client.hear()) != []:
        got += sum(len(message["data"]) for message in messages)
    assert got == 100_000


def test_bare_client_gets_one_entry_per_message_and_acknowledges_nothing(stage: Stage) -> None:
    client = stage.connect(negotiated=False)
    client.say(**REQUEST)
    assert client.types() == ["accepted"]
    source = stage.streams.source("st_1")
    source.say(1, 2, 3)
    assert [message["data"] for message in client.hear()] == [{"n": 1}, {"n": 2}, {"n": 3}]
    (cursor,) = source.stream.log.cursors
    assert cursor.consumed == 2


# -- resuming ------------------------------------------------------------------------------------------


def test_hello_resumes_what_is_there_and_refuses_the_rest(stage: Stage) -> None:
    stage.streams.make("st_a").say(1, 2)
    stage.streams.make("st_b", owner=Owner("somebody else"))
    resumes = [{"stream": name, "after": 0} for name in ("st_a", "st_b", "st_c")]
    client = stage.greet(streams=resumes)
    welcome, event = client.hear()
    assert [state["status"] for state in welcome["streams"]] == ["running", "refused", "refused"]
    assert (event["seq"], event["data"]) == (1, {"n": 2})


def test_session_that_is_full_refuses_further_streams_for_the_time_being(stage: Stage) -> None:
    for number in range(5):
        stage.streams.make(f"st_{number}")
    client = stage.greet(streams=[{"stream": f"st_{number}", "after": -1} for number in range(5)])
    (welcome,) = client.hear()
    assert [state["status"] for state in welcome["streams"]] == ["running"] * 4 + ["refused"]
    assert welcome["streams"][4]["error"]["retryable"] is True


def test_same_client_on_a_new_connection_takes_over(stage: Stage) -> None:
    older = stage.greet()
    (welcome,) = older.hear()
    source = created(stage, older)
    source.say(1)
    older.hear()
    hello = {"session": welcome["session"], "streams": [{"stream": "st_1", "after": 0}]}
    newer = stage.greet(**hello)
    (again,) = newer.hear()
    assert (again["resumed"], again["session"]) == (True, welcome["session"])
    older.hear()
    assert older.close == (4409, "session_superseded")
    source.say(2)
    assert [message["seq"] for message in newer.hear()] == [1]
    assert source.stream.reader_count == 1


def test_other_tenants_token_takes_nothing_over(stage: Stage) -> None:
    older = stage.greet()
    (welcome,) = older.hear()
    other = stage.greet(Principal("somebody else"), session=welcome["session"])
    (fresh,) = other.hear()
    assert fresh["session"] != welcome["session"]
    older.hear()
    assert older.close is None


def test_acknowledged_end_of_what_was_created_or_resumed_need_not_be_kept(stage: Stage) -> None:
    stage.streams.make("st_a").end()
    stage.streams.make("st_b").end()
    client = stage.greet(streams=[{"stream": "st_a", "after": -1}])
    assert client.types() == ["welcome", "end"]
    client.say("attach", stream="st_b", after=-1)
    assert client.types() == ["attached", "end"]
    client.say("ack", streams={"st_a": 0, "st_b": 0})
    assert stage.streams.acknowledgements == ["st_a"]


def test_admin_that_resumes_the_stream_of_another_decides_nothing_about_it(stage: Stage) -> None:
    stage.streams.make("st_a").end()
    admin = Principal("admin", scopes=Scopes(is_admin=True))
    client = stage.greet(admin, streams=[{"stream": "st_a", "after": -1}])
    assert client.types() == ["welcome", "end"]
    client.say("ack", streams={"st_a": 0})
    assert stage.streams.acknowledgements == []


def test_expired_token_resumes_nothing(stage: Stage) -> None:
    stage.streams.make("st_a")
    client = stage.greet(Principal("tenant", expires=999.0), streams=[{"stream": "st_a", "after": -1}])
    (welcome,) = client.hear()
    assert welcome["streams"][0]["error"]["code"] == "unauthorized"


def test_epoch_that_begins_as_a_reader_attaches_is_in_its_answer(stage: Stage) -> None:
    """Its attaching makes room, and what the source was kept from showing comes in this very turn."""
    source = stage.streams.make("st_a")
    stream = source.stream
    stream.log.max_bytes = 1000
    first = welcomed(stage)
    first.say("attach", stream="st_a", after=-1)
    source.say(*range(30))
    assert len(first.hear()) == 2
    assert stream.is_full
    first.hang_up()
    source.resume = lambda: stream.begin_epoch(2)  # type: ignore[method-assign]
    second = welcomed(stage)
    second.say("attach", stream="st_a", after=29)
    assert [(message["type"], message["epoch"]) for message in second.hear()] == [("attached", 2)]


# -- answers that come later ---------------------------------------------------------------------------


def test_messages_wait_for_the_answer_before_them(stage: Stage) -> None:
    client = welcomed(stage)
    running = created(stage, client)
    stage.streams.is_late = True
    client.say("create", request_id="r-2", request=REQUEST)
    client.say("ping", t=1)
    client.say("attach", stream="st_no", after=-1)
    client.say("ping", t=2)
    running.say(1)
    assert client.types() == ["event"]
    stage.streams.answer()
    assert client.types() == ["accepted", "pong"]
    stage.streams.answer()
    assert client.types() == ["error", "pong"]


def test_hello_is_answered_when_all_its_streams_are_found(stage: Stage) -> None:
    stage.streams.make("st_a")
    stage.streams.is_late = True
    client = stage.greet(streams=[{"stream": "st_a", "after": -1}, {"stream": "st_b", "after": -1}])
    client.say("ping", t=1)
    assert client.hear() == []
    assert stage.streams.outstanding == 1
    stage.streams.answer()
    assert client.types() == ["welcome", "pong"]


def test_client_that_sends_on_while_it_waits_is_read_no_further(stage: Stage) -> None:
    client = welcomed(stage)
    stage.streams.is_late = True
    client.say("cancel", request_id="r-1")
    for number in range(MAX_HELD_MESSAGES):
        assert client.transport.is_read
        client.say("ping", t=number)
    assert not client.transport.is_read
    stage.streams.answer()
    assert client.transport.is_read
    assert client.types() == ["pong"] * MAX_HELD_MESSAGES


def test_messages_that_wait_for_an_answer_are_charged_to_the_tenant(stage: Stage) -> None:
    client = welcomed(stage)
    account = client.session.account
    stage.streams.is_late = True
    client.say("cancel", request_id="r-1")
    for number in range(1, 4):
        client.say("create", request_id="r" * 200, request=REQUEST)
        assert account.used > number * 200
    stage.streams.is_late = False
    stage.streams.answer()
    assert account.used == 0
    assert client.types() == ["accepted"] * 3


def test_messages_that_wait_beyond_the_tenants_share_end_the_session(stage: Stage) -> None:
    client = welcomed(stage)
    account = client.session.account
    stage.streams.is_late = True
    client.say("cancel", request_id="r-1")
    client.say("ping", t="t" * 200)
    client.session.services.budget.configure(account.used + 100)
    client.say("ping", t="t" * 200)
    assert client.types() == ["error"]
    assert client.close == (1013, "overloaded")
    client.hang_up()
    stage.streams.answer()
    assert account.used == 0


def test_client_that_sends_binary_messages_while_it_waits_is_read_no_further(stage: Stage) -> None:
    client = welcomed(stage)
    stage.streams.is_late = True
    client.say("cancel", request_id="r-1")
    for _ in range(MAX_HELD_MESSAGES):
        assert client.transport.is_read
        client.session.data_received(client_frame(b"x", 0x82))
    assert not client.transport.is_read
    stage.streams.answer()
    assert client.transport.is_read
    assert client.types().count("error") == MAX_INVALID_MESSAGES
    assert client.close == (4400, "invalid_message")


def test_stream_that_was_created_for_a_lost_client_waits_for_its_return(stage: Stage) -> None:
    client = welcomed(stage)
    stage.streams.is_late = True
    client.say("create", request_id="r-1", request=REQUEST)
    client.hang_up()
    stage.streams.answer()
    source = stage.streams.source("st_1")
    assert source.stream.reader_count == 0
    assert source.calls == []
    stage.loop.pass_time(61.0)
    assert source.calls == ["abandon"]
    assert not source.stream.log.cursors


@pytest.mark.parametrize("message", [{"type": "attach", "stream": "st_a", "after": -1}, {"type": "hello"}])
def test_lookup_that_outlasts_its_connection_leaves_no_reader(stage: Stage, message: dict[str, Any]) -> None:
    stream = stage.streams.make("st_a").stream
    if message["type"] == "hello":
        stage.streams.is_late = True
        client = stage.greet(streams=[{"stream": "st_a", "after": -1}])
    else:
        client = welcomed(stage)
        stage.streams.is_late = True
        client.say(**message)
    client.hang_up()
    stage.streams.answer()
    assert stream.reader_count == 0
    assert stage.sessions.by_token == {}


def test_cancel_is_carried_out_for_a_client_that_has_gone(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    stage.streams.is_late = True
    client.say("cancel", stream="st_1")
    client.hang_up()
    stage.streams.answer()
    assert source.calls == ["cancel"]


# -- the end of a connection ---------------------------------------------------------------------------


def test_lost_connection_gives_everything_back_and_keeps_the_place_in_the_log(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    assert client.counted.used == 1
    client.hang_up()
    client.hang_up()
    assert client.counted.used == 0
    assert len(stage.peers) == 0
    assert stage.sessions.by_token == {}
    assert source.stream.reader_count == 0
    assert len(source.stream.log.cursors) == 1
    opened, ended = stage.events
    assert isinstance(opened, ConnectionOpened)
    assert isinstance(ended, ConnectionEnded)
    assert (ended.connection, ended.caller.key, ended.streams_left) == (7, "key", 1)


def test_client_without_hello_is_sent_away(stage: Stage) -> None:
    client = stage.connect()
    stage.loop.pass_time(10.2)
    assert client.types() == ["error"]
    assert client.close == (4408, "hello_timeout")


def test_revoked_key_ends_its_sessions_and_leaves_their_streams(stage: Stage) -> None:
    client, other = welcomed(stage), welcomed(stage, Principal("tenant", key_id="other"))
    source = created(stage, client)
    stage.peers.revoke({("key", 0)})
    assert client.types() == ["error"]
    assert client.close == (4401, "unauthorized")
    assert source.stream.reader_count == 0
    other.hear()
    assert other.close is None


def test_client_whose_log_goes_before_it_has_the_end_is_told(stage: Stage) -> None:
    client = welcomed(stage)
    slow, quick = created(stage, client, credit=0), created(stage, client, "r-2")
    for source in (slow, quick):
        source.say(1)
        source.end()
    slow.stream.forget(LogTrimmed("gone"))
    error, event, end = client.hear()
    assert (error["type"], error["code"], error["stream"]) == ("error", "log_trimmed", slow.stream.id)
    assert (event["stream"], end["type"]) == (quick.stream.id, "end")
    client.say("credit", stream=slow.stream.id, bytes=100)
    client.say("ack", streams={slow.stream.id: 0})
    client.say("detach", stream=slow.stream.id)
    assert client.types() == ["detached"]
    assert client.close is None
    assert client.session.outlet.streams == {}


def stalled(stage: Stage) -> Client:
    """A client that has a stream and takes nothing of it."""
    client = welcomed(stage)
    source = created(stage, client)
    client.transport.stall()
    source.say(*range(20_000))
    stage.loop.turn()
    return client


def test_client_that_does_not_read_is_not_read_and_what_it_sent_is_heard_later(stage: Stage) -> None:
    client = stalled(stage)
    assert not client.transport.is_read
    for number in range(500):
        client.say("ping", t=number)
    stage.loop.turn()
    assert client.session.protocol.waiting == 0
    client.transport.unstall()
    messages = client.hear()
    assert client.transport.is_read
    assert [message["t"] for message in messages if message["type"] == "pong"] == list(range(500))


def test_client_that_takes_nothing_is_dropped_and_its_memory_free(stage: Stage) -> None:
    client = stalled(stage)
    assert stage.budget.by_kind[Kind.OUTPUT] == len(client.transport.buffer)
    stage.loop.pass_time(21.0)
    assert not client.transport.is_aborted
    stage.loop.pass_time(30.0)
    assert client.transport.is_aborted
    client.hang_up()
    assert stage.budget.by_kind[Kind.OUTPUT] == 0


def test_client_that_reads_slowly_is_no_silent_one(stage: Stage) -> None:
    client = stalled(stage)
    for _ in range(10):
        stage.loop.pass_time(15.0)
        del client.transport.buffer[:10]
    assert not client.transport.is_aborted


# -- a process that goes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_shared", "told"), [(False, {"streams": "stay"}), (True, {})])  # `move` goes unsaid
def test_drain_is_told_to_those_who_are_there_and_to_those_who_come(
    stage: Stage, is_shared: bool, told: dict[str, str]
) -> None:
    stage.streams.is_shared = is_shared
    client = welcomed(stage)
    created(stage, client)
    stage.peers.drain(30.0)
    goaway = {"type": "goaway", "reason": "drain", "window_ms": [0, 30_000], **told}
    assert client.hear() == [goaway]
    late = stage.greet(streams=[{"stream": "st_1", "after": -1}])
    welcome, last = late.hear()
    assert (welcome["type"], last) == ("welcome", goaway)


def test_client_with_nothing_to_resume_is_sent_elsewhere_by_a_process_that_goes(stage: Stage) -> None:
    stage.peers.drain(30.0)
    client = stage.greet(streams=[{"stream": "st_1", "after": -1}])
    assert client.types() == ["error"]
    assert client.close == (1012, "draining")


def test_idle_session_is_closed_at_once(stage: Stage) -> None:
    client = welcomed(stage)
    stage.peers.close_when_idle()
    client.hear()
    assert client.close == (1012, "draining")


def test_busy_session_is_closed_behind_the_end_of_its_stream(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    stage.peers.close_when_idle()
    assert client.hear() == []
    assert client.close is None
    source.say(1)
    source.end()
    assert client.types() == ["event", "end"]
    assert client.close == (1012, "draining")


def test_session_is_not_closed_before_its_client_has_taken_everything(stage: Stage) -> None:
    client = welcomed(stage)
    source = created(stage, client)
    client.transport.stall()
    source.say(1)
    source.end()
    stage.loop.turn()
    stage.peers.close_when_idle()
    stage.loop.turn()
    assert not client.session.codec.is_closing
    client.transport.unstall()
    assert client.types() == ["event", "end"]
    assert client.close == (1012, "draining")


def test_session_that_comes_late_is_closed_when_it_is_idle(stage: Stage) -> None:
    stage.peers.close_when_idle()
    client = stage.connect()
    client.hear()
    assert client.close is None
    client.say("hello", version=1)
    assert client.types() == ["welcome"]
    assert client.close == (1012, "draining")


def test_session_is_not_idle_while_something_is_looked_up_for_it(stage: Stage) -> None:
    client = welcomed(stage)
    stage.streams.is_late = True
    client.say("create", request_id="r-1", request=REQUEST)
    stage.peers.close_when_idle()
    client.hear()
    assert client.close is None
    stage.streams.answer()
    assert client.types() == ["accepted"]
    stage.streams.source("st_1").end()
    assert client.types() == ["end"]
    assert client.close == (1012, "draining")
