"""Delivers streams over one WebSocket, whatever its surface speaks.

It is the reader of all cursors of the connection: it notes which of them have something to send, and once per turn
of the loop it writes control messages first and then entries of all ready cursors in turn. What is said about a
stream beside its entries is left to the surface.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from holdfast.core.log import Cursor, Framing
from holdfast.core.websocket.frames import text_frame
from holdfast.errors import HoldfastError
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.listener.websocket import WebSocketProtocol
from holdfast.streams.stream import Stream

#: About how many bytes one message and one write of a connection carry.
MESSAGE_BYTES = 32 * 1024
WRITE_BYTES = 128 * 1024
#: Writes of a turn, as long as the client takes them: one that takes nothing has no more than one of them waiting,
#: and one that takes all is served faster than providers are read, so that it does not fall behind.
MAX_WRITES = 32
#: Control messages that may wait for a client that does not read, and their bytes.
MAX_WAITING = 4096
MAX_WAITING_BYTES = 256 * 1024


class Control(Protocol):
    """The messages of the surface's protocol that are no entries. They are due before anything a cursor reads."""

    @property
    def waiting(self) -> int:
        """How many messages are due."""

    @property
    def waiting_bytes(self) -> int:
        """How many bytes they have."""

    def data_to_send(self) -> list[bytes]:
        """Return the messages that are due, each one text message, and forget them."""


class Conversation(Protocol):
    """What the outlet tells whoever speaks with the client beside it."""

    def position_changed(self, stream: Stream) -> None:
        """What the stream waits for, in the queue or before another try, has changed: say so by a message."""

    def epoch_changed(self, stream: Stream) -> None:
        """The entries to come are of another epoch, which the log has now: say so with a control message."""

    def end_written(self, stream: Stream) -> None:
        """The end entry was written. Its cursor has left the outlet. A control message may follow it."""

    def forgotten(self, stream: Stream, error: HoldfastError) -> None:
        """The stream's log is gone, and its cursor has left the outlet: say so with a control message."""


