"""The two servers in memory: any bytes are taken or refused, and how they are cut into reads does not matter."""

from __future__ import annotations

import itertools
import json
from typing import Any, cast

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_tools.simulate import http2_frames as h2
from holdfast_tools.simulate.exchange import Exchange, Request
from holdfast_tools.simulate.faults import Goaway, LowerSettings, NoPingAnswer, ResetStreams, Silence
from holdfast_tools.simulate.http1 import Http1
from holdfast_tools.simulate.http2 import Http2
from holdfast_tools.simulate.pacer import Pacer
from holdfast_tools.simulate.statistics import Counters


class Wire:
    def __init__(self) -> None:
        self.is_paused = False
        self.sent = b""
        self.end: str | None = None

    def write(self, data: bytes | memoryview) -> None:
        if self.end is None:
            self.sent += data

    def close(self) -> None:
        self.end = self.end or "closed"

    def reset(self) -> None:
        self.end = self.end or "reset"

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def request_began(self) -> None:
        pass


class Service:
    """Notes each request and answers at once."""

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.requests: list[tuple[str, str, bytes]] = []
        self.exchanges: list[Exchange] = []

    def handle(self, request: Request, exchange: Exchange) -> None:
        self.requests.append((request.method, request.path, request.body))
        self.exchanges.append(exchange)
        if self.answers:
            exchange.reply(200, b"{}")


#: Nothing here is paced.
NO_PACER = cast(Pacer, None)


def http1(answers: bool = True) -> tuple[Http1, Wire, Service]:
    wire, service = Wire(), Service(answers)
    return Http1(wire, service, NO_PACER), wire, service


def http2(answers: bool = True) -> tuple[Http2, Wire, Service, Counters]:
    wire, service, counters = Wire(), Service(answers), Counters()
    handler = Http2(wire, service, NO_PACER, counters, max_concurrent_streams=10, initial_window_size=65_535)
    return handler, wire, service, counters


def feed(handler: Http1 | Http2, data: bytes, cuts: list[int] | range) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            handler.receive(data[start:stop])


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return h2.frame_header(len(payload), kind, flags, stream_id) + payload


def http2_session(count: int) -> bytes:
    encoder = hpack.Encoder()
    out = h2.PREFACE + h2.settings_frame({h2.INITIAL_WINDOW_SIZE: 1000}) + frame(h2.SETTINGS, h2.ACK, 0)
    for number in range(count):
        fields = [(":method", "POST"), (":scheme", "http"), (":path", f"/{number}"), ("x-a", "b" * number)]
        block = encoder.encode(fields)
        body = json.dumps({"number": number}).encode()
        out += h2.header_frames(2 * number + 1, block, 10, 7)
        out += frame(h2.DATA, 0, 2 * number + 1, body[:3]) + frame(h2.PING, 0, 0, b"12345678")
        out += frame(h2.DATA, h2.END_STREAM, 2 * number + 1, body[3:])
    return out


def http1_session(count: int) -> bytes:
    out = b""
    for number in range(count):
        body = json.dumps({"number": number}).encode()
        if number % 2:
            out += b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (number, len(body), body)
        else:
            head = b"POST /%d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % number
            out += head + b"3\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:3], len(body) - 3, body[3:])
    return out


EXPECTED = [("POST", f"/{number}", json.dumps({"number": number}).encode()) for number in range(4)]
cuts = st.lists(st.integers(0, 1000), max_size=20)


@given(cuts)
def test_http1_requests_do_not_depend_on_the_cuts(where: list[int]) -> None:
    handler, wire, service = http1()
    feed(handler, http1_session(4), where)
    assert service.requests == EXPECTED
    assert wire.sent.count(b"HTTP/1.1 200 OK") == 4


@given(cuts)
def test_http2_requests_do_not_depend_on_the_cuts(where: list[int]) -> None:
    handler, wire, service, counters = http2()
    feed(handler, http2_session(4), where)
    assert service.requests == EXPECTED
    assert wire.end is None
    assert counters.open_streams == 0
    assert wire.sent.count(frame(h2.PING, h2.ACK, 0, b"12345678")) == 4


def test_sessions_in_single_bytes_are_understood() -> None:
    one, _, service = http1()
    feed(one, http1_session(4), range(2000))
    assert service.requests == EXPECTED
    two, _, service, _ = http2()
    feed(two, http2_session(4), range(2000))
    assert service.requests == EXPECTED


@given(st.binary(max_size=300), cuts)
def test_http1_survives_any_bytes(data: bytes, where: list[int]) -> None:
    handler, wire, _ = http1(answers=False)
    feed(handler, data, where)
    handler.connection_lost()
    assert wire.end in (None, "closed")


