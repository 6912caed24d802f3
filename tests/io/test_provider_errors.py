"""Errors of providers through the whole gateway: what the caller sees, what the log has, who is asked next."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import openai
import pytest

from holdfast.app import Gateway
from holdfast.config import Config, ModelConfig, ProviderConfig, ServerConfig
from holdfast.config.logging import LoggingConfig
from holdfast.core.masking import Masking
from holdfast.logs import Logs
from tests.support.gateway_client import Http, Session, answer, ask, chat, content, own_code
from tests.support.gateway_path import MakePath
from tests.support.waiting import eventually

COMPLETIONS = "/v1/chat/completions"
SECRET = "sk-proj-very/secret-key-0123456789abcdef"
OTHER = "s3cr3t-header-value"
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": %b}]}\n\n'
ANSWER = CHUNK % b"null" + CHUNK % b'"stop"' + b"data: [DONE]\n\n"


def reply(status: int, body: bytes, *, content_type: str = "application/json", headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} Told\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def events(body: bytes) -> bytes:
    return reply(200, body, content_type="text/event-stream")


def said(status: int, headers: str = "", **error: Any) -> bytes:
    return reply(status, json.dumps({"error": error}).encode(), headers=headers)


class Provider:
    """Answers each request with what `answer_of` makes of its head; None: it never answers."""

    def __init__(self, answer_of: Callable[[str], bytes | None]) -> None:
        self.answer_of = answer_of
        self.heads: list[str] = []
        #: Seconds that each answer takes.
        self.delay = 0.0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int(head.lower().partition("content-length: ")[2].partition("\r\n")[0]))
                self.heads.append(head)
                found = self.answer_of(head)
                await asyncio.sleep(self.delay)
                if found is not None:
                    writer.write(found)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running(
    *answers: Callable[[str], bytes | None] | bytes | None,
    settings: dict[str, Any] | None = None,
    retry: dict[str, Any] | None = None,
    masking: Masking | None = None,
) -> AsyncIterator[tuple[Gateway, list[Provider]]]:
    """A gateway whose model `demo` asks one provider for each of the answers, in their order."""
    providers = [Provider(found if callable(found) else lambda _, found=found: found) for found in answers]  # type: ignore[misc]
    servers = [await asyncio.start_server(provider.serve, "127.0.0.1", 0) for provider in providers]
    configured = {}
    for number, (provider, server) in enumerate(zip(providers, servers, strict=True)):
        provider.port = server.sockets[0].getsockname()[1]
        fields = {
            "base_url": f"http://127.0.0.1:{provider.port}/v1",
            "api_key": SECRET,
            "headers": {"x-team": OTHER},
            **(settings or {}),
        }
        configured[f"p{number}"] = msgspec.convert(fields, ProviderConfig)
    model = {"route": [f"{name}/large" for name in configured], "retry": {"initial": 0.01, **(retry or {})}}
    gateway = Gateway(
        Config(
            server=ServerConfig(port=0),
            providers=configured,
            models={"demo": msgspec.convert(model, ModelConfig)},
        ),
        masking=masking,
    )
    await gateway.start()
    try:
        yield gateway, providers
    finally:
        await gateway.aclose()
        for server in servers:
            server.close()


def body(*, stream: bool = True, **fields: Any) -> dict[str, Any]:
    return chat(stream=stream, **fields)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "holdfast")
    return caplog


def lines_of(log: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [entry.fields for entry in log.records if entry.getMessage() == message]  # type: ignore[attr-defined]


CONTEXT = {
    "message": "maximum context length is 8192 tokens",
    "type": "invalid_request_error",
    "code": "context_length_exceeded",
    "param": "messages",
}


# -- identity, over every way --


@pytest.mark.parametrize("stream", [True, False])
async def test_sdk_of_the_provider_sees_the_providers_code_type_and_param(
    log: pytest.LogCaptureFixture, stream: bool
) -> None:
    async with running(said(400, "x-request-id: req_42\r\n", **CONTEXT)) as (gateway, _):
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(
                    model="demo", messages=[{"role": "user", "content": "hi"}], stream=stream
                )
        error = caught.value
        assert (error.code, error.type, error.param) == (
            "context_length_exceeded",
            "invalid_request_error",
            "messages",
        )
        assert isinstance(error.body, dict)
        assert (error.body["holdfast_code"], error.body["provider_request_id"]) == ("upstream_status", "req_42")
    (failed,) = lines_of(log, "provider failed")
    assert (failed["http_status"], failed["provider_code"], failed["provider_type"]) == (
        400,
        "context_length_exceeded",
        "invalid_request_error",
    )
    (ended,) = lines_of(log, "request ended")
    assert (ended["provider_code"], ended["provider_request"]) == ("context_length_exceeded", "req_42")
    assert failed["provider_request"] == "req_42"


async def test_session_says_what_the_provider_has_said() -> None:
    refusal = said(400, "x-request-id: req_42\r\n", **CONTEXT)
    async with running(refusal) as (gateway, _), await Session.open(gateway.url) as session:
        await session.create("r-1", body())
        _, end = await session.read()
    assert end["error"] == {
        "code": "upstream_status",
        "message": CONTEXT["message"],
        "param": "messages",
        "status": 400,
        "provider_code": "context_length_exceeded",
        "provider_type": "invalid_request_error",
        "provider_request_id": "req_42",
    }
    assert end["attempts"][0]["provider_request_id"] == "req_42"


async def test_error_in_mid_stream_has_the_providers_code() -> None:
    error = {"message": "too long", "type": "server_error", "code": "engine_overloaded", "param": "p"}
    answered = events(CHUNK % b"null" + b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    async with running(answered) as (gateway, _), await Http.open(gateway.url) as http:
        http.request("POST", COMPLETIONS, body())
        assert (await http.head()).status == 200
        *_, last = [event async for event in http.events()]
    told = json.loads(last.data)["error"]
    assert (told["code"], told["type"], told["param"], told["holdfast_code"]) == (
        "engine_overloaded",
        "server_error",
        "p",
        "upstream_error",
    )


@pytest.mark.parametrize(("code", "status", "requests"), [(400, 400, 1), (429, 429, 4), (503, 503, 4)])
async def test_code_within_an_answer_of_200_is_the_status(code: int, status: int, requests: int) -> None:
    answered = events(
        b"data: " + json.dumps({"choices": [], "error": {"message": "x", "code": code}}).encode() + b"\n\n"
    )
    async with running(answered) as (gateway, (provider,)):
        response = await ask(gateway.url, "POST", COMPLETIONS, body())
    assert (response.status, response.error["code"], len(provider.heads)) == (status, str(code), requests)


# -- a key that was revoked, a quota that is used up --


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "refusal",
    [
        said(401, message=f"Incorrect API key provided: {SECRET}", code="invalid_api_key"),
        said(403, message="no", type="permission_error"),
        said(429, message="You exceeded your quota", code="insufficient_quota"),
        reply(200, b'{"error": {"message": "quota", "code": "insufficient_quota"}}'),
    ],
    ids=["401", "403", "quota", "quota with 200"],
)
async def test_model_with_a_healthy_provider_goes_on(
    log: pytest.LogCaptureFixture, refusal: bytes, stream: bool
) -> None:
    good = events(ANSWER) if stream else reply(200, b'{"choices": [{"message": {"content": "Hi"}}]}')
    async with running(refusal, good) as (gateway, (first, second)):
        for _ in range(3):
            assert (await ask(gateway.url, "POST", COMPLETIONS, body(stream=stream))).status == 200
        shown = (await ask(gateway.url, "GET", "/v1/pool")).json()["providers"][0]["health"]
    assert (len(first.heads), len(second.heads)) == (1, 3)
    loud = [record for record in log.records if record.levelno >= logging.ERROR]
    assert len(loud) == 1
    assert "p0" in loud[0].getMessage()
    assert SECRET not in log.text
    assert (shown["breaker"], shown["opened"]) == ("open", 1)
    assert "gateway's" in shown["reason"]


async def test_caller_is_not_told_that_its_own_key_is_wrong() -> None:
    async with (
        running(said(401, message=f"Incorrect API key provided: {SECRET[:9]}***", code="invalid_api_key")) as (
            gateway,
            (provider,),
        ),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=5) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.status_code == 502
    assert caught.value.code == "upstream_refused"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "Incorrect" not in str(caught.value)
    assert len(provider.heads) == 1


# -- secrets and addresses --


def reflecting(status: int) -> Callable[[str], bytes]:
    """A provider that quotes the credentials that it was sent."""

    def answer_of(head: str) -> bytes:
        sent = [
            line.partition(": ")[2] for line in head.split("\r\n") if line.startswith(("authorization", "x-team"))
        ]
        assert len(sent) == 2
        text = f"cannot take {' or '.join(sent)}"
        if status == 200:
            return events(
                CHUNK % b"null" + b"data: " + json.dumps({"error": {"message": text}}).encode() + b"\n\n"
            )
        if status == 299:
            return reply(200, b"{}", content_type=f"text/x; key={sent[0]} {sent[1]}")
        return said(status, message=text, code=sent[1], type=sent[0], param=sent[0])

    return answer_of


@pytest.mark.parametrize("status", [400, 401, 500, 200, 299])
@pytest.mark.parametrize("stream", [True, False])
async def test_credential_that_a_provider_quotes_reaches_nobody(status: int, stream: bool) -> None:
    masking, written = Masking(), io.StringIO()
    with Logs(LoggingConfig(level="debug", content=True), written, mask=masking.mask):
        async with running(reflecting(status), masking=masking, retry={"max_attempts": 1}) as (gateway, _):
            async with await Http.open(gateway.url) as http:
                response = await http.ask("POST", COMPLETIONS, body(stream=stream))
            stream_id = response.headers["holdfast-stream-id"]
            late = await ask(gateway.url, "GET", f"/v1/streams/{stream_id}?live=none")
            pool = await ask(gateway.url, "GET", "/v1/pool")
    for text in (response.body, late.body, pool.body, written.getvalue().encode()):
        assert text
        for secret in (SECRET, SECRET.replace("/", "\\/"), OTHER):
            assert secret[:10].encode() not in text.replace(b"sk-proj-ve*", b"")
    assert response.status != 401


async def test_key_that_a_reload_has_replaced_is_masked_as_well_and_the_new_one_is_tried_at_once() -> None:
    new = "sk-proj-another-key-fedcba9876543210"

    def answer_of(head: str) -> bytes:
        text = f"no longer {SECRET}, but {new}"
        return said(400 if new in head else 401, message=text)

    async with running(answer_of) as (gateway, (provider,)):
        assert (await ask(gateway.url, "POST", COMPLETIONS, body())).status == 502
        config = gateway.config
        provider_config = msgspec.structs.replace(config.providers["p0"], api_key=new)
        gateway.reload(msgspec.structs.replace(config, providers={"p0": provider_config}))
        response = await ask(gateway.url, "POST", COMPLETIONS, body())
    assert (response.status, response.error["message"]) == (400, "no longer ***, but ***")
    assert len(provider.heads) == 2


async def test_address_of_a_provider_is_for_the_log_alone(log: pytest.LogCaptureFixture) -> None:
    nowhere = {"base_url": "http://127.0.0.1:1/v1"}
    async with running(None, settings=nowhere, retry={"max_attempts": 1}) as (gateway, _):
        response = await ask(gateway.url, "POST", COMPLETIONS, body())
    assert (response.status, own_code(response.error)) == (502, "upstream_connect_error")
    assert "127.0.0.1" not in response.body.decode()
    assert "'p0'" in response.error["message"]
    assert "127.0.0.1:1" in lines_of(log, "provider failed")[0]["reason"]


# -- waits --


async def test_caller_of_a_session_is_told_of_a_wait_and_its_answer_follows() -> None:
    replies = [said(429, "retry-after: 1\r\n", message="slow down"), events(ANSWER)]
    async with running(lambda _: replies.pop(0)) as (gateway, _), await Session.open(gateway.url) as session:
        await session.create("r-1", body())
        told = await session.expect("queued")
        assert (told["position"], told["attempt"], told["code"]) == (0, 2, "upstream_status")
        assert 1000 <= told["delay_ms"] <= 1100
        entries, end = await session.read()
    assert (content(entries), end["status"]) == ("HiHi", "completed")


async def test_silent_answer_over_sse_says_in_a_comment_that_it_is_tried_again(make_path: MakePath) -> None:
    path = await make_path(server={"sse_keep_alive": 0.2})
    async with await Http.open(path.url) as http:
        fault = {"kind": "status", "status": 429, "retry_after": 1, "times": 1}
        http.request("POST", COMPLETIONS, chat({"tokens": 3, "fault": fault}))
        assert (await http.head()).status == 200
        raw = b"".join([chunk async for chunk in http.chunks()])
    assert b": retrying in 1." in raw
    assert b"(attempt 2, upstream_status)\n" in raw
    assert content([line[6:] for line in raw.decode().split("\n") if line.startswith("data: {")]) == answer(3)


async def test_answer_over_sse_that_has_begun_is_told_of_a_wait_at_once() -> None:
    replies = [said(429, "retry-after: 1\r\n", message="slow down"), events(ANSWER)]
    async with running(lambda _: replies.pop(0)) as (gateway, (provider,)):
        gateway.process.services.sse.keep_alive = 0.2
        provider.delay = 0.6
        async with await Http.open(gateway.url) as http:
            http.request("POST", COMPLETIONS, body())
            assert (await http.head()).status == 200
            chunks = http.chunks()
            assert await anext(chunks) == b": keep-alive\n"
            raw = b""
            while b"retrying" not in raw:
                raw += await anext(chunks)
            assert len(provider.heads) == 1
            raw += b"".join([chunk async for chunk in chunks])
    assert raw.endswith(b"data: [DONE]\n\n")


async def test_long_retry_after_is_told_at_once() -> None:
    async with running(said(429, "retry-after: 25\r\n", message="slow down")) as (gateway, (provider,)):
        response = await ask(gateway.url, "POST", COMPLETIONS, body())
    assert (response.status, response.headers["retry-after"], len(provider.heads)) == (429, "25", 1)


async def test_word_of_the_provider_against_a_retry_is_passed_on() -> None:
    async with running(said(429, "x-should-retry: false\r\n", message="no")) as (gateway, (provider,)):
        response = await ask(gateway.url, "POST", COMPLETIONS, body())
    assert (response.status, response.headers["x-should-retry"], len(provider.heads)) == (429, "false", 1)


# -- who was waited for --


@pytest.mark.parametrize("stream", [True, False])
async def test_log_names_the_provider_that_a_leaving_caller_has_waited_for(
    log: pytest.LogCaptureFixture, stream: bool
) -> None:
    async with running(None) as (gateway, (provider,)):
        async with await Http.open(gateway.url) as http:
            http.request("POST", COMPLETIONS, body(stream=stream))
            await eventually(lambda: provider.heads)
            await eventually(lambda: gateway.pool_statistics()[0].health.oldest_wait >= 0.05)
            shown = (await ask(gateway.url, "GET", "/v1/pool")).json()["providers"][0]["health"]
            assert (shown["waiting"], shown["oldest_wait"] >= 0.05) == (1, True)
        await eventually(lambda: lines_of(log, "request ended"))
    (ended,) = lines_of(log, "request ended")
    assert (ended["status"], ended["attempts"], ended["provider"]) == ("cancelled", 1, "p0")
    assert ended["waited"] >= 0.05


async def test_answer_that_is_not_streamed_and_does_not_come_fails_over() -> None:
    good = reply(200, b'{"choices": [{"message": {"content": "Hi"}}]}')
    async with running(None, good, settings={"timeouts": {"answer": 0.3}}) as (gateway, (first, second)):
        response = await ask(gateway.url, "POST", COMPLETIONS, body(stream=False))
        assert response.status == 200
        assert (len(first.heads), len(second.heads)) == (1, 1)


# -- a request id stands for an answer --


async def test_sdk_that_tries_again_with_one_key_gets_an_answer_once_there_is_one() -> None:
    replies = [said(503, message="down")] * 4
    good = reply(200, b'{"choices": [{"message": {"content": "Hi"}}]}')
    async with (
        running(lambda _: replies.pop() if replies else good, retry={"max_attempts": 1}) as (gateway, (provider,)),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=5) as client,
    ):
        completion = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={"idempotency-key": "k"},
        )
    assert completion.choices[0].message.content == "Hi"
    assert len(provider.heads) == 5


async def test_two_creates_at_a_time_make_one_generation_also_where_it_fails() -> None:
    async with running(said(503, message="down"), retry={"max_attempts": 2, "initial": 0.3, "maximum": 0.3}) as (
        gateway,
        (provider,),
    ):
        asked = [ask(gateway.url, "POST", COMPLETIONS, body(), idempotency_key="k") for _ in range(2)]
        responses = await asyncio.gather(*asked)
        assert {response.status for response in responses} == {503}
        assert len({response.headers["holdfast-stream-id"] for response in responses}) == 1
        assert len(provider.heads) == 2
        again = await ask(gateway.url, "POST", COMPLETIONS, body(), idempotency_key="k")
        assert again.headers["holdfast-stream-id"] != responses[0].headers["holdfast-stream-id"]
