"""The HTTP/1.1 side of the listener: one connection, parsed by httptools, bounded in time and size.

It hands complete requests to the application and writes what the application answers. What the paths mean is
`holdfast.server.router`'s matter; a connection that upgrades is given away and this object forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from typing import Protocol
from urllib.parse import parse_qsl, unquote

import httptools
import msgspec

from holdfast.admission.keys import REVOKED, SecretId
from holdfast.core.http.request import Headers
from holdfast.core.websocket.handshake import is_upgrade_request
from holdfast.errors import (
    HoldfastError,
    InternalError,
    InvalidRequest,
    PayloadTooLarge,
    Unauthorized,
)
from holdfast.server.listener.exchange import ErrorShape, Exchange, Request, error_response, response_head
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: Largest request head: request line and all headers.
MAX_HEAD = 32 * 1024
#: Most parameters that one query may have.
_MAX_PARAMETERS = 100
#: Requests that may wait on one connection behind the one that is being answered (pipelining); together their
#: bodies may be as large as one.
_MAX_PIPELINED = 8
#: After a refusal this much of the body is still read and dropped, so that the client sees the answer.
_MAX_DISCARD = 64 * 1024 * 1024
_DISCARD_TIMEOUT = 10.0
#: Seconds that a connection in one of the slots for probes has for its request.
_PROBE_TIMEOUT = 2.0


class Application(Protocol):
    """What answers the requests of a connection."""

    async def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer one request through its exchange; a raised HoldfastError becomes the answer."""

    def upgrade(self, request: Request, connection: HttpConnection, rest: bytes) -> None:
        """Answer a WebSocket handshake, or take over the transport. `rest` are the bytes behind the request."""

    def connection_made(self, connection: HttpConnection) -> HoldfastError | None:
        """Count a new connection. A returned error is sent to it, and closes it."""

    def connection_lost(self, connection: HttpConnection) -> None: ...

    def answer_finished(self, connection: HttpConnection) -> None:
        """Note, while draining, that an answer of this connection is complete."""

    def shape_of(self, path: str | None) -> ErrorShape:
        """Return the shape of errors on a path; None stands for a path that is not known yet."""

    @property
    def is_draining(self) -> bool:
        """Whether each connection closes behind its answer."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one connection: times in seconds, sizes in bytes."""

    max_body: int
    header_timeout: float
    body_timeout: float
    keep_alive_timeout: float


