from __future__ import annotations

from typing import Any

import pytest

from holdfast.core.http.connection import (
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    HttpMisuse,
    ResponseEnded,
    ResponseReceived,
    StreamFailed,
    Windows,
)
from holdfast.core.http.flow import MAX_USELESS_FRAMES
from holdfast.core.http.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PRIORITY_FLAG,
    RST_STREAM,
    WINDOW_UPDATE,
)
from tests.support.http2_peer import (
    OK,
    Frame,
    Peer,
    assert_connection_failed,
    assert_stream_failed,
    data,
    frame,
    goaway,
    reset,
    window_update,
)

PEER_RESET = "the peer reset the h2 stream"


def padded(stream_id: int, content: bytes, padding: int, *, end: bool = False) -> bytes:
    flags = PADDED | (END_STREAM if end else 0)
    return frame(DATA, flags, stream_id, bytes((padding,)) + content + bytes(padding))


# -- responses -------------------------------------------------------------------------------------------


def test_response_with_body_and_trailers() -> None:
    peer = Peer()
    stream_id = peer.request()
    head = [(b":status", b"200"), (b"x-a", b"1"), (b"x-b", b"2")]
    assert peer.send(peer.headers(stream_id, head)) == [ResponseReceived(1, 200, head[1:])]
    assert peer.send(data(stream_id, b"abc")) == [DataReceived(1, [b"abc"])]
    assert peer.client.open_streams == 1
    assert peer.send(peer.headers(stream_id, [(b"x-t", b"3")], end=True)) == [ResponseEnded(1, [(b"x-t", b"3")])]
    assert peer.client.open_streams == 0
    assert peer.client.is_usable


def test_response_of_a_head_alone() -> None:
    peer = Peer()
    assert peer.send(peer.headers(peer.request(), end=True)) == [
        ResponseReceived(1, 200, []),
        ResponseEnded(1, []),
    ]


def test_data_of_one_read_is_corked_per_stream_in_order_of_arrival() -> None:
    peer = Peer()
    first, second = peer.request(), peer.request()
    events = peer.send(
        peer.headers(first),
        peer.headers(second),
        data(second, b"1"),
        data(first, b"a"),
        padded(second, b"2", 3),
        data(first, b"b", end=True),
        data(second, b"3"),
    )
    assert events == [
        ResponseReceived(first, 200, []),
        ResponseReceived(second, 200, []),
        DataReceived(second, [b"1", b"2", b"3"]),
        DataReceived(first, [b"a", b"b"]),
        ResponseEnded(first, []),
    ]


def test_end_of_the_body_alone_brings_no_data_event() -> None:
    peer = Peer()
    stream_id = peer.answered()
    assert peer.send(data(stream_id, b"", end=True)) == [ResponseEnded(stream_id, [])]
    stream_id = peer.answered()
    assert peer.send(padded(stream_id, b"", 9, end=True)) == [ResponseEnded(stream_id, [])]


def test_reserved_bit_of_the_stream_id_is_ignored() -> None:
    peer = Peer()
    stream_id = peer.answered()
    assert peer.send(data(stream_id | 0x80000000, b"abc")) == [DataReceived(stream_id, [b"abc"])]


def test_informational_responses_are_swallowed() -> None:
    peer = Peer()
    stream_id = peer.request()
    for status in (b"100", b"103"):
        assert peer.send(peer.headers(stream_id, [(b":status", status), (b"link", b"x")])) == []
    assert peer.send(peer.headers(stream_id)) == [ResponseReceived(stream_id, 200, [])]


@pytest.mark.parametrize("end", [True, False])
def test_continued_head_is_one_head(end: bool) -> None:
    peer = Peer()
    stream_id = peer.request()
    fields = [*OK, *((b"x-%d" % number, b"v" * 50) for number in range(20))]
    first, *rest = peer.split_headers(stream_id, fields, 100)
    events: list[Event] = []
    for part in (first[:4] + bytes((END_STREAM if end else 0,)) + first[5:], *rest):
        assert events == []
        events = peer.send(part)
    assert events[0] == ResponseReceived(stream_id, 200, fields[1:])
    assert events[1:] == ([ResponseEnded(stream_id, [])] if end else [])


