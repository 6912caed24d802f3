"""The server's side of the session protocol: what the vectors cannot say about it.

What each message means in each state is told by `protocol/vectors/server-session.json`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.core.entries import EndBody
from holdfast.core.log import Cursor, Log
from holdfast.core.session import messages as m
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.core.session.server import (
    MAX_HELD_BYTES,
    MAX_HELD_MESSAGES,
    CancelReceived,
    CloseRequired,
    CreateReceived,
    CursorsMoved,
    ServerSession,
    State,
)
from holdfast.errors import Draining, HoldfastError, LogTrimmed, RateLimited, SessionSuperseded, TooManyStreams

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


# -- a log that goes ------------------------------------------------------------------------------------


def test_stream_whose_log_goes_is_read_no_more_and_its_reader_told() -> None:
    session = open_session()
    attach(session)
    session.data_to_send()
    session.forget("st_1", LogTrimmed("gone"))
    session.forget("st_1", LogTrimmed("gone"))
    session.forget("st_2", LogTrimmed("gone"))
    (error,) = sent(session)
    assert (error["type"], error["code"], error["stream"]) == ("error", "log_trimmed", "st_1")
    assert session.cursors == {}
    assert session.receive_text('{"type":"ack","streams":{"st_1":0}}') is None
    assert session.state is State.OPEN


# -- the first message ----------------------------------------------------------------------------------


def test_typed_message_before_hello_closes() -> None:
    session = new_session(negotiated=False)
    event = session.receive_text('{"type":"cancel","stream":"st_1"}')
    assert event == CloseRequired(4400, "invalid_message")
    (error,) = sent(session)
    assert "not `cancel`" in error["message"]


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


# -- invalid messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ['{"type":"%s"}', '{"type":"create","request":{},"request_id":"%s"}', '["%s"]', "{%s"]
)
def test_large_invalid_message_closes_at_once(text: str) -> None:
    session = open_session()
    assert session.receive_text(text % ("x" * 200_000)) is None
    assert session.receive_text(text % ("x" * m.MAX_SMALL_MESSAGE)) == CloseRequired(4400, "invalid_message")


def test_text_of_a_payload_is_not_looked_through_for_a_type_first(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str | bytes] = []
    monkeypatch.setattr(m, "decode_client_message", decoded.append)
    session = new_session(negotiated=False)
    assert session.receive_text(PAYLOAD) == CreateReceived(None, PAYLOAD.encode(), None)
    assert session.receive_text(PAYLOAD) == CreateReceived(None, PAYLOAD.encode(), None)
    assert decoded == []


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


# -- ack and credit -------------------------------------------------------------------------------------


def test_ack_moves_the_cursors_that_it_names() -> None:
    session = open_session()
    one, two = attach(session, "st_1"), attach(session, "st_2")
    one.read(SESSION_FRAMING, 1000)
    event = session.receive_text('{"type":"ack","streams":{"st_1":1,"gone":7}}')
    assert event == CursorsMoved([one], [])
    assert (one.consumed, two.consumed) == (1, -1)


def test_ends_that_nobody_acknowledges_are_bounded() -> None:
    session = open_session(max_streams=2)
    for stream in ("st_1", "st_2", "st_3"):
        cursor = new_log(stream, is_ended=True).cursor()
        session.attach(stream, cursor)
        cursor.read(SESSION_FRAMING, 1000)
        session.retire(stream)
    event = session.receive_text('{"type":"ack","streams":{"st_1":0,"st_2":0,"st_3":0}}')
    assert event == CursorsMoved([], ["st_2", "st_3"])


# -- holding --------------------------------------------------------------------------------------------


def test_session_holds_until_it_is_resumed() -> None:
    session = open_session()
    assert not session.is_holding
    session.hold()
    session.hold()
    assert session.is_holding
    assert session.receive_text('{"type":"ping","t":1}') is None
    assert session.waiting == 0
    assert list(session.resume()) == []
    assert sent(session) == [{"type": "pong", "t": 1}]
    assert not session.is_holding
    assert list(session.resume()) == []


def test_shell_that_holds_again_leaves_the_rest_waiting() -> None:
    session = open_session()
    session.hold()
    for text in ('{"type":"cancel","stream":"a"}', '{"type":"cancel","stream":"b"}', '{"type":"ping"}'):
        session.receive_text(text)
    seen = []
    for event in session.resume():
        seen.append(event)
        session.hold()
    assert seen == [CancelReceived("a", None)]
    assert session.is_holding
    session.receive_text('{"type":"cancel","stream":"c"}')
    assert session.waiting == 0
    assert list(session.resume()) == [CancelReceived("b", None), CancelReceived("c", None)]
    assert sent(session) == [{"type": "pong"}]


def test_message_that_comes_while_the_session_is_resumed_waits_behind_the_others() -> None:
    session = open_session()
    session.hold()
    session.receive_text('{"type":"cancel","stream":"a"}')
    session.receive_text('{"type":"cancel","stream":"b"}')
    events = session.resume()
    assert next(events) == CancelReceived("a", None)
    assert session.receive_text('{"type":"cancel","stream":"c"}') is None
    assert list(events) == [CancelReceived("b", None), CancelReceived("c", None)]


def test_many_held_messages_pause_the_socket() -> None:
    session = open_session()
    session.hold()
    for _ in range(MAX_HELD_MESSAGES - 1):
        session.receive_text('{"type":"ping"}')
    assert not session.must_pause
    session.receive_binary()
    assert session.must_pause
    list(session.resume())
    assert not session.must_pause


def test_large_held_messages_pause_the_socket() -> None:
    session = open_session()
    large = '{"type":"create","request_id":"r","request":{"x":"' + "x" * (MAX_HELD_BYTES // 2) + '"}}'
    for _ in range(2):
        session.hold()
        session.receive_text(large)
        assert not session.must_pause
        session.receive_text(large)
        assert session.must_pause
        assert session.bytes_held == 2 * len(large)
        list(session.resume())
        assert not session.must_pause
        assert session.bytes_held == 0


def test_fault_among_held_messages_closes_and_drops_the_rest() -> None:
    session = new_session()
    session.hold()
    session.receive_text("{")
    session.receive_text('{"type":"hello","version":1}')
    assert list(session.resume()) == [CloseRequired(4400, "invalid_message")]
    assert not session.is_holding


def test_session_that_is_closed_holds_no_more() -> None:
    session = open_session()
    session.hold()
    session.receive_text('{"type":"ping"}')
    session.fail(SessionSuperseded())
    session.data_to_send()
    session.hold()
    assert not session.is_holding
    assert list(session.resume()) == []
    assert session.receive_text('{"type":"ping"}') is None
    assert session.waiting == 0


def test_lost_connection_drops_held_messages() -> None:
    session = open_session()
    session.hold()
    session.receive_text('{"type":"ping"}')
    session.connection_lost()
    assert list(session.resume()) == []
    assert session.waiting == 0


# -- liveness, sending, closing -------------------------------------------------------------------------


@pytest.mark.parametrize("t", ["7", "0.5", '"x"', "9" * 40])
def test_ping_is_answered_with_its_own_t(t: str) -> None:
    session = open_session()
    assert session.receive_text(f'{{"type":"ping","t":{t}}}') is None
    assert session.data_to_send() == [b'{"type":"pong","t":%s}' % t.encode()]


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


def test_bytes_of_what_is_due_are_counted_until_it_is_sent() -> None:
    session = open_session()
    session.receive_text('{"type":"ping","t":"x"}')
    assert session.waiting_bytes == len(b'{"type":"pong","t":"x"}')
    session.data_to_send()
    assert session.waiting_bytes == 0


@pytest.mark.parametrize(
    ("message", "useless"),
    [
        ('{"type":"ping"}', 1),
        ('{"type":"pong"}', 1),
        ('{"type":"none"}', 1),
        ('{"type":"create","request_id":"r","request":5}', 1),
        ('{"type":"create","request_id":"r","request":{}}', 0),
        # These may cross the end of their stream, thousands of times where answers are short.
        ('{"type":"ack","streams":{"st_1":1}}', 0),
        ('{"type":"credit","stream":"st_1","bytes":1}', 0),
        ('{"type":"detach","stream":"st_1"}', 0),
    ],
)
def test_messages_that_serve_nothing_are_counted(message: str, useless: int) -> None:
    session = open_session()
    session.receive_text(message)
    assert session.useless == useless


# -- large requests -------------------------------------------------------------------------------------

#: More than a small message has.
DENSE = b'{"model":"m","messages":[%b{}]}' % (b"{}," * 100_000)


@pytest.mark.parametrize(
    ("text", "is_cut"),
    [
        (b'{"type":"create","request_id":"r1","request":%b}', True),
        (b' { "request_id" : "r1" , "type" : "create" , "request" : %b , "credit" : 7 } ', True),
        (b'{"credit":7,"request":%b,"request_id":"r1","type":"create"}', True),
        (b'{"type":"create","request_id":"r\\u0031","request":%b}', False),
        (b'{"of_tomorrow":[],"type":"create","request_id":"r1","request":%b}', False),
        (b'{"type":"create","request_id":"r1","request":%b,"of_tomorrow":{}}', False),
    ],
)
@pytest.mark.parametrize("is_bare", [False, True])
def test_large_create_is_the_same_however_it_is_written(text: bytes, is_cut: bool, is_bare: bool) -> None:
    session = new_session(negotiated=False) if is_bare else open_session()
    if is_bare:
        session.receive_text(PAYLOAD)
    event = session.receive_text((text % DENSE).decode())
    assert isinstance(event, CreateReceived)
    assert (event.request_id, event.request) == ("r1", DENSE)
    assert event.credit == (7 if b"credit" in text else None)
    assert (event.members is not None) is is_cut
    if event.members is not None:
        assert list(event.members) == ["model", "messages"]


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"create","request_id":"r1","request":%b],"credit":7}',
        b'{"type":"create","request_id":"r1","request":{"a":%b}',
        b'{"type":"create","request_id":"","request":%b}',
        b'{"type":"create","request_id":"r1","request":%b,"credit":"7"}',
        b'{"type":"create","request":%b}',
        b'{"type":"hello","request_id":"r1","request":%b}',
        b'{"type":"create","request_id":"r1","request":[%b]]}',
        b'{"type":"create","request_id":"r1\xff","request":%b}',
        b'{"type":"create","request_id":"r1","request": 1}' + b" " * 300_000 + b"%b",
        b"%b}",
    ],
)
def test_large_create_with_a_fault_is_refused(text: bytes) -> None:
    assert open_session().receive_text(text % DENSE) == CloseRequired(4400, "invalid_message")


def test_large_create_whose_request_is_no_object_or_has_too_many_fields_is_no_invalid_message() -> None:
    session = open_session()
    assert session.receive_text(b'{"type":"create","request_id":"r1","request":[%b]}' % DENSE) is None
    assert sent(session)[0]["param"] == "request"
    many = b'{"model":"m",%b}' % b",".join(b'"field_%d":0' % number for number in range(30_000))
    event = session.receive_text(b'{"type":"create","request_id":"r1","request":%b}' % many)
    assert event == CreateReceived("r1", many, None)


def test_large_bare_payload_is_looked_through_once() -> None:
    session = new_session(negotiated=False)
    event = session.receive_text(DENSE.decode())
    assert isinstance(event, CreateReceived)
    assert (event.request, list(event.members or ())) == (DENSE, ["model", "messages"])
    event = session.receive_text(b'{"type":null,' + DENSE[1:])
    assert isinstance(event, CreateReceived)
    for text in (b'{"type":1,' + DENSE[1:], b'{"messages_":' + DENSE + b"}", DENSE[:-1]):
        assert new_session(negotiated=False).receive_text(text) == CloseRequired(4400, "invalid_message")
