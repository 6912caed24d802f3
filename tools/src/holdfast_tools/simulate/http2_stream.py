"""One HTTP/2 request and its answer, within both flow-control windows (RFC 9113 section 5.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from holdfast_tools.simulate.exchange import BATCH_BYTES, Exchange, Headers, Wire
from holdfast_tools.simulate.http2_frames import DATA, END_STREAM, MAX_WINDOW, frame_header
from holdfast_tools.simulate.pacer import Pacer, Trickle


class Http2Side(Protocol):
    """What a stream needs of its connection."""

    wire: Wire
    pacer: Pacer
    send_window: int
    max_frame_size: int

    @property
    def stream_count(self) -> int:
        """How many streams are open; at least 1."""

    def send_headers(self, stream_id: int, headers: list[tuple[str, str]], fragment: int | None) -> None: ...
    def stream_ended(self, stream: Http2Exchange) -> None: ...
    def stream_reset(self, stream: Http2Exchange, code: int) -> None: ...


class Http2Exchange(Exchange):
    """The server's side of one stream. What the windows do not take yet is kept in order."""

    __slots__ = (
        "_drip_gap_ms",
        "_fragment",
        "_http2",
        "_kept",
        "_last_act",
        "_trickle",
        "body",
        "headers",
        "is_closed",
        "is_request_complete",
        "receive_window",
        "send_window",
        "stream_id",
        "uncredited",
    )

    def __init__(
        self, http2: Http2Side, stream_id: int, headers: dict[str, str], windows: tuple[int, int]
    ) -> None:
        super().__init__(http2.wire)
        self._http2 = http2
        self.stream_id = stream_id
        self.headers = headers
        self.body = bytearray()
        self.is_request_complete = False
        self.is_closed = False
        self.receive_window, self.send_window = windows
        self.uncredited = 0
        self._kept: deque[memoryview] = deque()
        self._last_act: Callable[[], None] | None = None
        self._fragment: int | None = None
        self._drip_gap_ms: float | None = None
        self._trickle: Trickle | None = None

    @property
    def room(self) -> int:
        if self._kept or self.wire.is_paused or not (self._trickle is None or self._trickle.is_empty):
            return 0
        http2 = self._http2
        room = http2.send_window
        if room < BATCH_BYTES * http2.stream_count:
            # The connection's window is scarce: a fair share of it, but not too little to be worth a frame.
            room = max(room // http2.stream_count, min(room, 1024))
        room = min(room, self.send_window)
        return room if room > 0 else 0

    # -- from the answer -------------------------------------------------------------------------------

    def send_head(self, status: int, headers: Headers, length: int | None = None) -> None:
        fields = [(":status", str(status)), *headers]
        if length is not None:
            fields.append(("content-length", str(length)))
        self._http2.send_headers(self.stream_id, fields, self._fragment)

    def send_body(self, data: bytes) -> None:
        if self._drip_gap_ms is None:
            self._send(data)
            return
        if self._trickle is None:
            self._trickle = Trickle(self._http2.pacer, self._send, self.go_on)
        self._trickle.feed(data, self._drip_gap_ms)

    def end(self) -> None:
        self._last_act = self._end_stream
        self.go_on()

    def cut(self) -> None:
        # Closing the connection would hit every other stream of it: that is a fault of the connection.
        self.end()

    def reset(self, error_code: int) -> None:
        self._last_act = lambda: self._reset_stream(error_code)
        self.go_on()

    def slow_head(self, ms: float) -> float:
        # A header block may not be interleaved with other frames (RFC 9113 section 4.3), so that dripping it would
        # stop the whole connection. It comes late and in pieces instead.
        self._fragment = 1
        return ms

    def drip(self, gap_ms: float) -> None:
        self._drip_gap_ms = gap_ms

    # -- from the connection ---------------------------------------------------------------------------

    def go_on(self) -> None:
        """There may be room: send what was kept, then let the answer go on, or end."""
        if self.is_closed:
            return
        kept, self._kept = self._kept, deque()
        while kept:
            self._send(kept.popleft())
        if self._kept or not (self._trickle is None or self._trickle.is_empty):
            return
        if self._last_act is not None:
            self._last_act()
        elif self.answering is not None and self.room:
            self.answering.resume()

    def close(self) -> None:
        """The stream is over, by whatever side; an answer that still ran is cancelled."""
        self.is_closed = True
        self._kept.clear()
        if self._trickle is not None:
            self._trickle.fail()
        answering, self.answering = self.answering, None
        if answering is not None:
            answering.cancel()

    def widen(self, increment: int) -> bool:
        """Take a WINDOW_UPDATE or a new initial size; return False if the window grows too large."""
        self.send_window += increment
        return self.send_window <= MAX_WINDOW

    def _send(self, data: bytes | memoryview) -> None:
        if self.is_closed or not data:
            return
        http2 = self._http2
        size = len(data)
        room = min(self.send_window, http2.send_window)
        if self._kept or room < size:
            self._keep(memoryview(data), 0 if self._kept else room)
            return
        self.send_window -= size
        http2.send_window -= size
        write, frame_size = self.wire.write, http2.max_frame_size
        if size <= frame_size:
            if size < 1024:  # a copy is cheaper than a second piece to join
                write(frame_header(size, DATA, 0, self.stream_id) + data)
            else:
                write(frame_header(size, DATA, 0, self.stream_id))
                write(data)
            return
        view = memoryview(data)
        for start in range(0, size, frame_size):
            piece = view[start : start + frame_size]
            write(frame_header(len(piece), DATA, 0, self.stream_id))
            write(piece)

    def _keep(self, data: memoryview, room: int) -> None:
        if room > 0:
            self._send(data[:room])
            data = data[room:]
        self._kept.append(data)

    def _reset_stream(self, error_code: int) -> None:
        self.tell_done()
        self._http2.stream_reset(self, error_code)

    def _end_stream(self) -> None:
        self.wire.write(frame_header(0, DATA, END_STREAM, self.stream_id))
        self.tell_done()
        self._http2.stream_ended(self)