@given(st.binary(max_size=300), cuts)
def test_http2_survives_any_bytes_after_the_preface(data: bytes, where: list[int]) -> None:
    handler, _, _, counters = http2(answers=False)
    feed(handler, h2.PREFACE + h2.settings_frame({}) + data, where)
    handler.connection_lost()
    assert counters.open_streams == 0


frames = st.builds(
    frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 2, 3, 5, 7, 0x7FFFFFFF]),
    st.binary(max_size=40)
    | st.sampled_from([b"\x83\x86\x84\x41\x01x", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"12345678"]),
)


@given(st.lists(frames, max_size=20), st.booleans())
def test_http2_survives_any_frames(sequence: list[bytes], answers: bool) -> None:
    handler, wire, _, counters = http2(answers)
    handler.receive(h2.PREFACE + h2.settings_frame({}) + b"".join(sequence))
    handler.resume_writing()
    handler.connection_lost()
    assert counters.open_streams == 0
    handler.receive(b"more")
    if wire.end == "closed" and not any(sent[3] == h2.GOAWAY for sent in sequence):
        assert b"\x07\x00\x00\x00\x00\x00" in wire.sent  # it said GOAWAY


@given(st.integers(0, 600), st.integers(0, 255), cuts)
def test_http2_survives_a_changed_byte(at: int, value: int, where: list[int]) -> None:
    data = bytearray(http2_session(4))
    data[min(at, len(data) - 1)] = value
    handler, _, _, counters = http2()
    feed(handler, bytes(data), where)
    handler.connection_lost()
    assert counters.open_streams == 0


@pytest.mark.parametrize(
    "fault", [Goaway(), Goaway(unprocessed=9), ResetStreams(which="all"), LowerSettings(), NoPingAnswer()]
)
def test_faults_of_frames_are_applied_to_http2_only(fault: Any) -> None:
    handler, _, _, _ = http2(answers=False)
    assert handler.apply(fault)
    handler.receive(http2_session(2))
    assert not handler.apply(Silence())
    one, _, _ = http1()
    assert one.apply(fault) == isinstance(fault, Goaway | ResetStreams)


def test_http2_client_that_floods_without_reading_is_sent_away() -> None:
    handler, wire, _, _ = http2()
    handler.receive(h2.PREFACE + h2.settings_frame({}))
    wire.is_paused = True
    handler.receive(frame(h2.PING, 0, 0, b"12345678") * 1001)
    assert wire.sent.count(frame(h2.PING, h2.ACK, 0, b"12345678")) == 1000
    assert wire.end == "closed"


def test_goaway_that_leaves_out_everything_names_stream_0() -> None:
    handler, wire, _, counters = http2(answers=False)
    handler.receive(http2_session(3))
    handler.apply(Goaway(unprocessed=9, error_code=3))
    assert wire.sent.endswith(h2.goaway_frame(0, 3))
    assert wire.end == "closed"
    assert counters.open_streams == 0


def test_http2_body_that_is_too_large_is_refused_and_the_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_tools.simulate.http2.MAX_BODY", 10)
    handler, wire, service, counters = http2()
    data = http2_session(1).replace(b'{"number": 0}'[3:], b"1234567890")
    handler.receive(data)
    assert service.requests == []
    assert b"too large" in wire.sent
    assert counters.open_streams == 0
    assert wire.end is None


def test_http1_body_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_tools.simulate.http1.MAX_BODY", 10)
    handler, wire, service = http1()
    handler.receive(http1_session(1))
    assert service.requests == []
    assert wire.sent.startswith(b"HTTP/1.1 413 ")
    assert wire.end == "closed"


def test_header_blocks_are_split_by_size() -> None:
    block = bytes(range(10))
    whole = h2.header_frames(1, block, 100, 100)
    assert whole == frame(h2.HEADERS, h2.END_HEADERS, 1, block)
    split = h2.header_frames(1, block, 4, 3)
    parts = frame(h2.HEADERS, 0, 1, block[:4]) + frame(h2.CONTINUATION, 0, 1, block[4:7])
    assert split == parts + frame(h2.CONTINUATION, h2.END_HEADERS, 1, block[7:])


@given(st.binary(max_size=50), st.integers(0, 255))
def test_padding_is_removed_or_refused(data: bytes, padding: int) -> None:
    padded = bytes([padding]) + data + bytes(padding)
    assert h2.unpadded(padded, h2.PADDED) == data
    assert h2.unpadded(data, 0) == data
    with pytest.raises(h2.Http2Error):
        h2.unpadded(bytes([padding]) + bytes(padding)[1:] if padding else b"", h2.PADDED)
