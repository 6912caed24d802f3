"""Where logs live: the interface of log stores, and the records that they take and give.

A store answers by calling `done` once. The memory store does so in the same turn of the loop, so that nothing
waits, and no task or queue stands between a token and its readers; a shared store does so when it has the answer.

What every store has to keep, and `tests/contract` holds it to:

- of several claims of one request id exactly one wins, and all get the winner's;
- entries of a stream are stored in the order of their numbers, each once: a batch that was stored before changes
  nothing, one that would leave a gap is refused;
- a batch of an epoch that is not the newest is refused: who lost a stream to another owner cannot write to it;
- after `free_request` the next claim of the request id wins, and the older stream's end does not change that;
- what `done` has confirmed is found by every later `read` and `follow`, until `release`;
- a batch that it gives holds entries of the one epoch in which they were written; a takeover is given as a batch,
  without entries if need be;
- nothing comes of a subscription that was closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from msgspec import Struct

from holdfast.core.entries import EndBody, Owner, Position
from holdfast.errors import HoldfastError

_T = TypeVar("_T")
#: Called once with what was asked for: in the same turn, unless it has to be looked up elsewhere.
Done: TypeAlias = Callable[[_T], None]


async def answer_of(begin: Callable[[Done[_T]], None]) -> _T:
    """Begin a call that answers by `done`, and wait for its answer.

    Cancellation-safe: an answer that comes after the wait was cancelled is dropped.
    """
    answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

    def done(value: _T) -> None:
        if not answer.done():
            answer.set_result(value)

    begin(done)
    return await answer


class Claim(Struct, frozen=True):
    """One request's wish to own a stream. `digest` tells a repetition from another request under the same id."""

    owner: Owner
    request_id: str
    stream: str
    model: str
    digest: bytes


class Claimed(Struct, frozen=True):
    """The claim that holds for a request id. `is_new` where it is the one that was just made."""

    claim: Claim
    epoch: int
    is_new: bool


class Batch(Struct, frozen=True):
    """Consecutive entries, the first of which has the number `first`; `end` follows them where it is there.

    One without entries says that its epoch has begun, or of an answer to `read` that there is no more.
    """

    stream: str
    epoch: int
    first: int
    payloads: Sequence[bytes]
    end: EndBody | None = None

    @property
    def next(self) -> int:
        """The number of the entry that follows this batch."""
        return self.first + len(self.payloads) + (self.end is not None)


class Cancel(Struct, frozen=True):
    """The owner of the stream wants it stopped."""

    reason: str = ""


class Attended(Struct, frozen=True):
    """Somebody reads the stream elsewhere, for `seconds` more unless that is said again."""

    seconds: float


Signal: TypeAlias = Cancel | Attended


class Sink(Protocol):
    """Who follows a stream."""

    def batch_received(self, batch: Batch) -> None:
        """Take what was stored; batches come in order, and may repeat what came before."""

    def following_lost(self, error: HoldfastError) -> None:
        """Nothing more comes of this following: the store cannot be reached, or has forgotten the stream."""


class Subscription(Protocol):
    """Ends with `close`, which is idempotent."""

    def close(self) -> None: ...


class LogStore(Protocol):
    """Keeps claims and, where it is shared, logs. All methods are synchronous and belong to the loop's thread."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes see it. Where not, the owner's own log is the only copy: nothing is written."""

    def claim(self, claim: Claim, done: Done[Claimed | HoldfastError]) -> None:
        """Claim a request id. Exactly one claimant wins."""

    def find(self, stream: str, done: Done[Claimed | HoldfastError | None]) -> None:
        """Find the claim of a stream, with the newest epoch."""

    def find_request(self, owner: Owner, request_id: str, done: Done[Claimed | HoldfastError | None]) -> None:
        """Find the claim of a request id."""

    def take_over(self, stream: str, epoch: int, done: Done[bool | HoldfastError]) -> None:
        """Begin an epoch of a stream whose owner is gone. Of two that begin the same one exactly one wins."""

    def write(self, batch: Batch, done: Done[HoldfastError | None]) -> None:
        """Store a batch. What `done` has confirmed may be shown to readers. Idempotent by epoch and number."""

    def read(self, stream: str, after: Position, max_bytes: int, done: Done[Batch | HoldfastError]) -> None:
        """Read about `max_bytes` of entries behind a position, at least one where there is one.

        The position is checked as a log does: the answer may be `AheadOfLog`, `LogTrimmed` or `UnknownEpoch`.
        """

    def follow(self, stream: str, after: Position, sink: Sink) -> Subscription:
        """Deliver what is stored behind a position, and what will be."""

    def signal(self, stream: str, signal: Signal) -> None:
        """Tell the owner of a stream something. Lost where there is no owner."""

    def listen(self, stream: str, receive: Callable[[Signal], None]) -> Subscription:
        """Receive what is signalled to this stream, as its owner."""

    def free_request(self, stream: str) -> None:
        """Let the next claim of the stream's request id win. The stream is kept, and found by its own id."""

    def release(self, stream: str, *, keep: float) -> None:
        """The owner needs the stream no more; the store forgets it after `keep` seconds, its claim included.

        Who follows it then is told.
        """
