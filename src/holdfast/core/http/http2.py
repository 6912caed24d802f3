"""An HTTP/2 client connection (RFC 9113) without I/O: no push, no priorities, strict towards the peer.

`receive_data` is the hot path: a DATA frame costs about a microsecond, and all DATA that one read brings for an
h2 stream becomes one event. The pool decides which connection to use; the shell keeps deadlines and keep-alive.
"""

from __future__ import annotations

from typing import ClassVar

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    HttpMisuse,
    PongReceived,
    SettingsChanged,
    Windows,
    check_request_target,
    request_fields,
)
from holdfast.core.http.fields import RequestEncoder
from holdfast.core.http.flow import FloodGuard
from holdfast.core.http.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    GOAWAY,
    HEADER_SIZE,
    HEADERS,
    MAX_31_BITS,
    MAX_FRAME_SIZE,
    MIN_FRAME_SIZE,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    ConnectionFault,
    goaway_frame,
    header_frames,
    ping_frame,
    require_size,
    settings_frame,
    unpack_header,
    window_update_frame,
)
from holdfast.core.http.request import Headers
from holdfast.core.http.settings import (
    ENABLE_PUSH,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE_SETTING,
    MAX_HEADER_LIST_SIZE,
    PeerSettings,
)
from holdfast.core.http.streams import StreamTable


