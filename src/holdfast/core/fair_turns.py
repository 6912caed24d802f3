"""Whose turn it is among peers that have sent more than was handled yet.

Deficit round robin in time instead of bytes, with new flows first (RFC 8290, section 4.1: FQ-CoDel without the
CoDel). A peer that sends now and then is served before those that send without end, however many these are. Users
take turns in the same way, and the peers of each share its turns: many connections get no more than one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

_Peer = TypeVar("_Peer", bound=Hashable)
_User = TypeVar("_User", bound=Hashable)

#: A peer whose one step took very long sits out so many rounds at most.
MAX_DEBT = 8


class FairTurns(Generic[_Peer]):
    """The peers that wait to be served, each for about `quantum` seconds a round.

        entered, and in neither list       -> the end of `new`, with credit for one quantum
        has used its credit up             -> the end of `old`, with credit for one more
        has nothing left to do, in `new`   -> the end of `old`: who comes again at once is not new
        has nothing left to do, in `old`   -> neither list

    Those in `new` are served before those in `old`. Every operation is O(1), but for rounds that are sat out.
    """

    __slots__ = ("_forgotten", "_new", "_old", "_waiting", "quantum")

    def __init__(self, quantum: float, *, forgotten: Callable[[_Peer], object] | None = None) -> None:
        """`forgotten` is told of each peer that is off the lists and has not left."""
        self.quantum = quantum
        self._forgotten = forgotten
        # The credit of each, in seconds.
        self._new: OrderedDict[_Peer, float] = OrderedDict()
        self._old: OrderedDict[_Peer, float] = OrderedDict()
        # Those in the lists that have something to do.
        self._waiting: set[_Peer] = set()

    def __len__(self) -> int:
        """Count the peers that have something to do."""
        return len(self._waiting)

    def __contains__(self, peer: _Peer) -> bool:
        """Whether the peer has to wait for its turn: it has something to do, or has just been served."""
        return peer in self._new or peer in self._old

    def __iter__(self) -> Iterator[_Peer]:
        """Iterate over the peers in the lists."""
        yield from self._new
        yield from self._old

    def enter(self, peer: _Peer) -> None:
        """The peer has something to do. Idempotent."""
        self._waiting.add(peer)
        if peer not in self:
            self._new[peer] = self.quantum

    def leave(self, peer: _Peer) -> None:
        """Forget a peer. Idempotent."""
        self._waiting.discard(peer)
        self._new.pop(peer, None)
        self._old.pop(peer, None)

    def rest(self, peer: _Peer) -> None:
        """The peer has nothing to do any more, though it was not its turn. Idempotent."""
        self._waiting.discard(peer)

    def next(self) -> _Peer | None:
        """Return the peer whose turn it is, None where nobody waits. Then call `served` or `leave`."""
        new, old, waiting = self._new, self._old, self._waiting
        while flows := new or old:
            peer, credit = next(iter(flows.items()))
            if peer not in waiting:
                del flows[peer]
                if self._forgotten is not None:
                    self._forgotten(peer)
            elif credit > 0:
                return peer
            else:
                del flows[peer]
                old[peer] = credit + self.quantum
        return None

    def served(self, peer: _Peer, cost: float, *, has_more: bool) -> None:
        """Note that the peer's turn took so many seconds. Nothing happens where the peer has left."""
        flows = self._new if peer in self._new else self._old
        if peer not in flows:
            return
        flows[peer] = max(flows[peer] - cost, -MAX_DEBT * self.quantum)
        if has_more:
            return
        self._waiting.discard(peer)
        credit = flows.pop(peer)
        if flows is self._new:
            self._old[peer] = credit
        elif self._forgotten is not None:
            self._forgotten(peer)


class UserTurns(Generic[_User, _Peer]):
    """The peers that wait to be served: turns among their users, and among the peers of each user.

    A peer whose user has changed, as a connection does that shows a credential, waits as the new one's from its
    next turn on.
    """

    __slots__ = ("_peers", "_quantum", "_served", "_user_of", "_users")

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._users: FairTurns[_User] = FairTurns(quantum, forgotten=self._forget_user)
        # The peers of each user, and whose each of them is.
        self._peers: dict[_User, FairTurns[_Peer]] = {}
        self._user_of: dict[_Peer, _User] = {}
        # Whose turn it is.
        self._served: _User | None = None

    def __len__(self) -> int:
        """Count the peers that have something to do."""
        return sum(map(len, self._peers.values()))

    def __contains__(self, peer: _Peer) -> bool:
        """Whether the peer has to wait for its turn: it has something to do, or has just been served."""
        return peer in self._user_of

    def enter(self, peer: _Peer, user: _User) -> None:
        """A peer of this user has something to do. Idempotent."""
        user = self._user_of.setdefault(peer, user)
        peers = self._peers.get(user)
        if peers is None:
            peers = self._peers[user] = FairTurns(self._quantum, forgotten=self._user_of.pop)
        peers.enter(peer)
        self._users.enter(user)

    def leave(self, peer: _Peer) -> None:
        """Forget a peer. Idempotent."""
        user = self._user_of.pop(peer, None)
        if user is not None:
            peers = self._peers[user]
            peers.leave(peer)
            if not peers:
                self._users.rest(user)

    def next(self) -> _Peer | None:
        """Return the peer whose turn it is, None where nobody waits. Then call `served` or `leave`."""
        user = self._served = self._users.next()
        return None if user is None else self._peers[user].next()

    def served(self, peer: _Peer, user: _User, cost: float, *, has_more: bool) -> None:
        """Note that the turn of the peer, which is this user's now, took so many seconds."""
        if self._served is None:
            return
        peers = self._peers[self._served]
        if self._user_of.get(peer) == user:
            peers.served(peer, cost, has_more=has_more)
        elif peer in self._user_of:
            self.leave(peer)
            if has_more:
                self.enter(peer, user)
        # Also where the peer has left: the time was its user's.
        self._users.served(self._served, cost, has_more=len(peers) > 0)

    def _forget_user(self, user: _User) -> None:
        for peer in self._peers.pop(user):
            del self._user_of[peer]
