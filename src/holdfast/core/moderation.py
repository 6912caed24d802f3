"""Read moderation: how long a busy loop waits before it looks at its sockets again.

Network cards do the same with interrupts. A turn of the loop that carries one event pays for its system calls
alone; one that carries ten shares them. The price is latency, so it is paid only where there is much to share.
"""

from __future__ import annotations

#: Seconds over which the rate of events is measured.
WINDOW = 0.01


class ReadModeration:
    """Decides after each turn how long to hold the next one back.

    Aims at `events_per_turn` events in each turn, and never holds longer than `max_hold` seconds. Below
    `min_rate` events per second it does not hold at all: light load pays no latency. Nor does it after a turn that
    carried enough already: a saturated loop finds its sockets full without waiting.
    """

    __slots__ = ("_events", "_rate", "_since", "events_per_turn", "max_hold", "min_rate")

    def __init__(self, *, max_hold: float = 0.001, events_per_turn: int = 10, min_rate: float = 3000.0) -> None:
        self.max_hold = max_hold
        self.events_per_turn = events_per_turn
        self.min_rate = min_rate
        self._events = 0
        self._since = 0.0
        self._rate = 0.0

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
            return 0.0
        return min(self.max_hold, self.events_per_turn / self._rate)
