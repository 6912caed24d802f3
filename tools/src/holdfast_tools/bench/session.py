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
from holdfast_tools.bench.frames import CLOSE, PING, PONG, TEXT, FrameSplitter, client_frame
from holdfast_tools.bench.load import Load, reset

#: Members in this order, as PROTOCOL.md section 5 has it.
_EVENT = re.compile(rb'\{"type":"event(s?)","stream":"([^"]+)","seq":(\d+),"data":')
_ENTRY = b'"choices"'
#: Seconds, and bytes of one stream, between acknowledgements, as in the SDK.
ACK_INTERVAL = 1.0
ACK_BYTES = 64 * 1024
_MAX_SHOWN = 600
#: Seconds that the gateway may take to read our goodbye.
_LEAVE_TIMEOUT = 5.0


class SessionReader:
    """A session with `streams` answers at a time on one socket; each that has ended is followed by another.

    Without streams the session is idle: it answers pings, and asks for nothing.
    """

    def __init__(self, load: Load, streams: int) -> None:
        self._load = load
        self._streams = streams
        self._socket: _Socket | None = None
        self._cut: _Socket | None = None
        self._unsettled = max(streams, 1)

    def start(self) -> None:
        self._open(_Socket(self._load, self))

    def cut(self) -> None:
        self._cut, self._socket = self._socket, None
        if self._cut is None:
            return  # it was lost, and is made again soon
        running = self._cut.cut()
        if self._load.plan.once:
            for _ in range(self._streams - running):
                self._load.fail("the answer had ended before its connection was cut: it is too short")
        self._unsettled = max(running, 1)
        self._load.unsettled.expect(self._unsettled)

    def come_back(self) -> None:
        if self._cut is not None:
            socket, self._cut = _Socket(self._load, self, before=self._cut), None
            self._open(socket, at_once=True)

    async def stop(self) -> None:
        if self._socket is not None:
            await self._socket.leave()

    def _open(self, socket: _Socket, *, at_once: bool = False) -> None:
        self._socket = socket
        self._load.connect(socket, lambda why: self.lost(why, self._streams), at_once=at_once)

    def opened(self, running: int, *, is_back: bool) -> None:
        """The session is open; `running` answers go on from the connection before."""
        missing = 0 if is_back and self._load.plan.once else self._streams - running
        for _ in range(missing):
            self._create()
        if not running and not missing:
            self.settle()

    def answer_ended(self, *, had_text: bool) -> None:
        if not had_text:
            self.settle()
        if not self._load.goes_on() or self._socket is None:
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
            self._load.unsettled.count()

    def _create(self) -> None:
        if self._socket is not None:
            self._socket.create()


