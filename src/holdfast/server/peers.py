"""Every open connection of this process, whatever it speaks: counted, told to leave, revoked, closed.

A connection enters as an HTTP connection. One that upgrades leaves as such and comes back as what it has become.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Protocol

from holdfast.admission.keys import SecretId
from holdfast.admission.limiter import network_of
from holdfast.core.limits.rate_limit import ArrivalRates
from holdfast.errors import HoldfastError, Overloaded, RateLimited
from holdfast.timers import Timers


class Peer(Protocol):
    """One open connection, as the process sees it that it belongs to."""

    @property
    def is_conversation(self) -> bool:
        """Whether it lasts, and is told when to leave, rather than serving one request after another."""

    @property
    def is_busy(self) -> bool:
        """Whether a process that drains has to wait for it."""

    @property
    def stream_count(self) -> int:
        """How many streams a conversation reads."""

    def drain(self, window: float) -> None:
        """Tell the client to leave within so many seconds."""

    def close_when_idle(self) -> None:
        """Close as soon as nothing is under way and nothing is left to be written."""

    def say_goodbye(self) -> None:
        """Close in order: the client is told."""

    def revoke(self, removed: Set[SecretId]) -> None:
        """End what was begun with one of these secrets, or with a token that was made with one of them."""

    def abort(self) -> None:
        """Cut the connection."""


class Arrival(Protocol):
    """A connection that the listener has accepted."""

    number: int

    @property
    def address(self) -> str: ...


class ArrivingPeer(Arrival, Peer, Protocol):
    """What the listener hands over: a connection that is a peer as well."""


@dataclass(slots=True, frozen=True)
class PeerStatistics:
    """`open` counts all connections. `most_streams` is what the conversation reads that reads most."""

    open: int
    conversations: int
    most_streams: int


class Peers:
    """The set of open connections.

    `max_connections` bounds it. `connection_rate` bounds new connections per second and address; None is no limit.
    """

    def __init__(self, timers: Timers, *, max_connections: int, connection_rate: int | None = None) -> None:
        self._timers = timers
        self._open: set[Peer] = set()
        # One that was busy when it was last asked, so that not all are asked each time that somebody leaves.
        self._busy: Peer | None = None
        self._numbers = itertools.count(1)
        #: Whether the process goes: connections close behind their answers.
        self.is_draining = False
        #: Within how many seconds clients are told to leave, None where they are not told.
        self.window: float | None = None
        self._closes_idle = False
        #: Is called, while the process drains, whenever the last busy connection has ceased to be.
        self.on_settled: Callable[[], None] | None = None
        self.configure(max_connections=max_connections, connection_rate=connection_rate)

    def configure(self, *, max_connections: int, connection_rate: int | None) -> None:
        """Set bounds for connections that come from now on."""
        self._max_connections = max_connections
        self._arrivals = None if connection_rate is None else ArrivalRates(connection_rate)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Peer]:
        """Iterate over the connections that are open now; they may close meanwhile."""
        return iter(list(self._open))

    # -- coming and going --

    def admit(self, connection: ArrivingPeer) -> HoldfastError | None:
        """Number and count a new connection. An error refuses it, and it counts until it is discarded."""
        connection.number = next(self._numbers)
        self._open.add(connection)
        if len(self._open) > self._max_connections:
            return Overloaded("the gateway has as many connections as it may have", retry_after=1.0)
        rates = self._arrivals
        if rates is not None and not rates.take(network_of(connection.address), self._timers.now()):
            return RateLimited("too many new connections from this address", retry_after=1.0)
        return None

    def add(self, peer: Peer) -> None:
        """Count what an admitted connection has become."""
        self._open.add(peer)
        if self._closes_idle:
            peer.close_when_idle()

    def discard(self, peer: Peer) -> None:
        """Forget a connection that is gone. Idempotent."""
        if peer in self._open:
            self._open.discard(peer)
            if peer is self._busy:
                self._busy = None
            self.check_settled()

    def check_settled(self) -> None:
        """Look whether the last busy connection has ceased to be, where somebody waits for that."""
        if self.on_settled is not None and not self.is_busy:
            self.on_settled()

    # -- the end --

    @property
    def is_busy(self) -> bool:
        """Whether a process that drains has to wait for any connection."""
        if self._busy is None or not self._busy.is_busy:
            self._busy = next((peer for peer in self._open if peer.is_busy), None)
        return self._busy is not None

    def drain(self, window: float) -> None:
        """Tell every client, also those that come from now on, to leave within so many seconds."""
        self.is_draining = True
        self.window = window
        for peer in self:
            peer.drain(window)

    def close_when_idle(self) -> None:
        """Close every connection as soon as nothing is under way on it, also those that come from now on."""
        self.is_draining = self._closes_idle = True
        for peer in self:
            peer.close_when_idle()

    def say_goodbye(self) -> None:
        for peer in self:
            peer.say_goodbye()

    def abort(self) -> None:
        for peer in self:
            peer.abort()

    def revoke(self, removed: Set[SecretId]) -> None:
        """End what was begun with these secrets, or with tokens that were made with them."""
        for peer in self:
            peer.revoke(removed)

    def statistics(self) -> PeerStatistics:
        """Count. It looks at every connection once."""
        return PeerStatistics(
            open=len(self._open),
            conversations=sum(peer.is_conversation for peer in self._open),
            most_streams=max((peer.stream_count for peer in self._open), default=0),
        )
