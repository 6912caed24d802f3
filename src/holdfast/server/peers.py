"""Every open connection of this process, whatever it speaks: counted, told to leave, revoked, closed.

A connection enters as an HTTP connection. One that upgrades leaves as such and comes back as what it has become.
Until a request on it has shown a credential it is a stranger's: when all slots are taken, strangers that are idle
go first, then other idle HTTP connections, and some slots are kept for probes.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Protocol

from holdfast.admission.keys import SecretId
from holdfast.admission.limiter import network_of
from holdfast.core.limits.rate_limit import ArrivalRates
from holdfast.errors import HoldfastError, Overloaded, RateLimited
from holdfast.timers import Timers

logger = logging.getLogger("holdfast")

#: Slots beyond `max_connections` for connections that may only ask public paths, as probes do; and so many that
#: were refused may linger until they have read why.
RESERVED = 16
#: How many of the oldest strangers are asked whether they are idle.
_LOOKED_AT = 4
#: Seconds between two warnings that descriptors run out.
_WARN_INTERVAL = 60.0


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


class Limited(Protocol):
    @property
    def is_limited(self) -> bool: ...


class Arrival(Protocol):
    """A connection that the listener has accepted."""

    number: int
    #: Whether it may only ask public paths: it has one of the slots that are kept for probes.
    is_limited: bool

    @property
    def address(self) -> str: ...

    @property
    def descriptor(self) -> int | None:
        """The number of its socket's descriptor, None where it has none."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way on it, not even in part."""


class ArrivingPeer(Arrival, Peer, Protocol):
    """What the listener hands over: a connection that is a peer as well."""


@dataclass(slots=True, frozen=True)
class PeerStatistics:
    """`open` counts all connections, of which `limit` may ask for more than public paths.

    `most_streams` is what the conversation reads that reads most.
    """

    open: int
    limit: int
    conversations: int
    most_streams: int


