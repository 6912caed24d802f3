"""A second dialect, plugged in from outside the package: its clients and its providers over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from holdfast.app import Gateway
from holdfast.config import Config, ModelConfig, ProviderConfig, ServerConfig
from holdfast.core.session.messages import SUBPROTOCOL
from holdfast.server.surfaces.generations import generations
from holdfast.server.surfaces.holdfast_session import sessions
from holdfast_tools.simulate.server import SimulatedProvider
from tests.conftest import close_path
from tests.dialects.echo import BOTH, ECHO
from tests.support.gateway_client import Http, Session, answer, ask, chat, read_stream
from tests.support.gateway_path import GatewayPath

SEED = 7


class Cave:
    """A provider of `echo` over HTTP/1.1: says what it is told, `hush` as a failure, and refuses to say `no`."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self.heads: list[bytes] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            request = json.loads(await reader.readexactly(length))
            self.heads.append(head)
            status, body = self._answer(request)
            # Without a length: the body ends with the connection.
            writer.write(b"HTTP/1.1 %b\r\ncontent-type: application/x-ndjson\r\n" % status)
            writer.write(b"x-echo-trace: t-1\r\nconnection: close\r\n\r\n")
            for byte in body:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
        finally:
            writer.close()
            await writer.wait_closed()

    @staticmethod
    def _answer(request: dict[str, Any]) -> tuple[bytes, bytes]:
        words = request["say"][: request.get("at_most")]
        if words == ["no"]:
            return b"418 Teapot", b"I only echo"
        lines: list[dict[str, Any]] = [
            {"oops": "a rock fell"} if word == "hush" else {"word": word} for word in words
        ]
        total = {"heard": len(request["say"]), "said": len(words), "why": f"said by {request['to']}"}
        return b"200 OK", b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, {"total": total}])


@pytest.fixture
async def cave() -> AsyncIterator[Cave]:
    cave = Cave()
    yield cave
    await cave.aclose()


@pytest.fixture
async def path(cave: Cave) -> AsyncIterator[GatewayPath]:
    """A gateway that is given the dialect and its surfaces: `parrot` speaks echo, `demo` chat."""
    simulated = SimulatedProvider()
    await simulated.start()
    config = Config(
        server=ServerConfig(port=0),
        providers={
            "cave": ProviderConfig(
                base_url=f"http://127.0.0.1:{await cave.start()}/v2",
                api="echo",
                api_key="sesame",
                options={"loud": True},
            ),
            "sim": ProviderConfig(base_url=simulated.base_url),
        },
        models={"parrot": ModelConfig(route=["cave/p"]), "demo": ModelConfig(route=["sim/demo"])},
    )
    surfaces = [generations("/v2/echo", ECHO), sessions("/v2/ws", ECHO)]
    gateway = Gateway(config, dialects=BOTH, surfaces=surfaces)
    await gateway.start()
    path = GatewayPath(gateway, simulated)
    yield path
    await close_path(path)


def say(*words: str, to: str = "parrot", **fields: Any) -> dict[str, Any]:
    return {"say": words, "to": to, **fields}


async def echo(path: GatewayPath, request: dict[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    """Ask over HTTP; return the stream's id and its events by their names."""
    async with await Http.open(path.url) as http:
        http.request("POST", "/v2/echo", request, holdfast_on_disconnect="continue")
        head = await http.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        return head.headers["holdfast-stream-id"], [
            (event.event, json.loads(event.data)) async for event in http.events()
        ]


async def test_answer_comes_in_the_form_of_its_api(path: GatewayPath, cave: Cave) -> None:
    stream, events = await echo(path, say("hold", "fast", "now", at_most=2))
    assert events == [("word", [0, "hold"]), ("word", [1, "fast"]), ("said", {"why": "said by P"})]
    (head,) = cave.heads
    assert head.startswith(b"PUT /v2/echo/%b HTTP/1.1\r\n" % stream.encode())
    assert b"x-echo-key: sesame\r\n" in head
    assert b"authorization" not in head.lower()
    # What is common to all streams needs to know nothing of the dialect.
    *entries, end = await read_stream(path.url, stream)
    assert [json.loads(entry.data) for entry in entries] == [[0, "hold"], [1, "fast"]]
    told = json.loads(end.data)
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert told["attempts"][0]["provider"] == "cave"


async def test_answer_that_is_not_streamed_is_whole(path: GatewayPath) -> None:
    response = await ask(path.url, "POST", "/v2/echo", say("hold", "fast", live=False))
    assert (response.status, response.json()) == (200, {"said": ["hold", "fast"]})


@pytest.mark.parametrize(
    ("request_", "status", "oops"),
    [
        ({"messages": []}, 400, "invalid_request"),
        (say("hi", to="nobody"), 404, "model_not_found"),
        (say("no", live=False), 418, "upstream_status"),
        (say("hi", "hush", live=False), 502, "upstream_error"),
    ],
)
async def test_refusal_has_the_form_of_its_api(
    path: GatewayPath, request_: dict[str, Any], status: int, oops: str
) -> None:
    response = await ask(path.url, "POST", "/v2/echo", request_)
    assert (response.status, response.json()["oops"]) == (status, oops)


async def test_failure_within_an_answer_has_the_form_of_its_api(path: GatewayPath) -> None:
    _, events = await echo(path, say("hold", "hush"))
    assert events == [("word", [0, "hold"]), ("oops", {"why": "upstream_error"})]


async def test_session_carries_its_entries_and_resumes_them(path: GatewayPath) -> None:
    async with await open_session(path) as session:
        accepted = await session.create("r-1", say("hold", "fast"))
        entries, end = await session.read()
    assert entries == [[0, "hold"], [1, "fast"]]
    assert (end["status"], end["finish_reason"]) == ("completed", "said by P")
    async with await open_session(path) as session:
        await session.attach(accepted["stream"], after=0)
        entries, end = await session.read(start=1)
    assert entries == [[1, "fast"]]


async def open_session(path: GatewayPath) -> Session:
    url = path.url.replace("http", "ws", 1) + "/v2/ws"
    session = Session(await connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)], proxy=None, ping_interval=None))
    await session.send(type="hello", version=1)
    await session.expect("welcome")
    return session


async def test_client_of_one_api_is_answered_by_a_provider_of_the_other(path: GatewayPath) -> None:
    prompt = f'sim:{{"tokens": 5, "seed": {SEED}, "ttft_ms": 0, "interval_ms": 0}}'
    _, events = await echo(path, say(prompt, to="demo", at_most=9))
    *words, last = events
    assert [number for _, (number, _) in words] == list(range(len(words)))
    assert "".join(word for _, (_, word) in words) == answer(5, SEED)
    assert last == ("said", {"why": "stop"})
    assert (await ask(path.url, "POST", "/v2/echo", say(prompt, to="demo", live=False))).json() == {
        "said": [answer(5, SEED)]
    }


async def test_field_without_a_form_at_the_provider_is_refused_by_name(path: GatewayPath) -> None:
    response = await ask(path.url, "POST", "/v2/echo", say("hi", to="demo", backwards=True, live=False))
    assert (response.status, response.json()["oops"]) == (400, "invalid_request")


async def test_model_without_a_provider_that_can_answer_is_refused(path: GatewayPath) -> None:
    response = await ask(path.url, "POST", "/v1/chat/completions", chat(model="parrot"))
    assert response.status == 400
    assert "the API `chat`" in response.error["message"]
    # Its own clients speak to it as ever.
    assert (await ask(path.url, "POST", "/v1/chat/completions", chat({"tokens": 1}, stream=False))).status == 200
