"""SSE responses: a cursor whose reader is an HTTP exchange."""

from __future__ import annotations

from holdfast.core.log import Cursor
from holdfast.core.session.messages import EndBody, error_of
from holdfast.core.sse import write_event
from holdfast.errors import HoldfastError, from_wire
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.listener.exchange import Exchange, error_response
from holdfast.streams.stream import Stream
from holdfast.timers import Deadline, Timers

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx and its kin would collect the events otherwise.
    (b"x-accel-buffering", b"no"),
)

#: Without a blank line behind it: OpenAI's SDKs take that for the end of an event, of an empty one, once they have
#: seen an `id`.
_KEEP_ALIVE = b": keep-alive\n"

#: About how many bytes one write carries, and writes of a turn as long as the client takes them: one that takes
#: nothing has no more than one of them waiting, and one that takes all does not fall behind.
_READ_BYTES = 32 * 1024
_MAX_WRITES = 16


class SseReader:
    """Writes one stream to one exchange, as entries come; silent streams get comments.

    `completions` is the form that OpenAI's SDKs read: `[DONE]` after a completed answer, an `error` object after
    any other. Its head waits for the first entry, so that a refusal is an HTTP status, but no longer than the
    first keep-alive comment. Without it the end entry comes as `event: end`.
    """

    __slots__ = (
        "_completions",
        "_cursor",
        "_exchange",
        "_flusher",
        "_is_marked",
        "_keep_alive",
        "_prefix",
        "_stream",
        "_timer",
        "_timers",
        "_wrote",
    )

    def __init__(
        self,
        stream: Stream,
        exchange: Exchange,
        timers: Timers,
        flusher: Flusher,
        *,
        after: int = -1,
        epoch: int | None = None,
        completions: bool,
        keep_alive: float,
    ) -> None:
        """Attach to the stream; raises like `Stream.attach`, and then nothing was sent."""
        self._stream = stream
        self._exchange = exchange
        self._timers = timers
        self._flusher = flusher
        self._completions = completions
        self._keep_alive = keep_alive
        self._prefix = b"id: %d-" % stream.log.epoch
        self._is_marked = False
        self._wrote = timers.now()
        self._cursor: Cursor = stream.attach(self, after=after, epoch=epoch)
        exchange.on_disconnect = self._disconnected
        exchange.on_writable = self._mark
        exchange.on_revoked = self._revoked
        self._timer: Deadline = timers.after(keep_alive, self._check_silence)
        if exchange.is_complete:  # the client was gone before its request began
            self._disconnected()
            return
        if not completions:
            self._start()
        self._mark()

    def _start(self) -> None:
        self._exchange.start(200, [*HEADERS, (b"holdfast-stream-id", self._stream.id.encode())])

    def wake(self, cursor: Cursor) -> None:
        if not self._is_marked:
            self._is_marked = True
            self._flusher.add(self)

    def moved(self, cursor: Cursor) -> None:
        pass  # a place in the queue has no form in SSE; the comments go on

    def _mark(self) -> None:
        self.wake(self._cursor)

    def flush(self) -> int:
        self._is_marked = False
        exchange, cursor = self._exchange, self._cursor
        if exchange.is_complete or not exchange.is_writable or not cursor.is_ready:
            return 0
        if not exchange.is_started:
            end = self._stream.end
            if end is not None and self._stream.log.next == 1 and end.status != "completed":
                self._refuse(end)
                return 1
            self._start()
        events = 0
        for _ in range(_MAX_WRITES):
            events += self._write_entries()
            if not exchange.is_writable or not cursor.is_ready:
                return events
        self._mark()
        return events

    def _write_entries(self) -> int:
        exchange, cursor, prefix = self._exchange, self._cursor, self._prefix
        seq = cursor.position
        payloads = cursor.read_payloads(_READ_BYTES)
        has_end = cursor.is_done
        if has_end:
            payloads.pop()
        out = []
        for payload in payloads:
            # A payload is JSON; only a line end in it, legal between tokens, needs the general writer.
            if b"\n" in payload or b"\r" in payload:
                out.append(write_event(payload, id=b"%d-%d" % (self._stream.log.epoch, seq)))
            else:
                out.append(b"%b%d\ndata: %b\n\n" % (prefix, seq, payload))
            seq += 1
        if has_end:
            out.append(self._end(seq))
        exchange.write(b"".join(out))
        self._wrote = self._timers.now()
        cursor.consume()
        if has_end:
            self._timer.cancel()
            self._stream.release(cursor)
            exchange.end()
        else:
            self._stream.relieve()
        return len(out)

    def _refuse(self, end: EndBody) -> None:
        self._timer.cancel()
        self._stream.release(self._cursor)
        status, headers, body = error_response(end_error(end), status=end_http_status(end))
        self._exchange.respond(status, [*headers, (b"holdfast-stream-id", self._stream.id.encode())], body)

    def _end(self, seq: int) -> bytes:
        id_ = b"%d-%d" % (self._stream.log.epoch, seq)
        end = self._stream.end
        if not self._completions or end is None:
            return write_event(self._stream.log.end or b"{}", id=id_, event=b"end")
        if end.status == "completed":
            return write_event(b"[DONE]", id=id_)
        return write_event(error_payload(end), id=id_)

    def _check_silence(self) -> None:
        """Keep proxies from cutting a silent answer, also before the first token."""
        if self._exchange.is_complete:
            return
        silence = self._timers.now() - self._wrote
        if silence >= self._keep_alive:
            if self._exchange.is_writable:
                self._start()
                self._exchange.write(_KEEP_ALIVE)
                self._wrote = self._timers.now()
            silence = 0.0
        self._timer = self._timers.after(self._keep_alive - silence, self._check_silence)

    def _disconnected(self) -> None:
        self._timer.cancel()
        self._stream.lose(self._cursor)

    def _revoked(self, error: HoldfastError) -> None:
        """The caller may not read on, and for the stream it is gone.

        The form without `completions` knows no error but in the end of the stream, which this is not: it is cut,
        and who comes back is refused with the reason.
        """
        exchange = self._exchange
        self._disconnected()
        if not exchange.is_started:
            exchange.respond(*error_response(error))
        elif self._completions:
            exchange.write(write_event(error_response(error)[2]))
            exchange.end()
        else:
            exchange.abort()


def error_payload(end: EndBody) -> bytes:
    """Say in OpenAI's shape why a stream did not complete."""
    return error_response(end_error(end), status=end_http_status(end))[2]


def end_error(end: EndBody) -> HoldfastError:
    if end.error is None:
        return from_wire("stream_failed", f"the stream ended {end.status}")
    return error_of(end.error)


def end_http_status(end: EndBody) -> int:
    """The HTTP status for an end without any entry: a provider's refusal of the request is passed on."""
    error = end.error
    if error is not None and error.status is not None and 400 <= error.status < 600:
        # The provider's 401 and 403 are about the gateway's credentials, not the caller's.
        return 502 if error.status in (401, 403) else error.status
    return end_error(end).http_status
