from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    HttpMisuse,
    PongReceived,
    ResponseEnded,
    ResponseReceived,
    SettingsChanged,
    StreamFailed,
    Windows,
)
from holdfast.core.http.flow import MAX_USELESS_FRAMES
from holdfast.core.http.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    SETTINGS,
    WINDOW_UPDATE,
)
from holdfast.core.http.http2 import Http2Connection
from holdfast.core.http.settings import UNLIMITED
from tests.support.http2_peer import (
    OK,
    Frame,
    Peer,
    assert_connection_failed,
    data,
    frame,
    goaway,
    read_frames,
    reset,
    settings,
    window_update,
)

EOF = "the peer closed the connection"


# -- the start -------------------------------------------------------------------------------------------


def test_client_starts_with_preface_settings_and_a_large_window() -> None:
    peer = Peer(initial_window=1000, connection_window=100_000, max_frame_size=20_000, max_header_list_size=5000)
    frames = read_frames(peer.preface.removeprefix(PREFACE))
    assert frames == [
        read_frames(settings((2, 0), (4, 1000), (5, 20_000), (6, 5000)))[0],
        read_frames(window_update(0, 100_000 - 65_535))[0],
    ]


def test_default_connection_window_needs_no_update() -> None:
    frames = read_frames(Peer(connection_window=65_535).preface.removeprefix(PREFACE))
    assert [sent.kind for sent in frames] == [SETTINGS]


@pytest.mark.parametrize(
    "options",
    [
        {"initial_window": 0},
        {"initial_window": 0x80000000},
        {"connection_window": 65_534},
        {"connection_window": 0x80000000},
        {"max_frame_size": 16_383},
        {"max_frame_size": 16_777_216},
    ],
)
def test_option_out_of_bounds_is_misuse(options: dict[str, int]) -> None:
    with pytest.raises(HttpMisuse):
        Http2Connection(**options)


def test_first_settings_establish_the_connection() -> None:
    peer = Peer(established=False)
    assert not peer.client.is_established
    assert peer.send(settings((3, 7), (4, 70_000))) == [SettingsChanged(7, 70_000)]
    assert peer.client.is_established
    assert peer.sent() == [Frame(SETTINGS, ACK, 0, b"")]


def test_requests_may_go_out_before_the_peer_has_spoken() -> None:
    peer = Peer(established=False)
    stream_id = peer.request(b"body")
    assert [sent.kind for sent in peer.sent()] == [HEADERS, DATA]
    assert peer.send(settings(), peer.headers(stream_id, end=True)) == [
        SettingsChanged(UNLIMITED, 65_535),
        ResponseReceived(stream_id, 200, []),
        ResponseEnded(stream_id, []),
    ]


@pytest.mark.parametrize(
    "first", [frame(PING, 0, 0, bytes(8)), frame(SETTINGS, ACK, 0), frame(99, 0, 0), data(1, b"x"), goaway(0)]
)
def test_another_first_frame_fails_the_connection(first: bytes) -> None:
    peer = Peer(established=False)
    peer.request()
    assert_connection_failed(peer, peer.send(first), ErrorCode.PROTOCOL_ERROR, "SETTINGS")


def test_peer_that_speaks_http1_is_named() -> None:
    peer = Peer(established=False)
    assert_connection_failed(
        peer, peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ErrorCode.HTTP_1_1_REQUIRED, "HTTP/1"
    )


# -- requests --------------------------------------------------------------------------------------------


def test_request_is_written_as_head_and_data() -> None:
    peer = Peer()
    client = peer.client
    headers = [(b"X-Key", b"k"), (b"Connection", b"close"), (b"Host", b"other")]
    assert client.send_request(b"POST", b"https", b"a.example", b"/v1", headers, b"body") == 1
    head, body = peer.sent()
    assert (head.kind, head.flags, head.stream_id) == (HEADERS, END_HEADERS, 1)
    assert peer.decoder.decode(head.payload, raw=True) == [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"a.example"),
        (b":path", b"/v1"),
        (b"x-key", b"k"),
        (b"content-length", b"4"),
    ]
    assert body == Frame(DATA, END_STREAM, 1, b"body")
    assert client.data_to_send() == b""


def test_request_without_body_ends_with_its_head() -> None:
    peer = Peer()
    assert [peer.request(), peer.request()] == [1, 3]
    assert [(sent.flags, sent.stream_id) for sent in peer.sent()] == [(END_HEADERS | END_STREAM, 1), (5, 3)]


