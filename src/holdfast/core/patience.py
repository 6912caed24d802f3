"""How long a gateway bears with a client that sends what serves nothing: first it is slowed, then closed."""

from __future__ import annotations

import enum

#: So many useless frames and messages per second are forgotten.
FORGOTTEN_PER_SECOND = 100.0
#: Past so many that are not forgotten yet, the client is slowed down, and past so many its connection is closed.
SLOWED_PAST = 1_000
CLOSED_PAST = 4_000
#: A client that is slowed down is read no faster than this.
SLOWED_PER_SECOND = 400.0


class Verdict(enum.Enum):
    GO_ON = enum.auto()
    SLOW_DOWN = enum.auto()
    CLOSE = enum.auto()


class Patience:
    """A leaky bucket of what was useless: Pings, Pongs that nobody asked for, tiny fragments, requests refused.

    Clients that do as PROTOCOL.md says come nowhere near: a burst of a thousand refusals costs nothing at all.
    """

    __slots__ = ("_level", "_since")

    def __init__(self, now: float) -> None:
        self._level = 0.0
        self._since = now

    def count(self, useless: int, now: float) -> Verdict:
        """Count what was useless, and say what becomes of the client."""
        self._level = max(self._level - (now - self._since) * FORGOTTEN_PER_SECOND, 0.0) + useless
        self._since = now
        if self._level > CLOSED_PAST:
            return Verdict.CLOSE
        return Verdict.SLOW_DOWN if self._level > SLOWED_PAST else Verdict.GO_ON


def delay_of(useless: int) -> float:
    """Return for how many seconds a client that is slowed down is not read, after so much that was useless."""
    return useless / SLOWED_PER_SECOND
