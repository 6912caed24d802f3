"""The pump: asks the providers of a model's route and moves what comes back into the stream's log.

Bytes arrive by callback and are appended in the same turn. The pump's task only waits for the outcome.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from holdfast.config import TimeoutsConfig
from holdfast.core.messages import AttemptRecord
from holdfast.errors import (
    Cancelled,
    FirstByteTimeout,
    IdleTimeout,
    InternalError,
    TotalTimeout,
    UpstreamError,
    UpstreamMalformed,
    UpstreamStatus,
)
from holdfast.streams.stream import Stream
from holdfast.timers import Deadline, Timers
from holdfast.upstream.call import Call, Headers, Upstream
from holdfast.upstream.providers.openai import (
    ChatRequest,
    CompletionReader,
    Endpoint,
    StreamReader,
    status_error,
)

logger = logging.getLogger("holdfast")

#: Most of an error answer's body that is kept.
_MAX_ERROR_BODY = 64 * 1024


@dataclass(slots=True, frozen=True)
class Target:
    """One endpoint of a route."""

    provider: str
    model: str
    endpoint: Endpoint
    upstream: Upstream
    timeouts: TimeoutsConfig


class Attempt:
    """One try at one target, as the sink of its response."""

    __slots__ = (
        "_call",
        "_error_body",
        "_first_byte",
        "_last_read",
        "_outcome",
        "_paused",
        "_reader",
        "_retry_after",
        "_stream",
        "_timeouts",
        "_timers",
        "_watch",
        "started",
        "status",
    )

    def __init__(self, stream: Stream, request: ChatRequest, target: Target, timers: Timers) -> None:
        max_event = stream.log.max_bytes
        self._reader: StreamReader | CompletionReader = (
            StreamReader(max_event=max_event, hide_usage=not request.wants_usage)
            if request.stream
            else CompletionReader(max_size=max_event)
        )
        self._stream = stream
        self._timeouts = target.timeouts
        self._timers = timers
        self._call: Call | None = None
        self._outcome: asyncio.Future[UpstreamError | None] = asyncio.get_running_loop().create_future()
        self._error_body: bytearray | None = None
        self._retry_after: float | None = None
        self._first_byte = False
        self._paused = False
        self._last_read = 0.0
        self._watch: Deadline | None = None
        self.started = timers.now()
        self.status: int | None = None

    async def run(self, request: ChatRequest, target: Target) -> UpstreamError | None:
        """Try once. Returns None where the answer is complete, else what went wrong.

        Cancellation-safe: the provider's request is cancelled and the slot is freed.
        """
        stream = self._stream
        http_request = target.endpoint.completion(request, target.model, stream_id=stream.id)
        try:
            self._call = await target.upstream.send(http_request, self)
        except UpstreamError as exc:
            return exc
        stream.on_relief = self._resume
        self._last_read = self._timers.now()
        self._watch_deadlines(streaming=request.stream)
        try:
            return await self._outcome
        finally:
            stream.on_relief = _nothing
            if self._watch is not None:
                self._watch.cancel()
            self._call.cancel()

    @property
    def reader(self) -> StreamReader | CompletionReader:
        return self._reader

    # -- the response --

    def response_received(self, status: int, headers: Headers) -> None:
        self.status = status
        if status != 200:
            self._error_body = bytearray()
            self._retry_after = _parse_retry_after(headers)
            return
        content_type = next((value for name, value in headers if name == b"content-type"), b"")
        expected = b"text/event-stream" if isinstance(self._reader, StreamReader) else b"application/json"
        if not content_type.lower().startswith(expected):
            self._settle(
                UpstreamMalformed(
                    f"the provider answered with content type {content_type[:100].decode('ascii', 'replace')!r}, "
                    f"expected {expected.decode()}"
                )
            )

    def data_received(self, chunks: list[bytes]) -> None:
        self._first_byte = True
        self._last_read = self._timers.now()
        if self._error_body is not None:
            if len(self._error_body) < _MAX_ERROR_BODY:
                self._error_body += b"".join(chunks)
            return
        reader, stream = self._reader, self._stream
        entries = reader.receive(chunks)
        if entries:
            stream.append(entries)
        if reader.error is not None:
            self._settle(reader.error)
        elif reader.is_finished:
            # The terminal event ends the answer; a provider that keeps the stream open is not waited for.
            self._settle(None)
        elif stream.is_full and not self._paused and self._call is not None:
            self._paused = True
            self._call.pause()

    def response_ended(self) -> None:
        reader = self._reader
        if self.status is not None and self._error_body is not None:
            body = bytes(self._error_body[:_MAX_ERROR_BODY])
            self._settle(status_error(self.status, body, retry_after=self._retry_after))
            return
        if isinstance(reader, CompletionReader):
            body_or_none = reader.end() if reader.error is None else None
            if body_or_none is not None:
                self._stream.append([body_or_none])
        else:
            reader.end()
        self._settle(reader.error)

    def response_failed(self, error: UpstreamError) -> None:
        self._settle(error)

    def _settle(self, error: UpstreamError | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(error)

    def _resume(self) -> None:
        if self._paused and self._call is not None:
            self._paused = False
            # While the provider had to wait for us, its silence was not its own.
            self._last_read = self._timers.now()
            self._call.resume()

    # -- deadlines --

    def _watch_deadlines(self, *, streaming: bool) -> None:
        """Check the deadlines; one timer for all, set anew only when it fires, never per token."""
        timeouts, now = self._timeouts, self._timers.now()
        total = self.started + timeouts.total
        deadline = total
        error: UpstreamError | None = None
        if now >= total:
            error = TotalTimeout(f"the answer was not complete after {timeouts.total:g} s")
        elif streaming and not self._paused:
            if not self._first_byte:
                deadline = min(total, self._last_read + timeouts.first_byte)
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


class Pump:
    """Runs one stream's generation to its end, over as many attempts as the route allows."""

    def __init__(self, stream: Stream, request: ChatRequest, route: list[Target], timers: Timers) -> None:
        self._stream = stream
        self._request = request
        self._route = route
        self._timers = timers
        self._attempts: list[AttemptRecord] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._stream.on_abandoned = self.cancel
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"pump {self._stream.id}")
        return self._task

    def cancel(self) -> None:
        """Stop the generation within this turn of the loop and the next."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        stream = self._stream
        try:
            await self._try_route()
        except asyncio.CancelledError:
            stream.finish("cancelled", error=Cancelled(), attempts=self._attempts)
            raise
        except Exception:
            logger.exception("stream %s: the pump failed", stream.id)
            stream.finish("failed", error=InternalError(), attempts=self._attempts)
        finally:
            stream.on_abandoned = _nothing

    async def _try_route(self) -> None:
        stream = self._stream
        for number, target in enumerate(self._route, 1):
            attempt = Attempt(stream, self._request, target, self._timers)
            error = await attempt.run(self._request, target)
            self._record(target, attempt, error)
            reader = attempt.reader
            if error is None:
                stream.finish(
                    "completed",
                    finish_reason=reader.finish_reason,
                    usage=reader.usage,
                    attempts=self._attempts,
                )
                return
            delivered = stream.log.next > 0
            if not delivered and number < len(self._route) and _can_move_on(error):
                continue
            stream.finish(
                "incomplete" if delivered else "failed",
                error=error,
                finish_reason=reader.finish_reason,
                usage=reader.usage,
                attempts=self._attempts,
            )
            return

    def _record(self, target: Target, attempt: Attempt, error: UpstreamError | None) -> None:
        self._attempts.append(
            AttemptRecord(
                provider=target.provider,
                model=target.model,
                started_ms=round((attempt.started - self._stream.created) * 1000),
                duration_ms=round((self._timers.now() - attempt.started) * 1000),
                status=attempt.status,
                error=None if error is None else error.code,
            )
        )


def _can_move_on(error: UpstreamError) -> bool:
    """Whether another endpoint may do better: not where the request itself was refused."""
    if isinstance(error, UpstreamStatus):
        return error.status in (408, 429) or error.status >= 500
    return error.retryable


def _parse_retry_after(headers: Headers) -> float | None:
    value = next((value for name, value in headers if name == b"retry-after"), None)
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        return None


def _nothing() -> None:
    pass
