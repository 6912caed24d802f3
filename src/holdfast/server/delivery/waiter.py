"""Waits on a stream on behalf of one HTTP exchange whose answer comes whole."""

from __future__ import annotations

import asyncio

from holdfast.core.entries import START, Position
from holdfast.core.log import Cursor
from holdfast.errors import HoldfastError
from holdfast.server.listener.exchange import Exchange
from holdfast.streams.stream import Stream


class Waiter:
    """A reader of one stream that wakes its exchange's handler, at the next entry or only at the end.

    The client's leaving ends the wait: then the exchange is complete.
    """

    __slots__ = ("_cursor", "_exchange", "_future", "_payloads", "_stream", "_wants_end")

    def __init__(
        self,
        stream: Stream,
        exchange: Exchange,
        position: Position = START,
        *,
        wants_end: bool = False,
        is_onlooker: bool = False,
    ) -> None:
        """Attach to the stream. Raises like `Stream.attach`."""
        self._stream = stream
        self._exchange = exchange
        self._wants_end = wants_end
        self._payloads: list[bytes] = []
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cursor = stream.attach(self, position, is_onlooker=is_onlooker)
        exchange.on_disconnect = self._disconnected
        exchange.on_revoked = self._revoked
        if exchange.is_complete:  # the client was gone before its request began
            self._disconnected()
        elif stream.is_ended:
            self._future.set_result(None)

    async def wait(self, timeout: float | None = None, *, max_bytes: int | None = None) -> None:
        """Return when there is what the waiter wants, when the client has left, or after so many seconds.

        `max_bytes` bounds what `read` gives, as a log's `slice` does; None is all of it.
        """
        try:
            await asyncio.wait_for(self._future, timeout)
        except TimeoutError:
            pass
        if not self._exchange.is_complete:
            # While the cursor holds them: behind its release a full log drops what others have consumed.
            size = self._stream.log.bytes if max_bytes is None else max_bytes
            self._payloads = self._cursor.read_payloads(size)
        self._stream.release(self._cursor)

    def read(self) -> list[bytes]:
        """Return the payloads behind the position, the end entry's included."""
        return self._payloads

    # -- the stream's side --

    def wake(self, cursor: Cursor) -> None:
        if not self._future.done() and (self._stream.is_ended or not self._wants_end):
            self._future.set_result(None)

    def position_changed(self, cursor: Cursor) -> None:
        pass  # an answer that comes whole cannot tell positions

    def epoch_changed(self, cursor: Cursor) -> None:
        pass  # it shows the epoch that the log has then

    def forgotten(self, cursor: Cursor, error: HoldfastError) -> None:
        pass  # only ended streams are, so the waiter is awake already, and answers with the log that it still has

    # -- the client's side --

    def _disconnected(self) -> None:
        self._stream.lose(self._cursor)
        if not self._future.done():
            self._future.set_result(None)

    def _revoked(self, error: HoldfastError) -> None:
        self._exchange.refuse(error)
        self._disconnected()
