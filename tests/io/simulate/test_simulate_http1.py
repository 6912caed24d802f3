from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest

from holdfast_tools.simulate.server import SimulatedProvider
from holdfast_tools.simulate.text import text
from tests.support.simulate_client import RawConnection, chat_body, contents


async def test_stream_over_raw_socket_has_openai_shape(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 3}, stream_options={"include_usage": True}))
        status, headers = await client.head()
        body = await client.chunks()
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["transfer-encoding"] == "chunked"
    events = body.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(event[6:]) for event in events[:-2]]
    assert [chunk["object"] for chunk in chunks] == ["chat.completion.chunk"] * 6
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:5]] == [None] * 4 + ["stop"]
    assert [chunk["usage"] for chunk in chunks[:5]] == [None] * 5
    assert chunks[5]["choices"] == []
    assert chunks[5]["usage"]["completion_tokens"] == 3
    assert contents(body) == text(7, 3)


@pytest.mark.parametrize("tokens", [0, 1, 2, 200, 5000])
async def test_stream_of_any_length_carries_the_text(provider: SimulatedProvider, tokens: int) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{provider.base_url}/chat/completions", json=chat_body({"tokens": tokens}))
    assert contents(answer.content) == text(7, tokens)
    assert provider.statistics().tokens == tokens


async def test_usage_that_was_not_asked_for_is_not_sent(provider: SimulatedProvider) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{provider.base_url}/chat/completions", json=chat_body({"tokens": 3}))
    assert b"usage" not in answer.content


async def test_openai_sdk_streams_and_completes(provider: SimulatedProvider) -> None:
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client:
        sim = {"sim": {"tokens": 20, "interval_ms": 1, "ttft_ms": 1, "seed": 3}}
        messages: list[Any] = [{"role": "user", "content": "hello there"}]
        stream = await client.chat.completions.create(
            model="demo",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=15,
            extra_body=sim,
        )
        got, finish, usage = "", None, None
        async for chunk in stream:
            usage = chunk.usage
            for choice in chunk.choices:
                got += choice.delta.content or ""
                finish = choice.finish_reason
        whole = await client.chat.completions.create(model="demo", messages=messages, extra_body=sim)
        models = [model.id async for model in await client.models.list()]
    assert usage is not None
    assert whole.usage is not None
    assert (got, finish, usage.completion_tokens) == (text(3, 15), "length", 15)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text(3, 20), "stop")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 20
    assert models == ["demo"]


async def test_openai_sdk_error_status_is_its_typed_error(provider: SimulatedProvider) -> None:
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "x"}],
                extra_body={"sim": {"fault": {"kind": "status", "status": 429, "retry_after": 3}}},
            )
    assert caught.value.code == "simulated_429"
    assert caught.value.response.headers["retry-after"] == "3"


async def test_request_without_sim_gets_readable_text_that_depends_on_the_prompt(
    provider: SimulatedProvider,
) -> None:
    async with httpx.AsyncClient() as client:
        answers = []
        for prompt in ("one", "two", "one"):
            body = {"model": "demo", "messages": [{"role": "user", "content": prompt}], "max_tokens": 30}
            # Not streamed, so that the demo's pace is the only wait; the events are covered elsewhere.
            answers.append(client.post(f"{provider.base_url}/chat/completions", json=body, timeout=10))
        one, two, again = [r.json()["choices"][0]["message"]["content"] for r in await asyncio.gather(*answers)]
    assert '"one"' in one
    assert one == again != two


async def test_timestamps_are_on_every_event_with_content(provider: SimulatedProvider) -> None:
    before = time.monotonic_ns()
    async with httpx.AsyncClient() as client:
        body = chat_body({"tokens": 5, "interval_ms": 1, "timestamps": True})
        answer = await client.post(f"{provider.base_url}/chat/completions", json=body)
    sent = [json.loads(event[6:]).get("sim_sent_ns") for event in answer.content.split(b"\n\n")[:-2]]
    assert len(sent) == 7
    assert before < sent[0]
    assert sent == sorted(sent)
    assert sent[-1] < time.monotonic_ns()