class Peers:
    """The set of open connections.

    `max_connections` bounds it; `RESERVED` more may ask public paths, so that probes always get in.
    `connection_rate` bounds new connections per second and address, `per_address` those that are open; None is no
    limit. `max_descriptor` is the descriptor from which on they count as used up.
    """

    def __init__(
        self,
        timers: Timers,
        *,
        max_connections: int,
        connection_rate: int | None = None,
        per_address: int | None = None,
        max_descriptor: int | None = None,
    ) -> None:
        self._timers = timers
        self._open: set[Peer] = set()
        # Connections on which nobody has shown a credential, those in the slots for probes, and HTTP connections
        # that are neither; oldest first, of the last by their last request.
        self._strangers: OrderedDict[object, ArrivingPeer] = OrderedDict()
        self._limited: OrderedDict[object, ArrivingPeer] = OrderedDict()
        self._known: OrderedDict[object, ArrivingPeer] = OrderedDict()
        # Those that were refused, until they are gone.
        self._refused: set[Peer] = set()
        # How many each address has, and whose each connection is; only where that is bounded.
        self._by_address: dict[str, int] = {}
        self._addresses: dict[Peer, str] = {}
        self._max_descriptor = max_descriptor
        self._warned_at: float | None = None
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
        self.configure(max_connections=max_connections, connection_rate=connection_rate, per_address=per_address)

    def configure(
        self, *, max_connections: int, connection_rate: int | None, per_address: int | None = None
    ) -> None:
        """Set bounds for connections that come from now on."""
        self.max_connections = max_connections
        self._per_address = per_address
        self._arrivals = None if connection_rate is None else ArrivalRates(connection_rate)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Peer]:
        """Iterate over the connections that are open now; they may close meanwhile."""
        return iter(list(self._open))

    # -- coming and going --

    def admit(self, connection: ArrivingPeer) -> HoldfastError | None:
        """Number and count a new connection. An error refuses it, and it counts until it is discarded.

        Where all slots are taken, the oldest idle stranger is closed for it, or another idle HTTP connection.
        Where there is none, it gets one of the slots for probes, and `is_limited`.
        """
        connection.number = next(self._numbers)
        refusal = self._refuse(connection)
        if refusal is None:
            if self._has_slot(connection):
                self._strangers[connection] = connection
            elif len(self._limited) < RESERVED or self._close_idle(self._limited):
                connection.is_limited = True
                self._limited[connection] = connection
            else:
                refusal = Overloaded("the gateway has as many connections as it may have", retry_after=1.0)
        self._open.add(connection)
        if refusal is not None:
            self._refused.add(connection)
            if len(self._refused) > RESERVED:
                connection.abort()  # it would hold its descriptor until it has read why
        return refusal

    def _refuse(self, connection: ArrivingPeer) -> HoldfastError | None:
        """Count the connection for its address, or say why not."""
        if self._arrivals is None and self._per_address is None:
            return None
        address = network_of(connection.address)
        if self._arrivals is not None and not self._arrivals.take(address, self._timers.now()):
            return RateLimited("too many new connections from this address", retry_after=1.0)
        if self._per_address is not None:
            if self._by_address.get(address, 0) >= self._per_address:
                return RateLimited("too many open connections from this address", retry_after=1.0)
            self._count_address(connection, address)
        return None

    def _count_address(self, peer: Peer, address: str) -> None:
        self._addresses[peer] = address
        self._by_address[address] = self._by_address.get(address, 0) + 1

    def _has_slot(self, connection: ArrivingPeer) -> bool:
        descriptor, limit = connection.descriptor, self._max_descriptor
        if limit is not None and descriptor is not None and descriptor >= limit:
            self._warn(limit)
        elif len(self._open) - len(self._limited) - len(self._refused) < self.max_connections:
            return True
        return self._close_idle(self._strangers) or self._close_idle(self._known)

    def _close_idle(self, peers: OrderedDict[object, ArrivingPeer]) -> bool:
        """Cut the oldest of these that is idle. Strangers are while they are not answered."""
        for peer in list(itertools.islice(peers.values(), _LOOKED_AT)):
            if peer.is_idle or not (peer.is_busy or peers is self._known):
                self.discard(peer)
                peer.abort()
                return True
            peers.move_to_end(peer)
        return False

    def _warn(self, limit: int) -> None:
        now = self._timers.now()
        if self._warned_at is None or now - self._warned_at >= _WARN_INTERVAL:
            self._warned_at = now
            logger.warning(
                "%d descriptors are in use, nearly as many as may be (ulimit -n): only probes get in beside the "
                "connections that there are",
                limit,
            )

    def known(self, connection: object) -> None:
        """Somebody has shown a credential on this connection: it is no stranger's any more."""
        peer = self._strangers.pop(connection, None)
        if peer is not None:
            self._known[peer] = peer
        elif connection in self._known:
            self._known.move_to_end(connection)

    def check_slot(self, connection: Limited) -> None:
        """Raise `Overloaded` for a connection that has a probe's slot, and asks for more than probes do."""
        if connection.is_limited:
            raise Overloaded("the gateway has as many connections as it may have", retry_after=1.0)

    def add(self, peer: Peer, address: str | None = None) -> None:
        """Count what an admitted connection from this address has become."""
        self._open.add(peer)
        if self._per_address is not None and address is not None:
            self._count_address(peer, network_of(address))
        if self._closes_idle:
            peer.close_when_idle()

    def discard(self, peer: Peer) -> None:
        """Forget a connection that is gone. Idempotent."""
        if peer in self._open:
            self._open.discard(peer)
            self._strangers.pop(peer, None)
            self._limited.pop(peer, None)
            self._known.pop(peer, None)
            self._refused.discard(peer)
            address = self._addresses.pop(peer, None)
            if address is not None:
                self._by_address[address] -= 1
                if not self._by_address[address]:
                    del self._by_address[address]
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
            limit=self.max_connections,
            conversations=sum(peer.is_conversation for peer in self._open),
            most_streams=max((peer.stream_count for peer in self._open), default=0),
        )
