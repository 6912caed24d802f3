"""A TCP proxy that cuts a connection after a given number of bytes from the server."""

from __future__ import annotations

import asyncio
from collections import deque


class CuttingProxy:
    """Relays to `port`. Each connection may bring as many bytes as the next of `cuts`; later ones are whole."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.cuts = deque(cuts)
        self.connections = 0
        self.relayed = 0  # bytes from the server over all connections
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = self.cuts.popleft() if self.cuts else None
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        upward = asyncio.create_task(self._relay(reader, far_writer))
        try:
            while data := await far_reader.read(65536):
                if left is not None:
                    data, left = data[:left], left - len(data)
                self.relayed += len(data)
                writer.write(data)
                await writer.drain()
                if left is not None and left <= 0:
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            upward.cancel()
            await asyncio.wait([upward])
            for each in (writer, far_writer):
                # What was written must arrive: an abort would drop it, and the cut be elsewhere.
                each.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