async def test_paced_stream_keeps_its_schedule(provider: SimulatedProvider) -> None:
    loop = asyncio.get_running_loop()
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 20, "interval_ms": 10, "ttft_ms": 50, "burst": 2}))
        start = loop.time()
        await client.head()
        assert contents(await client.chunk() + await client.chunk()) == text(7, 2)
        first = loop.time() - start
        await client.chunks()
        last = loop.time() - start
    assert first >= 0.049
    assert 0.139 <= last < 10


async def test_early_head_comes_before_the_first_token(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 1, "ttft_ms": 60_000, "early_head": True}))
        assert (await client.head())[0] == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.reader.read(1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":[{"content":"x"}]}', "messages[0].role"),
        (b'{"model":1,"messages":[{"role":"user"}]}', "model"),
        (b'{"model":"m","messages":[{"role":"user"}],"stream":"yes"}', "stream"),
        (b'{"model":"m","messages":[{"role":"user"}],"max_tokens":0}', "max_tokens"),
        (b'{"model":"m","messages":[{"role":"user"}],"sim":{"tokens":"9"}}', "sim.tokens"),
        (b'{"model":"m","messages":[{"role":"user"}],"sim":{"tokens":-1}}', "sim.tokens"),
        (b'{"model":"m","messages":[{"role":"user"}],"sim":{"token":9}}', "sim.token"),
        (b'{"model":"m","messages":[{"role":"user"}],"sim":{"fault":{"kind":"x"}}}', "sim.fault.kind"),
        (b'{"model":"m","messages":[{"role":"user"}],"sim":{"fault":{"kind":"stall","x":1}}}', "sim.fault.x"),
        (b'{"model":"m","messages":[{"role":"user"}],"sim":{"fault":{"kind":"cut","times":1}}}', "user"),
    ],
)
async def test_invalid_request_is_refused_and_names_the_field(
    provider: SimulatedProvider, body: bytes, param: str | None
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{provider.base_url}/chat/completions", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert provider.statistics().failed == 1


async def test_unknown_path_and_wrong_method_are_refused(provider: SimulatedProvider) -> None:
    root = provider.base_url.removesuffix("/v1")
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{root}/nothing")).status_code == 404
        assert (await client.get(f"{root}/v1/chat/completions")).status_code == 405
        assert (await client.get(f"{root}/healthz")).json() == {"status": "ok"}


async def test_statistics_count_by_key_and_can_be_reset(provider: SimulatedProvider) -> None:
    root = provider.base_url.removesuffix("/v1")
    async with httpx.AsyncClient() as client:
        for user in ("a", "b", "a"):
            await client.post(f"{root}/v1/chat/completions", json=chat_body({"tokens": 1}, user=user))
        headers = {"x-request-id": "c"}
        answer = await client.post(f"{root}/v1/chat/completions", json=chat_body({"tokens": 1}), headers=headers)
        assert answer.headers["x-request-id"] == "c"
        counts = (await client.get(f"{root}/stats")).json()
        assert counts["requests_by_key"] == {"a": 2, "b": 1, "c": 1}
        assert (counts["requests"], counts["completed"], counts["tokens"]) == (4, 4, 4)
        assert counts["requests_by_protocol"] == {"http1": 4}
        assert (counts["connections"], counts["open_connections"]) == (1, 1)
        await client.post(f"{root}/stats/reset")
        counts = (await client.get(f"{root}/stats")).json()
        assert (counts["requests"], counts["requests_by_key"], counts["open_connections"]) == (0, {}, 1)


async def test_connection_is_kept_alive_and_pipelined_requests_are_answered_in_order(
    provider: SimulatedProvider,
) -> None:
    async with await RawConnection.open(provider) as client:
        for number in range(40):
            client.post(chat_body({"tokens": 50, "seed": number}))
        for number in range(40):
            assert (await client.head())[0] == 200
            assert contents(await client.chunks()) == text(number, 50)
    assert provider.statistics().connections == 1


async def test_thousands_of_pipelined_requests_behind_a_slow_one_are_answered(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 1, "ttft_ms": 50}))
        client.writer.write(b"GET /healthz HTTP/1.1\r\n\r\n" * 3000)
        await client.head()
        await client.chunks()
        for _ in range(3000):
            assert (await client.head())[0] == 200
            await client.reader.readexactly(15)


