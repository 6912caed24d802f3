"""Every way to ask a question: of the model server itself, and of the gateway in front of it.

Each returns an `Answer`. `on_piece` is called with the number of pieces of text so far, and may cut the
connection.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from holdfast import ConnectionState, StreamingAIClient, SyncStreamingAIClient, WebSocketConfig

MODEL = "random"
TIMEOUT = 60.0

OnPiece = Callable[[int], None]


class Mismatch(Exception):
    """An answer is not what it has to be."""


@dataclass
class Question:
    """A chat request whose answer is always the same text of exactly `tokens` tokens."""

    tokens: int
    seed: int = 7
    prompt: str = "Tell me a story. Ünïcode 🚀 too."

    @property
    def messages(self) -> list[Any]:
        return [{"role": "user", "content": self.prompt}]

    @property
    def options(self) -> dict[str, Any]:
        return {"max_tokens": self.tokens, "temperature": 0.8, "seed": self.seed}

    def body(self, **more: Any) -> dict[str, Any]:
        return {"model": MODEL, "messages": self.messages, **self.options, **more}


@dataclass
class Answer:
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    started: float = field(default_factory=time.monotonic)
    #: Seconds from the request to the first text, and to the end.
    first: float | None = None
    seconds: float = 0.0
    connections: int = 1

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, piece: str | None) -> None:
        if piece:
            if self.first is None:
                self.first = time.monotonic() - self.started
            self.pieces.append(piece)

    def add_chunk(self, chunk: dict[str, Any]) -> None:
        """Take one provider chunk."""
        for choice in chunk["choices"]:
            self.add(choice["delta"].get("content"))
            self.finish_reason = choice["finish_reason"] or self.finish_reason
        self.usage = chunk.get("usage") or self.usage

    def finish(self) -> Answer:
        self.seconds = time.monotonic() - self.started
        return self


@dataclass
class Server:
    """Where to ask: the model server or the gateway. `port` may be that of a relay in front of it."""

    port: int
    key: str

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=TIMEOUT, trust_env=False)

    @property
    def config(self) -> WebSocketConfig:
        return WebSocketConfig(base_url=self.base_url, api_key=self.key, initial_backoff=0.05, max_backoff=1.0)

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=self.key, max_retries=0, timeout=TIMEOUT)


# -- HTTP ----------------------------------------------------------------------------------------------


def ask_whole(server: Server, question: Question) -> Answer:
    answer = Answer()
    with server.http as http:
        response = http.post("chat/completions", json=question.body())
        response.raise_for_status()
    completion = response.json()
    answer.add(completion["choices"][0]["message"]["content"])
    answer.finish_reason = completion["choices"][0]["finish_reason"]
    answer.usage = completion["usage"]
    return answer.finish()


def events_of(response: httpx.Response) -> Iterator[tuple[str, str]]:
    """Yield the id and the data of each event; `event: end` counts as `[DONE]`."""
    if response.is_error:
        response.read()
    response.raise_for_status()
    event: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")
        elif event:
            is_end = event.get("event") == "end"
            yield event.get("id", ""), "[DONE]" if is_end else event["data"]
            event = {}


def ask_sse(server: Server, question: Question, on_piece: OnPiece | None = None) -> Answer:
    """Ask like `curl -N`. After a cut it goes on with `Last-Event-ID`, as a browser's EventSource would."""
    answer = Answer()
    body = question.body(stream=True, stream_options={"include_usage": True})
    headers = {"holdfast-on-disconnect": "continue"} if on_piece else {}
    request: tuple[Any, ...] = ("POST", "chat/completions", body, headers)
    stream_id = last_id = ""
    while True:
        method, path, json_body, headers = request
        try:
            with server.http as http, http.stream(method, path, json=json_body, headers=headers) as response:
                stream_id = stream_id or response.headers.get("holdfast-stream-id", "")
                for id_, payload in events_of(response):
                    if payload == "[DONE]":
                        return answer.finish()
                    if id_:
                        expect("SSE id", id_, next_id(last_id))
                        last_id = id_
                    answer.add_chunk(json.loads(payload))
                    if on_piece:
                        on_piece(len(answer.pieces))
                raise Mismatch("the event stream ended without its end")
        except httpx.TransportError:
            if on_piece is None or not stream_id:
                raise
        answer.connections += 1
        request = ("GET", f"streams/{stream_id}", None, {"last-event-id": last_id})


