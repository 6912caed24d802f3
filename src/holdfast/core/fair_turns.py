"""Whose turn it is among peers that have sent more than was handled yet.

Deficit round robin in time instead of bytes, with new flows first (RFC 8290, section 4.1: FQ-CoDel without the
CoDel). A peer that sends now and then is served before those that send without end, however many these are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

_Peer = TypeVar("_Peer", bound=Hashable)

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

    __slots__ = ("_new", "_old", "_waiting", "quantum")

    def __init__(self, quantum: float) -> None:
        self.quantum = quantum
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

    def next(self) -> _Peer | None:
        """Return the peer whose turn it is, None where nobody waits. Then call `served` or `leave`."""
        new, old, waiting = self._new, self._old, self._waiting
        if not waiting:
            new.clear()
            old.clear()
            return None
        while True:
            flows = new or old
            peer, credit = next(iter(flows.items()))
            if peer not in waiting:
                del flows[peer]
            elif credit > 0:
                return peer
            else:
                del flows[peer]
                old[peer] = credit + self.quantum

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
