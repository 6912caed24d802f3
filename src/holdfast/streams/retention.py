"""How long ended streams can be read, and which of them go when memory or room runs short."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from holdfast.config import StreamsConfig
from holdfast.core.limits.budget import Budget
from holdfast.errors import HoldfastError, LogTrimmed
from holdfast.streams.stream import Stream
from holdfast.timers import Deadline, Timers

#: Behind its retention an ended stream that is still read is kept for as long again, or for so many seconds where
#: that is more; then its readers are told that it goes.
READERS_STAY = 60.0


class Retention:
    """Keeps ended streams until their time is over. Where memory is short the largest user's oldest goes first.

    It calls `forget` for each that goes, with what its readers are to be told.
    """

    def __init__(
        self,
        config: StreamsConfig,
        timers: Timers,
        budget: Budget,
        forget: Callable[[Stream, HoldfastError | None], None],
    ) -> None:
        self._config = config
        self._timers = timers
        self._budget = budget
        self._forget = forget
        self._ended: dict[Stream, Deadline] = {}
        budget.let_go = self._reclaimed

    def __len__(self) -> int:
        return len(self._ended)

    def configure(self, config: StreamsConfig) -> None:
        """Use new times for what ends from now on."""
        self._config = config

    def ended(self, stream: Stream) -> None:
        """A stream has ended: it can be read for `streams.retention`, if there is memory for it."""
        self._expire_in(stream, self._config.retention)
        stream.account.may_go(stream, stream.charged)

    def acknowledged(self, stream: Stream) -> None:
        """The creator has the end: it is kept for the shorter retention."""
        if stream in self._ended:
            self._ended[stream].cancel()
            self._expire_in(stream, min(self._config.retention_acknowledged, self._config.retention))

    def evict(self) -> bool:
        """Let the oldest ended stream of the largest user go; False where there is none."""
        return self._budget.reclaim()

    def drop(self, stream: Stream, error: HoldfastError | None = None) -> None:
        """Let one stream go now. Readers that are left are told the error, without one nothing."""
        deadline = self._ended.pop(stream, None)
        if deadline is not None:
            deadline.cancel()
        stream.account.stays(stream)
        self._forget(stream, error)

    def _reclaimed(self, stream: Hashable) -> None:
        if isinstance(stream, Stream):
            self.drop(stream, LogTrimmed("the log of this ended stream was let go of, since memory is short"))

    def _expire_in(self, stream: Stream, delay: float) -> None:
        self._ended[stream] = self._timers.after(delay, lambda: self._expire(stream))

    def _expire(self, stream: Stream) -> None:
        if stream.reader_count and (left := self._readers_stay(stream)) > 0:
            # Somebody is still reading: not before they are done or gone, but not for ever either.
            self._expire_in(stream, min(max(self._config.retention_acknowledged, 1.0), left))
        else:
            self.drop(stream, LogTrimmed("the stream ended long ago, and its log is kept no longer"))

    def _readers_stay(self, stream: Stream) -> float:
        """How many seconds the readers of an ended stream have yet."""
        retention = self._config.retention
        ended_at = stream.ended_at or 0.0
        return ended_at + retention + max(retention, READERS_STAY) - self._timers.now()
