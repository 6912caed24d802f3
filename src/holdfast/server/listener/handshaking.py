"""A connection during its TLS handshake: it counts from its acceptance on, and has the time of its first head.

Left to itself, asyncio tells of a connection when its handshake is done: until then it would count nowhere.
"""

from __future__ import annotations

import asyncio
import ssl

from holdfast.core.frameless import without_frames
from holdfast.server.listener.http import HttpConnection

#: Bytes in either direction past which a connection is paused, as without TLS.
_BUFFER = 64 * 1024


class Handshaking(asyncio.Protocol):
    """Stands for the HTTP connection until its handshake is done. `tasks` has the handshakes under way."""

    def __init__(
        self,
        connection: HttpConnection,
        context: ssl.SSLContext,
        timeout: float,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self._connection = connection
        self._context = context
        self._timeout = timeout
        self._tasks = tasks
        self._is_lost = False
        self._securing: asyncio.Task[asyncio.Transport | None] | None = None
        # What comes before the TLS protocol has the transport is the handshake's; behind its end it is the first
        # request's.
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw: asyncio.Transport = transport  # type: ignore[assignment]
        # The first bytes are the handshake's. uvloop reads some all the same.
        raw.pause_reading()
        self._connection.transport = raw
        if self._connection.accept() is not None:
            # An answer would need the handshake first.
            self._connection.connection_lost(None)
            raw.abort()
            return
        task = asyncio.get_running_loop().create_task(self._shake_hands(raw), name="tls handshake")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, raw: asyncio.Transport) -> None:
        connection, loop = self._connection, asyncio.get_running_loop()
        securing = self._securing = loop.create_task(
            loop.start_tls(raw, self, self._context, server_side=True, ssl_handshake_timeout=self._timeout)
        )
        if self._is_lost:
            securing.cancel()
        # Behind the first step of that, and behind what that schedules: the TLS protocol is connected then, and
        # nothing has been read for it yet.
        loop.call_soon(loop.call_soon, self._feed, raw)
        try:
            secure = await securing
        except (OSError, RuntimeError) as exc:  # ssl.SSLError and timeouts are OSErrors; who failed it knows why
            # The loop's frames know the future that has this error, and ours the task: with frames it is a cycle,
            # of the connection and of all that TLS has taken for it.
            without_frames(exc)
            secure = None
        except asyncio.CancelledError as exc:
            if not self._is_lost:
                raise
            without_frames(exc)
            secure = None
        finally:
            self._securing = None
        # One that was lost in this very turn has told, or will tell, this object alone.
        if secure is None or self._is_lost or secure.is_closing():
            connection.connection_lost(None)
            raw.abort()
            return
        # Left to itself, TLS has half a megabyte waiting of what the client does not take, and a quarter of what
        # is not read of it. It needs room for one record, of 16 KiB.
        secure.set_write_buffer_limits(high=_BUFFER)
        secure.set_read_buffer_limits(high=_BUFFER, low=_BUFFER // 2)  # type: ignore[attr-defined]
        secure.set_protocol(connection)
        connection.connection_made(secure)
        if self._early:
            connection.data_received(self._early)

    def _feed(self, raw: asyncio.Transport) -> None:
        """Hand over what was read before the TLS protocol could have it."""
        early, self._early = self._early, b""
        # It is a `BufferedProtocol` in all but name: that of uvloop inherits from nothing.
        protocol: asyncio.BufferedProtocol = raw.get_protocol()  # type: ignore[assignment]
        while early and not raw.is_closing():
            buffer = memoryview(protocol.get_buffer(len(early)))
            size = min(len(buffer), len(early))
            buffer[:size] = early[:size]
            protocol.buffer_updated(size)
            early = early[size:]

    def data_received(self, data: bytes) -> None:
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        if self._securing is not None:
            # Where the TLS protocol has come too late to be told, it would wait for ever: its own timeout only
            # closes what is closed.
            self._securing.cancel()
