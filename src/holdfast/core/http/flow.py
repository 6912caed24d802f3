"""The limits of an HTTP/2 connection in both directions (RFC 9113 sections 5.2, 6.9 and 10.5).

Request bodies wait for the peer's windows; the peer's frames that carry nothing useful are counted and bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from holdfast.core.http.connection import ErrorCode
from holdfast.core.http.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_STREAM,
    MAX_31_BITS,
    MIN_FRAME_SIZE,
    ConnectionFault,
    frame_header,
)

#: How many useless frames (PING, SETTINGS, empty DATA, frames of ended streams, ...) the peer may send in a row.
MAX_USELESS_FRAMES: Final = 1000
#: Larger DATA frames would save nothing more, and keep other h2 streams waiting.
_MAX_SENT_FRAME: Final = 65_536


class FloodGuard:
    """Bounds the frames that cost work and carry nothing useful (section 10.5).

    Bytes of a response, and our own requests and PINGs, restart the count. Since keep-alive PINGs are sent at
    intervals, this is a rate limit.
    """

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def count(self) -> None:
        self._count += 1
        if self._count > MAX_USELESS_FRAMES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that bring nothing")

    def allow(self, frames: int) -> None:
        """Do not count so many of the frames to come."""
        self._count -= frames

    def restart(self) -> None:
        if self._count > 0:
            self._count = 0


class SendWindow:
    """How many more bytes of one request the peer takes, and the rest of the body, which waits for that."""

    __slots__ = ("body", "size", "stream_id")

    def __init__(self, stream_id: int, size: int) -> None:
        self.stream_id = stream_id
        self.size = size
        self.body: memoryview | None = None

    def widen(self, increment: int) -> bool:
        """Add an increment, perhaps a negative one; False if the window is now too large (section 6.9.1)."""
        self.size += increment
        return self.size <= MAX_31_BITS


class BodySender:
    """The request bodies that wait for the peer's windows; they share the connection's, one frame each in turn."""

    __slots__ = ("_waiting", "initial_window", "max_frame_size", "window")

    def __init__(self) -> None:
        self.window = SendWindow(0, DEFAULT_WINDOW)  # the connection's
        self.initial_window = DEFAULT_WINDOW
        self.max_frame_size = MIN_FRAME_SIZE
        self._waiting: dict[int, SendWindow] = {}

    def open(self, stream_id: int) -> SendWindow:
        """Return the window of a new h2 stream."""
        return SendWindow(stream_id, self.initial_window)

    def add(self, window: SendWindow, body: bytes) -> None:
        window.body = memoryview(body)
        self._waiting[window.stream_id] = window

    def discard(self, window: SendWindow) -> None:
        if window.body is not None:
            window.body = None
            del self._waiting[window.stream_id]

    def write(self, out: list[bytes | memoryview]) -> int:
        """Write all that the windows allow, one frame of each body in turn; return the number of frames."""
        frames = 0
        progress = True
        while progress and self._waiting:
            progress = False
            for window in list(self._waiting.values()):
                if self._write_frame(window, out):
                    frames += 1
                    progress = True
        return frames

    def _write_frame(self, window: SendWindow, out: list[bytes | memoryview]) -> bool:
        body = window.body
        assert body is not None  # noqa: S101 - what waits has a body
        size = min(len(body), window.size, self.window.size, self.max_frame_size, _MAX_SENT_FRAME)
        if size <= 0:
            return False
        window.size -= size
        self.window.size -= size
        if size == len(body):
            out += (frame_header(DATA, END_STREAM, window.stream_id, size), body)
            self.discard(window)
        else:
            out += (frame_header(DATA, 0, window.stream_id, size), body[:size])
            window.body = body[size:]
        return True

    def change_initial_window(self, size: int, windows: Iterable[SendWindow]) -> None:
        """Apply a new INITIAL_WINDOW_SIZE. An open window may become negative by it."""
        # Section 6.9.2: "a receiver MUST adjust the size of all stream flow-control windows that it maintains by
        # the difference between the new value and the old value."
        change = size - self.initial_window
        self.initial_window = size
        for window in windows:
            if not window.widen(change):
                raise ConnectionFault(
                    ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE moves a window beyond 2^31-1"
                )
