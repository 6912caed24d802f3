"""One accepted socket: tells HTTP/1.1 from HTTP/2 by the first bytes, corks what they write, and hangs, goes dark
or dies as its faults say.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol, cast

from holdfast.simulate.http1 import Http1

if TYPE_CHECKING:
    from holdfast.simulate.server import SimulatedProvider

HIGH_WATERMARK = 128 * 1024
LOW_WATERMARK = 32 * 1024


class Handler(Protocol):
    """The protocol spoken on a connection."""

    def receive(self, data: bytes) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self) -> None: ...


class Connection(asyncio.Protocol):
    """The asyncio protocol of one accepted connection."""

    __slots__ = ("_handler", "_is_closing", "_outgoing", "_provider", "_sniffed", "_transport", "is_paused")

    def __init__(self, provider: SimulatedProvider) -> None:
        self._provider = provider
        self._transport: asyncio.Transport | None = None
        self._handler: Handler | None = None
        self._outgoing: list[bytes | memoryview] = []
        self._sniffed = b""
        self._is_closing = False
        self.is_paused = False

    # -- asyncio ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATERMARK, LOW_WATERMARK)
        self._provider.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        self._receive(data)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._handler is not None:
            self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._outgoing.clear()
        if self._handler is not None:
            self._handler.connection_lost()
        self._provider.connection_closed(self)

    # -- for the handler -------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send `data` at the end of this turn of the event loop, together with what else is written by then."""
        if self._is_closing:
            return
        if not self._outgoing:
            self._provider.pacer.mark(self)
        self._outgoing.append(data)

    def flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None:
            self._transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Send what was written, then FIN."""
        if not self._is_closing and self._transport is not None:
            self.flush()
            self._is_closing = True
            self._transport.close()

    def reset(self) -> None:
        """Send what was written, then RST."""
        if not self._is_closing:
            self.flush()
            self._is_closing = True
            self._reset_when_sent()

    def abort(self) -> None:
        """Close without sending anything more."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.abort()

    def _reset_when_sent(self) -> None:
        # An RST makes the kernel drop what it has not sent, so our own buffer has to be empty before.
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(0.001, self._reset_when_sent)
            return
        sock: Any = transport.get_extra_info("socket")
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:  # the peer was faster
            pass
        transport.abort()

    def _receive(self, data: bytes) -> None:
        if self._is_closing:
            return
        if self._handler is None:
            self._handler = Http1(self, self._provider.service, self._provider.pacer)
        self._handler.receive(data)