def test_padding_and_priority_of_a_head_are_taken_off() -> None:
    peer = Peer()
    stream_id = peer.request()
    payload = b"\x03" + b"\x80\0\0\x01\xff" + peer.block(OK) + bytes(3)
    events = peer.send(frame(HEADERS, END_HEADERS | PADDED | PRIORITY_FLAG, stream_id, payload))
    assert events == [ResponseReceived(stream_id, 200, [])]


# -- content-length --------------------------------------------------------------------------------------


def with_length(peer: Peer, length: bytes, *, method: bytes = b"GET", status: bytes = b"200") -> int:
    stream_id = peer.request(method=method)
    events = peer.send(peer.headers(stream_id, [(b":status", status), (b"content-length", length)]))
    assert isinstance(events[0], ResponseReceived)
    peer.client.data_to_send()
    return stream_id


def test_body_of_the_declared_length_ends_well() -> None:
    peer = Peer()
    stream_id = with_length(peer, b"5")
    assert peer.send(data(stream_id, b"abc"), data(stream_id, b"de"), data(stream_id, b"", end=True)) == [
        DataReceived(stream_id, [b"abc", b"de"]),
        ResponseEnded(stream_id, []),
    ]


def test_padding_is_no_part_of_the_length() -> None:
    peer = Peer()
    stream_id = with_length(peer, b"5")
    assert peer.send(
        padded(stream_id, b"abc", 200), padded(stream_id, b"", 9), data(stream_id, b"de", end=True)
    ) == [
        DataReceived(stream_id, [b"abc", b"de"]),
        ResponseEnded(stream_id, []),
    ]


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("write", [data, lambda stream_id, body, end: padded(stream_id, body, 5, end=end)])
def test_longer_body_fails_the_stream(write: object, end: bool) -> None:
    peer = Peer()
    stream_id = with_length(peer, b"5")
    peer.send(data(stream_id, b"abc"))
    events = peer.send(write(stream_id, b"def", end=end))  # type: ignore[operator]
    reason = "a body longer than its content-length"
    assert events == [StreamFailed(stream_id, ErrorCode.PROTOCOL_ERROR, reason, True, is_malformed=True)]
    # The peer has ended its side, and ours was ended: nothing is left to reset.
    assert [sent.kind for sent in peer.sent()] == ([] if end else [RST_STREAM])


def test_shorter_body_fails_the_stream() -> None:
    peer = Peer()
    stream_id = with_length(peer, b"5")
    assert peer.send(data(stream_id, b"abc", end=True)) == [
        DataReceived(stream_id, [b"abc"]),
        StreamFailed(
            stream_id, ErrorCode.PROTOCOL_ERROR, "a body shorter than its content-length", processed=True
        ),
    ]
    assert peer.sent() == []
    assert peer.client.open_streams == 0


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200"), (b"GET", b"204"), (b"GET", b"304")])
def test_response_without_content_may_declare_a_length(method: bytes, status: bytes) -> None:
    peer = Peer()
    stream_id = with_length(peer, b"5", method=method, status=status)
    assert peer.send(data(stream_id, b"", end=True)) == [ResponseEnded(stream_id, [])]
    stream_id = with_length(peer, b"5", method=method, status=status)
    assert_stream_failed(peer, peer.send(data(stream_id, b"x")), stream_id, ErrorCode.PROTOCOL_ERROR)


# -- malformed responses fail their stream alone ---------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        [(b"x", b"1")],
        [(b":status", b"200"), (b"X", b"1")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"content-length", b"x")],
        [(b":status", b"101")],
    ],
)
def test_malformed_head_fails_the_stream(fields: list[tuple[bytes, bytes]]) -> None:
    peer = Peer()
    other = peer.answered()
    stream_id = peer.request()
    events = peer.send(peer.headers(stream_id, fields))
    assert isinstance(events[0], StreamFailed)
    assert (events[0].stream_id, events[0].code) == (stream_id, ErrorCode.PROTOCOL_ERROR)
    assert events[0].is_malformed
    assert Frame(RST_STREAM, 0, stream_id, b"\0\0\0\x01") in peer.sent()
    assert peer.send(data(other, b"on", end=True)) == [DataReceived(other, [b"on"]), ResponseEnded(other, [])]


