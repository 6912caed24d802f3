"""HTTP/1.1 responses in any pieces give the same events, and no bytes make the client raise."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    Event,
    ResponseEnded,
    ResponseReceived,
    StreamFailed,
)
from holdfast.core.http.http1 import Http1Connection

methods = st.sampled_from([b"GET", b"POST", b"HEAD"])
cuts = st.lists(st.integers(0, 600), max_size=12)
fragments = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 101 Switching\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Upgrade: x\r\n",
        b"X-Y: z\r\n",
        b"X: " + b"y" * 150 + b"\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
        b"0\r\n",
        b"abcde",
        b"\0",
        b"\xff",
    ]
)
streams = st.one_of(
    st.lists(fragments, max_size=12).map(b"".join),
    st.lists(fragments, max_size=12).map(lambda parts: b"HTTP/1.1 200 OK\r\n" + b"".join(parts)),
    st.binary(max_size=200),
)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    offsets = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(offsets)]


def connection_with_request(method: bytes) -> Http1Connection:
    connection = Http1Connection(max_head_size=500)
    connection.send_request(method, b"http", b"a", b"/", [])
    connection.data_to_send()
    return connection


def receive(connection: Http1Connection, reads: list[bytes]) -> list[Event]:
    events = [event for read in reads for event in connection.receive_data(read)]
    return events + connection.receive_eof()


@settings(max_examples=500)
@given(streams, cuts, methods)
def test_any_bytes_give_events_in_order(stream: bytes, cuts: list[int], method: bytes) -> None:
    connection = connection_with_request(method)
    *events, last = receive(connection, pieces(stream, cuts))
    assert isinstance(last, ConnectionFailed)
    names = [type(event) for event in events]
    assert names[-1] in (ResponseEnded, StreamFailed)
    assert names.count(ResponseEnded) + names.count(StreamFailed) == 1
    if names[-1] is ResponseEnded or len(names) > 1:
        assert names[0] is ResponseReceived
    assert set(names[1:-1]) <= {DataReceived}
    assert connection.is_closed
    assert connection.open_streams == connection.available_streams == 0
    assert connection.data_to_send() == b""


def uncorked(events: list[Event]) -> tuple[bytes, list[object]]:
    body = b"".join(b"".join(event.chunks) for event in events if isinstance(event, DataReceived))
    rest: list[object] = []
    for event in events:
        if isinstance(event, ConnectionFailed | StreamFailed):
            rest.append(type(event))  # the reason may tell what came first
        elif not isinstance(event, DataReceived):
            rest.append(event)
    return body, rest


@settings(max_examples=500)
@given(streams, cuts, methods)
def test_any_split_of_the_same_bytes_gives_the_same_events(stream: bytes, cuts: list[int], method: bytes) -> None:
    whole, split = connection_with_request(method), connection_with_request(method)
    assert uncorked(receive(whole, [stream])) == uncorked(receive(split, pieces(stream, cuts)))


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), cuts, st.booleans())
def test_chunked_body_arrives_whole(chunks: list[bytes], cuts: list[int], trailers: bool) -> None:
    stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    stream += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    stream += b"0\r\nX-T: t\r\n\r\n" if trailers else b"0\r\n\r\n"
    connection = connection_with_request(b"GET")
    events = [event for read in pieces(stream, cuts) for event in connection.receive_data(read)]
    body, (head, end) = uncorked(events)
    assert isinstance(head, ResponseReceived)
    assert body == b"".join(chunks)
    assert end == ResponseEnded(1, [(b"x-t", b"t")] if trailers else [])
    assert connection.available_streams == 1
