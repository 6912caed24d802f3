"""Who feeds a stream: a place in the queue, a pump at a provider, or a follower of another process."""

from __future__ import annotations

from typing import Protocol


class Source(Protocol):
    """A stream has one at a time until its end. All calls are harmless when the source has done its work."""

    def cancel(self, reason: str) -> None:
        """The stream's owner wants it stopped: see to it that its log gets the end `cancelled`."""

    def abandon(self) -> None:
        """Nobody has read the stream for its grace period."""

    def resume(self) -> None:
        """The log was full and has room again."""
