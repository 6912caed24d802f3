"""The server's side of the session protocol: what each message means in each state."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.core.entries import EndBody, Position, encode_end
from holdfast.core.log import Cursor, Log
from holdfast.core.session import messages as m
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.core.session.server import (
    MAX_INVALID_MESSAGES,
    AttachReceived,
    CancelReceived,
    CloseRequired,
    CreateReceived,
    CursorsMoved,
    DetachReceived,
    HelloReceived,
    ServerSession,
    State,
)
from holdfast.errors import Draining, HoldfastError, RateLimited, SessionSuperseded, TooManyStreams

END = EndBody(status="completed")
PAYLOAD = '{"model": "demo", "messages": []}'


def new_session(*, negotiated: bool = True, max_streams: int = 4) -> ServerSession:
    return ServerSession(negotiated=negotiated, max_streams=max_streams)


def open_session(*, max_streams: int = 4) -> ServerSession:
    session = new_session(max_streams=max_streams)
    session.receive_text('{"type":"hello","version":1}')
    return session


def bare_session() -> ServerSession:
    session = new_session(negotiated=False)
    session.receive_text(PAYLOAD)
    return session


def new_log(stream: str = "st_1", entries: int = 0, *, is_ended: bool = False) -> Log:
    log = Log(stream, max_bytes=1_000_000)
    log.append([b'{"i":%d}' % i for i in range(entries)])
    if is_ended:
        log.seal(END)
    return log


def attach(session: ServerSession, stream: str = "st_1", **options: Any) -> Cursor:
    cursor = new_log(stream, entries=3).cursor(**options)
    session.attach(stream, cursor)
    return cursor


def sent(session: ServerSession) -> list[dict[str, Any]]:
    return [json.loads(message) for message in session.data_to_send()]


def error_codes(session: ServerSession) -> list[str]:
    return [message["code"] for message in sent(session) if message["type"] == "error"]


# -- the first message ----------------------------------------------------------------------------------


def test_hello_opens_the_session() -> None:
    session = new_session()
    event = session.receive_text(
        '{"type":"hello","version":1,"client":"test/1","session":"s1","streams":[{"stream":"st_1","after":6}]}'
    )
    assert event == HelloReceived("test/1", "s1", [m.Resume("st_1", after=6)])
    assert session.state is State.OPEN
    assert session.waiting == 0


def test_hello_without_the_subprotocol_opens_the_session() -> None:
    session = new_session(negotiated=False)
    assert isinstance(session.receive_text('{"type":"hello","version":1}'), HelloReceived)
    assert session.state is State.OPEN


def test_hello_of_another_version_closes() -> None:
    session = new_session()
    assert session.receive_text('{"type":"hello","version":2}') == CloseRequired(4400, "invalid_message")
    assert error_codes(session) == ["invalid_message"]


def test_second_hello_is_rejected() -> None:
    session = open_session()
    assert session.receive_text('{"type":"hello","version":1}') is None
    assert error_codes(session) == ["invalid_message"]
    assert session.state is State.OPEN


def test_typed_message_before_hello_closes() -> None:
    session = new_session(negotiated=False)
    event = session.receive_text('{"type":"cancel","stream":"st_1"}')
    assert event == CloseRequired(4400, "invalid_message")
    (error,) = sent(session)
    assert "not `cancel`" in error["message"]


def test_garbage_as_first_message_closes() -> None:
    session = new_session(negotiated=False)
    assert session.receive_text("hello?") == CloseRequired(4400, "invalid_message")
    assert error_codes(session) == ["invalid_message"]
    assert session.state is State.CLOSED


@pytest.mark.parametrize(
    "text", [PAYLOAD, '{"model":"m"}', '{"messages":[]}', ' {"model":1,"messages":{"a":"\\u00e9"}}']
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_bare_payload_is_a_create(text: str, as_bytes: bool) -> None:
    session = new_session(negotiated=False)
    event = session.receive_text(text.encode() if as_bytes else text)
    assert event == CreateReceived(None, text.encode(), None)
    assert session.state is State.BARE


def test_bare_payload_with_the_subprotocol_closes() -> None:
    session = new_session(negotiated=True)
    assert session.receive_text(PAYLOAD) == CloseRequired(4400, "invalid_message")
    (error,) = sent(session)
    assert "holdfast.v1" in error["message"]


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"prompt":"x"}', '{"type":"chat","messages":[]}', '{"type":1,"model":"m"}', "\ud800"]
)
def test_object_that_is_no_payload_closes(text: str) -> None:
    session = new_session(negotiated=False)
    assert session.receive_text(text) == CloseRequired(4400, "invalid_message")


def test_bare_session_takes_further_payloads_and_typed_messages() -> None:
    session = bare_session()
    assert session.receive_text(PAYLOAD) == CreateReceived(None, PAYLOAD.encode(), None)
    assert session.receive_text('{"type":"cancel","stream":"st_1"}') == CancelReceived("st_1", None)
    assert session.receive_text('{"type":"hello","version":1}') is None
    assert error_codes(session) == ["invalid_message"]


def test_open_session_takes_no_bare_payload() -> None:
    session = open_session()
    assert session.receive_text(PAYLOAD) is None
    assert error_codes(session) == ["invalid_message"]


# -- invalid messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [open_session, bare_session])
def test_sixteen_invalid_messages_close(make: Any) -> None:
    session = make()
    for _ in range(MAX_INVALID_MESSAGES - 1):
        assert session.receive_text("{") is None
    assert session.receive_text("{") == CloseRequired(4400, "invalid_message")
    assert error_codes(session) == ["invalid_message"] * MAX_INVALID_MESSAGES


def test_binary_message_counts_as_invalid() -> None:
    session = open_session()
    assert session.receive_binary() is None
    assert error_codes(session) == ["invalid_message"]


def test_binary_as_first_message_closes() -> None:
    session = new_session()
    assert session.receive_binary() == CloseRequired(4400, "invalid_message")


def test_closed_session_ignores_everything() -> None:
    session = open_session()
    session.fail(SessionSuperseded())
    session.data_to_send()
    assert session.receive_text("{") is None
    assert session.receive_text('{"type":"ping"}') is None
    assert session.receive_binary() is None
    assert session.waiting == 0


# -- streams --------------------------------------------------------------------------------------------


def test_create_carries_the_request_to_the_letter() -> None:
    session = open_session()
    event = session.receive_text(
        '{"type":"create","request_id":"r1","request": {"model" : "m", "x":1.0},"credit":10}'
    )
    assert event == CreateReceived("r1", b'{"model" : "m", "x":1.0}', 10)


@pytest.mark.parametrize("request_", ["5", "null", "[]", '"text"'])
def test_create_of_something_else_than_an_object_is_refused(request_: str) -> None:
    session = open_session()
    assert session.receive_text(f'{{"type":"create","request_id":"r1","request":{request_}}}') is None
    (error,) = sent(session)
    assert (error["code"], error["request_id"], error["param"]) == ("invalid_request", "r1", "request")


def test_create_beyond_max_streams_is_refused() -> None:
    session = open_session(max_streams=1)
    attach(session)
    assert session.receive_text('{"type":"create","request_id":"r2","request":{}}') is None
    (error,) = sent(session)
    assert (error["code"], error["request_id"], error["retryable"]) == ("too_many_streams", "r2", True)


def test_attach_message_is_reported() -> None:
    session = open_session()
    event = session.receive_text('{"type":"attach","stream":"st_1","after":4,"epoch":2,"credit":0}')
    assert event == AttachReceived(m.Resume("st_1", 4, 2, 0))


def test_attach_replaces_the_older_cursor_of_the_stream() -> None:
    session = open_session(max_streams=1)
    old = attach(session)
    new = old.log.cursor()
    assert session.attach("st_1", new) is old
    assert session.cursors == {"st_1": new}


def test_attach_beyond_max_streams_raises() -> None:
    session = open_session(max_streams=1)
    attach(session)
    with pytest.raises(TooManyStreams):
        attach(session, "st_2")
    assert list(session.cursors) == ["st_1"]


def test_reader_that_has_the_end_gets_it_again() -> None:
    session = open_session()
    log = new_log(entries=2, is_ended=True)
    cursor = log.cursor(Position(2))
    session.attach("st_1", cursor)
    assert cursor.read(SESSION_FRAMING, 1000) == SESSION_FRAMING.end(b"st_1", 1, 2, encode_end(END), END)
    assert cursor.is_done


def test_detach_takes_the_cursor_out() -> None:
    session = open_session()
    cursor = attach(session)
    assert session.receive_text('{"type":"detach","stream":"st_1"}') == DetachReceived(cursor)
    assert session.cursors == {}
    assert session.receive_text('{"type":"detach","stream":"st_1"}') is None
    assert sent(session) == [{"type": "detached", "stream": "st_1"}] * 2


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ('{"type":"cancel","stream":"st_1"}', CancelReceived("st_1", None)),
        ('{"type":"cancel","request_id":"r1"}', CancelReceived(None, "r1")),
    ],
)
def test_cancel_is_reported(text: str, event: CancelReceived) -> None:
    assert open_session().receive_text(text) == event


@pytest.mark.parametrize("text", ['{"type":"cancel"}', '{"type":"cancel","stream":"a","request_id":"b"}'])
def test_cancel_of_none_or_both_is_rejected(text: str) -> None:
    session = open_session()
    assert session.receive_text(text) is None
    assert error_codes(session) == ["invalid_message"]


# -- ack and credit -------------------------------------------------------------------------------------


def test_ack_moves_the_cursors_that_it_names() -> None:
    session = open_session()
    one, two = attach(session, "st_1"), attach(session, "st_2")
    one.read(SESSION_FRAMING, 1000)
    event = session.receive_text('{"type":"ack","streams":{"st_1":1,"gone":7}}')
    assert event == CursorsMoved([one], [])
    assert (one.consumed, two.consumed) == (1, -1)


def test_ack_of_unknown_streams_is_ignored() -> None:
    session = open_session()
    assert session.receive_text('{"type":"ack","streams":{"gone":7}}') is None
    assert session.waiting == 0


def test_ack_of_a_retired_stream_reports_its_end_once() -> None:
    session = open_session()
    cursor = new_log(entries=1, is_ended=True).cursor()
    session.attach("st_1", cursor)
    cursor.read(SESSION_FRAMING, 1000)
    cursor.read(SESSION_FRAMING, 1000)
    assert session.retire("st_1") is cursor
    assert session.cursors == {}
    assert session.receive_text('{"type":"ack","streams":{"st_1":0}}') is None
    assert session.receive_text('{"type":"ack","streams":{"st_1":1}}') == CursorsMoved([], ["st_1"])
    assert session.receive_text('{"type":"ack","streams":{"st_1":1}}') is None


def test_ends_that_nobody_acknowledges_are_bounded() -> None:
    session = open_session(max_streams=2)
    for stream in ("st_1", "st_2", "st_3"):
        cursor = new_log(stream, is_ended=True).cursor()
        session.attach(stream, cursor)
        cursor.read(SESSION_FRAMING, 1000)
        session.retire(stream)
    event = session.receive_text('{"type":"ack","streams":{"st_1":0,"st_2":0,"st_3":0}}')
    assert event == CursorsMoved([], ["st_2", "st_3"])


def test_credit_lets_the_cursor_go_on() -> None:
    session = open_session()
    cursor = attach(session, credit=0)
    assert cursor.read(SESSION_FRAMING, 1000) is None
    assert session.receive_text('{"type":"credit","stream":"st_1","bytes":5}') == CursorsMoved([cursor], [])
    assert cursor.credit == 5
    assert cursor.read(SESSION_FRAMING, 1000) is not None


def test_credit_without_flow_control_or_stream_is_ignored() -> None:
    session = open_session()
    cursor = attach(session)
    assert session.receive_text('{"type":"credit","stream":"st_1","bytes":5}') is None
    assert session.receive_text('{"type":"credit","stream":"gone","bytes":5}') is None
    assert cursor.credit is None
    assert session.waiting == 0


def test_credit_beyond_its_maximum_is_rejected() -> None:
    session = open_session()
    cursor = attach(session, credit=1)
    text = f'{{"type":"credit","stream":"st_1","bytes":{m.MAX_CREDIT}}}'
    assert session.receive_text(text) is None
    assert error_codes(session) == ["invalid_message"]
    assert cursor.credit == 1


# -- liveness, sending, closing -------------------------------------------------------------------------


@pytest.mark.parametrize("t", ["7", "0.5", '"x"', "9" * 40])
def test_ping_is_answered_with_its_own_t(t: str) -> None:
    session = open_session()
    assert session.receive_text(f'{{"type":"ping","t":{t}}}') is None
    assert session.data_to_send() == [b'{"type":"pong","t":%s}' % t.encode()]


def test_pong_means_nothing_more() -> None:
    session = open_session()
    assert session.receive_text('{"type":"pong"}') is None
    assert session.waiting == 0


def test_messages_are_sent_once_and_in_order() -> None:
    session = open_session()
    session.send(m.Accepted("r1", "st_1"))
    session.send_error(RateLimited(retry_after=2.0), request_id="r2")
    assert session.waiting == 2
    first, second = sent(session)
    assert first == {"type": "accepted", "request_id": "r1", "stream": "st_1"}
    assert (second["code"], second["request_id"], second["retry_after"]) == ("rate_limited", "r2", 2.0)
    assert sent(session) == []


@pytest.mark.parametrize(("error", "code"), [(Draining(), 1012), (SessionSuperseded(), 4409)])
def test_failed_session_says_why_and_closes(error: HoldfastError, code: int) -> None:
    session = open_session()
    assert session.fail(error) == CloseRequired(code, error.code)
    assert error_codes(session) == [error.code]
    assert session.state is State.CLOSED


def test_failure_without_a_close_code_closes_with_1011() -> None:
    assert open_session().fail(TooManyStreams()).code == 1011


def test_lost_connection_gives_its_cursors_back() -> None:
    session = open_session()
    cursors = [attach(session, "st_1"), attach(session, "st_2")]
    assert session.connection_lost() == cursors
    assert session.cursors == {}
    assert session.receive_text('{"type":"ping"}') is None
    assert session.waiting == 0
