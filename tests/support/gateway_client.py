"""Clients for the gateway's tests: HTTP to the byte, one session message by message, and a client that resumes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.protocol import State

from holdfast.app import Gateway
from holdfast.core.entries import Owner
from holdfast.core.session import client as core
from holdfast.core.session import messages as m
from holdfast.errors import HoldfastError
from holdfast.streams.stream import Stream
from holdfast_tools.simulate.text import text
from tests.support.tcp_connection import TcpConnection

#: Seconds that a test waits for anything.
DEADLINE = 10.0
SEED = 7
#: Settings of a provider whose failures are passed on at once, not tried again.
ONCE: dict[str, Any] = {"retry_budget": {"ratio": 0, "floor": 0}}
_request_ids = itertools.count()


def chat(sim: dict[str, Any] | None = None, *, stream: bool | None = True, **fields: Any) -> dict[str, Any]:
    """A chat request. With `sim` the answer comes at once, unless `sim` says otherwise."""
    body: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    if stream is not None:
        body["stream"] = stream
    if sim is not None:
        body["sim"] = {"interval_ms": 0, "ttft_ms": 0, "seed": SEED, **sim}
    return body | fields


def answer(tokens: int, seed: int = SEED) -> str:
    """The text that the simulated provider answers with."""
    return text(seed, tokens)


def content(payloads: list[Any]) -> str:
    """The text of entries, given as JSON text or decoded."""
    found = ""
    for payload in payloads:
        chunk = payload if isinstance(payload, dict) else json.loads(payload)
        for choice in chunk["choices"]:
            found += choice["delta"].get("content") or ""
    return found


# -- HTTP ----------------------------------------------------------------------------------------------


def own_code(error: Any) -> str:
    """Our own code of an error in OpenAI's shape, whose `code` may be the provider's."""
    code: str = error.get("holdfast_code", error["code"])
    return code


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error of an answer in OpenAI's shape."""
        error = self.json()["error"]
        assert set(error) - {"holdfast_code", "provider_request_id"} == {"message", "type", "code", "param"}
        return error

    @property
    def code(self) -> str:
        """Our own code of the error."""
        return own_code(self.error)


@dataclass
class ServerEvent:
    """One event of an SSE answer, comments left out."""

    data: str
    id: str = ""
    event: str = ""

    @property
    def seq(self) -> int:
        epoch, _, seq = self.id.partition("-")
        assert epoch == "1"
        return int(seq)


class Http(TcpConnection):
    """One HTTP/1.1 connection on which the test decides every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.comments = 0

    @classmethod
    async def open(cls, url: str, **options: Any) -> Http:
        host, port = url.split("//")[1].split("/")[0].rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port), limit=1 << 26, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def request(self, method: str, target: str, body: Any = None, **headers: str) -> None:
        """Write a request; underscores in header names stand for dashes."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        fields = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            fields.setdefault("content-length", str(len(body)))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        self.send(head.encode() + (body or b""))

    async def head(self) -> Response:
        async with asyncio.timeout(DEADLINE):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *lines = raw.decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1.1 ")
        return Response(int(line.split()[1]), dict(field.split(": ", 1) for field in lines if field))

    async def response(self, *, has_body: bool = True) -> Response:
        """A whole answer."""
        response = await self.head()
        if response.headers.get("transfer-encoding") == "chunked" and has_body:
            response.body = b"".join([chunk async for chunk in self.chunks()])
        elif has_body and response.status != 204:
            async with asyncio.timeout(DEADLINE):
                response.body = await self.reader.readexactly(int(response.headers["content-length"]))
        return response

    async def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Response:
        self.request(method, target, body, **headers)
        return await self.response()

    async def chunks(self) -> AsyncIterator[bytes]:
        """A chunked body, in whatever pieces it comes."""
        while True:
            async with asyncio.timeout(DEADLINE):
                left = size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
            while left:
                async with asyncio.timeout(DEADLINE):
                    data = await self.reader.read(left)
                if not data:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(data)
                yield data
            async with asyncio.timeout(DEADLINE):
                await self.reader.readexactly(2)
            if size == 0:
                return

    async def events(self) -> AsyncIterator[ServerEvent]:
        """The events of a chunked SSE answer, as they come."""
        buffer = b""
        async for chunk in self.chunks():
            *blocks, buffer = (buffer + chunk).split(b"\n\n")
            for block in blocks:
                lines = [line for line in block.decode().split("\n") if not line.startswith(":")]
                self.comments += block.count(b"\n") + 1 - len(lines)
                fields = dict(line.split(": ", 1) for line in lines if not line.startswith("data: "))
                data = "\n".join(line[6:] for line in lines if line.startswith("data: "))
                assert set(fields) <= {"id", "event"}
                yield ServerEvent(data, **fields)
        assert buffer == b""

    async def is_closed(self) -> bool:
        """Read on until the gateway ends the connection; False if it does not or something more comes."""
        try:
            async with asyncio.timeout(DEADLINE):
                return await self.reader.read() == b""
        except ConnectionResetError:
            return True


