"""The I/O of one connection to a provider: drives an HTTP/1.1 or HTTP/2 client connection of the core.

Bytes go to the sinks in the turn in which they arrive. The pool decides what to open, lend and retire.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections.abc import Callable
from typing import Final, cast

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
    code_name,
)
from holdfast.core.http.request import HttpRequest
from holdfast.errors import UpstreamConnectError, UpstreamError, UpstreamMalformed, UpstreamReset
from holdfast.timers import RESOLUTION, Deadline, Timers
from holdfast.upstream.call import ResponseSink
from holdfast.upstream.connection_owner import ConnectionOwner
from holdfast.upstream.http_call import HttpCall
from holdfast.upstream.unsent import has_unsent

logger = logging.getLogger("holdfast")

#: How many bytes one connection may read before it pauses, so that other connections and the readers get a turn.
_TURN_BYTES: Final = 128 * 1024
#: A read of fewer bytes means that the socket was emptied.
_BUSY_READ: Final = 32 * 1024
#: Seconds that a closed connection has to send its last bytes, and a response without a reader to end.
_LINGER: Final = 1.0
#: A window is widened in steps of so many bytes, a small part of it: so the hot path only counts.
_GRANT_BATCH: Final = 16_384
#: If a kept-alive connection ends within so many seconds after a request, the provider has closed it as idle. If
#: it ends later, the provider had the request, and has failed.
_STALE_WITHIN: Final = 1.0
#: A larger request that is refused may not have been read to its end.
_SMALL_REQUEST: Final = 65_536
#: The causes that mean that the peer has ended the connection.
_PEERS_END: Final = ("connection_closed", "connection_reset")
_SINK_FAILED: Final = "the receiver of a provider's answer failed"


# The states of a connection, how they show, and what moves it:
#
#   state      | shows as                    | moved by                                               | to
#   -----------+-----------------------------+--------------------------------------------------------+---------
#   CONNECTING | `established` is not done   | the peer shows that it speaks HTTP                     | READY
#   CONNECTING |                             | it does not, or the socket ends: `established` fails   | LOST
#   READY      | `established` has succeeded | `http` is not usable any more, as after a GOAWAY       | DRAINING
#   READY      |                             | the peer's end or fault, no answer to a PING, close(), | LOST
#              |                             | abort(), a request that is cancelled over HTTP/1.1     |
#   DRAINING   | `_is_draining`              | the same                                               | LOST
#   LOST       | `is_lost`, without calls   | the socket is closed, after `_LINGER` seconds at most  | GONE
#   GONE       | `gone` is done              | nothing                                                |
#
# The pool is told of each move from READY on, once, by `connection_draining` and `connection_lost`. Reading is
# paused while the turn's bytes are used up (`_is_turn_over`) and, over HTTP/1.1, while the call is paused.


class UpstreamConnection(asyncio.Protocol):
    """One connection to a provider, and the requests on it.

    `speak` makes the HTTP connection for the protocol that ALPN chose, None if it chose nothing. `established` is
    done when the peer has shown that it speaks HTTP, or fails with `UpstreamConnectError`. `gone` is done when the
    socket is closed.
    """

    __slots__ = (
        "_calls",
        "_has_heard",
        "_is_draining",
        "_is_turn_over",
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
        "is_lost",
        "rtt",
        "transport",
    )

    http: HttpConnection

    def __init__(
        self,
        owner: ConnectionOwner[UpstreamConnection],
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
        self._is_draining = self.is_lost = False
        self._is_used = False
        self._is_write_due = False
        self._is_turn_over = False
        self._turn_bytes = 0
        self._pings = 0
        self._ping_sent: float | None = None
        self._timer: Deadline | None = None
        self._readable: select.poll | None = None
        self.transport: asyncio.Transport | None = None
        self.established: asyncio.Future[None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        #: The round trip time of the last PING, in seconds.
        self.rtt: float | None = None

    # -- requests ------------------------------------------------------------------------------------------

    def send(self, request: HttpRequest, sink: ResponseSink) -> HttpCall:
        """Send a request; a slot must be free. Raises `HttpMisuse` for one that cannot be sent in HTTP."""
        scheme, authority = self._target
        stream_id = self.http.send_request(
            request.method.encode(), scheme, authority, request.path.encode(), request.headers, request.body
        )
        call = HttpCall(self, stream_id, sink, self._loop.time(), len(request.body))
        self._calls[stream_id] = call
        if self._readable is None:
            self._write_soon()
        else:
            self._flush()  # at once: the less time passes after `has_unread`, the surer is its answer
        return call

    def has_unread(self) -> bool:
        """Whether an idle, kept-alive HTTP/1.1 connection has something to read: its end, or unexpected bytes.

        It costs a system call. A new connection may have TLS session tickets to read, so its socket is not asked.
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
            self._lose()  # HTTP/1.1 cannot cancel a request in any other way
        else:
            self._write_soon()
            self._owner.slot_freed(self)

    def await_end(self, call: HttpCall) -> None:
        """Give a response without a reader `_LINGER` seconds to end by itself, then cancel it."""
        if call.stream_id in self._calls:
            self._timers.after(_LINGER, call.cancel)

    def call_paused(self, stream_id: int) -> None:
        # HTTP/1.1 has no windows: the request pauses by pausing its socket.
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
        is_call_paused = self.http.alpn != "h2" and any(call.is_paused for call in self._calls.values())
        if is_call_paused or self._is_turn_over:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _count_turn(self, size: int) -> None:
        """Pause reading after `_TURN_BYTES`: else the event loop reads a busy socket again and again."""
        if not self._turn_bytes:
            self._loop.call_soon(self._end_turn)
        self._turn_bytes += size
        if self._turn_bytes >= _TURN_BYTES and not self._is_turn_over:
            self._is_turn_over = True
            self._update_reading()

    def _end_turn(self) -> None:
        self._turn_bytes = 0
        if self._is_turn_over:
            self._is_turn_over = False
            self._update_reading()

    def close(self) -> None:
        """Close in the protocol's way (HTTP/2: GOAWAY). Requests that are still open fail."""
        if self.transport is None or self.is_lost:
            self.abort("closed")
            return
        events = self.http.close()
        self._flush()
        self._fail(events, "closed")
        self._lose(abort=False)
        if self.transport is not None:
            self._close_transport(self.transport)

    def abort(self, cause: str) -> None:
        """Close the socket at once. Requests that are still open fail with this cause."""
        if self.transport is not None and not self.is_lost:
            self._fail(self.http.close(), cause)
        self._lose()

    # -- asyncio.Protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
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
                        self._drop_call(call)
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
            self._report_state()
        if len(data) >= _BUSY_READ:
            self._count_turn(len(data))

    def eof_received(self) -> bool:
        if not self.is_lost:
            self._end(self.http.receive_eof(), "connection_closed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.gone.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if not self.established.done():
            self._set_established(UpstreamConnectError("the provider closed the connection before it spoke HTTP"))
            self.is_lost = True
        if not self.is_lost:
            # Not `receive_eof`: after a loss, an HTTP/1.1 body without a length is not complete.
            self._end(self.http.close(), "connection_reset" if exc is not None else "connection_closed")

    # -- events --------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if type(event) is ResponseReceived:
            call = self._calls.get(event.stream_id)
            if call is not None:
                if event.status >= 400 and call.request_size > _SMALL_REQUEST and self._readable is not None:
                    self.http.send_goaway()  # it may never read the rest, wherever that is by now
                try:
                    call.sink.response_received(event.status, event.headers)
                except Exception:
                    logger.exception(_SINK_FAILED)
                    self._drop_call(call)
        elif type(event) is ResponseEnded:
            self._is_used = True
            if self._readable is not None and (self.transport is None or has_unsent(self.transport)):
                self.http.send_goaway()
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
                cause = f"stream_{code_name(event.code)}"
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
            if event.code == ErrorCode.HTTP_1_1_REQUIRED:
                self._owner.http1_required(self)
        error: UpstreamError
        if event.is_malformed:
            error = UpstreamMalformed(f"the provider's answer is not valid HTTP: {event.reason}")
        else:
            message = f"the provider's answer was cut ({cause}): {event.reason}"
            error = UpstreamReset(message, processed=event.processed, is_stale=is_stale, is_refused=is_refused)
        if self.http.is_closed:
            error.incident = self.gone  # one event, whatever was open on it
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
        # The pool is told first that the connection drains, so that it does not lend the slot again.
        if not self.http.is_closed:
            self._note_draining()
            self._owner.slot_freed(self)

    def _drop_call(self, call: HttpCall) -> None:
        """End the request of a sink that has raised, and no other one."""
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
        """The HTTP connection has ended with these events."""
        self._fail(events, cause)
        self._lose()

    def _report_state(self) -> None:
        """Tell the pool what has become of the connection."""
        if self.is_lost:
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
        """Send the last bytes. A peer that does not read them must not keep the socket open."""
        transport.close()
        self._timer = self._timers.after(_LINGER, transport.abort)

    def _lose(self, *, abort: bool = True) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if abort and self.transport is not None:
            self.transport.abort()
        if not self.is_lost:
            self.is_lost = True
            if self.established.done():
                self._owner.connection_lost(self)
            else:
                self._set_established(UpstreamConnectError("the provider closed the connection at once"))

    def _set_established(self, error: UpstreamConnectError | None) -> None:
        if self.established.done():
            return
        if error is not None:
            self.is_lost = True
            self.established.set_exception(error)
            self.established.exception()  # marks it as retrieved: the dial may have been cancelled
            return
        self.established.set_result(None)
        if self.http.can_ping:
            self._ping()

    # -- PING ----------------------------------------------------------------------------------------------

    def _ping(self) -> None:
        self._pings += 1
        self._has_heard = False
        self._ping_sent = time.perf_counter()
        self.http.send_ping(self._pings.to_bytes(8, "big"))
        self._write_soon()
        self._timer = self._timers.after(self._ping_timeout, self._check_ping)

    def _check_ping(self, *, is_last_look: bool = False) -> None:
        # Any byte shows that the peer is alive: a provider that sends but does not answer PINGs is not dead.
        if self._ping_sent is None or self._has_heard:
            self._timer = self._timers.after(max(self._ping_interval - self._ping_timeout, 0.01), self._ping)
        elif is_last_look:
            logger.warning("a connection to %s is dead: no answer to a PING", self._target[1].decode())
            self.abort("ping_timeout")
        else:
            # If this process was held up, the answer may lie unread in the socket: let the loop read it first.
            self._timer = self._timers.after(RESOLUTION, lambda: self._check_ping(is_last_look=True))

    # -- writing -------------------------------------------------------------------------------------------

    def _write_soon(self) -> None:
        """Write once, at the end of the turn, all that is queued in it."""
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
