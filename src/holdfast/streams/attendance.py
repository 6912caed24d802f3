"""Who attends a stream, and for how long it goes on when nobody does."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.log import Cursor
from holdfast.timers import Deadline, Timers


class Attendance:
    """The places of readers whose connections were lost, and the grace period.

    Until it ends, a parked cursor holds back trimming, so that its client finds the log whole. Each reader that is
    lost has the whole of it.
    """

    __slots__ = ("_deadline", "_parked", "_timers", "grace", "keeps_running")

    def __init__(self, timers: Timers, *, grace: float) -> None:
        self._timers = timers
        self._parked: list[Cursor] = []
        self._deadline: Deadline | None = None
        #: Seconds that the generation goes on without a reader.
        self.grace = grace
        #: Set where the generation shall go on without any reader.
        self.keeps_running = False

    @property
    def is_awaiting(self) -> bool:
        """Whether a lost reader may yet come back."""
        return bool(self._parked)

    def park(self, cursor: Cursor) -> None:
        """Keep the place of a reader whose connection is gone."""
        self._parked.append(cursor)

    def returned(self, after: int) -> None:
        """A reader comes, and takes over from those whose acknowledged place is not beyond its own."""
        for parked in [parked for parked in self._parked if parked.consumed <= after]:
            self._parked.remove(parked)
            parked.close()
        if not self._parked:
            self._stop()

    def begin(self, over: Callable[[], None], *, at_least: float = 0.0) -> None:
        """Let the grace period begin, anew where it runs for an earlier reader.

        `over` is called when it ends, with the parked cursors closed. Somebody who reads elsewhere is there for
        `at_least` so many seconds.
        """
        self._stop()
        self._deadline = self._timers.after(max(self.grace, at_least), lambda: self._expired(over))

    def end(self) -> None:
        """The stream has ended: nothing is waited for any more."""
        self._close_parked()
        self._stop()

    def _expired(self, over: Callable[[], None]) -> None:
        self._deadline = None
        self._close_parked()
        over()

    def _close_parked(self) -> None:
        for cursor in self._parked:
            cursor.close()
        self._parked.clear()

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
