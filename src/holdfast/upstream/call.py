"""What the pump and the pool call on each other for one request. Plain calls: no task and no queue per token."""

from __future__ import annotations

from typing import Protocol

from holdfast.core.http.request import Headers, HttpRequest
from holdfast.errors import UpstreamError


class ResponseSink(Protocol):
    """Receives one response. After `response_ended` or `response_failed` nothing more is called."""

    def response_received(self, status: int, headers: Headers) -> None: ...

    def data_received(self, chunks: list[bytes]) -> None:
        """Take the body bytes that one read brought; no chunk is empty."""

    def response_ended(self) -> None:
        """The response is complete as HTTP. The reader of its API says whether the answer is complete."""

    def response_failed(self, error: UpstreamError) -> None: ...


class Call(Protocol):
    """A request that has been sent. All methods are synchronous and idempotent; after the end they do nothing."""

    def pause(self) -> None:
        """Make the provider wait: stop widening its window (HTTP/2), or stop reading (HTTP/1.1)."""

    def resume(self) -> None: ...

    def leave(self) -> None:
        """Stop calling the sink, which has its whole answer. A response that does not end soon is cancelled.

        So the connection can be used again if its last bytes come a moment after the end of the answer.
        """

    def cancel(self) -> None:
        """Stop the generation and free the slot at once. The sink is not called again."""


class Upstream(Protocol):
    """One origin."""

    async def send(self, request: HttpRequest, sink: ResponseSink) -> Call:
        """Send a request, and return once it has been sent.

        Raises `PoolTimeout`, `ConnectTimeout` or `UpstreamConnectError`. Cancellation-safe: the request is
        cancelled too.
        """
