"""The server's side of the session protocol (PROTOCOL.md), without I/O.

It decides what each message of a client means in the present state, and owns the cursors of the session. The
shell looks streams up, starts generations, writes bytes, and closes the cursors that leave the session.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from holdfast.core.json_object import Members, members
from holdfast.core.log import Cursor
from holdfast.core.session import messages as m
from holdfast.errors import HoldfastError, InvalidMessage, InvalidRequest, TooManyStreams

#: After this many invalid messages on one connection it is closed with 4400; after one that is larger than
#: `MAX_SMALL_MESSAGE` at once, since to look through that takes milliseconds.
MAX_INVALID_MESSAGES = 16
#: While the session holds, the shell stops reading from the socket once so many messages wait, or so many bytes. A
#: client that follows the protocol has no more on its way in the time of one lookup; one that sends without end,
#: or messages of the largest size, gets no more of this process's memory.
MAX_HELD_MESSAGES = 64
MAX_HELD_BYTES = 1024 * 1024


class State(enum.Enum):
    NEW = enum.auto()
    OPEN = enum.auto()
    BARE = enum.auto()
    CLOSED = enum.auto()


class _BarePayload(msgspec.Struct):
    """A chat completion request that came as a message: text without a `type`."""

    request: bytes
    members: Members | None = None


_CONVERSATION = (m.Create, m.Attach, m.Detach, m.Cancel, m.Ack, m.Credit, m.Ping, m.Pong)

#: Which messages of the client are good in which state, and the state that each leads to.
#:
#: | state  | the session                                    | leaves the state by                          |
#: |--------|------------------------------------------------|----------------------------------------------|
#: | NEW    | waits for the client's first message           | the client: `hello`, a bare payload, or any  |
#: |        |                                                | fault (4400); the shell: `fail`, and so on   |
#: | OPEN   | speaks the protocol                            | the client: 16th or large fault (4400);      |
#: | BARE   | serves a client without `hello`: one entry per | the shell: `fail`, `connection_lost`         |
#: |        | message                                        |                                              |
#: | CLOSED | ignores whatever comes                         | nobody                                       |
#:
#: Holding is no state: in NEW, OPEN and BARE the shell may `hold`, and messages wait until it has called `resume`.
_TRANSITIONS: Mapping[State, Mapping[type[msgspec.Struct], State]] = {
    State.NEW: {m.Hello: State.OPEN, _BarePayload: State.BARE},
    State.OPEN: dict.fromkeys(_CONVERSATION, State.OPEN),
    State.BARE: dict.fromkeys((_BarePayload, *_CONVERSATION), State.BARE),
}


# -- what the client asked for; the shell answers with the `send_*` methods ---------------------------


@dataclass(slots=True, frozen=True)
class HelloReceived:
    client: str | None
    session: str | None
    streams: list[m.Resume]


@dataclass(slots=True, frozen=True)
class CreateReceived:
    """`request_id` is None for a bare payload: the shell makes one up.

    `members` are those of a large request, which is not looked through again.
    """

    request_id: str | None
    request: bytes
    credit: int | None
    members: Members | None = None


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
_NULL = msgspec.Raw(b"null")


class _Bare(msgspec.Struct):
    """The least that tells a bare chat payload from a message without a type."""

    messages: msgspec.Raw = _ABSENT
    model: msgspec.Raw = _ABSENT
    type: str | None = None


_bare_decoder = msgspec.json.Decoder(_Bare)


class ServerSession:
    """One client conversation on one connection.

    `max_streams` bounds the streams attached at a time. All methods are synchronous and leave the session
    consistent. Messages for the client queue up in order and are fetched with `data_to_send`; they are due before
    anything that a cursor reads.

    A shell that has to wait for an answer, such as a lookup in a shared store, calls `hold` before it returns to
    the loop. What the client sends then waits in order, `ping` included, because the client counts on answers in
    the order of its messages. With the answer the shell goes on:

        for event in session.resume():
            self._handle(event)  # may call `hold` again, which ends the loop

    Streams that are attached already are delivered all the time. A shell that never holds pays nothing for this.
    """

    __slots__ = (
        "_awaits_answer",
        "_held",
        "_held_bytes",
        "_invalid",
        "_out",
        "_out_bytes",
        "_retired",
        "cursors",
        "max_streams",
        "negotiated",
        "state",
        "useless",
    )

    def __init__(self, *, negotiated: bool, max_streams: int) -> None:
        self.negotiated = negotiated
        self.max_streams = max_streams
        self.state = State.NEW
        self.cursors: dict[str, Cursor] = {}
        self._out: list[bytes] = []
        self._out_bytes = 0
        #: How many messages have served nothing: those refused, `ping` and `pong`. Not `ack` and `credit` for
        #: unknown streams: these may have ended a moment ago. The shell may set it back.
        self.useless = 0
        self._invalid = 0
        # Messages that wait, None for a binary one; without a deque nothing has to wait.
        self._held: deque[str | bytes | None] | None = None
        self._held_bytes = 0
        self._awaits_answer = False
        # Ends that were delivered and not yet acknowledged, by stream: the number of the end entry.
        self._retired: dict[str, int] = {}

    # -- from the network --

    def receive_text(self, text: str | bytes) -> Event | None:
        """Take one text message. Bad input queues an `error`; only `CloseRequired` ends the session.

        While the session holds, the message waits, and there is no event.
        """
        if self._held is not None:
            self._held.append(text)
            self._held_bytes += len(text)
            return None
        return self._receive_text(text)

    def receive_binary(self) -> Event | None:
        """Take a binary message: the protocol has none."""
        if self._held is not None:
            self._held.append(None)
            return None
        return self._receive_binary()

    def _receive_text(self, text: str | bytes) -> Event | None:
        state = self.state
        if state is State.CLOSED:
            return None
        if len(text) > m.MAX_SMALL_MESSAGE and state is not State.NEW:
            text = text.encode() if isinstance(text, str) else text
            cut = m.cut_create(text)
            if cut is not None:
                create, found = cut
                return self._receive_create(create.request_id, bytes(create.request), create.credit, found)
        message: m.ClientMessage | _BarePayload
        known = _TRANSITIONS[state]
        try:
            # Looked at first, since a payload has no `type`, which the other decoder would look for to its end.
            bare = _bare_payload(text) if _BarePayload in known else None
            message = bare if bare is not None else m.decode_client_message(text)
        except InvalidMessage as exc:
            return self._reject(exc, size=len(text))
        next_state = known.get(type(message))
        if next_state is None:
            return self._reject(_misplaced(message, state))
        self.state = next_state
        return self._receive(message)

    def _receive_binary(self) -> Event | None:
        if self.state is State.CLOSED:
            return None
        return self._reject(InvalidMessage("binary messages are not used; send JSON as text"))

    def _receive(self, message: m.ClientMessage | _BarePayload) -> Event | None:
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
                self.send(m.Detached(message.stream))
                cursor = self.cursors.pop(message.stream, None)
                # A detach may cross the end of the stream: then there is nothing to detach, and no harm.
                return DetachReceived(cursor) if cursor is not None else None
            case m.Cancel():
                if (message.stream is None) == (message.request_id is None):
                    return self._reject(InvalidMessage("`cancel` names either `stream` or `request_id`"))
                return CancelReceived(message.stream, message.request_id)
            case m.Ping():
                self.useless += 1
                self.send(m.Pong(t=message.t))
            case _BarePayload():
                return self._receive_bare(message)
            case _:  # a pong is a sign of life and means nothing more
                self.useless += 1
        return None

    def _receive_hello(self, hello: m.Hello) -> Event:
        if hello.version != m.VERSION:
            return self.fail(
                InvalidMessage(f"protocol version {hello.version} is not spoken here; this is {m.VERSION}")
            )
        return HelloReceived(hello.client, hello.session, hello.streams)

    def _receive_bare(self, payload: _BarePayload) -> Event | None:
        if self.negotiated:
            return self.fail(
                InvalidMessage(f"with the subprotocol {m.SUBPROTOCOL} the first message must be `hello`")
            )
        return self._receive_create(None, payload.request, None, payload.members)

    def _receive_create(
        self, request_id: str | None, request: bytes, credit: int | None, members: Members | None = None
    ) -> Event | None:
        if not request.lstrip().startswith(b"{"):
            self.send_error(InvalidRequest("`request` must be an object", param="request"), request_id=request_id)
        elif self.is_full:
            self.send_error(self._too_many_streams(), request_id=request_id)
        else:
            return CreateReceived(request_id, request, credit, members)
        return None

    def _receive_ack(self, ack: m.Ack) -> Event | None:
        moved: list[Cursor] = []
        ended: list[str] = []
        # An ack may cross a detach, or name a stream of an older connection: neither is a fault.
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

    def _reject(self, error: InvalidMessage, *, size: int = 0) -> CloseRequired | None:
        self._invalid += 1
        is_last = self._invalid >= MAX_INVALID_MESSAGES or size > m.MAX_SMALL_MESSAGE
        if self.state is State.NEW or is_last:
            return self.fail(error)
        self.send_error(error)
        return None

    # -- while the shell waits for an answer --

    def hold(self) -> None:
        """Let further messages of the client wait until `resume`. Idempotent."""
        if self.state is not State.CLOSED:
            self._awaits_answer = True
            if self._held is None:
                self._held = deque()

    def resume(self) -> Iterator[Event]:
        """Take the messages that have waited, and yield their events, until none is left or the shell holds again.

        Each message is taken when the iterator is asked for its event, so that the answers keep their order.
        """
        self._awaits_answer = False
        while self._held and not self._awaits_answer:
            text = self._held.popleft()
            if text is None:
                event = self._receive_binary()
            else:
                self._held_bytes -= len(text)
                event = self._receive_text(text)
            if event is not None:
                yield event
        if not self._awaits_answer:
            self._held = None

    @property
    def is_holding(self) -> bool:
        """Whether what the client sends has to wait."""
        return self._held is not None

    @property
    def bytes_held(self) -> int:
        """How many bytes the messages have that wait."""
        return self._held_bytes

    @property
    def must_pause(self) -> bool:
        """Whether so much waits that the shell has to stop reading from the socket."""
        held = self._held
        return held is not None and (len(held) >= MAX_HELD_MESSAGES or self._held_bytes >= MAX_HELD_BYTES)

    # -- from the application --

    def attach(self, stream: str, cursor: Cursor) -> Cursor | None:
        """Deliver a stream in this session; return the older cursor of the same stream that it replaces.

        A cursor that already has the end gets it again, so that no reader waits in vain. Raises `TooManyStreams`
        where the session reads as many streams as it may.
        """
        old = self.cursors.get(stream)
        if old is None and self.is_full:
            raise self._too_many_streams()
        if cursor.is_done:
            cursor.position -= 1
        self.cursors[stream] = cursor
        return old

    def retire(self, stream: str) -> Cursor:
        """Remove and return the cursor of a stream whose end was read; its acknowledgement is still understood."""
        cursor = self.cursors.pop(stream)
        self._retired[stream] = cursor.position - 1
        if len(self._retired) > self.max_streams:  # clients that never acknowledge cost no more than this
            del self._retired[next(iter(self._retired))]
        return cursor

    def forget(self, stream: str, error: HoldfastError) -> None:
        """Deliver a stream no more, whose log is gone before the client had its end: it is told the error."""
        if self.cursors.pop(stream, None) is not None:
            self.send_error(error, stream=stream)

    def connection_lost(self) -> list[Cursor]:
        """End the session without a word, and return the cursors that it had."""
        self._close()
        cursors = list(self.cursors.values())
        self.cursors.clear()
        return cursors

    def send(self, message: m.ServerMessage) -> None:
        """Queue a message for the client.

        An `Epoch` is sent before the first entry of that epoch is appended to the log: then it comes first.
        """
        encoded = m.encode(message)
        self._out.append(encoded)
        self._out_bytes += len(encoded)

    def send_error(
        self, error: HoldfastError, *, request_id: str | None = None, stream: str | None = None
    ) -> None:
        self.useless += 1
        self.send(m.error_message(error, request_id=request_id, stream=stream))

    def fail(self, error: HoldfastError) -> CloseRequired:
        """End the session for an error that concerns the whole connection: an `error`, then the close code."""
        self.send_error(error)
        self._close()
        return CloseRequired(error.close_code or 1011, error.code)

    def _close(self) -> None:
        self.state = State.CLOSED
        self._held = None
        self._held_bytes = 0

    def _too_many_streams(self) -> TooManyStreams:
        return TooManyStreams(f"a session may read {self.max_streams} streams at a time")

    def data_to_send(self) -> list[bytes]:
        """Return the control messages that are due, each one text message, and forget them."""
        out, self._out = self._out, []
        self._out_bytes = 0
        return out

    @property
    def waiting(self) -> int:
        """How many control messages are due."""
        return len(self._out)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes the control messages have that are due."""
        return self._out_bytes

    @property
    def is_full(self) -> bool:
        """Whether the session reads as many streams as it may."""
        return len(self.cursors) >= self.max_streams


def _bare_payload(text: str | bytes) -> _BarePayload | None:
    """Return a message that is a payload; of a large one the members are kept, so that it is read once."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > m.MAX_SMALL_MESSAGE:
            found = members(raw)
            is_bare = found.get("type", _NULL) == _NULL and ("messages" in found or "model" in found)
            return _BarePayload(raw, found) if is_bare else None
        head = _bare_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError, InvalidRequest):
        return None
    is_bare = head.type is None and (head.messages is not _ABSENT or head.model is not _ABSENT)
    return _BarePayload(raw) if is_bare else None


def _misplaced(message: m.ClientMessage | _BarePayload, state: State) -> InvalidMessage:
    tag = message.__struct_config__.tag
    if state is State.NEW:
        return InvalidMessage(f"the first message must be `hello` or a chat payload, not `{tag}`")
    return InvalidMessage(f"`{tag}` must be the first message of a connection")
