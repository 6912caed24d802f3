"""One try at one endpoint: takes its answer into the stream's log, and watches the deadlines.

Bytes arrive by callback and are appended in the same turn.
"""

from __future__ import annotations

import asyncio
import logging
import time

from holdfast.core.breaker import Permit
from holdfast.core.frameless import without_frames
from holdfast.core.http.request import Headers
from holdfast.core.limits.budget import Kind
from holdfast.core.retry import parse_milliseconds, parse_retry_after
from holdfast.dialects.ask import Ask
from holdfast.errors import (
    AnswerTimeout,
    FirstByteTimeout,
    IdleTimeout,
    NoRoomForAnswer,
    TotalTimeout,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRefused,
)
from holdfast.generation.route import Target
from holdfast.observe.events import FirstEntry, Observer
from holdfast.streams.stream import Stream
from holdfast.timers import Deadline, Timers
from holdfast.upstream.call import Call
from holdfast.upstream.capacity import ProviderLease

logger = logging.getLogger("holdfast")

#: Most of an error answer's body that is kept.
_MAX_ERROR_BODY = 64 * 1024
#: Seconds that a provider has after the last finish reason, for the usage and the terminal event.
_REST_GRACE = 2.0
#: Seconds for the body of an answer with an error status.
_ERROR_GRACE = 5.0


