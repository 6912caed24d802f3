"""The I/O of one connection to a provider: drives an HTTP/1.1 or HTTP/2 client connection of the core.

Bytes go to the sinks in the turn in which they arrive. What to open, lend and retire is the pool's matter.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    HttpConnection,
    PongReceived,
    ResponseEnded,
    ResponseReceived,
    SettingsChanged,
    StreamFailed,
)
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.errors import UpstreamConnectError, UpstreamError, UpstreamReset
from holdfast.timers import RESOLUTION, Deadline, Timers
from holdfast.upstream.call import ResponseSink

logger = logging.getLogger("holdfast")

#: Bytes that one connection may bring before the others, and the readers, have their turn.
_TURN_BYTES: Final = 128 * 1024
#: Smaller reads mean that the socket was emptied.
_BUSY_READ: Final = 32 * 1024
#: How long a closed connection may take to send what is left, and a response that nobody reads to end, in seconds.
_LINGER: Final = 1.0
#: Windows are widened in steps of this, a small part of an h2 stream's: the hot path then counts only.
_GRANT_BATCH: Final = 16_384
#: Seconds after a request in which the end of a kept-alive connection means that it was idle for too long; later
#: the provider has had the request, and has failed.
_STALE_WITHIN: Final = 1.0
#: What the peer's end of a connection is called.
_PEERS_END: Final = ("connection_closed", "connection_reset")
_SINK_FAILED: Final = "the receiver of a provider's answer failed"


class ConnectionOwner(Protocol):
    """What a connection tells its pool, always after its own state has changed."""

    def slot_freed(self, connection: UpstreamConnection) -> None: ...
    def settings_changed(self, connection: UpstreamConnection) -> None: ...

    def request_refused(self, connection: UpstreamConnection) -> None:
        """A request came back unprocessed; `slot_freed` follows."""

    def found_stale(self, connection: UpstreamConnection) -> None:
        """The peer closed it, kept alive, as a request was sent; `connection_lost` follows."""

    def connection_draining(self, connection: UpstreamConnection) -> None:
        """It takes no new requests."""

    def connection_lost(self, connection: UpstreamConnection) -> None:
        """It is of no use any more; told once, and only for connections that were established."""

    def count_reset(self, cause: str) -> None:
        """An answer was cut short."""

    def count_goaway(self) -> None: ...


class HttpCall:
    """One request on a connection; implements `Call`."""

    __slots__ = ("_connection", "is_paused", "sent_at", "sink", "stream_id", "ungranted")

    def __init__(self, connection: UpstreamConnection, stream_id: int, sink: ResponseSink, sent_at: float) -> None:
        self._connection = connection
        self.sent_at = sent_at
        #: Bytes that the sink has taken and the window has not been told of.
        self.ungranted = 0
        self.stream_id = stream_id
        self.sink = sink
        self.is_paused = False

    def pause(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self._connection.call_paused(self.stream_id)

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            size, self.ungranted = self.ungranted, 0
            self._connection.call_resumed(self.stream_id, size)

    def leave(self) -> None:
        self.sink = _NOBODY
        self.resume()
        self._connection.await_end(self)

    def cancel(self) -> None:
        self.sink = _NOBODY  # which refers to this call: without the cycle both go at once
        self._connection.cancel(self.stream_id)


class _Nobody:
    """The sink of a response that nobody wants any more."""

    def response_received(self, status: int, headers: Headers) -> None:
        pass

    def data_received(self, chunks: list[bytes]) -> None:
        pass

    def response_ended(self) -> None:
        pass

    def response_failed(self, error: UpstreamError) -> None:
        pass


_NOBODY: Final = _Nobody()


class UpstreamConnection(asyncio.Protocol):
    """One connection and the requests on it.

    `speak` makes the HTTP connection for what ALPN chose, None where it chose nothing. `established` is done when
    the peer has shown that it speaks HTTP, or fails with `UpstreamConnectError`; `gone` when the socket is closed.
    """

    __slots__ = (
        "_calls",
        "_has_heard",
        "_is_draining",
        "_is_held",
        "_is_lost",
        "_is_used",
        "_is_write_due",
        "_loop",
        "_owner",
        "_ping_interval",
        "_ping_sent",
        "_ping_timeout",
        "_pings",
        "_readable",
        "_speak",
        "_target",
        "_timer",
        "_timers",
        "_turn_bytes",
        "established",
        "gone",
        "http",
        "rtt",
        "transport",
    )

    http: HttpConnection

    def __init__(
        self,
        owner: ConnectionOwner,
        timers: Timers,
        speak: Callable[[str | None], HttpConnection],
        *,
        scheme: bytes,
        authority: bytes,
        ping_interval: float,
        ping_timeout: float,
    ) -> None:
        self._owner = owner
        self._timers = timers
        self._speak = speak
        self._target = (scheme, authority)
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, HttpCall] = {}
        self._has_heard = False
        self._is_draining = False
        self._is_lost = False
        self._is_used = False
        self._is_write_due = False
        self._is_held = False
        self._turn_bytes = 0
        self._pings = 0
        self._ping_sent: float | None = None
        self._timer: Deadline | None = None
        self._readable: select.poll | None = None
        self.transport: asyncio.Transport | None = None
        self.established: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        #: Of the last PING, in seconds.
        self.rtt: float | None = None

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    # -- requests ------------------------------------------------------------------------------------------

    def send(self, request: HttpRequest, sink: ResponseSink) -> HttpCall:
        """Send a request; a slot must be free. Raises `HttpMisuse` for what cannot be sent in HTTP."""
        scheme, authority = self._target
        stream_id = self.http.send_request(
            request.method.encode(), scheme, authority, request.path.encode(), request.headers, request.body
        )
        call = self._calls[stream_id] = HttpCall(self, stream_id, sink, self._loop.time())
        if self._readable is None:
            self._write_soon()
        else:
            self._flush()  # there is nothing to wait for, and the less time passes after `has_unread` the better
        return call

    def has_unread(self) -> bool:
        """Whether an idle HTTP/1.1 connection that was used before has something to read: an end, or rubbish.

        It costs a system call. A connection that is new may have TLS session tickets to read, and is not asked.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return True
        return self._is_used and self._readable is not None and bool(self._readable.poll(0))

    def cancel(self, stream_id: int) -> None:
        if self._calls.pop(stream_id, None) is None:
            return
        self.http.reset_stream(stream_id)
        if self.http.is_closed:
            self._lose()  # HTTP/1.1 has no other way
        else:
            self._write_soon()
            self._owner.slot_freed(self)

    def await_end(self, call: HttpCall) -> None:
        """Give a response that nobody reads a moment to end by itself."""
        if call.stream_id in self._calls:
            self._timers.after(_LINGER, call.cancel)

    def call_paused(self, stream_id: int) -> None:
        # HTTP/1.1 has no window of its own: the socket's is the request's.
        if self.http.alpn != "h2" and stream_id in self._calls:
            self._update_reading()

    def call_resumed(self, stream_id: int, size: int) -> None:
        if stream_id not in self._calls or self.transport is None:
            return
        if self.http.alpn == "h2":
            self.http.grant(stream_id, size)
            self._write_soon()
        else:
            self._update_reading()

    def _update_reading(self) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        waits = self.http.alpn != "h2" and any(call.is_paused for call in self._calls.values())
        if waits or self._is_held:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _count_turn(self, size: int) -> None:
        """Let others have their turn: an event loop reads one busy socket again and again before it goes on."""
        if not self._turn_bytes:
            self._loop.call_soon(self._end_turn)
        self._turn_bytes += size
        if self._turn_bytes >= _TURN_BYTES and not self._is_held:
            self._is_held = True
            self._update_reading()

    def _end_turn(self) -> None:
        self._turn_bytes = 0
        if self._is_held:
            self._is_held = False
            self._update_reading()

    def close(self) -> None:
        """Say goodbye and close; requests that are still on it fail."""
        if self.transport is None or self._is_lost:
            self.abort("closed")
            return
        events = self.http.close()
        self._flush()
        self._fail(events, "closed")
        self._lose(abort=False)
        if self.transport is not None:
            self._close_transport(self.transport)

    def abort(self, cause: str) -> None:
        """Close at once, without a word; requests that are still on it fail with this cause."""
        if self.transport is not None and not self._is_lost:
            self._fail(self.http.close(), cause)
        self._lose()

    # -- asyncio.Protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        _keep_alive(transport.get_extra_info("socket"))
        tls = transport.get_extra_info("ssl_object")
        try:
            self.http = self._speak(None if tls is None else tls.selected_alpn_protocol())
        except UpstreamConnectError as exc:
            self._set_established(exc)
            self.transport.abort()
            return
        if self.http.alpn != "h2":
            self._readable = select.poll()
            self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._flush()
        if self.http.is_established:
            self._set_established(None)

    def data_received(self, data: bytes) -> None:
        self._has_heard = True
        calls = self._calls
        others = None
        for event in self.http.receive_data(data):
            if type(event) is DataReceived:
                call = calls.get(event.stream_id)
                if call is not None:
                    chunks = event.chunks
                    try:
                        call.sink.data_received(chunks)
                    except Exception:
                        logger.exception(_SINK_FAILED)
                        self._give_up(call)
                        continue
                    call.ungranted += len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))
                    if call.ungranted >= _GRANT_BATCH and not call.is_paused and event.stream_id in calls:
                        self.http.grant(event.stream_id, call.ungranted)
                        call.ungranted = 0
            else:
                others = True
                self._handle(event)
        self._flush()
        if others:
            self._settle()
        if len(data) >= _BUSY_READ:
            self._count_turn(len(data))

    def eof_received(self) -> bool:
        if not self._is_lost:
            self._end(self.http.receive_eof(), "connection_closed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.gone.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if not self.established.done():
            reason = exc or "the provider closed the connection before it spoke HTTP"
            self._set_established(UpstreamConnectError(f"cannot connect to the provider: {reason}"))
            self._is_lost = True
        if not self._is_lost:
            # After a loss, an HTTP/1.1 body without a length is not complete: its end is the connection's end.
            self._end(self.http.close(), "connection_reset" if exc is not None else "connection_closed")

    # -- events --------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if type(event) is ResponseReceived:
            call = self._calls.get(event.stream_id)
            if call is not None:
                try:
                    call.sink.response_received(event.status, event.headers)
                except Exception:
                    logger.exception(_SINK_FAILED)
                    self._give_up(call)
        elif type(event) is ResponseEnded:
            self._is_used = True
            self._end_call(event.stream_id, None)
        elif type(event) is StreamFailed:
            self._stream_failed(event)
        elif type(event) is SettingsChanged:
            if self.established.done():
                self._owner.settings_changed(self)
            else:
                self._set_established(None)
        elif type(event) is PongReceived:
            if self._ping_sent is not None:
                self.rtt = time.perf_counter() - self._ping_sent
                self._ping_sent = None
        elif type(event) is GoAwayReceived:
            self._owner.count_goaway()
        elif type(event) is ConnectionFailed:
            logger.info("a connection to %s failed: %s", self._target[1].decode(), event.reason)

    def _stream_failed(self, event: StreamFailed, cause: str | None = None) -> None:
        if cause is None:
            if self.http.is_closed:
                cause = "connection_closed" if event.code == ErrorCode.NO_ERROR else "protocol_error"
            elif not event.processed and not self.http.is_usable:
                cause = "goaway"
            else:
                cause = f"stream_{_code_name(event.code)}"
        call = self._calls.get(event.stream_id)
        is_stale = False
        if call is not None:
            self._owner.count_reset(cause)
            if event.was_kept_alive and cause in _PEERS_END:
                is_stale = self._loop.time() - call.sent_at <= _STALE_WITHIN
        if is_stale:
            self._owner.found_stale(self)
        is_refused = not event.processed and self.http.is_usable
        if is_refused:
            self._owner.request_refused(self)
        message = f"the provider's answer was cut ({cause}): {event.reason}"
        error = UpstreamReset(message, processed=event.processed, is_stale=is_stale, is_refused=is_refused)
        self._end_call(event.stream_id, error)

    def _end_call(self, stream_id: int, error: UpstreamError | None) -> None:
        call = self._calls.pop(stream_id, None)
        if call is None:
            return
        if call.is_paused and self.http.alpn != "h2":
            self._update_reading()
        try:
            if error is None:
                call.sink.response_ended()
            else:
                call.sink.response_failed(error)
        except Exception:
            logger.exception(_SINK_FAILED)
        # First what becomes of the connection, so that its slot is not lent again where it cannot be.
        if not self.http.is_closed:
            self._note_draining()
            self._owner.slot_freed(self)

    def _give_up(self, call: HttpCall) -> None:
        """One receiver's fault ends its own request, and nobody else's."""
        sink = call.sink
        call.cancel()
        sink.response_failed(UpstreamReset("the gateway failed to take the provider's answer"))

    def _fail(self, events: list[Event], cause: str) -> None:
        for event in events:
            if type(event) is StreamFailed:
                self._stream_failed(event, cause)
            else:
                self._handle(event)

    def _end(self, events: list[Event], cause: str) -> None:
        """The connection is over."""
        self._fail(events, cause)
        self._lose()

    def _settle(self) -> None:
        """Tell the pool of what has become of the connection."""
        if self._is_lost:
            return
        if not self.http.is_closed:
            self._note_draining()
            return
        self._lose(abort=False)
        if self.transport is not None:
            self._close_transport(self.transport)

    def _note_draining(self) -> None:
        if not self._is_draining and not self.http.is_usable:
            self._is_draining = True
            self._owner.connection_draining(self)

    def _close_transport(self, transport: asyncio.Transport) -> None:
        """Send what is left; but a peer that does not read must not keep the socket."""
        transport.close()
        self._timer = self._timers.after(_LINGER, transport.abort)

    def _lose(self, *, abort: bool = True) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if abort and self.transport is not None:
            self.transport.abort()
        if not self._is_lost:
            self._is_lost = True
            if self.established.done():
                self._owner.connection_lost(self)
            else:
                self._set_established(UpstreamConnectError("the provider closed the connection at once"))

    def _set_established(self, error: UpstreamConnectError | None) -> None:
        if self.established.done():
            return
        if error is not None:
            self._is_lost = True
            self.established.set_exception(error)
            self.established.exception()  # the dial may have given up, and nobody is asking
            return
        self.established.set_result(None)
        if self.http.can_ping:
            self._ping()

    # -- signs of life -------------------------------------------------------------------------------------

    def _ping(self) -> None:
        self._pings += 1
        self._has_heard = False
        self._ping_sent = time.perf_counter()
        self.http.send_ping(self._pings.to_bytes(8, "big"))
        self._write_soon()
        self._timer = self._timers.after(self._ping_timeout, self._check_ping)

    def _check_ping(self, *, is_last_look: bool = False) -> None:
        # Any byte is a sign of life: a provider that sends but does not answer PINGs is not dead.
        if self._ping_sent is None or self._has_heard:
            self._timer = self._timers.after(max(self._ping_interval - self._ping_timeout, 0.01), self._ping)
        elif is_last_look:
            logger.warning("a connection to %s is dead: no answer to a PING", self._target[1].decode())
            self.abort("ping_timeout")
        else:
            # Where this process was held up, the answer may lie unread in the socket: read once more first.
            self._timer = self._timers.after(RESOLUTION, lambda: self._check_ping(is_last_look=True))

    # -- writing -------------------------------------------------------------------------------------------

    def _write_soon(self) -> None:
        """Write once at the end of the turn, whatever more comes in it."""
        if not self._is_write_due:
            self._is_write_due = True
            self._loop.call_soon(self._write_now)

    def _write_now(self) -> None:
        self._is_write_due = False
        self._flush()

    def _flush(self) -> None:
        data = self.http.data_to_send()
        if data and self.transport is not None:
            self.transport.write(data)


def _keep_alive(sock: socket.socket | None) -> None:
    """Let the kernel find dead peers of connections without PINGs of their own."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except OSError:  # a platform's refusal costs nothing but this
        logger.debug("TCP keep-alive cannot be set", exc_info=True)


def _code_name(code: int) -> str:
    try:
        return ErrorCode(code).name.lower()
    except ValueError:
        return f"code_{code}"
