"""The synchronous twin of the client: an event loop in one background thread, and iterators over it."""

from __future__ import annotations

import asyncio
import io
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from holdfast.client.aio import StreamingAIClient
from holdfast.client.config import WebSocketConfig
from holdfast.client.events import Chunk, ConnectionState, StreamEvent, StreamQueued, json_of, text_of
from holdfast.client.link import CLOSE_TIMEOUT
from holdfast.client.streams import EventStream, Reader, TextStream, end_of
from holdfast.core.entries import Usage
from holdfast.errors import HoldfastError

T = TypeVar("T")


class _LoopThread:
    """An event loop that runs in a daemon thread until `stop`."""

    def __init__(self) -> None:
        self._started = threading.Event()
        # It guards `_is_stopped`: a call to a loop that has stopped would wait for ever. It is re-entrant, because
        # the garbage collector may stop one client within a call of the same thread.
        self._lock = threading.RLock()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="holdfast-client", daemon=True)
        self._thread.start()
        self._started.wait()

    def _run(self) -> None:
        asyncio.run(self._wait_for_stop())

    async def _wait_for_stop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started.set()
        await self._stop.wait()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it. An exception here (Ctrl-C) cancels it."""
        if self.is_current:
            coroutine.close()
            raise RuntimeError("on_state runs on the client's own loop and must not wait for the client")
        with self._lock:
            if self._is_stopped:
                coroutine.close()
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def post(self, function: Callable[[], object]) -> None:
        """Run a function on the loop, without waiting; after `stop` there is nothing that it could change."""
        with self._lock:
            if not self._is_stopped:
                self._loop.call_soon_threadsafe(function)

    def stop(self, client: StreamingAIClient) -> None:
        """Close the client and end the thread. From the thread itself (garbage collection) without waiting."""
        with self._lock:
            self.post(lambda: asyncio.ensure_future(self._close(client)))
            self._is_stopped = True
        if not self.is_current:
            self._thread.join(2 * CLOSE_TIMEOUT)

    async def _close(self, client: StreamingAIClient) -> None:
        try:
            await client.aclose()
        finally:
            self._stop.set()


class SyncStreamingAIClient:
    """`StreamingAIClient` for code without an event loop: the same methods, with plain iterators.

    The network runs in a background thread of its own, also while nobody reads; `on_state` is called there. Any
    number of threads may use a client; one thread at a time reads a stream. It is closed with `close` or `with`,
    and at the latest when the interpreter exits.
    """

    def __init__(
        self,
        config: WebSocketConfig | None = None,
        *,
        on_state: Callable[[ConnectionState], None] | None = None,
    ) -> None:
        self._client = StreamingAIClient(config, on_state=on_state)
        self.config = self._client.config
        self._thread = _LoopThread()
        # Also runs at exit, while daemon threads are still alive.
        self._finalizer = weakref.finalize(self, self._thread.stop, self._client)

    @property
    def state(self) -> ConnectionState:
        return self._client.state

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        request_id: str | None = None,
        **extra: Any,
    ) -> SyncTextStream:
        """Ask for a chat completion and iterate over its text; see `StreamingAIClient.stream_chat`."""
        stream = self._client.stream_chat(
            messages,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            request_id=request_id,
            **extra,
        )
        return SyncTextStream(self, stream)

    def events(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        request_id: str | None = None,
        **extra: Any,
    ) -> SyncEventStream:
        """Like `stream_chat`, but iterate over typed events: raw chunks, queue positions, usage at the end."""
        stream = self._client.events(
            messages,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            request_id=request_id,
            **extra,
        )
        return SyncEventStream(self, stream)

    def attach(self, stream_id: str, *, after: int = -1) -> SyncTextStream:
        """Read the text of an existing stream; see `StreamingAIClient.attach`."""
        return SyncTextStream(self, self._client.attach(stream_id, after=after))

    def attach_events(self, stream_id: str, *, after: int = -1) -> SyncEventStream:
        """Like `attach`, but iterate over typed events."""
        return SyncEventStream(self, self._client.attach_events(stream_id, after=after))

    def cancel(self, stream: SyncTextStream | SyncEventStream | str) -> None:
        """Stop a generation, by its iterator or its id, and wait until the gateway says that it has ended."""
        self._call(self._client.cancel(stream if isinstance(stream, str) else stream._stream))

    def connect(self) -> None:
        """Connect now rather than with the first call."""
        self._call(self._client.connect())

    def close(self) -> None:
        """Cancel the generations that this client asked for, close the connection, end the thread. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._thread.call(coroutine)

    def _post(self, function: Callable[[], object]) -> None:
        self._thread.post(function)