async def ask(url: str, method: str, target: str, body: Any = None, **headers: str) -> Response:
    """One request on a connection of its own."""
    async with await Http.open(url) as http:
        return await http.ask(method, target, body, **headers)


async def read_stream(url: str, stream_id: str, *, query: str = "", **headers: str) -> list[ServerEvent]:
    """`GET /v1/streams/{id}` to its end."""
    async with await Http.open(url) as http:
        http.request("GET", f"/v1/streams/{stream_id}{query}", **headers)
        head = await http.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        return [event async for event in http.events()]


def whole(events: list[ServerEvent], *, start: int = 0) -> str:
    """The text of a stream that was read to its end, which must be complete and without a gap."""
    assert [event.seq for event in events] == list(range(start, start + len(events)))
    assert [event.event for event in events] == [""] * (len(events) - 1) + ["end"]
    assert json.loads(events[-1].data)["status"] == "completed"
    return content([event.data for event in events[:-1]])


# -- sessions ------------------------------------------------------------------------------------------


def dial(url: str, *, negotiated: bool = True, **options: Any) -> connect:
    """A WebSocket connection to a gateway's base URL, without heartbeat or compression of its own."""
    target = url.replace("http", "ws", 1) + "/v1/ws/stream"
    subprotocols: Any = [m.SUBPROTOCOL] if negotiated else None
    settings = {"ping_interval": None, "compression": None, "max_size": None, "proxy": None, "max_queue": None}
    return connect(target, subprotocols=subprotocols, **(settings | options))


class Session:
    """One WebSocket connection, message by message, decoded."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.welcome: dict[str, Any] = {}

    @classmethod
    async def open(cls, url: str, *, hello: dict[str, Any] | None = None, **options: Any) -> Self:
        """Connect and say hello."""
        session = cls(await dial(url, **options))
        await session.send(type="hello", version=1, **(hello or {}))
        session.welcome = await session.expect("welcome")
        return session

    @classmethod
    async def open_bare(cls, url: str, **options: Any) -> Self:
        return cls(await dial(url, negotiated=False, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.socket.state is State.OPEN:
            await self.socket.close()

    async def drop(self) -> None:
        """Cut the connection without a Close frame."""
        self.socket.transport.abort()
        await self.socket.wait_closed()

    async def send(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            message = await self.socket.recv()
        assert isinstance(message, str)
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    async def expect(self, kind: str) -> dict[str, Any]:
        message = await self.receive()
        assert message["type"] == kind, message
        return message

    async def create(self, request_id: str, request: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Create a stream and return `accepted`; nothing else may be on its way."""
        await self.send(type="create", request_id=request_id, request=request, **fields)
        accepted = await self.expect("accepted")
        assert accepted["request_id"] == request_id
        return accepted

    async def attach(self, stream_id: str, **fields: Any) -> dict[str, Any]:
        await self.send(type="attach", stream=stream_id, **fields)
        return await self.expect("attached")

    async def entries(self, count: int, *, start: int = 0) -> list[Any]:
        """The next entries of the only stream of this session, at least `count` of them."""
        found: list[Any] = []
        while len(found) < count:
            found += entries_of(await self.receive(), start + len(found))
        return found

    async def read(self, *, start: int = 0) -> tuple[list[Any], dict[str, Any]]:
        """The rest of the only stream of this session: its entries, and its end."""
        found: list[Any] = []
        while (message := await self.receive())["type"] != "end":
            found += entries_of(message, start + len(found))
        assert message["seq"] == start + len(found)
        return found, message

    async def closed(self) -> tuple[int, str]:
        """Wait until the gateway has closed the connection; say with which code and reason."""
        async with asyncio.timeout(DEADLINE):
            await self.socket.wait_closed()
        assert self.socket.close_code is not None
        return self.socket.close_code, self.socket.close_reason or ""


