"""The least of an asyncio shell round a sans-I/O HTTP client connection: enough to meet real servers."""

from __future__ import annotations

import asyncio
import ssl

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    HttpConnection,
    PongReceived,
    ResponseEnded,
    ResponseReceived,
    SettingsChanged,
    StreamFailed,
)
from holdfast.core.http.http1 import Http1Connection
from holdfast.core.http.http2 import Http2Connection
from holdfast.core.http.request import Headers


class Exchange:
    """One request and what came back of it."""

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.trailers: Headers = []
        self.failure: StreamFailed | None = None
        self.changed = asyncio.Condition()
        self.is_over = False


class HttpShell(asyncio.Protocol):
    """Drives either protocol; grants all that it receives unless `grants` is off."""

    def __init__(self, connection: HttpConnection) -> None:
        self.connection = connection
        self.exchanges: dict[int, Exchange] = {}
        self.settings: list[SettingsChanged] = []
        self.goaways: list[GoAwayReceived] = []
        self.pongs: list[bytes] = []
        self.failure: ConnectionFailed | None = None
        self.grants = True
        self._transport: asyncio.Transport | None = None
        self._turn = asyncio.Event()
        self._lost = asyncio.Event()

    # -- asyncio -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._act(self.connection.receive_data(data))

    def eof_received(self) -> None:
        self._act(self.connection.receive_eof())

    def connection_lost(self, exc: Exception | None) -> None:
        self._act(self.connection.receive_eof())
        self._lost.set()

    def flush(self) -> None:
        data = self.connection.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _act(self, events: list[Event]) -> None:
        for event in events:
            self._take(event)
        self.flush()
        if self.connection.is_closed and self._transport is not None:
            self._transport.close()
        self._turn.set()

    def _take(self, event: Event) -> None:
        if isinstance(event, SettingsChanged):
            self.settings.append(event)
        elif isinstance(event, GoAwayReceived):
            self.goaways.append(event)
        elif isinstance(event, PongReceived):
            self.pongs.append(event.payload)
        elif isinstance(event, ConnectionFailed):
            self.failure = event
        else:
            exchange = self.exchanges[event.stream_id]
            if isinstance(event, ResponseReceived):
                exchange.status, exchange.headers = event.status, event.headers
            elif isinstance(event, DataReceived):
                received = b"".join(event.chunks)
                exchange.body += received
                if self.grants:
                    self.connection.grant(event.stream_id, len(received))
            elif isinstance(event, ResponseEnded):
                exchange.trailers, exchange.is_over = event.trailers, True
            else:
                exchange.failure, exchange.is_over = event, True

    # -- the test ------------------------------------------------------------------------------------------

    def request(
        self, path: str, body: bytes = b"", *, method: bytes = b"", headers: Headers | None = None
    ) -> Exchange:
        method = method or (b"POST" if body else b"GET")
        stream_id = self.connection.send_request(
            method, b"https", b"localhost", path.encode(), headers or [], body
        )
        exchange = self.exchanges[stream_id] = Exchange(stream_id)
        self.flush()
        return exchange

    async def until(self, condition: object, timeout: float = 20.0) -> None:
        """Wait for reads until `condition()` is true."""
        assert callable(condition)
        async with asyncio.timeout(timeout):
            while not condition():
                self._turn.clear()
                await self._turn.wait()

    async def finish(self, *exchanges: Exchange) -> None:
        await self.until(lambda: all(exchange.is_over for exchange in exchanges))

    async def aclose(self) -> None:
        self.connection.close()
        self.flush()
        if self._transport is not None:
            self._transport.close()
        async with asyncio.timeout(10):
            await self._lost.wait()


async def connect(port: int, tls: ssl.SSLContext | None = None, **options: int) -> HttpShell:
    """Connect with HTTP/2 by prior knowledge, or over TLS with the protocol that ALPN chooses."""
    loop = asyncio.get_running_loop()
    if tls is None:
        _, shell = await loop.create_connection(lambda: HttpShell(Http2Connection(**options)), "127.0.0.1", port)
        return shell

    class Chooser(HttpShell):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
            self.connection = Http2Connection(**options) if chosen == "h2" else Http1Connection()
            super().connection_made(transport)

    _, chooser = await loop.create_connection(
        lambda: Chooser(Http1Connection()),
        "127.0.0.1",
        port,
        ssl=tls,
        server_hostname="localhost",
        # Node answers close_notify only when it closes by itself; nobody is to wait 30 s for it.
        ssl_shutdown_timeout=0.2,
    )
    return chooser
