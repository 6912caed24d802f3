"""Streams over HTTP/1.1: a connection, and a reader of `POST /chat/completions` as server-sent events."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Protocol, cast

import httptools

from holdfast_tools.bench.answer import Answer
from holdfast_tools.bench.load import Load, reset

# An `id:` of the gateway, epoch and sequence number; JSON has no line end in it. A pattern with letters in
# front is searched for ten times as fast as one that begins with `^`.
_ID = re.compile(rb"id: \d+-(\d+)\r?\n")
_DONE = b"[DONE]"
#: The last event of a stream that is read by its id begins so.
_COMPLETED = b'data: {"status":"completed"'
#: Of a refusal's body, so much is kept and shown.
_MAX_REFUSAL = 600


class Owner(Protocol):
    """What is told of a connection's life and of the answers on it."""

    def opened(self) -> None: ...

    def head_received(self, status: int, stream_id: str) -> None:
        """The head of an answer is complete; `stream_id` is empty where it has none."""

    def body_received(self, data: bytes, now_ns: int) -> None:
        """A part of the body, without what the transfer coding adds."""

    def body_ended(self, *, keep_alive: bool) -> None: ...

    def lost(self, why: str) -> None:
        """The connection is no more; not called after `close`."""


class HttpConnection(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    def __init__(self, load: Load, owner: Owner) -> None:
        self._load = load
        self._owner = owner
        self.begun_ns = 0
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._now_ns = 0
        self._stream_id = ""
        self._is_closed = False
        self.transport: asyncio.Transport | None = None

    def send(self, request: bytes) -> None:
        if self.transport is not None:
            self.transport.write(request)

    def close(self) -> None:
        """Hang up, with no more calls to the owner."""
        self._is_closed = True
        if self.transport is not None:
            self.transport.abort()

    def cut(self) -> None:
        """Reset the connection, with no more calls to the owner."""
        self._is_closed = True
        if self.transport is not None:
            reset(self.transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        if self._is_closed:
            transport.abort()
            return
        self._load.tally.opened += 1
        self._load.tally.setup.add(time.monotonic_ns() - self.begun_ns)
        self._owner.opened()

    def data_received(self, data: bytes) -> None:
        if self._is_closed:
            return
        self._now_ns = time.monotonic_ns()
        self._load.tally.bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # a fault of our own
        except httptools.HttpParserError as exc:
            self._lose(f"the gateway's answer is not HTTP/1.1: {exc}")
            return
        self._deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(f"the connection broke off: {exc}" if exc else "the gateway closed the connection")

    # -- what the parser says -----------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"holdfast-stream-id":
            self._stream_id = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        stream_id, self._stream_id = self._stream_id, ""
        self._owner.head_received(self._parser.get_status_code(), stream_id)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._deliver()
        if not self._is_closed:
            self._owner.body_ended(keep_alive=self._parser.should_keep_alive())

    def _deliver(self) -> None:
        if self._parts and not self._is_closed:
            parts, self._parts = self._parts, []
            self._owner.body_received(b"".join(parts), self._now_ns)

    def _lose(self, why: str) -> None:
        if not self._is_closed:
            self.close()
            self._owner.lost(why)


class SseReader:
    """Reads one answer after another from any OpenAI-compatible gateway.

    Leaving one cancels it; where the plan is `resumable` it goes on, and a request of its own cancels it.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        policy = b"holdfast-on-disconnect: continue\r\n" if load.plan.resumable else b""
        self._path, self._headers = load.target.path.encode(), load.headers()
        self._head = (
            b"POST %b/chat/completions HTTP/1.1\r\n%bcontent-type: application/json\r\n"
            b"accept: text/event-stream\r\n%b"
        ) % (self._path, self._headers, policy)
        self._connection: HttpConnection | None = None
        self._answer: Answer | None = None
        self._stream = ""
        self._status = 0
        self._rest = b""
        self._is_settled = False
        self._is_done = False
        self._is_cut = False

    def start(self) -> None:
        self._answer = None
        self._open()

    def cut(self) -> None:
        if self._connection is None:
            return  # it was lost, and is made again soon
        if self._answer is None:
            self._load.fail("the answer had ended before its connection was cut: it is too short")
            return
        self._connection.cut()
        self._is_cut = True
        self._is_settled = False
        self._load.unsettled.expect(1)

    def come_back(self) -> None:
        if self._is_cut:
            self._is_cut = False
            self._open(at_once=True)

    async def stop(self) -> None:
        self._hang_up()
        if self._load.plan.resumable and self._answer is not None and self._stream:
            await self._load.cancel(self._stream)

    def _open(self, *, at_once: bool = False) -> None:
        self._connection = connection = HttpConnection(self._load, self)
        self._load.connect(connection, self.lost, at_once=at_once)

    # -- the connection's owner ---------------------------------------------------------------------------

    def opened(self) -> None:
        if self._answer is None:
            self._ask_next()
        elif self._stream:
            self._resume(self._answer)
        else:  # it was cut before it was known which stream it is; its request id tells the gateway
            self._ask(self._answer)

    def head_received(self, status: int, stream_id: str) -> None:
        self._status = status
        self._stream = stream_id or self._stream

    def body_received(self, data: bytes, now_ns: int) -> None:
        answer = self._answer
        if answer is None:
            return
        data = self._rest + data
        if self._status != 200:
            self._rest = data[:_MAX_REFUSAL]
            return
        # Whole lines: an event's JSON stands in one line, whatever the reads and chunks were.
        cut = data.rfind(b"\n") + 1
        lines, self._rest = data[:cut], data[cut:]
        answer.receive(lines, now_ns, self._load.tally)
        numbers = _ID.findall(lines)
        if numbers:
            found = [int(number) for number in numbers]
            if found == list(range(found[0], found[0] + len(found))):
                answer.check_numbers(found[0], len(found), self._load.tally)
            else:
                for number in found:
                    answer.check_numbers(number, 1, self._load.tally)
        if answer.last_ns:
            self._settle()
        said = lines.rstrip()
        if said:  # a read may hold no more than the blank line behind an event
            last_line = said[said.rfind(b"\n") + 1 :]
            self._is_done = last_line.endswith(_DONE) or last_line.startswith(_COMPLETED)
            self._last_line = said[-_MAX_REFUSAL:]

    def body_ended(self, *, keep_alive: bool) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and self._status == 200 and self._is_done:
            answer.end(self._load.tally)
            self._settle()
            if not self._load.goes_on():
                return
            if keep_alive and not self._load.plan.fresh:
                self._ask_next()
                return
            self._hang_up()
            self.start()
            return
        shown = (self._rest if self._status != 200 else self._last_line).decode("utf-8", "replace").strip()
        why = f"HTTP {self._status}" if self._status != 200 else "the answer ended without [DONE]"
        self._hang_up()
        self.lost(f"{why}: {shown}")

    def lost(self, why: str) -> None:
        self._answer = self._connection = None
        self._load.fail(why)
        self._settle()
        self._load.again(self.start)

    # -- requests -----------------------------------------------------------------------------------------

    def _ask_next(self) -> None:
        self._answer = answer = self._load.new_answer()
        self._ask(answer)

    def _ask(self, answer: Answer) -> None:
        self._stream = ""
        body = self._load.body(answer)
        name = f"holdfast-request-id: {self._load.request_id(answer)}\r\n" if self._load.plan.resumable else ""
        self._send(b"%b%bcontent-length: %d\r\n\r\n%b" % (self._head, name.encode(), len(body), body))

    def _resume(self, answer: Answer) -> None:
        """Ask for what comes after the last entry that has come."""
        if self._connection is not None:
            answer.come_back(self._connection.begun_ns)
        after = b"last-event-id: %d\r\n" % (answer.next_seq - 1) if answer.next_seq else b""
        request = b"GET %b/streams/%b HTTP/1.1\r\n%baccept: text/event-stream\r\n%b\r\n"
        self._send(request % (self._path, self._stream.encode(), self._headers, after))

    def _send(self, request: bytes) -> None:
        self._rest = self._last_line = b""
        self._is_done = False
        self._status = 0
        if self._connection is not None:
            self._connection.send(request)

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _settle(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            self._load.unsettled.count()