class _SyncHandle:
    """What the two kinds of iterator share. Entries cross from the loop's thread in batches, undecoded."""

    __slots__ = ("__weakref__", "_batch", "_client", "_is_closed", "_seq", "_stream", "_text")

    def __init__(self, client: SyncStreamingAIClient, stream: TextStream | EventStream) -> None:
        self._client = client  # also keeps the client alive
        self._stream = stream
        self._batch: deque[bytes] = deque()
        self._is_closed = False
        self._seq = stream.last_seq
        self._text = io.StringIO()

    @property
    def _reader(self) -> Reader:
        return self._stream._reader

    @property
    def id(self) -> str | None:
        """The stream's id, None until the gateway has accepted the request."""
        return self._stream.id

    @property
    def request_id(self) -> str | None:
        """The idempotency key of the request, None for a stream that was attached to."""
        return self._stream.request_id

    @property
    def last_seq(self) -> int:
        """Number of the last entry that was handed out, -1 before the first; pass it as `after` to read on."""
        return self._seq

    @property
    def text(self) -> str:
        """The text that was handed out so far."""
        return self._text.getvalue()

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped; known at the end."""
        return self._stream.finish_reason

    @property
    def usage(self) -> Usage | None:
        """What the provider counted; known at the end."""
        return self._stream.usage

    def close(self) -> None:
        """Read no further. A generation that was created here is cancelled; one that was attached to goes on.

        Any thread and any signal handler may call it: a read that waits then ends the iteration. Idempotent.
        """
        self._is_closed = True
        self._client._post(self._reader.leave)

    def __enter__(self) -> Self:
        self._client._call(self._stream.__aenter__())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def _next_payload(self) -> bytes:
        self._seq += 1
        return self._batch.popleft()

    def _failed(self, error: HoldfastError) -> None:
        error.partial = self.text
        self.close()


class SyncTextStream(_SyncHandle):
    """The text of an answer, piece by piece: `for text in stream`. It behaves like a `TextStream`."""

    __slots__ = ()

    def __next__(self) -> str:
        try:
            while not self._is_closed and (self._batch or self._fetch()):
                text = text_of(self._next_payload())
                if text:
                    self._text.write(text)
                    return text
        except HoldfastError as exc:
            self._failed(exc)
            raise
        raise StopIteration

    def _fetch(self) -> bool:
        self._batch.extend(self._client._call(_batch_of(self._reader)))
        return bool(self._batch)


class SyncEventStream(_SyncHandle):
    """Everything that a stream says, like an `EventStream`."""

    __slots__ = ("_is_done",)

    def __init__(self, client: SyncStreamingAIClient, stream: EventStream) -> None:
        super().__init__(client, stream)
        self._is_done = False

    def __next__(self) -> StreamEvent:
        try:
            if not self._batch and not self._is_closed:
                position, batch = self._client._call(_news_of(self._reader))
                self._batch.extend(batch)
                if position is not None:
                    return position
            if self._batch and not self._is_closed:
                payload = self._next_payload()
                chunk = Chunk(self._seq, json_of(payload), text_of(payload))
                self._text.write(chunk.text)
                return chunk
        except HoldfastError as exc:
            self._failed(exc)
            raise
        end = self._reader.end
        if self._is_done or end is None or self._reader.is_left:
            raise StopIteration
        self._is_done = True
        return end_of(end)


async def _batch_of(reader: Reader) -> list[bytes]:
    return reader.take_all() if await reader.ready() else []


async def _news_of(reader: Reader) -> tuple[StreamQueued | None, list[bytes]]:
    if not await reader.ready(wants_position=True):
        return None, []
    position, reader.position = reader.position, None
    return position, reader.take_all()
