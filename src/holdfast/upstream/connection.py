"""The I/O of one connection to a provider: drives an HTTP/1.1 or HTTP/2 client connection of the core.

Bytes go to the sinks in the turn in which they arrive. What to open, lend and retire is the pool's matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast.core import http
from holdfast.errors import UpstreamError, UpstreamReset
from holdfast.upstream.call import HttpRequest, ResponseSink

logger = logging.getLogger("holdfast")


class HttpCall:
    """One request on a connection; implements `Call`."""

    __slots__ = ("_connection", "_ungranted", "is_paused", "sink", "stream_id")

    def __init__(self, connection: UpstreamConnection, stream_id: int, sink: ResponseSink) -> None:
        self._connection = connection
        self._ungranted = 0
        self.stream_id = stream_id
        self.sink = sink
        self.is_paused = False

    def accept(self, size: int) -> None:
        """The sink has taken `size` bytes: grant as many again, unless it has paused."""
        if self.is_paused:
            self._ungranted += size
        else:
            self._connection.http.grant(self.stream_id, size)

    def pause(self) -> None:
        self.is_paused = True
        self._connection.call_paused()

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            size, self._ungranted = self._ungranted, 0
            self._connection.call_resumed(self.stream_id, size)

    def cancel(self) -> None:
        self._connection.cancel(self.stream_id)


class UpstreamConnection(asyncio.Protocol):
    """One connection and the requests on it. `on_change` is called when a slot came free or the state changed."""

    __slots__ = ("_calls", "_scheme_host", "http", "on_change", "transport")

    def __init__(
        self,
        connection: http.HttpConnection,
        *,
        scheme: bytes,
        authority: bytes,
        on_change: Callable[[UpstreamConnection], None],
    ) -> None:
        self.http = connection
        self.on_change = on_change
        self.transport: asyncio.Transport | None = None
        self._scheme_host = (scheme, authority)
        self._calls: dict[int, HttpCall] = {}

    # -- requests --

    def send(self, request: HttpRequest, sink: ResponseSink) -> HttpCall:
        """Send a request; a slot must be free."""
        scheme, authority = self._scheme_host
        stream_id = self.http.send_request(
            request.method.encode(), scheme, authority, request.path.encode(), request.headers, request.body
        )
        call = self._calls[stream_id] = HttpCall(self, stream_id, sink)
        self._write()
        return call

    def cancel(self, stream_id: int) -> None:
        if self._calls.pop(stream_id, None) is None:
            return
        self.http.reset_stream(stream_id)
        self._write()
        self._settle()

    def call_paused(self) -> None:
        # HTTP/1.1 has no window of its own: the socket's is the request's.
        if self.http.alpn != "h2" and self.transport is not None:
            self.transport.pause_reading()

    def call_resumed(self, stream_id: int, size: int) -> None:
        if self.http.alpn == "h2":
            self.http.grant(stream_id, size)
            self._write()
        elif self.transport is not None:
            self.transport.resume_reading()

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._write()

    def data_received(self, data: bytes) -> None:
        self._dispatch(self.http.receive_data(data))
        self._write()
        self._settle()

    def eof_received(self) -> bool:
        self._dispatch(self.http.receive_eof())
        self._settle()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self.http.is_closed:
            self._dispatch(self.http.receive_eof())
        self.on_change(self)

    def close(self) -> None:
        """End the connection at once; requests on it fail."""
        if not self.http.is_closed:
            self._dispatch(self.http.close())
            self._write()
        if self.transport is not None:
            self.transport.close()

    # -- events --

    def _dispatch(self, events: list[http.Event]) -> None:
        calls = self._calls
        for event in events:
            kind = type(event)
            if kind is http.DataReceived:
                call = calls.get(event.stream_id)
                if call is not None:
                    call.sink.data_received(event.chunks)
                    call.accept(sum(map(len, event.chunks)))
            elif kind is http.ResponseReceived:
                call = calls.get(event.stream_id)
                if call is not None:
                    call.sink.response_received(event.status, event.headers)
            elif kind is http.ResponseEnded:
                call = calls.pop(event.stream_id, None)
                if call is not None:
                    call.sink.response_ended()
            elif kind is http.StreamFailed:
                call = calls.pop(event.stream_id, None)
                if call is not None:
                    call.sink.response_failed(_failure(event))
            elif kind is http.ConnectionFailed:
                logger.info("a provider connection failed: %s", event.reason)

    def _write(self) -> None:
        if self.transport is not None:
            data = self.http.data_to_send()
            if data:
                self.transport.write(data)

    def _settle(self) -> None:
        """Close what is of no further use, and let the pool look."""
        connection = self.http
        if self.transport is not None and (
            connection.is_closed or (not connection.is_usable and connection.open_streams == 0)
        ):
            self.transport.close()
        if connection.available_streams or not connection.is_usable:
            self.on_change(self)


def _failure(event: http.StreamFailed) -> UpstreamError:
    return UpstreamReset(f"the provider's answer was cut: {event.reason}")
