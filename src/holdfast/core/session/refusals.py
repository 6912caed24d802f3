"""Which streams a server has refused for the time being, and when the client asks for each of them again."""

from __future__ import annotations

import math

from holdfast.core.backoff import Backoff, UniformRandom
from holdfast.core.session.client_stream import ClientStream
from holdfast.errors import HoldfastError


class Refusals:
    """The streams of a session that were refused with an error that a retry may help against.

    A stream is asked for again at most `max_retries` times in a row. Each try waits what the server asked for, at
    most `max_backoff`, and a random time of up to `initial_backoff`, doubled each time up to `max_backoff`. Times
    are in seconds.
    """

    __slots__ = ("_backoffs", "_due", "_initial_backoff", "_max_backoff", "_max_retries", "_rng", "deadline")

    def __init__(
        self, rng: UniformRandom, *, max_retries: int, initial_backoff: float, max_backoff: float
    ) -> None:
        self._rng = rng
        self._max_retries = max_retries
        self._initial_backoff = initial_backoff
        self._max_backoff = max_backoff
        #: When `take_due` should be called next, infinite where no stream waits. It may be early, never late.
        self.deadline = math.inf
        self._due: dict[ClientStream, float] = {}
        # Counts the refusals of a stream since it was last delivered; a reconnect does not reset it.
        self._backoffs: dict[ClientStream, Backoff] = {}

    def __contains__(self, stream: ClientStream) -> bool:
        """Whether the stream was refused, on this connection or an older one, and not delivered since then."""
        return stream in self._backoffs

    def is_waiting(self, stream: ClientStream) -> bool:
        """Whether the stream waits to be asked for again."""
        return stream in self._due

    def defer(self, stream: ClientStream, error: HoldfastError, now: float) -> float | None:
        """Count a refusal and return in how many seconds to ask again; None where that was the last try."""
        backoff = self._backoffs.get(stream)
        if backoff is None:
            backoff = self._backoffs[stream] = Backoff(self._initial_backoff, self._max_backoff)
        if backoff.failures >= self._max_retries:
            return None
        # The wire may say anything: a server must not make its clients wait for a day.
        floor = min(max(error.retry_after or 0.0, 0.0), self._max_backoff)
        delay = backoff.next_delay(self._rng, retry_after=floor)
        self._due[stream] = now + delay
        self.deadline = min(self.deadline, now + delay)
        return delay

    def take_due(self, now: float) -> list[ClientStream]:
        """Return the streams to ask for now; they wait no longer."""
        due = [stream for stream, moment in self._due.items() if moment <= now]
        for stream in due:
            del self._due[stream]
        self.deadline = min(self._due.values(), default=math.inf)
        return due

    def forget(self, stream: ClientStream) -> None:
        """Forget a stream and its refusals: it is delivered, or over. Idempotent."""
        self._due.pop(stream, None)
        self._backoffs.pop(stream, None)

    def connection_lost(self) -> None:
        """Wait no longer: the next `hello` asks for every stream."""
        self._due.clear()
        self.deadline = math.inf
