"""The server's side of the session protocol (PROTOCOL.md), without I/O.

It decides what each message of a client means in the present state, and holds the cursors of the session. The
shell looks streams up, starts generations, writes bytes, and closes the cursors that leave the session.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from holdfast.core.log import Cursor
from holdfast.core.session import messages as m
from holdfast.errors import HoldfastError, InvalidMessage, InvalidRequest, TooManyStreams

#: After this many invalid messages on one connection it is closed with 4400.
MAX_INVALID_MESSAGES = 16


class State(enum.Enum):
    NEW = enum.auto()  # waits for `hello` or a bare payload
    OPEN = enum.auto()
    BARE = enum.auto()  # the first message was a chat payload: no hello, one entry per message
    CLOSED = enum.auto()


# -- what the client asked for; the shell answers with the `send_*` methods ---------------------------


@dataclass(slots=True, frozen=True)
class HelloReceived:
    client: str | None
    session: str | None
    streams: list[m.Resume]


@dataclass(slots=True, frozen=True)
class CreateReceived:
    """`request_id` is None for a bare payload: the shell makes one up."""

    request_id: str | None
    request: bytes
    credit: int | None


@dataclass(slots=True, frozen=True)
class AttachReceived:
    resume: m.Resume


@dataclass(slots=True, frozen=True)
class DetachReceived:
    """The cursor has left the session: close it, and let the generation go on."""

    cursor: Cursor


@dataclass(slots=True, frozen=True)
class CancelReceived:
    stream: str | None
    request_id: str | None


@dataclass(slots=True, frozen=True)
class CursorsMoved:
    """`credit` or `ack` changed what these cursors may send, or what their logs may drop.

    The client has confirmed the ends of `ended`, streams that `retire` was called for.
    """

    cursors: list[Cursor]
    ended: list[str]


@dataclass(slots=True, frozen=True)
class CloseRequired:
    """The session is over: send what is queued, then close the connection with this code."""

    code: int
    reason: str


Event: TypeAlias = (
    HelloReceived
    | CreateReceived
    | AttachReceived
    | DetachReceived
    | CancelReceived
    | CursorsMoved
    | CloseRequired
)


_ABSENT = msgspec.Raw()


class _Bare(msgspec.Struct):
    """The least that tells a bare chat payload from a message without a type."""

    messages: msgspec.Raw = _ABSENT
    model: msgspec.Raw = _ABSENT
    type: str | None = None


_bare_decoder = msgspec.json.Decoder(_Bare)


class ServerSession:
    """One client conversation on one connection.

    `max_streams` bounds the streams attached at a time. All methods are synchronous and leave the session
    consistent; messages for the client queue up in order and are fetched with `data_to_send`. What they hold is
    due before anything that a cursor reads.
    """

    __slots__ = ("_invalid", "_out", "_retired", "cursors", "max_streams", "negotiated", "state")

    def __init__(self, *, negotiated: bool, max_streams: int) -> None:
        self.negotiated = negotiated
        self.max_streams = max_streams
        self.state = State.NEW
        self.cursors: dict[str, Cursor] = {}
        self._out: list[bytes] = []
        self._invalid = 0
        # Ends that were delivered and not yet acknowledged, by stream: the number of the end entry.
        self._retired: dict[str, int] = {}

    # -- from the network --

    def receive_text(self, text: str | bytes) -> Event | None:
        """Take one text message. Bad input queues an `error`; only `CloseRequired` ends the session."""
        if self.state is State.CLOSED:
            return None
        try:
            message = m.decode_client_message(text)
        except InvalidMessage as exc:
            if self.state is not State.OPEN and _is_bare_payload(text):
                return self._receive_bare(text)
            return self._reject(exc)
        if self.state is State.NEW and not isinstance(message, m.Hello):
            return self._reject(
                InvalidMessage(f"the first message must be `hello` or a chat payload, not `{_tag(message)}`")
            )
        return self._receive(message)

    def receive_binary(self) -> Event | None:
        """Take a binary message: the protocol has none."""
        if self.state is State.CLOSED:
            return None
        return self._reject(InvalidMessage("binary messages are not used; send JSON as text"))

    def _receive_bare(self, text: str | bytes) -> Event | None:
        if self.negotiated:
            return self._reject(
                InvalidMessage(f"with the subprotocol {m.SUBPROTOCOL} the first message must be `hello`")
            )
        self.state = State.BARE
        return self._receive_create(None, text.encode() if isinstance(text, str) else text, None)

    def _receive(self, message: m.ClientMessage) -> Event | None:
        match message:
            case m.Hello():
                return self._receive_hello(message)
            case m.Create():
                return self._receive_create(message.request_id, bytes(message.request), message.credit)
            case m.Attach():
                return AttachReceived(m.Resume(message.stream, message.after, message.epoch, message.credit))
            case m.Ack():
                return self._receive_ack(message)
            case m.Credit():
                return self._receive_credit(message)
            case m.Detach():
                self._out.append(m.encode(m.Detached(message.stream)))
                cursor = self.cursors.pop(message.stream, None)
                # A detach may cross the end of the stream: then there is nothing to detach, and no harm.
                return DetachReceived(cursor) if cursor is not None else None
            case m.Cancel():
                if (message.stream is None) == (message.request_id is None):
                    return self._reject(InvalidMessage("`cancel` names either `stream` or `request_id`"))
                return CancelReceived(message.stream, message.request_id)
            case m.Ping():
                self._out.append(m.encode(m.Pong(t=message.t)))
        return None  # a pong is a sign of life, and that is all

    def _receive_hello(self, hello: m.Hello) -> Event | None:
        if self.state is not State.NEW:
            return self._reject(InvalidMessage("`hello` is the first message of a connection or none of it"))
        if hello.version != m.VERSION:
            return self._reject(
                InvalidMessage(f"protocol version {hello.version} is not spoken here; this is {m.VERSION}")
            )
        self.state = State.OPEN
        return HelloReceived(hello.client, hello.session, hello.streams)

    def _receive_create(self, request_id: str | None, request: bytes, credit: int | None) -> Event | None:
        if not request.lstrip().startswith(b"{"):
            self.send_error(InvalidRequest("`request` must be an object", param="request"), request_id=request_id)
        elif self.is_full:
            self.send_error(self._too_many_streams(), request_id=request_id)
        else:
            return CreateReceived(request_id, request, credit)
        return None

    def _receive_ack(self, ack: m.Ack) -> Event | None:
        moved: list[Cursor] = []
        ended: list[str] = []
        # An ack may cross a detach, or name a stream of an older connection: that is no fault.
        for stream, seq in ack.streams.items():
            if (cursor := self.cursors.get(stream)) is not None:
                cursor.acknowledge(seq)
                moved.append(cursor)
            elif seq >= self._retired.get(stream, m.MAX_SEQ + 1):
                del self._retired[stream]
                ended.append(stream)
        return CursorsMoved(moved, ended) if moved or ended else None

    def _receive_credit(self, message: m.Credit) -> Event | None:
        cursor = self.cursors.get(message.stream)
        if cursor is None or cursor.credit is None:
            return None
        if cursor.credit + message.bytes > m.MAX_CREDIT:
            return self._reject(InvalidMessage(f"credit of `{message.stream}` would exceed {m.MAX_CREDIT}"))
        cursor.credit += message.bytes
        return CursorsMoved([cursor], [])

    def _reject(self, error: InvalidMessage) -> CloseRequired | None:
        self._invalid += 1
        if self.state is State.NEW or self._invalid >= MAX_INVALID_MESSAGES:
            return self.fail(error)
        self.send_error(error)
        return None

    # -- from the application --

    def attach(self, stream: str, cursor: Cursor) -> Cursor | None:
        """Deliver a stream in this session; return the older cursor of the same stream that it replaces.

        A cursor that already has the end gets it again, so that no reader waits for what will never come. Raises
        `TooManyStreams` where the session reads as many as it may.
        """
        old = self.cursors.get(stream)
        if old is None and self.is_full:
            raise self._too_many_streams()
        if cursor.is_done:
            cursor.position -= 1
        self.cursors[stream] = cursor
        return old

    def retire(self, stream: str) -> Cursor:
        """Take out the cursor of a stream whose end was read; its acknowledgement is still understood."""
        cursor = self.cursors.pop(stream)
        self._retired[stream] = cursor.position - 1
        if len(self._retired) > self.max_streams:  # clients that never acknowledge cost no more than this
            del self._retired[next(iter(self._retired))]
        return cursor

    def connection_lost(self) -> list[Cursor]:
        """End the session without a word, and return the cursors that were left."""
        self.state = State.CLOSED
        cursors = list(self.cursors.values())
        self.cursors.clear()
        return cursors

    def send(self, message: m.ServerMessage) -> None:
        self._out.append(m.encode(message))

    def send_error(
        self, error: HoldfastError, *, request_id: str | None = None, stream: str | None = None
    ) -> None:
        self._out.append(m.encode(m.error_message(error, request_id=request_id, stream=stream)))

    def fail(self, error: HoldfastError) -> CloseRequired:
        """End the session for an error that concerns the whole connection: an `error`, then the close code."""
        self.send_error(error)
        self.state = State.CLOSED
        return CloseRequired(error.close_code or 1011, error.code)

    def _too_many_streams(self) -> TooManyStreams:
        return TooManyStreams(f"a session may read {self.max_streams} streams at a time")

    def data_to_send(self) -> list[bytes]:
        """Return the control messages that are due, each one text message, and forget them."""
        out, self._out = self._out, []
        return out

    @property
    def waiting(self) -> int:
        """How many control messages are due."""
        return len(self._out)

    @property
    def is_full(self) -> bool:
        """Whether the session reads as many streams as it may."""
        return len(self.cursors) >= self.max_streams


def _is_bare_payload(text: str | bytes) -> bool:
    try:
        head = _bare_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return head.type is None and (head.messages is not _ABSENT or head.model is not _ABSENT)


def _tag(message: m.Message) -> str:
    return str(message.__struct_config__.tag)
