"""The client's side of the session protocol (PROTOCOL.md), without I/O.

One `ClientSession` outlives its connections: it knows which streams run, where each stands, and says after a drop
what must be said to carry on. The shell (an SDK) connects, waits and writes; time comes in as `now`, in seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from holdfast.core import messages as m
from holdfast.errors import HoldfastError, InvalidMessage, from_wire

#: Entries are acknowledged at the latest after this many seconds, or after this many bytes.
ACK_INTERVAL = 1.0
ACK_BYTES = 64 * 1024


class State(enum.Enum):
    DISCONNECTED = enum.auto()
    GREETING = enum.auto()  # hello was sent, welcome is awaited
    OPEN = enum.auto()


class ClientStream:
    """One stream as its reader sees it.

    `last_seq` is the last sequence number that was received, -1 before the first. `id` is None until the server
    has accepted the request. With a `window` the server may run at most that many bytes ahead of `consume`.
    """

    __slots__ = (
        "_acked",
        "_unacked_bytes",
        "_unconsumed",
        "_ungranted",
        "epoch",
        "id",
        "is_cancelled",
        "is_ended",
        "last_seq",
        "request",
        "request_id",
        "window",
    )

    def __init__(self, *, window: int | None) -> None:
        self.request_id: str | None = None
        self.request: bytes = b""
        self.id: str | None = None
        self.epoch: int | None = None
        self.last_seq = -1
        self.window = window
        self.is_ended = False
        self.is_cancelled = False
        self._acked = -1
        self._unacked_bytes = 0
        self._unconsumed = 0
        self._ungranted = 0

    @property
    def credit(self) -> int | None:
        """What a new connection may grant: the window less what the application has yet to consume."""
        return None if self.window is None else max(self.window - self._unconsumed, 0)


# -- what the shell learns ----------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Welcomed:
    """The session is open. `resumed` streams carry on; those that were refused follow as `StreamFailed`."""

    welcome: m.Welcome
    resumed: list[ClientStream]


@dataclass(slots=True, frozen=True)
class StreamAccepted:
    stream: ClientStream
    duplicate: bool


@dataclass(slots=True, frozen=True)
class StreamQueued:
    stream: ClientStream
    position: int


@dataclass(slots=True, frozen=True)
class EntriesReceived:
    """New consecutive entries, each exactly once; the last has the number `stream.last_seq`."""

    stream: ClientStream
    payloads: list[bytes]


@dataclass(slots=True, frozen=True)
class StreamEnded:
    stream: ClientStream
    end: m.End


@dataclass(slots=True, frozen=True)
class StreamFailed:
    """The request or its resumption was refused: nothing more will come."""

    stream: ClientStream
    error: HoldfastError


@dataclass(slots=True, frozen=True)
class SessionError:
    """An error that concerns the whole connection; the server closes it where it cannot go on."""

    error: HoldfastError


@dataclass(slots=True, frozen=True)
class GoawayReceived:
    reason: str
    window_ms: tuple[int, int]


@dataclass(slots=True, frozen=True)
class ConnectionFailed:
    """The connection is of no further use: the peer is silent or broke the protocol. Drop it and reconnect."""

    reason: str


Event: TypeAlias = (
    Welcomed
    | StreamAccepted
    | StreamQueued
    | EntriesReceived
    | StreamEnded
    | StreamFailed
    | SessionError
    | GoawayReceived
    | ConnectionFailed
)


class ClientSession:
    """All streams of one client over one connection at a time.

    `ping_interval` seconds of silence make it send `ping`; after `ping_timeout` more it reports
    `ConnectionFailed`. Any message counts as a sign of life. Methods are synchronous; messages queue up in order
    and are fetched with `data_to_send`.
    """

    def __init__(self, *, client: str, ping_interval: float = 20.0, ping_timeout: float = 10.0) -> None:
        self.client = client
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.state = State.DISCONNECTED
        self.session: str | None = None
        self._out: list[bytes] = []
        self._by_request: dict[str, ClientStream] = {}  # not yet accepted
        self._by_id: dict[str, ClientStream] = {}
        self._last_received = 0.0
        self._pinged = False
        self._ack_deadline: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no stream waits or runs."""
        return not self._by_request and not self._by_id

    # -- from the application --

    def create(self, request_id: str, request: bytes, *, window: int | None = None) -> ClientStream:
        """Ask for a generation; `request` is a JSON object. Sent at once, or as soon as there is a connection."""
        stream = ClientStream(window=window)
        stream.request_id = request_id
        stream.request = request
        self._by_request[request_id] = stream
        if self.state is State.OPEN:
            self._send_create(stream)
        return stream

    def attach(
        self, stream_id: str, *, after: int = -1, epoch: int | None = None, window: int | None = None
    ) -> ClientStream:
        """Read an existing stream from the entry that follows `after`."""
        stream = ClientStream(window=window)
        stream.id = stream_id
        stream.epoch = epoch
        stream.last_seq = stream._acked = after
        self._by_id[stream_id] = stream
        if self.state is State.OPEN:
            self._send(m.Attach(stream_id, after, epoch, stream.credit))
        return stream

    def cancel(self, stream: ClientStream) -> None:
        """Stop the generation. Its end still comes, as `cancelled`. Idempotent; survives a reconnect."""
        if stream.is_ended or stream.is_cancelled:
            return
        stream.is_cancelled = True
        if self.state is State.OPEN:
            self._send_cancel(stream)

    def detach(self, stream: ClientStream) -> None:
        """Stop reading; the generation goes on."""
        if stream.id is not None and not stream.is_ended:
            if self.state is State.OPEN:
                self._send(m.Detach(stream.id))
            self._forget(stream)

    def consume(self, stream: ClientStream, size: int) -> None:
        """Record that the application has taken `size` bytes of payload; grants credit in batches."""
        if stream.window is None or stream.is_ended:
            return
        stream._unconsumed -= size
        stream._ungranted += size
        if stream._ungranted * 2 >= stream.window and self.state is State.OPEN and stream.id is not None:
            self._send(m.Credit(stream.id, stream._ungranted))
            stream._ungranted = 0

    # -- from the network --

    def connection_made(self, now: float) -> None:
        """Greet: one message resumes every running stream."""
        self.state = State.GREETING
        self._out.clear()
        self._last_received = now
        self._pinged = False
        resume = []
        for id_, stream in self._by_id.items():
            stream._ungranted = 0
            resume.append(m.Resume(id_, stream.last_seq, stream.epoch, stream.credit))
        self._send(m.Hello(m.VERSION, self.client, self.session, resume))

    def connection_lost(self) -> None:
        """Forget the connection, keep the streams."""
        self.state = State.DISCONNECTED
        self._out.clear()
        self._ack_deadline = None

    def receive_text(self, text: str | bytes, now: float) -> list[Event]:
        """Take one message of the server."""
        self._last_received = now
        self._pinged = False
        try:
            message = m.decode_server_message(text)
        except InvalidMessage as exc:
            return [ConnectionFailed(f"the server sent an invalid message: {exc}")]
        match message:
            case m.Event():
                return self._receive_entries(message.stream, message.seq, [message.data], now)
            case m.Events():
                return self._receive_entries(message.stream, message.seq, message.data, now)
            case m.End():
                return self._receive_end(message)
            case m.Welcome():
                return self._receive_welcome(message)
            case m.Accepted():
                return self._receive_accepted(message)
            case m.Queued():
                queued = self._by_id.get(message.stream)
                return [StreamQueued(queued, message.position)] if queued is not None else []
            case m.Error():
                return self._receive_error(message)
            case m.Goaway():
                return [GoawayReceived(message.reason, message.window_ms)]
            case m.Attached():
                attached = self._by_id.get(message.stream)
                if attached is not None:
                    attached.epoch = message.epoch
                return []
            case m.Ping():
                self._send(m.Pong(t=message.t))
                return []
            case m.Pong():
                return []

    def _receive_welcome(self, welcome: m.Welcome) -> list[Event]:
        if self.state is not State.GREETING:
            return [ConnectionFailed("the server sent `welcome` twice")]
        self.state = State.OPEN
        self.session = welcome.session
        resumed: list[ClientStream] = []
        events: list[Event] = [Welcomed(welcome, resumed)]
        for state in welcome.streams:
            stream = self._by_id.get(state.stream)
            if stream is None:
                continue
            if state.status == "refused":
                self._forget(stream)
                events.append(StreamFailed(stream, _error(state.error)))
                continue
            stream.epoch = state.epoch
            resumed.append(stream)
            if stream.is_cancelled:
                self._send_cancel(stream)
        for stream in self._by_request.values():
            self._send_create(stream)
        return events

    def _receive_accepted(self, accepted: m.Accepted) -> list[Event]:
        stream = self._by_request.pop(accepted.request_id, None)
        if stream is None:
            return []
        stream.id = accepted.stream
        stream.epoch = accepted.epoch
        self._by_id[accepted.stream] = stream
        events: list[Event] = [StreamAccepted(stream, accepted.duplicate)]
        if accepted.queue_position is not None:
            events.append(StreamQueued(stream, accepted.queue_position))
        return events

    def _receive_entries(self, id_: str, seq: int, payloads: list[msgspec.Raw], now: float) -> list[Event]:
        stream = self._by_id.get(id_)
        if stream is None:  # detached, or ended by an error: late entries mean nothing
            return []
        expected = stream.last_seq + 1
        if seq > expected:
            return [ConnectionFailed(f"entries {expected} to {seq - 1} of {id_} are missing")]
        new = [bytes(payload) for payload in payloads[expected - seq :]]
        if not new:
            return []
        stream.last_seq += len(new)
        size = sum(map(len, new))
        stream._unacked_bytes += size
        stream._unconsumed += size
        if stream._unacked_bytes >= ACK_BYTES:
            self._send_acks()
        elif self._ack_deadline is None:
            self._ack_deadline = now + ACK_INTERVAL
        return [EntriesReceived(stream, new)]

    def _receive_end(self, end: m.End) -> list[Event]:
        stream = self._by_id.get(end.stream)
        if stream is None:
            return []
        if end.seq > stream.last_seq + 1:
            return [
                ConnectionFailed(f"entries {stream.last_seq + 1} to {end.seq - 1} of {end.stream} are missing")
            ]
        stream.last_seq = end.seq
        self._send(m.Ack({end.stream: end.seq}))
        self._forget(stream)
        return [StreamEnded(stream, end)]

    def _receive_error(self, message: m.Error) -> list[Event]:
        error = from_wire(message.code, message.message, retry_after=message.retry_after)
        stream = None
        if message.request_id is not None:
            stream = self._by_request.get(message.request_id)
        elif message.stream is not None:
            stream = self._by_id.get(message.stream)
        if stream is None:
            return [SessionError(error)] if message.request_id is None and message.stream is None else []
        self._forget(stream)
        return [StreamFailed(stream, error)]

    # -- time --

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is due, None while disconnected."""
        if self.state is State.DISCONNECTED:
            return None
        silence = self.ping_interval + (self.ping_timeout if self._pinged else 0.0)
        deadline = self._last_received + silence
        return deadline if self._ack_deadline is None else min(deadline, self._ack_deadline)

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due at `now`: acknowledge, ping, or give a silent connection up."""
        if self.state is State.DISCONNECTED:
            return []
        if self._ack_deadline is not None and now >= self._ack_deadline:
            self._send_acks()
        silence = now - self._last_received
        if silence >= self.ping_interval + self.ping_timeout and self._pinged:
            return [ConnectionFailed(f"the server was silent for {silence:.0f} s")]
        if silence >= self.ping_interval and not self._pinged:
            self._pinged = True
            self._send(m.Ping())
        return []

    # -- to the network --

    def data_to_send(self) -> list[bytes]:
        """Return the messages that are due, each one text message, and forget them."""
        out, self._out = self._out, []
        return out

    def _send(self, message: m.ClientMessage) -> None:
        self._out.append(m.encode(message))

    def _send_create(self, stream: ClientStream) -> None:
        self._send(m.Create(stream.request_id or "", msgspec.Raw(stream.request), stream.credit))
        if stream.is_cancelled:
            self._send_cancel(stream)

    def _send_cancel(self, stream: ClientStream) -> None:
        if stream.id is not None:
            self._send(m.Cancel(stream=stream.id))
        else:
            self._send(m.Cancel(request_id=stream.request_id))

    def _send_acks(self) -> None:
        self._ack_deadline = None
        acks = {}
        for id_, stream in self._by_id.items():
            stream._unacked_bytes = 0
            if stream.last_seq > stream._acked:
                stream._acked = stream.last_seq
                acks[id_] = stream.last_seq
        for start in range(0, len(acks), m.MAX_STREAMS_PER_MESSAGE):
            self._send(m.Ack(dict(list(acks.items())[start : start + m.MAX_STREAMS_PER_MESSAGE])))

    def _forget(self, stream: ClientStream) -> None:
        stream.is_ended = True
        if stream.id is not None:
            self._by_id.pop(stream.id, None)
        if stream.request_id is not None:
            self._by_request.pop(stream.request_id, None)


def _error(body: m.ErrorBody | None) -> HoldfastError:
    if body is None:
        return from_wire("unknown_stream", "the server refused to resume the stream")
    return from_wire(body.code, body.message, retry_after=body.retry_after, status=body.status)
