"""The HTTP/2 server side (RFC 9113): strict about what a client may send, lean in what it does per DATA frame."""

from __future__ import annotations

import struct
from collections import deque

import hpack

from holdfast_tools.simulate import http2_frames as h2
from holdfast_tools.simulate.exchange import Handles, Request, Wire
from holdfast_tools.simulate.faults import (
    ConnectionFault,
    Goaway,
    LowerSettings,
    NoPingAnswer,
    ResetStreams,
)
from holdfast_tools.simulate.http2_frames import Http2Error
from holdfast_tools.simulate.http2_headers import check_trailers, request_headers
from holdfast_tools.simulate.http2_stream import Http2Exchange
from holdfast_tools.simulate.pacer import Pacer
from holdfast_tools.simulate.request import error_body
from holdfast_tools.simulate.statistics import Counters

MAX_BODY = 64 * 1024 * 1024
MAX_HEADER_BLOCK = 64 * 1024
MAX_UNREAD_ANSWERS = 1000


class Http2:
    """One HTTP/2 connection; hands whole requests to the service and applies the faults that concern frames."""

    def __init__(
        self,
        wire: Wire,
        service: Handles,
        pacer: Pacer,
        counters: Counters,
        *,
        max_concurrent_streams: int,
        initial_window_size: int,
    ) -> None:
        self.wire = wire
        self.pacer = pacer
        self.send_window = h2.DEFAULT_WINDOW
        self.max_frame_size = h2.DEFAULT_FRAME_SIZE
        self._service = service
        self._counters = counters
        self._buffer = bytearray()
        self._has_preface = False
        self._has_settings = False
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BLOCK)
        self._streams: dict[int, Http2Exchange] = {}
        self._last_id = 0
        self._block: tuple[int, int, bytearray] | None = None
        self._peer_window = h2.DEFAULT_WINDOW
        self._max_streams = max_concurrent_streams
        self._window_size = h2.DEFAULT_WINDOW
        self._unacknowledged: deque[int | None] = deque()
        self._receive_window = h2.DEFAULT_WINDOW
        self._uncredited = 0
        self._last_accepted: int | None = None
        self._answers_ping = True
        self._unread_answers = 0
        self._is_over = False
        self._send_settings(
            {
                h2.MAX_CONCURRENT_STREAMS: max_concurrent_streams,
                h2.INITIAL_WINDOW_SIZE: initial_window_size,
                h2.MAX_HEADER_LIST_SIZE: MAX_HEADER_BLOCK,
            }
        )

    # -- from the connection ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        if self._is_over:
            return
        buffer = self._buffer
        buffer += data
        try:
            position = 0 if self._has_preface else self._read_preface()
            while self._has_preface and len(buffer) - position >= 9:
                high, low, kind, flags, stream_id = h2.unpack_header(buffer, position)
                end = position + 9 + (high << 8 | low)
                if end - position - 9 > h2.DEFAULT_FRAME_SIZE:
                    raise Http2Error(h2.FRAME_SIZE_ERROR, "the frame is larger than SETTINGS_MAX_FRAME_SIZE")
                if len(buffer) < end:
                    break
                payload = bytes(buffer[position + 9 : end])
                position = end
                try:
                    self._receive_frame(kind, flags, stream_id & 0x7FFF_FFFF, payload)
                except Http2Error as exc:
                    if not exc.stream_id:
                        raise
                    self._fail_stream(exc)
                if self._is_over:
                    return
            del buffer[:position]
        except Http2Error as exc:
            self.wire.write(h2.goaway_frame(self._last_id, exc.code, exc.reason.encode()))
            self._end()

    def resume_writing(self) -> None:
        for stream in list(self._streams.values()):
            stream.go_on()

    def connection_lost(self) -> None:
        self._is_over = True
        for stream in list(self._streams.values()):
            self._forget(stream)

    def apply(self, fault: ConnectionFault) -> bool:
        """Carry out a fault that is made of frames; return False if it is none."""
        if isinstance(fault, Goaway):
            self._go_away(fault)
        elif isinstance(fault, ResetStreams):
            streams = self._by_age()
            chosen = {"oldest": streams[:1], "newest": streams[-1:], "all": streams}[fault.which]
            for stream in chosen:
                self.stream_reset(stream, fault.error_code)
        elif isinstance(fault, LowerSettings):
            values = {
                h2.MAX_CONCURRENT_STREAMS: fault.max_concurrent_streams,
                h2.INITIAL_WINDOW_SIZE: fault.initial_window_size,
            }
            self._send_settings({key: value for key, value in values.items() if value is not None})
        elif isinstance(fault, NoPingAnswer):
            self._answers_ping = False
        else:
            return False
        return True

    # -- from the streams ------------------------------------------------------------------------------

    @property
    def stream_count(self) -> int:
        return len(self._streams) or 1

    def send_headers(self, stream_id: int, headers: list[tuple[str, str]], fragment: int | None) -> None:
        block = self._encoder.encode(headers)
        size = fragment or self.max_frame_size
        self.wire.write(h2.header_frames(stream_id, block, size, size))

    def stream_ended(self, stream: Http2Exchange) -> None:
        if not stream.is_request_complete:
            # The answer is complete before the request is: the rest of it is not wanted (section 8.1).
            self.wire.write(h2.rst_stream_frame(stream.stream_id, h2.NO_ERROR))
        self._forget(stream)

    def stream_reset(self, stream: Http2Exchange, code: int) -> None:
        self.wire.write(h2.rst_stream_frame(stream.stream_id, code))
        self._forget(stream)

    # -- frames ----------------------------------------------------------------------------------------

    def _read_preface(self) -> int:
        size = len(h2.PREFACE)
        if not h2.PREFACE.startswith(self._buffer[:size]):
            raise Http2Error(h2.PROTOCOL_ERROR, "this is not the HTTP/2 preface")
        self._has_preface = len(self._buffer) >= size
        return size if self._has_preface else 0

    def _receive_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and (kind != h2.CONTINUATION or stream_id != self._block[0]):
            raise Http2Error(h2.PROTOCOL_ERROR, "a header block was interrupted")
        if not self._has_settings:
            if kind != h2.SETTINGS or flags & h2.ACK:
                raise Http2Error(h2.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._has_settings = True
        if kind in _ON_STREAMS and not stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "a frame of a stream came on stream 0")
        if kind in _ON_CONNECTION and stream_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "a frame of the connection came on a stream")
        if kind == h2.DATA:
            self._receive_data(flags, stream_id, payload)
        elif kind == h2.WINDOW_UPDATE:
            self._receive_window_update(stream_id, payload)
        elif kind == h2.HEADERS:
            self._receive_headers(flags, stream_id, payload)
        elif kind == h2.CONTINUATION:
            self._receive_continuation(flags, payload)
        elif kind == h2.RST_STREAM:
            self._receive_rst_stream(stream_id, payload)
        elif kind == h2.SETTINGS:
            self._receive_settings(flags, payload)
        elif kind == h2.PING:
            self._receive_ping(flags, payload)
        elif kind == h2.PUSH_PROMISE:
            raise Http2Error(h2.PROTOCOL_ERROR, "a client cannot push")
        elif kind == h2.PRIORITY and len(payload) != 5:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "PRIORITY is 5 bytes long", stream_id)
        elif kind == h2.GOAWAY:
            if len(payload) < 8:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "GOAWAY is 8 bytes long at least")
            self._last_accepted = self._last_id
            self._close_if_done()

    def _receive_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        fragment = h2.unpadded(payload, flags)
        if flags & h2.HAS_PRIORITY:
            if len(fragment) < 5:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "HEADERS is too short for its priority")
            fragment = fragment[5:]
        if flags & h2.END_HEADERS:
            self._headers_complete(stream_id, flags & h2.END_STREAM, fragment)
        else:
            self._block = (stream_id, flags & h2.END_STREAM, bytearray(fragment))

    def _receive_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise Http2Error(h2.PROTOCOL_ERROR, "CONTINUATION continues nothing")
        stream_id, ends, block = self._block
        block += payload
        if len(block) > MAX_HEADER_BLOCK:
            raise Http2Error(h2.ENHANCE_YOUR_CALM, "the header block is too large")
        if flags & h2.END_HEADERS:
            self._block = None
            self._headers_complete(stream_id, ends, bytes(block))

    def _headers_complete(self, stream_id: int, ends: int, block: bytes) -> None:
        try:
            fields = [(str(name), str(value)) for name, value in self._decoder.decode(block)]
        except (hpack.HPACKError, UnicodeDecodeError) as exc:
            raise Http2Error(h2.COMPRESSION_ERROR, f"bad header block: {exc}") from exc
        stream = self._streams.get(stream_id)
        if stream is not None:
            if stream.is_request_complete or not ends:
                raise Http2Error(h2.PROTOCOL_ERROR, "HEADERS neither begin nor end a request", stream_id)
            check_trailers(stream_id, fields)
            self._request_complete(stream)
            return
        if stream_id <= self._last_id:
            return  # trailers of a stream that we have closed may still be on their way
        if not stream_id & 1:
            raise Http2Error(h2.PROTOCOL_ERROR, "a client's stream has an odd id")
        self._last_id = stream_id
        if self._last_accepted is not None:
            return  # section 6.8: after GOAWAY newer streams are ignored
        if len(self._streams) >= self._max_streams:
            raise Http2Error(h2.REFUSED_STREAM, "too many streams", stream_id)
        headers = request_headers(stream_id, fields)
        stream = Http2Exchange(self, stream_id, headers, (self._window_size, self._peer_window))
        self._streams[stream_id] = stream
        self._counters.open_streams += 1
        self._counters.changed()
        if ends:
            self._request_complete(stream)

    def _receive_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        if stream_id > self._last_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "DATA on an idle stream")
        self._receive_window -= size
        if self._receive_window < 0:
            raise Http2Error(h2.FLOW_CONTROL_ERROR, "more than the connection's window")
        self._uncredited += size
        if self._uncredited > h2.DEFAULT_WINDOW // 2:
            self.wire.write(h2.window_update_frame(0, self._uncredited))
            self._receive_window += self._uncredited
            self._uncredited = 0
        data = h2.unpadded(payload, flags)
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # we have closed it; what was on its way is not wanted
        if stream.is_request_complete:
            raise Http2Error(h2.STREAM_CLOSED, "DATA after END_STREAM", stream_id)
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise Http2Error(h2.FLOW_CONTROL_ERROR, "more than the stream's window", stream_id)
        stream.body += data
        if len(stream.body) > MAX_BODY:
            stream.body.clear()
            stream.reply(413, error_body("The request body is too large."))
        elif flags & h2.END_STREAM:
            self._request_complete(stream)
        else:
            stream.uncredited += size
            if stream.uncredited > self._window_size // 2:
                self.wire.write(h2.window_update_frame(stream_id, stream.uncredited))
                stream.receive_window += stream.uncredited
                stream.uncredited = 0

    def _request_complete(self, stream: Http2Exchange) -> None:
        stream.is_request_complete = True
        headers = stream.headers
        length = headers.get("content-length")
        if length is not None and length != str(len(stream.body)):
            raise Http2Error(h2.PROTOCOL_ERROR, "content-length is not the length", stream.stream_id)
        body = bytes(stream.body)
        stream.body.clear()
        request = Request(headers[":method"], headers[":path"], headers, body, "http2")
        self.wire.request_began()
        if not stream.is_closed:  # a fault may have taken it
            self._service.handle(request, stream)

    def _receive_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "WINDOW_UPDATE is 4 bytes long")
        increment = int.from_bytes(payload, "big") & h2.MAX_WINDOW
        if stream_id > self._last_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        if not increment:
            raise Http2Error(h2.PROTOCOL_ERROR, "WINDOW_UPDATE by 0", stream_id)
        if stream_id:
            stream = self._streams.get(stream_id)
            if stream is not None:
                if not stream.widen(increment):
                    raise Http2Error(h2.FLOW_CONTROL_ERROR, "the stream's window is too large", stream_id)
                stream.go_on()
            return
        was_exhausted = self.send_window <= 0
        self.send_window += increment
        if self.send_window > h2.MAX_WINDOW:
            raise Http2Error(h2.FLOW_CONTROL_ERROR, "the connection's window is too large")
        if was_exhausted:
            self._share_window()

    def _share_window(self) -> None:
        # Whoever comes first this time comes last the next time, or the first would take every increment whole.
        streams = list(self._streams.values())
        for stream in streams:
            stream.go_on()
        if streams and not streams[0].is_closed:
            self._streams[streams[0].stream_id] = self._streams.pop(streams[0].stream_id)

    def _receive_rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "RST_STREAM is 4 bytes long")
        if stream_id > self._last_id:
            raise Http2Error(h2.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._forget(stream)

    def _receive_settings(self, flags: int, payload: bytes) -> None:
        if flags & h2.ACK:
            if payload:
                raise Http2Error(h2.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS is empty")
            self._settings_acknowledged()
            return
        if len(payload) % 6:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "SETTINGS come in 6 bytes each")
        for key, value in struct.iter_unpack(">HL", payload):
            self._apply_setting(key, value)
        self._answer_control(h2.frame_header(0, h2.SETTINGS, h2.ACK, 0))

    def _apply_setting(self, key: int, value: int) -> None:
        if key == h2.HEADER_TABLE_SIZE:
            self._encoder.header_table_size = min(value, 4096)
        elif key == h2.ENABLE_PUSH and value > 1:
            raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is 0 or 1")
        elif key == h2.MAX_FRAME_SIZE:
            if not h2.DEFAULT_FRAME_SIZE <= value < 1 << 24:
                raise Http2Error(h2.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
            self.max_frame_size = value
        elif key == h2.INITIAL_WINDOW_SIZE:
            if value > h2.MAX_WINDOW:
                raise Http2Error(h2.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
            difference, self._peer_window = value - self._peer_window, value
            for stream in list(self._streams.values()):
                if not stream.widen(difference):
                    raise Http2Error(h2.FLOW_CONTROL_ERROR, "a stream's window is too large")
                stream.go_on()

    def _receive_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise Http2Error(h2.FRAME_SIZE_ERROR, "PING is 8 bytes long")
        if self._answers_ping and not flags & h2.ACK:
            self._answer_control(h2.frame_header(8, h2.PING, h2.ACK, 0) + payload)

    def _answer_control(self, frame: bytes) -> None:
        # A client that asks without reading the answers would make us keep them all (RFC 9113 section 10.5).
        self._unread_answers = self._unread_answers + 1 if self.wire.is_paused else 0
        if self._unread_answers > MAX_UNREAD_ANSWERS:
            raise Http2Error(h2.ENHANCE_YOUR_CALM, "too many PING and SETTINGS, and nothing is read")
        self.wire.write(frame)

    # -- what we send ----------------------------------------------------------------------------------

    def _send_settings(self, values: dict[int, int]) -> None:
        self.wire.write(h2.settings_frame(values))
        self._unacknowledged.append(values.get(h2.INITIAL_WINDOW_SIZE))
        # Refusing a stream is always allowed, so a lower limit holds before it is acknowledged.
        self._max_streams = values.get(h2.MAX_CONCURRENT_STREAMS, self._max_streams)

    def _settings_acknowledged(self) -> None:
        if not self._unacknowledged:
            raise Http2Error(h2.PROTOCOL_ERROR, "an acknowledgement of no SETTINGS")
        size = self._unacknowledged.popleft()
        if size is None:
            return
        difference, self._window_size = size - self._window_size, size
        for stream in self._streams.values():
            stream.receive_window += difference

    def _go_away(self, fault: Goaway) -> None:
        streams = self._by_age()
        dropped = streams[len(streams) - min(fault.unprocessed, len(streams)) :]
        self._last_accepted = max(0, dropped[0].stream_id - 2) if dropped else self._last_id
        self.wire.write(h2.goaway_frame(self._last_accepted, fault.error_code))
        for stream in dropped:
            self._forget(stream)
        if fault.close:
            self._end()
        else:
            self._close_if_done()

    def _by_age(self) -> list[Http2Exchange]:
        return [self._streams[stream_id] for stream_id in sorted(self._streams)]

    def _fail_stream(self, error: Http2Error) -> None:
        self.wire.write(h2.rst_stream_frame(error.stream_id, error.code))
        stream = self._streams.get(error.stream_id)
        if stream is not None:
            self._forget(stream)

    def _forget(self, stream: Http2Exchange) -> None:
        if self._streams.pop(stream.stream_id, None) is not None:
            self._counters.open_streams -= 1
            self._counters.changed()
        stream.close()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._last_accepted is not None and not self._streams:
            self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.wire.close()
            self.connection_lost()


_ON_STREAMS = {h2.DATA, h2.HEADERS, h2.PRIORITY, h2.RST_STREAM, h2.CONTINUATION}
_ON_CONNECTION = {h2.SETTINGS, h2.PING, h2.GOAWAY}
