"""An HTTP/1.1 provider that answers with any bytes, in any pieces, and notes what it was asked."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self

from holdfast_tools.simulate.certificate import context_of
from tests.support.pool_world import certificate
from tests.support.reading import Reading
from tests.support.scripted_provider import DEADLINE, ScriptedWorld, ended

#: The answer in one piece; the head, and the body in a later turn; each byte in a turn of its own.
Timing = Literal["together", "apart", "dripped"]


def answer(
    body: bytes, *headers: bytes, content_type: bytes | None = b"text/event-stream", status: int = 200
) -> bytes:
    """Write an answer with its length."""
    fields = [b"content-length: %d" % len(body), *headers]
    if content_type is not None:
        fields.append(b"content-type: " + content_type)
    return b"HTTP/1.1 %d X\r\n%b\r\n\r\n%b" % (status, b"\r\n".join(fields), body)


class RawProvider:
    """Answers each request with the next of `answers`, and with the last one for ever.

    `closes`: each connection ends with its answer. `reads`: whether it reads the bodies of requests before that;
    else it never reads again. `tls`: with the certificate of `pool_world`.
    """

    def __init__(
        self,
        *answers: bytes,
        timing: Timing = "together",
        closes: bool = False,
        reads: bool = True,
        tls: bool = False,
    ) -> None:
        self._answers = list(answers)
        self._timing = timing
        self._closes = closes
        self._reads = reads
        self._tls = context_of(*certificate()) if tls else None
        self._server: asyncio.Server | None = None
        self._over = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        #: The head of each request, in lower case, and the number of the connection that brought it.
        self.heads: list[bytes] = []
        self.seen: list[int] = []
        self.closed = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._over.set()
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.ensure_future(self._serve(len(self._writers), reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                self.heads.append(head)
                self.seen.append(number)
                if self._reads:
                    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length or 0))
                else:
                    writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a socket's
                await self._write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0], writer)
                if not self._reads:
                    await self._over.wait()
                if self._closes or not self._reads:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed += 1
            writer.close()

    async def _write(self, raw: bytes, writer: asyncio.StreamWriter) -> None:
        head, separator, body = raw.partition(b"\r\n\r\n")
        pieces = [raw]
        if self._timing == "apart":
            pieces = [head + separator, body]
        elif self._timing == "dripped":
            pieces = [head + separator, *(body[index : index + 1] for index in range(len(body)))]
        for piece in pieces:
            if writer.is_closing():
                return
            writer.write(piece)
            # The other side runs in the same loop, and reads in one of the next turns.
            for _ in range(3):
                await asyncio.sleep(0)


async def asked(world: ScriptedWorld) -> Reading:
    """Ask once, and read to the end."""
    stream = world.begin()
    reading = Reading(stream)
    async with asyncio.timeout(DEADLINE):
        await ended(stream)
    reading.read()
    return reading