def test_long_head_is_continued() -> None:
    peer = Peer()
    headers = [(b"x-%d" % number, b"v" * 1000) for number in range(40)]
    peer.client.send_request(b"GET", b"https", b"a", b"/", headers)
    frames = peer.sent()
    assert [sent.kind for sent in frames] == [HEADERS, CONTINUATION, CONTINUATION]
    fields = peer.decoder.decode(b"".join(sent.payload for sent in frames), raw=True)
    assert list(fields)[4:] == headers


def test_bad_request_is_misuse_and_changes_nothing() -> None:
    peer = Peer()
    with pytest.raises(HttpMisuse):
        peer.client.send_request(b"GET", b"https", b"a", b"/", [(b"x", b"\n")])
    assert peer.sent() == []
    assert peer.client.open_streams == 0
    assert peer.request() == 1


def test_own_limit_of_streams_holds() -> None:
    peer = Peer(max_streams=2)
    assert peer.client.available_streams == 2
    first, _ = peer.request(), peer.request()
    assert (peer.client.available_streams, peer.client.open_streams) == (0, 2)
    with pytest.raises(HttpMisuse):
        peer.request()
    peer.send(peer.headers(first, end=True))
    assert peer.client.available_streams == 1


def test_lower_limit_of_the_peer_holds_also_mid_flight() -> None:
    peer = Peer(server_settings=settings((3, 3)), max_streams=10)
    for _ in range(3):
        peer.request()
    assert peer.client.available_streams == 0
    peer.send(settings((3, 1)))
    assert (peer.client.available_streams, peer.client.open_streams) == (0, 3)
    peer.send(settings((3, 100)))
    assert peer.client.available_streams == 7


def test_connection_without_ids_left_is_not_usable() -> None:
    peer = Peer()
    peer.client._streams.next_id = 0x7FFFFFFF
    assert peer.client.is_usable
    assert peer.request() == 0x7FFFFFFF
    assert not peer.client.is_usable
    assert peer.client.available_streams == 0
    assert peer.send(peer.headers(0x7FFFFFFF, end=True))[-1] == ResponseEnded(0x7FFFFFFF, [])


# -- reads in pieces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8, 9, 10, 100])
def test_reads_of_any_size_give_the_same(size: int) -> None:
    peer = Peer()
    stream_id = peer.request()
    peer.sent()
    head = [*OK, (b"x-long", b"v" * 50)]
    whole = (
        peer.headers(stream_id, head)
        + data(stream_id, b"abc" * 20)
        + frame(PING, 0, 0, bytes(8))
        + data(stream_id, b"def", end=True)
    )
    events: list[Event] = []
    for start in range(0, len(whole), size):
        events += peer.send(whole[start : start + size])
    body = b"".join(b"".join(event.chunks) for event in events if isinstance(event, DataReceived))
    assert events[0] == ResponseReceived(stream_id, 200, head[1:])
    assert body == b"abc" * 20 + b"def"
    assert events[-1] == ResponseEnded(stream_id, [])
    assert peer.sent() == [Frame(PING, ACK, 0, bytes(8))]


def test_too_large_frame_fails_the_connection_before_it_has_come() -> None:
    peer = Peer()
    events = peer.send((16_385).to_bytes(3, "big") + bytes((DATA, 0, 0, 0, 0, 1)))
    assert_connection_failed(peer, events, ErrorCode.FRAME_SIZE_ERROR, "16385")


def test_largest_frame_is_taken() -> None:
    peer = Peer(max_frame_size=20_000)
    stream_id = peer.answered()
    assert peer.send(data(stream_id, bytes(20_000))) == [DataReceived(stream_id, [bytes(20_000)])]


# -- the connection's window -----------------------------------------------------------------------------


def test_connection_window_is_replenished_without_the_application() -> None:
    peer = Peer(connection_window=100_000, initial_window=1_000_000)
    stream_id = peer.answered()
    for _ in range(5):
        peer.send(data(stream_id, bytes(10_000)))
    assert peer.sent() == []
    assert peer.client.windows() == Windows(50_000, 65_535)
    peer.send(data(stream_id, b"x"))
    assert peer.sent() == [Frame(WINDOW_UPDATE, 0, 0, (50_001).to_bytes(4, "big"))]
    assert peer.client.windows().receive == 100_000


