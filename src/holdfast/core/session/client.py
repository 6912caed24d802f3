"""The client's side of the session protocol (PROTOCOL.md), without I/O.

One `ClientSession` outlives its connections: it knows which streams run and where each stands, and tells the
server after a drop what it needs to carry on. The shell (an SDK) connects, waits and writes. Time comes in as
`now`, in seconds, randomness as `rng`.
"""

from __future__ import annotations

import enum
from itertools import islice

import msgspec

from holdfast.core.backoff import UniformRandom
from holdfast.core.entries import ErrorBody, error_of
from holdfast.core.session import messages as m
from holdfast.core.session.client_stream import (
    ClientStream,
    ConnectionFailed,
    EntriesReceived,
    Event,
    GoawayReceived,
    SessionError,
    StreamAccepted,
    StreamDeferred,
    StreamEnded,
    StreamFailed,
    StreamQueued,
    StreamReturned,
    Welcomed,
)
from holdfast.core.session.outbox import Outbox
from holdfast.core.session.refusals import Refusals
from holdfast.errors import (
    Cancelled,
    Draining,
    HoldfastError,
    InvalidMessage,
    ProtocolError,
    SessionSuperseded,
    from_wire,
)

__all__ = [
    "ClientSession",
    "ClientStream",
    "ConnectionFailed",
    "EntriesReceived",
    "Event",
    "GoawayReceived",
    "SessionError",
    "State",
    "StreamAccepted",
    "StreamDeferred",
    "StreamEnded",
    "StreamFailed",
    "StreamQueued",
    "StreamReturned",
    "Welcomed",
]

#: Entries are acknowledged at the latest after this many seconds.
ACK_INTERVAL = 1.0


class State(enum.Enum):
    DISCONNECTED = enum.auto()
    GREETING = enum.auto()  # hello was sent, welcome is awaited
    OPEN = enum.auto()


_BEFORE_WELCOME = (m.Welcome, m.Error, m.Goaway, m.Ping, m.Pong)