def next_id(last: str) -> str:
    epoch, _, seq = last.partition("-")
    return f"{epoch}-{int(seq) + 1}" if last else "1-0"


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Mismatch(f"{what}: expected {expected!r}, found {found!r}")


# -- the openai SDK, as it is --------------------------------------------------------------------------


def ask_openai_whole(server: Server, question: Question) -> Answer:
    answer = Answer()
    with server.openai as client:
        completion = client.chat.completions.create(model=MODEL, messages=question.messages, **question.options)
    answer.add(completion.choices[0].message.content)
    answer.finish_reason = completion.choices[0].finish_reason
    answer.usage = completion.usage.model_dump(exclude_none=True) if completion.usage else None
    return answer.finish()


def ask_openai_stream(
    server: Server, question: Question, on_piece: OnPiece | None = None, headers: dict[str, str] | None = None
) -> Answer:
    answer = Answer()
    with (
        server.openai as client,
        client.chat.completions.create(
            model=MODEL,
            messages=question.messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=headers,
            **question.options,
        ) as stream,
    ):
        for chunk in stream:
            answer.add_chunk(chunk.model_dump())
            if on_piece:
                on_piece(len(answer.pieces))
    return answer.finish()


def ask_openai_again(server: Server, question: Question, on_piece: OnPiece) -> Answer:
    """This SDK cannot resume a chat completion; asked again under the same key, it reads the same generation."""
    headers = {"idempotency-key": secrets.token_hex(16), "holdfast-on-disconnect": "continue"}
    cut = None
    try:
        ask_openai_stream(server, question, on_piece, headers)
    except Exception as exc:  # the SDK lets the exceptions of its HTTP library through
        cut = exc
    if cut is None:
        raise Mismatch("the connection was cut, and the SDK did not notice")
    answer = ask_openai_stream(server, question, None, headers)
    answer.connections = 2
    return answer


def ask_openai_async(server: Server, question: Question) -> Answer:
    async def ask() -> Answer:
        answer = Answer()
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=question.messages, stream=True, **question.options
            )
            async for chunk in stream:
                answer.add_chunk(chunk.model_dump())
        return answer.finish()

    return asyncio.run(ask())


# -- Holdfast's SDK ------------------------------------------------------------------------------------


class Connections:
    """Counts the connections that a client made; its `on_state`."""

    count = 0

    def __call__(self, state: ConnectionState) -> None:
        self.count += state is ConnectionState.OPEN


def ask_sync(server: Server, question: Question, on_piece: OnPiece | None = None) -> Answer:
    """Carries on by itself."""
    answer, connections = Answer(), Connections()
    with SyncStreamingAIClient(server.config, on_state=connections) as client:
        stream = client.stream_chat(question.messages, model=MODEL, **question.options)
        for text in stream:
            answer.add(text)
            if on_piece:
                on_piece(len(answer.pieces))
        return _finish_sdk(answer, stream, connections.count)


def ask_async(server: Server, question: Question, on_piece: OnPiece | None = None) -> Answer:
    """Carries on by itself."""

    async def ask() -> Answer:
        answer, connections = Answer(), Connections()
        async with StreamingAIClient(server.config, on_state=connections) as client:
            stream = client.stream_chat(question.messages, model=MODEL, **question.options)
            async for text in stream:
                answer.add(text)
                if on_piece:
                    on_piece(len(answer.pieces))
            return _finish_sdk(answer, stream, connections.count)

    return asyncio.run(ask())


def _finish_sdk(answer: Answer, stream: Any, connections: int) -> Answer:
    answer.finish_reason = stream.finish_reason
    if stream.usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        answer.usage = {name: getattr(stream.usage, name) for name in names}
    answer.connections = connections
    return answer.finish()


