"""One TCP connection of a test that decides every byte itself."""

from __future__ import annotations

import asyncio
from typing import Self, cast


class TcpConnection:
    """A stream reader and writer. As a context it is cut at its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def transport(self) -> asyncio.Transport:
        """It can pause reading, which the type of a writer's transport does not say."""
        return cast(asyncio.Transport, self.writer.transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass
