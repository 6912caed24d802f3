"""An HTTP/1.1 provider that does with each request what its script says, and a gateway in front of such."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import msgspec

from holdfast.app import Gateway
from holdfast.config import Config, ModelConfig, ProviderConfig, ServerConfig
from holdfast.core.entries import EndBody
from holdfast.errors import HoldfastError
from holdfast.streams.stream import Stream
from holdfast.upstream.statistics import HealthStatistics, PoolStatistics
from tests.support.launching import launch

DEADLINE = 10.0

#: `answer` a whole stream and keep the connection; `close`, `reset`: read the request and end the connection
#: without a word; `head`: send the head of an answer, then close; `error`: an answer that begins with an error.
Deed = Literal["answer", "close", "reset", "head", "error"]

_CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":%b}]}\n\n'
_ANSWER = _CHUNK % b"null" + _CHUNK % b'"stop"' + b"data: [DONE]\n\n"
_ERROR = b'data: {"error":{"message":"no","type":"server_error","code":"x"}}\n\n'
_BODY = b'{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'


class ScriptedProvider:
    """Serves one deed for each request, in order, and answers what comes after them.

    `seen` notes for each request the number of the connection that brought it. `extra` is written into the head of
    each answer, `\\r\\n` included.
    """

    def __init__(self, *deeds: Deed, extra: bytes = b"") -> None:
        self._deeds = list(deeds)
        self._extra = extra
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen: list[int] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    def close_idle(self) -> None:
        """End every connection with FIN, as a server does that has waited long enough, within this call."""
        for writer in self._writers:
            number = writer.get_extra_info("socket").fileno()
            with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as handle:
                handle.shutdown(socket.SHUT_WR)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.ensure_future(self._serve(len(self._writers), reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0))
                self.seen.append(number)
                if not self._do(self._deeds.pop(0) if self._deeds else "answer", writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _do(self, deed: Deed, writer: asyncio.StreamWriter) -> bool:
        """Return whether the connection goes on."""
        if deed == "reset":
            writer.transport.abort()
        if deed in ("close", "reset"):
            return False
        body = _ERROR if deed == "error" else _ANSWER
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%bcontent-length: %d\r\n\r\n"
        writer.write(head % (self._extra, len(body)))
        if deed == "head":
            return False
        writer.write(body)
        return True


class Served(Protocol):
    """A provider on a port of this machine."""

    port: int


class ScriptedWorld:
    """A gateway whose model `demo` asks scripted providers, along the route."""

    def __init__(
        self,
        *providers: Served,
        retry: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        configured = {
            f"p{number}": {"base_url": f"http://127.0.0.1:{provider.port}/v1", "http2": "off", **(settings or {})}
            for number, provider in enumerate(providers)
        }
        model = {"route": [f"{name}/demo" for name in configured], "retry": {"initial": 0.01, **(retry or {})}}
        self.gateway = Gateway(
            Config(
                server=ServerConfig(port=0),
                providers=msgspec.convert(configured, dict[str, ProviderConfig]),
                models={"demo": msgspec.convert(model, ModelConfig)},
            )
        )

    async def __aenter__(self) -> Self:
        await self.gateway.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.gateway.aclose()

    @property
    def pool(self) -> PoolStatistics:
        return self.gateway.pool_statistics()[0].pool

    @property
    def health(self) -> HealthStatistics:
        return self.gateway.pool_statistics()[0].health

    def begin(self) -> Stream:
        return launch(self.gateway, _BODY)

    async def ask(self) -> EndBody:
        """Ask once and wait for the end."""
        return await ended(self.begin())


class _Reader:
    def __init__(self) -> None:
        self.woken = asyncio.Event()

    def wake(self, cursor: object) -> None:
        self.woken.set()

    def position_changed(self, cursor: object) -> None: ...

    def epoch_changed(self, cursor: object) -> None: ...

    def forgotten(self, cursor: object, error: HoldfastError) -> None: ...


async def ended(stream: Stream) -> EndBody:
    reader = _Reader()
    cursor = stream.attach(reader)
    async with asyncio.timeout(DEADLINE):
        while not stream.is_ended:
            reader.woken.clear()
            await reader.woken.wait()
    stream.detach(cursor)
    assert stream.end is not None
    return stream.end
