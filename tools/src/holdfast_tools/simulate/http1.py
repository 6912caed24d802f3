"""The HTTP/1.1 server side: requests parsed by httptools, chunked answers, keep-alive, pipelining in order."""

from __future__ import annotations

import http
from collections import deque
from email.utils import formatdate

import httptools

from holdfast_tools.simulate.exchange import BATCH_BYTES, Exchange, Handles, Headers, Request, Wire
from holdfast_tools.simulate.faults import ConnectionFault, Goaway, ResetStreams
from holdfast_tools.simulate.pacer import Pacer, Trickle
from holdfast_tools.simulate.request import error_body

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
MAX_PIPELINED = 16

_REASONS = {status.value: status.phrase for status in http.HTTPStatus}


class Http1:
    """One HTTP/1.1 connection."""

    def __init__(self, wire: Wire, service: Handles, pacer: Pacer) -> None:
        self.wire = wire
        self.pacer = pacer
        self.closes_next = False
        self._service = service
        self._parser = httptools.HttpRequestParser(self)
        self._current: Http1Exchange | None = None
        self._waiting: deque[tuple[Request, Http1Exchange]] = deque()
        self._is_reading_paused = False
        self._head_bytes = 0
        self._is_in_head = True
        self._path = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._is_refused = False
        self._is_going_on = False

    # -- from the connection ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD + len(data):
                self._refuse(431, "The request head is too large.")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            # An upgrade is an offer (RFC 9110 section 7.8), which is not taken: go on in HTTP/1.1.
            self._parser = httptools.HttpRequestParser(self)
            rest = data[exc.args[0] :]
            if rest:
                self.receive(rest)
        except httptools.HttpParserError:
            self._refuse(400, "This is not HTTP/1.1.")

    def resume_writing(self) -> None:
        if self._current is not None:
            self._current.resumed()

    def connection_lost(self) -> None:
        self._waiting.clear()
        current, self._current = self._current, None
        if current is not None:
            current.connection_lost()

    def apply(self, fault: ConnectionFault) -> bool:
        """Carry out what a fault of HTTP/2 means here; return False if it means nothing."""
        if isinstance(fault, Goaway):
            self.closes_next = True
            if self._current is None or fault.close:
                self.wire.close()
        elif isinstance(fault, ResetStreams):
            if self._current is not None:
                self.wire.reset()
        else:
            return False
        return True

    # -- from the parser -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._path = b""
        self._headers = {}
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes | None) -> None:
        self._headers[name.decode("latin-1").lower()] = (value or b"").decode("latin-1")

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._headers.get("expect", "").lower() == "100-continue" and self._current is None:
            self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._body) + len(body) > MAX_BODY:
            self._refuse(413, "The request body is too large.")
        elif not self._is_refused:
            self._body += body

    def on_message_complete(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0
        if self._is_refused:
            return
        parser = self._parser
        request = Request(
            parser.get_method().decode("latin-1"),
            self._path.decode("latin-1"),
            self._headers,
            bytes(self._body),
            "http1",
        )
        self._body = bytearray()
        exchange = Http1Exchange(
            self, keeps_alive=parser.should_keep_alive(), is_chunked=parser.get_http_version() != "1.0"
        )
        if self._current is None:
            self._begin(request, exchange)
            return
        self._waiting.append((request, exchange))
        if len(self._waiting) >= MAX_PIPELINED and not self._is_reading_paused:
            self._is_reading_paused = True
            self.wire.pause_reading()

    # -- from the exchange -----------------------------------------------------------------------------

    def exchange_ended(self, keeps_alive: bool) -> None:
        """The answer is written; go on with the next request."""
        self._current = None
        if not keeps_alive or self.closes_next:
            self.wire.close()
            return
        if self._is_reading_paused and len(self._waiting) < MAX_PIPELINED:
            self._is_reading_paused = False
            self.wire.resume_reading()
        if not self._is_going_on:
            self._is_going_on = True  # requests that are answered at once end within `_begin`: no recursion
            while self._waiting and self._current is None:
                self._begin(*self._waiting.popleft())
            self._is_going_on = False

    def _begin(self, request: Request, exchange: Http1Exchange) -> None:
        self._current = exchange
        self.wire.request_began()
        if self._current is exchange:  # a fault may have ended the connection
            self._service.handle(request, exchange)

    def _refuse(self, status: int, message: str) -> None:
        self._is_refused = True
        current, self._current = self._current, None
        self._waiting.clear()
        if current is None:
            exchange = Http1Exchange(self, keeps_alive=False, is_chunked=True)
            exchange.reply(status, error_body(message))
        else:
            # An answer is under way, so there is no place for an error.
            current.connection_lost()
            self.wire.close()


class Http1Exchange(Exchange):
    """One request and its answer on an HTTP/1.1 connection."""

    __slots__ = (
        "_drip_gap_ms",
        "_has_ended",
        "_http1",
        "_is_chunked",
        "_is_framed",
        "_keeps_alive",
        "_slow_head_ms",
        "_trickle",
    )

    def __init__(self, http1: Http1, *, keeps_alive: bool, is_chunked: bool) -> None:
        super().__init__(http1.wire)
        self._http1 = http1
        self._keeps_alive = keeps_alive
        self._is_chunked = is_chunked
        self._is_framed = False
        self._slow_head_ms = 0.0
        self._drip_gap_ms: float | None = None
        self._trickle: Trickle | None = None
        self._has_ended = False

    @property
    def room(self) -> int:
        if self.wire.is_paused or not (self._trickle is None or self._trickle.is_empty):
            return 0
        return BATCH_BYTES

    def send_head(self, status: int, headers: Headers, length: int | None = None) -> None:
        self._keeps_alive = self._keeps_alive and not self._http1.closes_next
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", f"date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if length is not None:
            lines.append(f"content-length: {length}")
        elif self._is_chunked:
            self._is_framed = True
            lines.append("transfer-encoding: chunked")
        else:
            self._keeps_alive = False  # HTTP/1.0 knows no chunks: the end of the body is the end of the connection
        if not self._keeps_alive:
            lines.append("connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        self._write(head, self._slow_head_ms / len(head) if self._slow_head_ms else None)

    def send_body(self, data: bytes) -> None:
        if not data:
            return  # a chunk of size 0 would end the body
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_framed else data, self._drip_gap_ms)

    def end(self) -> None:
        if self._is_framed:
            self._write(b"0\r\n\r\n", self._drip_gap_ms)
        self._has_ended = True
        self._finish_if_sent()

    def cut(self) -> None:
        self._leave()
        self.wire.close()
        self.tell_done()

    def reset(self, error_code: int) -> None:
        self._leave()
        self.wire.reset()
        self.tell_done()

    def slow_head(self, ms: float) -> float:
        self._slow_head_ms = ms
        return 0.0

    def drip(self, gap_ms: float) -> None:
        self._drip_gap_ms = gap_ms

    def resumed(self) -> None:
        """There is room again."""
        if self._has_ended:
            self._finish_if_sent()
        elif self.answering is not None and self.room:
            self.answering.resume()

    def connection_lost(self) -> None:
        if self._trickle is not None:
            self._trickle.fail()
        if self.answering is not None:
            self.answering.cancel()

    def _write(self, data: bytes, gap_ms: float | None) -> None:
        if gap_ms is None and (self._trickle is None or self._trickle.is_empty):
            self.wire.write(data)
            return
        if self._trickle is None:
            self._trickle = Trickle(self._http1.pacer, self.wire.write, self.resumed)
        self._trickle.feed(data, gap_ms)

    def _finish_if_sent(self) -> None:
        if self.room:
            self.tell_done()
            self._http1.exchange_ended(self._keeps_alive)

    def _leave(self) -> None:
        if self._trickle is not None:
            self._trickle.fail()