class Outlet:
    """The streams that one connection reads, each by a cursor.

    `framing` makes one message of up to `message_bytes` of entries. With `consumes`, what is written counts as
    consumed: for clients that cannot acknowledge.
    """

    __slots__ = (
        "_control",
        "_conversation",
        "_flusher",
        "_framing",
        "_is_closed",
        "_is_marked",
        "_moved",
        "_ready",
        "_socket",
        "consumes",
        "message_bytes",
        "on_flushed",
        "streams",
    )

    def __init__(
        self,
        socket: WebSocketProtocol,
        conversation: Conversation,
        control: Control,
        flusher: Flusher,
        framing: Framing,
        *,
        message_bytes: int = MESSAGE_BYTES,
        consumes: bool = False,
    ) -> None:
        self._socket = socket
        self._conversation = conversation
        self._control = control
        self._flusher = flusher
        self._framing = framing
        self.message_bytes = message_bytes
        self.consumes = consumes
        #: The streams that are read, by their cursors. Whoever changes it uses the methods below.
        self.streams: dict[Cursor, Stream] = {}
        # Cursors that may have something to send, in the order in which they became so.
        self._ready: dict[Cursor, None] = {}
        # Cursors whose streams have changed their position in the queue since the client was told. Few connections
        # ever have one, and there are many connections.
        self._moved: dict[Cursor, None] | None = None
        self._is_marked = False
        self._is_closed = False
        #: Is called behind each flush that found the socket writable.
        self.on_flushed: Callable[[], None] | None = None

    # -- the streams --

    def add(self, stream: Stream, cursor: Cursor) -> None:
        """Deliver a stream from a cursor on it, whose reader must be this outlet."""
        self.streams[cursor] = stream
        self._ready[cursor] = None

    def release(self, cursor: Cursor) -> Stream:
        """Stop delivering: the client is done with this cursor."""
        stream = self._remove(cursor)
        stream.release(cursor)
        return stream

    def detach(self, cursor: Cursor) -> None:
        """Stop delivering: the client leaves the stream to itself."""
        self._remove(cursor).detach(cursor)

    def advanced(self, cursor: Cursor) -> None:
        """The client has acknowledged entries or given credit: there may be room in the log, or more to send."""
        stream = self.streams.get(cursor)
        if stream is None:
            return  # what another cursor's advance has set going has taken this one's log
        stream.resume_source()
        if cursor.is_ready and cursor in self.streams:
            self._ready[cursor] = None

    def lose_all(self) -> None:
        """The connection is gone: its clients may come back for the streams."""
        self._ready.clear()
        self._moved = None
        streams, self.streams = self.streams, {}
        for cursor, stream in streams.items():
            stream.lose(cursor)

    def close(self) -> None:
        """Deliver nothing any more, and forget who has this outlet: a cycle would wait for the next collection."""
        self.lose_all()
        self._is_closed = True
        self.on_flushed = None
        del self._socket, self._conversation

    def _remove(self, cursor: Cursor) -> Stream:
        self._ready.pop(cursor, None)
        if self._moved is not None:
            self._moved.pop(cursor, None)
        return self.streams.pop(cursor)

    # -- the reader's side --

    def wake(self, cursor: Cursor) -> None:
        self._ready[cursor] = None
        if not self._is_marked:
            self._is_marked = True
            self._flusher.add(self)

    def position_changed(self, cursor: Cursor) -> None:
        if self._moved is None:
            self._moved = {}
        self._moved[cursor] = None
        self.mark()

    def epoch_changed(self, cursor: Cursor) -> None:
        stream = self.streams.get(cursor)
        if stream is None:
            return  # it is being attached in this turn, and its answer has the epoch
        self._conversation.epoch_changed(stream)
        self.mark()

    def forgotten(self, cursor: Cursor, error: HoldfastError) -> None:
        if cursor in self.streams:
            self._conversation.forgotten(self._remove(cursor), error)
            self.mark()

    # -- writing --

    def mark(self) -> None:
        """Have what is due written at the end of this turn."""
        if not self._is_marked:
            self._is_marked = True
            self._flusher.add(self)

    def flush(self, *, more: bool = False) -> int:
        """Write what is due: control messages first, then entries of all ready cursors in turn."""
        self._is_marked = False
        if self._is_closed:
            return 0
        socket, control = self._socket, self._control
        transport = socket.transport
        if transport is None or socket.codec.is_closing:
            return 0
        if not socket.is_writable:
            if control.waiting > MAX_WAITING or control.waiting_bytes > MAX_WAITING_BYTES:
                socket.abort()
            return 0
        if self._moved:
            self._tell_positions()
        out: list[bytes] = []
        if control.waiting:
            out += map(text_frame, control.data_to_send())
        if self._ready:
            self._read_cursors(out)
        messages = len(out)
        if messages:
            transport.write(out[0] if messages == 1 else b"".join(out))
            if self._ready:
                messages += self._write_more(transport, MAX_WRITES - 1 if more else 0)
        if self.on_flushed is not None:
            self.on_flushed()
        return messages

    def _write_more(self, transport: asyncio.Transport, writes: int) -> int:
        """Go on with what one write did not hold, for so many writes, and leave the rest to another turn."""
        ready, socket = self._ready, self._socket
        messages = 0
        for _ in range(writes):
            if not ready or not socket.is_writable:
                return messages
            out: list[bytes] = []
            self._read_cursors(out)
            if out:
                transport.write(b"".join(out))
                messages += len(out)
        if ready and socket.is_writable and not self._is_marked:
            self._is_marked = True
            self._flusher.add_more(self)
        return messages

    def _tell_positions(self) -> None:
        """Say where streams stand now: a client that does not read is told later, and once."""
        moved, self._moved = self._moved, None
        for cursor in moved or ():
            stream = self.streams.get(cursor)
            if stream is not None:
                self._conversation.position_changed(stream)

    def _read_cursors(self, out: list[bytes]) -> None:
        ready, framing, consumes, max_bytes = self._ready, self._framing, self.consumes, self.message_bytes
        size = 0
        while ready and size < WRITE_BYTES:
            cursor = next(iter(ready))
            del ready[cursor]
            message = cursor.read(framing, max_bytes)
            if message is None:
                continue
            if message:
                out.append(text_frame(message))
                size += len(message)
            log = cursor.log
            if consumes:
                cursor.consume()
            if cursor.position < log.next:
                ready[cursor] = None
            elif log.end is not None:
                self._conversation.end_written(self.release(cursor))
                if self._control.waiting:
                    self.mark()
            elif consumes:
                self.streams[cursor].resume_source()
