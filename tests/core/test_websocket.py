"""The server's side of RFC 6455, in memory."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from holdfast.core.websocket import frames
from holdfast.core.websocket.connection import (
    MAX_QUEUED_PONGS,
    SMALL_FRAGMENT,
    WebSocketConnection,
    WebSocketMisuse,
)
from holdfast.core.websocket.events import (
    BinaryMessage,
    CloseReceived,
    ConnectionFailed,
    Event,
    PingReceived,
    PongReceived,
    TextMessage,
)
from holdfast.core.websocket.frames import (
    OP_BINARY,
    OP_CLOSE,
    OP_CONTINUATION,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    frame_header,
    is_sendable_close_code,
    text_frame,
    xor_mask,
)

MASK = b"\x37\xfa\x21\x3d"


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    size = len(payload)
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + MASK + xor_mask(payload, MASK)


def byte_by_byte(connection: WebSocketConnection, data: bytes) -> list[Event]:
    return [event for byte in data for event in connection.receive_data(bytes([byte]))]


def failure(events: list[Event]) -> int:
    """The code of the failure that must be the only event."""
    assert len(events) == 1
    assert isinstance(events[0], ConnectionFailed)
    return events[0].code


def sent_close_code(connection: WebSocketConnection) -> int:
    sent = connection.data_to_send()
    assert sent[0] == 0x88
    assert sent[1] == len(sent) - 2 < 126
    return int.from_bytes(sent[2:4], "big")


# -- messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 200, 65535, 65536, 65537])
@pytest.mark.parametrize("opcode", [OP_TEXT, OP_BINARY])
def test_whole_frame_gives_message_however_it_arrives(opcode: int, size: int) -> None:
    payload = (b"0123456789" * (size // 10 + 1))[:size]
    expected = TextMessage(payload.decode()) if opcode == OP_TEXT else BinaryMessage(payload)
    frame = client_frame(opcode, payload)
    connection = WebSocketConnection()
    assert connection.receive_data(frame) == [expected]
    assert connection.receive_data(frame * 2) == [expected, expected]
    cut = len(frame) - size // 2 - 1
    assert connection.receive_data(frame[:cut]) == []
    assert connection.receive_data(frame[cut:]) == [expected]
    if size < 1000:
        assert byte_by_byte(connection, frame) == [expected]
    assert connection.data_to_send() == b""
    assert not connection.is_closing


def test_no_bytes_give_no_events() -> None:
    connection = WebSocketConnection()
    assert connection.receive_data(b"") == []
    assert connection.receive_data(client_frame(OP_TEXT, b"a")[:3]) == []
    assert connection.receive_data(b"") == []


def test_fragments_with_control_frames_between_give_one_message() -> None:
    connection = WebSocketConnection()
    stream = b"".join(
        [
            client_frame(OP_TEXT, "κό".encode()[:3], fin=False),
            client_frame(OP_PING, b"1"),
            client_frame(OP_CONTINUATION, b"", fin=False),
            client_frame(OP_PONG, b"2"),
            client_frame(OP_CONTINUATION, "κό".encode()[3:] + b"sme"),
            client_frame(OP_BINARY, b"\xff", fin=False),
            client_frame(OP_CONTINUATION, b"\xfe"),
        ]
    )
    expected = [PingReceived(b"1"), PongReceived(b"2"), TextMessage("κόsme"), BinaryMessage(b"\xff\xfe")]
    assert connection.receive_data(stream) == expected
    assert byte_by_byte(connection, stream) == expected
    assert connection.data_to_send() == b"\x8a\x011" * 2


@pytest.mark.parametrize("opcode", [OP_PING, OP_BINARY])
def test_payload_that_looks_like_a_whole_text_frame_is_payload(opcode: int) -> None:
    # The second read is what the fast path looks for, but it does not stand at the start of a frame.
    lookalike = client_frame(OP_TEXT, b"x" * 20)
    payload = xor_mask(lookalike, MASK)
    frame = client_frame(opcode, payload)
    connection = WebSocketConnection()
    assert connection.receive_data(frame[:6]) == []
    event = PingReceived(payload) if opcode == OP_PING else BinaryMessage(payload)
    assert connection.receive_data(lookalike) == [event]


def test_text_frame_cut_where_a_short_one_would_end_waits_for_its_rest() -> None:
    frame = client_frame(OP_TEXT, b"x" * 200)
    connection = WebSocketConnection()
    assert connection.receive_data(frame[:132]) == []
    assert connection.receive_data(frame[132:]) == [TextMessage("x" * 200)]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("opcode", [OP_TEXT, OP_BINARY])
def test_last_bytes_of_a_large_message_one_by_one_cost_nothing_per_byte_before_them(opcode: int) -> None:
    # A receiver that touches the whole message at each read would move 160 GB here, and miss the time limit.
    payload = b"a\xc3\xa9\n" * (2 << 20)
    frame = client_frame(opcode, payload)
    connection = WebSocketConnection(max_message=len(payload))
    assert connection.receive_data(frame[:-20_000]) == []
    expected = TextMessage(payload.decode()) if opcode == OP_TEXT else BinaryMessage(payload)
    assert byte_by_byte(connection, frame[-20_000:]) == [expected]


def test_events_are_values_of_their_own_type() -> None:
    assert PingReceived(b"x") != PongReceived(b"x")
    assert hash(TextMessage("x")) == hash(TextMessage("x"))
    with pytest.raises(AttributeError):
        TextMessage("x").data = "y"  # type: ignore[misc]


# -- pings ----------------------------------------------------------------------------------------------


def test_pings_are_answered_in_order_before_what_the_caller_sends() -> None:
    connection = WebSocketConnection()
    connection.send_text(b"text")
    connection.receive_data(client_frame(OP_PING, b"a") + client_frame(OP_PING, b"b" * 125))
    assert connection.data_to_send() == b"\x8a\x01a" + b"\x8a\x7d" + b"b" * 125 + b"\x81\x04text"
    assert connection.data_to_send() == b""


def test_flood_of_pings_is_answered_up_to_the_bound_and_the_newest() -> None:
    connection = WebSocketConnection()
    flood = [b"%d" % number for number in range(10_000)]
    events = connection.receive_data(b"".join(client_frame(OP_PING, payload) for payload in flood))
    assert events == [PingReceived(payload) for payload in flood]
    answered = [*flood[: MAX_QUEUED_PONGS - 1], flood[-1]]
    assert connection.data_to_send() == b"".join(b"\x8a" + bytes([len(p)]) + p for p in answered)


def test_ping_after_our_close_frame_is_still_answered() -> None:
    connection = WebSocketConnection()
    connection.send_close()
    connection.data_to_send()
    assert connection.receive_data(client_frame(OP_PING, b"x")) == [PingReceived(b"x")]
    assert connection.data_to_send() == b"\x8a\x01x"


# -- the peer breaks the rules ---------------------------------------------------------------------------

LONG_MESSAGE_BEGUN = client_frame(OP_TEXT, b"a", fin=False)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        *((client_frame(OP_TEXT, b"x", rsv=rsv)[:2], 1002) for rsv in range(1, 8)),
        *((client_frame(opcode)[:2], 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        *((bytes((0x80 | opcode, 0)), 1002) for opcode in (OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG)),
        *((bytes((opcode, 0x80)), 1002) for opcode in (OP_CLOSE, OP_PING, OP_PONG)),
        (b"\x81\x7f\x00\x00\x00", 1002),
        (b"\x89\xfe", 1002),
        (b"\x89\xff", 1002),
        (client_frame(OP_CONTINUATION), 1002),
        (client_frame(OP_CONTINUATION, fin=False), 1002),
        (LONG_MESSAGE_BEGUN + client_frame(OP_TEXT, b"b"), 1002),
        (LONG_MESSAGE_BEGUN + client_frame(OP_BINARY, b"b", fin=False), 1002),
        (b"\x81\xfe\x00\x7d", 1002),
        (b"\x81\xfe\x00\x7d" + MASK + bytes(125), 1002),
        (b"\x82\xff" + (65535).to_bytes(8, "big"), 1002),
        (b"\x82\xff\x80" + bytes(7), 1002),
        (b"\x82\xff" + b"\xff" * 8, 1002),
        (b"\x82\xff\x7f" + b"\xff" * 7, 1009),
        (client_frame(OP_CLOSE, b"\x03"), 1002),
        (client_frame(OP_CLOSE, b"\x03\xe8\xff"), 1007),
        (client_frame(OP_TEXT, b"\xff"), 1007),
        (client_frame(OP_TEXT, b"\xff" * 200), 1007),
        (client_frame(OP_TEXT, b"\xce"), 1007),
        (client_frame(OP_TEXT, b"\xce", fin=False) + client_frame(OP_CONTINUATION), 1007),
    ],
)
def test_fault_of_the_peer_fails_the_connection_with_the_right_code(data: bytes, code: int) -> None:
    for feed in (WebSocketConnection.receive_data, byte_by_byte):
        connection = WebSocketConnection()
        assert failure(feed(connection, data)) == code
        assert (connection.is_closing, connection.is_closed, connection.close_code) == (True, True, code)
        assert connection.receive_data(client_frame(OP_TEXT, b"more")) == []
        assert connection.receive_eof() == []
        assert sent_close_code(connection) == code
        assert connection.data_to_send() == b""


def test_events_before_a_fault_are_reported_and_may_be_answered() -> None:
    connection = WebSocketConnection()
    events = connection.receive_data(client_frame(OP_TEXT, b"a") + b"\xff\xff" + client_frame(OP_TEXT, b"b"))
    assert events[0] == TextMessage("a")
    assert failure(events[1:]) == 1002
    connection.send_text(b"answer")
    assert connection.data_to_send().startswith(b"\x81\x06answer\x88")
    with pytest.raises(WebSocketMisuse, match="after the Close frame"):
        connection.send_text(b"late")


def test_fault_after_our_close_frame_sends_no_second_one() -> None:
    connection = WebSocketConnection()
    connection.send_close(1012)
    assert sent_close_code(connection) == 1012
    assert failure(connection.receive_data(b"\xff\xff")) == 1002
    assert connection.data_to_send() == b""
    assert connection.close_code == 1002


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("κόσμε".encode(), b"\xf4\x90"),
        (b"", b"\xed\xa0"),
        (b"abc", b"\xe0\x9f"),
        (b"abc", b"\xf0\x8f"),
        (b"abc", b"\xc1"),
        (b"abc", b"\xf5"),
        (b"abc", b"\x80"),
        (b"abc", b"\xe1\x80a"),
    ],
)
def test_text_fails_at_the_first_byte_that_nothing_can_complete(text: bytes, bad: bytes) -> None:
    frame = client_frame(OP_TEXT, text + bad + b"the rest of the message" * 20)
    first_bad = 8 + len(text) + len(bad)
    connection = WebSocketConnection()
    assert byte_by_byte(connection, frame[: first_bad - 1]) == []
    assert failure(connection.receive_data(frame[first_bad - 1 : first_bad])) == 1007
    assert failure(WebSocketConnection().receive_data(frame[:first_bad])) == 1007


def test_second_text_in_fragments_is_checked_from_its_own_start() -> None:
    connection = WebSocketConnection()
    first = client_frame(OP_TEXT, b"long enough", fin=False) + client_frame(OP_CONTINUATION, b"")
    assert connection.receive_data(first) == [TextMessage("long enough")]
    assert failure(connection.receive_data(client_frame(OP_TEXT, b"\xff", fin=False))) == 1007


def test_whole_text_in_its_own_read_within_a_fragmented_message_fails() -> None:
    connection = WebSocketConnection()
    assert connection.receive_data(LONG_MESSAGE_BEGUN) == []
    assert failure(connection.receive_data(client_frame(OP_TEXT, b"b"))) == 1002


# -- limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 300])
@pytest.mark.parametrize("opcode", [OP_TEXT, OP_BINARY])
def test_message_of_the_limit_passes_and_one_byte_more_is_refused_at_its_header(opcode: int, size: int) -> None:
    connection = WebSocketConnection(max_message=size)
    assert len(connection.receive_data(client_frame(opcode, b"x" * size))) == 1
    too_big = client_frame(opcode, b"x" * (size + 1))
    header = 2 if size < 126 else 4
    assert failure(WebSocketConnection(max_message=size).receive_data(too_big)) == 1009
    assert failure(byte_by_byte(connection, too_big[:header])) == 1009
    assert sent_close_code(connection) == 1009


def test_fragments_beyond_the_limit_are_refused_when_their_sum_is_announced() -> None:
    connection = WebSocketConnection(max_message=10)
    assert connection.receive_data(client_frame(OP_BINARY, b"x" * 6, fin=False)) == []
    assert connection.receive_data(client_frame(OP_CONTINUATION, b"x" * 4, fin=False)) == []
    assert connection.receive_data(client_frame(OP_PING, b"y" * 100)) == [PingReceived(b"y" * 100)]
    assert failure(connection.receive_data(client_frame(OP_CONTINUATION, b"x")[:2])) == 1009


def test_frame_limit_holds_for_frames_and_not_for_messages_or_pings() -> None:
    connection = WebSocketConnection(max_message=10, max_frame=4)
    assert connection.receive_data(client_frame(OP_TEXT, b"abcd")) == [TextMessage("abcd")]
    fragments = client_frame(OP_TEXT, b"abcd", fin=False) + client_frame(OP_CONTINUATION, b"efgh")
    assert connection.receive_data(fragments) == [TextMessage("abcdefgh")]
    assert connection.receive_data(client_frame(OP_PING, b"12345")) == [PingReceived(b"12345")]
    assert failure(connection.receive_data(client_frame(OP_TEXT, b"abcde"))) == 1009


def test_frame_limit_above_the_message_limit_does_not_raise_it() -> None:
    connection = WebSocketConnection(max_message=4, max_frame=100)
    assert failure(connection.receive_data(client_frame(OP_TEXT, b"abcde"))) == 1009


# -- the closing handshake ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "code", "reason", "answer"),
    [
        (b"", 1005, "", b"\x88\x00"),
        (b"\x03\xe8", 1000, "", b"\x88\x02\x03\xe8"),
        (b"\x03\xe9going \xc3\xa0 away", 1001, "going à away", b"\x88\x02\x03\xe9"),
        (b"\x0f\xa0" + b"r" * 123, 4000, "r" * 123, b"\x88\x02\x0f\xa0"),
    ],
)
def test_close_of_the_peer_is_answered_with_its_code(
    payload: bytes, code: int, reason: str, answer: bytes
) -> None:
    connection = WebSocketConnection()
    assert (connection.is_closing, connection.is_closed, connection.close_code) == (False, False, None)
    after = client_frame(OP_TEXT, b"ignored") + b"\xff\xff"
    assert connection.receive_data(client_frame(OP_CLOSE, payload) + after) == [CloseReceived(code, reason)]
    assert (connection.is_closing, connection.is_closed, connection.close_code) == (True, True, code)
    assert connection.receive_data(after) == []
    assert connection.receive_eof() == []
    assert connection.data_to_send() == answer
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
def test_close_code_that_may_be_sent_is_accepted(code: int) -> None:
    assert is_sendable_close_code(code)
    received = WebSocketConnection().receive_data(client_frame(OP_CLOSE, code.to_bytes(2, "big")))
    assert received == [CloseReceived(code, "")]
    connection = WebSocketConnection()
    connection.send_close(code)
    assert sent_close_code(connection) == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_close_code_that_must_not_be_sent_is_refused(code: int) -> None:
    assert failure(WebSocketConnection().receive_data(client_frame(OP_CLOSE, code.to_bytes(2, "big")))) == 1002
    connection = WebSocketConnection()
    with pytest.raises(WebSocketMisuse, match="must not be sent"):
        connection.send_close(code)
    assert not connection.is_closing


def test_our_close_is_answered_by_the_peer_and_messages_arrive_until_then() -> None:
    connection = WebSocketConnection()
    connection.send_close(4400, "bad message")
    assert (connection.is_closing, connection.is_closed, connection.close_code) == (True, False, None)
    assert connection.data_to_send() == b"\x88\x0d" + (4400).to_bytes(2, "big") + b"bad message"
    assert connection.receive_data(client_frame(OP_TEXT, b"on its way")) == [TextMessage("on its way")]
    assert connection.receive_data(client_frame(OP_CLOSE, b"\x11\x30")) == [CloseReceived(4400, "")]
    assert (connection.is_closed, connection.close_code) == (True, 4400)
    assert connection.data_to_send() == b""


def test_close_within_a_fragmented_message_drops_the_message() -> None:
    connection = WebSocketConnection()
    assert connection.receive_data(LONG_MESSAGE_BEGUN) == []
    assert connection.receive_data(client_frame(OP_CLOSE)) == [CloseReceived(1005, "")]


@pytest.mark.parametrize("before", [b"", b"\x81", LONG_MESSAGE_BEGUN, client_frame(OP_TEXT, b"abc")[:-1]])
def test_end_without_close_frame_is_a_failure_with_1006_that_is_not_sent(before: bytes) -> None:
    connection = WebSocketConnection()
    connection.receive_data(before)
    assert failure(connection.receive_eof()) == 1006
    assert connection.receive_eof() == []
    assert (connection.is_closing, connection.is_closed, connection.close_code) == (True, True, 1006)
    assert connection.receive_data(client_frame(OP_TEXT, b"x")) == []
    assert connection.data_to_send() == b""
    with pytest.raises(WebSocketMisuse):
        connection.send_text(b"x")


def test_end_before_the_peer_answered_our_close_is_a_failure() -> None:
    connection = WebSocketConnection()
    connection.send_close()
    assert failure(connection.receive_eof()) == 1006


# -- sending --------------------------------------------------------------------------------------------


def test_sends_are_queued_in_order_with_the_close_frame_last() -> None:
    connection = WebSocketConnection()
    connection.send_text("é".encode())
    connection.send_binary(b"\x00" * 126)
    connection.send_ping(b"p" * 125)
    connection.send_ping()
    connection.receive_data(client_frame(OP_CLOSE, b"\x03\xe8"))
    connection.send_text(b"last")
    assert connection.data_to_send() == b"".join(
        [
            b"\x81\x02\xc3\xa9",
            b"\x82\x7e\x00\x7e" + b"\x00" * 126,
            b"\x89\x7d" + b"p" * 125,
            b"\x89\x00",
            b"\x81\x04last",
            b"\x88\x02\x03\xe8",
        ]
    )


def test_send_after_close_is_misuse() -> None:
    connection = WebSocketConnection()
    connection.send_close()
    with pytest.raises(WebSocketMisuse, match="after the Close frame"):
        connection.send_text(b"")
    with pytest.raises(WebSocketMisuse, match="after the Close frame"):
        connection.send_binary(b"")
    with pytest.raises(WebSocketMisuse, match="after the Close frame"):
        connection.send_ping()
    with pytest.raises(WebSocketMisuse, match="closing already"):
        connection.send_close()
    assert connection.data_to_send() == b"\x88\x02\x03\xe8"


def test_close_once_the_peer_has_closed_is_misuse() -> None:
    connection = WebSocketConnection()
    connection.receive_data(client_frame(OP_CLOSE))
    with pytest.raises(WebSocketMisuse, match="closing already"):
        connection.send_close()


def test_control_payload_beyond_125_bytes_is_misuse() -> None:
    connection = WebSocketConnection()
    with pytest.raises(WebSocketMisuse, match="125"):
        connection.send_ping(b"p" * 126)
    with pytest.raises(WebSocketMisuse, match="123"):
        connection.send_close(1000, "é" * 62)
    assert connection.data_to_send() == b""
    connection.send_close(1000, "é" * 61)
    assert sent_close_code(connection) == 1000


@pytest.mark.parametrize("size", [0, 1, 125, 126, 1023, 1024, 65535, 65536])
def test_frame_header_has_the_shortest_length_field(size: int) -> None:
    if size < 126:
        header = bytes((0x81, size))
    elif size < 65536:
        header = b"\x81\x7e" + size.to_bytes(2, "big")
    else:
        header = b"\x81\x7f" + size.to_bytes(8, "big")
    assert frame_header(OP_TEXT, size) == header
    assert frame_header(OP_BINARY, size) == b"\x82" + header[1:]
    assert text_frame(b"x" * size) == header + b"x" * size


# -- masking --------------------------------------------------------------------------------------------


def test_masking_without_the_c_routine_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert xor_mask(b"Hello", MASK) == bytes.fromhex("7f 9f 4d 51 58")  # RFC 6455 section 5.7
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec = importlib.util.spec_from_file_location("frames_without_speedups", frames.__file__)
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    for size in range(20):
        payload = bytes(range(0x30, 0x30 + size))
        assert plain.unmask(xor_mask(payload, MASK), MASK) == payload


def frames_of_each_kind() -> bytes:
    return b"".join(
        (
            client_frame(OP_TEXT, b"one"),
            client_frame(OP_PING, b"p"),
            client_frame(OP_TEXT, b"tw", fin=False),
            client_frame(OP_PONG),
            client_frame(OP_CONTINUATION, b"o"),
            client_frame(OP_BINARY, b"x" * 300),
            client_frame(OP_CLOSE, b"\x03\xe8"),
            client_frame(OP_TEXT, b"ignored"),
        )
    )


# -- in shares -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_frames", [1, 2, 3, 100])
def test_frames_read_in_shares_give_the_same_events(max_frames: int) -> None:
    data = frames_of_each_kind()
    expected = WebSocketConnection().receive_data(data)
    connection = WebSocketConnection()
    received = connection.receive_data(data, max_frames)
    assert len(received) <= max_frames
    assert connection.has_unread == (max_frames < 100)
    while connection.has_unread:
        more = connection.receive_data(b"", max_frames)
        assert len(more) <= max_frames
        received += more
    assert received == expected
    assert connection.bytes_held == 0


def test_bytes_that_come_while_others_are_unread_follow_them() -> None:
    connection = WebSocketConnection()
    data = client_frame(OP_TEXT, b"one") + client_frame(OP_TEXT, b"two")
    assert connection.receive_data(data, 1) == [TextMessage("one")]
    assert connection.bytes_held == len(client_frame(OP_TEXT, b"two"))
    assert not connection.is_in_message  # nothing has yet to come
    cut = client_frame(OP_TEXT, b"three")
    assert connection.receive_data(cut[:5], 1) == [TextMessage("two")]
    assert connection.has_unread
    assert connection.receive_data(b"", 1) == []
    assert not connection.has_unread
    assert connection.is_in_message
    assert connection.receive_data(cut[5:], 1) == [TextMessage("three")]
    assert not connection.is_in_message


def test_message_in_pieces_is_counted_once_and_holds_its_bytes() -> None:
    connection = WebSocketConnection()
    frame = client_frame(OP_TEXT, b"x" * 1000)
    connection.receive_data(frame[:500])
    assert (connection.messages_begun, connection.bytes_held, connection.is_in_message) == (1, 492, True)
    connection.receive_data(frame[500:])
    assert (connection.messages_begun, connection.bytes_held, connection.is_in_message) == (1, 0, False)


@pytest.mark.parametrize(
    ("data", "useless"),
    [
        (client_frame(OP_TEXT, b"x"), 0),
        (client_frame(OP_BINARY), 0),
        (client_frame(OP_PING), 1),
        (client_frame(OP_PONG), 1),
        (client_frame(OP_TEXT, b"x", fin=False) + client_frame(OP_CONTINUATION), 2),
        (client_frame(OP_TEXT, b"x" * SMALL_FRAGMENT, fin=False), 0),
        (client_frame(OP_TEXT, b"x" * 64, fin=False) + client_frame(OP_CONTINUATION, b"x" * SMALL_FRAGMENT), 0),
    ],
)
def test_frames_that_serve_nothing_are_counted(data: bytes, useless: int) -> None:
    connection = WebSocketConnection()
    connection.receive_data(data)
    assert connection.useless == useless


def test_pong_that_answers_a_ping_is_not_useless() -> None:
    connection = WebSocketConnection()
    connection.send_ping()
    connection.receive_data(client_frame(OP_PONG) * 2)
    assert connection.useless == 1


def test_connection_without_room_reads_past_messages_and_hears_the_close() -> None:
    connection = WebSocketConnection()
    frame = client_frame(OP_TEXT, b"x" * 1000)
    connection.receive_data(frame[:500])
    connection.discard_messages()
    assert connection.bytes_held == 0
    assert connection.receive_data(frame[500:]) == []
    assert connection.receive_data(client_frame(OP_TEXT, b"\xff" * 100)[:50]) == []
    assert connection.bytes_held == 0
    assert connection.receive_data(client_frame(OP_TEXT, b"\xff" * 100)[50:] + client_frame(OP_CLOSE)) == [
        CloseReceived(1005, "")
    ]


def test_connection_without_room_that_has_no_message_reads_past_whole_ones() -> None:
    connection = WebSocketConnection()
    assert connection.is_at_boundary
    connection.discard_messages()
    assert connection.receive_data(client_frame(OP_TEXT, b"x")) == []


def test_size_of_a_message_whose_rest_is_missing_counts_while_it_will_be_understood() -> None:
    connection = WebSocketConnection()
    assert connection.message_size == 0
    connection.receive_data(b"\x01\x84\x00\x00\x00\x00some\x80\x84\x00\x00\x00\x00mo")
    assert connection.message_size == 6
    connection.send_close()
    assert connection.message_size == 0