def test_peer_that_demands_http_1_1_has_not_processed_the_request() -> None:
    peer = Peer()
    fresh, begun = peer.request(), peer.answered()
    for stream_id, processed in ((fresh, False), (begun, True)):
        code = ErrorCode.HTTP_1_1_REQUIRED.to_bytes(4, "big")
        (failed,) = peer.send(frame(RST_STREAM, 0, stream_id, code))
        assert isinstance(failed, StreamFailed)
        assert (failed.processed, failed.is_malformed) == (processed, False)


def test_informational_response_that_ends_the_stream_fails_it() -> None:
    peer = Peer()
    events = peer.send(peer.headers(peer.request(), [(b":status", b"100")], end=True))
    assert isinstance(events[0], StreamFailed)


def test_data_before_the_head_fails_the_stream() -> None:
    peer = Peer()
    stream_id = peer.request()
    assert_stream_failed(peer, peer.send(data(stream_id, b"abc")), stream_id, ErrorCode.PROTOCOL_ERROR)


def test_second_head_fails_the_stream() -> None:
    peer = Peer()
    stream_id = peer.answered()
    assert_stream_failed(peer, peer.send(peer.headers(stream_id)), stream_id, ErrorCode.PROTOCOL_ERROR)


def test_pseudo_field_in_trailers_fails_the_stream() -> None:
    peer = Peer()
    stream_id = peer.answered()
    events = peer.send(peer.headers(stream_id, OK, end=True))
    assert isinstance(events[0], StreamFailed)


def test_large_header_list_fails_the_stream_and_keeps_the_compression_state() -> None:
    peer = Peer(max_header_list_size=1000)
    stream_id = peer.request()
    events = peer.send(peer.headers(stream_id, [*OK, (b"x-large", b"v" * 1000)]))
    assert_stream_failed(peer, events, stream_id, ErrorCode.ENHANCE_YOUR_CALM)
    stream_id = peer.request()
    assert peer.send(peer.headers(stream_id, [*OK, (b"x-small", b"v")])) == [
        ResponseReceived(stream_id, 200, [(b"x-small", b"v")])
    ]


def test_far_too_large_header_list_fails_the_connection() -> None:
    peer = Peer(max_header_list_size=1000)
    events = peer.send(peer.headers(peer.request(), [*OK, (b"x", b"\xff" * 4000)]))
    assert_connection_failed(peer, events, ErrorCode.ENHANCE_YOUR_CALM)


def test_bad_compression_fails_the_connection() -> None:
    peer = Peer()
    events = peer.send(frame(HEADERS, END_HEADERS, peer.request(), b"\x80"))
    assert isinstance(events[0], StreamFailed)
    assert_connection_failed(peer, events, ErrorCode.COMPRESSION_ERROR)


@pytest.mark.parametrize(
    "fault",
    [
        lambda stream_id: [frame(HEADERS, END_HEADERS, stream_id, b"\x80")],
        lambda stream_id: [frame(HEADERS, END_HEADERS, stream_id, bytes(16_000))],
        lambda stream_id: [frame(HEADERS, 0, stream_id, b""), *[frame(CONTINUATION, 0, stream_id, b"")] * 65],
    ],
)
def test_fields_that_fail_the_connection_are_the_fault_of_their_own_stream_alone(fault: Any) -> None:
    peer = Peer(max_header_list_size=1000)
    ours, theirs = peer.answered(), peer.request()
    failed = {
        event.stream_id: event.is_malformed
        for event in peer.send(*fault(theirs))
        if isinstance(event, StreamFailed)
    }
    assert failed == {ours: False, theirs: True}


