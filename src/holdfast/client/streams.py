"""The async iterators over the text or the events of one generation, and the buffer behind each.

A handle (`TextStream`, `EventStream`) belongs to the caller; its `Reader` belongs to the client, which fills it.
Only the handle is collected when the caller drops it, and that is how `break` stops a generation at once.
"""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from holdfast.client.events import Chunk, StreamEnd, StreamEvent, StreamQueued, json_of, text_of
from holdfast.core.entries import Usage, error_of
from holdfast.core.session.client import ClientStream
from holdfast.core.session.messages import End
from holdfast.errors import Cancelled, HoldfastError, ProtocolError, StreamFailed


class Carrier(Protocol):
    """What a reader needs of the client. All calls belong to the loop's thread."""

    def start(self, reader: Reader) -> None: ...

    def consume(self, stream: ClientStream, size: int) -> None: ...

    def leave(self, reader: Reader) -> None: ...


class Reader:
    """The buffer of one stream between the connection and the caller: at most a window of bytes, and one entry.

    `request` is what to create, None for a reader that attaches to the stream `stream_id`. `seq` is the number of
    the last entry that was taken.
    """

    __slots__ = (
        "_loop",
        "_taken",
        "_text",
        "_waiter",
        "buffered",
        "carrier",
        "end",
        "entries",
        "error",
        "is_drained",
        "is_left",
        "position",
        "request",
        "request_id",
        "seq",
        "stream",
        "stream_id",
        "watchers",
        "window",
    )

    def __init__(
        self,
        carrier: Carrier,
        *,
        request: bytes | None = None,
        request_id: str | None = None,
        stream_id: str | None = None,
        after: int = -1,
        window: int,
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.stream_id = stream_id
        self.window = window
        self.seq = after
        self.stream: ClientStream | None = None
        self.end: End | None = None
        self.error: HoldfastError | None = None
        #: Entries that have come and were not taken, `buffered` bytes.
        self.entries: deque[bytes] = deque()
        self.is_left = False
        self.is_drained = False
        self.buffered = 0
        #: What the request waits for at the gateway, None once the caller knows it.
        self.position: StreamQueued | None = None
        #: Resolved when nothing more will come.
        self.watchers: list[asyncio.Future[None]] = []
        #: The client before `start`, then the connection that has taken the stream.
        self.carrier = carrier
        self._loop: asyncio.AbstractEventLoop | None = None
        self._taken = 0
        self._text = io.StringIO()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come from the gateway."""
        return self.end is not None or self.error is not None

    @property
    def text(self) -> str:
        return self._text.getvalue()

    # -- the client's side --

    def push(self, payloads: Sequence[bytes]) -> None:
        size = sum(map(len, payloads))
        if self.is_drained:
            self._grant(size)
            return
        self.entries.extend(payloads)
        self.buffered += size
        self._wake()

    def drain(self) -> None:
        """Drop what comes from now on, and grant credit for it: the end comes behind it. Idempotent."""
        if not self.is_drained:
            self.is_drained = True
            self._grant(self.buffered + self._taken)

    def _grant(self, size: int) -> None:
        if self.stream is not None and size:
            self.carrier.consume(self.stream, size)

    def queued(self, position: StreamQueued) -> None:
        self.position = position
        self._wake()

    def finish(self, end: End) -> None:
        self.end = end
        self._over()

    def fail(self, error: HoldfastError) -> None:
        if self.error is None:
            self.error = error
        self._over()

    def _over(self) -> None:
        watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- the caller's side --

    def start(self) -> None:
        """Send the request now, or when a connection is open. Idempotent."""
        if self._loop is None and not self.is_left:
            self.carrier.start(self)
            self._loop = asyncio.get_running_loop()

    async def ready(self, *, wants_position: bool = False) -> bool:
        """Wait for an entry, or a position in the queue; False at the end. Raises what the stream ended with.

        A cancelled wait leaves the stream, as a cancelled read of an async generator closes it.
        """
        self.start()
        while not self.entries:
            if self.is_left or self.is_over:
                return self._conclude()
            if wants_position and self.position is not None:
                return True
            if self._waiter is not None:
                raise RuntimeError("two tasks read the same stream; use `attach` for a second reader")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.leave(Cancelled("the stream was left when a read of it was cancelled"))
                raise
            finally:
                self._waiter = None
        return True

    def take(self) -> bytes:
        """Return the next entry, after `ready`, and grant the gateway as many bytes again."""
        payload = self.entries.popleft()
        size = len(payload)
        self.seq += 1
        self.buffered -= size
        if self.is_drained:
            return payload
        self._taken += size
        if not self.entries or self._taken * 4 >= self.window:
            taken, self._taken = self._taken, 0
            self._grant(taken)
        return payload

    def take_all(self) -> list[bytes]:
        """Return the entries that have come, up to a quarter of the window."""
        batch = []
        size = 0
        while self.entries and size < self.window // 4:
            batch.append(self.take())
            size += len(batch[-1])
        return batch

    def take_text(self) -> str:
        """Take an entry for its text. Raises `ProtocolError`."""
        try:
            text = text_of(self.take())
        except ProtocolError as exc:
            raise self._spoilt(exc) from exc
        self._text.write(text)
        return text

    def take_chunk(self) -> Chunk:
        """Take an entry as a whole. Raises `ProtocolError`."""
        payload = self.take()
        try:
            chunk = Chunk(self.seq, json_of(payload), text_of(payload))
        except ProtocolError as exc:
            raise self._spoilt(exc) from exc
        self._text.write(chunk.text)
        return chunk

    def _spoilt(self, error: ProtocolError) -> ProtocolError:
        self.leave(error)
        error.partial = self.text
        return error

    def leave(self, error: HoldfastError | None = None) -> None:
        """Stop reading, and stop a generation that was created here. Later reads raise `error`, or just end."""
        if self.is_left:
            return
        self.is_left = True
        if not self.is_over:
            self.error = error
            self.carrier.leave(self)
        self.drain()
        self.entries.clear()
        self.buffered = 0
        self._wake()

    def drop(self) -> None:
        """Leave when the garbage collector says so, in any thread and in the middle of any call."""
        if self._loop is None or self.is_left or self.is_over:
            return
        try:
            self._loop.call_soon_threadsafe(self.leave)
        except RuntimeError:
            pass  # the loop is closed, and its connections with it

    def _conclude(self) -> bool:
        error = self.error
        if not self.is_left:
            if self.end is not None:
                error = self._failure(self.end)
            elif isinstance(error, Cancelled) and self.was_cancelled_here:
                error = None
        if error is None:
            return False
        error.partial = self.text
        raise error

    @property
    def was_cancelled_here(self) -> bool:
        return self.stream is not None and self.stream.is_cancelled

    def _failure(self, end: End) -> HoldfastError | None:
        if end.status == "completed":
            return None
        if end.status == "cancelled":
            if self.was_cancelled_here:
                return None
            return Cancelled(end.error.message if end.error is not None else "")
        if end.error is None:
            return StreamFailed(f"the stream ended as {end.status}")
        return error_of(end.error)


def end_of(end: End) -> StreamEnd:
    """Make the last event of a stream."""
    return StreamEnd(end.seq, end.status, end.finish_reason, end.usage, end.attempts)


class _Handle:
    """What the two kinds of iterator share."""

    __slots__ = ("__weakref__", "_reader")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def id(self) -> str | None:
        """The stream's id, None until the gateway has accepted the request."""
        stream = self._reader.stream
        return self._reader.stream_id if stream is None else stream.id

    @property
    def request_id(self) -> str | None:
        """The idempotency key of the request, None for a stream that was attached to."""
        return self._reader.request_id

    @property
    def last_seq(self) -> int:
        """Number of the last entry that was handed out, -1 before the first; pass it as `after` to read on."""
        return self._reader.seq

    @property
    def text(self) -> str:
        """The text that was handed out so far."""
        return self._reader.text

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped; known at the end."""
        end = self._reader.end
        return None if end is None else end.finish_reason

    @property
    def usage(self) -> Usage | None:
        """What the provider counted; known at the end."""
        end = self._reader.end
        return None if end is None else end.usage

    async def aclose(self) -> None:
        """Read no further. A generation that was created here is cancelled; one that was attached to goes on.

        The request for it leaves at once, without waiting for the gateway's answer. Idempotent.
        """
        self._reader.leave()

    async def __aenter__(self) -> Self:
        self._reader.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.leave()

    def __aiter__(self) -> Self:
        return self

    def __del__(self) -> None:
        self._reader.drop()


class TextStream(_Handle):
    """The text of an answer, piece by piece: `async for text in stream`.

    The request is sent by the first read, or by entering `async with`. The iteration ends when the answer is
    complete; anything else raises a `HoldfastError` whose `partial` is the text so far. Where the provider was
    asked for several choices, this is the first; `StreamingAIClient.events` has all.

    Leaving early (`break`, an exception, cancellation, `aclose`) cancels the generation. A loop over
    `client.stream_chat(...)` itself does so at once, because the loop held the only reference; a stream that is
    kept in a variable is left when it is closed (`async with`, `aclose`) or the variable goes away. Cancelling a
    read also leaves the stream. One task reads a stream at a time.
    """

    __slots__ = ()

    async def __anext__(self) -> str:
        reader = self._reader
        while reader.entries or await reader.ready():  # no second coroutine for what is there
            text = reader.take_text()
            if text:
                return text
        raise StopAsyncIteration


class EventStream(_Handle):
    """Everything that a stream says: `StreamQueued`, a `Chunk` per entry, and `StreamEnd`.

    It starts, fails and is left like a `TextStream`.
    """

    __slots__ = ("_is_done",)

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self._is_done = False

    async def __anext__(self) -> StreamEvent:
        reader = self._reader
        if await reader.ready(wants_position=True):
            if reader.position is not None:
                position, reader.position = reader.position, None
                return position
            return reader.take_chunk()
        if self._is_done or reader.end is None or reader.is_left:
            raise StopAsyncIteration
        self._is_done = True
        return end_of(reader.end)