class _Socket(asyncio.Protocol):
    """One connection. With `before` it goes on with the session and the answers of another one, which was cut."""

    def __init__(self, load: Load, reader: SessionReader, *, before: _Socket | None = None) -> None:
        self._load = load
        self._reader = reader
        self.begun_ns = 0
        self._key = base64.b64encode(os.urandom(16))
        self._head: bytes | None = b""
        self._is_closed = False
        self._frames = FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self._session: str | None = None if before is None else before._session
        self._asked: dict[str, Answer] = {} if before is None else before._asked
        self._answers: dict[bytes, Answer] = {} if before is None else before._answers
        self._acknowledged: dict[bytes, int] = {} if before is None else before._acknowledged
        self._timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.get_running_loop().create_future()

    # -- opening and leaving -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        if self._is_closed:
            transport.abort()
            return
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

    def cut(self) -> int:
        """Reset the connection, with no more calls to the reader; return how many answers were under way."""
        self._set_closed()
        if self._transport is not None:
            reset(self._transport)
        return len(self._answers) + len(self._asked)

    def _close(self, *, frame: bool) -> None:
        self._set_closed()
        if self._transport is not None:
            if frame:
                self._transport.write(client_frame(b"\x03\xe8", CLOSE))
            self._transport.close()

    def _set_closed(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

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
        if self._head is not None:
            self._head += data
            head, separator, data = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head = None
            self._shake_hands(head, data)
        for first, payload in self._frames.feed(data):
            if self._is_closed:
                break
            self._read_frame(first, payload, now_ns)

    def _shake_hands(self, head: bytes, body: bytes) -> None:
        status = head[9:12]
        if status != b"101":
            why = body[:_MAX_SHOWN].decode("utf-8", "replace").strip()
            self._lose(f"HTTP {status.decode('latin-1')} to the WebSocket's handshake: {why}")
        elif accept_token(self._key) not in head or m.SUBPROTOCOL.encode() not in head:
            self._lose(f"the WebSocket's handshake was not answered for {m.SUBPROTOCOL}")
        else:
            self._say_hello()

    def _say_hello(self) -> None:
        known = []
        for stream, answer in self._answers.items():
            answer.come_back(self.begun_ns)
            known.append(m.Resume(stream.decode(), after=answer.next_seq - 1))
        first, rest = known[: m.MAX_STREAMS_PER_MESSAGE], known[m.MAX_STREAMS_PER_MESSAGE :]
        hello = m.Hello(version=1, client="holdfast-bench/1", session=self._session, streams=first)
        self._send(m.encode(hello))
        for resume in rest:
            self._send(m.encode(m.Attach(resume.stream, after=resume.after)))

    def _read_frame(self, first: int, payload: bytes, now_ns: int) -> None:
        if first == TEXT:
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
        elif first == PING:
            self._load.tally.pings += 1
            self._write(client_frame(payload, PONG))
        elif first == CLOSE:
            code = int.from_bytes(payload[:2], "big")
            self._lose(f"the gateway closed the session with {code} {payload[2:].decode('utf-8', 'replace')}")
        elif first != PONG:
            self._lose(f"the gateway sent a frame that begins with {first:#04x}; holdfast.v1 has none such")

    def _read_message(self, payload: bytes) -> None:
        try:
            message = m.decode_server_message(payload)
        except InvalidMessage as exc:
            self._lose(f"the gateway sent an {exc.message}")
            return
        match message:
            case m.Welcome():
                self._open(message)
            case m.Accepted(request_id=request_id, stream=stream) if request_id in self._asked:
                self._answers[stream.encode()] = self._asked.pop(request_id)
            case m.End():
                self._end_answer(message)
            case m.Error():
                self._fail(message)
            case m.Ping():
                self._send(m.encode(m.Pong(t=message.t)))

    def _open(self, welcome: m.Welcome) -> None:
        is_back, self._session = self._session is not None, welcome.session
        self._load.tally.opened += 1
        self._load.tally.setup.add(time.monotonic_ns() - self.begun_ns)
        self._acknowledge_later()
        for state in welcome.streams:
            if state.error is not None and self._answers.pop(state.stream.encode(), None) is not None:
                self._reader.answer_failed(f"the stream was refused: {state.error.code}: {state.error.message}")
        # The gateway may have it, or not: the same request id makes no second answer.
        for request_id, answer in self._asked.items():
            self._ask(request_id, answer)
        self._reader.opened(len(self._answers) + len(self._asked), is_back=is_back)

    # -- answers -----------------------------------------------------------------------------------------------

    def create(self) -> None:
        answer = self._load.new_answer()
        request_id = self._load.request_id(answer)
        self._asked[request_id] = answer
        self._ask(request_id, answer)

    def _ask(self, request_id: str, answer: Answer) -> None:
        self._send(m.encode(m.Create(request_id=request_id, request=msgspec.Raw(self._load.body(answer)))))

    def _end_answer(self, end: m.End) -> None:
        answer = self._answers.pop(end.stream.encode(), None)
        if answer is None:
            return
        self._acknowledged.pop(end.stream.encode(), None)
        self._send(b'{"type":"ack","streams":{"%b":%d}}' % (end.stream.encode(), end.seq))
        answer.check_numbers(end.seq, 1, self._load.tally)
        if end.status == "completed":
            answer.end(self._load.tally)
            self._reader.answer_ended(had_text=bool(answer.last_ns))
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
        self._write(client_frame(text))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._is_closed:
            self._transport.write(data)
