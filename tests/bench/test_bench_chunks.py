"""Readers against scripted bytes: whatever the reads are, the same is counted, and what goes wrong is said."""

from __future__ import annotations

import asyncio
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.entries import ErrorBody
from holdfast.core.session import messages as m
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.core.websocket.frames import frame_header, text_frame
from holdfast.core.websocket.handshake import accept_token
from holdfast_tools.bench.http import HttpConnection, SseReader
from holdfast_tools.bench.load import Load
from holdfast_tools.bench.plan import Plan
from holdfast_tools.bench.session import SessionReader, _Socket
from holdfast_tools.bench.tally import Tally
from holdfast_tools.simulate.answer import Answer
from holdfast_tools.simulate.request import ChatRequest, Message, Simulation

TOKENS = 30
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
cut_lists = st.lists(st.integers(min_value=1, max_value=6000), max_size=30)


class FakeTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> None:
        return None

    def close(self) -> None:
        self.is_closed = True

    abort = close


def provided() -> Answer:
    request = ChatRequest("demo", [Message("user", "hi")], sim=Simulation(tokens=TOKENS, seed=0))
    return Answer(request, answer_id="1", created=1)


def entries() -> list[bytes]:
    answer = provided()
    stream = answer.opening() + answer.content(0, TOKENS) + answer.closing()
    return [part.removeprefix(b"data: ") for part in stream.split(b"\n\n") if part and b"[DONE]" not in part]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def read_sse(parts: list[bytes]) -> Tally:
    load = Load(Plan(url="http://127.0.0.1:1/v1", transport="sse", tokens=TOKENS))
    reader = SseReader(load)
    reader._connection = connection = HttpConnection(load, reader)
    connection.connection_made(FakeTransport())  # type: ignore[arg-type]
    for part in parts:
        connection.data_received(part)
    load.is_stopping = True
    return load.tally


def sse_body() -> bytes:
    events = b"".join(b"id: 1-%d\ndata: %b\n\n" % (seq, entry) for seq, entry in enumerate(entries()))
    return events + b"id: 1-%d\ndata: [DONE]\n\n" % len(entries())


@given(cut_lists, cut_lists)
def test_any_chunks_and_any_reads_of_sse_give_the_same(chunk_cuts: list[int], read_cuts: list[int]) -> None:
    response = HEAD + chunked(pieces(sse_body(), chunk_cuts))
    tally = asyncio.run(read_sse(pieces(response, read_cuts)))
    assert (tally.tokens, tally.answers, tally.failed, tally.faults) == (TOKENS, 1, 0, {})


def test_sse_byte_by_byte() -> None:
    response = HEAD + chunked([sse_body()])
    tally = asyncio.run(read_sse([response[at : at + 1] for at in range(len(response))]))
    assert (tally.tokens, tally.answers, tally.failed, tally.faults) == (TOKENS, 1, 0, {})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (sse_body().rpartition(b"id: ")[0], "ended without"),
        (b'data: {"error":{"message":"out of order"}}\n\n', "out of order"),
    ],
)
def test_sse_that_ends_without_done_is_a_failure(body: bytes, error: str) -> None:
    tally = asyncio.run(read_sse([HEAD + chunked([body])]))
    assert (tally.answers, tally.failed) == (0, 1)
    assert error in tally.errors[0]


def test_skipped_id_of_sse_is_found() -> None:
    body = sse_body().replace(b"id: 1-5\n", b"id: 1-6\n").replace(b"id: 1-31\n", b"id: 1-40\n")
    tally = asyncio.run(
        read_sse([HEAD + chunked([body[:4000]]).removesuffix(b"0\r\n\r\n"), chunked([body[4000:]])])
    )
    assert tally.misnumbered
    assert (tally.tokens, tally.answers) == (TOKENS, 1)


def open_session(reader: SessionReader, socket: _Socket) -> FakeTransport:
    """Bring a socket as far as its welcome."""
    reader._socket = socket
    transport = FakeTransport()
    socket.connection_made(transport)  # type: ignore[arg-type]
    socket.data_received(opening(transport))
    return transport


def opening(transport: FakeTransport) -> bytes:
    """What a gateway answers to the handshake and the hello."""
    key = re.search(rb"sec-websocket-key: (\S+)", transport.written)
    assert key is not None
    shake = b"HTTP/1.1 101 Go\r\nSec-WebSocket-Accept: %b\r\nSec-WebSocket-Protocol: holdfast.v1\r\n\r\n"
    limits = m.Limits(max_message=1, max_streams=1, log_bytes=1)
    welcome = m.Welcome(1, "s", "holdfast/1", m.Heartbeat(20_000, 10_000), limits)
    return shake % accept_token(key[1]) + text_frame(m.encode(welcome))


async def read_session(messages: bytes, cuts: list[int]) -> tuple[Tally, FakeTransport]:
    """A session whose first answer comes as these frames; what is asked for after it stays unanswered."""
    load = Load(Plan(url="http://127.0.0.1:1/v1", tokens=TOKENS))
    reader = SessionReader(load, 1)
    reader._socket = socket = _Socket(load, reader)
    transport = FakeTransport()
    socket.connection_made(transport)  # type: ignore[arg-type]
    accepted = m.Accepted(request_id=f"{load.token}-0", stream="st_1")
    data = opening(transport) + text_frame(m.encode(accepted)) + messages
    for part in pieces(data, cuts):
        socket.data_received(part)
    load.is_stopping = True
    socket.abandon()
    return load.tally, transport