class Http2Connection:
    """The client's side of one HTTP/2 connection; implements `HttpConnection`.

    Args:
        max_streams: our own limit of concurrent requests; the peer's may be lower.
        initial_window: bytes that the peer may send on an h2 stream before the application grants more.
        connection_window: bytes in flight for all h2 streams together; always replenished.
        max_frame_size: the largest frame that the peer may send, from 16,384 to 16,777,215.
        max_header_list_size: of a response, counted as in RFC 9113 section 6.5.2.
    """

    alpn: ClassVar[str] = "h2"

    def __init__(
        self,
        *,
        max_streams: int = 32,
        initial_window: int = 262_144,
        connection_window: int = 16_777_216,
        max_frame_size: int = MIN_FRAME_SIZE,
        max_header_list_size: int = 65_536,
    ) -> None:
        if not (0 < initial_window <= MAX_31_BITS and DEFAULT_WINDOW <= connection_window <= MAX_31_BITS):
            raise HttpMisuse("a window is out of the bounds of RFC 9113 section 6.9")
        if not MIN_FRAME_SIZE <= max_frame_size <= MAX_FRAME_SIZE:
            raise HttpMisuse("max_frame_size is out of the bounds of RFC 9113 section 4.2")
        settings = {
            ENABLE_PUSH: 0,
            INITIAL_WINDOW_SIZE: initial_window,
            MAX_FRAME_SIZE_SETTING: max_frame_size,
            MAX_HEADER_LIST_SIZE: max_header_list_size,
        }
        self._out: list[bytes | memoryview] = [PREFACE, settings_frame(settings)]
        if connection_window > DEFAULT_WINDOW:
            self._out.append(window_update_frame(0, connection_window - DEFAULT_WINDOW))
        self._max_streams = max_streams
        self._max_frame_size = max_frame_size
        self._full_window = self._window = connection_window
        self._guard = FloodGuard()
        self._encoder = RequestEncoder()
        self._peer = PeerSettings()
        self._streams = StreamTable(
            self._out, self._guard, initial_window=initial_window, max_list_size=max_header_list_size
        )
        self._held = bytearray()  # an incomplete frame
        self._wanted = HEADER_SIZE  # the size of `_held` at which that frame may be complete
        self._pings = 0
        self._established = False
        self._goaway_sent = False
        self._goaway_received = False
        self._closed = False
        self._unsent_from = 1  # `data_to_send` has returned no byte of the requests from this stream id on

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def is_established(self) -> bool:
        return self._established

    @property
    def is_usable(self) -> bool:
        ending = self._closed or self._goaway_sent or self._goaway_received
        return not ending and self._streams.ids_left

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def can_ping(self) -> bool:
        return not self._closed

    @property
    def open_streams(self) -> int:
        return len(self._streams.open)

    @property
    def available_streams(self) -> int:
        if not self.is_usable:
            return 0
        limit = min(self._max_streams, self._peer.max_concurrent_streams)
        return max(0, limit - len(self._streams.open))

    @property
    def keep_alive_timeout(self) -> float | None:
        return None  # an HTTP/2 peer sends GOAWAY instead

    def windows(self) -> Windows:
        return Windows(self._window, self._streams.bodies.window.size)

    def stream_windows(self, stream_id: int) -> Windows:
        stream = self._streams.find(stream_id)
        return Windows(stream.receive_window, stream.sending.size) if stream is not None else Windows(0, 0)

    # -- from the application ------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        self._unsent_from = self._streams.next_id
        return data

    def send_request(
        self, method: bytes, scheme: bytes, authority: bytes, path: bytes, headers: Headers, body: bytes = b""
    ) -> int:
        if self.available_streams < 1:
            raise HttpMisuse("no h2 stream is available")
        check_request_target(method, scheme, authority, path)
        fields = [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path)]
        fields += request_fields(method, headers, body)
        block = self._encoder.encode(fields)
        stream = self._streams.add(is_head=method == b"HEAD")
        bodies = self._streams.bodies
        self._out.append(
            header_frames(stream.id, block, end_stream=not body, max_frame_size=bodies.max_frame_size)
        )
        self._guard.restart()
        if body:
            bodies.add(stream.sending, body)
            self._write_bodies()
        return stream.id

    def reset_stream(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        stream = self._streams.find(stream_id)
        if stream is not None:
            self._streams.reset(stream, code)

    def grant(self, stream_id: int, n: int) -> None:
        self._streams.grant(stream_id, n)

    def send_ping(self, payload: bytes) -> None:
        if self._closed or len(payload) != 8:
            raise HttpMisuse("a PING takes 8 bytes, on a connection that is not closed")
        self._out.append(ping_frame(payload))
        self._pings += 1
        self._guard.restart()

    def send_goaway(self, code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        if not (self._closed or self._goaway_sent):
            self._goaway_sent = True
            self._out.append(goaway_frame(code, debug))

    def close(self, code: int = ErrorCode.NO_ERROR) -> list[Event]:
        events: list[Event] = []
        if not self._closed:
            self._end(ErrorCode.CANCEL, "the connection was closed on this side", events)
            if not self._goaway_sent:
                self._goaway_sent = True
                self._out.append(goaway_frame(code, b""))
        return events

    def _write_bodies(self) -> None:
        # The peer may answer each DATA frame with two WINDOW_UPDATE frames, which do not count as useless.
        self._guard.allow(2 * self._streams.bodies.write(self._out))

    def _end(self, code: int, reason: str, events: list[Event]) -> None:
        self._closed = True
        self._held.clear()
        if self._streams.next_id > self._unsent_from:
            self._out.clear()  # these requests are reported as not processed, so they must not be sent
        self._streams.drop_all(code, reason, events, unsent_from=self._unsent_from)

    # -- from the network ----------------------------------------------------------------------------------

    def receive_eof(self) -> list[Event]:
        events: list[Event] = []
        if not self._closed:
            self._fail(ErrorCode.NO_ERROR, "the peer closed the connection", events)
        return events

    def receive_data(self, data: bytes) -> list[Event]:
        if self._closed:
            return []
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return []
            data = bytes(self._held)
            self._held.clear()
        events: list[Event] = []
        try:
            self._receive_frames(data, events)
        except ConnectionFault as fault:
            self._fail(fault.code, fault.reason, events)
            self._out.append(goaway_frame(fault.code, fault.reason.encode()))
        return events

    def _fail(self, code: int, reason: str, events: list[Event]) -> None:
        self._end(code, reason, events)
        events.append(ConnectionFailed(code, reason))

    def _receive_frames(self, data: bytes, events: list[Event]) -> None:
        """Take all complete frames and keep the rest. The innermost branch is the hot path: DATA without flags."""
        table = self._streams
        streams = table.open
        max_frame_size = self._max_frame_size
        corked: dict[int, list[bytes]] = {}
        position = received = 0
        wanted = HEADER_SIZE
        end = len(data)
        while end - position >= HEADER_SIZE:
            word, flags, stream_id = unpack_header(data, position)
            length = word >> 8
            if length > max_frame_size:
                self._refuse_large_frame(data, length)
            start = position + HEADER_SIZE
            stop = start + length
            if stop > end:
                wanted += length
                break
            position = stop
            kind = word & 0xFF
            if kind == DATA:
                received += length
                if not flags and length and stream_id in streams and table.block is None:
                    stream = streams[stream_id]
                    total = stream.received + length
                    if total <= stream.limit:
                        stream.received = total
                        if stream_id in corked:
                            corked[stream_id].append(data[start:stop])
                        else:
                            corked[stream_id] = chunks = [data[start:stop]]
                            events.append(DataReceived(stream_id, chunks))
                        continue
                self._require_order(kind, flags)
                table.receive_data(flags, stream_id & MAX_31_BITS, data[start:stop], events, corked)
            else:
                self._require_order(kind, flags)
                self._receive_frame(kind, flags, stream_id & MAX_31_BITS, data[start:stop], events)
        if received:
            self._replenish(received)
        if position < end:
            self._held += data[position:]
            self._wanted = wanted

    def _replenish(self, received: int) -> None:
        """Count the DATA of one read against the connection's window, and keep that open in any case."""
        self._guard.restart()
        self._window -= received
        # RFC 9113 section 6.9.1: the sender "MUST NOT send a flow-controlled frame with a length that exceeds the
        # space available in either of the flow-control windows advertised by the receiver."
        if self._window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        if self._window < self._full_window >> 1:
            self._out.append(window_update_frame(0, self._full_window - self._window))
            self._window = self._full_window

    def _refuse_large_frame(self, data: bytes, length: int) -> None:
        # RFC 9113 section 4.2: "An endpoint MUST send an error code of FRAME_SIZE_ERROR if a frame exceeds the
        # size defined in SETTINGS_MAX_FRAME_SIZE". An HTTP/1 answer, read as a frame header, is such a frame.
        if not self._established and data.startswith(b"HTTP/"):
            raise ConnectionFault(ErrorCode.HTTP_1_1_REQUIRED, "the peer speaks HTTP/1 and not HTTP/2")
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")

    def _require_order(self, kind: int, flags: int) -> None:
        """Raise `ConnectionFault` if another kind of frame must come now."""
        # RFC 9113 section 4.3: "Field blocks MUST be transmitted as a contiguous sequence of frames, with no
        # interleaved frames of any other type or from any other stream."
        if self._streams.block is not None and kind != CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame within a field block (section 4.3)")
        # Section 3.4: the server's preface is "a potentially empty SETTINGS frame (Section 6.5) that MUST be the
        # first frame the server sends in the HTTP/2 connection."
        if not self._established and (kind != SETTINGS or flags & ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS (section 3.4)")

    def _receive_frame(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if kind == HEADERS:
            self._streams.receive_headers(flags, stream_id, payload, events)
        elif kind == CONTINUATION:
            self._streams.receive_continuation(flags, stream_id, payload, events)
        elif kind == WINDOW_UPDATE:
            self._receive_window_update(stream_id, payload, events)
        elif kind == RST_STREAM:
            require_size(payload, 4, "RST_STREAM")
            self._streams.receive_reset(stream_id, int.from_bytes(payload, "big"), events)
        elif kind == PRIORITY:
            self._receive_priority(stream_id, payload)
        elif kind == PUSH_PROMISE:
            # RFC 9113 section 6.5.2: a client that has set ENABLE_PUSH to 0 "MUST treat the receipt of a
            # PUSH_PROMISE frame as a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE although push is off (section 8.4)")
        elif kind > CONTINUATION:
            # Section 4.1: "Implementations MUST ignore and discard frames of unknown types."
            self._guard.count()
        elif stream_id:
            # Section 6.5: "SETTINGS frames always apply to a connection, never a single stream." PING and GOAWAY
            # do so too (sections 6.7 and 6.8).
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a connection's frame on h2 stream {stream_id}")
        elif kind == PING:
            self._receive_ping(flags, payload, events)
        elif kind == SETTINGS:
            self._receive_settings(flags, payload, events)
        else:
            assert kind == GOAWAY  # noqa: S101 - all other kinds are above
            self._receive_goaway(payload, events)

    def _receive_window_update(self, stream_id: int, payload: bytes, events: list[Event]) -> None:
        require_size(payload, 4, "WINDOW_UPDATE")
        self._guard.count()
        increment = int.from_bytes(payload, "big") & MAX_31_BITS
        if stream_id:
            self._streams.receive_window_update(stream_id, increment, events)
        # RFC 9113 section 6.9: an increment of 0 is a stream error; "errors on the connection flow-control window
        # MUST be treated as a connection error". Section 6.9.1: "A sender MUST NOT allow a flow-control window to
        # exceed 2^31-1 octets."
        elif not increment:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        elif not self._streams.bodies.window.widen(increment):
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE beyond 2^31-1")
        self._write_bodies()

    def _receive_priority(self, stream_id: int, payload: bytes) -> None:
        # RFC 9113 section 5.3.2 deprecates priorities: a frame must be well-formed (section 6.3), and is ignored.
        require_size(payload, 5, "PRIORITY")
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY without an h2 stream")
        self._guard.count()

    def _receive_ping(self, flags: int, payload: bytes, events: list[Event]) -> None:
        require_size(payload, 8, "PING")
        if flags & ACK and self._pings:
            self._pings -= 1
            events.append(PongReceived(payload))
            return
        self._guard.count()
        # RFC 9113 section 6.7: "Receivers of a PING frame that does not include an ACK flag MUST send a PING frame
        # with the ACK flag set in response, with an identical frame payload."
        if not flags & ACK:
            self._out.append(ping_frame(payload, ACK))

    def _receive_settings(self, flags: int, payload: bytes, events: list[Event]) -> None:
        self._guard.count()
        if flags & ACK:
            require_size(payload, 0, "SETTINGS acknowledgement")
            return
        smallest_table = self._peer.apply(payload)
        self._encoder.limit_table(smallest_table)
        self._encoder.limit_table(self._peer.header_table_size)
        bodies = self._streams.bodies
        bodies.max_frame_size = self._peer.max_frame_size
        bodies.change_initial_window(
            self._peer.initial_window, [stream.sending for stream in self._streams.open.values()]
        )
        self._established = True
        # RFC 9113 section 6.5.3: "Once all values have been processed, the recipient MUST immediately emit a
        # SETTINGS frame with the ACK flag set."
        self._out.append(SETTINGS_ACK)
        self._write_bodies()
        events.append(SettingsChanged(self._peer.max_concurrent_streams, self._peer.initial_window))

    def _receive_goaway(self, payload: bytes, events: list[Event]) -> None:
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a GOAWAY frame without its code")
        self._guard.count()
        self._goaway_received = True
        last_stream_id = int.from_bytes(payload[:4], "big") & MAX_31_BITS
        code = int.from_bytes(payload[4:8], "big")
        # This event comes first, so that the failed requests are not sent again on this connection.
        events.append(GoAwayReceived(last_stream_id, code, payload[8:]))
        self._streams.receive_goaway(last_stream_id, code, events)
