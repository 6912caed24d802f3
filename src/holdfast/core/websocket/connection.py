"""The server's side of a WebSocket connection after the opening handshake (RFC 6455), without I/O.

It turns bytes from the peer into events, and queues the answers that the RFC demands (Pong, Close) for
`data_to_send()`. The shell decides when to ping, how long to wait for the peer's Close frame, and when to cut the
socket. There are no extensions, since `handshake` accepts none.
"""

from __future__ import annotations

from codecs import utf_8_decode
from enum import Enum
from typing import Final

from holdfast.core.websocket.events import (
    BinaryMessage,
    CloseReceived,
    ConnectionFailed,
    Event,
    PingReceived,
    PongReceived,
    TextMessage,
)
from holdfast.core.websocket.frames import (
    CLOSE_ABNORMAL,
    CLOSE_INVALID_TEXT,
    CLOSE_NORMAL,
    CLOSE_PROTOCOL_ERROR,
    CLOSE_TOO_BIG,
    MAX_CONTROL_PAYLOAD,
    OP_BINARY,
    OP_CLOSE,
    OP_CONTINUATION,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    PeerFault,
    check_length,
    frame_header,
    is_sendable_close_code,
    parse_close,
    unmask,
)

DEFAULT_MAX_MESSAGE: Final = 1 << 20

#: How many Pongs, of at most 127 bytes each, wait for `data_to_send()`; a further one then replaces the newest.
#: RFC 6455 section 5.5.3: an endpoint that has not answered earlier Pings yet "MAY elect to send a Pong frame for
#: only the most recently processed Ping frame."
MAX_QUEUED_PONGS: Final = 32

_OPCODES: Final = frozenset({OP_CONTINUATION, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG})
_INVALID_TEXT: Final = "text message is not valid UTF-8"
#: A fragment of fewer bytes than this is counted as useless: no client has a reason to cut a message so small.
SMALL_FRAGMENT: Final = 16


class WebSocketMisuse(RuntimeError):
    """The caller wants to send what RFC 6455 forbids, such as a message after the Close frame."""


class _State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


# A global name is found faster than an attribute of an enum.
_OPEN, _CLOSING, _CLOSED = _State.OPEN, _State.CLOSING, _State.CLOSED

# The states of a connection, and what moves it:
#
#   state   | input      | output                             | moved by                                 | to
#   --------+------------+------------------------------------+------------------------------------------+--------
#   OPEN    | all frames | all frames                         | send_close()                             | CLOSING
#   OPEN    |            |                                    | the peer's Close or fault, receive_eof() | CLOSED
#   CLOSING | all frames | Pongs; our Close is queued or sent | the same                                 | CLOSED
#   CLOSED  | ignored    | all until the queued Close is sent | nothing                                  |
#
# Invariants:
# - `_close_code` is set exactly in CLOSED, and `_message` and `_buffer` are empty there.
# - A Close frame is queued at most once: on the way out of OPEN, and never for the end of the peer's bytes.
# - `_is_send_over` is true from send_close() or receive_eof() on, and once `data_to_send` has returned the Close
#   frame that answers the peer's. The state does not say it: messages may still go out before that answer.
# - `is_at_boundary` says that the state is not CLOSED, no message has begun, nothing is buffered, and messages
#   are not read past. It is kept because the fast path of `receive_data` asks for nothing else.
# - `_buffer` from `_start` on has not been read yet. `has_unread` says that there may be a whole frame in it, and
#   then `_remaining` is 0. Else it is part of one, and `_start` is 0.


