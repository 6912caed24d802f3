"""What a connection tells the pool that owns it."""

from __future__ import annotations

from typing import Protocol, TypeVar

_C = TypeVar("_C", contravariant=True)


class ConnectionOwner(Protocol[_C]):
    """What a connection tells its pool, always after it has changed its own state."""

    def slot_freed(self, connection: _C) -> None: ...
    def settings_changed(self, connection: _C) -> None: ...

    def request_refused(self, connection: _C) -> None:
        """The peer refused a request without processing it; `slot_freed` follows."""

    def found_stale(self, connection: _C) -> None:
        """The peer closed a kept-alive connection as a request was sent; `connection_lost` follows."""

    def http1_required(self, connection: _C) -> None:
        """The peer wants a request over HTTP/1.1 instead (RFC 9113 section 7); `slot_freed` follows."""

    def connection_draining(self, connection: _C) -> None:
        """The connection takes no new requests."""

    def connection_lost(self, connection: _C) -> None:
        """The connection cannot be used any more. Called once, and only if it was established."""

    def count_reset(self, cause: str) -> None:
        """A response was cut short."""

    def count_goaway(self) -> None: ...
