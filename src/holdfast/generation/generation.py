"""One request from its admission to the end of its stream; while it waits in the queue, the stream's source."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.admission.queue import Ticket
from holdfast.core.entries import EndBody, error_body
from holdfast.dialects.ask import Ask
from holdfast.errors import Cancelled, HoldfastError
from holdfast.observe.events import Caller, Observer, RequestQueued
from holdfast.streams.stream import Stream
from holdfast.timers import Timers


class Generation:
    """What the launcher keeps of a request that it has started: who asked for what, its ticket and its stream.

    | state | source of the stream | what moves it there |
    |---|---|---|
    | waiting | this object | `wait` |
    | running | a pump | the queue: `admitted` |
    | ended | none | cancelled, expired in the queue, or the pump's end |
    """

    __slots__ = (
        "_clock",
        "_observer",
        "_queued",
        "_start",
        "_waits_since",
        "ask",
        "caller",
        "size",
        "stream",
        "ticket",
    )

    def __init__(
        self, stream: Stream, ask: Ask, caller: Caller, ticket: Ticket, timers: Timers, observer: Observer
    ) -> None:
        self.stream = stream
        self.ask = ask
        self.caller = caller
        self.ticket = ticket
        #: Bytes of the request that the stream's account is charged with.
        self.size = 0
        self._clock = timers.now
        self._observer = observer
        # Seconds that it has waited in the queue before, and since when it waits now.
        self._queued = 0.0
        self._waits_since: float | None = None
        self._start: Callable[[Generation], None] | None = None

    @property
    def queued(self) -> float:
        """Seconds that it has waited in the queue until now, all in all."""
        since = self._waits_since
        return self._queued if since is None else self._queued + self._clock() - since

    def wait(self, position: int, start: Callable[[Generation], None]) -> None:
        """Be the stream's source until the queue admits the request; then call `start` with this object."""
        self._start = start
        self.stream.source = self
        self.position_changed(position)
        self.ticket.wait(self)

    # -- the queue's side --

    def admitted(self) -> None:
        self.position_changed(None)
        start, self._start = self._start, None
        if start is not None and not self.stream.is_sealed:
            start(self)

    def expired(self, error: HoldfastError) -> None:
        self._start = None
        self.position_changed(None)
        self.stream.seal(EndBody("failed", error=error_body(error)))

    def position_changed(self, position: int | None) -> None:
        """Note where the request waits, at first or again; None where it waits no more."""
        stream = self.stream
        if position is None:
            self._queued, self._waits_since = self.queued, None
        elif stream.is_sealed:
            return
        elif self._waits_since is None:
            self._waits_since = self._clock()
            self._observer.observe(RequestQueued(stream.id, stream.origin.request_id, position))
        stream.wait_at(position)

    # -- the stream's side --

    def cancel(self, reason: str) -> None:
        self._start = None
        self.stream.seal(EndBody("cancelled", error=error_body(Cancelled(reason))))
        # At once, also where the end is not visible yet: it must not be admitted any more.
        self.ticket.close(None, 0)

    def abandon(self) -> None:
        self.cancel("")

    def resume(self) -> None:
        """Nothing was read yet that could have filled the log."""