# -- field blocks in parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner",
    [
        frame(PING, 0, 0, bytes(8)),
        data(1, b"x"),
        frame(HEADERS, END_HEADERS, 1, b"\x88"),
        frame(CONTINUATION, END_HEADERS, 3, b""),
        frame(99, 0, 1, b""),
    ],
)
def test_frame_within_a_field_block_fails_the_connection(inner: bytes) -> None:
    peer = Peer()
    for _ in range(2):
        peer.request()
    events = peer.send(frame(HEADERS, 0, 1, b"\x88"), inner)
    assert_connection_failed(peer, events, ErrorCode.PROTOCOL_ERROR)


def test_data_within_trailers_fails_the_connection() -> None:
    peer = Peer()
    stream_id = peer.answered()
    events = peer.send(frame(HEADERS, END_STREAM, stream_id, b""), data(stream_id, b"x"))
    assert_connection_failed(peer, events, ErrorCode.PROTOCOL_ERROR, "field block")


def test_continuation_without_a_block_fails_the_connection() -> None:
    peer = Peer()
    events = peer.send(frame(CONTINUATION, END_HEADERS, peer.request(), b"\x88"))
    assert_connection_failed(peer, events, ErrorCode.PROTOCOL_ERROR)


def test_endless_small_continuations_fail_the_connection() -> None:
    peer = Peer()
    stream_id = peer.request()
    events = peer.send(frame(HEADERS, 0, stream_id, b""), *[frame(CONTINUATION, 0, stream_id, b"")] * 65)
    assert_connection_failed(peer, events, ErrorCode.ENHANCE_YOUR_CALM)


def test_endless_large_continuations_fail_the_connection() -> None:
    peer = Peer(max_header_list_size=10_000)
    stream_id = peer.request()
    events = peer.send(frame(HEADERS, 0, stream_id, b""), *[frame(CONTINUATION, 0, stream_id, bytes(15_000))] * 3)
    assert_connection_failed(peer, events, ErrorCode.ENHANCE_YOUR_CALM)


def test_head_without_its_priority_fails_the_connection() -> None:
    peer = Peer()
    events = peer.send(frame(HEADERS, END_HEADERS | PRIORITY_FLAG, peer.request(), b"\0\0\0\0"))
    assert_connection_failed(peer, events, ErrorCode.FRAME_SIZE_ERROR)


# -- frames where none may be ----------------------------------------------------------------------------

PER_STREAM = {
    "DATA": lambda stream_id: data(stream_id, b"x"),
    "HEADERS": lambda stream_id: frame(HEADERS, END_HEADERS, stream_id, b"\x88"),
    "RST_STREAM": lambda stream_id: reset(stream_id, 8),
    "WINDOW_UPDATE": lambda stream_id: window_update(stream_id, 1),
}


