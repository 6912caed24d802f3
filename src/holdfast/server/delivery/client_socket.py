"""A client's WebSocket that streams are delivered over: what every such conversation has beside its messages."""

from __future__ import annotations

from collections.abc import Set

from holdfast.admission.keys import REVOKED, SecretId
from holdfast.core.entries import START, Position
from holdfast.core.log import Cursor, Framing
from holdfast.errors import HelloTimeout, HoldfastError, TooManyStreams, Unauthorized
from holdfast.observe.events import Caller, ConnectionEnded, ConnectionOpened
from holdfast.server.delivery.outlet import Control, Outlet
from holdfast.server.handshakes import Handshake
from holdfast.server.listener.websocket import WebSocketProtocol
from holdfast.server.services import Services
from holdfast.streams.stream import Stream


class ClientSocket(WebSocketProtocol):
    """One conversation and the streams that it reads, as one of the process's peers.

    Subclasses understand messages (`text_received`, `binary_received`), say what the outlet cannot
    (`position_changed`, `end_written`), and how they part (`drain`, `end`). They call `begin` when the client has
    said what it came for, or have the conversation ended by `server.hello_timeout`.
    """

    __slots__ = ("_first_message", "_leases", "max_streams", "number", "opened", "outlet", "principal", "services")

    def __init__(self, handshake: Handshake, services: Services, *, control: Control, framing: Framing) -> None:
        self.services = services
        self.principal = handshake.principal
        #: Connection number, for log lines.
        self.number = handshake.number
        self.opened = services.timers.now()
        # Its connections of the key's and the tenant's limits.
        self._leases = handshake.leases
        self.outlet = Outlet(self, self, control, services.flusher, framing)
        limits = services.limits
        #: How many streams it may read at a time. Like its other bounds, it holds for the whole conversation.
        self.max_streams = limits.max_streams
        super().__init__(
            handshake.transport,
            services.timers,
            services.turns,
            services.budget.account(handshake.principal.tenant),
            max_message=limits.max_message,
            message_timeout=limits.message_timeout,
            liveness=limits.liveness,
        )
        # A client that says nothing would hold the connection as long as it answers pings.
        self._first_message = services.timers.after(limits.hello_timeout, self._first_message_timed_out)
        services.observer.observe(ConnectionOpened(self.number, self.caller))

    # -- the client's time to begin --

    def begin(self) -> None:
        """The client has said what it came for: it may be silent from now on. Idempotent."""
        self._first_message.cancel()

    def _first_message_timed_out(self) -> None:
        self.end(HelloTimeout())

    # -- what it reads --

    def looks_on(self, stream: Stream) -> bool:
        """Whether the caller reads a stream of somebody else."""
        return self.principal.owner.looks_on(stream.origin.owner)

    def check_room(self, replaces: Cursor | None = None) -> None:
        """Raise unless the client may read one more stream, or another cursor of one that it reads.

        Raises `TooManyStreams`, or `Unauthorized`: a conversation may outlive the token that it was opened with.
        Ask before a stream is created for it; `read` asks by itself.
        """
        self._check_bound(replaces)
        self.principal.check_expiry(self.services.clock())

    def _check_bound(self, replaces: Cursor | None) -> None:
        if replaces is None and len(self.outlet.streams) >= self.max_streams:
            raise TooManyStreams

    def read(
        self,
        found: Stream | HoldfastError,
        position: Position = START,
        *,
        credit: int | None = None,
        replaces: Cursor | None = None,
    ) -> Cursor:
        """Deliver what a lookup has found from behind a position, until its end is written.

        `replaces` is the older cursor of the same stream, if the client has one. Raises like `check_room` and
        `Stream.attach`, and what the lookup has found instead of a stream; then nothing has changed.
        """
        self.check_room(replaces)
        if isinstance(found, HoldfastError):
            raise found
        return self._deliver(
            found, found.attach(self.outlet, position, credit=credit, is_onlooker=self.looks_on(found)), replaces
        )

    def read_created(self, stream: Stream, *, credit: int | None = None, replaces: Cursor | None = None) -> Cursor:
        """Deliver a stream that the launcher has made for this conversation, whose credential it has checked.

        `replaces` is the older cursor, where the request was a duplicate. Raises like `Stream.attach`, and
        `TooManyStreams` where there is no room any more: then the stream waits for a reader like a lost client's.
        """
        cursor = stream.attach(self.outlet, credit=credit)
        try:
            self._check_bound(replaces)
        except TooManyStreams:
            stream.lose(cursor)
            raise
        return self._deliver(stream, cursor, replaces)

    def _deliver(self, stream: Stream, cursor: Cursor, replaces: Cursor | None) -> Cursor:
        if self.is_gone:
            # An answer may outlast its connection: the stream waits for its client's return.
            stream.lose(cursor)
            return cursor
        if replaces is not None:
            self.outlet.release(replaces)
        self.outlet.add(stream, cursor)
        self.outlet.mark()
        return cursor

    # -- for subclasses --

    @property
    def is_gone(self) -> bool:
        """Whether nobody is left to be answered."""
        return self.transport is None or self.codec.is_closing

    def position_changed(self, stream: Stream) -> None:
        """Tell the client how many are served before a stream that waits. Without a form for it: nothing."""

    def epoch_changed(self, stream: Stream) -> None:
        """Tell the client that another owner carries the stream on. Without a form for it: nothing."""

    def end_written(self, stream: Stream) -> None:
        """The client was sent the end of a stream. Say what follows it, or nothing."""

    def forgotten(self, stream: Stream, error: HoldfastError) -> None:
        """A stream's log is gone before the client had its end. Tell the client, or end the conversation."""
        self.end(error)

    def end(self, error: HoldfastError) -> None:
        """End the conversation for an error: tell the client, and close."""
        raise NotImplementedError

    def fail(self, error: HoldfastError) -> None:
        self.end(error)

    @property
    def has_said_all(self) -> bool:
        """Whether the conversation has begun, and nothing of the protocol is left to be said."""
        raise NotImplementedError

    def leave_streams(self) -> None:
        """Leave the streams to whoever comes back for them. Idempotent."""
        self.outlet.lose_all()

    @property
    def caller(self) -> Caller:
        """Who has opened it, for logs and metrics."""
        return Caller(self.principal.tenant, self.principal.key_id, self.number)

    # -- one of the peers --

    is_conversation = True
    is_busy = True  # whoever drains waits until the client has gone

    @property
    def stream_count(self) -> int:
        return len(self.outlet.streams)

    def drain(self, window: float) -> None:
        """Tell the client to leave within so many seconds. Without a form for it: nothing."""

    def close_when_idle(self) -> None:
        transport = self.transport
        if transport is None or self.outlet.on_flushed is not None:
            return
        self.outlet.on_flushed = self._close_if_idle
        # So that `resume_writing` says when all has been written. TLS has more than a byte or none; with 0 it
        # would count as full when it is empty, and nothing would tell of its end.
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1, low=0)
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        transport = self.transport
        if (
            transport is not None
            and not self.outlet.streams
            and self.has_said_all
            and transport.get_write_buffer_size() == 0
        ):
            self.say_goodbye()

    def say_goodbye(self) -> None:
        self.close(1012, "draining")

    def revoke(self, removed: Set[SecretId]) -> None:
        principal = self.principal
        if principal.key_id is not None and (principal.key_id, principal.generation) in removed:
            self.end(Unauthorized(REVOKED))
            self.leave_streams()

    # -- the socket --

    def resume_writing(self) -> None:
        super().resume_writing()
        self.outlet.mark()

    def connection_closed(self) -> None:
        self._first_message.cancel()
        self.services.peers.discard(self)
        self.services.observer.observe(
            ConnectionEnded(
                self.number,
                self.caller,
                duration=self.timers.now() - self.opened,
                close_code=self.codec.close_code,
                streams_left=len(self.outlet.streams),
            )
        )
        for lease in self._leases:
            lease.release()
        self.leave_streams()
        self.outlet.close()
