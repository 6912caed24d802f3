"""What providers answer on the wire, right and wrong, and what a caller has of it, whatever the timing."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from holdfast.core.entries import EndBody
from holdfast_tools.simulate import faults as f
from tests.support.launching import launch
from tests.support.pool_world import World, ca_file
from tests.support.raw_provider import RawProvider, Timing, answer, asked
from tests.support.reading import Reading
from tests.support.scripted_provider import DEADLINE, ScriptedWorld, ended
from tests.support.waiting import eventually

JSON = b"application/json"
DONE = b"data: [DONE]\n\n"


def event(said: Any, name: bytes = b"") -> bytes:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + body + b"\n\n"


def chunk(text: str | None = None, *, finish: str | None = None, index: int = 0, **fields: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **fields})


HOLD = chunk("Hold")
STOP = chunk(finish="stop")
WHOLE = HOLD + chunk(" fast") + STOP
ODD_USAGE = {"prompt_tokens": 7.0, "completion_tokens": "2", "total_tokens": -1}
COMPLETION = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hold fast"}, "finish_reason": "stop"}]}
).encode()
NO = b'{"error":{"message":"no such luck","code":"out_of_luck"}}'

COMPLETE = {
    "a clean end without [DONE]": answer(WHOLE),
    "usage in odd forms": answer(HOLD + chunk(" fast") + chunk(finish="stop", usage=ODD_USAGE) + DONE),
    "usage that is none": answer(HOLD + chunk(" fast") + chunk(finish="stop", usage=[[]]) + DONE),
    "empty events": answer(b"data:\n\n" + HOLD + b"data: \n\n" + chunk(" fast") + STOP + b"data\n\n" + DONE),
    "a word as heartbeat": answer(b"data: ping\n\n" + WHOLE + DONE),
    "named heartbeats": answer(event(b"ping", b"ping") + HOLD + event(b"ping", b"ping") + chunk(" fast") + STOP),
    "a whole completion": answer(COMPLETION, content_type=JSON),
    "a whole completion as a stream": answer(b"\n \n" + COMPLETION),
    "another content type": answer(WHOLE + DONE, content_type=JSON),
    "text": answer(WHOLE + DONE, content_type=b"text/plain"),
    "no content type": answer(WHOLE + DONE, content_type=None),
    "an empty error": answer(HOLD + chunk(" fast", error="") + chunk(finish="stop", error=False) + DONE),
    "NaN": answer(HOLD + event(b'{"choices":[{"delta":{"content":" fast"},"logprobs":NaN}]}') + STOP + DONE),
    "rubbish behind the finish reason": answer(WHOLE + b"data: {]\n\n"),
    "a cut behind the finish reason": answer(WHOLE + b" " * 10)[:-10],
    "identity": answer(WHOLE + DONE, b"content-encoding: identity"),
}
TIMINGS: list[Timing] = ["together", "apart", "dripped"]


def text(reading: Reading) -> str:
    found = ""
    for entry in reading.entries:
        for choice in json.loads(entry)["choices"]:
            found += (choice.get("delta") or choice.get("message") or {}).get("content") or ""
    return found


def outcome(end: EndBody | None) -> tuple[str, str | None]:
    assert end is not None
    return end.status, None if end.error is None else end.error.code


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("raw", COMPLETE.values(), ids=COMPLETE.keys())
async def test_answer_with_its_finish_reason_is_complete(raw: bytes, timing: Timing) -> None:
    async with RawProvider(raw, timing=timing, closes=True) as provider, ScriptedWorld(provider) as world:
        reading = await asked(world)
        assert (text(reading), outcome(reading.end)) == ("Hold fast", ("completed", None))
        assert reading.end is not None
        assert reading.end.finish_reason == "stop"
        assert len(provider.heads) == 1


async def test_half_characters_pass_to_the_letter() -> None:
    halves = [b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\ude00"}}]}']
    body = b"".join(map(event, halves)) + STOP + DONE
    async with RawProvider(answer(body)) as provider, ScriptedWorld(provider) as world:
        reading = await asked(world)
        assert reading.entries[:2] == halves
        assert outcome(reading.end) == ("completed", None)


#: The answer, the code and words that a caller has, and the text before it.
WRONG = {
    "an error event": (answer(HOLD + event({"message": "boom", "code": 500}, b"error")), "boom", "Hold"),
    "an error event of words": (answer(HOLD + event(b"boom", b"error")), "boom", "Hold"),
    "an error object": (answer(HOLD + event({"object": "error", "message": "boom"}) + DONE), "boom", "Hold"),
    "an error in JSON": (answer(NO, content_type=JSON), "no such luck", ""),
    "an error in JSON as a stream": (answer(NO), "no such luck", ""),
}


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize(("raw", "words", "before"), WRONG.values(), ids=WRONG.keys())
async def test_error_within_an_answer_is_told_in_the_providers_words(
    raw: bytes, words: str, before: str, timing: Timing
) -> None:
    once = {"max_attempts": 1}
    async with RawProvider(raw, timing=timing) as provider, ScriptedWorld(provider, retry=once) as world:
        reading = await asked(world)
        assert text(reading) == before
        assert outcome(reading.end) == ("incomplete" if before else "failed", "upstream_error")
        assert reading.end is not None
        assert reading.end.error is not None
        assert words in reading.end.error.message


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"detail":[{"loc":["body","x"],"msg":"bad x"}]}', "x: bad x"),
        (b'{"detail":"bad x"}', "bad x"),
        (b'{"object":"error","message":"bad x","code":400}', "bad x"),
        (b'{"message":"bad x"}', "bad x"),
        (b'[{"error":{"message":"bad x"}}]', "bad x"),
        (b'{"error":{"message":"' + b"x" * 200_000 + b'"}}', "status 422"),
    ],
)
async def test_refusal_of_any_shape_keeps_its_words_in_bounds(body: bytes, words: str, streaming: bool) -> None:
    raw = answer(body, content_type=JSON, status=422)
    async with RawProvider(raw) as provider, ScriptedWorld(provider) as world:
        reading = Reading(launch(world.gateway, request(stream=streaming)))
        error = (await ended(reading.stream)).error
        assert error is not None
        assert (error.code, error.status, len(provider.heads)) == ("upstream_status", 422, 1)
        assert words in error.message
        assert len(error.message) < 1100


def request(**fields: Any) -> bytes:
    return json.dumps(
        {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "hi"}], **fields}
    ).encode()


#: What cannot be read, and would be no better at a second try.
UNREADABLE = {
    "gzip": answer(gzip.compress(WHOLE + DONE), b"content-encoding: gzip"),
    "said to be gzip": answer(WHOLE + DONE, b"content-encoding: gzip"),
    "gzip that is not said": answer(gzip.compress(WHOLE + DONE)[:3] + b"\xff" * 20, content_type=JSON),
    "HTML": answer(b"<html>Hold</html>", content_type=b"text/html"),
    "a large head": b"HTTP/1.1 200 X\r\nx: " + b"x" * 70_000 + b"\r\n\r\n",
    "two lengths": answer(WHOLE + DONE, b"transfer-encoding: chunked"),
    "an unknown coding": b"HTTP/1.1 200 X\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
    "no HTTP": b"Hold fast\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("timing", ["together", "apart"])
@pytest.mark.parametrize("raw", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_answer_that_cannot_be_read_is_asked_for_once_at_its_endpoint(raw: bytes, timing: Timing) -> None:
    async with RawProvider(raw, timing=timing) as provider, ScriptedWorld(provider) as world:
        reading = await asked(world)
        assert outcome(reading.end) == ("failed", "upstream_malformed")
        assert (reading.entries, len(provider.heads)) == ([], 1)


async def test_answers_are_asked_for_without_any_coding() -> None:
    async with RawProvider(answer(WHOLE)) as provider, ScriptedWorld(provider) as world:
        await asked(world)
        assert b"\r\naccept-encoding: identity\r\n" in provider.heads[0]


async def test_event_stream_to_a_request_for_a_completion_is_put_together() -> None:
    async with RawProvider(answer(WHOLE + DONE)) as provider, ScriptedWorld(provider) as world:
        reading = Reading(launch(world.gateway, request(stream=False)))
        assert outcome(await ended(reading.stream)) == ("completed", None)
        reading.read()
        (entry,) = reading.entries
        assert json.loads(entry)["choices"][0]["message"]["content"] == "Hold fast"
        assert len(provider.heads) == 1


async def test_redirection_says_where_it_leads_but_not_to_which_host(caplog: pytest.LogCaptureFixture) -> None:
    raw = answer(b"", b"location: http://10.0.0.7/v2/chat/completions?key=secret", status=307)
    async with RawProvider(raw) as provider, ScriptedWorld(provider) as world:
        reading = await asked(world)
        assert reading.end is not None
        assert reading.end.error is not None
        message = reading.end.error.message
        assert "/v2/chat/completions on another host" in message
        assert "10.0.0.7" not in message
        assert len(provider.heads) == 1
    assert "redirects to 'http://10.0.0.7/v2/chat/completions'" in caplog.text
    assert "secret" not in caplog.text


async def test_provider_that_redirects_is_passed_over() -> None:
    raw = answer(b"", b"location: https://example.test/v1/chat/completions", status=301)
    async with (
        RawProvider(raw) as moved,
        RawProvider(answer(WHOLE)) as spare,
        ScriptedWorld(moved, spare) as world,
    ):
        reading = await asked(world)
        assert (text(reading), outcome(reading.end)) == ("Hold fast", ("completed", None))
        assert len(moved.heads) == 1


async def test_choice_that_is_cut_makes_the_answer_incomplete() -> None:
    body = HOLD + chunk("Hold", index=1) + STOP + DONE
    async with RawProvider(answer(body)) as provider, ScriptedWorld(provider) as world:
        reading = Reading(launch(world.gateway, request(n=2)))
        assert outcome(await ended(reading.stream)) == ("incomplete", "upstream_truncated")


# -- time ----------------------------------------------------------------------------------------------


async def test_silence_behind_the_finish_reason_is_not_waited_out() -> None:
    """And the connection, on which more may come, is not lent again."""
    raw = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n" + WHOLE
    async with RawProvider(raw) as provider, ScriptedWorld(provider) as world:
        async with asyncio.timeout(5):
            reading = await asked(world)
        assert (text(reading), outcome(reading.end)) == ("Hold fast", ("completed", None))
        await eventually(lambda: provider.closed == 1)
        assert not world.pool.connections


async def test_thinking_behind_a_first_sign_of_life_may_take_as_long_as_the_first_byte() -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    raw = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n: hello\n\n" + role
    settings = {"timeouts": {"first_byte": 0.6, "idle": 0.1}}
    started = asyncio.get_running_loop().time()
    async with (
        RawProvider(raw) as silent,
        RawProvider(answer(WHOLE)) as spare,
        ScriptedWorld(silent, spare, settings=settings) as world,
    ):
        reading = await asked(world)
        assert asyncio.get_running_loop().time() - started >= 0.6
        assert reading.end is not None
        assert [attempt.error for attempt in reading.end.attempts] == ["idle_timeout", None]
        assert (text(reading), outcome(reading.end)) == ("Hold fast", ("completed", None))


# -- connections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 20_000_000])
@pytest.mark.parametrize("status", [400, 413, 429])
async def test_connection_with_a_request_that_was_not_read_is_not_lent_again(status: int, size: int) -> None:
    refusal = answer(NO, content_type=JSON, status=status)
    async with (
        RawProvider(refusal, reads=False) as provider,
        ScriptedWorld(provider, retry={"max_attempts": 1}) as world,
    ):
        large = Reading(launch(world.gateway, request(user="x" * size)))
        assert (await ended(large.stream)).status == "failed"
        async with asyncio.timeout(DEADLINE / 2):
            assert (await world.ask()).status == "failed"
        assert provider.seen == [1, 2]


@pytest.mark.parametrize("tls", [False, True])
async def test_connection_whose_request_was_not_sent_whole_is_not_lent_again(tls: bool) -> None:
    """The answer is complete, and good; but the next request would stand behind the rest of this one."""
    async with RawProvider(answer(WHOLE + DONE), reads=False, tls=tls) as provider:
        secure = {"base_url": f"https://127.0.0.1:{provider.port}/v1", "ca_file": ca_file()}
        async with ScriptedWorld(provider, settings=secure if tls else None) as world:
            large = Reading(launch(world.gateway, request(user="x" * 20_000_000)))
            assert outcome(await ended(large.stream)) == ("completed", None)
            async with asyncio.timeout(DEADLINE / 2):
                assert outcome(await world.ask()) == ("completed", None)
            assert provider.seen == [1, 2]


async def test_connection_is_lent_again_behind_a_small_refusal() -> None:
    refusal = answer(NO, content_type=JSON, status=422)
    async with RawProvider(refusal) as provider, ScriptedWorld(provider) as world:
        for _ in range(2):
            await world.ask()
        assert provider.seen == [1, 1]


async def test_provider_that_wants_calm_gets_a_new_connection_and_no_stream_suffers() -> None:
    settings = {"streams_per_connection": 8, "spread": 1}
    async with await World.start("h2c", settings=settings) as world:
        world.provider.arm(f.Goaway(error_code=11, after_streams=6))
        running = await world.stream(tokens=20, interval_ms=10).first()
        for _ in range(5):
            (await world.stream(tokens=100, interval_ms=20).first()).stream.cancel("not needed")
        assert await running.outcome() == ("completed", None)
        assert await world.stream().outcome() == ("completed", None)
        await eventually(lambda: world.pool.goaways == 1)
        assert (world.health.retries, world.health.breaker) == (0, "closed")
        assert world.provider.statistics().connections == 2


async def test_provider_that_demands_http_1_1_gets_it_from_then_on() -> None:
    async with await World.start("h2tls") as world:
        world.provider.arm(f.ResetStreams(after_streams=1, error_code=13))
        first = world.stream()
        assert await first.outcome() == ("completed", None)
        assert await world.stream().outcome() == ("completed", None)
        assert {connection.protocol for connection in world.pool.connections} == {"http/1.1"}
        assert world.provider.statistics().connections == 2