async def read_cut_session(first: bytes, second: bytes) -> tuple[Tally, FakeTransport]:
    """The same over two connections; the first one is cut after its frames."""
    load = Load(Plan(url="http://127.0.0.1:1/v1", tokens=TOKENS))
    reader = SessionReader(load, 1)
    socket = _Socket(load, reader)
    open_session(reader, socket)
    accepted = m.Accepted(request_id=f"{load.token}-0", stream="st_1")
    socket.data_received(text_frame(m.encode(accepted)) + first)
    assert socket.cut() == 1
    again = _Socket(load, reader, before=socket)
    transport = open_session(reader, again)
    again.data_received(second)
    load.is_stopping = True
    again.abandon()
    return load.tally, transport


def session_frames(grouping: list[int]) -> bytes:
    """The answer in messages of so many entries each, a ping among them, then its end."""
    out, at, payloads = b"", 0, entries()
    for size in itertools.cycle(grouping):
        some = payloads[at : at + size]
        if not some:
            break
        out += text_frame(SESSION_FRAMING.entries(b"st_1", 1, at, some)) + frame_header(0x9, 2) + b"hi"
        at += len(some)
    return out + text_frame(m.encode(m.End("st_1", at, "completed")))


@given(st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=6), cut_lists)
def test_any_messages_and_any_reads_of_a_session_give_the_same(grouping: list[int], cuts: list[int]) -> None:
    tally, transport = asyncio.run(read_session(session_frames(grouping), cuts))
    assert (tally.tokens, tally.answers, tally.failed, tally.faults) == (TOKENS, 1, 0, {})
    assert b'"ack"' in transport.written  # the end is acknowledged at once
    assert tally.setup.total == 1


def test_missing_entry_of_a_session_is_found_in_text_and_number() -> None:
    frames = session_frames([1]).replace(text_frame(SESSION_FRAMING.entries(b"st_1", 1, 9, entries()[9:10])), b"")
    tally, _ = asyncio.run(read_session(frames, []))
    assert tally.faults == {"lost": 1, "misnumbered": 1}


def test_stream_that_ends_incomplete_is_a_failure_with_its_reason() -> None:
    end = m.End("st_1", 0, "incomplete", error=ErrorBody("upstream_reset", "the provider hung up"))
    tally, _ = asyncio.run(read_session(text_frame(m.encode(end)), []))
    assert (tally.answers, tally.failed) == (0, 1)
    assert "upstream_reset: the provider hung up" in tally.errors[0]


def entry_frame(seq: int, payload: bytes | None = None) -> bytes:
    return text_frame(SESSION_FRAMING.entries(b"st_1", 1, seq, [payload or entries()[seq]]))


def end_frame(seq: int) -> bytes:
    return text_frame(m.encode(m.End("st_1", seq, "completed")))


def test_doubled_entry_of_a_session_is_found_in_text_and_number() -> None:
    frames = session_frames([1]).replace(entry_frame(9), entry_frame(9) * 2)
    tally, _ = asyncio.run(read_session(frames, []))
    assert tally.faults == {"doubled": 1, "misnumbered": 1}


def test_another_token_under_the_right_number_is_found() -> None:
    frames = session_frames([1]).replace(entry_frame(9), entry_frame(9, entries()[12]))
    tally, _ = asyncio.run(read_session(frames, []))
    assert "misnumbered" not in tally.faults
    assert tally.faults["lost"] == 1
    assert tally.faults["doubled"] == 1


@pytest.mark.parametrize("off", [-1, 1])
def test_end_of_a_session_under_another_number_is_found(off: int) -> None:
    frames = session_frames([1]).removesuffix(end_frame(len(entries()))) + end_frame(len(entries()) + off)
    tally, _ = asyncio.run(read_session(frames, []))
    assert (tally.answers, tally.faults) == (1, {"misnumbered": 1})


def test_session_that_is_cut_asks_for_what_comes_after_and_finds_it_whole() -> None:
    frames = session_frames([1])
    first, second = frames[: frames.index(entry_frame(9))], frames[frames.index(entry_frame(9)) :]
    tally, transport = asyncio.run(read_cut_session(first, second))
    assert b'"session":"s","streams":[{"stream":"st_1","after":8}]' in transport.written
    assert (tally.tokens, tally.answers, tally.faults) == (TOKENS, 1, {})
    assert (tally.first_token.total, tally.resume.total) == (1, 1)


@pytest.mark.parametrize(
    ("begins", "faults"), [(7, {"doubled": 2, "misnumbered": 1}), (11, {"lost": 2, "misnumbered": 1})]
)
def test_session_that_comes_back_at_another_entry_is_found(begins: int, faults: dict[str, int]) -> None:
    frames = session_frames([1])
    first, second = frames[: frames.index(entry_frame(9))], frames[frames.index(entry_frame(begins)) :]
    tally, _ = asyncio.run(read_cut_session(first, second))
    assert tally.faults == faults
