"""Whatever a peer sends, the HTTP/2 client answers with events in their order, never with an exception."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    Event,
    PongReceived,
    ResponseEnded,
    ResponseReceived,
    StreamFailed,
)
from holdfast.core.http.flow import MAX_USELESS_FRAMES
from holdfast.core.http.http2 import Http2Connection

REQUESTS = 4


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


SETTINGS = frame(4, 0, 0, b"")


def client_with_requests(*, established: bool = True) -> Http2Connection:
    client = Http2Connection(initial_window=1000, max_header_list_size=2000)
    if established:
        client.receive_data(SETTINGS)
    for size in (0, 0, 10, 100_000)[:REQUESTS]:
        client.send_request(b"POST", b"https", b"a", b"/", [], bytes(size))
    client.data_to_send()
    return client


def receive(client: Http2Connection, reads: list[bytes]) -> list[Event]:
    events = [event for read in reads for event in client.receive_data(read)]
    return events + client.receive_eof()


def assert_in_order(client: Http2Connection, events: list[Event]) -> None:
    """The grammar of events: per stream head, data, one end; the connection's failure last of all."""
    state = {1 + 2 * number: "waiting" for number in range(REQUESTS)}
    for event in events[:-1]:
        assert not isinstance(event, ConnectionFailed | PongReceived)
        if isinstance(event, ResponseReceived):
            assert state[event.stream_id] == "waiting"
            assert 200 <= event.status <= 999
            state[event.stream_id] = "body"
        elif isinstance(event, DataReceived):
            assert state[event.stream_id] == "body"
            assert event.chunks
            assert all(event.chunks)
        elif isinstance(event, ResponseEnded):
            assert state[event.stream_id] == "body"
            state[event.stream_id] = "ended"
        elif isinstance(event, StreamFailed):
            assert state[event.stream_id] in ("waiting", "body")
            assert event.processed or state[event.stream_id] == "waiting"
            assert len(event.reason) < 200
            state[event.stream_id] = "ended"
    assert isinstance(events[-1], ConnectionFailed)
    assert len(events[-1].reason) < 200
    assert set(state.values()) == {"ended"}
    assert client.is_closed
    assert not client.is_usable
    assert client.open_streams == client.available_streams == 0
    # What it may have queued: acknowledgements, the rest of one body, window updates, resets and GOAWAY.
    assert len(client.data_to_send()) < 17 * MAX_USELESS_FRAMES + 200_000
    assert client.receive_data(SETTINGS) == []


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    offsets = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(offsets)]


cuts = st.lists(st.integers(0, 3000), max_size=12)

_encoder = Encoder()
_encoder.header_table_size = 0
BLOCKS = [
    _encoder.encode(fields)
    for fields in (
        [(b":status", b"200")],
        [(b":status", b"200"), (b"content-length", b"5")],
        [(b":status", b"103"), (b"link", b"x")],
        [(b":status", b"204"), (b"x", b"y" * 100)],
        [(b"x-trailer", b"t")],
        [(b":status", b"200"), (b"X", b"y")],
        [(b":status", b"200"), (b"x", b"y" * 2500)],
        [(b":status", b"200"), (b"connection", b"close")],
    )
]
payloads = st.one_of(
    st.sampled_from(
        [*BLOCKS, b"", bytes(4), bytes(5), bytes(8), b"\0\0\0\x01", b"\xff" * 4, b"\0\x04\0\0\xff\xff"]
    ),
    st.binary(max_size=40),
    st.integers(0, 1100).map(bytes),
)
frames = st.builds(
    frame,
    st.one_of(st.integers(0, 10), st.sampled_from([0, 0, 1, 1, 9])),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x20]), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 3, 5, 7]), st.integers(0, 0xFFFFFFFF)),
    payloads,
)
well_aimed = st.builds(
    lambda stream_id, parts: b"".join(frame(kind, flags, stream_id, payload) for kind, flags, payload in parts),
    st.sampled_from([1, 3, 5, 7]),
    st.lists(
        st.one_of(
            st.tuples(st.just(1), st.sampled_from([4, 5]), st.sampled_from(BLOCKS)),
            st.tuples(st.just(0), st.sampled_from([0, 1]), st.integers(0, 300).map(bytes)),
            st.tuples(st.just(0), st.just(8), st.binary(min_size=1, max_size=50)),
            st.tuples(st.just(3), st.just(0), st.integers(0, 15).map(lambda code: code.to_bytes(4, "big"))),
            st.tuples(st.just(8), st.just(0), st.integers(0, 2**31).map(lambda n: n.to_bytes(4, "big"))),
        ),
        max_size=6,
    ),
)


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
def test_random_bytes_never_raise(reads: list[bytes], established: bool) -> None:
    client = client_with_requests(established=established)
    assert_in_order(client, receive(client, reads))


