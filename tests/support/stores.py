"""Log stores for tests: one that answers in later turns, as a store of another process does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from holdfast.core.entries import Owner, Position
from holdfast.errors import HoldfastError
from holdfast.streams.store import Batch, Claim, Claimed, Done, LogStore, Signal, Sink, Subscription

_T = TypeVar("_T")
#: Calls back later, and in order.
Later = Callable[[Callable[[], None]], object]


class Line:
    """A `Later` that the test moves on by hand: one step is one call that reaches the store, or one answer."""

    def __init__(self) -> None:
        self._steps: deque[Callable[[], None]] = deque()

    def __call__(self, step: Callable[[], None]) -> None:
        self._steps.append(step)

    def __len__(self) -> int:
        return len(self._steps)

    def step(self) -> None:
        """Take one step; nothing happens where there is none."""
        if self._steps:
            self._steps.popleft()()

    def settle(self) -> None:
        """Take all steps."""
        while self._steps:
            self.step()


class LateStore:
    """Passes every call on to `store` later, and its answer later again; all of them in order."""

    is_shared = True

    def __init__(self, store: LogStore, later: Later) -> None:
        self._store = store
        self._later = later

    def _ask(self, ask: Callable[[Done[_T]], None], done: Done[_T]) -> None:
        def answered(answer: _T) -> None:
            self._later(lambda: done(answer))

        self._later(lambda: ask(answered))

    def claim(self, claim: Claim, done: Done[Claimed | HoldfastError]) -> None:
        self._ask(lambda answer: self._store.claim(claim, answer), done)

    def find(self, stream: str, done: Done[Claimed | HoldfastError | None]) -> None:
        self._ask(lambda answer: self._store.find(stream, answer), done)

    def find_request(self, owner: Owner, request_id: str, done: Done[Claimed | HoldfastError | None]) -> None:
        self._ask(lambda answer: self._store.find_request(owner, request_id, answer), done)

    def take_over(self, stream: str, epoch: int, done: Done[bool | HoldfastError]) -> None:
        self._ask(lambda answer: self._store.take_over(stream, epoch, answer), done)

    def write(self, batch: Batch, done: Done[HoldfastError | None]) -> None:
        self._ask(lambda answer: self._store.write(batch, answer), done)

    def read(self, stream: str, after: Position, max_bytes: int, done: Done[Batch | HoldfastError]) -> None:
        self._ask(lambda answer: self._store.read(stream, after, max_bytes, answer), done)

    def follow(self, stream: str, after: Position, sink: Sink) -> Subscription:
        late = _LateSink(sink, self._later)
        self._later(lambda: late.begin(lambda: self._store.follow(stream, after, late)))
        return late

    def signal(self, stream: str, signal: Signal) -> None:
        self._later(lambda: self._store.signal(stream, signal))

    def listen(self, stream: str, receive: Callable[[Signal], None]) -> Subscription:
        listening = _LateListening(receive, self._later)
        self._later(lambda: listening.begin(lambda: self._store.listen(stream, listening.receive)))
        return listening

    def free_request(self, stream: str) -> None:
        self._later(lambda: self._store.free_request(stream))

    def release(self, stream: str, *, keep: float) -> None:
        self._later(lambda: self._store.release(stream, keep=keep))


class _Late:
    """A subscription that begins later. After `close` nothing comes of it, not even what is on its way."""

    def __init__(self, later: Later) -> None:
        self._later = later
        self._inner: Subscription | None = None
        self._is_closed = False

    def begin(self, subscribe: Callable[[], Subscription]) -> None:
        if not self._is_closed:
            self._inner = subscribe()

    def close(self) -> None:
        self._is_closed = True
        if self._inner is not None:
            self._inner.close()

    def _pass_on(self, call: Callable[[], None]) -> None:
        self._later(lambda: None if self._is_closed else call())


class _LateSink(_Late):
    def __init__(self, sink: Sink, later: Later) -> None:
        super().__init__(later)
        self._sink = sink

    def batch_received(self, batch: Batch) -> None:
        self._pass_on(lambda: self._sink.batch_received(batch))

    def following_lost(self, error: HoldfastError) -> None:
        self._pass_on(lambda: self._sink.following_lost(error))


class _LateListening(_Late):
    def __init__(self, receive: Callable[[Signal], None], later: Later) -> None:
        super().__init__(later)
        self._receive = receive

    def receive(self, signal: Signal) -> None:
        self._pass_on(lambda: self._receive(signal))