class Attempt:
    """One try, as the sink of its response.

    | state | what moves it there | who |
    |---|---|---|
    | sending | `run` | pump |
    | waiting for the first byte | the request is on its way | upstream |
    | reading | body bytes of a 200; `paused` while the stream is full | upstream, stream |
    | awaiting the rest | the last finish reason | reader |
    | collecting an error | the head of any other status | upstream |
    | settled | the answer's end, an error, a deadline | reader, upstream, timers |

    `lease` is its slot at the provider, which the caller gives back. `deadline` is when the whole answer is due,
    on the clock of `timers`. Invariants: it settles once; the call is left or cancelled when `run` returns; while
    it is paused, silence does not count against the provider; nothing is taken once it has settled.
    """

    __slots__ = (
        "_ask",
        "_call",
        "_deadline",
        "_error_body",
        "_first_byte",
        "_held",
        "_is_overdue",
        "_is_settled",
        "_last_read",
        "_lease",
        "_location",
        "_observer",
        "_outcome",
        "_paused",
        "_permit",
        "_request",
        "_rest_due",
        "_retry_after",
        "_sent",
        "_should_retry",
        "_stream",
        "_timers",
        "_watch",
        "first_entry",
        "provider_request_id",
        "reader",
        "started",
        "status",
        "target",
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
        self.target = target
        self._timers = timers
        self._observer = observer
        self._permit: Permit | None = None
        self._lease = lease
        self._deadline = deadline
        self._call: Call | None = None
        self._outcome: asyncio.Future[UpstreamError | None] = asyncio.get_running_loop().create_future()
        # Bytes that its reader may have kept since the last entry.
        self._held = 0
        self._error_body: bytearray | None = None
        self._retry_after: float | None = None
        # What the provider says of trying again, None where it does not.
        self._should_retry: bool | None = None
        self._location = b""
        # Until when the rest of an answer is waited for that has all its finish reasons.
        self._rest_due: float | None = None
        self._is_overdue = False
        self._is_settled = False
        self._first_byte = False
        self._paused = False
        self._last_read = 0.0
        self._sent = 0.0
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
        target = self.target
        streaming = self._ask.stream
        try:
            self._call = await target.upstream.send(self._request, self)
        except UpstreamError as exc:
            return without_frames(exc)
        del self._request  # as large as the caller's, and not needed while the provider answers
        if self._lease is not None and streaming:
            # From here, since waiting for a connection is not the provider's time. An answer that is not streamed
            # begins when it has ended, which tells nothing.
            self._lease.begin()
        if self._paused:
            self._call.pause()
        self._sent = self._last_read = self._timers.now()
        self._watch_deadlines(streaming=streaming)
        is_complete = False
        try:
            error = await self._outcome
            is_complete = error is None
            return error
        finally:
            if self._watch is not None:
                self._watch.cancel()
            if is_complete and not self._is_overdue:
                self._call.leave()
            else:
                self._call.cancel()

    # -- the response --

    def response_received(self, status: int, headers: Headers) -> None:
        self.status = status
        self.provider_request_id = self.target.endpoint.request_id(headers)
        if status != 200:
            self._error_body = bytearray()
            self._retry_after = _retry_after(headers)
            self._should_retry = _should_retry(headers)
            self._location = _header(headers, b"location")
            if 300 <= status < 400 and self._location:
                place = self._location.partition(b"?")[0][:500].decode("ascii", "replace")
                logger.warning("provider %s redirects to %r: is its base_url right?", self.target.provider, place)
            self._await_rest(_ERROR_GRACE)
            return
        coding = _header(headers, b"content-encoding").strip().lower()
        if coding not in (b"", b"identity"):
            shown = coding[:100].decode("ascii", "replace")
            self._settle(
                UpstreamMalformed(f"the provider encoded its answer as {shown!r}, which was not asked for")
            )
            return
        self.reader.begin(_header(headers, b"content-type"))
        if self.reader.error is not None:
            self._settle(self.reader.error)

    def data_received(self, chunks: list[bytes]) -> None:
        if not self._first_byte:
            self._first_byte = True
            self.target.health.end_wait(self)
            if self.status == 200 and self._permit is not None:
                self.target.health.breaker.answered(self._permit)
        self._last_read = self._timers.now()
        if self._is_settled:
            return  # nothing is appended to an answer that was refused
        if self._error_body is not None:
            self._error_body += b"".join(chunks)
            if len(self._error_body) >= _MAX_ERROR_BODY:
                self.response_ended()
            return
        reader, stream = self.reader, self._stream
        units = reader.units
        entries = reader.receive(chunks)
        if entries:
            if self.first_entry is None:
                self._answered()
            if self._held:
                self.let_go()
            stream.offer(entries)
        elif not self._hold(sum(map(len, chunks))):
            return
        if reader.error is not None:
            self._settle(reader.error)
        elif reader.is_finished:
            # The terminal event ends the answer; a provider that keeps the stream open is not waited for.
            self._settle(None)
        else:
            if stream.is_full and not self._paused:
                self._paused = True
                if self._call is not None:
                    self._call.pause()
            if reader.is_answered:
                if self._rest_due is None:
                    self._await_rest(_REST_GRACE)
                elif reader.units > units:  # APIs exist that write a finish reason into every chunk
                    self._rest_due = self._last_read + _REST_GRACE

    def _hold(self, size: int) -> bool:
        """Count what came without completing an entry. Settles, and returns False, where there is no room for it.

        A pause would gain nothing: it is in no log yet, which a reader could empty.
        """
        account = self._stream.account
        size = min(size, self._stream.log.max_bytes - self._held)
        if size > 0:
            account.add(Kind.LOGS, size)
            self._held += size
        if account.is_short and self._held > account.least_log:
            self._settle(NoRoomForAnswer(retry_after=1.0))
            return False
        return True

    def let_go(self) -> None:
        """Give back what is counted of its reader: it has made an entry of it, or does not read on. Idempotent."""
        if self._held:
            self._stream.account.free(Kind.LOGS, self._held)
            self._held = 0

    def _answered(self) -> None:
        stream, now = self._stream, self._timers.now()
        self.first_entry = now - self.started
        if self._lease is not None:
            self._lease.answered()
        self._observer.observe(
            FirstEntry(stream.id, stream.origin.request_id, self.target.provider, now - stream.created)
        )

    def response_ended(self) -> None:
        if self._is_settled:
            return
        reader = self.reader
        if self.status is not None and self._error_body is not None:
            body = bytes(self._error_body[:_MAX_ERROR_BODY])
            self._settle(
                self.target.endpoint.status_error(
                    self.status, body, retry_after=self._retry_after, location=self._location
                )
            )
            return
        entries = reader.end()
        if entries:
            # An answer that is not streamed begins when it has ended, which tells nothing.
            if self.first_entry is None and self._ask.stream:
                self._answered()
            self.let_go()
            self._stream.offer(entries)
        self._settle(reader.error)

    def response_failed(self, error: UpstreamError) -> None:
        if self.reader.is_answered or self._error_body is not None:
            self.response_ended()  # all that can be missing is the usage, or words about the status
        else:
            self._settle(error)

    def _settle(self, error: UpstreamError | None) -> None:
        self._is_settled = True
        if self._outcome.done():
            return
        if error is not None:
            error = self.target.endpoint.judged(error)
            if self._should_retry is not None and not isinstance(error, UpstreamRefused):
                if error.retryable and not self._should_retry:
                    error.same_endpoint_retry = False
                error.retryable = self._should_retry
        self._outcome.set_result(error)

    def resume(self) -> None:
        """The log has room again: let the provider go on."""
        if self._paused:
            self._paused = False
            # While the provider had to wait for us, its silence was not its own.
            self._last_read = self._timers.now()
            if self._rest_due is not None:
                self._rest_due = self._last_read + _REST_GRACE
            if self._call is not None:
                self._call.resume()

    # -- deadlines --

    def _await_rest(self, grace: float) -> None:
        """What counts of the answer is known: wait for the rest, but not for long."""
        self._rest_due = self._timers.now() + grace
        if self._watch is not None:
            self._watch.cancel()
            self._watch_deadlines(streaming=self._ask.stream)

    def _watch_deadlines(self, *, streaming: bool) -> None:
        """Check the deadlines; one timer for all, set anew only when it fires, never per token."""
        timeouts, total, now = self.target.timeouts, self._deadline, self._timers.now()
        deadline = total
        error: UpstreamError | None = None
        if self._rest_due is not None and (not self._paused or now >= total):
            deadline = min(total, self._rest_due)
            if now >= deadline:
                self._is_overdue = True
                self.response_ended()
                return
        elif now >= total:
            error = TotalTimeout(f"the answer was not complete after {timeouts.total:g} s")
        elif self._paused:
            deadline = min(total, now + min(timeouts.idle, _REST_GRACE))
        elif not streaming:
            deadline = min(total, self._sent + timeouts.answer)
            if now >= deadline:
                error = AnswerTimeout(f"the whole answer did not come within {timeouts.answer:g} s of the request")
        elif self.first_entry is None:
            # What comes before the first entry, such as comments, shows that the provider is alive and thinking.
            limit = max(timeouts.first_byte, timeouts.idle) if self._first_byte else timeouts.first_byte
            # Looked at again in time for the idle deadline: the first entry may come at any moment.
            deadline = min(total, self._last_read + limit, now + timeouts.idle)
            if now >= self._last_read + limit:
                error = (
                    IdleTimeout(f"the provider was silent for {limit:g} s before its first content")
                    if self._first_byte
                    else FirstByteTimeout(f"nothing came within {limit:g} s of the request")
                )
        else:
            deadline = min(total, self._last_read + timeouts.idle)
            if now >= self._last_read + timeouts.idle:
                error = IdleTimeout(f"the provider was silent for {timeouts.idle:g} s")
        if error is not None:
            self._settle(error)
            return
        self._watch = self._timers.after(
            max(deadline - now, 0.01), lambda: self._watch_deadlines(streaming=streaming)
        )


def _header(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _retry_after(headers: Headers) -> float | None:
    """Read how long to wait; the more exact header counts, as in OpenAI's SDKs."""
    found = dict(headers)
    exact = parse_milliseconds(found.get(b"retry-after-ms", b""))
    if exact is not None:
        return exact
    value = found.get(b"retry-after")
    return None if value is None else parse_retry_after(value, time.time())


def _should_retry(headers: Headers) -> bool | None:
    return {b"true": True, b"false": False}.get(dict(headers).get(b"x-should-retry", b"").lower())
