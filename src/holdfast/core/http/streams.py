"""h2 streams (RFC 9113 sections 5.1 and 8.1): their responses, and the errors that end one stream alone.

Only open streams are remembered. RFC 9113 section 5.1 lets an endpoint treat frames for all closed streams alike:
decompress them, count them against the connection's window, and drop them.
"""

from __future__ import annotations

from typing import Final

from holdfast.core.http.connection import (
    DataReceived,
    ErrorCode,
    Event,
    HttpMisuse,
    ResponseEnded,
    ResponseReceived,
    StreamFailed,
)
from holdfast.core.http.fields import (
    FieldFault,
    ResponseDecoder,
    check_fields,
    content_length,
    list_size,
    response_head,
)
from holdfast.core.http.flow import BodySender, FloodGuard, SendWindow
from holdfast.core.http.frames import (
    END_HEADERS,
    END_STREAM,
    MAX_31_BITS,
    PRIORITY_FLAG,
    ConnectionFault,
    rst_stream_frame,
    unpad,
    window_update_frame,
)
from holdfast.core.http.request import Headers

#: How many CONTINUATION frames one field block may have, however small.
MAX_CONTINUATIONS: Final = 64
#: A header list above the advertised size fails its stream. Above so many times the size it fails the connection,
#: since reading on to keep the compression state would cost too much (RFC 9113 section 10.5.1).
HARD_LIST_FACTOR: Final = 2

#: `H2Stream.limit` before the head of the response has come: no DATA may come.
_NO_HEAD: Final = -1
#: `H2Stream.body_end` of a body without a declared length.
_OPEN_END: Final = 1 << 60


class H2Stream:
    """One request and its response, until either side ends it.

    Positions are absolute: `received` counts the bytes so far, padding included, and may grow to `limit`. So one
    comparison per DATA frame checks the window, the content-length, and that the head came first.
    """

    __slots__ = ("accepted", "body_end", "id", "is_head", "limit", "received", "sending", "window_end")

    def __init__(self, stream_id: int, *, is_head: bool, window: int, sending: SendWindow) -> None:
        self.id = stream_id
        self.is_head = is_head
        self.received = 0
        self.limit = _NO_HEAD
        self.window_end = window
        self.body_end = _OPEN_END
        self.accepted = 0  # bytes that the application has granted, and the peer has not been granted yet
        self.sending = sending

    @property
    def has_head(self) -> bool:
        return self.limit != _NO_HEAD

    @property
    def is_whole(self) -> bool:
        """Whether the body has the length that was declared, if one was."""
        return self.body_end in (_OPEN_END, self.received)

    @property
    def receive_window(self) -> int:
        return self.window_end - self.received

    def begin_body(self, length: int | None) -> None:
        """Expect a body of this length; None for any length."""
        if length is not None:
            self.body_end = length
        self.limit = min(self.window_end, self.body_end)

    def widen(self, n: int) -> None:
        self.window_end += n
        self.limit = min(self.window_end, self.body_end)

    def pad(self, n: int) -> None:
        """Count padding, which uses up the window but is no part of the body."""
        self.accepted += n
        if self.body_end != _OPEN_END:
            self.body_end += n
            self.limit = min(self.window_end, self.body_end)


class _FieldBlock:
    """A field block whose CONTINUATION frames are still to come."""

    __slots__ = ("count", "end_stream", "parts", "size", "stream_id")

    def __init__(self, stream_id: int, end_stream: bool, first: bytes) -> None:
        self.stream_id = stream_id
        self.end_stream = end_stream
        self.parts = [first]
        self.size = len(first)
        self.count = 0


