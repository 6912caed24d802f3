"""SSE responses: a cursor whose reader is an HTTP exchange."""

from __future__ import annotations

from holdfast.core.entries import START, EndBody, Position
from holdfast.core.log import Cursor
from holdfast.dialects.dialect import SseFraming
from holdfast.dialects.failure import end_error, end_http_status
from holdfast.errors import HoldfastError
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.listener.exchange import Exchange
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


class SseDelivery:
    """Makes SSE answers. `keep_alive` is how long a stream may be silent before it gets a comment, in seconds."""

    def __init__(self, timers: Timers, flusher: Flusher, *, keep_alive: float) -> None:
        self._timers = timers
        self._flusher = flusher
        self.keep_alive = keep_alive

    def send(
        self,
        stream: Stream,
        exchange: Exchange,
        framing: SseFraming,
        *,
        position: Position = START,
        is_onlooker: bool = False,
    ) -> None:
        """Answer with what the stream has behind the position, and what comes.

        Raises like `Stream.attach`, and then nothing was sent.
        """
        SseReader(
            stream,
            exchange,
            self._timers,
            self._flusher,
            position=position,
            framing=framing,
            keep_alive=self.keep_alive,
            is_onlooker=is_onlooker,
        )


def stream_header(stream: Stream) -> tuple[bytes, bytes]:
    """Return the header by which an answer says which stream it carries."""
    return b"holdfast-stream-id", stream.id.encode()


class SseReader:
    """Writes one stream to one exchange, as entries come; silent streams get comments.

    Unless the framing starts at once, the head of the answer waits for the first entry, so that a refusal is an
    HTTP status, but no longer than the first keep-alive comment.
    """

    __slots__ = (
        "_cursor",
        "_exchange",
        "_flusher",
        "_framing",
        "_is_marked",
        "_keep_alive",
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
        position: Position = START,
        framing: SseFraming,
        keep_alive: float,
        is_onlooker: bool = False,
    ) -> None:
        """Attach to the stream; raises like `Stream.attach`, and then nothing was sent."""
        self._stream = stream
        self._exchange = exchange
        self._timers = timers
        self._flusher = flusher
        self._framing = framing
        self._keep_alive = keep_alive
        self._is_marked = False
        self._wrote = timers.now()
        self._cursor: Cursor = stream.attach(self, position, is_onlooker=is_onlooker)
        exchange.on_disconnect = self._disconnected
        exchange.on_writable = self._mark
        exchange.on_revoked = self._revoked
        self._timer: Deadline = timers.after(keep_alive, self._check_silence)
        if exchange.is_complete:  # the client was gone before its request began
            self._disconnected()
            return
        if framing.starts_at_once:
            self._start()
        self._mark()

    def _start(self) -> None:
        self._exchange.start(200, [*HEADERS, stream_header(self._stream)])

    def wake(self, cursor: Cursor) -> None:
        if not self._is_marked:
            self._is_marked = True
            self._flusher.add(self)

    def position_changed(self, cursor: Cursor) -> None:
        # A position in the queue has no form in SSE; the comments go on. Before the head, which waits so that a
        # failure can be a status, the next comment tells of a wait for another try.
        if self._stream.retrying is not None and self._exchange.is_started and self._exchange.is_writable:
            self._comment()

    def _comment(self) -> None:
        """Write a comment, so that nobody takes the silence for the end."""
        retrying = self._stream.retrying
        if retrying is None:
            comment = _KEEP_ALIVE
        else:
            comment = b": retrying in %.1f s (attempt %d, %b)\n" % (
                retrying.delay,
                retrying.attempt,
                retrying.code.encode(),
            )
        self._exchange.write(comment)
        self._wrote = self._timers.now()

    def epoch_changed(self, cursor: Cursor) -> None:
        pass  # the ids of the events to come have it

    def forgotten(self, cursor: Cursor, error: HoldfastError) -> None:
        self._timer.cancel()
        self._fail(error)

    def _mark(self) -> None:
        self.wake(self._cursor)

    def flush(self, *, more: bool = False) -> int:
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
        for _ in range(_MAX_WRITES if more else 1):
            events += self._write_entries()
            if not exchange.is_writable or not cursor.is_ready:
                return events
        self._is_marked = True
        self._flusher.add_more(self)
        return events

    def _write_entries(self) -> int:
        """Write about as much as one write carries; say of how many entries that was."""
        exchange, cursor, framing = self._exchange, self._cursor, self._framing
        start, size = cursor.position, 0
        out: list[bytes] = []
        while size < _READ_BYTES and (data := cursor.read(framing, _READ_BYTES)) is not None:
            out.append(data)
            size += len(data)
        cursor.consume()
        is_done = cursor.is_done
        if is_done:
            # Before the write: that may need memory for which this very log goes, and then nothing is lost of it.
            self._timer.cancel()
            self._stream.release(cursor)
        if size:  # entries without a form leave the client in silence
            exchange.write(out[0] if len(out) == 1 else b"".join(out))
            self._wrote = self._timers.now()
        if is_done:
            exchange.end()
        else:
            self._stream.resume_source()
        return cursor.position - start

    def _refuse(self, end: EndBody) -> None:
        self._timer.cancel()
        self._stream.release(self._cursor)
        self._exchange.refuse(end_error(end), status=end_http_status(end), headers=[stream_header(self._stream)])

    def _check_silence(self) -> None:
        """Keep proxies from cutting a silent answer, also before the first token."""
        if self._exchange.is_complete:
            return
        silence = self._timers.now() - self._wrote
        if silence >= self._keep_alive:
            if self._exchange.is_writable:
                self._start()
                self._comment()
            silence = 0.0
        self._timer = self._timers.after(self._keep_alive - silence, self._check_silence)

    def _disconnected(self) -> None:
        self._timer.cancel()
        self._stream.lose(self._cursor)

    def _revoked(self, error: HoldfastError) -> None:
        """The caller may not read on, and for the stream it is gone."""
        self._disconnected()
        self._fail(error)

    def _fail(self, error: HoldfastError) -> None:
        exchange = self._exchange
        if not exchange.is_started:
            exchange.refuse(error)
        elif (failure := self._framing.failure(error)) is not None:
            exchange.write(failure)
            exchange.end()
        else:
            exchange.abort()
