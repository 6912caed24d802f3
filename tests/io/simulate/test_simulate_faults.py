"""Every fault of a request, by its effect on the bytes of an HTTP/1.1 connection."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from holdfast_tools.simulate.server import SimulatedProvider
from holdfast_tools.simulate.text import text
from tests.support.simulate_client import RawConnection, chat_body, contents

TOKENS = 10


def body_with(kind: str, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    return chat_body({"tokens": TOKENS, "fault": {"kind": kind, **fields}}, stream=stream)


async def silent(client: RawConnection, seconds: float = 0.05) -> bool:
    """Whether nothing comes and the connection stays open."""
    try:
        async with asyncio.timeout(seconds):
            return not await client.reader.read(1) and False
    except TimeoutError:
        return True


@pytest.mark.parametrize("after", [0, 4, TOKENS])
async def test_stall_sends_k_tokens_and_keeps_the_connection_open(provider: SimulatedProvider, after: int) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("stall", after_tokens=after))
        await client.head()
        got = await client.chunk()
        if after:
            got += await client.chunk()
        assert contents(got) == text(7, after)
        assert b'finish_reason":"' not in got
        assert await silent(client)
        assert provider.statistics().streaming == 1
    assert (await provider.until(lambda s: s.cancelled == 1)).failed == 0


@pytest.mark.parametrize("after", [0, 4])
async def test_end_early_ends_the_chunks_without_done(provider: SimulatedProvider, after: int) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("end_early", after_tokens=after))
        await client.head()
        body = await client.chunks()
        assert contents(body) == text(7, after)
        assert b"[DONE]" not in body
        client.post(chat_body({"tokens": 1}))  # the connection is still good
        assert (await client.head())[0] == 200
        await client.chunks()
    assert provider.statistics().failed == 1


@pytest.mark.parametrize("after", [0, 4])
async def test_cut_closes_without_the_last_chunk(provider: SimulatedProvider, after: int) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("cut", after_tokens=after))
        await client.head()
        body, end = await client.rest()
    assert end == "fin"
    assert not body.endswith(b"0\r\n\r\n")
    assert body.count(b'"content":') == after + 1
    assert provider.statistics().failed == 1


@pytest.mark.parametrize("after", [0, 4])
async def test_reset_sends_k_tokens_then_rst(provider: SimulatedProvider, after: int) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("reset", after_tokens=after))
        body, end = await client.rest()
    assert end == "rst"
    assert body.count(b'"content":') in (after + 1, 0)  # an RST may overtake what its reader has not read
    assert provider.statistics().failed == 1


async def test_paced_reset_shows_its_tokens_before_the_rst(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 9, "interval_ms": 30, "fault": {"kind": "reset", "after_tokens": 3}}))
        await client.head()
        got = b""
        while len(contents(got)) < len(text(7, 2)):
            got += await client.chunk()
        assert contents(got) in (text(7, 2), text(7, 3))
        assert (await client.rest())[1] == "rst"


@pytest.mark.parametrize(("kind", "expected"), [("cut", "fin"), ("reset", "rst")])
async def test_connection_that_ends_before_the_head_shows_nothing(
    provider: SimulatedProvider, kind: str, expected: str
) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with(kind, before_head=True))
        assert await client.rest() == (b"", expected)


@pytest.mark.parametrize("stream", [True, False])
async def test_status_answers_with_an_openai_error(provider: SimulatedProvider, stream: bool) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("status", status=503, message="no room", stream=stream))
        status, headers = await client.head()
        body = await client.reader.readexactly(int(headers["content-length"]))
    assert status == 503
    assert "retry-after" not in headers
    assert json.loads(body)["error"] == {
        "message": "no room",
        "type": "server_error",
        "param": None,
        "code": "simulated_503",
    }


@pytest.mark.parametrize(("fields", "expected"), [({"retry_after": 7}, "7"), ({"retry_after": "soon"}, "soon")])
async def test_status_carries_retry_after(
    provider: SimulatedProvider, fields: dict[str, Any], expected: str
) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("status", status=429, **fields))
        status, headers = await client.head()
    assert (status, headers["retry-after"]) == (429, expected)


async def test_status_carries_retry_after_as_a_date(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("status", status=429, retry_after=60, retry_after_form="date"))
        _, headers = await client.head()
    assert 55 < parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time() <= 60


async def test_times_limits_a_fault_to_the_first_requests_of_a_key(provider: SimulatedProvider) -> None:
    statuses = []
    async with await RawConnection.open(provider) as client:
        for key in ("a", "a", "a", "b"):
            client.post(body_with("status", status=500, times=2) | {"user": key, "stream": False})
            status, headers = await client.head()
            await client.reader.readexactly(int(headers["content-length"]))
            statuses.append(status)
    assert statuses == [500, 500, 200, 500]
    assert provider.statistics().request_faults == {"status": 3}


@pytest.mark.parametrize("done", [False, True])
async def test_error_event_ends_the_stream(provider: SimulatedProvider, done: bool) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("error_event", after_tokens=4, message="boom", code="x", done=done))
        await client.head()
        events = (await client.chunks()).split(b"\n\n")
    tail = [b"data: [DONE]", b""] if done else [b""]
    assert events[6:] == tail
    error = {"message": "boom", "type": "server_error", "param": None, "code": "x"}
    assert json.loads(events[5][6:]) == {"error": error}


@pytest.mark.parametrize(
    ("variant", "event"),
    [
        ("invalid_json", b'data: {"choices":[{"index":0,"delta":{"content":"unclosed}'),
        ("breakout", b'data: {"a":1},{"b":2}'),
        ("invalid_utf8", b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3("}}]}'),
        ("rubbish", b"\x00\x01<html><body>502 Bad Gateway</body></html>\xff"),
    ],
)
async def test_malformed_event_stands_between_regular_ones(
    provider: SimulatedProvider, variant: str, event: bytes
) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("malformed", after_tokens=4, variant=variant))
        await client.head()
        events = (await client.chunks()).split(b"\n\n")
    assert events.pop(5) == event
    assert contents(b"\n\n".join(events)) == text(7, TOKENS)
    assert events[-2] == b"data: [DONE]"


async def test_slow_headers_drip_the_head(provider: SimulatedProvider) -> None:
    loop = asyncio.get_running_loop()
    async with await RawConnection.open(provider) as client:
        start = loop.time()
        client.post(body_with("slow_headers", ms=150))
        first = await client.reader.read(1 << 16)
        reads = 1
        while b"\r\n\r\n" not in first:
            first += await client.reader.read(1 << 16)
            reads += 1
        assert loop.time() - start >= 0.12
        assert reads > 5
        rest = first.partition(b"\r\n\r\n")[2]
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await client.reader.read(1 << 16)
    assert rest.count(b'"content":') == TOKENS + 1


async def test_drip_writes_the_body_byte_by_byte(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        reads: list[int] = []
        client.post(chat_body({"tokens": 0, "fault": {"kind": "drip", "gap_ms": 1}}))
        await client.head()
        body = b""
        while not body.endswith(b"\r\n0\r\n\r\n"):
            part = await client.reader.read(1 << 16)
            reads.append(len(part))
            body += part
    assert len(reads) > len(body) / 4  # the reader may find a few bytes together
    assert b"".join(line for line in body.split(b"\r\n")[1::2]).endswith(b"data: [DONE]\n\n")
    assert (await provider.until(lambda s: s.completed == 1)).failed == 0


async def test_client_that_leaves_a_drip_is_counted_as_cancelled(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 500, "interval_ms": 1, "fault": {"kind": "drip", "gap_ms": 5}}))
        await client.head()
        await client.reader.readexactly(5)
    await provider.until(lambda s: s.cancelled == 1)


async def test_huge_event_has_the_size_that_was_asked_for(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("huge_event", after_tokens=4, bytes=3_000_000))
        await client.head()
        events = (await client.chunks()).split(b"\n\n")
    assert len(events[5]) + 2 == 3_000_000
    del events[5]
    assert contents(b"\n\n".join(events)) == text(7, TOKENS)


async def test_no_answer_takes_the_request_and_is_silent(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("no_answer"))
        await provider.until(lambda s: s.streaming == 1)
        assert await silent(client)
    await provider.until(lambda s: s.cancelled == 1)


@pytest.mark.parametrize(("kind", "expected"), [("cut", "fin"), ("reset", "rst")])
async def test_answer_that_does_not_stream_breaks_off_in_its_middle(
    provider: SimulatedProvider, kind: str, expected: str
) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with(kind, stream=False, after_tokens=3))
        body, end = await client.rest()
    assert end == expected
    assert not body.endswith(b"0\r\n\r\n")
    assert b"usage" not in body


async def test_answer_that_does_not_stream_ends_early_in_its_middle(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("end_early", stream=False, after_tokens=3))
        await client.head()
        with pytest.raises(json.JSONDecodeError):
            json.loads(await client.chunks())


async def test_answer_that_does_not_stream_makes_an_error_event_a_status(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(body_with("error_event", stream=False, message="boom"))
        assert (await client.head())[0] == 500