@settings(max_examples=400)
@given(st.lists(st.one_of(frames, well_aimed), max_size=25).map(b"".join), cuts)
def test_random_frames_never_raise(stream: bytes, cuts: list[int]) -> None:
    client = client_with_requests()
    assert_in_order(client, receive(client, pieces(stream, cuts)))


def valid_traffic() -> bytes:
    """A server's side of four requests, with all that is allowed in it."""
    encoder = Encoder()
    head = encoder.encode([(b":status", b"200"), (b"content-type", b"text/event-stream"), (b"x-id", b"1")])
    again = encoder.encode([(b":status", b"200"), (b"content-type", b"text/event-stream"), (b"x-id", b"1")])
    trailers = encoder.encode([(b"x-trailer", b"t")])
    return b"".join(
        [
            frame(4, 0, 0, b"\0\x03\0\0\0\x64" + b"\0\x04\0\x01\0\0"),
            frame(4, 1, 0, b""),
            frame(8, 0, 0, b"\0\x0f\0\0"),
            frame(1, 4, 1, head),
            frame(0, 0, 1, b"data: 1\n\n" * 10),
            frame(1, 0, 3, again[:1]),
            frame(9, 4, 3, again[1:]),
            frame(0, 8, 3, b"\x05" + b"data: 2\n\n" + bytes(5)),
            frame(6, 0, 0, b"12345678"),
            frame(0, 0, 1, b"data: 3\n\n"),
            frame(1, 5, 1, trailers),
            frame(3, 0, 5, b"\0\0\0\x07"),
            frame(7, 0, 0, b"\0\0\0\x03" + bytes(4) + b"bye"),
            frame(0, 1, 3, b"data: [DONE]\n\n"),
        ]
    )


VALID = valid_traffic()
edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, len(VALID)), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("insert"), st.integers(0, len(VALID)), st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("delete"), st.integers(0, len(VALID)), st.integers(1, 30)),
        st.tuples(st.just("repeat"), st.integers(0, len(VALID)), st.integers(1, 60)),
        st.tuples(st.just("cut"), st.integers(0, len(VALID)), st.just(0)),
    ),
    min_size=1,
    max_size=4,
)


def edited(stream: bytes, changes: Sequence[tuple[str, int, object]]) -> bytes:
    for how, place, what in changes:
        before, after = stream[:place], stream[place:]
        if isinstance(what, bytes):
            stream = before + what + (after[len(what) :] if how == "set" else after)
        else:
            assert isinstance(what, int)
            stream = {
                "delete": before + after[what:],
                "repeat": before + after[:what] + after,
                "cut": before,
            }[how]
    return stream


@settings(max_examples=400)
@given(edits, cuts)
def test_mutated_traffic_never_raises(changes: list[tuple[str, int, object]], cuts: list[int]) -> None:
    client = client_with_requests(established=False)
    assert_in_order(client, receive(client, pieces(edited(VALID, changes), cuts)))


def uncorked(events: list[Event]) -> list[object]:
    """The events with each stream's data as one string, which no split of the bytes may change."""
    bodies: dict[int, bytes] = {}
    rest: list[object] = []
    for event in events:
        if isinstance(event, DataReceived):
            bodies[event.stream_id] = bodies.get(event.stream_id, b"") + b"".join(event.chunks)
        else:
            rest.append(event)
    return [bodies, rest]


@given(st.one_of(st.just(VALID), edits.map(lambda changes: edited(VALID, changes))), cuts)
def test_any_split_of_the_same_bytes_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    whole, split = client_with_requests(established=False), client_with_requests(established=False)
    assert uncorked(receive(whole, [stream])) == uncorked(receive(split, pieces(stream, cuts)))
    assert whole.data_to_send() == split.data_to_send()


def test_the_valid_traffic_is_valid() -> None:
    client = client_with_requests(established=False)
    events = client.receive_data(VALID)
    assert [type(event).__name__ for event in events] == [
        "SettingsChanged",
        "ResponseReceived",
        "DataReceived",
        "ResponseReceived",
        "DataReceived",
        "ResponseEnded",
        "StreamFailed",
        "GoAwayReceived",
        "StreamFailed",
        "ResponseEnded",
    ]
    assert not client.is_closed
