"""A raw HTTP/1.1 client for the tests: it shows the bytes, and how a connection ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast_tools.simulate import SimulatedProvider
from tests.support.tcp_connection import TcpConnection

DEADLINE = 10.0

#: Starts a provider with the given settings.
Serve = Callable[..., Awaitable[SimulatedProvider]]


def chat_body(sim: dict[str, Any] | None = None, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """A chat request that is answered at once, unless `sim` says otherwise."""
    body: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    if sim is not None:
        body["sim"] = {"interval_ms": 0, "ttft_ms": 0, "seed": 7, **sim}
    return body | fields


def contents(stream: bytes) -> str:
    """The text that the whole events in `stream` carry."""
    text = ""
    for event in stream.split(b"\n\n"):
        if event.startswith(b"data: {"):
            for choice in json.loads(event[6:])["choices"]:
                text += choice["delta"].get("content") or ""
    return text


class RawConnection(TcpConnection):
    """One TCP connection to a provider."""

    @classmethod
    async def open(cls, provider: SimulatedProvider, **options: Any) -> RawConnection:
        return cls(*await asyncio.open_connection("127.0.0.1", provider.port, limit=1 << 28, **options))

    def post(self, body: dict[str, Any] | bytes, path: str = "/v1/chat/completions", headers: str = "") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
        self.writer.write(head.encode() + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(DEADLINE):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = raw.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        return int(status.split()[1]), headers

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(DEADLINE):
            size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def chunks(self) -> bytes:
        """The whole chunked body."""
        body = b""
        while part := await self.chunk():
            body += part
        return body

    async def rest(self) -> tuple[bytes, str]:
        """Everything until the connection ends, and how it ends: "fin" or "rst"."""
        got = b""
        async with asyncio.timeout(DEADLINE):
            try:
                while part := await self.reader.read(1 << 16):
                    got += part
            except ConnectionResetError:
                return got, "rst"
        return got, "fin"
