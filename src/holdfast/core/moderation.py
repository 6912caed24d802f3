"""Read moderation: how long a busy loop waits before it looks at its sockets again.

Network cards do the same with interrupts. A turn of the loop that carries one event pays for its system calls,
and for caches that have gone cold since the last turn, alone; one that carries ten shares them. The price is
latency, so it is paid only where there is much to share.
"""

from __future__ import annotations

#: Seconds over which the rate of events is measured.
WINDOW = 0.01
#: A shorter wait costs about what it saves.
MIN_HOLD = 0.0001


class ReadModeration:
    """Decides after each turn how long to hold the next one back.

    Aims at `events_per_turn` events in each turn, and never lets turns begin further apart than `max_hold` seconds
    for it: the time that a turn takes counts, so that a saturated loop is not held at all. Below `min_rate` events
    per second nothing is held: light load pays no latency. Nor is it after a turn that carried enough: events come
    in clumps, and to wake for the gap behind one would cost a turn for nothing.
    """

    __slots__ = ("_begun", "_events", "_rate", "_since", "events_per_turn", "max_hold", "min_rate")

    def __init__(self, *, max_hold: float = 0.001, events_per_turn: int = 10, min_rate: float = 3000.0) -> None:
        self.max_hold = max_hold
        self.events_per_turn = events_per_turn
        self.min_rate = min_rate
        self._events = 0
        self._since = 0.0
        self._rate = 0.0
        # When the turn began that ends next, as far as is known.
        self._begun = 0.0

    @property
    def rate(self) -> float:
        """Events per second in the last complete window."""
        return self._rate

    def hold(self, events: int, now: float) -> float:
        """Count the events of a turn that ended at `now`; return the seconds to hold the next one back."""
        self._events += events
        elapsed = now - self._since
        if elapsed >= WINDOW:
            # A gap longer than a few windows was idle time: what came before it says nothing about now.
            self._rate = self._events / elapsed if elapsed < 10 * WINDOW else 0.0
            self._events = 0
            self._since = now
        if self._rate < self.min_rate or events >= self.events_per_turn:
            self._begun = now
            return 0.0
        hold = self._begun + min(self.max_hold, self.events_per_turn / self._rate) - now
        if hold < MIN_HOLD:
            self._begun = now
            return 0.0
        self._begun = now + hold
        return hold
