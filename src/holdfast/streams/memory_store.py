"""The log store of one process: claims, and logs for who shares it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from holdfast.core.entries import EndBody, Owner, Position
from holdfast.core.log import Log
from holdfast.errors import HoldfastError, UnknownEpoch, UnknownStream
from holdfast.streams.store import Batch, Claim, Claimed, Done, Signal, Sink, Subscription
from holdfast.timers import Timers

#: Bytes of what was stored before that a follower gets at a time.
_PAGE = 256 * 1024


class MemoryStore:
    """Answers every call in the same turn.

    As the store of a gateway it is not shared: it knows which request id is which stream, and the logs are those
    of the streams themselves. Shared between several directories of one process it is what a shared store is
    between processes; the contract suite holds both to the same.
    """

    def __init__(self, timers: Timers, *, is_shared: bool = False) -> None:
        self.is_shared = is_shared
        self._timers = timers
        self._by_request: dict[tuple[Owner, str], Claim | _Stored] = {}
        self._streams: dict[str, Claim | _Stored] = {}

    def claim(self, claim: Claim, done: Done[Claimed | HoldfastError]) -> None:
        known = self._by_request.get((claim.owner, claim.request_id))
        if known is not None:
            done(_claimed(known))
            return
        stored = _Stored(claim) if self.is_shared else claim
        self._by_request[claim.owner, claim.request_id] = self._streams[claim.stream] = stored
        done(Claimed(claim, 1, True))

    def find(self, stream: str, done: Done[Claimed | HoldfastError | None]) -> None:
        known = self._streams.get(stream)
        done(None if known is None else _claimed(known))

    def find_request(self, owner: Owner, request_id: str, done: Done[Claimed | HoldfastError | None]) -> None:
        known = self._by_request.get((owner, request_id))
        done(None if known is None else _claimed(known))

    def take_over(self, stream: str, epoch: int, done: Done[bool | HoldfastError]) -> None:
        stored = self._stored(stream)
        if stored is None:
            done(UnknownStream())
        elif epoch <= stored.log.epoch or stored.log.end is not None:
            done(False)
        else:
            stored.begin_epoch(epoch)
            done(True)

    def write(self, batch: Batch, done: Done[HoldfastError | None]) -> None:
        stored = self._stored(batch.stream)
        done(UnknownStream() if stored is None else stored.write(batch))

    def read(self, stream: str, after: Position, max_bytes: int, done: Done[Batch | HoldfastError]) -> None:
        stored = self._stored(stream)
        if stored is None:
            done(UnknownStream())
            return
        try:
            stored.log.check(after)
        except HoldfastError as exc:
            done(exc)
        else:
            done(stored.batch(after.seq + 1, max_bytes))

    def follow(self, stream: str, after: Position, sink: Sink) -> Subscription:
        stored = self._stored(stream)
        try:
            if stored is None:
                raise UnknownStream
            stored.log.check(after)
        except HoldfastError as exc:
            sink.following_lost(exc)
            return _Ended()
        following = _Following(stored, sink)
        stored.followers[following] = None
        first = after.seq + 1
        while first < stored.log.next:
            batch = stored.batch(first, _PAGE)
            sink.batch_received(batch)
            first = batch.next
        return following

    def signal(self, stream: str, signal: Signal) -> None:
        stored = self._stored(stream)
        if stored is not None and stored.receive is not None:
            stored.receive(signal)

    def listen(self, stream: str, receive: Callable[[Signal], None]) -> Subscription:
        stored = self._stored(stream)
        if stored is None:
            return _Ended()
        stored.receive = receive
        return _Listening(stored, receive)

    def free_request(self, stream: str) -> None:
        known = self._streams.get(stream)
        if known is not None:
            self._free_request(_claimed(known).claim)

    def _free_request(self, claim: Claim) -> None:
        """Forget the request id of a claim, unless a newer one holds it."""
        holder = self._by_request.get((claim.owner, claim.request_id))
        if holder is not None and _claimed(holder).claim.stream == claim.stream:
            del self._by_request[claim.owner, claim.request_id]

    def release(self, stream: str, *, keep: float) -> None:
        if keep > 0:
            self._timers.after(keep, lambda: self._forget(stream))
        else:
            self._forget(stream)

    def _stored(self, stream: str) -> _Stored | None:
        """Find a stream whose log is here, which none is unless the store is shared."""
        known = self._streams.get(stream)
        return known if isinstance(known, _Stored) else None

    def _forget(self, stream: str) -> None:
        known = self._streams.pop(stream, None)
        if known is None:
            return
        self._free_request(_claimed(known).claim)
        if isinstance(known, _Stored):
            for following in known.following():
                following.close()
                following.sink.following_lost(UnknownStream())


def _claimed(known: Claim | _Stored) -> Claimed:
    """Answer with a claim that was made before. One whose log is its stream's own has no second epoch."""
    if isinstance(known, _Stored):
        return Claimed(known.claim, known.log.epoch, False)
    return Claimed(known, 1, False)