@pytest.mark.parametrize("kind", PER_STREAM)
@pytest.mark.parametrize("stream_id", [2, 3, 0x7FFFFFFF])
def test_frame_of_an_idle_stream_fails_the_connection(kind: str, stream_id: int) -> None:
    peer = Peer()
    peer.request()
    assert_connection_failed(peer, peer.send(PER_STREAM[kind](stream_id)), ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("kind", ["DATA", "HEADERS", "RST_STREAM"])
def test_stream_frame_without_a_stream_fails_the_connection(kind: str) -> None:
    peer = Peer()
    assert_connection_failed(peer, peer.send(PER_STREAM[kind](0)), ErrorCode.PROTOCOL_ERROR)


def test_data_after_the_end_fails_the_connection() -> None:
    peer = Peer()
    stream_id = peer.answered()
    peer.send(data(stream_id, b"abc", end=True))
    assert_connection_failed(peer, peer.send(data(stream_id, b"d")), ErrorCode.STREAM_CLOSED)


def test_other_frames_after_the_end_are_ignored() -> None:
    peer = Peer()
    stream_id = peer.answered()
    peer.send(data(stream_id, b"abc", end=True))
    assert peer.send(window_update(stream_id, 5), reset(stream_id, 0), peer.headers(stream_id)) == []
    assert not peer.client.is_closed


# -- resets ----------------------------------------------------------------------------------------------


def test_reset_frees_the_slot_at_once_and_late_frames_are_dropped() -> None:
    peer = Peer(max_streams=1, initial_window=1000)
    stream_id = peer.answered()
    peer.client.reset_stream(stream_id)
    assert peer.sent() == [Frame(RST_STREAM, 0, stream_id, b"\0\0\0\x08")]
    assert peer.client.available_streams == 1
    window = peer.client.windows().receive
    late = [(b"x-late", b"new in the table")]
    assert peer.send(data(stream_id, bytes(900)), peer.headers(stream_id, late), reset(stream_id, 0)) == []
    assert peer.client.windows().receive == window - 900
    # The compression state went on: the field can be referred to.
    stream_id = peer.request()
    assert peer.send(peer.headers(stream_id, [*OK, *late])) == [ResponseReceived(stream_id, 200, late)]


def test_late_data_beyond_the_windows_of_reset_streams_fails_the_connection() -> None:
    peer = Peer(initial_window=1000)
    stream_id = peer.answered()
    peer.send(data(stream_id, bytes(400)))
    peer.client.reset_stream(stream_id)
    assert peer.send(data(stream_id, bytes(600)), data(stream_id, b"")) == []
    assert_connection_failed(peer, peer.send(data(stream_id, b"x")), ErrorCode.STREAM_CLOSED)


def test_reset_of_an_ended_stream_does_nothing() -> None:
    peer = Peer()
    stream_id = peer.answered()
    peer.send(data(stream_id, b"", end=True))
    peer.client.reset_stream(stream_id)
    assert peer.sent() == []


@pytest.mark.parametrize("stream_id", [-1, 0, 2, 3])
def test_call_for_a_stream_that_never_was_is_misuse(stream_id: int) -> None:
    peer = Peer()
    peer.request()
    for call in (peer.client.reset_stream, peer.client.stream_windows):
        with pytest.raises(HttpMisuse):
            call(stream_id)
    with pytest.raises(HttpMisuse):
        peer.client.grant(stream_id, 1)


def test_reset_by_the_peer_fails_the_stream() -> None:
    peer = Peer()
    stream_id = peer.answered()
    assert peer.send(reset(stream_id, 2)) == [StreamFailed(stream_id, 2, PEER_RESET, processed=True)]
    assert peer.sent() == []
    assert peer.client.open_streams == 0


def test_refused_stream_was_not_processed() -> None:
    peer = Peer()
    stream_id = peer.request()
    assert peer.send(reset(stream_id, 7)) == [StreamFailed(stream_id, 7, PEER_RESET, processed=False)]


def test_stream_refused_after_its_head_was_processed() -> None:
    peer = Peer()
    stream_id = peer.answered()
    assert peer.send(reset(stream_id, 7)) == [StreamFailed(stream_id, 7, PEER_RESET, processed=True)]


def test_reset_of_another_size_fails_the_connection() -> None:
    peer = Peer()
    events = peer.send(frame(RST_STREAM, 0, peer.request(), bytes(5)))
    assert_connection_failed(peer, events, ErrorCode.FRAME_SIZE_ERROR)


def test_response_before_the_request_is_whole_stops_the_body() -> None:
    peer = Peer()
    stream_id = peer.request(bytes(100_000))
    peer.sent()
    assert peer.send(peer.headers(stream_id, end=True))[-1] == ResponseEnded(stream_id, [])
    assert peer.sent() == [Frame(RST_STREAM, 0, stream_id, b"\0\0\0\0")]
    assert peer.send(window_update(0, 1_000_000), reset(stream_id, 0)) == []
    assert peer.sent() == []


def test_malformed_end_before_the_request_is_whole_stops_the_body() -> None:
    peer = Peer()
    stream_id = peer.request(bytes(100_000))
    peer.sent()
    events = peer.send(peer.headers(stream_id, [(b"x", b"1")], end=True))
    assert isinstance(events[0], StreamFailed)
    assert peer.sent() == [Frame(RST_STREAM, 0, stream_id, b"\0\0\0\0")]


def test_reset_drops_the_rest_of_the_body() -> None:
    peer = Peer()
    stream_id = peer.request(bytes(100_000))
    peer.client.reset_stream(stream_id)
    peer.sent()
    peer.send(window_update(0, 1_000_000))
    assert peer.sent() == []


# -- windows ---------------------------------------------------------------------------------------------


def test_grants_are_told_in_batches() -> None:
    peer = Peer(initial_window=1000)
    stream_id = peer.answered()
    peer.send(data(stream_id, bytes(600)))
    peer.client.grant(stream_id, 249)
    assert peer.sent() == []
    assert peer.client.stream_windows(stream_id) == Windows(400, 65_535)
    peer.client.grant(stream_id, 1)
    assert peer.sent() == [Frame(WINDOW_UPDATE, 0, stream_id, (250).to_bytes(4, "big"))]
    assert peer.client.stream_windows(stream_id).receive == 650
    assert peer.send(data(stream_id, bytes(650))) == [DataReceived(stream_id, [bytes(650)])]


def test_grant_of_more_than_was_received_is_misuse() -> None:
    peer = Peer(initial_window=1000)
    stream_id = peer.answered()
    peer.send(data(stream_id, bytes(600)))
    peer.client.grant(stream_id, 500)
    for n in (101, -1):
        with pytest.raises(HttpMisuse):
            peer.client.grant(stream_id, n)
    peer.client.grant(stream_id, 100)


def test_grant_after_the_end_does_nothing() -> None:
    peer = Peer(initial_window=100)
    stream_id = peer.answered()
    peer.send(data(stream_id, bytes(100), end=True))
    peer.client.grant(stream_id, 100)
    assert peer.sent() == []
    assert peer.client.stream_windows(stream_id) == Windows(0, 0)


def test_grant_before_the_head_is_for_padding_only() -> None:
    peer = Peer(initial_window=100)
    stream_id = peer.request()
    with pytest.raises(HttpMisuse):
        peer.client.grant(stream_id, 1)


def test_data_beyond_the_window_fails_the_stream() -> None:
    for write in (data, lambda stream_id, body: padded(stream_id, body, 0)):
        peer = Peer(initial_window=1000)
        stream_id = peer.answered()
        peer.send(data(stream_id, bytes(900)))
        events = peer.send(write(stream_id, bytes(101)))
        assert_stream_failed(peer, events, stream_id, ErrorCode.FLOW_CONTROL_ERROR)


def test_padding_gives_its_window_back_by_itself() -> None:
    peer = Peer(initial_window=1000)
    stream_id = peer.answered()
    for _ in range(20):
        assert peer.send(padded(stream_id, b"", 255)) == []
    assert peer.client.stream_windows(stream_id).receive >= 744
    assert sum(int.from_bytes(sent.payload, "big") for sent in peer.sent()) == 20 * 256


def test_window_update_lets_the_body_go_on() -> None:
    peer = Peer()
    stream_id = peer.request(bytes(70_000))
    assert sum(len(sent.payload) for sent in peer.sent() if sent.kind == DATA) == 65_535
    peer.send(window_update(0, 10_000))
    assert peer.sent() == []
    peer.send(window_update(stream_id, 10_000))
    assert peer.sent() == [Frame(DATA, END_STREAM, stream_id, bytes(4_465))]


def test_window_update_of_zero_fails_the_stream() -> None:
    peer = Peer()
    stream_id = peer.request()
    events = peer.send(window_update(stream_id, 0x80000000))
    assert_stream_failed(peer, events, stream_id, ErrorCode.PROTOCOL_ERROR)


def test_window_update_beyond_the_limit_fails_the_stream() -> None:
    peer = Peer()
    stream_id = peer.request()
    events = peer.send(window_update(stream_id, 0x7FFFFFFF))
    assert_stream_failed(peer, events, stream_id, ErrorCode.FLOW_CONTROL_ERROR)


# -- going away ------------------------------------------------------------------------------------------


def test_goaway_fails_streams_above_its_last_id_as_not_processed() -> None:
    peer = Peer()
    first, second, third = peer.request(), peer.request(), peer.request(bytes(100_000))
    peer.send(peer.headers(first))
    peer.client.data_to_send()
    reason = "the peer went away before it processed this"
    assert peer.send(goaway(first, 11, b"calm")) == [
        GoAwayReceived(first, 11, b"calm"),
        StreamFailed(second, 11, reason, processed=False),
        StreamFailed(third, 11, reason, processed=False),
    ]
    assert peer.client.open_streams == 1
    assert not peer.client.is_usable
    assert peer.client.available_streams == 0
    with pytest.raises(HttpMisuse):
        peer.request()
    assert peer.send(window_update(0, 1_000_000)) == []
    assert peer.sent() == []
    assert peer.send(data(first, b"abc", end=True)) == [DataReceived(first, [b"abc"]), ResponseEnded(first, [])]


def test_graceful_goaway_fails_nothing_until_the_final_one() -> None:
    peer = Peer()
    first, second = peer.request(), peer.request()
    assert peer.send(goaway(0x7FFFFFFF)) == [GoAwayReceived(0x7FFFFFFF, 0, b"")]
    assert peer.client.open_streams == 2
    assert not peer.client.is_usable
    events = peer.send(goaway(first))
    assert [event.stream_id for event in events if isinstance(event, StreamFailed)] == [second]


def test_goaway_below_a_stream_that_was_answered_does_not_call_it_unprocessed() -> None:
    peer = Peer()
    stream_id = peer.answered()
    failed = peer.send(goaway(0))[1]
    assert isinstance(failed, StreamFailed)
    assert (failed.stream_id, failed.processed) == (stream_id, True)


# -- floods ----------------------------------------------------------------------------------------------


def test_empty_data_flood_fails_the_connection() -> None:
    peer = Peer()
    stream_id = peer.answered()
    events: list[Event] = []
    for _ in range(MAX_USELESS_FRAMES + 1):
        assert events == []
        events = peer.send(data(stream_id, b""))
    assert_connection_failed(peer, events, ErrorCode.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize(
    "flood",
    [
        lambda peer, stream_id: reset(stream_id, 8),
        lambda peer, stream_id: data(stream_id, b""),
        lambda peer, stream_id: peer.headers(stream_id),
        lambda peer, stream_id: window_update(stream_id, 1),
    ],
)
def test_flood_of_frames_for_ended_streams_fails_the_connection(flood: object) -> None:
    peer = Peer()
    stream_id = peer.answered()
    peer.send(data(stream_id, b"", end=True))
    events = peer.send(*[flood(peer, stream_id) for _ in range(MAX_USELESS_FRAMES + 1)])  # type: ignore[operator]
    assert_connection_failed(peer, events, ErrorCode.ENHANCE_YOUR_CALM)


def test_endless_informational_responses_fail_the_connection() -> None:
    peer = Peer()
    stream_id = peer.request()
    hint = peer.headers(stream_id, [(b":status", b"103")])
    hint_again = peer.headers(stream_id, [(b":status", b"103")])
    events = peer.send(hint, *[hint_again] * MAX_USELESS_FRAMES)
    assert_connection_failed(peer, events, ErrorCode.ENHANCE_YOUR_CALM)


def test_nothing_is_remembered_of_ended_streams() -> None:
    peer = Peer()
    for number in range(3000):
        stream_id = peer.answered(b"x")
        if number % 3 == 0:
            peer.client.reset_stream(stream_id)
        elif number % 3 == 1:
            peer.send(reset(stream_id, 8))
        else:
            peer.send(data(stream_id, b"abc", end=True))
        peer.client.data_to_send()
    table = peer.client._streams
    assert not table.open
    assert not table.bodies._waiting
