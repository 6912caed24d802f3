"""The server's side of the session protocol (PROTOCOL.md), without I/O.

It decides what each message of a client means in the present state, and holds the cursors of the session. The
shell looks streams up, starts generations and writes bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from holdfast.core import messages as m
from holdfast.core.log import Cursor
from holdfast.errors import HoldfastError, InvalidMessage, TooManyStreams

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
    """The cursor has left the session; the generation goes on."""

    cursor: Cursor


@dataclass(slots=True, frozen=True)
class CancelReceived:
    stream: str | None
    request_id: str | None


@dataclass(slots=True, frozen=True)
class CursorsMoved:
    """`credit` or `ack` changed what these cursors may send, or what their logs may drop."""

    cursors: list[Cursor]


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


class _Bare(msgspec.Struct):
    """The least that tells a bare chat payload from a message without a type."""

    messages: msgspec.Raw | None = None
    model: msgspec.Raw | None = None
    type: str | None = None


_bare_decoder = msgspec.json.Decoder(_Bare)


class ServerSession:
    """One client conversation on one connection.

    `max_streams` bounds the streams attached at a time. All methods are synchronous and leave the session
    consistent; messages for the client queue up in order and are fetched with `data_to_send`.
    """

    __slots__ = ("_invalid", "_out", "cursors", "max_streams", "negotiated", "state")

    def __init__(self, *, negotiated: bool, max_streams: int) -> None:
        self.negotiated = negotiated
        self.max_streams = max_streams
        self.state = State.NEW
        self.cursors: dict[str, Cursor] = {}
        self._out: list[bytes] = []
        self._invalid = 0

    # -- from the network --

    def receive_text(self, text: str) -> Event | None:
        """Take one text message. Bad input queues an `error`; only `CloseRequired` ends the session."""
        if self.state is State.CLOSED:
            return None
        try:
            message = m.decode_client_message(text)
        except InvalidMessage as exc:
            if self.state is not State.OPEN and (bare := _bare_payload(text)) is not None:
                return self._receive_bare(bare)
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

    def _receive_bare(self, text: str) -> Event | None:
        if self.negotiated:
            return self._reject(
                InvalidMessage(f"with the subprotocol {m.SUBPROTOCOL} the first message must be `hello`")
            )
        self.state = State.BARE
        return CreateReceived(None, text.encode(), None)

    def _receive(self, message: m.ClientMessage) -> Event | None:
        match message:
            case m.Hello():
                return self._receive_hello(message)
            case m.Create():
                return CreateReceived(message.request_id, bytes(message.request), message.credit)
            case m.Attach():
                return AttachReceived(m.Resume(message.stream, message.after, message.epoch, message.credit))
            case m.Ack():
                return self._receive_ack(message)
            case m.Credit():
                return self._receive_credit(message)
            case m.Detach():
                cursor = self.cursors.pop(message.stream, None)
                # A detach may cross the end of the stream: then there is nothing to detach, and no harm.
                return DetachReceived(cursor) if cursor is not None else None
            case m.Cancel():
                if (message.stream is None) == (message.request_id is None):
                    return self._reject(InvalidMessage("`cancel` names either `stream` or `request_id`"))
                return CancelReceived(message.stream, message.request_id)
            case m.Ping():
                self._out.append(m.encode(m.Pong(t=message.t)))
                return None
            case m.Pong():
                return None

    def _receive_hello(self, hello: m.Hello) -> Event | None:
        if self.state is not State.NEW:
            return self._reject(InvalidMessage("`hello` was already said on this connection"))
        if hello.version != m.VERSION:
            return self._reject(
                InvalidMessage(f"protocol version {hello.version} is not spoken here; this is {m.VERSION}")
            )
        self.state = State.OPEN
        return HelloReceived(hello.client, hello.session, hello.streams)

    def _receive_ack(self, ack: m.Ack) -> Event | None:
        moved = []
        for stream, seq in ack.streams.items():
            cursor = self.cursors.get(stream)
            if cursor is not None:  # an ack may cross a detach or refer to a stream of an older connection
                cursor.acknowledge(seq)
                moved.append(cursor)
        return CursorsMoved(moved) if moved else None

    def _receive_credit(self, message: m.Credit) -> Event | None:
        cursor = self.cursors.get(message.stream)
        if cursor is None or cursor.credit is None:
            return None
        if cursor.credit + message.bytes > m.MAX_CREDIT:
            return self._reject(InvalidMessage(f"credit of `{message.stream}` would exceed {m.MAX_CREDIT}"))
        cursor.credit += message.bytes
        return CursorsMoved([cursor])

    def _reject(self, error: InvalidMessage) -> CloseRequired | None:
        self._invalid += 1
        self.send_error(error)
        if self.state is State.NEW or self._invalid >= MAX_INVALID_MESSAGES:
            return self.fail(error)
        return None

    # -- from the application --

    def attach(self, stream: str, cursor: Cursor) -> None:
        """Deliver a stream in this session. An older cursor of the same stream is replaced.

        Raises `TooManyStreams` where the session has as many as it may have.
        """
        old = self.cursors.get(stream)
        if old is not None:
            old.close()
        elif len(self.cursors) >= self.max_streams:
            cursor.close()
            raise TooManyStreams(f"a session may read {self.max_streams} streams at a time", param="stream")
        self.cursors[stream] = cursor

    def send(self, message: m.ServerMessage) -> None:
        self._out.append(m.encode(message))

    def send_error(
        self, error: HoldfastError, *, request_id: str | None = None, stream: str | None = None
    ) -> None:
        self._out.append(m.encode(m.error_message(error, request_id=request_id, stream=stream)))

    def fail(self, error: HoldfastError) -> CloseRequired:
        """End the session for an error that concerns the whole connection."""
        self.state = State.CLOSED
        return CloseRequired(error.close_code or 1011, error.code)

    def data_to_send(self) -> list[bytes]:
        """Return the control messages that are due, each one text message, and forget them."""
        out, self._out = self._out, []
        return out

    @property
    def has_data_to_send(self) -> bool:
        return bool(self._out)


def _bare_payload(text: str) -> str | None:
    try:
        head = _bare_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return text if head.type is None and (head.messages or head.model) is not None else None


def _tag(message: m.Message) -> str:
    return str(message.__struct_config__.tag)
