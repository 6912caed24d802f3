"""The connections to one origin."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from urllib.parse import urlsplit

from holdfast.config import ProviderConfig
from holdfast.core.http1 import Http1Connection
from holdfast.errors import ConnectTimeout, PoolTimeout, UpstreamConnectError
from holdfast.upstream.call import Call, HttpRequest, ResponseSink
from holdfast.upstream.connection import UpstreamConnection


class Pool:
    """Keeps connections alive and lends their free slots in order of asking."""

    def __init__(self, config: ProviderConfig) -> None:
        url = urlsplit(config.base_url)
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._scheme = url.scheme.encode()
        self._authority = url.netloc.encode()
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._timeouts = config.timeouts
        self._max_connections = config.max_connections
        self._connections: list[UpstreamConnection] = []
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_closed = False

    async def send(self, request: HttpRequest, sink: ResponseSink) -> Call:
        """Send a request on a free slot, connecting or waiting for one; see `Upstream.send`."""
        connection = self._find()
        if connection is None:
            if len(self._connections) + self._connecting < self._max_connections:
                connection = await self._connect()
            else:
                connection = await self._wait()
        return connection.send(request, sink)

    def _find(self) -> UpstreamConnection | None:
        for connection in reversed(self._connections):
            if connection.transport is not None and connection.http.available_streams:
                return connection
        return None

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            async with asyncio.timeout(self._timeouts.connect):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(
                        Http1Connection(),
                        scheme=self._scheme,
                        authority=self._authority,
                        on_change=self._changed,
                    ),
                    self._host,
                    self._port,
                    ssl=self._ssl,
                )
        except TimeoutError as exc:
            raise ConnectTimeout(f"no connection within {self._timeouts.connect:g} s") from exc
        except OSError as exc:
            raise UpstreamConnectError(f"cannot connect to the provider: {exc.strerror or exc}") from exc
        finally:
            self._connecting -= 1
        self._connections.append(connection)
        return connection

    async def _wait(self) -> UpstreamConnection:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(self._timeouts.pool):
                while True:
                    await future
                    connection = self._find()
                    if connection is not None:
                        return connection
                    if len(self._connections) + self._connecting < self._max_connections:
                        return await self._connect()
                    future = asyncio.get_running_loop().create_future()
                    self._waiting.appendleft(future)
        except TimeoutError as exc:
            raise PoolTimeout(f"no connection came free within {self._timeouts.pool:g} s") from exc
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def _changed(self, connection: UpstreamConnection) -> None:
        if connection.transport is None and connection in self._connections:
            self._connections.remove(connection)
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def aclose(self) -> None:
        self._is_closed = True
        for connection in list(self._connections):
            connection.close()
