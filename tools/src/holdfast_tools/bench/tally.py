"""What a window of a load has counted, and how workers say it to the process that started them."""

from __future__ import annotations

import msgspec

from holdfast_tools.bench.histogram import Histogram

#: Failures that are kept as text, for a window; all of them are counted.
MAX_ERRORS = 5


class Tally(msgspec.Struct):
    """Counts of one window, of one worker or of several. Durations are in nanoseconds.

    `tokens` are those of the simulated provider's text that came in their place; of another provider, the deltas.
    `lost` may be negative where a token that a former window took for lost came after all; the sum is right.
    """

    seconds: float = 0.0
    tokens: int = 0
    #: Deltas with text: what a provider wrote as one event.
    events: int = 0
    bytes: int = 0
    #: Answers that came to their orderly end, and those that did not.
    answers: int = 0
    failed: int = 0
    #: Connections that were opened.
    opened: int = 0
    #: Pings of the gateway, each of which was answered.
    pings: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    #: Tokens that belong to no place of this answer.
    foreign: int = 0
    #: Entries whose sequence number was not the next one.
    misnumbered: int = 0
    #: The provider's write to our read, where the provider says when it wrote.
    latency: Histogram = msgspec.field(default_factory=Histogram)
    #: Our request to the first text.
    first_token: Histogram = msgspec.field(default_factory=Histogram)
    #: After a cut, the beginning of the new connection to the next text.
    resume: Histogram = msgspec.field(default_factory=Histogram)
    #: From text to text of one answer; texts of one read have no time between them.
    gap: Histogram = msgspec.field(default_factory=Histogram)
    #: Opening a connection until requests can be sent on it: TCP, TLS, a WebSocket's handshake and welcome.
    setup: Histogram = msgspec.field(default_factory=Histogram)
    #: CPU of the workers, and the share of a core that the busiest of them took.
    cpu_ns: int = 0
    busiest: float = 0.0
    errors: list[str] = []

    def fail(self, why: str) -> None:
        """Count an answer that did not come to its end, or a connection that could not be made."""
        self.failed += 1
        self.note(why)

    def note(self, error: str) -> None:
        if len(self.errors) < MAX_ERRORS and error not in self.errors:
            self.errors.append(error)

    def merge(self, other: Tally) -> None:
        """Add the counts of another worker for the same window, or of another window."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = max(self.seconds, other.seconds)
        self.busiest = max(self.busiest, other.busiest)
        for histogram in ("latency", "first_token", "resume", "gap", "setup"):
            getattr(self, histogram).merge(getattr(other, histogram))
        for error in other.errors:
            self.note(error)

    @property
    def faults(self) -> dict[str, int]:
        """What must not happen, by name; empty if all is well."""
        names = ("lost", "doubled", "reordered", "foreign", "misnumbered")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


_COUNTS = (
    *("tokens", "events", "bytes", "answers", "failed", "opened", "pings"),
    *("lost", "doubled", "reordered", "foreign", "misnumbered", "cpu_ns"),
)
