"""How long ended streams can be read, and which of them go when memory or room runs short."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.config import StreamsConfig
from holdfast.streams.memory import LogMemory
from holdfast.streams.stream import Stream
from holdfast.timers import Deadline, Timers


class Retention:
    """Keeps ended streams in the order of their ends: the oldest goes first. Calls `forget` for each that goes."""

    def __init__(self, config: StreamsConfig, timers: Timers, forget: Callable[[Stream], None]) -> None:
        self._config = config
        self._timers = timers
        self._forget = forget
        self._ended: dict[Stream, Deadline] = {}
        self.memory = LogMemory(config.memory_bytes, evict=self.evict)

    def __len__(self) -> int:
        return len(self._ended)

    def configure(self, config: StreamsConfig) -> None:
        """Use new bounds, and new times for what ends from now on."""
        self._config = config
        self.memory.limit = config.memory_bytes

    def ended(self, stream: Stream) -> None:
        """A stream has ended: it can be read for `streams.retention`."""
        self._expire_in(stream, self._config.retention)

    def acknowledged(self, stream: Stream) -> None:
        """The creator has the end: it is kept for the shorter retention."""
        if stream in self._ended:
            self._ended[stream].cancel()
            self._expire_in(stream, min(self._config.retention_acknowledged, self._config.retention))

    def evict(self) -> bool:
        """Let the oldest ended stream go that nobody reads; False where there is none."""
        for stream in self._ended:
            if stream.reader_count == 0:
                self.drop(stream)
                return True
        return False

    def drop(self, stream: Stream) -> None:
        """Let one stream go now."""
        deadline = self._ended.pop(stream, None)
        if deadline is not None:
            deadline.cancel()
        self._forget(stream)

    def _expire_in(self, stream: Stream, delay: float) -> None:
        self._ended[stream] = self._timers.after(delay, lambda: self._expire(stream))

    def _expire(self, stream: Stream) -> None:
        if stream.reader_count:
            # Somebody is still reading: not before they are done or gone.
            self._expire_in(stream, max(self._config.retention_acknowledged, 1.0))
        else:
            self.drop(stream)
