from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    HttpMisuse,
    ResponseEnded,
    ResponseReceived,
    StreamFailed,
    Windows,
)
from holdfast.core.http.http1 import Http1Connection

OK_3 = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def connection_with_request(method: bytes = b"GET", **options: int) -> Http1Connection:
    connection = Http1Connection(**options)
    connection.send_request(method, b"https", b"a.example", b"/", [])
    connection.data_to_send()
    return connection


def receive(*reads: bytes, method: bytes = b"GET") -> tuple[Http1Connection, list[Event]]:
    connection = connection_with_request(method)
    events: list[Event] = []
    for read in reads:
        events += connection.receive_data(read)
    return connection, events


def assert_failed(connection: Http1Connection, events: list[Event], code: int = ErrorCode.PROTOCOL_ERROR) -> None:
    failed, closed = events[-2:]
    assert isinstance(failed, StreamFailed)
    assert isinstance(closed, ConnectionFailed)
    assert (failed.stream_id, failed.code, failed.processed) == (1, code, True)
    assert (closed.code, closed.reason) == (code, failed.reason)
    assert connection.is_closed
    assert not connection.is_usable
    assert connection.open_streams == 0
    assert connection.receive_data(OK_3) == []
    assert connection.receive_eof() == []


# -- requests --------------------------------------------------------------------------------------------


def test_request_is_written_whole() -> None:
    connection = Http1Connection()
    stream_id = connection.send_request(
        b"POST", b"https", b"a.example", b"/v1?x=1", [(b"X-Key", b"k"), (b"Connection", b"close")], b"body"
    )
    assert stream_id == 1
    assert connection.data_to_send() == (
        b"POST /v1?x=1 HTTP/1.1\r\nhost: a.example\r\nx-key: k\r\ncontent-length: 4\r\n\r\nbody"
    )
    assert connection.data_to_send() == b""


def test_request_of_which_nothing_was_handed_over_was_not_processed_and_never_will_be() -> None:
    ways: list[Callable[[Http1Connection], list[Event]]] = [lambda c: c.receive_eof()[:1], lambda c: c.close()]
    for end in ways:
        connection = connection_with_request()
        connection.receive_data(OK_3)
        connection.send_request(b"GET", b"https", b"a.example", b"/", [])
        (failed,) = end(connection)
        assert isinstance(failed, StreamFailed)
        assert (failed.stream_id, failed.processed) == (2, False)
        assert connection.data_to_send() == b""


def second_request() -> Http1Connection:
    connection = connection_with_request()
    connection.receive_data(OK_3)
    connection.send_request(b"GET", b"https", b"a.example", b"/", [])
    connection.data_to_send()
    return connection


def test_end_of_a_kept_connection_before_any_byte_is_told_from_others() -> None:
    for connection, read, was_kept_alive in (
        (second_request(), b"", True),
        (second_request(), b"H", False),
        (connection_with_request(), b"", False),
    ):
        connection.receive_data(read)
        failed = connection.receive_eof()[0]
        assert isinstance(failed, StreamFailed)
        assert (failed.processed, failed.was_kept_alive) == (True, was_kept_alive)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5.0),
        (b"max=100, Timeout = 15", 15.0),
        (b'timeout="20";max=3', 20.0),
        (b"max=5", None),
        (b"timeout=-1", None),
        (b"notimeout=3", None),
        (b"", None),
    ],
)
def test_peer_says_for_how_long_it_keeps_the_connection(value: bytes, seconds: float | None) -> None:
    connection, _ = receive(b"HTTP/1.1 200 OK\r\nKeep-Alive: %b\r\nContent-Length: 0\r\n\r\n" % value)
    assert connection.keep_alive_timeout == seconds
    assert connection.is_usable


