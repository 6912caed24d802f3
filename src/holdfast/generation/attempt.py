"""One try at one endpoint: takes its answer into the stream's log, and watches the deadlines.

Bytes arrive by callback and are appended in the same turn.
"""

from __future__ import annotations

import asyncio
import time

from holdfast.core.breaker import Permit
from holdfast.core.http.request import Headers
from holdfast.core.retry import parse_retry_after
from holdfast.dialects.ask import Ask
from holdfast.errors import (
    FirstByteTimeout,
    IdleTimeout,
    TotalTimeout,
    UpstreamError,
    UpstreamMalformed,
)
from holdfast.generation.route import Target
from holdfast.observe.events import FirstEntry, Observer
from holdfast.streams.stream import Stream
from holdfast.timers import Deadline, Timers
from holdfast.upstream.call import Call
from holdfast.upstream.capacity import ProviderLease

#: Most of an error answer's body that is kept.
_MAX_ERROR_BODY = 64 * 1024


class Attempt:
    """One try, as the sink of its response.

    | state | what moves it there | who |
    |---|---|---|
    | sending | `run` | pump |
    | waiting for the first byte | the request is on its way | upstream |
    | reading | body bytes of a 200; `paused` while the stream is full | upstream, stream |
    | collecting an error | the head of any other status | upstream |
    | settled | the answer's end, an error, a deadline | reader, upstream, timers |

    `lease` is its slot at the provider, which the caller gives back. `deadline` is when the whole answer is due,
    on the clock of `timers`. Invariants: it settles once; the call is left or cancelled when `run` returns; while
    it is paused, silence does not count against the provider.
    """

    __slots__ = (
        "_ask",
        "_call",
        "_deadline",
        "_error_body",
        "_first_byte",
        "_last_read",
        "_lease",
        "_observer",
        "_outcome",
        "_paused",
        "_permit",
        "_request",
        "_retry_after",
        "_stream",
        "_target",
        "_timers",
        "_watch",
        "first_entry",
        "provider_request_id",
        "reader",
        "started",
        "status",
    )

    def __init__(
        self,
        stream: Stream,
        ask: Ask,
        target: Target,
        timers: Timers,
        observer: Observer,
        *,
        lease: ProviderLease | None,
        deadline: float,
    ) -> None:
        """Raises `InvalidRequest` where the request asks for what this provider's API has no form for."""
        self._ask = ask
        self._request, self.reader = target.endpoint.exchange(
            ask, target.model, stream_id=stream.id, max_entry=stream.log.max_bytes
        )
        self._stream = stream
        self._target = target
        self._timers = timers
        self._observer = observer
        self._permit: Permit | None = None
        self._lease = lease
        self._deadline = deadline
        self._call: Call | None = None
        self._outcome: asyncio.Future[UpstreamError | None] = asyncio.get_running_loop().create_future()
        self._error_body: bytearray | None = None
        self._retry_after: float | None = None
        self._first_byte = False
        self._paused = False
        self._last_read = 0.0
        self._watch: Deadline | None = None
        self.started = timers.now()
        #: Seconds from its start to the first entry; None before.
        self.first_entry: float | None = None
        self.status: int | None = None
        #: What the provider calls the request.
        self.provider_request_id: str | None = None

    @property
    def has_answered(self) -> bool:
        """Whether there has been an entry."""
        return self.first_entry is not None

    async def run(self, permit: Permit) -> UpstreamError | None:
        """Try once, with the breaker's permit. Returns None where the answer is complete, else what went wrong.

        Cancellation-safe: the provider's request is cancelled and the slot is freed.
        """
        self._permit = permit
        target = self._target
        streaming = self._ask.stream
        try:
            self._call = await target.upstream.send(self._request, self)
        except UpstreamError as exc:
            # Without its frames: this one knows the request, which the failure is to outlive.
            return exc.with_traceback(None)
        if self._lease is not None and streaming:
            # From here, since waiting for a connection is not the provider's time. An answer that is not streamed
            # begins when it has ended, which tells nothing.
            self._lease.begin()
        if self._paused:
            self._call.pause()
        self._last_read = self._timers.now()
        self._watch_deadlines(streaming=streaming)
        is_complete = False
        try:
            error = await self._outcome
            is_complete = error is None
            return error
        finally:
            if self._watch is not None:
                self._watch.cancel()
            if is_complete:
                self._call.leave()
            else:
                self._call.cancel()

    # -- the response --

    def response_received(self, status: int, headers: Headers) -> None:
        self.status = status
        self.provider_request_id = self._target.endpoint.request_id(headers)
        if status != 200:
            self._error_body = bytearray()
            self._retry_after = _retry_after(headers)
            return
        content_type = next((value for name, value in headers if name == b"content-type"), b"")
        expected = self.reader.content_type
        if not content_type.lower().startswith(expected):
            self._settle(
                UpstreamMalformed(
                    f"the provider answered with content type {content_type[:100].decode('ascii', 'replace')!r}, "
                    f"expected {expected.decode()}"
                )
            )

    def data_received(self, chunks: list[bytes]) -> None:
        if not self._first_byte:
            self._first_byte = True
            if self.status == 200 and self._permit is not None:
                self._target.health.breaker.answered(self._permit)
        self._last_read = self._timers.now()
        if self._error_body is not None:
            if len(self._error_body) < _MAX_ERROR_BODY:
                self._error_body += b"".join(chunks)
            return
        reader, stream = self.reader, self._stream
        entries = reader.receive(chunks)
        if entries:
            if self.first_entry is None:
                self._answered()
            stream.offer(entries)
        if reader.error is not None:
            self._settle(reader.error)
        elif reader.is_finished:
            # The terminal event ends the answer; a provider that keeps the stream open is not waited for.
            self._settle(None)
        elif stream.is_full and not self._paused:
            self._paused = True
            if self._call is not None:
                self._call.pause()

    def _answered(self) -> None:
        stream, now = self._stream, self._timers.now()
        self.first_entry = now - self.started
        if self._lease is not None:
            self._lease.answered()
        self._observer.observe(
            FirstEntry(stream.id, stream.origin.request_id, self._target.provider, now - stream.created)
        )

    def response_ended(self) -> None:
        reader = self.reader
        if self.status is not None and self._error_body is not None:
            body = bytes(self._error_body[:_MAX_ERROR_BODY])
            self._settle(self._target.endpoint.status_error(self.status, body, retry_after=self._retry_after))
            return
        entries = reader.end()
        if entries:
            self._stream.offer(entries)
        self._settle(reader.error)

    def response_failed(self, error: UpstreamError) -> None:
        self._settle(error)

    def _settle(self, error: UpstreamError | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(error)

    def resume(self) -> None:
        """The log has room again: let the provider go on."""
        if self._paused:
            self._paused = False
            # While the provider had to wait for us, its silence was not its own.
            self._last_read = self._timers.now()
            if self._call is not None:
                self._call.resume()

    # -- deadlines --

    def _watch_deadlines(self, *, streaming: bool) -> None:
        """Check the deadlines; one timer for all, set anew only when it fires, never per token."""
        timeouts, total, now = self._target.timeouts, self._deadline, self._timers.now()
        deadline = total
        error: UpstreamError | None = None
        if now >= total:
            error = TotalTimeout(f"the answer was not complete after {timeouts.total:g} s")
        elif streaming and not self._paused:
            if not self._first_byte:
                # Looked at again in time for the idle deadline: the first byte may come at any moment.
                deadline = min(total, self._last_read + timeouts.first_byte, now + timeouts.idle)
                if now >= self._last_read + timeouts.first_byte:
                    error = FirstByteTimeout(f"nothing came within {timeouts.first_byte:g} s of the request")
            else:
                deadline = min(total, self._last_read + timeouts.idle)
                if now >= self._last_read + timeouts.idle:
                    error = IdleTimeout(f"the provider was silent for {timeouts.idle:g} s")
        elif self._paused:
            deadline = min(total, now + timeouts.idle)
        if error is not None:
            self._settle(error)
            return
        self._watch = self._timers.after(
            max(deadline - now, 0.01), lambda: self._watch_deadlines(streaming=streaming)
        )


def _retry_after(headers: Headers) -> float | None:
    for name, value in headers:
        if name == b"retry-after":
            return parse_retry_after(value, time.time())
    return None
