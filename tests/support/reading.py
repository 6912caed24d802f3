"""Streams by hand: readers that take everything, sources that note what they are told."""

from __future__ import annotations

from holdfast.core.entries import START, EndBody, Owner, Position
from holdfast.core.limits.budget import Budget
from holdfast.core.log import Cursor, Log
from holdfast.errors import HoldfastError
from holdfast.streams.store import Claim
from holdfast.streams.stream import Stream
from holdfast.timers import Timers

ACME = Owner("acme")
COMPLETED = EndBody("completed", finish_reason="stop")


class Reading:
    """A reader with a cursor. It takes what there is when it is woken, or with `read` where it is slow."""

    def __init__(
        self,
        stream: Stream,
        position: Position = START,
        *,
        is_slow: bool = False,
        credit: int | None = None,
        is_onlooker: bool = False,
    ) -> None:
        self.stream = stream
        self.is_slow = is_slow
        #: What it was told, in order.
        self.told: list[object] = []
        self.payloads: list[bytes] = []
        self.cursor = stream.attach(self, position, credit=credit, is_onlooker=is_onlooker)
        if not is_slow:
            self.read()

    def read(self) -> None:
        """Take and consume everything that is there."""
        while self.cursor.position < self.cursor.log.next:
            self.payloads += self.cursor.read_payloads(1 << 20)
        self.cursor.consume()

    def advance(self) -> None:
        """Read, and tell the stream so, as a surface does when its client has acknowledged."""
        self.read()
        self.stream.resume_source()

    @property
    def entries(self) -> list[bytes]:
        """What it has read, without the end."""
        return self.payloads[: len(self.payloads) - self.cursor.is_done]

    @property
    def end(self) -> EndBody | None:
        return self.stream.end if self.cursor.is_done else None

    # -- the stream's side --

    def wake(self, cursor: Cursor) -> None:
        self.told.append("end" if self.stream.is_ended else "entries")
        if not self.is_slow:
            self.read()

    def position_changed(self, cursor: Cursor) -> None:
        self.told.append(("position", self.stream.queue_position))

    def epoch_changed(self, cursor: Cursor) -> None:
        self.told.append(("epoch", cursor.log.epoch))

    def forgotten(self, cursor: Cursor, error: HoldfastError) -> None:
        self.told.append(error.code)


class ScriptedSource:
    """Notes what the stream tells it, and does nothing."""

    def __init__(self, stream: Stream) -> None:
        self.told: list[str] = []
        stream.source = self

    def cancel(self, reason: str) -> None:
        self.told.append(f"cancel {reason}".strip())

    def abandon(self) -> None:
        self.told.append("abandon")

    def resume(self) -> None:
        self.told.append("resume")


class World:
    """What streams stand on, and those that have ended, in order."""

    def __init__(self, timers: Timers, *, memory: int = 1 << 20) -> None:
        self.timers = timers
        self.budget = Budget(memory)
        self.account = self.budget.account(ACME.tenant)
        self.ended: list[Stream] = []

    def stream(self, *, log_bytes: int = 1 << 16, grace: float = 60.0, number: int = 1) -> Stream:
        self.account.log_begins()
        return Stream(
            origin=Claim(ACME, f"r-{number}", f"st_{number}", "demo", b"digest"),
            log=Log(f"st_{number}", max_bytes=log_bytes),
            account=self.account,
            detach_grace=grace,
            timers=self.timers,
            on_end=self.ended.append,
        )