class HttpConnection(asyncio.Protocol):
    """One client connection speaking HTTP/1.1 (or 1.0), with keep-alive and bounded pipelining."""

    __slots__ = (
        "_app",
        "_body",
        "_body_size",
        "_deferred",
        "_discarded",
        "_discarding",
        "_exchange",
        "_head_size",
        "_headers",
        "_in_body",
        "_limits",
        "_parser",
        "_pipeline",
        "_task",
        "_timer",
        "_timers",
        "_url",
        "is_limited",
        "is_writable",
        "number",
        "transport",
    )

    def __init__(self, app: Application, timers: Timers, limits: Limits) -> None:
        self._app = app
        self._timers = timers
        self._limits = limits
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Headers = []
        self._body: list[bytes] = []
        self._body_size = 0
        self._head_size = 0
        self._in_body = False
        self._discarding = False
        self._discarded = 0
        self._pipeline: list[tuple[Request, bool]] = []
        # A refusal that waits for the answers before it.
        self._deferred: tuple[int, Headers, bytes] | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: Deadline | None = None
        self.is_writable = True
        #: Connection number, for log lines. The application gives it.
        self.number = 0
        #: Whether it has one of the slots for probes: one request, soon, of what anyone may ask.
        self.is_limited = False
        self.transport: asyncio.Transport | None = None

    # -- asyncio.Protocol --

    def accept(self, transport: asyncio.Transport) -> HoldfastError | None:
        """Count the connection, and let its time for the first head begin. An error refuses it.

        Before a TLS handshake the listener calls it; `connection_made` follows with the transport behind that.
        """
        self.transport = transport
        refusal = self._app.connection_made(self)
        if refusal is None:
            timeout = self._limits.header_timeout
            self._set_timer(min(timeout, _PROBE_TIMEOUT) if self.is_limited else timeout, self._head_timed_out)
        return refusal

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.transport is not None:  # it was accepted before its handshake
            self.transport = transport  # type: ignore[assignment]
            return
        refusal = self.accept(transport)  # type: ignore[arg-type]
        if refusal is not None and self.transport is not None and not self.transport.is_closing():
            self._refuse(refusal.http_status, refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.transport = None
        self._pipeline.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.disconnected()
        self._app.connection_lost(self)

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        exchange = self._exchange
        if exchange is not None and exchange.on_writable is not None:
            exchange.on_writable()

    def eof_received(self) -> bool:
        # A client that closes its sending side counts as gone: proxies cut both directions too.
        return False

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARD:
                self.abort()
            return
        while (parser := self._parser) is not None:
            if not self._in_body:
                self._head_size += len(data)
            try:
                parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                data = data[exc.args[0] :]
            except httptools.HttpParserError as exc:
                cause = exc.__context__
                if isinstance(cause, _RefusedError):
                    self._refuse(cause.status, cause.error)
                elif isinstance(exc, httptools.HttpParserCallbackError):
                    logger.error("a request could not be taken", exc_info=cause)
                    self._refuse(500, InternalError())
                else:
                    self._refuse(400, InvalidRequest(f"not a valid HTTP/1.1 request: {exc}"))
                return
            else:
                if not self._in_body and self._head_size > MAX_HEAD:
                    self._refuse(431, _head_too_large())
                return
            if is_upgrade_request(self._headers):
                self._parser = None
                self._start_upgrade(parser, data)
                return
            # RFC 9110 section 7.8: any other upgrade (`h2c`) is an offer, not taken here. The parser stops behind
            # its head, so it gets the request again without it, and goes on to the body.
            data = self._head_without_upgrade(parser) + data
            self._parser = httptools.HttpRequestParser(self)

    # -- httptools callbacks --

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._body = []
        self._body_size = 0
        if self._exchange is None:
            self._set_timer(self._limits.header_timeout, self._head_timed_out)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            # A trailer field. It is no header field and must not be merged with them, RFC 9110 section 6.5.1.
            self._head_size += len(name) + len(value) + 4
            if self._head_size > MAX_HEAD:
                raise _RefusedError(431, InvalidRequest(f"the trailer section is larger than {MAX_HEAD} bytes"))
            return
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._head_size = 0
        parser = self._parser
        if parser is None:
            return
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if size > MAX_HEAD:
            raise _RefusedError(431, _head_too_large())
        if parser.get_method() == b"CONNECT":
            raise _RefusedError(400, InvalidRequest("CONNECT is for proxies, and this is none"))
        self._check_framing(parser.get_http_version())
        if parser.should_upgrade():
            return  # the parser stops here; `data_received` decides how it goes on
        if self._exchange is None:
            if self._header(b"expect").lower() == b"100-continue":
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._set_timer(self._limits.body_timeout, self._body_timed_out)

    def _check_framing(self, version: str) -> None:
        """Refuse a request whose end or host is ambiguous: a proxy might have read it differently."""
        if version not in ("1.0", "1.1"):
            raise _RefusedError(505, InvalidRequest(f"HTTP/{version} is not spoken here; this is HTTP/1.1"))
        hosts = sum(name == b"host" for name, _ in self._headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):  # RFC 9112 section 3.2
            raise _RefusedError(400, InvalidRequest(f"the request has {hosts} Host headers and should have one"))
        codings = [value.lower() for name, value in self._headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == "1.0"):  # RFC 9112 section 6.1
            raise _RefusedError(400, InvalidRequest("the only transfer coding is `chunked`, and only in HTTP/1.1"))
        if self._header(b"content-encoding").lower() not in (b"", b"identity"):
            # A few bytes could stand for gigabytes; no SDK compresses its requests.
            error = InvalidRequest("send the body without content coding", param="content-encoding")
            raise _RefusedError(415, error)
        if int(self._header(b"content-length") or b"0") > self._limits.max_body:
            raise self._too_large()

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > self._limits.max_body:
            self._body = []
            raise self._too_large()
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head_size = 0
        parser = self._parser
        if parser is None or parser.should_upgrade():
            return
        request = self._request(parser)
        keep_alive = parser.should_keep_alive()
        self._url = b""
        self._body = []
        if self._exchange is None and not self._pipeline:
            self._start(request, keep_alive)
            return
        self._pipeline.append((request, keep_alive))
        waiting = sum(len(request.body) for request, _ in self._pipeline)
        if len(self._pipeline) > _MAX_PIPELINED or waiting > self._limits.max_body:
            raise _RefusedError(429, InvalidRequest("too many pipelined requests on one connection"))

    # -- requests --

    def _header(self, name: bytes) -> bytes:
        return next((value for key, value in self._headers if key == name), b"")

    def _head_without_upgrade(self, parser: httptools.HttpRequestParser) -> bytes:
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _request(self, parser: httptools.HttpRequestParser) -> Request:
        raw_path, _, raw_query = self._url.partition(b"?")
        if raw_path[:1] != b"/":  # absolute form, RFC 9112 section 3.2.2
            try:
                raw_path = httptools.parse_url(self._url).path or b"/"
            except httptools.HttpParserError as exc:
                raise _RefusedError(400, InvalidRequest("the request target is not a valid URL")) from exc
        try:
            query = parse_qsl(raw_query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
        except ValueError as exc:
            raise _RefusedError(
                400, InvalidRequest(f"the query has more than {_MAX_PARAMETERS} parameters")
            ) from exc
        return Request(
            method=parser.get_method().decode("ascii"),
            path=unquote(raw_path.decode("latin-1")),
            query=dict(query),
            headers=self._headers,
            body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
            http_version=parser.get_http_version(),
        )

    def _start(self, request: Request, keep_alive: bool) -> None:
        self._stop_timer()
        keep_alive = keep_alive and not self._app.is_draining and not self.is_limited
        shape = self._app.shape_of(None)  # until the application has found the path
        exchange = self._exchange = Exchange(self, request, shape=shape, keep_alive=keep_alive)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(request, exchange), name="http request")

    async def _run(self, request: Request, exchange: Exchange) -> None:
        try:
            await self._app.handle(request, exchange)
        except HoldfastError as exc:
            self._fail(exchange, exc)
        except Exception:
            # The path is decoded and may hold line breaks, which must not look like lines of the log.
            logger.exception("%s %r failed", request.method, request.path)
            self._fail(exchange, InternalError())

    def _fail(self, exchange: Exchange, error: HoldfastError) -> None:
        if exchange.is_started:
            exchange.abort()
        else:
            exchange.refuse(error)

    def exchange_finished(self, *, keep_alive: bool) -> None:
        """Serve the next request, wait for one, or close, now that the answer is complete."""
        self._exchange = None
        self._task = None
        if self.transport is None:
            return
        is_draining = self._app.is_draining
        if not keep_alive:
            self._close()
        elif self._pipeline:
            request, keep_alive = self._pipeline.pop(0)
            self._start(request, keep_alive)
        elif self._deferred is not None:
            self.refuse(*self._deferred)
        elif is_draining:
            self._close()
        else:
            self._set_timer(self._limits.keep_alive_timeout, self._close)
        if is_draining:
            self._app.answer_finished(self)

    def _start_upgrade(self, parser: httptools.HttpRequestParser, rest: bytes) -> None:
        if self._exchange is not None:
            self._refuse(400, InvalidRequest("an upgrade must be the only request of its connection"))
            return
        try:
            request = self._request(parser)
        except _RefusedError as exc:
            self._refuse(exc.status, exc.error)
            return
        self._stop_timer()
        self._app.upgrade(request, self, rest)

    # -- refusals and closing --

    def _too_large(self) -> _RefusedError:
        limit = self._limits.max_body
        return _RefusedError(413, PayloadTooLarge(f"the body is larger than {limit} bytes (server.max_body)"))

    def _refuse(self, status: int, error: HoldfastError) -> None:
        self.refuse(*error_response(error, self._app.shape_of(self._known_path()), status=status))

    def _known_path(self) -> str | None:
        """Return the path of the request that is being received; None while it is incomplete."""
        if not self._url or not (self._headers or self._in_body):
            return None
        return unquote(self._url.partition(b"?")[0].decode("latin-1"))

    def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer without an exchange, and close. Input is dropped for a while, until the client has seen it."""
        if self._exchange is not None or self._pipeline:  # first come the answers that were asked for before
            self._parser = None
            self._deferred = (status, headers, body)
            return
        head = response_head(status, [*headers, (b"content-length", b"%d" % len(body)), (b"connection", b"close")])
        self.write(head + body)
        self._parser = None
        self._discarding = True
        self._set_timer(_DISCARD_TIMEOUT, self.abort)
        transport = self.transport
        if transport is not None and transport.can_write_eof():
            transport.write_eof()

    def _head_timed_out(self) -> None:
        if self._head_size == 0:
            self._close()
        else:
            self._refuse(408, InvalidRequest("the request head did not arrive in time"))

    def _body_timed_out(self) -> None:
        self._refuse(408, InvalidRequest("the request body did not arrive in time"))

    def _close(self) -> None:
        self._stop_timer()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        self._stop_timer()
        if self.transport is not None:
            self.transport.abort()

    # -- for the set of open peers --

    is_conversation = False
    stream_count = 0

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way."""
        return self._exchange is not None

    def drain(self, window: float) -> None:
        """Close behind the answer that is under way, or now. HTTP cannot tell a client to leave later."""
        self.close_when_idle()

    def revoke(self, removed: Set[SecretId]) -> None:
        """End the answer that is under way, if its request came with one of these secrets."""
        exchange = self._exchange
        if exchange is not None and exchange.secret in removed:
            exchange.revoke(Unauthorized(REVOKED))

    def close_when_idle(self) -> None:
        """Close, unless an answer is under way: then the connection closes behind it."""
        if self._exchange is None:
            self._close()

    def say_goodbye(self) -> None:
        """Do nothing: HTTP has no message for it."""

    @property
    def address(self) -> str:
        """The peer's address without its port; empty if the transport has none."""
        peer = None if self.transport is None else self.transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) and peer else ""

    @property
    def descriptor(self) -> int | None:
        """The number of its socket's descriptor; None if the transport has none."""
        own = None if self.transport is None else self.transport.get_extra_info("socket")
        return None if own is None else int(own.fileno())

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def pause_reading(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.transport is not None:
            self.transport.resume_reading()

    def give_away(self) -> asyncio.Transport | None:
        """Hand over the transport; None if the connection is lost. Do not use this object afterwards."""
        self._stop_timer()
        transport, self.transport = self.transport, None
        return transport

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self._timers.after(delay, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _head_too_large() -> InvalidRequest:
    return InvalidRequest(f"the request head is larger than {MAX_HEAD} bytes")


class _RefusedError(Exception):
    """Carries a refusal out of the parser's callbacks, which cannot answer themselves."""

    def __init__(self, status: int, error: HoldfastError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
