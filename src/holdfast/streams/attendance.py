"""Who attends a stream, and for how long it goes on when nobody does."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.log import Cursor
from holdfast.timers import Deadline, Timers


class Attendance:
    """The places of readers whose connections were lost, and the grace period.

    Until it ends, a parked cursor holds back trimming, so that its client finds the log whole. Each reader that is
    lost has the whole of it. Readers in other processes keep the stream running, and hold back nothing.
    """

    __slots__ = ("_deadline", "_elsewhere_until", "_parked", "_timers", "grace", "keeps_running")

    def __init__(self, timers: Timers, *, grace: float) -> None:
        self._timers = timers
        self._parked: tuple[Cursor, ...] = ()
        # Until when somebody reads in another process.
        self._elsewhere_until = 0.0
        self._deadline: Deadline | None = None
        #: Seconds that the generation goes on without a reader.
        self.grace = grace
        #: Set where the generation shall go on without any reader.
        self.keeps_running = False

    @property
    def is_awaiting(self) -> bool:
        """Whether a lost reader may yet come back."""
        return bool(self._parked)

    @property
    def is_elsewhere(self) -> bool:
        """Whether somebody reads in another process."""
        return self._timers.now() < self._elsewhere_until

    def park(self, cursor: Cursor) -> None:
        """Keep the place of a reader whose connection is gone."""
        self._parked += (cursor,)

    def returned(self, after: int) -> None:
        """A reader comes, and takes over from those whose acknowledged place is not beyond its own."""
        if self._parked:
            for parked in self._parked:
                if parked.consumed <= after:
                    parked.close()
            self._parked = tuple(parked for parked in self._parked if parked.consumed > after)
        if not self._parked:
            self._stop()

    def begin(self, over: Callable[[], None]) -> None:
        """Let the grace period begin, anew where it runs for an earlier reader.

        `over` is called when it ends, with the parked cursors closed; where somebody reads elsewhere, again later.
        """
        self._stop()
        self._schedule(self.grace, over)

    def elsewhere(self, seconds: float, over: Callable[[], None]) -> None:
        """Somebody reads in another process for so long: `over` is called then, and not before the grace period.

        That of readers who are parked here is no longer for it.
        """
        seconds = max(seconds, self.grace)
        self._elsewhere_until = self._timers.now() + seconds
        if self._deadline is None:
            self._schedule(seconds, over)

    def end(self) -> None:
        """The stream has ended: nothing is waited for any more."""
        self._close_parked()
        self._stop()

    def _expired(self, over: Callable[[], None]) -> None:
        self._deadline = None
        self._close_parked()
        left = self._elsewhere_until - self._timers.now()
        if left > 0:
            self._schedule(left, over)
        over()

    def _schedule(self, delay: float, over: Callable[[], None]) -> None:
        self._deadline = self._timers.after(delay, lambda: self._expired(over))

    def _close_parked(self) -> None:
        for cursor in self._parked:
            cursor.close()
        self._parked = ()

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
