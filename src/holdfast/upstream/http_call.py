"""One request on a connection, as the caller holds it."""

from __future__ import annotations

from typing import Final, Protocol

from holdfast.core.http.request import Headers
from holdfast.errors import UpstreamError
from holdfast.upstream.call import ResponseSink


class Carrier(Protocol):
    """The connection that carries a call."""

    def call_paused(self, stream_id: int) -> None: ...

    def call_resumed(self, stream_id: int, size: int) -> None:
        """`size` bytes, which the sink took before the pause, are to be granted to the peer."""

    def await_end(self, call: HttpCall) -> None: ...

    def cancel(self, stream_id: int) -> None: ...


class HttpCall:
    """One request on a connection; implements `Call`."""

    __slots__ = ("_carrier", "is_paused", "request_size", "sent_at", "sink", "stream_id", "ungranted")

    def __init__(
        self, carrier: Carrier, stream_id: int, sink: ResponseSink, sent_at: float, request_size: int
    ) -> None:
        self._carrier = carrier
        self.sent_at = sent_at
        #: Bytes of the request's body.
        self.request_size = request_size
        #: Bytes that the sink has taken, and that the peer has not been granted again.
        self.ungranted = 0
        self.stream_id = stream_id
        self.sink = sink
        self.is_paused = False

    def pause(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self._carrier.call_paused(self.stream_id)

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            size, self.ungranted = self.ungranted, 0
            self._carrier.call_resumed(self.stream_id, size)

    def leave(self) -> None:
        self.sink = _NO_SINK
        self.resume()
        self._carrier.await_end(self)

    def cancel(self) -> None:
        # The sink refers to this call: without that cycle both are freed at once.
        self.sink = _NO_SINK
        self._carrier.cancel(self.stream_id)


class _NoSink:
    """Drops the rest of a response whose caller has left."""

    def response_received(self, status: int, headers: Headers) -> None:
        pass

    def data_received(self, chunks: list[bytes]) -> None:
        pass

    def response_ended(self) -> None:
        pass

    def response_failed(self, error: UpstreamError) -> None:
        pass


_NO_SINK: Final = _NoSink()