def ask_many(server: Server, questions: list[Question], on_piece: OnPiece | None = None) -> list[Answer]:
    """Ask all at once on one connection, and read each stream with a second client that attaches to it, too."""
    pieces = 0

    async def ask(client: StreamingAIClient, second: StreamingAIClient, question: Question) -> Answer:
        nonlocal pieces
        answer = Answer()
        reader: asyncio.Task[str] | None = None
        stream = client.stream_chat(question.messages, model=MODEL, **question.options)
        async for text in stream:
            answer.add(text)
            pieces += 1
            if reader is None:
                reader = asyncio.create_task(read(second, stream.id))
            if on_piece:
                on_piece(pieces)
        expect("the text of the second reader", await reader if reader else "", answer.text)
        return _finish_sdk(answer, stream, 1)

    async def read(client: StreamingAIClient, stream_id: str | None) -> str:
        return "".join([text async for text in client.attach(stream_id or "")])

    async def run() -> list[Answer]:
        async with StreamingAIClient(server.config) as client, StreamingAIClient(server.config) as second:
            return await asyncio.gather(*(ask(client, second, question) for question in questions))

    return asyncio.run(run())


# -- raw WebSocket -------------------------------------------------------------------------------------


class Socket:
    """A WebSocket to the gateway that speaks JSON, and nothing of Holdfast's code."""

    def __init__(self, server: Server, *, subprotocol: bool = True) -> None:
        self._connection: ClientConnection = connect(
            f"ws://127.0.0.1:{server.port}/v1/ws/stream",
            subprotocols=[Subprotocol("holdfast.v1")] if subprotocol else None,
            additional_headers={"authorization": f"Bearer {server.key}"},
            compression=None,
            proxy=None,
            max_size=None,
        )

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def send(self, message: dict[str, Any]) -> None:
        self._connection.send(json.dumps(message))

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(TIMEOUT))
        if message["type"] == "error":
            raise Mismatch(f"the gateway says {message}")
        return message

    def receive_type(self, type_: str) -> dict[str, Any]:
        message = self.receive()
        expect("type", message["type"], type_)
        return message

    def hello(self, **more: Any) -> dict[str, Any]:
        self.send({"type": "hello", "version": 1, "client": "test-real", **more})
        return self.receive_type("welcome")

    def create(self, question: Question) -> str:
        """Ask, and return the stream's id."""
        request_id = secrets.token_hex(8)
        self.send({"type": "create", "request_id": request_id, "request": question.body()})
        accepted = self.receive_type("accepted")
        expect("request_id", accepted["request_id"], request_id)
        return str(accepted["stream"])


def entries_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message["data"] if message["type"] == "events" else [message["data"]]


def ask_websocket(server: Server, question: Question, on_piece: OnPiece | None = None) -> Answer:
    """After a cut it says `hello` with the stream's position, as PROTOCOL.md has it."""
    answer = Answer()
    session: dict[str, Any] = {}
    after, stream_id = -1, ""
    while True:
        try:
            with Socket(server) as socket:
                welcome = socket.hello(**session)
                if stream_id:
                    expect("resumed", welcome.get("resumed"), True)
                    expect("next", welcome["streams"][0].get("next", 0), after + 1)
                else:
                    stream_id = socket.create(question)
                while True:
                    message = socket.receive()
                    expect("stream", message["stream"], stream_id)
                    expect("seq", message["seq"], after + 1)
                    if message["type"] == "end":
                        expect("status", message["status"], "completed")
                        answer.finish_reason = message.get("finish_reason")
                        answer.usage = message.get("usage")
                        socket.send({"type": "ack", "streams": {stream_id: message["seq"]}})
                        return answer.finish()
                    for chunk in entries_of(message):
                        after += 1
                        answer.add_chunk(chunk)
                    if on_piece:
                        on_piece(len(answer.pieces))
        except ConnectionClosed:
            if on_piece is None or not stream_id:
                raise
        answer.connections += 1
        session = {"session": welcome["session"], "streams": [{"stream": stream_id, "after": after, "epoch": 1}]}


def ask_bare(server: Server, question: Question) -> Answer:
    """One send, then one message per entry: what any WebSocket client can do."""
    answer = Answer()
    with Socket(server, subprotocol=False) as socket:
        socket.send(question.body())
        socket.receive_type("accepted")
        while (message := socket.receive())["type"] == "event":
            answer.add_chunk(message["data"])
        expect("status", message["status"], "completed")
        answer.finish_reason = message.get("finish_reason")
        answer.usage = message.get("usage")
    return answer.finish()