@asynccontextmanager
async def unharmed(url: str) -> AsyncIterator[None]:
    """Keep a stream running on a session of its own; it must still run afterwards, whole."""
    async with await Session.open(url) as session:
        accepted = await session.create(
            f"unharmed-{next(_request_ids)}", chat({"tokens": 1_000_000, "interval_ms": 2})
        )
        entries = await session.entries(1)
        yield
        entries += await session.entries(5, start=len(entries))
        assert (await ask(url, "DELETE", f"/v1/streams/{accepted['stream']}")).status == 200
        rest, end = await session.read(start=len(entries))
    assert content(entries + rest) == answer(len(entries + rest) - 1)  # the first entry is the role
    assert end["status"] == "cancelled"


def entries_of(message: dict[str, Any], seq: int) -> list[Any]:
    """The entries of an `event` or `events` message, the first of which must have the number `seq`."""
    assert message["type"] in ("event", "events"), message
    assert message["seq"] == seq
    return [message["data"]] if message["type"] == "event" else message["data"]


@dataclass
class Received:
    """What a resuming client got of one stream: every number as often as it came."""

    numbers: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    end: m.End | None = None
    error: Exception | None = None

    @property
    def text(self) -> str:
        return content(list(self.payloads))


class ResumingClient:
    """Drives the core's client session over `websockets`, and connects again for as long as a stream runs."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.core = core.ClientSession(client="resuming/1", rng=random.Random(0))
        self.received: dict[core.ClientStream, Received] = {}
        self.connections = 0
        self._options = options

    def create(self, request: dict[str, Any], *, window: int | None = None) -> Received:
        stream = self.core.create(f"r-{next(_request_ids)}", json.dumps(request).encode(), window=window)
        received = self.received[stream] = Received()
        return received

    async def run(self) -> None:
        """Run until every stream has its end."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            while not self.core.is_idle:
                self.connections += 1
                try:
                    async with dial(self.url, **self._options) as socket:
                        self.core.connection_made(loop.time())
                        await self._converse(socket)
                except (OSError, EOFError, WebSocketException):
                    self.core.connection_lost()

    async def _converse(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for message in self.core.data_to_send():
                await socket.send(message, text=True)
            if self.core.is_idle:
                return
            for event in self.core.receive_text(await socket.recv(), loop.time()):
                self._record(event)

    def _record(self, event: core.Event) -> None:
        match event:
            case core.EntriesReceived():
                received = self.received[event.stream]
                last = event.stream.last_seq
                received.numbers += range(last - len(event.payloads) + 1, last + 1)
                received.payloads += event.payloads
                self.core.consume(event.stream, sum(map(len, event.payloads)))
            case core.StreamEnded():
                received = self.received[event.stream]
                received.numbers.append(event.end.seq)
                received.end = event.end
            case core.StreamFailed():
                self.received[event.stream].error = event.error
            case core.ConnectionFailed() | core.SessionError():
                raise AssertionError(event)


def stream_of(gateway: Gateway, stream_id: str, *, tenant: str = "local") -> Stream:
    """Find a stream of a gateway in this process."""
    answers: list[Stream | HoldfastError] = []
    gateway.directory.open(Owner(tenant), [stream_id], answers.extend)
    (stream,) = answers
    assert isinstance(stream, Stream)
    return stream
