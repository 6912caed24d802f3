"""The asynchronous client: what an application calls."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec

from holdfast.client.config import WebSocketConfig
from holdfast.client.connections import Connections
from holdfast.client.events import ConnectionState
from holdfast.client.streams import EventStream, Reader, TextStream
from holdfast.core.session.messages import MAX_NAME, MAX_SEQ
from holdfast.errors import Cancelled, InvalidRequest, LogTrimmed

logger = logging.getLogger("holdfast.client")

OnState: TypeAlias = Callable[[ConnectionState], Awaitable[None] | None]

_encoder = msgspec.json.Encoder()


class StreamingAIClient:
    """Streams answers of a Holdfast gateway over one connection that is made again whenever it breaks.

    The first call connects. Any number of streams run at a time, each with a window of its own: one that is not
    read does not delay the others. After a break every stream carries on from the entry that it had last; when
    `max_retries` attempts in a row have failed, every waiting call raises the last error, with what it had
    received as `partial`, and the next call starts anew. A stream that the gateway refuses to resume for the time
    being is asked for again as often before its call raises.

    `on_state` is called on the client's event loop with each new `ConnectionState`, and must return soon; it may
    be a coroutine function. What it raises is logged and harms nothing. A client belongs to one event loop and is
    closed with `aclose` or `async with`.
    """

    def __init__(self, config: WebSocketConfig | None = None, *, on_state: OnState | None = None) -> None:
        self.config = config if config is not None else WebSocketConfig()
        self._on_state = on_state
        self._callbacks: set[asyncio.Task[None]] = set()
        self._connections = Connections(self.config, self._tell)

    @property
    def state(self) -> ConnectionState:
        return self._connections.state

    # -- streams --

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        request_id: str | None = None,
        **extra: Any,
    ) -> TextStream:
        """Ask for a chat completion and iterate over its text.

        `extra` fields become part of the request as they are. Two requests with the same `request_id` are one
        generation, also across a restart of the application; by default each call has a new one. Errors are raised
        by the iteration: `Cancelled`, `UpstreamError` and its kinds, `RateLimited`, `ConnectionLost` and so on,
        with the text so far as `partial`.
        """
        return TextStream(self._create(messages, model, temperature, max_tokens, request_id, extra))

    def events(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        request_id: str | None = None,
        **extra: Any,
    ) -> EventStream:
        """Like `stream_chat`, but iterate over typed events: raw chunks, queue positions, usage at the end."""
        return EventStream(self._create(messages, model, temperature, max_tokens, request_id, extra))

    def attach(self, stream_id: str, *, after: int = -1) -> TextStream:
        """Read the text of an existing stream, running or ended, from the entry that follows number `after`.

        Leaving it does not stop the generation. Raises `UnknownStream`, `LogTrimmed` or `AheadOfLog` when it
        cannot be read whole from there, and `InvalidRequest` for a stream that this client reads already.
        """
        return TextStream(self._attach(stream_id, after))

    def attach_events(self, stream_id: str, *, after: int = -1) -> EventStream:
        """Like `attach`, but iterate over typed events."""
        return EventStream(self._attach(stream_id, after))

    async def cancel(self, stream: TextStream | EventStream | str) -> None:
        """Stop a generation, by its iterator or its id, and wait until the gateway says that it has ended.

        Iterating over it then ends without an error, after what had been received. A stream that has already
        ended stays as it is. Raises `UnknownStream` and, without a gateway, `ConnectionLost`.
        """
        if isinstance(stream, str):
            await self._cancel_id(stream)
        elif stream._reader.stream is not None:
            await self._cancel_reader(stream._reader)
        else:
            stream._reader.leave()

    async def connect(self) -> None:
        """Connect now rather than with the first call. Raises what that call would."""
        await self._connections.connected()

    async def aclose(self) -> None:
        """Cancel the generations that this client has asked for and close the connection. Idempotent.

        Whoever still reads a stream gets `Cancelled`.
        """
        await self._connections.aclose()
        callbacks = self._callbacks - {asyncio.current_task()}
        if callbacks:
            await asyncio.wait(callbacks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- inside --

    def _create(
        self,
        messages: Sequence[Mapping[str, Any]],
        model: str,
        temperature: float | None,
        max_tokens: int | None,
        request_id: str | None,
        extra: dict[str, Any],
    ) -> Reader:
        request: dict[str, Any] = {"model": model, "messages": messages}
        if temperature is not None:
            request["temperature"] = temperature
        if max_tokens is not None:
            request["max_tokens"] = max_tokens
        request.update(extra)
        if request_id is None:
            request_id = secrets.token_hex(16)
        _check_name("request_id", request_id)
        return Reader(
            self._connections,
            request=_encoder.encode(request),
            request_id=request_id,
            window=self.config.stream_window,
        )

    def _attach(self, stream_id: str, after: int) -> Reader:
        _check_name("stream_id", stream_id)
        if not isinstance(after, int) or not -1 <= after <= MAX_SEQ:
            raise InvalidRequest(
                f"after: must be an entry's number, or -1 for all; found {after!r}", param="after"
            )
        return Reader(self._connections, stream_id=stream_id, after=after, window=self.config.stream_window)

    async def _cancel_id(self, stream_id: str) -> None:
        # Connect first: a stream that `hello` names may be refused, for a trimmed log, before the cancel is sent.
        await self._connections.connected()
        reader = self._connections.reader_of(stream_id)
        if reader is not None:
            await self._cancel_reader(reader)
            return
        reader = self._attach(stream_id, -1)
        reader.start()
        try:
            await self._cancel_reader(reader)
        except LogTrimmed:
            pass  # nothing can be read, but the cancel went out behind the attach
        finally:
            reader.leave()

    async def _cancel_reader(self, reader: Reader) -> None:
        if reader.is_over:
            return
        watcher = asyncio.get_running_loop().create_future()
        reader.watchers.append(watcher)
        self._connections.cancel(reader)
        await watcher
        # A request that was not sent yet ends as cancelled at once.
        if reader.error is not None and not isinstance(reader.error, Cancelled):
            raise reader.error

    def _tell(self, state: ConnectionState) -> None:
        if self._on_state is None:
            return
        try:
            result = self._on_state(state)
        except Exception:
            logger.exception("on_state failed for %s", state.value)
            return
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(self._wait_for(result, state))
            self._callbacks.add(task)
            task.add_done_callback(self._callbacks.discard)

    async def _wait_for(self, result: Awaitable[None], state: ConnectionState) -> None:
        try:
            await result
        except Exception:
            logger.exception("on_state failed for %s", state.value)


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        raise InvalidRequest(
            f"{name}: must be a string of 1 to {MAX_NAME} characters; found {value!r}", param=name
        )
