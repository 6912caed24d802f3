"""Read moderation: how long a busy event loop waits before it looks at its sockets again.

Network cards moderate interrupts in the same way. Each turn of the loop costs system calls and cold caches. If a
turn carries ten events, they share that cost. The price is latency, so the loop waits only when events are many.
"""

from __future__ import annotations

#: Seconds over which the rate of events is measured.
WINDOW = 0.01
#: A shorter wait costs about what it saves.
MIN_HOLD = 0.0001


class ReadModeration:
    """Decides after each turn how long to hold back the next one.

    The aim is `events_per_turn` events in each turn, with at most `max_hold` seconds between the beginnings of two
    turns. The time that a turn takes counts, so a saturated loop is not held back at all. Below `min_rate` events
    per second no turn is held back, so light load pays no latency. Nor is the turn after one that carried enough:
    events come in bursts, and the turn that looks into the gap behind a burst would be wasted.
    """

    __slots__ = ("_begun", "_events", "_rate", "_since", "events_per_turn", "max_hold", "min_rate")

    def __init__(self, *, max_hold: float = 0.001, events_per_turn: int = 10, min_rate: float = 3000.0) -> None:
        self.max_hold = max_hold
        self.events_per_turn = events_per_turn
        self.min_rate = min_rate
        self._events = 0
        self._since = 0.0
        self._rate = 0.0
        # When the present turn began, as far as is known.
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
            # A gap of many windows was idle time: the events before it say nothing about the present rate.
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
