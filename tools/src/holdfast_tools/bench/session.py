"""Streams over a WebSocket: `holdfast.v1`, read with little more than slices and compiled patterns."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import time
from typing import cast

import msgspec

from holdfast.core.session import messages as m
from holdfast.core.websocket.handshake import accept_token
from holdfast.errors import InvalidMessage
from holdfast_tools.bench.answer import Answer
from holdfast_tools.bench.load import Load

#: Members in this order, as PROTOCOL.md section 5 has it.
_EVENT = re.compile(rb'\{"type":"event(s?)","stream":"([^"]+)","seq":(\d+),"data":')
_ENTRY = b'"choices"'
#: Seconds, and bytes of one stream, between acknowledgements, as in the SDK.
ACK_INTERVAL = 1.0
ACK_BYTES = 64 * 1024
_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A
_MAX_SHOWN = 600
#: Seconds that the gateway may take to read our goodbye.
_LEAVE_TIMEOUT = 5.0


class SessionReader:
    """A session with `streams` answers at a time on one socket; each that has ended is followed by another."""

    def __init__(self, load: Load, streams: int) -> None:
        self._load = load
        self._streams = streams
        self._socket: _Socket | None = None
        self._unsettled = streams

    def start(self) -> None:
        self._socket = socket = _Socket(self._load, self)
        self._load.connect(socket, lambda why: self.lost(why, self._streams))

    async def stop(self) -> None:
        if self._socket is not None:
            await self._socket.leave()

    def opened(self) -> None:
        for _ in range(self._streams):
            self._create()

    def answer_ended(self) -> None:
        if self._load.is_stopping or self._socket is None:
            return
        if self._load.plan.fresh and self._streams == 1:
            self._socket.abandon()
            self.start()
        else:
            self._create()

    def answer_failed(self, why: str) -> None:
        """One answer has failed; the session goes on."""
        self._load.fail(why)
        self.settle()
        socket = self._socket
        # A socket that came in the place of this one has asked for all answers anew.
        self._load.again(lambda: self._create() if self._socket is socket else None)

    def lost(self, why: str, running: int) -> None:
        """The connection is no more, and with it `running` answers."""
        self._socket = None
        for _ in range(max(running, 1)):
            self._load.fail(why)
        while self._unsettled:
            self.settle()
        self._load.again(self.start)

    def settle(self) -> None:
        if self._unsettled:
            self._unsettled -= 1
            self._load.settle()

    def _create(self) -> None:
        if self._socket is not None:
            self._socket.create()


class _Socket(asyncio.Protocol):
    def __init__(self, load: Load, reader: SessionReader) -> None:
        self._load = load
        self._reader = reader
        self.begun_ns = 0
        self._key = base64.b64encode(os.urandom(16))
        self._has_head = False
        self._is_open = False
        self._is_closed = False
        self._rest = b""
        #: Bytes that have to be there before it is worth looking again: a message may come in many reads.
        self._needed = 0
        self._parts: list[bytes] = []
        self._received = 0
        self._transport: asyncio.Transport | None = None
        self._asked: dict[str, Answer] = {}
        self._answers: dict[bytes, Answer] = {}
        self._acknowledged: dict[bytes, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.get_running_loop().create_future()

    # -- opening and leaving -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        path = self._load.target.path.encode()
        transport.write(
            b"GET %b/ws/stream HTTP/1.1\r\n%bupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: %b\r\nsec-websocket-protocol: %b\r\n\r\n"
            % (path, self._load.headers(), self._key, m.SUBPROTOCOL.encode())
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        self._lose(f"the connection broke off: {exc}" if exc else "the gateway closed the connection")

    async def leave(self) -> None:
        """Cancel what runs, say goodbye and close."""
        if self._transport is None or self._is_closed:
            return
        for stream in self._answers:
            self._send(b'{"type":"cancel","stream":"%b"}' % stream)
        for request in self._asked:
            self._send(m.encode(m.Cancel(request_id=request)))
        self._close(frame=True)
        await asyncio.wait([self._gone], timeout=_LEAVE_TIMEOUT)
        self._transport.abort()  # of no effect where it is closed

    def abandon(self) -> None:
        """Close, with no more calls to the reader."""
        self._close(frame=True)

    def _close(self, *, frame: bool) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            if frame:
                self._transport.write(_frame(_CLOSE, b"\x03\xe8"))
            self._transport.close()

    def _lose(self, why: str) -> None:
        if not self._is_closed:
            self._close(frame=False)
            self._reader.lost(why, len(self._answers) + len(self._asked))

    # -- frames ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_closed:
            return
        now_ns = time.monotonic_ns()
        self._load.tally.bytes += len(data)
        self._parts.append(data)
        self._received += len(data)
        if self._received < self._needed:
            return
        data = b"".join(self._parts) if len(self._parts) > 1 else data
        if not self._has_head:
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                self._shake_hands(data[:end], data[end + 4 :])
                data = data[end + 4 :]
        rest = self._read_frames(data, now_ns) if self._has_head else data
        self._parts = [rest]
        self._received = len(rest)

    def _shake_hands(self, head: bytes, body: bytes) -> None:
        status = head[9:12]
        if status != b"101":
            self._has_head = True
            why = body[:_MAX_SHOWN].decode("utf-8", "replace").strip()
            self._lose(f"HTTP {status.decode('latin-1')} to the WebSocket's handshake: {why}")
        elif accept_token(self._key) not in head or m.SUBPROTOCOL.encode() not in head:
            self._lose(f"the WebSocket's handshake was not answered for {m.SUBPROTOCOL}")
        else:
            self._has_head = True
            self._send(b'{"type":"hello","version":1,"client":"holdfast-bench/1"}')

    def _read_frames(self, data: bytes, now_ns: int) -> bytes:
        """Read all whole frames; return what is left, and note how much it needs (RFC 6455 section 5.2)."""
        at, size = 0, len(data)
        self._needed = 0
        while size - at >= 2 and not self._is_closed:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[start : start + 2], "big"), start + 2
            elif length == 127:
                length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            end = start + length
            if start > size or end > size:
                self._needed = end - at if start <= size else start - at
                break
            self._read_frame(data[at], data[start:end], now_ns)
            at = end
        return data[at:]

    def _read_frame(self, first: int, payload: bytes, now_ns: int) -> None:
        if first == _TEXT:
            match = _EVENT.match(payload)
            answer = self._answers.get(match[2]) if match else None
            if match is None or answer is None:
                self._read_message(payload)
                return
            count = payload.count(_ENTRY) if match[1] else 1
            answer.check_numbers(int(match[3]), count, self._load.tally)
            was_silent = not answer.last_ns
            answer.receive(payload, now_ns, self._load.tally)
            if was_silent and answer.last_ns:
                self._reader.settle()
            answer.unacknowledged += len(payload)
            if answer.unacknowledged >= ACK_BYTES:
                self._acknowledge()
        elif first == _PING:
            self._write(_frame(_PONG, payload))
        elif first == _CLOSE:
            code = int.from_bytes(payload[:2], "big")
            self._lose(f"the gateway closed the session with {code} {payload[2:].decode('utf-8', 'replace')}")
        elif first != _PONG:
            self._lose(f"the gateway sent a frame that begins with {first:#04x}; holdfast.v1 has none such")

    def _read_message(self, payload: bytes) -> None:
        try:
            message = m.decode_server_message(payload)
        except InvalidMessage as exc:
            self._lose(f"the gateway sent an {exc.message}")
            return
        match message:
            case m.Welcome():
                self._is_open = True
                self._load.tally.opened += 1
                self._load.tally.setup.add(time.monotonic_ns() - self.begun_ns)
                self._acknowledge_later()
                self._reader.opened()
            case m.Accepted(request_id=request_id, stream=stream) if request_id in self._asked:
                self._answers[stream.encode()] = self._asked.pop(request_id)
            case m.End():
                self._end(message)
            case m.Error():
                self._fail(message)
            case m.Ping():
                self._send(m.encode(m.Pong(t=message.t)))

    # -- answers -----------------------------------------------------------------------------------------------

    def create(self) -> None:
        answer = self._load.new_answer()
        request_id = f"{self._load.token}-{answer.number}"
        self._asked[request_id] = answer
        self._send(m.encode(m.Create(request_id=request_id, request=msgspec.Raw(self._load.body(answer)))))

    def _end(self, end: m.End) -> None:
        answer = self._answers.pop(end.stream.encode(), None)
        if answer is None:
            return
        self._acknowledged.pop(end.stream.encode(), None)
        self._send(b'{"type":"ack","streams":{"%b":%d}}' % (end.stream.encode(), end.seq))
        answer.check_numbers(end.seq, 1, self._load.tally)
        if end.status == "completed":
            answer.end(self._load.tally)
            self._reader.answer_ended()
        else:
            why = "" if end.error is None else f": {end.error.code}: {end.error.message}"
            self._reader.answer_failed(f"the stream ended {end.status}{why}")

    def _fail(self, error: m.Error) -> None:
        why = f"{error.code}: {error.message}"
        answer = self._asked.pop(error.request_id or "", None)
        if answer is None:
            answer = self._answers.pop((error.stream or "").encode(), None)
        if answer is not None:
            self._reader.answer_failed(why)
        else:
            self._load.tally.note(why)

    def _acknowledge_later(self) -> None:
        self._acknowledge()
        self._timer = asyncio.get_running_loop().call_later(ACK_INTERVAL, self._acknowledge_later)

    def _acknowledge(self) -> None:
        due = []
        for stream, answer in self._answers.items():
            answer.unacknowledged = 0
            seq = answer.next_seq - 1
            if seq > self._acknowledged.get(stream, -1):
                self._acknowledged[stream] = seq
                due.append(b'"%b":%d' % (stream, seq))
        for at in range(0, len(due), m.MAX_STREAMS_PER_MESSAGE):
            some = due[at : at + m.MAX_STREAMS_PER_MESSAGE]
            self._send(b'{"type":"ack","streams":{%b}}' % b",".join(some))

    def _send(self, text: bytes) -> None:
        self._write(_frame(_TEXT, text))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._is_closed:
            self._transport.write(data)


def _frame(first: int, payload: bytes) -> bytes:
    """A client's frame. Its mask is zeros: random ones protect proxies from web pages (RFC 6455 section 10.3)."""
    size = len(payload)
    if size < 126:
        return bytes((first, 0x80 | size)) + b"\0\0\0\0" + payload
    if size < 65_536:
        return bytes((first, 0x80 | 126)) + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return bytes((first, 0x80 | 127)) + size.to_bytes(8, "big") + b"\0\0\0\0" + payload