class _Stored:
    """One claim of a shared store, and its log."""

    __slots__ = ("_begins", "claim", "followers", "log", "receive")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.log = Log(claim.stream, max_bytes=0)
        # The epochs, each with the number of its first entry.
        self._begins = [(self.log.epoch, 0)]
        self.followers: dict[_Following, None] = {}
        self.receive: Callable[[Signal], None] | None = None

    def begin_epoch(self, epoch: int) -> None:
        self.log.begin_epoch(epoch)
        self._begins.append((epoch, self.log.next))
        self._deliver(Batch(self.claim.stream, epoch, self.log.next, ()))

    def write(self, batch: Batch) -> HoldfastError | None:
        log = self.log
        if batch.epoch != log.epoch:
            return UnknownEpoch(f"the stream is in epoch {log.epoch}; epoch {batch.epoch} may not write any more")
        if batch.first > log.next:
            return UnknownEpoch(f"the stream's next entry is {log.next}; {batch.first} would leave a gap")
        if batch.next <= log.next:
            return None
        if log.end is not None:
            return UnknownEpoch(f"the stream has ended with entry {log.next - 1}; nothing follows it")
        payloads = batch.payloads[log.next - batch.first :]
        if payloads:
            log.append(payloads)
        if batch.end is not None:
            log.seal(batch.end)
        self._deliver(batch)
        return None

    def following(self) -> Iterator[_Following]:
        """Those who follow now and have not been closed when it is their turn."""
        return (following for following in list(self.followers) if following in self.followers)

    def _deliver(self, batch: Batch) -> None:
        for following in self.following():
            following.sink.batch_received(batch)

    def batch(self, first: int, max_bytes: int) -> Batch:
        """Return entries of one epoch from `first` on, about `max_bytes` of them."""
        log = self.log
        epoch, stop = log.epoch, log.next
        for newer, begin in reversed(self._begins):
            epoch = newer
            if begin <= first:
                break
            stop = begin
        payloads: list[bytes] = []
        while first + len(payloads) < stop and (not payloads or max_bytes > 0):
            page = log.slice(first + len(payloads), max_bytes)[: stop - first - len(payloads)]
            if payloads and len(page[0]) > max_bytes:
                break
            payloads += page
            max_bytes -= sum(map(len, page))
        end: EndBody | None = None
        if log.end is not None and first + len(payloads) == log.next and payloads:
            payloads.pop()
            end = log.end
        return Batch(self.claim.stream, epoch, first, payloads, end)


class _Following:
    __slots__ = ("_stored", "sink")

    def __init__(self, stored: _Stored, sink: Sink) -> None:
        self._stored = stored
        self.sink = sink

    def close(self) -> None:
        self._stored.followers.pop(self, None)


class _Listening:
    __slots__ = ("_receive", "_stored")

    def __init__(self, stored: _Stored, receive: Callable[[Signal], None]) -> None:
        self._stored = stored
        self._receive = receive

    def close(self) -> None:
        # Another owner may be listening by now.
        if self._stored.receive is self._receive:
            self._stored.receive = None


class _Ended:
    __slots__ = ()

    def close(self) -> None: ...
