"""One accepted socket: TLS, telling HTTP/1.1 from HTTP/2, corking what they write, and the connection's faults."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import Any, Protocol, cast

from holdfast_tools.simulate.exchange import Handles
from holdfast_tools.simulate.faults import (
    BlackHole,
    CloseConnection,
    ConnectionFault,
    HangHandshake,
    ResetConnection,
    Silence,
)
from holdfast_tools.simulate.http1 import Http1
from holdfast_tools.simulate.http2 import Http2
from holdfast_tools.simulate.http2_frames import PREFACE
from holdfast_tools.simulate.pacer import Pacer
from holdfast_tools.simulate.statistics import Counters
from holdfast_tools.simulate.tls import TlsLayer

HIGH_WATERMARK = 128 * 1024
LOW_WATERMARK = 32 * 1024
#: How long a closed connection waits for the peer to close it too.
LINGER = 2.0


class Handler(Protocol):
    """The protocol spoken on a connection."""

    def receive(self, data: bytes) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self) -> None: ...
    def apply(self, fault: ConnectionFault) -> bool: ...


class Owner(Protocol):
    """What connections share."""

    @property
    def pacer(self) -> Pacer: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def service(self) -> Handles: ...
    @property
    def ssl_context(self) -> ssl.SSLContext | None: ...
    @property
    def protocols(self) -> tuple[str, ...]: ...
    @property
    def max_concurrent_streams(self) -> int: ...
    @property
    def initial_window_size(self) -> int: ...

    def connection_opened(self, connection: Connection) -> None: ...
    def connection_closed(self, connection: Connection) -> None: ...


#: Faults of the socket happen at the exact byte; the others are made of frames and follow what is being written.
_OF_SOCKET = (BlackHole, ResetConnection, CloseConnection, HangHandshake, Silence)


class ArmedFault:
    """A fault that waits for requests or bytes; whichever comes first, if for both."""

    __slots__ = ("bytes_left", "fault", "streams_left")

    def __init__(self, fault: ConnectionFault) -> None:
        self.fault = fault
        self.streams_left = fault.after_streams
        self.bytes_left = fault.after_bytes


class Connection(asyncio.Protocol):
    """The asyncio protocol of one accepted connection, and the wire of its handler."""

    __slots__ = (
        "_armed",
        "_due",
        "_handler",
        "_is_closing",
        "_is_dark",
        "_is_silent",
        "_outgoing",
        "_owner",
        "_sniffed",
        "_tls",
        "_transport",
        "is_paused",
    )

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._handler: Handler | None = None
        self._tls = TlsLayer(owner.ssl_context) if owner.ssl_context is not None else None
        self._outgoing: list[bytes | memoryview] = []
        self._sniffed = b""
        self._armed: list[ArmedFault] = []
        self._due: list[ConnectionFault] = []
        self._is_closing = False
        self._is_dark = False  # nothing goes out, what comes is dropped
        self._is_silent = False  # the same above TLS
        self.is_paused = False

    # -- asyncio ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATERMARK, LOW_WATERMARK)
        self._owner.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        if self._is_closing or self._is_dark:
            return
        tls = self._tls
        if tls is None:
            self._receive(data)
            return
        was_established = tls.is_established
        data = tls.receive(data)
        self._send(tls.pending())
        if tls.is_established and not was_established and tls.protocol is not None and not self._is_silent:
            self._speak(tls.protocol)
        if data:
            self._receive(data)
        if tls.is_closed:
            self.close()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = self._is_dark or self._is_silent
        if self._handler is not None and not self.is_paused:
            self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._transport = None
        self._outgoing.clear()
        self._armed.clear()
        self._due.clear()
        if self._handler is not None:
            self._handler.connection_lost()
        self._owner.connection_closed(self)

    # -- for the handler -------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        if self._is_closing:
            return
        if not self._outgoing:
            self._owner.pacer.mark(self)
        self._outgoing.append(data)

    def flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if not outgoing or self._is_silent or self._is_dark:
            return
        data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
        self._send(data if self._tls is None else self._tls.encrypt(data))

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        if self._is_closing:
            return
        self.flush()
        if self._tls is not None and not self._is_closing:
            self._send(self._tls.close())
        self._finish()

    def reset(self) -> None:
        if self._is_closing:
            return
        self.flush()
        self._is_closing = True
        self._reset_when_sent()

    def abort(self) -> None:
        """Close without sending anything more."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.abort()

    # -- faults ----------------------------------------------------------------------------------------

    def arm(self, fault: ConnectionFault) -> None:
        """Let `fault` happen to this connection, now or when what it waits for has come."""
        if fault.after_streams or fault.after_bytes:
            self._armed.append(ArmedFault(fault))
        else:
            self._due.append(fault)
            self._carry_out_due()

    def request_began(self) -> None:
        for armed in list(self._armed):
            armed.streams_left -= 1
            if armed.streams_left == 0:
                self._armed.remove(armed)
                self._due.append(armed.fault)
        if self._due:
            self._carry_out_due()

    def _carry_out_due(self) -> None:
        due, self._due = self._due, []
        for fault in due:
            if self._is_closing:
                return
            if isinstance(fault, _OF_SOCKET):
                self._carry_out(fault)
            elif self._handler is None:
                self._due.append(fault)  # until the protocol is known
                continue
            elif not self._handler.apply(fault):
                continue
            self._owner.counters.connection_faults[str(fault.__struct_config__.tag)] += 1
            self._owner.counters.changed()

    def _carry_out(self, fault: ConnectionFault) -> None:
        if isinstance(fault, ResetConnection):
            self.reset()
        elif isinstance(fault, CloseConnection):
            self.flush()
            self._finish()
        else:
            # To its answers a connection that is dark looks like one whose peer has stopped to read.
            self._is_dark = not isinstance(fault, Silence)
            self._is_silent = self.is_paused = True

    def _send_counted(self, data: bytes | memoryview) -> bytes | memoryview:
        """Send up to the byte at which the socket fails, if it is among `data`; return what is left to send."""
        view = memoryview(data)
        while view and (counting := [armed for armed in self._armed if armed.bytes_left]):
            size = min(len(view), *(armed.bytes_left for armed in counting))
            if self._transport is not None:
                self._transport.write(view[:size])
            view = view[size:]
            for armed in counting:
                armed.bytes_left -= size
                if armed.bytes_left == 0:
                    self._armed.remove(armed)
                    self._due.append(armed.fault)
            if any(isinstance(fault, _OF_SOCKET) for fault in self._due):
                self._carry_out_due()
            if self._is_dark or self._is_closing:
                return b""
        return view

    # -- inside ----------------------------------------------------------------------------------------

    def _send(self, data: bytes | memoryview) -> None:
        if self._armed:
            data = self._send_counted(data)
        if data and not self._is_dark and self._transport is not None:
            self._transport.write(data)
        if self._due:
            self._carry_out_due()

    def _receive(self, data: bytes) -> None:
        if self._is_silent:
            return
        if self._handler is None:
            data = self._sniffed + data
            if len(data) < len(PREFACE) and PREFACE.startswith(data):
                self._sniffed = data
                return
            self._sniffed = b""
            self._speak("h2" if data.startswith(PREFACE) else "http/1.1")
        if self._handler is not None and not self._is_closing and not self._is_silent:
            self._handler.receive(data)

    def _speak(self, protocol: str) -> None:
        owner = self._owner
        if protocol == "h2" and "h2" in owner.protocols:
            owner.counters.connections_by_protocol["http2"] += 1
            self._handler = Http2(
                self,
                owner.service,
                owner.pacer,
                owner.counters,
                max_concurrent_streams=owner.max_concurrent_streams,
                initial_window_size=owner.initial_window_size,
            )
        else:
            owner.counters.connections_by_protocol["http1"] += 1
            self._handler = Http1(self, owner.service, owner.pacer)
        self._carry_out_due()

    def _finish(self) -> None:
        """Send FIN and drop what still comes until the peer closes too.

        Closing at once would answer whatever is on its way with RST, and that could overtake what we have sent
        (RFC 9112 section 9.6).
        """
        self._is_closing = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            asyncio.get_running_loop().call_later(LINGER, self.abort)
        else:
            transport.close()

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