class WebSocketConnection:
    """A WebSocket connection on the server, from the end of the opening handshake on.

    `max_message` bounds a message's payload in bytes, `max_frame` that of one data frame (None: `max_message`). A
    frame that exceeds them is refused with 1009 as soon as its header has come. A peer can make this object hold
    `max_message` bytes, one control frame, `MAX_QUEUED_PONGS` Pongs, and what the shell has passed on and not had
    read yet. For the bound of the Pongs to hold, a shell must not call `data_to_send()` while its socket takes no
    more bytes.

    A shell that shares its time between peers passes `max_frames`, and goes on with `receive_data(b"")` while
    there is something that `has_unread`.

    Each connection reports exactly one of `CloseReceived` and `ConnectionFailed`, as its last event, provided that
    the shell calls `receive_eof()` when the socket ends.
    """

    __slots__ = (
        "_buffer",
        "_checked",
        "_close_code",
        "_close_frame",
        "_is_discarding",
        "_is_last_frame",
        "_is_send_over",
        "_is_text",
        "_mask",
        "_max_frame",
        "_max_message",
        "_message",
        "_output",
        "_pongs",
        "_remaining",
        "_start",
        "_state",
        "has_unread",
        "is_at_boundary",
        "messages_begun",
        "pings_sent",
        "useless",
    )

    def __init__(self, *, max_message: int = DEFAULT_MAX_MESSAGE, max_frame: int | None = None) -> None:
        self._max_message = max_message
        self._max_frame = max_message if max_frame is None else min(max_frame, max_message)
        self._state: _State = _OPEN
        #: Whether nothing waits for its rest, or to be read, and the peer may go on.
        self.is_at_boundary = True
        self._is_discarding = False
        self._buffer = b""  # an incomplete frame header or control frame, or what is unread
        self._start = 0
        #: Whether `max_frames` has kept bytes from being read.
        self.has_unread = False
        self._message: bytearray | None = None  # the payload so far of the message in progress, unmasked
        self._is_text = False  # whether that message is text
        self._checked = 0  # how many bytes of `_message` are known to be whole UTF-8 characters
        self._is_last_frame = False  # FIN of the data frame in progress
        self._remaining = 0  # bytes of its payload still to come
        self._mask = b""  # its masking key, rotated so that it starts with the key of the next byte
        self._pongs: list[bytes] | None = None
        self._output: list[bytes] | None = None
        self._close_frame: bytes | None = None  # apart from `_output`, because it goes out last
        self._is_send_over = False
        self._close_code: int | None = None
        #: How many frames have come that serve nothing: Pings, Pongs that answer no Ping, and fragments of fewer
        #: than `SMALL_FRAGMENT` bytes. The shell may set it back.
        self.useless = 0
        # Pings whose Pongs may still come.
        self.pings_sent = 0
        #: Counts messages, and control frames between them, so that a shell can tell whether one goes on or
        #: another has begun. Those on the fast path are whole, and not counted.
        self.messages_begun = 0

    @property
    def bytes_held(self) -> int:
        """How many bytes of frames and messages wait for their rest, or to be read."""
        message = self._message
        return len(self._buffer) - self._start + (0 if message is None else len(message))

    @property
    def message_size(self) -> int:
        """How many bytes have come of a message whose rest is missing; 0 where it is not to be understood."""
        message = self._message
        return 0 if message is None or self._state is not _OPEN else len(message)

    @property
    def is_in_message(self) -> bool:
        """Whether the rest of a frame or message has yet to come."""
        return self._message is not None or (bool(self._buffer) and not self.has_unread)

    @property
    def is_closing(self) -> bool:
        """True once either side has sent a Close frame, or the connection failed or ended."""
        return self._state is not _OPEN

    @property
    def is_closed(self) -> bool:
        """True once the peer's Close frame has come, or the connection failed or ended.

        The shell then writes `data_to_send()` and shuts the socket down. Further input is ignored.
        """
        return self._state is _CLOSED

    @property
    def close_code(self) -> int | None:
        """The code of the peer's Close frame (1005 if it had none) or of the failure; None before that."""
        return self._close_code

    def receive_data(self, data: bytes, max_frames: int | None = None) -> list[Event]:
        """Take bytes from the peer and return the events that they complete, in order.

        There are at most as many events as bytes, or `max_frames`; what is left unread then comes first next time.
        The peer's faults are events, not exceptions.
        """
        # Fast path: exactly one whole, unfragmented, masked text frame, with a length field of 7 or 16 bits.
        if self.is_at_boundary:
            size = len(data)
            start = 0
            if 5 < size < 132:
                if data[0] == 0x81 and data[1] == size + 122:  # 0x80 | size - 6
                    start = 6
            elif 133 < size < 65544 and data[0] == 0x81 and data[1] == 0xFE and data[2] << 8 | data[3] == size - 8:
                start = 8
            if start and size - start <= self._max_frame:
                try:
                    return [TextMessage(unmask(data[start:], data[start - 4 : start]).decode())]
                except UnicodeDecodeError:
                    return [self._fail(CLOSE_INVALID_TEXT, _INVALID_TEXT)]
        return self._receive(data, max_frames)

    def discard_messages(self) -> None:
        """Read past data frames from now on, and keep nothing of them: the connection ends for want of memory."""
        self._is_discarding = True
        self.is_at_boundary = False
        if self._message is not None:
            self._message.clear()

    def receive_eof(self) -> list[Event]:
        """Take the end of the peer's bytes. Without a Close frame before it, that is a failure (1006)."""
        if self._state is _CLOSED:
            return []
        # RFC 6455 section 7.4.1: 1006 "MUST NOT be set as a status code in a Close control frame by an endpoint."
        self._is_send_over = True
        self._end_input(CLOSE_ABNORMAL)
        return [ConnectionFailed(CLOSE_ABNORMAL, "connection ended without a Close frame")]

    def data_to_send(self) -> bytes:
        """Return the bytes to write to the peer now, each once: Pongs, then `send_*`, then a Close frame.

        A shell handles the events of one `receive_data()`, answers them by `send_*`, and then writes these bytes.
        So it answers a Ping before the message that came after it, and every message before the peer's Close.
        """
        if not (self._pongs or self._output or self._close_frame):
            return b""
        parts = [*(self._pongs or ()), *(self._output or ())]
        if self._close_frame is not None:
            parts.append(self._close_frame)
            self._is_send_over = True
        self._pongs = self._output = self._close_frame = None
        return b"".join(parts)

    def send_text(self, payload: bytes) -> None:
        """Queue a text message. `payload` must be valid UTF-8; that is not checked here.

        While the Close frame that answers the peer's is queued, messages may still be sent, and go out before it.
        After `send_close()`, `receive_eof()`, or once `data_to_send()` has returned a Close frame, the `send_*`
        methods raise `WebSocketMisuse`.
        """
        self._queue(OP_TEXT, payload)

    def send_binary(self, payload: bytes) -> None:
        """Queue a binary message; see `send_text`."""
        self._queue(OP_BINARY, payload)

    def send_ping(self, payload: bytes = b"") -> None:
        """Queue a Ping of at most 125 bytes; see `send_text`."""
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise WebSocketMisuse(f"a Ping carries at most {MAX_CONTROL_PAYLOAD} bytes, not {len(payload)}")
        self._queue(OP_PING, payload)
        self.pings_sent += 1

    def send_close(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """Queue our Close frame. Messages are still received, and Pings answered, until the peer's Close frame.

        Raises `WebSocketMisuse` if the connection `is_closing`, for a code that must not be sent, and for a reason
        of more than 123 bytes in UTF-8.
        """
        if self._state is not _OPEN:
            raise WebSocketMisuse("the connection is closing already")
        if not is_sendable_close_code(code):
            raise WebSocketMisuse(f"close code {code} must not be sent")
        payload = code.to_bytes(2, "big") + reason.encode()
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise WebSocketMisuse("a close reason has at most 123 bytes")
        self._queue_close(payload)
        self._state = _CLOSING
        self._is_send_over = True

    def _queue(self, opcode: int, payload: bytes) -> None:
        # RFC 6455 section 5.5.1: "The application MUST NOT send any more data frames after sending a Close frame."
        if self._is_send_over:
            raise WebSocketMisuse("nothing may be sent after the Close frame")
        if self._output is None:
            self._output = []
        self._output += (frame_header(opcode, len(payload)), payload)

    def _queue_close(self, payload: bytes) -> None:
        self._close_frame = frame_header(OP_CLOSE, len(payload)) + payload

    def _fail(self, code: int, reason: str) -> ConnectionFailed:
        # RFC 6455 section 7.1.7: an endpoint that fails the connection "SHOULD send a Close frame with an
        # appropriate status code" and "MUST NOT continue to attempt to process data" from the other one.
        if self._state is _OPEN:
            self._queue_close(code.to_bytes(2, "big") + reason.encode())
        self._end_input(code)
        return ConnectionFailed(code, reason)

    def _end_input(self, code: int) -> None:
        self._state = _CLOSED
        self._close_code = code
        self.is_at_boundary = self.has_unread = False
        self._buffer = b""
        self._start = 0
        self._message = None

    def _receive(self, data: bytes, max_frames: int | None) -> list[Event]:
        events: list[Event] = []
        # RFC 6455 section 1.4: "after receiving a control frame indicating the connection should be closed, a peer
        # discards any further data received."
        if self._state is _CLOSED:
            return events
        position = 0
        if self._buffer:
            if data:
                data = self._buffer[self._start :] + data
            else:  # going on copies nothing
                data, position = self._buffer, self._start
            self._buffer = b""
            self._start = 0
        self.has_unread = False
        frames = 0
        try:
            if self._message is not None and self._remaining:
                position = self._receive_payload(self._message, data, position, events)
            while position < len(data) and not self.is_closed:
                if frames == max_frames:
                    self._buffer, self._start, self.has_unread = data, position, True
                    break
                end = self._receive_frame(data, position, events)
                if end == position:
                    self._buffer = data[position:]
                    break
                position = end
                frames += 1
        except PeerFault as fault:
            events.append(self._fail(fault.code, fault.reason))
        self.is_at_boundary = not (
            self._message is not None or self._buffer or self.is_closed or self._is_discarding
        )
        return events

    def _receive_frame(self, data: bytes, start: int, events: list[Event]) -> int:
        """Take one frame, or what has come of a data frame, and return the position after it.

        Returns `start` if the header, or a control frame, is not complete yet.
        """
        size = len(data)
        if size - start < 2:
            return start
        first = data[start]
        length = data[start + 1] & 0x7F
        self._check_start(first, data[start + 1])
        if first & 0x08:
            end = start + 6 + length
            if size < end:
                return start
            if self._message is None:
                self.messages_begun += 1
            self._receive_control(first & 0x0F, unmask(data[start + 6 : end], data[start + 2 : start + 6]), events)
            return end
        key = start + 2
        if length > 125:
            key += 2 if length == 126 else 8
            if size < key:
                return start
            length = int.from_bytes(data[start + 2 : key], "big")
            check_length(length, key - start - 2)
        self._check_size(length)
        if size < key + 4:
            return start
        message = self._message
        if message is None:
            message = self._message = bytearray()
            self._is_text = first & 0x0F == OP_TEXT
            self._checked = 0
            self.messages_begun += 1
        if length < SMALL_FRAGMENT and first & 0x8F not in (0x80 | OP_TEXT, 0x80 | OP_BINARY):
            self.useless += 1
        self._is_last_frame = first >= 0x80
        self._remaining = length
        self._mask = data[key : key + 4]
        return self._receive_payload(message, data, key + 4, events)

    def _check_start(self, first: int, second: int) -> None:
        """Check everything that the first two bytes of a frame say."""
        opcode = first & 0x0F
        # RFC 6455 section 5.2: "If a nonzero value is received and none of the negotiated extensions defines the
        # meaning of such a nonzero value, the receiving endpoint MUST _Fail the WebSocket Connection_."
        if first & 0x70:
            raise PeerFault(CLOSE_PROTOCOL_ERROR, "reserved bits are set")
        # Section 5.2: "If an unknown opcode is received, the receiving endpoint MUST _Fail the WebSocket
        # Connection_."
        if opcode not in _OPCODES:
            raise PeerFault(CLOSE_PROTOCOL_ERROR, f"opcode {opcode:#x} is reserved")
        # Section 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
        if second < 0x80:
            raise PeerFault(CLOSE_PROTOCOL_ERROR, "frame from the client is not masked")
        if opcode & 0x08:
            # Section 5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be
            # fragmented."
            if first < 0x80:
                raise PeerFault(CLOSE_PROTOCOL_ERROR, "control frame is fragmented")
            if second & 0x7F > MAX_CONTROL_PAYLOAD:
                raise PeerFault(CLOSE_PROTOCOL_ERROR, "control frame is longer than 125 bytes")
        elif opcode == OP_CONTINUATION:
            if self._message is None:
                raise PeerFault(CLOSE_PROTOCOL_ERROR, "continuation frame without a message to continue")
        # Section 5.4: "The fragments of one message MUST NOT be interleaved between the fragments of another
        # message unless an extension has been negotiated that can interpret the interleaving."
        elif self._message is not None:
            raise PeerFault(CLOSE_PROTOCOL_ERROR, "new message within a fragmented message")

    def _check_size(self, length: int) -> None:
        if length > self._max_frame:
            raise PeerFault(CLOSE_TOO_BIG, f"frame of {length} bytes, limit {self._max_frame}")
        if self._message is not None and len(self._message) + length > self._max_message:
            raise PeerFault(CLOSE_TOO_BIG, f"message of more than {self._max_message} bytes")

    def _receive_payload(self, message: bytearray, data: bytes, start: int, events: list[Event]) -> int:
        """Take what has come of the data frame in progress, and return the position after it."""
        end = min(start + self._remaining, len(data))
        if not self._is_discarding:
            message += unmask(data[start:end], self._mask)
        self._remaining -= end - start
        if self._remaining:
            offset = (end - start) & 3
            self._mask = self._mask[offset:] + self._mask[:offset]
        is_whole = self._is_last_frame and not self._remaining
        if self._is_discarding:
            self._message = None if is_whole else message
            return end
        if self._is_text:
            self._check_text(message, is_whole)
        if is_whole:
            events.append(TextMessage(message.decode()) if self._is_text else BinaryMessage(bytes(message)))
            self._message = None
        return end

    def _check_text(self, message: bytearray, is_whole: bool) -> None:
        """Raise `PeerFault` at the first byte that no further byte could make valid.

        The decoded characters are thrown away and decoded again at the end: if they were kept, a text that comes
        byte by byte would take forty times its size.
        """
        # RFC 6455 section 8.1: an endpoint that "finds that the byte stream is not, in fact, a valid UTF-8 stream
        # [...] MUST _Fail the WebSocket Connection_."
        text = message[self._checked :]
        try:
            _, used = utf_8_decode(text, "strict", is_whole)
        except UnicodeDecodeError:
            raise PeerFault(CLOSE_INVALID_TEXT, _INVALID_TEXT) from None
        # Python's decoder waits after two bytes of an encoded surrogate, which no third byte can make valid.
        if len(text) - used == 2 and text[used] == 0xED and text[used + 1] >= 0xA0:
            raise PeerFault(CLOSE_INVALID_TEXT, _INVALID_TEXT)
        self._checked += used

    def _receive_control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == OP_PING:
            # RFC 6455 section 5.5.2: "Upon receipt of a Ping frame, an endpoint MUST send a Pong frame in
            # response, unless it already received a Close frame."
            self._queue_pong(payload)
            self.useless += 1
            events.append(PingReceived(payload))
        elif opcode == OP_PONG:
            if self.pings_sent:
                self.pings_sent -= 1
            else:
                self.useless += 1
            events.append(PongReceived(payload))
        else:
            code, reason = parse_close(payload)
            # Section 5.5.1: "If an endpoint receives a Close frame and did not previously send a Close frame, the
            # endpoint MUST send a Close frame in response. (When sending a Close frame in response, the endpoint
            # typically echos the status code it received.)"
            if self._state is _OPEN:
                self._queue_close(payload[:2])
            self._end_input(code)
            events.append(CloseReceived(code, reason))

    def _queue_pong(self, payload: bytes) -> None:
        pong = frame_header(OP_PONG, len(payload)) + payload
        if self._pongs is None:
            self._pongs = [pong]
        elif len(self._pongs) < MAX_QUEUED_PONGS:
            self._pongs.append(pong)
        else:
            self._pongs[-1] = pong
