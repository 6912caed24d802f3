"""A client's WebSocket that streams are delivered over: what every such conversation has beside its messages."""

from __future__ import annotations

from collections.abc import Set

from holdfast.admission.keys import REVOKED, SecretId
from holdfast.core.log import Framing
from holdfast.errors import HoldfastError, Unauthorized
from holdfast.observe.events import Caller, ConnectionEnded, ConnectionOpened
from holdfast.server.delivery.outlet import Control, Outlet
from holdfast.server.handshakes import Handshake
from holdfast.server.listener.websocket import WebSocketProtocol
from holdfast.server.services import Services
from holdfast.streams.stream import Stream


class ClientSocket(WebSocketProtocol):
    """One conversation and the streams that it reads, as one of the process's peers.

    Subclasses understand messages (`text_received`, `binary_received`), say what the outlet cannot
    (`position_changed`, `end_written`), and how they part (`drain`, `end`).
    """

    __slots__ = ("_leases", "number", "opened", "outlet", "principal", "services")

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
        super().__init__(
            handshake.transport, services.timers, max_message=limits.max_message, liveness=limits.liveness
        )
        services.observer.observe(ConnectionOpened(self.number, self.caller))

    # -- for subclasses --

    def position_changed(self, stream: Stream) -> None:
        """Tell the client how many are served before a stream that waits. Without a form for it: nothing."""

    def epoch_changed(self, stream: Stream) -> None:
        """Tell the client that another owner carries the stream on. Without a form for it: nothing."""

    def end_written(self, stream: Stream) -> None:
        """The client was sent the end of a stream. Say what follows it, or nothing."""

    def end(self, error: HoldfastError) -> None:
        """End the conversation for an error: tell the client, and close."""
        raise NotImplementedError

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
        # So that `resume_writing` says when all has been written.
        transport.set_write_buffer_limits(high=0)
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
