"""An issuer of tokens whose key set comes as the test says: at once, a byte at a time, or never."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self

#: `serve` the keys; `drip` the head or the body, a byte at a time without an end; `silent`: take the request only.
Manner = Literal["serve", "drip head", "drip body", "silent"]

_INTERVAL = 0.01


class SlowIssuer:
    """Serves `body` at `url`. `requests` counts those that came, `open` the connections that are open now."""

    def __init__(self, body: bytes, manner: Manner = "serve") -> None:
        self.body = body
        self.manner: Manner = manner
        self.requests = 0
        self.open = 0
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/jwks"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                await self._answer(reader, writer)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        manner = self.manner
        if manner == "silent":
            await reader.read()
        elif manner == "drip head":
            await self._drip(writer, b"HTTP/1.1 200 OK\r\nx-header: ")
        else:
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
            if manner == "drip body":
                await self._drip(writer, head % (2 * len(self.body) + 100_000) + b"[")
            writer.write(head % len(self.body) + self.body)
            await writer.drain()

    async def _drip(self, writer: asyncio.StreamWriter, begin: bytes) -> None:
        writer.write(begin)
        while True:
            await asyncio.sleep(_INTERVAL)
            writer.write(b" ")
            await writer.drain()
            if writer.transport.is_closing():
                raise EOFError
