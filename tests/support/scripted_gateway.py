"""A gateway whose faults are scripted: a real WebSocket server over the core's `ServerSession` and `Log`."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from holdfast import StreamingAIClient
from holdfast.core.entries import EndBody, EndStatus, Position, Usage, error_body
from holdfast.core.log import Log
from holdfast.core.session import messages as m
from holdfast.core.session import server as session_server
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.errors import HoldfastError, InvalidRequest, UnknownStream

MakeClient = Callable[..., StreamingAIClient]


@dataclass
class Script:
    """What goes wrong on one connection."""

    status: int | None = None  # refuse the handshake
    headers: dict[str, str] = field(default_factory=dict)
    body: str = "refused"
    agrees: bool = True  # to the subprotocol
    welcomes: bool = True
    cut_before: str | None = None  # cut instead of sending the first message of this type
    close_before: tuple[str, int] | None = None  # the same with a close code
    goaway: tuple[int, int] | None = None  # right behind `welcome`
    streams: m.StreamsOnGoaway = "move"  # what `goaway` says of them
    max_message: int = 16 * 1024 * 1024


class Generation:
    """One stream. `say` and `end` are the provider's part."""

    def __init__(self, gateway: ScriptedGateway, request_id: str, request: dict[str, object]) -> None:
        self.gateway = gateway
        self.request_id = request_id
        self.request = request
        self.log = Log(f"st_{len(gateway.generations)}", max_bytes=1 << 30)
        self.id = self.log.stream.decode()
        self.is_cancelled = False

    def say(self, *texts: str) -> None:
        self.append(*[{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts])

    def append(self, *chunks: object) -> None:
        self.log.append([json.dumps(chunk).encode() for chunk in chunks])
        self.gateway.wake()

    def end(self, status: EndStatus = "completed", error: HoldfastError | None = None) -> None:
        finish = "stop" if status == "completed" else None
        usage = Usage(1, self.log.next, self.log.next + 1)
        body = EndBody(status, finish, usage, None if error is None else error_body(error))
        self.log.seal(body)
        self.gateway.wake()


class Connection:
    def __init__(self, gateway: ScriptedGateway, socket: ServerConnection, script: Script) -> None:
        self.gateway = gateway
        self.socket = socket
        self.script = script
        self.session = session_server.ServerSession(negotiated=True, max_streams=1024)
        self.news = asyncio.Event()
        self.is_mute = False
        self.sent: list[str] = []

    def send(self, message: m.ServerMessage) -> None:
        self.session.send(message)
        self.news.set()

    def cut(self) -> None:
        self.socket.transport.abort()

    async def close(self, code: int, reason: str = "") -> None:
        await self.socket.close(code, reason)

    async def run(self) -> None:
        writer = asyncio.create_task(self._write())
        try:
            async for text in self.socket:
                assert isinstance(text, str)
                self._receive(text)
        except ConnectionClosed:
            pass
        finally:
            writer.cancel()
            await asyncio.wait([writer])
            for cursor in self.session.connection_lost():
                cursor.close()

    def _receive(self, text: str) -> None:
        self.gateway.messages.append(m.decode_client_message(text))
        match self.session.receive_text(text):
            case session_server.HelloReceived() as hello:
                self._greet(hello)
            case session_server.CreateReceived() as create:
                self._create(create)
            case session_server.AttachReceived(resume):
                self._attach(resume)
            case session_server.CancelReceived() as cancel:
                self._cancel(cancel)
            case session_server.DetachReceived(cursor):
                cursor.close()
        self.news.set()
        self.gateway.tell()

    def _greet(self, hello: session_server.HelloReceived) -> None:
        if not self.script.welcomes:
            return
        states = []
        for resume in hello.streams:
            try:
                log = self._resume(resume)
            except HoldfastError as exc:
                states.append(m.StreamState(resume.stream, "refused", error=error_body(exc)))
            else:
                status: m.StreamStatus = "ended" if log.end is not None else "running"
                states.append(m.StreamState(resume.stream, status, log.epoch, resume.after + 1))
        limits = m.Limits(self.script.max_message, 1024, 1 << 30)
        self.session.send(
            m.Welcome(m.VERSION, "ss_1", "scripted", m.Heartbeat(20_000, 10_000), limits, streams=states)
        )
        if self.script.goaway is not None:
            self.session.send(m.Goaway("drain", self.script.goaway, self.script.streams))

    def _resume(self, resume: m.Resume) -> Log:
        if self.gateway.resume_refusals:
            raise self.gateway.resume_refusals.popleft()
        return self._open(resume)

    def _open(self, resume: m.Resume) -> Log:
        generation = self.gateway.by_id.get(resume.stream)
        if generation is None:
            raise UnknownStream()
        cursor = generation.log.cursor(Position(resume.after, resume.epoch), credit=resume.credit)
        old = self.session.attach(resume.stream, cursor)
        if old is not None:
            old.close()
        return generation.log

    def _create(self, create: session_server.CreateReceived) -> None:
        gateway, request_id = self.gateway, create.request_id or ""
        generation = gateway.by_request.get(request_id)
        is_new = generation is None
        if generation is None:
            try:
                generation = gateway.generate(request_id, json.loads(create.request))
            except HoldfastError as exc:
                self.session.send_error(exc, request_id=request_id)
                return
        self.session.send(m.Accepted(request_id, generation.id, duplicate=not is_new))
        self._open(m.Resume(generation.id, credit=create.credit))
        if is_new:
            gateway.on_create(generation)

    def _attach(self, resume: m.Resume) -> None:
        try:
            log = self._resume(resume)
        except HoldfastError as exc:
            self.session.send_error(exc, stream=resume.stream)
        else:
            status: m.StreamStatus = "ended" if log.end is not None else "running"
            self.session.send(m.Attached(resume.stream, status, log.epoch, resume.after + 1))

    def _cancel(self, cancel: session_server.CancelReceived) -> None:
        gateway = self.gateway
        generation = gateway.by_id.get(cancel.stream or "") or gateway.by_request.get(cancel.request_id or "")
        if generation is not None and generation.log.end is None:
            generation.is_cancelled = True
            if gateway.confirms_cancel:
                generation.end("cancelled")

    def _due(self) -> Iterator[bytes]:
        yield from self.session.data_to_send()
        for stream, cursor in list(self.session.cursors.items()):
            while (message := cursor.read(SESSION_FRAMING, 16 * 1024)) is not None:
                yield message
            if cursor.is_done:
                self.session.retire(stream).close()

    async def _write(self) -> None:
        while await self.news.wait():
            self.news.clear()
            if self.is_mute:
                continue
            for message in self._due():
                type_ = message.split(b'"', 4)[3].decode()  # {"type":"event",...
                if self.script.cut_before == type_:
                    self.cut()
                    return
                if self.script.close_before is not None and self.script.close_before[0] == type_:
                    await self.close(self.script.close_before[1], "scripted")
                    return
                try:
                    await self.socket.send(message, text=True)
                except ConnectionClosed:
                    return
                self.sent.append(type_)
                self.gateway.tell()


class ScriptedGateway:
    """`scripts` are used up by the connections in their order; without one nothing goes wrong."""

    def __init__(self) -> None:
        self.scripts: deque[Script] = deque()
        self.connections: list[Connection] = []
        self.requests: list[Request] = []  # of handshakes
        self.messages: list[m.ClientMessage] = []
        self.generations: list[Generation] = []
        self.by_id: dict[str, Generation] = {}
        self.by_request: dict[str, Generation] = {}
        self.refusals: deque[HoldfastError] = deque()  # of requests
        self.resume_refusals: deque[HoldfastError] = deque()  # of streams in `hello` and `attach`
        self.on_create: Callable[[Generation], None] = lambda generation: None
        self.confirms_cancel = True
        self._server: Server | None = None
        self._open: set[Connection] = set()
        self._script = Script()
        self._listeners: set[asyncio.Event] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(next(iter(self._server.sockets)).getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> Connection:
        return self.connections[-1]

    async def start(self) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            0,
            compression=None,
            ping_interval=None,
            close_timeout=1,
            process_request=self._process_request,
            select_subprotocol=self._select_subprotocol,
        )

    async def aclose(self) -> None:
        assert self._server is not None
        for connection in self._open:
            connection.cut()
        self._server.close()
        await self._server.wait_closed()

    def of_type(self, kind: type[m.Message]) -> list[m.Message]:
        """Return what clients have sent of one type."""
        return [message for message in self.messages if isinstance(message, kind)]

    def generate(self, request_id: str, request: dict[str, object]) -> Generation:
        if self.refusals:
            raise self.refusals.popleft()
        if not isinstance(request.get("messages"), list):
            raise InvalidRequest("`messages` must be a list", param="messages")
        generation = Generation(self, request_id, request)
        self.generations.append(generation)
        self.by_id[generation.id] = self.by_request[request_id] = generation
        return generation

    def wake(self) -> None:
        for connection in self._open:
            connection.news.set()

    def tell(self) -> None:
        for listener in self._listeners:
            listener.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that a client did makes the condition true."""
        news = asyncio.Event()
        self._listeners.add(news)
        try:
            async with asyncio.timeout(5):
                while not condition():
                    await news.wait()
                    news.clear()
        finally:
            self._listeners.discard(news)

    def _process_request(self, socket: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        self._script = self.scripts.popleft() if self.scripts else Script()
        self.tell()
        if self._script.status is None:
            return None
        response = socket.respond(HTTPStatus(self._script.status), self._script.body)
        for name, value in self._script.headers.items():
            response.headers[name] = value
        return response

    def _select_subprotocol(self, socket: ServerConnection, offers: object) -> Subprotocol | None:
        return Subprotocol(m.SUBPROTOCOL) if self._script.agrees else None

    async def _serve(self, socket: ServerConnection) -> None:
        connection = Connection(self, socket, self._script)
        self.connections.append(connection)
        self._open.add(connection)
        self.tell()
        try:
            await connection.run()
        finally:
            self._open.discard(connection)
            self.tell()

    @property
    def open_count(self) -> int:
        return len(self._open)


def words(count: int, name: str = "w") -> list[str]:
    return [f"{name}{number} " for number in range(count)]


def answers(*texts: str) -> Callable[[Generation], None]:
    """Answer each request with these texts at once."""

    def answer(generation: Generation) -> None:
        generation.say(*texts)
        generation.end()

    return answer
