"""What the listener asks of whoever serves its connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from holdfast.errors import HoldfastError
from holdfast.server.listener.admitted import Admitted
from holdfast.server.listener.exchange import ErrorShape, Request

if TYPE_CHECKING:  # which has an application
    from holdfast.server.listener.http import HttpConnection


class Application(Protocol):
    """What answers the requests of a connection."""

    def admit(self, request: Request, *, may_wait: bool = True) -> Admitted:
        """Judge a request by its head. Raises `KeysPending` if it `may_wait` for the keys of its credential."""

    def judged(self, connection: HttpConnection, admitted: Admitted) -> None:
        """Note what a head has shown of its connection, and refuse what the connection may not ask."""

    def upgrade(self, request: Request, connection: HttpConnection, rest: bytes) -> None:
        """Answer a WebSocket handshake, or take over the transport. `rest` are the bytes behind the request."""

    def connection_made(self, connection: HttpConnection) -> HoldfastError | None:
        """Count a new connection. A returned error is sent to it, and closes it."""

    def connection_lost(self, connection: HttpConnection) -> None: ...

    def answer_finished(self, connection: HttpConnection) -> None:
        """Note, while draining, that an answer of this connection is complete."""

    def shape_of(self, path: str | None) -> ErrorShape:
        """Return the shape of errors on a path; None stands for a path that is not known yet."""

    @property
    def is_draining(self) -> bool:
        """Whether each connection closes behind its answer."""