class StreamTable:
    """The open h2 streams of one connection; takes the frames that the peer sends on them.

    It writes frames to `out`, which it shares with the connection.
    """

    __slots__ = (
        "_at_fault",
        "_decoder",
        "_grant_batch",
        "_guard",
        "_initial_window",
        "_late_window",
        "_max_list_size",
        "block",
        "bodies",
        "next_id",
        "open",
        "out",
    )

    def __init__(
        self, out: list[bytes | memoryview], guard: FloodGuard, *, initial_window: int, max_list_size: int
    ) -> None:
        self.open: dict[int, H2Stream] = {}
        self.next_id = 1
        self.bodies = BodySender()
        self.block: _FieldBlock | None = None
        self.out = out
        self._guard = guard
        self._initial_window = initial_window
        self._grant_batch = max(1, initial_window // 4)
        self._max_list_size = max_list_size
        # Whose fields have ended the connection, for all streams on it: only this answer would do so again.
        self._at_fault = 0
        self._decoder = ResponseDecoder(max_list_size * HARD_LIST_FACTOR)
        # How many bytes of DATA may still come for streams that we have reset: what their windows allowed. So late
        # DATA is bounded without remembering closed streams.
        self._late_window = 0

    # -- from the application ------------------------------------------------------------------------------

    def add(self, *, is_head: bool) -> H2Stream:
        stream_id = self.next_id
        self.next_id += 2
        stream = H2Stream(
            stream_id, is_head=is_head, window=self._initial_window, sending=self.bodies.open(stream_id)
        )
        self.open[stream_id] = stream
        return stream

    def find(self, stream_id: int) -> H2Stream | None:
        """Return an open stream; None for one that has ended. Raises `HttpMisuse` for an id never used."""
        stream = self.open.get(stream_id)
        if stream is None and not (stream_id & 1 and 0 < stream_id < self.next_id):
            raise HttpMisuse(f"there never was an h2 stream {stream_id}")
        return stream

    def grant(self, stream_id: int, n: int) -> None:
        stream = self.find(stream_id)
        if stream is None:
            return
        accepted = stream.accepted + n
        if n < 0 or accepted > self._initial_window - stream.receive_window:
            raise HttpMisuse(f"h2 stream {stream_id} is granted {n} bytes; it has not received so many")
        stream.accepted = accepted
        self._widen(stream)

    def reset(self, stream: H2Stream, code: int) -> None:
        self.out.append(rst_stream_frame(stream.id, code))
        self._late_window += max(0, stream.receive_window)
        self._forget(stream)

    def drop_all(self, code: int, reason: str, events: list[Event], *, unsent_from: int) -> None:
        """Fail all streams without telling the peer: the connection is over."""
        for stream in list(self.open.values()):
            self._forget(stream)
            events.append(
                StreamFailed(
                    stream.id,
                    code,
                    reason,
                    processed=stream.id < unsent_from,
                    is_malformed=stream.id == self._at_fault,
                )
            )

    def _widen(self, stream: H2Stream) -> None:
        if stream.accepted >= self._grant_batch:
            stream.widen(stream.accepted)
            self.out.append(window_update_frame(stream.id, stream.accepted))
            stream.accepted = 0

    def _forget(self, stream: H2Stream) -> None:
        del self.open[stream.id]
        self.bodies.discard(stream.sending)

    # -- from the network ----------------------------------------------------------------------------------

    def require_not_idle(self, stream_id: int) -> None:
        """Raise `ConnectionFault` for a stream that we never opened."""
        # RFC 9113 section 5.1, idle: "Receiving any frame other than HEADERS or PRIORITY on a stream in this state
        # MUST be treated as a connection error". HEADERS may not come either: it would open a pushed stream.
        if not stream_id & 1 or stream_id >= self.next_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame of idle h2 stream {stream_id}")

    def receive_data(
        self, flags: int, stream_id: int, payload: bytes, events: list[Event], corked: dict[int, list[bytes]]
    ) -> None:
        """Take a DATA frame (RFC 9113 section 6.1), whatever its flags and its stream."""
        content = unpad(flags, payload)
        stream = self.open.get(stream_id)
        if stream is None:
            self._receive_late_data(stream_id, len(payload))
            return
        ended = bool(flags & END_STREAM)
        has_head = stream.has_head
        stream.received += len(payload)
        if len(payload) > len(content):
            stream.pad(len(payload) - len(content))
        if not has_head:
            # A server that dies may end the stream so, and another answer may be whole.
            reason = "DATA before the head"
            self._fail(stream, ErrorCode.PROTOCOL_ERROR, reason, events, ended=ended, is_malformed=not ended)
        # RFC 9113 section 6.9.1: the sender "MUST NOT send a flow-controlled frame with a length that exceeds the
        # space available in either of the flow-control windows advertised by the receiver."
        elif stream.received > stream.window_end:
            self._fail(stream, ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the window", events, ended=ended)
        # Section 8.1.1: a response is malformed "if the value of a Content-Length header field does not equal the
        # sum of the DATA frame payload lengths that form the content".
        elif stream.received > stream.limit:
            self._fail(
                stream, ErrorCode.PROTOCOL_ERROR, "a body longer than its content-length", events, ended=ended
            )
        else:
            if content:
                chunks = corked.get(stream_id)
                if chunks is None:
                    corked[stream_id] = chunks = []
                    events.append(DataReceived(stream_id, chunks))
                chunks.append(content)
            elif not ended:
                self._guard.count()
            if ended:
                self._end(stream, [], events)
            else:
                self._widen(stream)

    def _receive_late_data(self, stream_id: int, size: int) -> None:
        self.require_not_idle(stream_id)
        self._late_window -= size
        if self._late_window < 0:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"DATA after the end of h2 stream {stream_id}")
        if not size:
            self._guard.count()

    def receive_headers(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """Take a HEADERS frame (section 6.2); its priority is ignored (section 5.3.2)."""
        self.require_not_idle(stream_id)
        fragment = unpad(flags, payload)
        if flags & PRIORITY_FLAG:
            if len(fragment) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame without its priority")
            fragment = fragment[5:]
        ended = bool(flags & END_STREAM)
        if flags & END_HEADERS:
            self._receive_block(stream_id, fragment, events, ended=ended)
        else:
            self.block = _FieldBlock(stream_id, ended, fragment)

    def receive_continuation(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """Take a CONTINUATION frame (section 6.10) of the field block that has begun."""
        block = self.block
        if block is None or block.stream_id != stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.parts.append(payload)
        block.size += len(payload)
        block.count += 1
        if block.count > MAX_CONTINUATIONS or block.size > self._decoder.max_size:
            self._at_fault = stream_id
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a field block without end")
        if flags & END_HEADERS:
            self.block = None
            self._receive_block(stream_id, b"".join(block.parts), events, ended=block.end_stream)

    def _receive_block(self, stream_id: int, block: bytes, events: list[Event], *, ended: bool) -> None:
        self._at_fault = stream_id
        fields = self._decoder.decode(block)
        self._at_fault = 0
        stream = self.open.get(stream_id)
        if stream is None:
            self._guard.count()
            return
        if list_size(fields) > self._max_list_size:
            self._fail(stream, ErrorCode.ENHANCE_YOUR_CALM, "the header list is too large", events, ended=ended)
            return
        try:
            if stream.has_head:
                self._receive_trailers(stream, fields, events, ended=ended)
            else:
                self._receive_head(stream, fields, events, ended=ended)
        except FieldFault as fault:
            self._fail(stream, ErrorCode.PROTOCOL_ERROR, str(fault), events, ended=ended)

    def _receive_head(self, stream: H2Stream, fields: Headers, events: list[Event], *, ended: bool) -> None:
        status, headers = response_head(fields)
        if status < 200:
            # RFC 9113 section 8.1: "A HEADERS frame with the END_STREAM flag set that carries an informational
            # status code is malformed". HTTP/2 has no status 101 (section 8.6).
            if ended or status == 101:
                raise FieldFault(f"status {status} cannot be a response's only head")
            self._guard.count()
            return
        length = content_length(headers)
        if stream.is_head or status in (204, 304):
            length = 0  # whatever the fields declare (RFC 9110 section 8.6)
        stream.begin_body(length)
        events.append(ResponseReceived(stream.id, status, headers))
        if ended:
            self._end(stream, [], events)

    def _receive_trailers(self, stream: H2Stream, fields: Headers, events: list[Event], *, ended: bool) -> None:
        if not ended:
            raise FieldFault("a second head in one response")
        check_fields(fields)
        self._end(stream, fields, events)

    def _end(self, stream: H2Stream, trailers: Headers, events: list[Event]) -> None:
        if not stream.is_whole:
            # As when a server behind the peer dies: another answer may be whole.
            reason = "a body shorter than its content-length"
            self._fail(stream, ErrorCode.PROTOCOL_ERROR, reason, events, ended=True, is_malformed=False)
            return
        self._stop_body(stream)
        self._forget(stream)
        events.append(ResponseEnded(stream.id, trailers))

    def _fail(
        self,
        stream: H2Stream,
        code: ErrorCode,
        reason: str,
        events: list[Event],
        *,
        ended: bool,
        is_malformed: bool = True,
    ) -> None:
        """Fail one stream for the peer's fault. `ended`: the peer has ended its side."""
        if ended:
            self._stop_body(stream)
            self._forget(stream)
        else:
            self.reset(stream, code)
        events.append(StreamFailed(stream.id, code, reason, processed=True, is_malformed=is_malformed))

    def _stop_body(self, stream: H2Stream) -> None:
        # RFC 9113 section 8.1: "A server can send a complete response prior to the client sending an entire
        # request". The rest of our body is then of no use, and the reset frees the slot on the peer's side too.
        if stream.sending.body is not None:
            self.out.append(rst_stream_frame(stream.id, ErrorCode.NO_ERROR))

    def receive_reset(self, stream_id: int, code: int, events: list[Event]) -> None:
        """Take a RST_STREAM frame (section 6.4)."""
        self.require_not_idle(stream_id)
        stream = self.open.get(stream_id)
        if stream is None:
            self._guard.count()
            return
        self._forget(stream)
        # RFC 9113 section 8.7: REFUSED_STREAM says that "the stream is being closed prior to any processing having
        # occurred". A peer that has begun to answer contradicts itself. One that demands HTTP/1.1 does not begin.
        processed = code not in (ErrorCode.REFUSED_STREAM, ErrorCode.HTTP_1_1_REQUIRED) or stream.has_head
        events.append(StreamFailed(stream_id, code, "the peer reset the h2 stream", processed))

    def receive_window_update(self, stream_id: int, increment: int, events: list[Event]) -> None:
        """Take a stream's WINDOW_UPDATE frame (section 6.9)."""
        self.require_not_idle(stream_id)
        stream = self.open.get(stream_id)
        if stream is None:
            return
        if not increment:
            self._fail(stream, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0", events, ended=False)
        elif not stream.sending.widen(increment):
            reason = "WINDOW_UPDATE beyond 2^31-1"
            self._fail(stream, ErrorCode.FLOW_CONTROL_ERROR, reason, events, ended=False)

    def receive_goaway(self, last_stream_id: int, code: int, events: list[Event]) -> None:
        """Fail the streams that the peer will not process (section 6.8: those above its last stream id)."""
        for stream in [stream for stream in self.open.values() if stream.id > last_stream_id]:
            self._late_window += max(0, stream.receive_window)
            self._forget(stream)
            events.append(
                StreamFailed(stream.id, code, "the peer went away before it processed this", stream.has_head)
            )

    @property
    def ids_left(self) -> bool:
        """Whether there are unused stream ids; they cannot be reused (RFC 9113 section 5.1.1)."""
        return self.next_id <= MAX_31_BITS
