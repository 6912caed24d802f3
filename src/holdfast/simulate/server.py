"""The simulated provider itself: a listener, its connections, and what they share."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from holdfast.simulate.connection import Connection
from holdfast.simulate.pacer import Pacer
from holdfast.simulate.service import Service
from holdfast.simulate.statistics import Counters, Statistics


class SimulatedProvider:
    """An OpenAI-compatible provider that answers with deterministic text and fails as it is told.

    Construct it inside a running event loop. It makes no task: everything runs in callbacks of the loop.
    """

    def __init__(self, *, models: tuple[str, ...] = ("demo",)) -> None:
        self._loop = asyncio.get_running_loop()
        self.pacer = Pacer(self._loop)
        self.counters = Counters()
        self.service = Service(self.pacer, self.counters, models)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._all_closed: asyncio.Future[None] | None = None
        self._scheme = "http"
        self._host = ""
        self.port = 0

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Listen; port 0 takes a free one, which `port` then names."""
        self._server = await self._loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        self._scheme = "https" if ssl_context is not None else "http"
        self._host = host
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def base_url(self) -> str:
        """The URL to give to clients, `http://HOST:PORT/v1`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{host}:{self.port}/v1"

    def statistics(self) -> Statistics:
        """Return the counts as they are now."""
        return self.counters.snapshot()

    async def until(self, predicate: Callable[[Statistics], bool], timeout: float = 5.0) -> Statistics:
        """Wait until `predicate` holds for the counts; TimeoutError shows them if it does not in time."""
        return await self.counters.until(predicate, timeout)

    async def aclose(self) -> None:
        """Stop listening, abort all connections and wait until they are gone. May be called twice."""
        if self._server is not None:
            self._server.close()
        if self._connections:
            self._all_closed = self._loop.create_future()
            for connection in list(self._connections):
                connection.abort()
            await self._all_closed
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        self.pacer.clear()

    # -- for connections -------------------------------------------------------------------------------

    def connection_opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.counters.connections += 1
        self.counters.open_connections += 1
        self.counters.changed()

    def connection_closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.counters.open_connections -= 1
        self.counters.changed()
        if self._all_closed is not None and not self._connections and not self._all_closed.done():
            self._all_closed.set_result(None)
