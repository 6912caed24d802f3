"""Attacks over HTTP from a tenant with a key, within its limits and beyond them."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random

from chaos.hostile.attack import From, attack
from chaos.hostile.requests import LARGEST, MIB, deep, encoded, long_text, many_objects
from chaos.hostile.wire import Arena, Line


async def _ended_stream(arena: Arena, size: int) -> str:
    """Have a stream with an entry of `size` bytes generated; return its id."""
    fault = {"kind": "huge_event", "bytes": size}
    body = encoded(sim={"tokens": 2, "interval_ms": 0, "ttft_ms": 0, "fault": fault})
    async with await arena.connect() as line:
        await line.send(arena.post(body, {"connection": "close"}))
        stream = await _stream_of(arena, line)
        await line.discard()
    return stream


async def _stream_of(arena: Arena, line: Line) -> str:
    """Read the head of an answer; return the id of its stream."""
    head = await line.reader.readuntil(b"\r\n\r\n")
    arena.tally.notes[head[9:12].decode()] += 1
    _, found, behind = head.partition(b"holdfast-stream-id: ")
    if not found:
        raise ConnectionError("no stream")
    arena.tally.notes["stream"] += 1
    return behind.partition(b"\r\n")[0].decode()


@attack("key-json", From.KEY, sent=1_000_000)
async def key_json(arena: Arena) -> None:
    """Post the largest list of empty objects as messages on 3 connections."""
    request = arena.post(many_objects())

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(request)
            await line.answer()

    await arena.crowd(3, visit)


@attack("deep-json", From.KEY, sent=1_000_000)
async def deep_json(arena: Arena) -> None:
    """Post millions of nested lists, on 2 connections."""
    request = arena.post(deep())

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(request)
            await line.answer()

    await arena.crowd(2, visit)


@attack("long-prompts", From.KEY, sent=1_000_000)
async def long_prompts(arena: Arena) -> None:
    """Ask with the largest good prompts on 40 connections at a time, more than may run."""
    request = arena.post(long_text())

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(request)
            await line.discard()

    await arena.crowd(40, visit)


@attack("key-bodies", From.KEY, sent=1_000_000)
async def key_bodies(arena: Arena) -> None:
    """Send the largest bodies with a good key on 100 connections, all but the last byte, and keep them."""
    head = arena.head("POST", "/v1/chat/completions", {"content-length": LARGEST})
    almost = bytes(LARGEST - 1)

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(head)
            await line.send(almost)
            arena.tally.notes["held"] += 1
            await line.gone()

    await arena.crowd(100, visit)


@attack("compressed-bodies", From.KEY, sent=20_000)
async def compressed_bodies(arena: Arena) -> None:
    """Post bodies that say they are compressed: bombs of gzip, and none."""
    bomb = gzip.compress(bytes(16 * MIB))
    codings = ("gzip", "deflate", "br", "zstd", "gzip, gzip", "identity")
    requests = [arena.post(bomb, {"content-encoding": coding}) for coding in codings]

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(random.choice(requests))
            await line.answer()

    await arena.crowd(4, visit)


@attack("pipelined-logs", From.KEY, sent=2_000, proofs=("stream",))
async def pipelined_logs(arena: Arena) -> None:
    """Pipeline requests for a log of 1 MB as fast as they are taken on 4 connections, and read no answer."""

    async def visit() -> None:
        stream = await _ended_stream(arena, 1_000_000)
        many = arena.head("GET", f"/v1/streams/{stream}?live=none") * 500
        async with await arena.connect() as line:
            async with asyncio.timeout(5):
                while True:
                    await line.send(many)

    async def patient() -> None:
        try:
            await visit()
        except TimeoutError:
            arena.tally.notes["unread"] += 1

    await arena.crowd(4, patient)


@attack("unread-sse", From.KEY, sent=1_000, proofs=("in",))
async def unread_sse(arena: Arena) -> None:
    """Ask for answers of megabytes as SSE on 20 connections, and read nothing."""
    fault = {"kind": "huge_event", "bytes": 2_000_000}
    body = encoded(sim={"tokens": 20_000, "interval_ms": 0, "ttft_ms": 0, "fault": fault})

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(arena.post(body))
            arena.tally.notes["in"] += 1
            await line.gone()

    await arena.crowd(20, visit)


@attack("sips", From.KEY, sent=1_000, proofs=("stream",))
async def sips(arena: Arena) -> None:
    """Read logs of 2 MB at a byte a second on 50 connections: as SSE, and as JSON."""

    async def visit() -> None:
        stream = await _ended_stream(arena, 2_000_000)
        await asyncio.gather(*(_sip(arena, stream, live) for live in ("sse", "none") * 5))

    await arena.crowd(5, visit)


async def _sip(arena: Arena, stream: str, live: str) -> None:
    async with await arena.connect() as line:
        await line.send(arena.head("GET", f"/v1/streams/{stream}?live={live}"))
        await line.sip(1.0)


@attack("long-polls", From.KEY, sent=1_000, connections=40, crowds=True)
async def long_polls(arena: Arena) -> None:
    """Take every connection that there is by long polls of one running stream."""
    body = encoded(sim={"tokens": 100_000, "interval_ms": 60_000, "ttft_ms": 0})
    async with await arena.connect() as line:
        await line.send(arena.post(body))
        stream = await _stream_of(arena, line)
        poll = arena.head("GET", f"/v1/streams/{stream}?live=long-poll&timeout=60&after=1")

        async def visit() -> None:
            async with await arena.connect() as polling:
                await polling.send(poll)
                await polling.answer()

        await arena.crowd(600, visit)


@attack("streams-left", From.KEY, connections=20, sent=5_000)
async def streams_left(arena: Arena) -> None:
    """Ask for generations that go on without their reader, and leave at once, from 8 places."""
    body = encoded(sim={"tokens": 50, "interval_ms": 10, "ttft_ms": 0})

    async def visit() -> None:
        headers = {"holdfast-on-disconnect": "continue", "holdfast-request-id": os.urandom(8).hex()}
        async with await arena.connect() as line:
            await line.send(arena.post(body, headers))
            await line.reader.read(1)

    await arena.crowd(8, visit)


@attack("readers-left", From.KEY, connections=20, sent=5_000)
async def readers_left(arena: Arena) -> None:
    """Ask, read a little, and cut, so that the generation is cancelled, from 8 places."""
    body = encoded(sim={"tokens": 1000, "interval_ms": 1, "ttft_ms": 0})

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(arena.post(body))
            await line.reader.read(2000)

    await arena.crowd(8, visit)


@attack("request-ids", From.KEY, sent=10_000)
async def request_ids(arena: Arena) -> None:
    """Ask with a new request id of 250 characters each time, as fast as it goes, on 8 connections."""
    body = encoded(stream=False, sim={"tokens": 1, "interval_ms": 0, "ttft_ms": 0})

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(arena.post(body, {"holdfast-request-id": os.urandom(125).hex()}))
                await line.answer()

    await arena.crowd(8, visit)


@attack("delete-flood", From.KEY, sent=20_000, proofs=("404",))
async def delete_flood(arena: Arena) -> None:
    """Cancel streams that do not exist, pipelined."""
    many = b"".join(arena.head("DELETE", f"/v1/streams/st_{os.urandom(16).hex()}") for _ in range(100))

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in range(100):
                    await line.answer()

    await arena.crowd(4, visit)


@attack("tokens-issued", From.KEY, sent=20_000, proofs=("200",))
async def tokens_issued(arena: Arena) -> None:
    """Have client tokens issued as fast as they are, with subjects of 256 characters."""
    body = json.dumps({"subject": "s" * 256, "expires_in": 3600}).encode()
    fields = {"content-length": str(len(body)), "content-type": "application/json"}
    many = (arena.head("POST", "/v1/client_tokens", fields) + body) * 50

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in range(50):
                    await line.answer()

    await arena.crowd(4, visit)


@attack("limits-flood", From.KEY, sent=20_000, proofs=("200",))
async def limits_flood(arena: Arena) -> None:
    """Ask for `/v1/limits` and `/v1/pool`, pipelined; each answer looks at every connection."""
    many = (arena.head("GET", "/v1/limits") + arena.head("GET", "/v1/pool")) * 50

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in range(100):
                    await line.answer()

    await arena.crowd(4, visit)


ATTACKS = (
    key_json,
    deep_json,
    long_prompts,
    key_bodies,
    compressed_bodies,
    pipelined_logs,
    unread_sse,
    sips,
    long_polls,
    streams_left,
    readers_left,
    request_ids,
    delete_flood,
    tokens_issued,
    limits_flood,
)
