"""The client's side of the session protocol: what the vectors cannot say about it.

What it sends, reports and remembers over its connections is told by `protocol/vectors/client-*.json`.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from holdfast.core.session import messages as m
from holdfast.core.session.client import (
    ACK_INTERVAL,
    ClientSession,
    ClientStream,
    ConnectionFailed,
    EntriesReceived,
    Event,
    State,
    StreamAccepted,
    StreamDeferred,
    StreamEnded,
    StreamFailed,
    StreamQueued,
    Welcomed,
)
from holdfast.errors import Cancelled, Overloaded, RateLimited

REQUEST = b'{"model":"demo"}'


class Script:
    """A session and the connection that a test plays for it."""

    def __init__(self, **options: Any) -> None:
        self.session = ClientSession(client="test/1", **{"rng": random.Random(0), **options})
        self.now = 100.0

    def connect(self) -> list[dict[str, Any]]:
        self.session.connection_made(self.now)
        return self.sent()

    def open(self, *streams: dict[str, Any]) -> list[Event]:
        self.connect()
        return self.receive("welcome", **WELCOME, streams=list(streams))

    def drop(self) -> None:
        self.session.connection_lost()

    def receive(self, type_: str, **fields: Any) -> list[Event]:
        return self.session.receive_text(json.dumps({"type": type_, **fields}), self.now)

    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.session.data_to_send()]

    def create(self, request_id: str = "r1", **options: Any) -> ClientStream:
        return self.session.create(request_id, REQUEST, **options)

    def accepted(self, request_id: str = "r1", stream: str = "st_1", **options: Any) -> ClientStream:
        """Create a stream on the open connection and have it accepted."""
        created = self.create(request_id, **options)
        self.receive("accepted", request_id=request_id, stream=stream)
        self.sent()
        return created

    def event(self, seq: int, data: Any = 0, stream: str = "st_1") -> list[Event]:
        return self.receive("event", stream=stream, seq=seq, data=data)


WELCOME: dict[str, Any] = {
    "version": 1,
    "session": "s1",
    "server": "holdfast/0",
    "heartbeat": {"interval_ms": 20000, "timeout_ms": 10000},
    "limits": {"max_message": 1, "max_streams": 1, "log_bytes": 1},
}


def running(stream: str = "st_1", *, epoch: int = 1) -> dict[str, Any]:
    return {"stream": stream, "status": "running", "epoch": epoch}


@pytest.fixture
def script() -> Script:
    """An open session."""
    script = Script()
    script.open()
    return script


def is_failed(events: list[Event], reason: str) -> bool:
    return len(events) == 1 and isinstance(events[0], ConnectionFailed) and reason in events[0].reason


# -- greeting -------------------------------------------------------------------------------------------


def test_welcome_opens_the_session() -> None:
    script = Script()
    (event,) = script.open()
    assert isinstance(event, Welcomed)
    assert (event.welcome.server, event.resumed) == ("holdfast/0", [])
    assert script.session.state is State.OPEN
    script.drop()
    assert script.connect()[0]["session"] == "s1"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "welcome", **WELCOME}, "twice"),
        ({"type": "nope"}, "invalid message"),
        ({"type": "event", "stream": "st_1", "seq": 2, "data": 0}, "entries 1 to 1 of st_1"),
        ({"type": "end", "stream": "st_1", "seq": 3, "status": "completed"}, "after entry 0"),
    ],
)
def test_connection_that_failed_says_why(script: Script, message: dict[str, Any], reason: str) -> None:
    script.accepted()
    script.event(0)
    assert is_failed(script.session.receive_text(json.dumps(message), script.now), reason)
    assert script.session.state is State.DISCONNECTED


def test_connection_that_failed_while_greeting_says_why() -> None:
    script = Script()
    script.session.attach("st_1")
    script.connect()
    assert script.session.state is State.GREETING
    assert is_failed(script.event(0), "before `welcome`")


def test_create_waits_for_a_connection_that_stays() -> None:
    script = Script()
    script.create()
    script.connect()
    script.receive("goaway", reason="drain")
    script.receive("welcome", **WELCOME)
    assert script.sent() == []
    script.drop()
    script.open()
    assert [message["type"] for message in script.sent()] == ["create"]


# -- create and attach ----------------------------------------------------------------------------------


def test_create_is_sent_at_once_when_open(script: Script) -> None:
    stream = script.create(window=100)
    assert script.sent() == [{"type": "create", "request_id": "r1", "request": {"model": "demo"}, "credit": 100}]
    events = script.receive("accepted", request_id="r1", stream="st_1", epoch=3, queue_position=2)
    assert events == [StreamAccepted(stream, duplicate=False), StreamQueued(stream, 2)]
    assert (stream.id, stream.epoch) == ("st_1", 3)
    assert script.receive("queued", stream="st_1", position=1) == [StreamQueued(stream, 1)]


def test_attach_is_sent_at_once_when_open(script: Script) -> None:
    stream = script.session.attach("st_1", after=4, epoch=2, window=50)
    assert script.sent() == [{"type": "attach", "stream": "st_1", "after": 4, "epoch": 2, "credit": 50}]
    assert script.receive("attached", stream="st_1", status="running", epoch=3, next=5) == []
    assert stream.epoch == 3
    assert script.event(5) == [EntriesReceived(stream, [b"0"])]
    assert script.receive("attached", stream="st_9", status="running") == []


def test_streams_beyond_one_hello_are_attached_after_welcome() -> None:
    script = Script()
    for i in range(m.MAX_STREAMS_PER_MESSAGE + 2):
        script.session.attach(f"st_{i}")
    (hello,) = script.connect()
    assert len(hello["streams"]) == m.MAX_STREAMS_PER_MESSAGE
    script.receive("welcome", **WELCOME, streams=[running(resume["stream"]) for resume in hello["streams"]])
    assert [message["stream"] for message in script.sent()] == ["st_1024", "st_1025"]
    for stream in ("st_1024", "st_1025"):
        script.receive("attached", stream=stream, status="running")
    script.drop()
    script.open(*(running(resume["stream"]) for resume in hello["streams"]))
    assert [message["stream"] for message in script.sent()] == ["st_1024", "st_1025"]


@pytest.mark.parametrize("request_id", ["", "x" * 257, "\ud800"])
def test_create_with_an_impossible_request_id_raises(script: Script, request_id: str) -> None:
    with pytest.raises(ValueError, match=r"request id|surrogates"):
        script.session.create(request_id, REQUEST)
    assert script.session.is_idle


def test_create_with_a_request_id_in_use_raises(script: Script) -> None:
    script.accepted()
    with pytest.raises(ValueError, match="in use"):
        script.create()


def test_create_of_something_else_than_an_object_raises(script: Script) -> None:
    with pytest.raises(ValueError, match="object"):
        script.session.create("r1", b"[]")


@pytest.mark.parametrize("window", [0, -1, m.MAX_CREDIT + 1])
def test_impossible_window_raises(script: Script, window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        script.create(window=window)
    with pytest.raises(ValueError, match="window"):
        script.session.attach("st_1", window=window)
    assert script.session.is_idle


@pytest.mark.parametrize("after", [-2, m.MAX_SEQ + 1])
def test_attach_after_an_impossible_number_raises(script: Script, after: int) -> None:
    with pytest.raises(ValueError, match="after"):
        script.session.attach("st_1", after=after)


def test_attach_to_a_stream_that_is_read_raises(script: Script) -> None:
    script.session.attach("st_1")
    with pytest.raises(ValueError, match="read already"):
        script.session.attach("st_1")
    with pytest.raises(ValueError, match="stream id"):
        script.session.attach("")


# -- entries and ends -----------------------------------------------------------------------------------


def test_entries_come_in_order_and_to_the_letter(script: Script) -> None:
    stream = script.accepted()
    session = script.session
    assert session.receive_text('{"type":"event","stream":"st_1","seq":0,"data":{"a":1.0}}', 100) == [
        EntriesReceived(stream, [b'{"a":1.0}'])
    ]
    assert session.receive_text(b'{"type":"events","stream":"st_1","seq":1,"data":["\\u00e9",3]}', 100) == [
        EntriesReceived(stream, [b'"\\u00e9"', b"3"])
    ]
    assert stream.last_seq == 2


def test_entries_that_cross_a_detach_are_not_taken_for_the_next_attachment(script: Script) -> None:
    first = script.accepted()
    script.event(0)
    script.session.detach(first)
    second = script.session.attach("st_1", after=0)
    assert script.event(1) == []
    assert script.receive("end", stream="st_1", seq=2, status="completed") == []
    script.receive("attached", stream="st_1", status="running", next=1)
    assert script.event(1) == [EntriesReceived(second, [b"0"])]


def test_answer_to_an_older_attach_says_nothing_about_the_newest(script: Script) -> None:
    session = script.session
    session.detach(session.attach("st_1", after=9))
    second = session.attach("st_1")
    session.detach(second)
    third = session.attach("st_1")
    assert script.receive("error", code="ahead_of_log", message="no", stream="st_1") == []
    script.receive("attached", stream="st_1", status="running")
    assert script.event(0) == []
    script.receive("attached", stream="st_1", status="running")
    assert script.event(0) == [EntriesReceived(third, [b"0"])]


def test_attach_that_a_drop_left_unanswered_is_not_counted_on_the_next_connection(script: Script) -> None:
    stream = script.session.attach("st_1")
    script.drop()
    script.open(running())
    script.session.detach(stream)
    stream = script.session.attach("st_1")
    script.receive("attached", stream="st_1", status="running")
    assert script.event(0) == [EntriesReceived(stream, [b"0"])]


def test_end_is_acknowledged_and_the_last_word(script: Script) -> None:
    stream = script.accepted()
    script.event(0)
    (event,) = script.receive("end", stream="st_1", seq=1, status="completed", finish_reason="stop")
    assert event == StreamEnded(stream, m.End("st_1", 1, "completed", finish_reason="stop"))
    assert script.sent() == [{"type": "ack", "streams": {"st_1": 1}}]
    assert stream.is_ended
    assert stream.last_seq == 1
    assert script.session.is_idle
    assert script.receive("end", stream="st_1", seq=1, status="completed") == []
    assert script.session.cancel(stream) == []
    script.session.detach(stream)
    assert script.sent() == []


# -- resume ---------------------------------------------------------------------------------------------


def test_stream_that_welcome_leaves_out_after_it_was_attached_anew_goes_on(script: Script) -> None:
    script.session.detach(script.accepted())
    script.drop()
    gone = script.session.attach("st_1")
    script.connect()
    script.session.detach(gone)
    stream = script.session.attach("st_1")
    assert len(script.receive("welcome", **WELCOME)) == 1
    assert script.sent() == [{"type": "attach", "stream": "st_1"}]
    assert not stream.is_ended


def test_stream_that_was_detached_offline_is_attached_anew(script: Script) -> None:
    old = script.accepted()
    script.event(0)
    script.drop()
    script.session.cancel(old)
    script.session.detach(old)
    new = script.session.attach("st_1", after=0)
    script.create()  # its request id is free again
    (event,) = script.open(running())
    assert isinstance(event, Welcomed)
    assert event.resumed == [new]
    assert [message["type"] for message in script.sent()] == ["cancel", "create"]
    assert script.event(1) == [EntriesReceived(new, [b"0"])]


# -- refused for now ------------------------------------------------------------------------------------


BUSY: dict[str, Any] = {"code": "overloaded", "message": "busy", "retryable": True}


class Draws:
    """Draws the largest number each time, and notes from which range."""

    def __init__(self) -> None:
        self.ceilings: list[float] = []

    def uniform(self, a: float, b: float, /) -> float:
        self.ceilings.append(b)
        return b


def refused(script: Script, **fields: Any) -> list[Event]:
    """Have an accepted stream refused by the welcome of the next connection."""
    script.drop()
    return script.open({"stream": "st_1", "status": "refused", "error": {**BUSY, **fields}})[1:]


def test_backoff_of_a_refused_stream_doubles_up_to_its_maximum() -> None:
    script = Script(rng=Draws(), initial_backoff=1.0, max_backoff=3.0)
    script.open()
    stream = script.accepted()
    (event,) = refused(script)
    for delay in (1.0, 2.0, 3.0, 3.0):
        assert isinstance(event, StreamDeferred)
        assert (event.stream, event.delay) == (stream, delay)
        assert isinstance(event.error, Overloaded)
        script.now += delay
        assert script.session.next_deadline() == script.now
        assert script.session.handle_timeout(script.now) == []
        assert [message["type"] for message in script.sent()] == ["attach"]
        (event,) = script.receive("error", **BUSY, stream="st_1")


@pytest.mark.parametrize(("retry_after", "delay"), [(2.0, 3.0), (1e300, 31.0), (-5.0, 1.0)])
def test_retry_after_of_a_refusal_is_honoured_within_the_maximum(retry_after: float, delay: float) -> None:
    script = Script(rng=Draws())
    script.open()
    script.accepted()
    (event,) = refused(script, retry_after=retry_after)
    assert isinstance(event, StreamDeferred)
    assert event.delay == delay


def test_client_that_is_not_to_retry_fails_the_stream_at_once() -> None:
    script = Script(max_retries=0)
    script.open()
    stream = script.accepted()
    (event,) = refused(script)
    assert isinstance(event, StreamFailed)
    assert event.stream is stream
    assert script.session.is_idle


def test_streams_that_are_refused_wait_each_for_itself() -> None:
    script = Script(rng=Draws())
    script.open()
    script.accepted()
    script.accepted("r2", "st_2")
    script.drop()
    script.open(
        {"stream": "st_1", "status": "refused", "error": {**BUSY, "retry_after": 5.0}},
        {"stream": "st_2", "status": "refused", "error": BUSY},
    )
    assert script.session.next_deadline() == script.now + 1.0
    script.session.handle_timeout(script.now + 1.0)
    assert [message["stream"] for message in script.sent()] == ["st_2"]
    assert script.session.next_deadline() == script.now + 6.0


def test_cancel_goes_along_when_a_refused_stream_is_attached_anew(script: Script) -> None:
    stream = script.accepted()
    refused(script)
    script.session.cancel(stream)
    script.session.detach(stream)
    script.sent()
    script.session.attach("st_1")
    assert [message["type"] for message in script.sent()] == ["attach", "cancel"]


def test_first_attach_with_a_cancel_is_asked_for_again(script: Script) -> None:
    stream = script.session.attach("st_1")
    script.session.cancel(stream)
    (event,) = script.receive("error", **BUSY, stream="st_1")
    assert isinstance(event, StreamDeferred)
    assert script.receive("error", **BUSY, stream="st_1") == []  # of the cancel


def test_detached_that_belongs_to_an_older_attachment_ends_no_newer_one(script: Script) -> None:
    script.session.detach(script.accepted())
    script.session.detach(script.session.attach("st_1"))
    script.receive("detached", stream="st_1")
    assert not script.session.is_idle
    script.receive("attached", stream="st_1", status="running")
    script.receive("detached", stream="st_1")
    assert script.session.is_idle


# -- errors ---------------------------------------------------------------------------------------------


def test_error_with_a_request_id_fails_the_request(script: Script) -> None:
    stream = script.create()
    (event,) = script.receive("error", code="rate_limited", message="slow down", retry_after=2.5, request_id="r1")
    assert isinstance(event, StreamFailed)
    assert isinstance(event.error, RateLimited)
    assert (event.stream, event.error.retry_after) == (stream, 2.5)
    assert script.session.is_idle


@pytest.mark.parametrize(
    "names", [{"request_id": "r1"}, {"stream": "st_1"}, {"request_id": "r1", "stream": "st_1"}]
)
def test_error_fails_an_accepted_stream_by_either_name(script: Script, names: dict[str, str]) -> None:
    stream = script.accepted()
    (event,) = script.receive("error", code="unknown_stream", message="gone", **names)
    assert isinstance(event, StreamFailed)
    assert event.stream is stream
    assert script.session.is_idle


# -- cancel and detach ----------------------------------------------------------------------------------


def test_detach_of_an_attach_that_was_not_answered(script: Script) -> None:
    script.session.detach(script.session.attach("st_1"))
    script.receive("attached", stream="st_1", status="running")
    assert script.event(0) == []
    script.receive("detached", stream="st_1")
    assert script.session.is_idle


def test_detach_before_accepted_waits_for_it(script: Script) -> None:
    stream = script.create()
    script.session.detach(stream)
    script.sent()
    events = script.receive("accepted", request_id="r1", stream="st_1", queue_position=4)
    assert events == [StreamAccepted(stream, False)]
    assert script.sent() == [{"type": "detach", "stream": "st_1"}]
    script.receive("detached", stream="st_1")
    assert script.session.is_idle


# -- credit ---------------------------------------------------------------------------------------------


def test_consume_without_window_or_after_the_end_does_nothing(script: Script) -> None:
    stream = script.accepted()
    script.event(0, "1234")
    script.session.consume(stream, 6)
    other = script.accepted("r2", "st_2", window=1)
    script.event(0, "1234", "st_2")
    script.receive("end", stream="st_2", seq=1, status="completed")
    script.sent()
    script.session.consume(other, 6)
    assert script.sent() == []


def test_consume_of_more_than_was_received_raises(script: Script) -> None:
    stream = script.accepted(window=10)
    script.event(0, 12)
    with pytest.raises(ValueError, match="3 bytes consumed of 2 received"):
        script.session.consume(stream, 3)


# -- acknowledgement ------------------------------------------------------------------------------------


def test_entries_are_acknowledged_after_an_interval(script: Script) -> None:
    script.accepted("r1", "st_1")
    script.accepted("r2", "st_2")
    script.accepted("r3", "st_3")
    script.event(0)
    script.now += ACK_INTERVAL / 2
    script.event(1)
    script.event(0, stream="st_2")
    assert script.session.next_deadline() == 100 + ACK_INTERVAL
    assert script.session.handle_timeout(100 + ACK_INTERVAL / 2) == []
    assert script.sent() == []
    assert script.session.handle_timeout(100 + ACK_INTERVAL) == []
    assert script.sent() == [{"type": "ack", "streams": {"st_1": 1, "st_2": 0}}]
    assert script.session.next_deadline() == script.now + 20


def test_many_streams_are_acknowledged_in_several_messages(script: Script) -> None:
    for i in range(m.MAX_STREAMS_PER_MESSAGE + 1):
        script.session.attach(f"st_{i}")
        script.receive("attached", stream=f"st_{i}", status="running")
        script.event(0, stream=f"st_{i}")
    script.sent()
    script.session.handle_timeout(script.now + ACK_INTERVAL)
    assert [len(message["streams"]) for message in script.sent()] == [m.MAX_STREAMS_PER_MESSAGE, 1]


# -- liveness -------------------------------------------------------------------------------------------


def test_silence_is_pinged_then_given_up(script: Script) -> None:
    session = script.session
    assert session.next_deadline() == 120
    assert session.handle_timeout(119.9) == []
    assert script.sent() == []
    assert session.handle_timeout(120) == []
    assert script.sent() == [{"type": "ping"}]
    assert session.next_deadline() == 130
    assert session.handle_timeout(129.9) == []
    assert script.sent() == []
    assert is_failed(session.handle_timeout(130), "silent for 30 s")
    assert session.state is State.DISCONNECTED


def test_no_deadline_without_connection(script: Script) -> None:
    script.drop()
    assert script.session.next_deadline() is None
    assert script.session.handle_timeout(1e9) == []


# -- goaway ---------------------------------------------------------------------------------------------


def test_create_that_crossed_goaway_is_cancelled_without_the_server(script: Script) -> None:
    stream = script.create()
    script.receive("goaway", reason="drain")
    script.receive("error", code="draining", message="going", request_id="r1")
    (event,) = script.session.cancel(stream)
    assert isinstance(event, StreamFailed)
    assert script.session.is_idle


def test_cancelled_create_fails_where_the_next_connection_drains_from_the_start(script: Script) -> None:
    stream = script.create()
    script.session.cancel(stream)
    script.drop()
    script.connect()
    script.receive("goaway", reason="drain", streams="stay", window_ms=[0, 10])
    events = script.receive("welcome", **WELCOME, streams=[])
    failed = events[-1]
    assert isinstance(failed, StreamFailed)
    assert failed.stream is stream
    assert isinstance(failed.error, Cancelled)
    assert script.session.is_idle