def test_data_beyond_the_connection_window_fails_the_connection() -> None:
    for excess in (0, 1):
        peer = Peer(connection_window=65_535, initial_window=1_000_000)
        stream_id = peer.answered()
        parts = [data(stream_id, bytes(16_000))] * 4
        events = peer.send(*parts, data(stream_id, bytes(1_535 + excess)))
        if excess:
            assert_connection_failed(peer, events, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            assert not peer.client.is_closed
            assert peer.client.windows().receive == 65_535


@pytest.mark.parametrize(
    ("increment", "code"), [(0, ErrorCode.PROTOCOL_ERROR), (0x7FFFFFFF, ErrorCode.FLOW_CONTROL_ERROR)]
)
def test_bad_window_update_of_the_connection_fails_it(increment: int, code: ErrorCode) -> None:
    peer = Peer()
    assert_connection_failed(peer, peer.send(window_update(0, increment)), code)


def test_window_update_of_another_size_fails_the_connection() -> None:
    peer = Peer()
    assert_connection_failed(
        peer, peer.send(frame(WINDOW_UPDATE, 0, 0, bytes(3))), ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE"
    )


def test_window_updates_for_what_was_sent_are_no_flood() -> None:
    peer = Peer(server_settings=settings((4, 0x7FFFFFFF)), max_streams=1)
    peer.send(window_update(0, 0x7FFFFFFF - 65_535))
    peer.request(bytes(10_000_000))
    count = sum(sent.kind == DATA for sent in peer.sent())
    assert 2 * count > MAX_USELESS_FRAMES
    for _ in range(count):
        assert peer.send(window_update(0, 1), window_update(1, 1)) == []


# -- settings --------------------------------------------------------------------------------------------


def test_larger_initial_window_lets_bodies_go_on() -> None:
    peer = Peer(server_settings=settings((4, 10)))
    stream_id = peer.request(bytes(15))
    assert peer.sent()[1] == Frame(DATA, 0, stream_id, bytes(10))
    assert peer.send(settings((4, 20))) == [SettingsChanged(UNLIMITED, 20)]
    assert peer.sent() == [Frame(SETTINGS, ACK, 0, b""), Frame(DATA, END_STREAM, stream_id, bytes(5))]


def test_smaller_initial_window_takes_back_what_was_not_used() -> None:
    peer = Peer()
    stream_id = peer.request(bytes(100_000))
    peer.send(settings((4, 0)))
    assert peer.client.stream_windows(stream_id).send == -65_535
    peer.client.data_to_send()
    peer.send(window_update(0, 100_000), window_update(stream_id, 65_535 + 7))
    assert peer.sent() == [Frame(DATA, 0, stream_id, bytes(7))]


def test_larger_frame_size_is_used() -> None:
    peer = Peer(server_settings=settings((5, 30_000)))
    peer.request(bytes(40_000))
    assert [len(sent.payload) for sent in peer.sent()[1:]] == [30_000, 10_000]


def test_smaller_compression_table_is_obeyed() -> None:
    peer = Peer()
    peer.send(settings((1, 9000), (1, 0), (1, 4096)))
    peer.decoder.max_allowed_table_size = 4096
    peer.request()
    head = peer.sent()[-1]
    assert head.payload.startswith(b"\x20\x3f\xe1\x1f")
    assert next(iter(peer.decoder.decode(head.payload))) == (":method", "GET")


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (settings((2, 1)), ErrorCode.PROTOCOL_ERROR),
        (settings((4, 0x80000000)), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_bad_settings_fail_the_connection(bad: bytes, code: ErrorCode) -> None:
    peer = Peer()
    assert_connection_failed(peer, peer.send(bad), code)


def test_acknowledged_settings_bring_no_event() -> None:
    peer = Peer()
    assert peer.send(frame(SETTINGS, ACK, 0)) == []
    assert peer.sent() == []


# -- PING ------------------------------------------------------------------------------------------------


def test_ping_is_answered() -> None:
    peer = Peer()
    assert peer.send(frame(PING, 0, 0, b"12345678")) == []
    assert peer.sent() == [Frame(PING, ACK, 0, b"12345678")]


def test_pong_is_reported_once_per_ping() -> None:
    peer = Peer()
    peer.client.send_ping(b"abcdefgh")
    assert peer.sent() == [Frame(PING, 0, 0, b"abcdefgh")]
    pong = frame(PING, ACK, 0, b"abcdefgh")
    assert peer.send(pong) == [PongReceived(b"abcdefgh")]
    assert peer.send(pong) == []


def test_ping_of_another_size_is_misuse() -> None:
    peer = Peer()
    assert peer.client.can_ping
    with pytest.raises(HttpMisuse):
        peer.client.send_ping(b"1234567")
    peer.client.close()
    assert not peer.client.can_ping
    with pytest.raises(HttpMisuse):
        peer.client.send_ping(b"12345678")


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02\x82"), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_bad_frame_fails_the_connection(bad: bytes, code: ErrorCode) -> None:
    peer = Peer()
    stream_id = peer.request()
    events = peer.send(bad)
    assert isinstance(events[0], StreamFailed)
    assert (events[0].stream_id, events[0].code) == (stream_id, code)
    assert_connection_failed(peer, events, code)


def test_priority_and_unknown_frames_are_ignored() -> None:
    peer = Peer()
    assert peer.send(frame(PRIORITY, 0, 9, bytes(5)), frame(10, 255, 4, b"altsvc"), frame(255, 0, 0)) == []
    assert peer.sent() == []


@pytest.mark.parametrize(
    "useless",
    [
        frame(PING, 0, 0, bytes(8)),
        frame(PING, ACK, 0, bytes(8)),
        settings(),
        frame(SETTINGS, ACK, 0),
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(77, 0, 0),
        goaway(0x7FFFFFFF),
        window_update(0, 1),
    ],
)
def test_flood_of_frames_that_bring_nothing_fails_the_connection(useless: bytes) -> None:
    peer = Peer()
    assert_connection_failed(peer, peer.send(*[useless] * (MAX_USELESS_FRAMES + 1)), ErrorCode.ENHANCE_YOUR_CALM)


def test_useful_frames_and_our_own_start_the_count_again() -> None:
    peer = Peer()
    stream_id = peer.answered()
    pings = [frame(PING, 0, 0, bytes(8))] * (MAX_USELESS_FRAMES - 10)
    peer.send(*pings)
    peer.send(data(stream_id, b"x"))
    peer.send(*pings)
    peer.client.send_ping(bytes(8))
    peer.send(*pings)
    peer.request()
    peer.send(*pings)
    assert not peer.client.is_closed


# -- ends ------------------------------------------------------------------------------------------------


def test_eof_fails_all_streams_and_then_the_connection() -> None:
    peer = Peer()
    first, second = peer.request(), peer.request(bytes(100_000))
    peer.sent()
    assert peer.client.receive_eof() == [
        StreamFailed(first, ErrorCode.NO_ERROR, EOF, processed=True),
        StreamFailed(second, ErrorCode.NO_ERROR, EOF, processed=True),
        ConnectionFailed(ErrorCode.NO_ERROR, EOF),
    ]
    assert peer.client.is_closed
    assert peer.sent() == []
    assert peer.client.receive_eof() == []


def test_request_of_which_nothing_was_handed_over_was_not_processed_and_never_will_be() -> None:
    ways: list[tuple[Callable[[Peer], list[Event]], list[int]]] = [
        (lambda peer: peer.client.receive_eof(), []),
        (lambda peer: peer.client.close(), [GOAWAY]),
        (lambda peer: peer.send(frame(PUSH_PROMISE, 0, 1)), [GOAWAY]),
    ]
    for end, goodbye in ways:
        peer = Peer()
        first = peer.request()
        peer.sent()
        second = peer.request(bytes(100_000))
        failed = [event for event in end(peer) if isinstance(event, StreamFailed)]
        assert [(event.stream_id, event.processed) for event in failed] == [(first, True), (second, False)]
        assert [sent.kind for sent in peer.sent()] == goodbye


def test_events_before_a_fault_in_the_same_read_are_kept() -> None:
    peer = Peer()
    stream_id = peer.answered()
    events = peer.send(data(stream_id, b"abc"), frame(PUSH_PROMISE, 0, 1))
    assert events[0] == DataReceived(stream_id, [b"abc"])
    assert_connection_failed(peer, events, ErrorCode.PROTOCOL_ERROR)


def test_goaway_of_ours_lets_open_streams_end() -> None:
    peer = Peer()
    stream_id = peer.answered()
    peer.client.send_goaway(ErrorCode.NO_ERROR, b"drain")
    peer.client.send_goaway()
    assert peer.sent() == [Frame(GOAWAY, 0, 0, bytes(8) + b"drain")]
    assert not peer.client.is_usable
    assert peer.send(data(stream_id, b"", end=True)) == [ResponseEnded(stream_id, [])]
    assert peer.client.close() == []
    assert peer.sent() == []


def test_close_fails_open_streams_and_says_goodbye_once() -> None:
    peer = Peer()
    stream_id = peer.answered()
    assert peer.client.close() == [
        StreamFailed(stream_id, ErrorCode.CANCEL, "the connection was closed on this side", processed=True)
    ]
    assert peer.sent() == [Frame(GOAWAY, 0, 0, bytes(8))]
    assert peer.client.close() == []
    peer.client.send_goaway()
    assert peer.sent() == []
    assert peer.send(reset(stream_id, 0)) == []
    peer.client.reset_stream(stream_id)
    peer.client.grant(stream_id, 1)
    assert peer.sent() == []