async def test_connection_close_is_obeyed(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 1}), headers="connection: close\r\n")
        _, headers = await client.head()
        assert headers["connection"] == "close"
        assert (await client.rest())[1] == "fin"


async def test_http10_client_gets_a_body_without_chunks(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        data = json.dumps(chat_body({"tokens": 5})).encode()
        client.writer.write(
            b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
        )
        await client.head()
        body, end = await client.rest()
    assert (contents(body), end) == (text(7, 5), "fin")


async def test_expect_continue_is_answered(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        data = json.dumps(chat_body({"tokens": 5})).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: {len(data)}\r\n\r\n"
        client.writer.write(head.encode())
        assert (await client.head())[0] == 100
        client.writer.write(data)
        assert (await client.head())[0] == 200
        assert contents(await client.chunks()) == text(7, 5)


async def test_offer_of_an_upgrade_is_ignored(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.writer.write(b"GET /healthz HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 2)
        for _ in range(2):
            assert (await client.head())[0] == 200
            assert await client.reader.readexactly(15) == b'{"status":"ok"}'


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\x00" * 100])
async def test_rubbish_is_answered_with_400_and_closed(provider: SimulatedProvider, rubbish: bytes) -> None:
    async with await RawConnection.open(provider) as client:
        client.writer.write(rubbish)
        assert (await client.head())[0] == 400
        assert (await client.rest())[1] == "fin"


async def test_endless_head_is_refused(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.writer.write(b"GET / HTTP/1.1\r\nx: ")
        client.writer.write(b"y" * 300_000)
        assert (await client.head())[0] == 431


async def test_client_that_leaves_mid_stream_is_counted_as_cancelled(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 1000, "interval_ms": 20}))
        await client.head()
        await client.chunk()
        assert provider.statistics().streaming == 1
    counts = await provider.until(lambda s: s.cancelled == 1 and s.open_connections == 0)
    assert counts.streaming == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_before_the_first_byte_is_counted_as_cancelled(
    provider: SimulatedProvider, stream: bool
) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"ttft_ms": 60_000}, stream=stream))
        await provider.until(lambda s: s.streaming == 1)
    await provider.until(lambda s: s.cancelled == 1)


async def test_reader_that_stops_holds_only_its_own_stream_and_gets_all_of_it_later(
    provider: SimulatedProvider,
) -> None:
    async with await RawConnection.open(provider) as slow, await RawConnection.open(provider) as quick:
        slow.transport.pause_reading()
        slow.post(chat_body({"tokens": 40_000, "seed": 1}))
        await provider.until(lambda s: s.streaming == 1)
        for _ in range(3):
            quick.post(chat_body({"tokens": 2000, "seed": 2}))
            await quick.head()
            assert contents(await quick.chunks()) == text(2, 2000)
        assert provider.statistics().streaming == 1
        slow.transport.resume_reading()
        await slow.head()
        assert contents(await slow.chunks()) == text(1, 40_000)


async def test_provider_that_closes_mid_stream_leaves_nothing(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 1000, "interval_ms": 20}))
        await client.head()
        await provider.aclose()
        await client.rest()
    assert provider.statistics().cancelled == 1
    await provider.aclose()


async def test_until_reports_the_counts_when_time_is_up(provider: SimulatedProvider) -> None:
    with pytest.raises(TimeoutError, match="requests=0"):
        await provider.until(lambda s: s.requests == 1, timeout=0.01)
