"""Keeps one session connected as long as a stream needs it: reconnects, backs off, gives up."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from holdfast.client.config import WebSocketConfig
from holdfast.client.conversation import Conversation
from holdfast.client.events import ConnectionState, StreamQueued
from holdfast.client.link import CLOSE_TIMEOUT, LinkFailed, open_link
from holdfast.client.streams import Reader
from holdfast.core.backoff import Backoff
from holdfast.core.session import client as session_events
from holdfast.core.session.client import ClientSession, ClientStream
from holdfast.errors import (
    Cancelled,
    ConnectionLost,
    Draining,
    HoldfastError,
    InternalError,
    InvalidRequest,
    PayloadTooLarge,
    ProtocolError,
)
from holdfast.version import __version__

logger = logging.getLogger("holdfast.client")

#: What the envelope of a request may need beside the request itself: two names and a number.
_ENVELOPE = 1024

#: Seconds after which a client leaves in any case, whatever window `goaway` names.
_LONGEST_GOAWAY = 3600.0


class Successor(Protocol):
    """Takes a runner's new work when its gateway sends it away."""

    def sent_away(self, runner: Runner, *, was_of_use: bool) -> None: ...

    def returned(self, reader: Reader) -> None:
        """The gateway has not started the reader's request."""


class Runner:
    """The streams of one session and the task that keeps them connected.

    The task lives while a stream waits or runs and while a connection is open; an idle session that loses its
    connection has no task, and the next call connects. `on_state` is called after each change of `state`. The
    first connection is made after `delay` seconds.
    """

    def __init__(
        self,
        config: WebSocketConfig,
        on_state: Callable[[], None],
        successor: Successor,
        *,
        delay: float = 0.0,
    ) -> None:
        self.state = ConnectionState.DISCONNECTED
        self._config = config
        self._on_state = on_state
        self._successor = successor
        self._delay = delay
        self._rng = random.SystemRandom()
        self._backoff = Backoff(config.initial_backoff, config.max_backoff)
        self._session = self._new_session()
        self._readers: dict[ClientStream, Reader] = {}
        self._waiters: list[asyncio.Future[None]] = []  # for an open connection
        self._task: asyncio.Task[None] | None = None
        self._conversation: Conversation | None = None
        self._is_closed = False
        # The gateway goes and the streams stay: this runner takes no new work, and leaves when the last has ended.
        self._is_sent_away = False
        self._was_welcomed = False
        # Of the last connection: whether it was of use, and when it was asked to leave.
        self._was_healthy = False
        self._moment: float | None = None
        self._largest_request = config.max_message - _ENVELOPE

    # -- from the client --

    def start(self, reader: Reader) -> None:
        """Create or attach to the reader's stream. Raises `PayloadTooLarge` and `InvalidRequest` at once."""
        self._claim_loop()
        try:
            if reader.stream_id is not None:
                stream = self._session.attach(reader.stream_id, after=reader.seq, window=reader.window)
            else:
                request, request_id = reader.request or b"", reader.request_id or ""
                if len(request) > self._largest_request:
                    raise PayloadTooLarge(
                        f"the request has {len(request)} bytes; the gateway takes {self._largest_request}"
                    )
                stream = self._session.create(request_id, request, window=reader.window)
        except ValueError as exc:
            raise InvalidRequest(f"{exc}; use another client for a second reader of it") from exc
        reader.stream = stream
        reader.carrier = self
        self._readers[stream] = reader
        self._get_going()

    def consume(self, stream: ClientStream, size: int) -> None:
        self._session.consume(stream, size)
        if self._conversation is not None:
            self._conversation.flush()

    def leave(self, reader: Reader) -> None:
        """Stop a generation that was created here. Of one that was attached to, stop the reading only."""
        stream = reader.stream
        if reader.stream_id is None:
            self.cancel(reader)
        elif stream is not None and stream in self._readers:
            self._session.detach(stream)
            del self._readers[stream]
            self._get_going()

    def cancel(self, reader: Reader) -> None:
        """Stop the reader's generation; of what still comes, only its end is delivered."""
        if reader.stream is not None and reader.stream in self._readers:
            for event in self._session.cancel(reader.stream):
                self._deliver(event)
            reader.drain()
            self._get_going()

    def reader_of(self, stream_id: str) -> Reader | None:
        """Return the reader of a stream, None where this session does not read it."""
        return next((reader for stream, reader in self._readers.items() if stream.id == stream_id), None)

    async def connected(self) -> None:
        """Wait until a connection is open. Raises like a stream would."""
        self._claim_loop()
        if self.state is ConnectionState.OPEN:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._get_going()
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def aclose(self) -> None:
        """Cancel what was created here, close the connection, end the task. Idempotent."""
        self._is_closed = True
        for reader in list(self._readers.values()):
            reader.leave(Cancelled("the client was closed while the stream ran"))
        self._fail_waiters(Cancelled("the client was closed"))
        task = self._task
        if task is not None:
            try:
                if self._conversation is not None:
                    self._conversation.leave()
                    await asyncio.wait([task], timeout=CLOSE_TIMEOUT)
            finally:
                task.cancel()
            await asyncio.wait([task])
        self._set_state(ConnectionState.CLOSED)

    # -- the task --

    def _claim_loop(self) -> None:
        if self._is_closed:
            raise RuntimeError("the client is closed")
        if self._task is not None and self._task.get_loop() is not asyncio.get_running_loop():
            raise RuntimeError("the client is in use in another event loop; make one client for each loop")

    def _get_going(self) -> None:
        if self._conversation is not None:
            self._conversation.flush()
        elif self._task is None and self._is_needed and not self._is_closed:
            self._set_state(ConnectionState.CONNECTING)
            self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def _is_needed(self) -> bool:
        return not self._session.is_idle or bool(self._waiters)

    async def _run(self) -> None:
        try:
            await asyncio.sleep(self._delay)
            while self._is_needed and not self._is_closed:
                await self._connect_and_wait()
        except asyncio.CancelledError:
            # Closed, or the loop ends: a callback that is started now would outlive it, so none is.
            self.state = ConnectionState.DISCONNECTED
            self._give_up(Cancelled("the client's event loop was stopped"))
            raise
        except Exception as exc:  # the supervisor of the connection
            logger.exception("the client failed")
            error = InternalError("the client failed; the cause is in its log")
            error.__cause__ = exc
            self._give_up(error)
        finally:
            self._task = None
            if not self._is_closed:
                self._set_state(ConnectionState.DISCONNECTED)

    async def _connect_and_wait(self) -> None:
        """Hold one connection until it ends, then wait until the next one may be made."""
        self._was_healthy, self._moment = False, None
        try:
            await self._converse()
            failed = LinkFailed(Draining("the gateway sends its clients away"))
        except LinkFailed as exc:
            failed = exc
        if not self._is_needed or self._is_closed:
            return
        if self._was_healthy:
            self._backoff.reset()
        if self._moment is not None and self._was_healthy and not failed.is_final:
            # After a connection that was of use, leaving when asked to is no failure.
            delay = min(max(self._moment - asyncio.get_running_loop().time(), 0.0), self._config.max_backoff)
        elif failed.is_final or self._backoff.failures >= self._config.max_retries:
            self._give_up(failed.error)
            return
        else:
            # `retry_after` is honoured up to the longest wait that the configuration allows.
            floor = min(max(failed.error.retry_after or 0.0, 0.0), self._config.max_backoff)
            delay = self._backoff.next_delay(self._rng, retry_after=floor)
        logger.info("%s; connecting again in %.1f s", failed.error.message, delay)
        self._set_state(ConnectionState.RECONNECTING)
        await asyncio.sleep(delay)

    async def _converse(self) -> None:
        config = self._config
        deadline = asyncio.get_running_loop().time() + config.connect_timeout
        try:
            async with asyncio.timeout_at(deadline):
                link = await open_link(config, was_welcomed=self._was_welcomed)
        except TimeoutError as exc:
            message = f"no connection to {config.url} within {config.connect_timeout:g} s"
            raise LinkFailed(ConnectionLost(message)) from exc
        conversation = Conversation(self._session, link, config, self._deliver)
        self._conversation = conversation
        if self._is_sent_away:
            conversation.leave_when_idle()
        try:
            await conversation.run(deadline)
        finally:
            self._conversation = None
            self._was_healthy, self._moment = conversation.is_healthy, conversation.leave_at

    def _give_up(self, error: HoldfastError) -> None:
        """Raise the error from every waiting call, and begin anew with the next one."""
        readers, self._readers = self._readers, {}
        self._session = self._new_session()
        self._backoff.reset()
        for reader in readers.values():
            reader.fail(_copy(error))
        self._fail_waiters(error)

    def _fail_waiters(self, error: HoldfastError) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(_copy(error))

    def _new_session(self) -> ClientSession:
        return ClientSession(
            client=f"python/{__version__}",
            rng=self._rng,
            ping_interval=self._config.ping_interval,
            ping_timeout=self._config.ping_timeout,
            max_retries=self._config.max_retries,
            initial_backoff=self._config.initial_backoff,
            max_backoff=self._config.max_backoff,
        )

    def _set_state(self, state: ConnectionState) -> None:
        if state is not self.state:
            self.state = state
            self._on_state()

    # -- from the session --

    def _deliver(self, event: session_events.Event) -> None:
        match event:
            case session_events.EntriesReceived():
                self._deliver_entries(event)
            case session_events.StreamEnded():
                reader = self._readers.pop(event.stream, None)
                if reader is not None:
                    reader.finish(event.end)
            case session_events.StreamFailed():
                reader = self._readers.pop(event.stream, None)
                if reader is not None:
                    reader.fail(event.error)
            case session_events.StreamDeferred():
                logger.info(
                    "the gateway cannot resume %s yet: %s; asking again in %.1f s",
                    event.stream.id,
                    event.error.message,
                    event.delay,
                )
            case session_events.StreamQueued():
                reader = self._readers.get(event.stream)
                if reader is not None:
                    reader.queued(StreamQueued(event.position, event.retry_in, event.attempt, event.code))
            case session_events.Welcomed():
                self._welcome(event)
            case session_events.GoawayReceived():
                self._sent_away(event)
            case session_events.StreamReturned():
                reader = self._readers.pop(event.stream, None)
                if reader is not None:
                    self._successor.returned(reader)

    def _deliver_entries(self, event: session_events.EntriesReceived) -> None:
        reader = self._readers.get(event.stream)
        if reader is None:
            return
        reader.push(event.payloads)
        if reader.buffered > reader.window + self._config.max_message:
            # One entry may overdraw the window. If more could, the gateway would decide how much memory we use.
            reader.leave(ProtocolError("the gateway sent more than it was granted"))

    def _welcome(self, event: session_events.Welcomed) -> None:
        self._was_welcomed = True
        largest = min(self._config.max_message, event.welcome.limits.max_message)
        self._largest_request = largest - _ENVELOPE
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._set_state(ConnectionState.OPEN)

    def _sent_away(self, event: session_events.GoawayReceived) -> None:
        conversation = self._conversation
        if conversation is None:
            return
        if event.streams == "stay":
            # There is no need to wait for the window: the next connection is made when there is new work.
            self._is_sent_away = True
            self._successor.sent_away(self, was_of_use=conversation.is_healthy)
            conversation.leave_when_idle()
        elif conversation.leave_at is None:
            start, stop = (min(max(milliseconds / 1000, 0.0), _LONGEST_GOAWAY) for milliseconds in event.window_ms)
            delay = self._rng.uniform(start, max(start, stop))
            conversation.leave_later(asyncio.get_running_loop().time() + delay)


def _copy(error: HoldfastError) -> HoldfastError:
    # Each waiting call raises its own exception, because each carries the text that it had received.
    copy = type(error)(error.message, retry_after=error.retry_after, param=error.param)
    copy.__cause__ = error.__cause__
    return copy
