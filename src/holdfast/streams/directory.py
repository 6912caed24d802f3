"""All streams that this process has: found by their id, and by the request that has started them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from holdfast.config import StreamsConfig
from holdfast.core.entries import Owner
from holdfast.core.limits.budget import SHARE, Account, Budget, Kind
from holdfast.core.log import Log
from holdfast.errors import HoldfastError, Overloaded, UnknownStream, UpstreamRefused
from holdfast.streams.follower import Follower
from holdfast.streams.retention import Retention
from holdfast.streams.store import Attended, Cancel, Claim, Claimed, Done, LogStore, Signal, Subscription
from holdfast.streams.stored import StoredStream, Writer
from holdfast.streams.stream import Stream
from holdfast.timers import Timers

#: Seconds that a stream of another process is followed until somebody reads it.
_FIRST_READER = 30.0


@dataclass(slots=True, frozen=True)
class DirectoryStatistics:
    """Sizes are in bytes; `streams` counts running and retained streams."""

    streams: int
    running: int
    log_bytes: int
    memory_bytes: int
    created: int
    ended: int


class Directory:
    """Finds streams, here and in the store. All methods are synchronous and belong to the loop's thread.

    With a shared store it follows what other processes own, so that readers always stand on a log of this process.
    """

    def __init__(
        self,
        config: StreamsConfig,
        timers: Timers,
        store: LogStore,
        budget: Budget,
        *,
        writer: Writer | None = None,
    ) -> None:
        """`writer` takes what streams accept to the store; None where the store is not shared."""
        self._config = config
        self._timers = timers
        self._store = store
        self._writer = writer
        #: The memory of the process, of which logs are a part.
        self.budget = budget
        self._streams: dict[str, Stream] = {}
        # Those that another process owns: its claims are not ours to release.
        self._followed: dict[str, Follower] = {}
        # Those that this process owns: readers elsewhere cancel and attend them through the store.
        self._listening: dict[str, Subscription] = {}
        self._retention = Retention(config, timers, budget, self._forget)
        self._on_ended: list[Callable[[Stream], None]] = []
        self._created = 0
        self._ended = 0

    def configure(self, config: StreamsConfig) -> None:
        """Use new bounds and times for streams to come, and for what ends from now on."""
        self._config = config
        self._retention.configure(config)

    def on_ended(self, listener: Callable[[Stream], None]) -> None:
        """Call the listener at each end of a stream, when its readers can have it."""
        self._on_ended.append(listener)

    @property
    def is_shared(self) -> bool:
        """Whether other processes have the streams as well, so that readers may move there."""
        return self._store.is_shared

    # -- creation --

    def claim(
        self,
        owner: Owner,
        request_id: str | None,
        *,
        model: str,
        digest: bytes,
        done: Done[Claimed | HoldfastError],
    ) -> None:
        """Claim a request id for a new stream; without one the stream's own id is it.

        `done` gets the claim that holds, which may be an earlier one. Who gets a new one calls `add` or `unclaim`.
        """
        stream = "st_" + secrets.token_hex(16)
        self._store.claim(Claim(owner, request_id or stream, stream, model, digest), done)

    def unclaim(self, claimed: Claimed) -> None:
        """Nothing comes of a new claim."""
        self._store.release(claimed.claim.stream, keep=0)

    def check_room(self, tenant: str) -> Account:
        """Return the account of a tenant that may have one more stream; ended ones go for it.

        Raises `Overloaded`, which says whose share is used up.
        """
        limit, budget = self._config.max_streams, self.budget
        account = budget.account(tenant)
        if account.running and account.running >= SHARE * (limit - budget.running):
            raise Overloaded("the tenant runs its share of the streams that may be kept", retry_after=1.0)
        if len(self._streams) >= limit:
            self._retention.evict()
            if len(self._streams) >= limit:
                raise Overloaded(f"{limit} streams are running", retry_after=1.0)
        while account.is_short and budget.reclaim(account):
            pass  # what was running when memory ran short may have ended since
        if account.is_short or not account.make_room(1):
            raise account.refusal(1)
        return account

    def add(self, claimed: Claimed, *, detach_grace: float) -> Stream:
        """Make the stream of a new claim. It has no source yet."""
        self._created += 1
        stream = self._make(claimed, detach_grace, self._writer)
        if self._store.is_shared:
            self._listening[stream.id] = self._store.listen(stream.id, partial(_signalled, stream))
        return stream

    def _make(self, claimed: Claimed, detach_grace: float, writer: Writer | None) -> Stream:
        claim = claimed.claim
        account = self.budget.account(claim.owner.tenant)
        options: dict[str, Any] = {
            "origin": claim,
            # Of a stream that was taken over the later epochs come with their first entries.
            "log": Log(claim.stream, max_bytes=self._config.log_bytes),
            "account": account,
            "detach_grace": detach_grace,
            "timers": self._timers,
            "on_end": self._stream_ended,
        }
        stream = Stream(**options) if writer is None else StoredStream(writer=writer, **options)
        self._streams[claim.stream] = stream
        account.log_begins()
        return stream

    # -- lookup --

    def open(self, owner: Owner, wanted: Sequence[str], done: Done[list[Stream | HoldfastError]]) -> None:
        """Find streams that this owner may read: `done` gets one answer for each, in the same order.

        An absent stream and somebody else's give the same answer, `UnknownStream`.
        """
        answers: list[Stream | HoldfastError | None] = [None] * len(wanted)
        left = len(wanted)

        def answer(index: int, found: Stream | HoldfastError) -> None:
            nonlocal left
            answers[index] = found
            left -= 1
            if not left:
                done([answer for answer in answers if answer is not None])

        if not wanted:
            done([])
        for index, stream_id in enumerate(wanted):
            self._find(owner, stream_id, partial(answer, index))

    def _find(self, owner: Owner, stream_id: str, done: Done[Stream | HoldfastError]) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            if owner.may_read(stream.origin.owner):
                self._when_ready(stream, done)
            else:
                done(UnknownStream())
        elif self._store.is_shared:
            self._store.find(stream_id, lambda found: self._adopt(owner, found, done))
        else:
            done(UnknownStream())

    def _adopt(
        self, owner: Owner, found: Claimed | HoldfastError | None, done: Done[Stream | HoldfastError]
    ) -> None:
        """Follow a stream that another process owns."""
        if isinstance(found, HoldfastError):
            done(found)
        elif found is None or not owner.may_read(found.claim.owner):
            done(UnknownStream())
        else:
            self.follow(found, done)

    def _when_ready(self, stream: Stream, done: Done[Stream | HoldfastError]) -> None:
        """Answer when positions can be checked against its log: what the store has of it is here."""
        follower = self._followed.get(stream.id)
        if follower is None:
            done(stream)
        else:
            follower.when_ready(lambda error: done(stream if error is None else error))

    def follow(self, claimed: Claimed, done: Done[Stream | HoldfastError] | None = None) -> Stream:
        """Return the local stream of a claim: the one that is here, or a new one that follows its owner.

        Its log may be behind what the store has; who attaches at its start need not care. `done` is called when it
        no longer is, or where the store cannot be asked.
        """
        known = self._streams.get(claimed.claim.stream)
        stream = known or self._make(claimed, self._config.detach_grace, None)
        if known is None:
            self._followed[stream.id] = Follower(stream, self._store, self._timers, self._forget)
            # Whoever asked may never attach.
            stream.attended(_FIRST_READER)
        if done is not None:
            self._when_ready(stream, done)
        if known is None:
            self._followed[stream.id].start()
        return stream

    def find_request(self, owner: Owner, request_id: str, done: Done[Stream | HoldfastError | None]) -> None:
        """Find the stream that a request id has started, None where there is none."""

        def found(claimed: Claimed | HoldfastError | None) -> None:
            if isinstance(claimed, Claimed):
                done(self.follow(claimed))
            else:
                done(claimed)

        self._store.find_request(owner, request_id, found)

    def find_claim(self, owner: Owner, request_id: str, done: Done[Claimed | HoldfastError | None]) -> None:
        """Find what a request id has claimed, None where it is free."""
        self._store.find_request(owner, request_id, done)

    def acknowledged(self, owner: Owner, stream_id: str) -> None:
        """The creator has the end: it is kept for the shorter retention."""
        stream = self._streams.get(stream_id)
        if stream is not None and owner.may_read(stream.origin.owner) and stream.is_ended:
            self._retention.acknowledged(stream)

    # -- the end of streams --

    def _stream_ended(self, stream: Stream) -> None:
        self._ended += 1
        stream.account.log_ends()
        self._retention.ended(stream)
        if stream.id not in self._followed and _is_passing_failure(stream):
            # A request id stands for an answer. Whoever asks again is not told for minutes what was true for one.
            self._store.free_request(stream.id)
        for listener in self._on_ended:
            listener(stream)

    def _forget(self, stream: Stream, error: HoldfastError | None = None) -> None:
        if self._streams.pop(stream.id, None) is None:
            return
        follower = self._followed.pop(stream.id, None)
        listening = self._listening.pop(stream.id, None)
        if listening is not None:
            listening.close()
        if follower is None:
            self._store.release(stream.id, keep=0)
        else:
            follower.close(UnknownStream())
        if not stream.is_ended:
            stream.account.log_ends()
        stream.forget(error)

    def aclose(self) -> None:
        """Forget all streams."""
        for stream in list(self._streams.values()):
            self._retention.drop(stream)

    # -- what there is --

    def running(self) -> list[Stream]:
        """The streams that have not ended, those that wait in the queue among them."""
        return [stream for stream in self._streams.values() if not stream.is_ended]

    @property
    def unfinished(self) -> int:
        """Streams that run, and those whose reader is gone and may yet come back for the end."""
        return sum(map(self._is_unfinished, self._streams.values()))

    @property
    def awaited_until(self) -> float:
        """Until when, by the timers' clock, a lost reader may come back for an end; 0 where none may."""
        now = self._timers.now()
        return max(
            (stream.awaited_until for stream in self._streams.values() if stream.is_awaited(now)), default=0.0
        )

    def has_unfinished(self, owner: Owner) -> bool:
        """Whether one of the owner's own streams is unfinished."""
        return any(
            self._is_unfinished(stream) for stream in self._streams.values() if stream.origin.owner == owner
        )

    def _is_unfinished(self, stream: Stream) -> bool:
        return not stream.is_ended or stream.is_awaited(self._timers.now())

    @property
    def largest_log(self) -> int:
        """Bytes of the log that has most. It looks at all of them."""
        return max((stream.log.bytes for stream in self._streams.values()), default=0)

    def statistics(self) -> DirectoryStatistics:
        return DirectoryStatistics(
            streams=len(self._streams),
            running=len(self._streams) - len(self._retention),
            log_bytes=self.budget.by_kind[Kind.LOGS],
            memory_bytes=self.budget.limit,
            created=self._created,
            ended=self._ended,
        )


def _is_passing_failure(stream: Stream) -> bool:
    """Whether a stream has ended without an entry, by a failure that another try may not meet.

    A refusal of the gateway's own credential is one: its operator mends it, and asking again did not.
    """
    end = stream.end
    return (
        end is not None
        and end.status == "failed"
        and end.error is not None
        and (end.error.retryable or end.error.code == UpstreamRefused.code)
        and stream.log.next == 1
    )


def _signalled(stream: Stream, signal: Signal) -> None:
    """Somebody who reads the stream in another process says something of it."""
    match signal:
        case Cancel(reason=reason):
            stream.cancel(reason)
        case Attended(seconds=seconds):
            stream.attended(seconds)
