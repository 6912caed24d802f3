"""A WebSocket connection's I/O: feeds the codec, writes, sends heartbeats, closes. Subclasses handle messages."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from holdfast.core.websocket.connection import WebSocketConnection
from holdfast.core.websocket.events import BinaryMessage, CloseReceived, ConnectionFailed, TextMessage
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: Seconds that the peer has to answer our Close frame, and to hang up after its own.
CLOSE_TIMEOUT = 5.0
_LINGER_TIMEOUT = 2.0


class Liveness(msgspec.Struct, frozen=True):
    """A peer that is silent for `interval` seconds is pinged, and dropped `timeout` seconds later.

    Any frame is a sign of life.
    """

    interval: float
    timeout: float


class WebSocketProtocol(asyncio.Protocol):
    """One connection after its opening handshake.

    It owns no task and one timer. Subclasses override the `*_received` hooks and `connection_closed`.
    """

    __slots__ = (
        "_is_pinged",
        "_last_received",
        "_timer",
        "codec",
        "is_writable",
        "liveness",
        "timers",
        "transport",
    )

    def __init__(
        self, transport: asyncio.Transport, timers: Timers, *, max_message: int, liveness: Liveness
    ) -> None:
        self.transport: asyncio.Transport | None = transport
        self.timers = timers
        self.liveness = liveness
        self.codec = WebSocketConnection(max_message=max_message)
        self.is_writable = True
        self._is_pinged = False
        self._last_received = timers.now()
        self._timer: Deadline | None = timers.after(liveness.interval, self._check_liveness)
        transport.set_protocol(self)

    # -- for subclasses --

    def text_received(self, text: str) -> None: ...

    def binary_received(self, data: bytes) -> None: ...

    def connection_closed(self) -> None:
        """Release what the connection holds. Called once, when it is lost."""

    def write_codec(self) -> None:
        """Write what the codec has queued, if the socket takes more."""
        if self.transport is not None and self.is_writable:
            data = self.codec.data_to_send()
            if data:
                self.transport.write(data)

    # -- asyncio.Protocol --

    def data_received(self, data: bytes) -> None:
        self._last_received = self.timers.now()
        self._is_pinged = False
        codec = self.codec
        try:
            for event in codec.receive_data(data):
                if type(event) is TextMessage:
                    self.text_received(event.data)
                elif type(event) is BinaryMessage:
                    self.binary_received(event.data)
                elif isinstance(event, CloseReceived | ConnectionFailed):
                    self._peer_closed()
                    return
        except Exception:
            # The supervisor of one connection: other connections go on, and details go to the log only.
            logger.exception("a WebSocket connection failed")
            self.close(1011, "internal_error")
        self.write_codec()

    def eof_received(self) -> bool:
        self.codec.receive_eof()
        return False

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self.write_codec()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self.transport is not None:
            self.transport = None
            self.connection_closed()

    # -- liveness and closing --

    def _check_liveness(self) -> None:
        """Ping or drop a silent peer. It runs once per interval, not per frame: frames leave their time behind."""
        if self.transport is None:
            return
        liveness = self.liveness
        silence = self.timers.now() - self._last_received
        if self._is_pinged and silence >= liveness.interval + liveness.timeout:
            logger.info("a WebSocket client was silent for %.0f s; dropped", silence)
            self.transport.abort()
            return
        if silence >= liveness.interval and not self._is_pinged and not self.codec.is_closing:
            self._is_pinged = True
            self.codec.send_ping()
            self.write_codec()
        wait = liveness.interval + (liveness.timeout if self._is_pinged else 0.0) - silence
        self._timer = self.timers.after(max(wait, 0.05), self._check_liveness)

    def close(self, code: int, reason: str = "") -> None:
        """Start the closing handshake, which ends after `CLOSE_TIMEOUT` seconds at the latest. Idempotent."""
        if self.transport is None or self.codec.is_closing:
            return
        self.codec.send_close(code, reason)
        self.write_codec()
        self._stop_timer()
        self._timer = self.timers.after(CLOSE_TIMEOUT, self.abort)

    def abort(self) -> None:
        self._stop_timer()
        if self.transport is not None:
            self.transport.abort()

    def _peer_closed(self) -> None:
        """Answer the Close frame and hang up, but read on until the peer has: unread input would reset the
        connection, and our Close frame could be lost with it."""
        self._stop_timer()
        transport = self.transport
        if transport is None:
            return
        data = self.codec.data_to_send()
        if data:
            transport.write(data)
        self._timer = self.timers.after(_LINGER_TIMEOUT, self.abort)
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