def test_connection_that_the_peer_keeps_for_no_time_is_not_used_again() -> None:
    connection, _ = receive(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0\r\nContent-Length: 0\r\n\r\n")
    assert not connection.is_usable


def test_time_of_an_earlier_answer_counts_no_more() -> None:
    connection, _ = receive(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n")
    connection.send_request(b"GET", b"https", b"a.example", b"/", [])
    connection.receive_data(OK_3)
    assert connection.keep_alive_timeout is None


def test_second_request_while_one_is_open_is_misuse() -> None:
    connection = connection_with_request()
    assert connection.available_streams == 0
    assert connection.open_streams == 1
    with pytest.raises(HttpMisuse):
        connection.send_request(b"GET", b"https", b"a", b"/", [])


def test_bad_request_is_misuse_and_changes_nothing() -> None:
    connection = Http1Connection()
    with pytest.raises(HttpMisuse):
        connection.send_request(b"GET", b"https", b"a", b"/", [(b"x", b"y\r\nz: 1")])
    assert connection.data_to_send() == b""
    assert connection.available_streams == 1


# -- responses -------------------------------------------------------------------------------------------


def test_response_with_length_ends_and_keeps_the_connection() -> None:
    connection, events = receive(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Empty:\r\nX-Space: a \t\r\n\r\nabc")
    assert events == [
        ResponseReceived(1, 200, [(b"content-length", b"3"), (b"x-empty", b""), (b"x-space", b"a")]),
        DataReceived(1, [b"abc"]),
        ResponseEnded(1, []),
    ]
    assert connection.is_usable
    assert connection.available_streams == 1


def test_next_request_has_the_next_stream_id() -> None:
    connection, _ = receive(OK_3)
    assert connection.send_request(b"GET", b"https", b"a", b"/", []) == 2
    assert connection.receive_data(OK_3)[1] == DataReceived(2, [b"abc"])


def test_chunks_of_one_read_are_corked() -> None:
    connection, events = receive(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n", b"1\r\nf\r\n", b"0\r\nX-Trailer: t\r\n\r\n")
    assert events == [
        ResponseReceived(1, 200, [(b"transfer-encoding", b"chunked")]),
        DataReceived(1, [b"abc", b"de"]),
        DataReceived(1, [b"f"]),
        ResponseEnded(1, [(b"x-trailer", b"t")]),
    ]
    assert connection.is_usable


def test_response_byte_by_byte_gives_the_same() -> None:
    whole = CHUNKED + b"3\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n"
    _, events = receive(*[whole[i : i + 1] for i in range(len(whole))])
    assert events == [
        ResponseReceived(1, 200, [(b"transfer-encoding", b"chunked")]),
        DataReceived(1, [b"a"]),
        DataReceived(1, [b"b"]),
        DataReceived(1, [b"c"]),
        ResponseEnded(1, [(b"x-trailer", b"t")]),
    ]


def test_informational_responses_are_swallowed() -> None:
    _, events = receive(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", OK_3)
    assert events[0] == ResponseReceived(1, 200, [(b"content-length", b"3")])
    assert events[-1] == ResponseEnded(1, [])


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_status_without_body_ends_at_the_head(status: bytes) -> None:
    connection, events = receive(b"HTTP/1.1 " + status + b" X\r\nContent-Length: 10\r\n\r\n")
    assert events[-1] == ResponseEnded(1, [])
    assert connection.is_usable


@pytest.mark.parametrize("field", [b"Content-Length: 10", b"Content-Length: 0", b"Transfer-Encoding: chunked"])
def test_head_response_ends_at_the_head(field: bytes) -> None:
    connection, events = receive(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n\r\n", method=b"HEAD")
    assert [type(event) for event in events] == [ResponseReceived, ResponseEnded]
    assert connection.is_usable


def test_body_after_head_response_fails_the_connection() -> None:
    connection, events = receive(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", method=b"HEAD")
    assert events[1:] == [
        ResponseEnded(1, []),
        ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "bytes after the response"),
    ]
    assert not connection.is_usable


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: Close\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_response_that_closes_leaves_the_connection_unusable(response: bytes) -> None:
    connection, events = receive(response)
    assert events[-1] == ResponseEnded(1, [])
    assert not connection.is_usable
    assert connection.available_streams == 0
    assert not connection.is_closed
    assert connection.receive_eof() == [ConnectionFailed(0, "the peer closed the connection")]


# -- ends ------------------------------------------------------------------------------------------------


def test_body_without_length_ends_with_the_connection() -> None:
    connection, events = receive(b"HTTP/1.1 200 OK\r\n\r\nab", b"c")
    assert events[1:] == [DataReceived(1, [b"ab"]), DataReceived(1, [b"c"])]
    assert connection.receive_eof() == [
        ResponseEnded(1, []),
        ConnectionFailed(ErrorCode.NO_ERROR, "the peer closed the connection"),
    ]
    assert not connection.is_usable


@pytest.mark.parametrize(
    "response",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", CHUNKED + b"3\r\nabc\r\n"],
)
def test_eof_before_the_end_fails_the_stream(response: bytes) -> None:
    connection, _ = receive(response)
    assert_failed(connection, connection.receive_eof(), ErrorCode.NO_ERROR)


def test_eof_when_idle_only_closes() -> None:
    connection = Http1Connection()
    assert connection.receive_eof() == [ConnectionFailed(0, "the peer closed the connection")]
    assert connection.is_closed


@pytest.mark.parametrize("extra", [b"garbage", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_bytes_after_the_response_make_the_connection_unusable(extra: bytes) -> None:
    connection, events = receive(OK_3 + extra)
    assert events[-2:] == [
        ResponseEnded(1, []),
        ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "bytes after the response"),
    ]
    assert not connection.is_usable
    later, events = receive(OK_3, extra)
    assert events[-1] == ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "bytes that answer no request")
    assert not later.is_usable


def test_empty_line_after_the_response_is_passed_over() -> None:
    for reads in ([OK_3 + b"\r\n"], [OK_3, b"\r\n"]):
        connection, events = receive(*reads)
        assert events[-1] == ResponseEnded(1, [])
        assert connection.is_usable


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 000 X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\n\r\n",
        CHUNKED + b"x\r\n",
        CHUNKED + b"fffffffffffffffff\r\n",
    ],
)
def test_garbage_fails_stream_and_connection(response: bytes) -> None:
    connection, events = receive(response)
    assert_failed(connection, events)
    assert [event.is_malformed for event in events if isinstance(event, StreamFailed)] == [True]


def test_garbage_after_a_part_keeps_the_part() -> None:
    connection, events = receive(CHUNKED + b"3\r\nabc\r\nxyz")
    assert events[1] == DataReceived(1, [b"abc"])
    assert_failed(connection, events)


def test_head_that_never_ends_is_refused() -> None:
    connection = connection_with_request(max_head_size=100)
    assert connection.receive_data(b"HTTP/1.1 200 " + b"x" * 60) == []
    assert_failed(connection, connection.receive_data(b"x" * 60))


def test_large_head_in_one_read_is_refused() -> None:
    connection = connection_with_request(max_head_size=200)
    fields = b"".join(b"x-%d: y\r\n" % i for i in range(10))
    assert_failed(connection, connection.receive_data(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n"))


def test_large_trailers_are_refused() -> None:
    connection = connection_with_request(max_head_size=200)
    fields = b"".join(b"x-%d: y\r\n" % i for i in range(10))
    assert_failed(connection, connection.receive_data(CHUNKED + b"0\r\n" + fields + b"\r\n"))


def test_endless_informational_responses_are_refused() -> None:
    connection = connection_with_request(max_head_size=200)
    events: list[Event] = []
    for _ in range(10):
        events += connection.receive_data(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert_failed(connection, events)


# -- the caller's calls ----------------------------------------------------------------------------------


def test_reset_closes_the_connection() -> None:
    connection, _ = receive(b"HTTP/1.1 200 OK\r\n\r\nab")
    connection.reset_stream(1)
    assert connection.is_closed
    assert not connection.is_usable
    assert connection.open_streams == 0
    assert connection.receive_data(b"late") == []
    assert connection.receive_eof() == []


def test_reset_of_an_ended_response_leaves_the_connection() -> None:
    connection, _ = receive(OK_3)
    connection.reset_stream(1)
    assert connection.is_usable


def test_unknown_stream_is_misuse() -> None:
    connection = Http1Connection()
    for call in (connection.reset_stream, connection.stream_windows):
        with pytest.raises(HttpMisuse):
            call(1)
    with pytest.raises(HttpMisuse):
        connection.grant(1, 1)


def test_grant_does_nothing() -> None:
    connection, _ = receive(b"HTTP/1.1 200 OK\r\n\r\nab")
    connection.grant(1, 2)
    with pytest.raises(HttpMisuse):
        connection.grant(1, -1)
    assert connection.data_to_send() == b""
    assert connection.windows() == connection.stream_windows(1) == Windows(0, 0)


def test_ping_is_misuse() -> None:
    connection = Http1Connection()
    assert connection.is_established
    assert not connection.can_ping
    with pytest.raises(HttpMisuse):
        connection.send_ping(b"12345678")


def test_goaway_lets_the_open_request_end() -> None:
    connection = connection_with_request()
    connection.send_goaway()
    assert not connection.is_usable
    assert connection.receive_data(OK_3)[-1] == ResponseEnded(1, [])
    assert not connection.is_usable


def test_close_fails_the_open_request_once() -> None:
    connection = connection_with_request()
    assert connection.close() == [
        StreamFailed(1, ErrorCode.CANCEL, "the connection was closed on this side", True)
    ]
    assert connection.is_closed
    assert connection.close() == []
    assert Http1Connection().close() == []
