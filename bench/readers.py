"""Clients that check what they read: every entry once, in order, and with the token that belongs there.

They speak just enough of each protocol, so that they cost less than what they measure.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import time
from typing import cast

import httptools

from bench.children import KEY
from bench.client_frames import CLOSE, HANDSHAKE, PING, PONG, TEXT, FrameSplitter, client_frame
from holdfast.core.sse import EventSplitter

_AUTHORIZATION = b"authorization: Bearer " + KEY.encode() + b"\r\n"
OPENING = HANDSHAKE % _AUTHORIZATION
_ENTRIES = re.compile(rb'\{"type":"events?","stream":"([^"]+)","seq":(\d+),')
_CHUNK = b'"object":"chat.completion.chunk"'
#: A simulated token is a word and its number in the answer, see `holdfast_tools.simulate.text`.
_TOKEN = re.compile(rb'"content":" ?[a-z]+(\d+)"')
#: Streams of one acknowledgement, so that its frame stays below 64 KiB.
_ACK_STREAMS = 512
#: Seconds between acknowledgements, as in the SDK.
ACK_INTERVAL = 1.0


class Tally:
    """What all readers of this process have received. `errors` keeps the first few in words."""

    def __init__(self) -> None:
        self.entries = 0
        self.begun = 0
        self.ended = 0
        self.lost = 0
        self.doubled = 0
        self.faults = 0
        self.errors: list[str] = []
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def fault(self, text: str) -> None:
        self.faults += 1
        if len(self.errors) < 5:
            self.errors.append(text)

    async def until(self, *, begun: int = 0, ended: int = 0) -> None:
        """Return when so many streams have had their first entry, and so many their end."""
        if self.begun >= begun and self.ended >= ended:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((begun, ended, future))
        await future

    def moved(self) -> None:
        """A stream has begun or ended."""
        for waiting in self._waiting[:]:
            begun, ended, future = waiting
            if self.begun >= begun and self.ended >= ended:
                self._waiting.remove(waiting)
                if not future.done():
                    future.set_result(None)


class Reading:
    """One stream, over however many connections it is read. Entry 0 names the role, entry n has token n - 1."""

    __slots__ = ("acknowledged", "id", "is_ended", "next", "next_token", "tally")

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.id = ""
        self.next = 0
        self.next_token = 0
        self.acknowledged = -1
        self.is_ended = False

    def take(self, seq: int, count: int, data: bytes) -> None:
        """Take `count` entries from number `seq` on, which `data` holds."""
        tally = self.tally
        if seq != self.next:
            if seq > self.next:
                tally.lost += seq - self.next
            else:
                tally.doubled += min(count, self.next - seq)
            tally.fault(f"stream {self.id}: entry {seq} came where {self.next} was due")
        if self.next == 0:
            tally.begun += 1
            tally.moved()
        self.next = seq + count
        tally.entries += count
        for number in _TOKEN.findall(data):
            if int(number) != self.next_token:
                tally.fault(f"stream {self.id}: token {int(number)} came where {self.next_token} was due")
            self.next_token = int(number) + 1

    def end(self, seq: int, status: str) -> None:
        if seq != self.next or status != "completed":
            self.tally.fault(f"stream {self.id}: ended {status} with number {seq}, {self.next} was due")
        self.is_ended = True
        self.tally.ended += 1
        self.tally.moved()


class SessionReader(asyncio.Protocol):
    """One WebSocket session that reads any number of streams, and acknowledges each second what is new.

    `welcomed` is done when the session is open, with the seconds since the connection was there; `first_entries`
    gets the time of the first entry of each stream on this connection.
    """

    def __init__(self, tally: Tally, readings: dict[str, Reading], token: str | None = None) -> None:
        self.welcomed: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.token = token
        self.pings = 0
        self.is_lost = False
        self.is_cut = False
        self.first_entries: dict[str, float] = {}
        self.on_first: asyncio.Future[float] | None = None
        self._tally = tally
        #: By id of the stream; those that wait to be accepted are under their request id.
        self._readings = readings
        self._splitter = FrameSplitter()
        self._head: bytes | None = b""
        self._ack: asyncio.TimerHandle | None = None

    # -- what is sent --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._made = time.perf_counter()
        hello: dict[str, object] = {"type": "hello", "version": 1, "client": "bench/1"}
        if self.token is not None:
            states = [{"stream": id_, "after": reading.next - 1} for id_, reading in self._readings.items()]
            hello |= {"session": self.token, "streams": states}
            self._acknowledge_later()
        self.transport.write(OPENING + client_frame(json.dumps(hello).encode()))

    def create(self, request_id: str, sim: dict[str, object]) -> None:
        """Ask for a stream; its reading is added when it is accepted."""
        self._readings[request_id] = Reading(self._tally)
        body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "bench"}], "sim": sim}
        message = {"type": "create", "request_id": request_id, "request": body}
        self.transport.write(client_frame(json.dumps(message).encode()))
        if self._ack is None:
            self._acknowledge_later()

    def _acknowledge_later(self) -> None:
        self._ack = asyncio.get_running_loop().call_later(ACK_INTERVAL, self._acknowledge)

    def _acknowledge(self) -> None:
        news = [reading for reading in self._readings.values() if reading.next - 1 > reading.acknowledged]
        for start in range(0, len(news), _ACK_STREAMS):
            batch = news[start : start + _ACK_STREAMS]
            streams = b",".join(b'"%b":%d' % (reading.id.encode(), reading.next - 1) for reading in batch)
            self.transport.write(client_frame(b'{"type":"ack","streams":{%b}}' % streams))
        for reading in news:
            reading.acknowledged = reading.next - 1
        self._acknowledge_later()

    def cut(self) -> None:
        """Reset the connection: no FIN, no Close frame, and what is under way is gone."""
        self.is_cut = True
        reset(self.transport)

    # -- what is received --

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            head, separator, rest = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head = None
            if not head.startswith(b"HTTP/1.1 101"):
                self._fail(f"the handshake was refused: {head[:200]!r} {rest[:200]!r}")
                return
            data = rest
        for first, payload in self._splitter.feed(data):
            if first == TEXT:
                self._message(payload)
            elif first == PING:
                self.pings += 1
                self.transport.write(client_frame(payload, PONG))
            elif first == CLOSE:
                self._fail(f"the gateway closed the connection: {payload!r}")

    def _message(self, payload: bytes) -> None:
        match = _ENTRIES.match(payload)
        if match is None:
            self._control(json.loads(payload))
            return
        id_ = match[1].decode()
        if id_ not in self.first_entries:
            self.first_entries[id_] = now = time.perf_counter()
            if self.on_first is not None and not self.on_first.done():
                self.on_first.set_result(now)
        self._readings[id_].take(int(match[2]), payload.count(_CHUNK), payload)

    def _control(self, message: dict[str, object]) -> None:
        kind = message["type"]
        if kind == "accepted":
            reading = self._readings.pop(str(message["request_id"]))
            reading.id = str(message["stream"])
            self._readings[reading.id] = reading
        elif kind == "welcome":
            self.token = str(message["session"])
            self.welcomed.set_result(time.perf_counter() - self._made)
        elif kind == "end":
            self._readings[str(message["stream"])].end(int(str(message["seq"])), str(message["status"]))
        else:
            self._fail(f"an unexpected message: {message}")

    def _fail(self, text: str) -> None:
        self._tally.fault(text)
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionError(text))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._ack is not None:
            self._ack.cancel()
        if not self.is_cut:
            self._fail(f"the connection was lost: {exc}")


class SseReader(asyncio.Protocol):
    """One SSE response: the completion itself, and after a cut the stream from `Last-Event-ID` on."""

    def __init__(self, reading: Reading, request: bytes) -> None:
        self.on_first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.is_cut = False
        self._reading = reading
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._splitter = EventSplitter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def cut(self) -> None:
        self.is_cut = True
        reset(self.transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"holdfast-stream-id":
            self._reading.id = value.decode()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._reading.tally.fault(f"the request was refused with status {status}")

    def on_body(self, body: bytes) -> None:
        reading = self._reading
        for event in self._splitter.feed_events(body):
            seq = int(event.id.partition(b"-")[2] or -1)
            if event.event == b"end":
                reading.end(seq, json.loads(event.data)["status"])
            elif event.data == b"[DONE]":
                reading.end(seq, "completed")
            else:
                if not self.on_first.done():
                    self.on_first.set_result(time.perf_counter())
                reading.take(seq, 1, event.data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not (self.is_cut or self._reading.is_ended):
            self._reading.tally.fault(f"the connection was lost: {exc}")
        if not self.on_first.done():
            self.on_first.set_exception(ConnectionError("the connection ended before the first event"))
            self.on_first.exception()  # nobody may be waiting


def sse_request(request_id: str, sim: dict[str, object]) -> bytes:
    """The request for a completion that goes on while its client is away."""
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "bench"}], "sim": sim}
    data = json.dumps(body).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"holdfast-on-disconnect: continue\r\nholdfast-request-id: %b\r\ncontent-length: %d\r\n"
    )
    return head % (request_id.encode(), len(data)) + _AUTHORIZATION + b"\r\n" + data


def sse_resume(reading: Reading) -> bytes:
    """The request for what comes after the last entry that the reader has."""
    head = b"GET /v1/streams/%b HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\nlast-event-id: %d\r\n"
    return head % (reading.id.encode(), reading.next - 1) + _AUTHORIZATION + b"\r\n"


def reset(transport: asyncio.Transport) -> None:
    """Close with a TCP reset (SO_LINGER of 0), as a NAT or a proxy does that has lost the connection."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
