"""One connection's part of a session: moves messages between the link and the session, and keeps its timer."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable

from holdfast.client.config import WebSocketConfig
from holdfast.client.link import Link, LinkFailed
from holdfast.core.session import client as session_events
from holdfast.core.session.client import ClientSession
from holdfast.errors import ConnectionLost, HoldfastError, ProtocolError

logger = logging.getLogger("holdfast.client")


class Conversation:
    """Runs a session over a link until one of them ends.

    `deliver` gets each event of the session that is not about the connection itself.
    """

    def __init__(
        self,
        session: ClientSession,
        link: Link,
        config: WebSocketConfig,
        deliver: Callable[[session_events.Event], None],
    ) -> None:
        self.is_leaving = False
        #: When the gateway asked this connection to leave, None before it did.
        self.leave_at: float | None = None
        self._leaves_when_idle = False
        self._session = session
        self._link = link
        self._config = config
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[bytes] = deque()
        self._news = asyncio.Event()  # something to write
        self._timer: asyncio.TimerHandle | None = None
        self._verdict: LinkFailed | None = None
        self._session_error: HoldfastError | None = None
        self._welcomed_at = math.inf
        self._last_message = 0.0
        self._has_progress = False

    @property
    def is_healthy(self) -> bool:
        """Whether this connection was of use: a stream made progress, or it has outlived a heartbeat."""
        return self._has_progress or self._loop.time() - self._welcomed_at >= self._config.ping_interval

    async def run(self, welcome_deadline: float) -> None:
        """Say hello and carry messages. Returns when the connection was left as asked; raises `LinkFailed`."""
        self._last_message = self._loop.time()
        self._session.connection_made(self._last_message)
        writer = self._loop.create_task(self._write())
        self.flush()
        try:
            try:
                async with asyncio.timeout_at(welcome_deadline):
                    while self._welcomed_at == math.inf:
                        self._receive(await self._link.receive())
            except TimeoutError as exc:
                limit = f"{self._config.connect_timeout:g} s"
                raise LinkFailed(ConnectionLost(f"{self._config.url} gave no welcome within {limit}")) from exc
            while True:
                self._receive(await self._link.receive())
        except LinkFailed as exc:
            if self.is_leaving:
                return
            failed = self._judge(exc)
            if failed is exc:
                raise
            raise failed from exc
        finally:
            self._session.connection_lost()
            if self._timer is not None:
                self._timer.cancel()
            self._link.abort()
            writer.cancel()
            await asyncio.wait([writer])
            await self._link.wait_closed()

    def flush(self) -> None:
        """Write the messages of the session, in order, and set the timer for its next deadline."""
        self._outgoing.extend(self._session.data_to_send())
        if self._leaves_when_idle and self._session.is_idle and not self.is_leaving:
            self.leave()
        if self._outgoing:
            self._news.set()
        self._schedule()

    def leave(self) -> None:
        """Close the connection in an orderly way, after all messages were written."""
        self.is_leaving = True
        self._news.set()

    def leave_later(self, moment: float) -> None:
        """Leave at `moment` of the loop's clock, or when the gateway closes."""
        self.leave_at = moment
        self._schedule()

    def leave_when_idle(self) -> None:
        """Leave as soon as no stream waits or runs; the next `flush` checks."""
        self._leaves_when_idle = True

    # -- reading --

    def _receive(self, message: bytes) -> None:
        self._last_message = self._loop.time()
        self._take(self._session.receive_text(message, self._last_message), ProtocolError)
        if self._verdict is not None:
            raise self._verdict
        self.flush()

    def _take(self, events: Iterable[session_events.Event], fault: type[HoldfastError]) -> None:
        for event in events:
            match event:
                case session_events.ConnectionFailed():
                    self._verdict = LinkFailed(fault(event.reason))
                    self._link.abort()
                case session_events.SessionError():
                    logger.warning("the gateway reports %s: %s", event.error.code, event.error.message)
                    self._session_error = event.error
                case session_events.Welcomed():
                    self._welcomed_at = self._loop.time()
                    self._deliver(event)
                case (
                    session_events.GoawayReceived()
                    | session_events.StreamReturned()
                    | session_events.StreamDeferred()
                ):
                    self._deliver(event)
                case _:
                    self._has_progress = True
                    self._deliver(event)

    def _judge(self, failed: LinkFailed) -> LinkFailed:
        """Return why the connection ended: what this side has found, or what the gateway said before it closed."""
        if self._verdict is not None:
            return self._verdict
        said = self._session_error
        if said is not None and said.close_code is not None and said.close_code == failed.error.close_code:
            return LinkFailed(said, is_final=failed.is_final)
        return failed

    # -- writing --

    async def _write(self) -> None:
        while await self._news.wait():
            self._news.clear()
            while self._outgoing:
                if not await self._link.transmit(self._outgoing.popleft()):
                    return
            if self.is_leaving:
                await self._link.close()
                return

    # -- time --

    def _schedule(self) -> None:
        deadline = self._session.next_deadline()
        if deadline is None:
            return
        if self.leave_at is not None and not self.is_leaving:
            deadline = min(deadline, self.leave_at)
        if self._timer is not None:
            # Most deadlines are put off: a timer that fires early checks again, which costs less than a new timer
            # for each message.
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._on_time, deadline)

    def _on_time(self, due: float) -> None:
        # The loop's clock is coarse: what is due may seem to be due in a moment.
        now = max(self._loop.time(), due)
        self._timer = None
        if self.leave_at is not None and now >= self.leave_at and not self.is_leaving:
            self.leave()
        interval = self._config.ping_interval
        heard = self._link.last_heard
        if self._last_message + interval <= now < heard + interval:
            # Part of a large message has come, or a ping of the WebSocket layer: the peer is alive.
            self._timer = self._loop.call_at(heard + interval, self._on_time, heard + interval)
            return
        self._take(self._session.handle_timeout(now), ConnectionLost)
        self.flush()
