"""What the pump and the pool say to each other about one request: plain calls, no task or queue per token."""

from __future__ import annotations

from typing import Protocol

from holdfast.core.http.request import Headers, HttpRequest
from holdfast.errors import UpstreamError


class ResponseSink(Protocol):
    """Receives one response. After `response_ended` or `response_failed` nothing more is called."""

    def response_received(self, status: int, headers: Headers) -> None: ...

    def data_received(self, chunks: list[bytes]) -> None:
        """Take all that one read brought."""

    def response_ended(self) -> None:
        """The response is complete as HTTP; whether it is complete as an answer is the provider's matter."""

    def response_failed(self, error: UpstreamError) -> None: ...


class Call(Protocol):
    """One request on its way. All methods are synchronous, idempotent and harmless after the end."""

    def pause(self) -> None:
        """Let the provider wait: grant no more of its window (HTTP/2), or read no more (HTTP/1.1)."""

    def resume(self) -> None: ...

    def leave(self) -> None:
        """Call the sink no more, since it has what it wanted; a response that does not end by itself is cancelled.

        So a connection stays of use whose last bytes come a moment after the end of the answer.
        """

    def cancel(self) -> None:
        """Stop the generation and free the slot at once; the sink is not called any more."""


class Upstream(Protocol):
    """One origin."""

    async def send(self, request: HttpRequest, sink: ResponseSink) -> Call:
        """Send a request and return when it is on its way.

        Raises `PoolTimeout`, `ConnectTimeout` or `UpstreamConnectError`. Cancelling it leaves nothing behind.
        """