class ClientSession:
    """All streams of one client over one connection at a time.

    After `ping_interval` seconds of silence it sends `ping`, and after `ping_timeout` more it reports
    `ConnectionFailed`. Any message counts as a sign of life. A stream whose resumption the server refuses for now
    is asked for again up to `max_retries` times in a row, as `Refusals` says. Methods are synchronous; messages
    queue up in order and are fetched with `data_to_send`.
    """

    def __init__(
        self,
        *,
        client: str,
        rng: UniformRandom,
        ping_interval: float = 20.0,
        ping_timeout: float = 10.0,
        max_retries: int = 5,
        initial_backoff: float = 1.0,
        max_backoff: float = 30.0,
    ) -> None:
        self.client = client
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.state = State.DISCONNECTED
        self.session: str | None = None
        self._out = Outbox()
        self._by_request: dict[str, ClientStream] = {}  # those that were created here
        self._by_id: dict[str, ClientStream] = {}
        self._greeted: dict[str, ClientStream] = {}  # the streams that `hello` has named
        self._refusals = Refusals(
            rng, max_retries=max_retries, initial_backoff=initial_backoff, max_backoff=max_backoff
        )
        self._last_received = 0.0
        self._pong_deadline: float | None = None
        self._ack_deadline: float | None = None
        self._is_going_away = False
        self._streams_stay = False  # on this connection, although its server goes away

    @property
    def is_idle(self) -> bool:
        """Whether no stream waits or runs, and the server has confirmed every detach."""
        return not self._by_request and not self._by_id

    # -- from the application --

    def create(self, request_id: str, request: bytes, *, window: int | None = None) -> ClientStream:
        """Ask for a generation; `request` is a JSON object. It is sent at once, or when a connection is open.

        Raises ValueError for a request id that is in use or is not 1 to `MAX_NAME` characters long, a request that
        is no object, and a `window` beyond 1 to `MAX_CREDIT`.
        """
        if not request.startswith(b"{"):
            raise ValueError("a request is a JSON object")
        if request_id in self._by_request:
            raise ValueError(f"the request id {request_id} is in use")
        stream = ClientStream(request_id=request_id, request=request, window=window)
        self._by_request[request_id] = stream
        if self.state is State.OPEN and not self._is_going_away:
            self._out.create(stream)
        return stream

    def attach(
        self, stream_id: str, *, after: int = -1, epoch: int | None = None, window: int | None = None
    ) -> ClientStream:
        """Read an existing stream from the entry that follows `after`.

        Raises ValueError for a stream that this session reads already, and for an id, number or `window` that
        cannot be said in the protocol.
        """
        known = self._by_id.get(stream_id)
        if known is not None and not known.is_detached:
            raise ValueError(f"the stream {stream_id} is read already")
        stream = ClientStream(id_=stream_id, epoch=epoch, after=after, window=window)
        was_refused = False
        if known is not None:
            # It was detached, and the server has not confirmed that: this reader takes its place.
            stream.is_cancelled = known.is_cancelled
            was_refused = known in self._refusals
            self._forget(known)
        self._by_id[stream_id] = stream
        if self.state is State.OPEN:
            self._out.attach(stream)
            if was_refused:
                self._out.cancel_or_detach(stream)
        return stream

    def cancel(self, stream: ClientStream) -> list[Event]:
        """Stop the generation. Idempotent; a reconnect does not lose it.

        The end of the stream still comes, as `cancelled`. Only a request that was never sent fails at once.
        """
        if stream.is_ended or stream.is_cancelled:
            return []
        stream.is_cancelled = True
        if stream.id is None and not stream.is_sent:
            self._forget(stream)
            return [StreamFailed(stream, Cancelled("cancelled before it was sent"))]
        if self.state is State.OPEN:
            self._out.cancel(stream)
        return []

    def detach(self, stream: ClientStream) -> None:
        """Stop reading; the generation goes on. Idempotent; a reconnect does not lose it.

        Nothing more is reported about the stream, except whether a request that still waits was accepted. The
        session remembers the stream until the server has confirmed.
        """
        if stream.is_ended or stream.is_detached:
            return
        stream.is_detached = True
        if stream.id is None:
            return
        stream.is_ended = True
        # A stream that is refused for now is detached when the server has it: so the generation goes on.
        if self.state is State.OPEN and stream not in self._refusals:
            self._out.detach(stream)

    def consume(self, stream: ClientStream, size: int) -> None:
        """Record that the application has taken `size` bytes of payload, and grant credit in batches.

        Raises ValueError for more than was received.
        """
        if stream.window is None or stream.is_ended:
            return
        stream.consume(size)
        self._grant(stream)

    # -- from the network --

    def connection_made(self, now: float) -> None:
        """Say hello: one message resumes every running stream."""
        self.connection_lost()
        self.state = State.GREETING
        self._is_going_away = self._streams_stay = False
        self._last_received = now
        # What does not fit into one message is attached after `welcome`.
        self._greeted = dict(islice(self._by_id.items(), m.MAX_STREAMS_PER_MESSAGE))
        resume = []
        for stream in self._greeted.values():
            stream.take_ack()  # `after` acknowledges
            resume.append(m.Resume(stream.id or "", stream.last_seq, stream.epoch, stream.resume_credit()))
        self._out.add(m.Hello(m.VERSION, self.client, self.session, resume))

    def connection_lost(self) -> None:
        """Forget the connection and keep the streams. Idempotent."""
        self.state = State.DISCONNECTED
        self._out.connection_lost()
        self._greeted = {}
        self._ack_deadline = None
        self._pong_deadline = None
        self._refusals.connection_lost()
        for stream in self._by_id.values():
            stream.is_live = False

    def receive_text(self, text: str | bytes, now: float) -> list[Event]:
        """Take one message of the server, and ignore it where there is no connection."""
        if self.state is State.DISCONNECTED:
            return []
        self._last_received = now
        self._pong_deadline = None
        try:
            message = m.decode_server_message(text)
        except InvalidMessage as exc:
            return self._fail(f"the server sent an invalid message: {exc}")
        if self.state is State.GREETING and not isinstance(message, _BEFORE_WELCOME):
            return self._fail("the server sent something else before `welcome`")
        match message:
            case m.Event():
                return self._receive_entries(message.stream, message.seq, [message.data], now)
            case m.Events():
                return self._receive_entries(message.stream, message.seq, message.data, now)
            case m.End():
                return self._receive_end(message)
            case m.Welcome():
                return self._receive_welcome(message, now)
            case m.Accepted():
                return self._receive_accepted(message)
            case m.Attached():
                self._receive_attached(message)
            case m.Detached():
                self._receive_detached(message)
            case m.Queued():
                queued = self._by_id.get(message.stream)
                return [] if queued is None else [StreamQueued.of(queued, message)]
            case m.Epoch():
                self._receive_epoch(message)
            case m.Error():
                return self._receive_error(message, now)
            case m.Goaway():
                return self._receive_goaway(message)
            case m.Ping():
                self._out.add(m.Pong(t=message.t))
        return []  # a pong is a sign of life and means nothing more

    def _receive_welcome(self, welcome: m.Welcome, now: float) -> list[Event]:
        if self.state is not State.GREETING:
            return self._fail("the server sent `welcome` twice")
        self.state = State.OPEN
        self.session = welcome.session
        resumed: list[ClientStream] = []
        events: list[Event] = [Welcomed(welcome, resumed)]
        greeted, self._greeted = self._greeted, {}
        for state in welcome.streams:
            stream = greeted.pop(state.stream, None)
            if stream is None or self._by_id.get(state.stream) is not stream:
                continue  # `hello` did not name it, or it was attached anew since
            if state.status == "refused":
                events += self._refuse(stream, _error(state.error), now)
            else:
                self._deliver(stream, state.epoch)
                if not stream.is_detached:
                    resumed.append(stream)
        for stream in greeted.values():
            if self._by_id.get(stream.id or "") is stream:
                events += self._fail_stream(stream, ProtocolError("`welcome` does not mention the stream"))
        self._catch_up()
        if self._streams_stay:
            # The `goaway` came first, so nothing that waits for an answer was sent on this connection.
            waiting = [stream for stream in self._by_request.values() if stream.id is None]
            events += [self._return(stream) for stream in waiting]
        return events

    def _catch_up(self) -> None:
        """Tell the server what the application decided while there was no open connection."""
        for stream in self._by_id.values():
            if self._refusals.is_waiting(stream):
                continue  # cancel and detach follow when it is asked for again
            if not (stream.is_live or stream.is_detached):
                self._out.attach(stream)
            self._out.cancel_or_detach(stream)
            self._grant(stream)
        for stream in self._by_request.values():
            if stream.id is None and not self._is_going_away:
                self._out.create(stream)

    def _receive_accepted(self, accepted: m.Accepted) -> list[Event]:
        stream = self._by_request.get(accepted.request_id)
        if stream is None or stream.id is not None:
            return []
        older = self._by_id.get(accepted.stream)
        events: list[Event] = []
        if older is not None:
            # One session reads a stream once: the server delivers it anew, for the request.
            events += self._fail_stream(older, SessionSuperseded("the stream is read under its request id"))
        stream.id = accepted.stream
        self._deliver(stream, accepted.epoch)
        self._by_id[accepted.stream] = stream
        events.append(StreamAccepted(stream, accepted.duplicate))
        if stream.is_detached:
            stream.is_ended = True
            self._out.detach(stream)
        elif accepted.queue_position is not None:
            events.append(StreamQueued(stream, accepted.queue_position))
        return events

    def _receive_attached(self, attached: m.Attached) -> None:
        stream = self._by_id.get(attached.stream)
        if self._out.is_newest_answer(attached.stream) and stream is not None:
            was_refused = stream in self._refusals
            self._deliver(stream, attached.epoch)
            stream.is_live = not stream.is_detached
            if was_refused:
                self._out.cancel_or_detach(stream)
            self._grant(stream)  # what was consumed since the `attach` was sent

    def _receive_detached(self, detached: m.Detached) -> None:
        stream = self._by_id.get(detached.stream)
        # Before the answer to an `attach` it belongs to an older attachment. Of a stream that is refused for now
        # there was nothing to detach: that is done once it is delivered.
        is_older = self._out.awaits_attached(detached.stream)
        if stream is not None and stream.is_detached and not is_older and stream not in self._refusals:
            self._forget(stream)

    def _receive_epoch(self, message: m.Epoch) -> None:
        stream = self._by_id.get(message.stream)
        if stream is not None and stream.is_live:  # else it crossed a detach
            stream.epoch = message.epoch

    def _deliver(self, stream: ClientStream, epoch: int) -> None:
        stream.delivered_in(epoch)
        self._refusals.forget(stream)

    def _receive_entries(self, id_: str, seq: int, payloads: list[msgspec.Raw], now: float) -> list[Event]:
        stream = self._by_id.get(id_)
        if stream is None or not stream.is_live:
            return []  # they crossed a detach
        if seq > stream.last_seq + 1:
            return self._fail(f"entries {stream.last_seq + 1} to {seq - 1} of {id_} are missing")
        new = stream.take(seq, payloads)
        if len(new) < len(payloads):
            self._grant(stream)
        if stream.needs_ack:
            self._send_acks()
        elif self._ack_deadline is None:
            self._ack_deadline = now + ACK_INTERVAL
        return [EntriesReceived(stream, new)] if new else []

    def _receive_end(self, end: m.End) -> list[Event]:
        stream = self._by_id.get(end.stream)
        if stream is None or not stream.is_live:
            return []
        # A reader that already has the end and asks again gets the end again.
        if end.seq not in (stream.last_seq, stream.last_seq + 1):
            return self._fail(f"{end.stream} ends with entry {end.seq} after entry {stream.last_seq}")
        stream.last_seq = end.seq
        self._out.add(m.Ack({end.stream: end.seq}))
        self._forget(stream)
        return [StreamEnded(stream, end)]

    def _receive_goaway(self, goaway: m.Goaway) -> list[Event]:
        self._is_going_away = True
        self._streams_stay = goaway.streams == "stay"
        events: list[Event] = [GoawayReceived(goaway.reason, goaway.window_ms, goaway.streams)]
        if self._streams_stay and self.state is State.OPEN:
            unsent = [stream for stream in self._by_request.values() if not stream.is_sent]
            events += [self._return(stream) for stream in unsent]
        return events

    def _return(self, stream: ClientStream) -> Event:
        self._forget(stream)
        if stream.is_cancelled:
            return StreamFailed(stream, Cancelled("cancelled before it was started"))
        return StreamReturned(stream)

    def _receive_error(self, message: m.Error, now: float) -> list[Event]:
        error = from_wire(
            message.code, message.message, retryable=message.retryable, retry_after=message.retry_after
        )
        if message.stream is None and message.request_id is None:
            return [SessionError(error)]
        if message.stream is not None and not self._out.is_newest_answer(message.stream):
            return []
        stream = self._by_id.get(message.stream or "") or self._by_request.get(message.request_id or "")
        if stream is None:
            return []
        is_refused_by_drain = message.code == Draining.code and self._is_going_away and stream.id is None
        if is_refused_by_drain and not stream.is_cancelled:
            # The create crossed the `goaway`: nothing was started, and the next connection takes it.
            stream.is_sent = False
            return [self._return(stream)] if self._streams_stay else []
        return self._refuse(stream, error, now)

    def _refuse(self, stream: ClientStream, error: HoldfastError, now: float) -> list[Event]:
        """Give a stream up, or ask for it again later where a retry may help.

        A stream that was never read fails: that is the answer to the application's call. So does one that is live,
        because its reading is over. A cancel of an existing stream is kept in any case.
        """
        is_kept = stream.id is not None and (stream.was_read or stream.is_cancelled)
        if error.retryable and is_kept and not stream.is_live:
            if self._refusals.is_waiting(stream):
                return []  # a cancel was refused as well; it is sent again behind the next `attach`
            delay = self._refusals.defer(stream, error, now)
            if delay is not None:
                return [] if stream.is_ended else [StreamDeferred(stream, error, delay)]
        return self._fail_stream(stream, error)

    # -- time --

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` is due, None while there is no connection."""
        if self.state is State.DISCONNECTED:
            return None
        deadline = self._pong_deadline
        if deadline is None:
            deadline = self._last_received + self.ping_interval
        deadline = min(deadline, self._refusals.deadline)
        return deadline if self._ack_deadline is None else min(deadline, self._ack_deadline)

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due at `now`: ask for streams again, acknowledge, ping, or give a silent connection up."""
        if self.state is State.DISCONNECTED:
            return []
        if now >= self._refusals.deadline:
            for stream in self._refusals.take_due(now):
                self._out.attach(stream)
                if stream.is_cancelled:
                    self._out.cancel(stream)
        if self._ack_deadline is not None and now >= self._ack_deadline:
            self._send_acks()
        if self._pong_deadline is not None:
            if now >= self._pong_deadline:
                return self._fail(f"the server was silent for {now - self._last_received:.0f} s")
        elif now >= self._last_received + self.ping_interval:
            # This counts from now and not from the last message: a machine that slept must not give up at once.
            self._pong_deadline = now + self.ping_timeout
            self._out.add(m.Ping())
        return []

    # -- to the network --

    def data_to_send(self) -> list[bytes]:
        """Return the messages that are due, each one text message, and forget them."""
        return self._out.take()

    def _grant(self, stream: ClientStream) -> None:
        if self.state is State.OPEN and stream.is_live and (grant := stream.take_grant()):
            self._out.add(m.Credit(stream.id or "", grant))

    def _send_acks(self) -> None:
        self._ack_deadline = None
        self._out.acknowledge(self._by_id.values())

    def _forget(self, stream: ClientStream) -> None:
        stream.is_ended = True
        self._refusals.forget(stream)
        if stream.id is not None and self._by_id.get(stream.id) is stream:
            del self._by_id[stream.id]
        if stream.request_id is not None and self._by_request.get(stream.request_id) is stream:
            del self._by_request[stream.request_id]

    def _fail_stream(self, stream: ClientStream, error: HoldfastError) -> list[Event]:
        was_reported = stream.is_ended  # it was detached before
        self._forget(stream)
        return [] if was_reported else [StreamFailed(stream, error)]

    def _fail(self, reason: str) -> list[Event]:
        self.connection_lost()
        return [ConnectionFailed(reason)]


def _error(body: ErrorBody | None) -> HoldfastError:
    if body is None:
        return from_wire("unknown_stream", "the server refused to resume the stream")
    return error_of(body)
