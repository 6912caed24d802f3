"""Attacks over WebSocket sessions from a tenant with a key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator

from chaos.hostile.attack import From, attack
from chaos.hostile.requests import LARGEST, MIB, create, encoded, many_objects
from chaos.hostile.wire import CONTINUATION, PING, TEXT, Arena, Line, frame, open_frame


@contextlib.asynccontextmanager
async def _reading(line: Line) -> AsyncIterator[None]:
    """Read and forget meanwhile."""
    task = asyncio.create_task(line.discard())
    try:
        yield
    finally:
        task.cancel()


async def _flood(arena: Arena, data: bytes, *, sessions: int, reads: bool = True) -> None:
    """Send the same over sessions as fast as it is taken; without `reads`, stop after 5 s in which it is not."""

    async def visit() -> None:
        async with await arena.websocket() as line:
            if reads:
                async with _reading(line):
                    while True:
                        await line.send(data)
            while True:
                try:
                    async with asyncio.timeout(5):
                        await line.send(data)
                except TimeoutError:
                    arena.tally.notes["unread"] += 1
                    await line.gone()

    await arena.crowd(sessions, visit)


@attack("refused-creates", From.KEY, sent=100_000, proofs=("welcome",))
async def refused_creates(arena: Arena) -> None:
    """Create with a model that does not exist, as fast as it is taken, on one session."""
    request = encoded().replace(b'"demo"', b'"none"')
    await _flood(arena, b"".join(frame(TEXT, create(request, f"r-{n}")) for n in range(500)), sessions=1)


@attack("refused-creates-unread", From.KEY, sent=50_000, proofs=("welcome",))
async def refused_creates_unread(arena: Arena) -> None:
    """Create with a model that does not exist on 10 sessions, and read no error."""
    request = encoded().replace(b'"demo"', b'"%b"' % (b"n" * 2000))
    data = b"".join(frame(TEXT, create(request, f"r-{n}")) for n in range(200))
    await _flood(arena, data, sessions=10, reads=False)


@attack("empty-pings", From.KEY, sent=50_000, proofs=("welcome",))
async def empty_pings(arena: Arena) -> None:
    """Send empty Ping frames as fast as they are taken on one session."""
    await _flood(arena, frame(PING) * 5000, sessions=1)


@attack("byte-fragments", From.KEY, sent=50_000, proofs=("welcome",))
async def byte_fragments(arena: Arena) -> None:
    """Send messages in fragments of one byte on 2 sessions."""
    text = b'{"type":"ping","t":"' + b"x" * 4000 + b'"}'
    middle = b"".join(frame(CONTINUATION, text[n : n + 1], fin=False) for n in range(1, len(text) - 1))
    await _flood(
        arena,
        frame(TEXT, text[:1], fin=False) + middle + frame(CONTINUATION, text[-1:]),
        sessions=2,
    )


@attack("pings-unread", From.KEY, sent=50_000, proofs=("welcome",))
async def pings_unread(arena: Arena) -> None:
    """Send `ping` messages whose `t` has 4 MiB on 4 sessions, and read no `pong`."""
    await _flood(arena, frame(TEXT, b'{"type":"ping","t":"%b"}' % (b"t" * 4 * MIB)), sessions=4, reads=False)


@attack("small-pings-unread", From.KEY, sent=50_000, proofs=("welcome",))
async def small_pings_unread(arena: Arena) -> None:
    """Send small `ping` messages and Ping frames on 10 sessions, and read no answer."""
    data = (frame(TEXT, b'{"type":"ping","t":"12345678"}') + frame(PING, b"x" * 125)) * 500
    await _flood(arena, data, sessions=10, reads=False)


@attack("partial-messages", From.KEY, sent=1_000_000, proofs=("welcome",))
async def partial_messages(arena: Arena) -> None:
    """Keep a message of nearly the largest size unfinished on each of 50 sessions, which pings keep alive."""
    part = bytes(MIB // 2)

    async def visit() -> None:
        async with await arena.websocket() as line, _reading(line):
            await line.send(frame(TEXT, b"{", fin=False))
            for _ in range(LARGEST // len(part)):
                await line.frame(CONTINUATION, part, fin=False)
            while True:
                await line.frame(PING)
                await asyncio.sleep(0.5)

    await arena.crowd(50, visit)


@attack("partial-frames", From.KEY, sent=1_000_000, proofs=("welcome",))
async def partial_frames(arena: Arena) -> None:
    """Begin frames of nearly the largest size on 50 sessions, and then send a byte each half second."""
    part = bytes(MIB // 2)

    async def visit() -> None:
        async with await arena.websocket() as line, _reading(line):
            await line.send(open_frame(TEXT, LARGEST))
            for _ in range(LARGEST // len(part)):
                await line.send(part)
            while True:
                await line.send(b"x")
                await asyncio.sleep(0.5)

    await arena.crowd(50, visit)


@attack("session-json", From.KEY, sent=1_000_000, proofs=("welcome",))
async def session_json(arena: Arena) -> None:
    """Create with the largest list of empty objects as messages on 2 sessions."""
    message = frame(TEXT, create(many_objects(), "r"))

    async def visit() -> None:
        async with await arena.websocket() as line:
            while True:
                await line.send(message)
                await line.hear("accepted")

    await arena.crowd(2, visit)


@attack("large-types", From.KEY, sent=1_000_000, proofs=("welcome",))
async def large_types(arena: Arena) -> None:
    """Send messages with the largest `type`, which an error might quote, on 2 sessions."""
    data = frame(TEXT, b'{"type":"%b"}' % (b"t" * (LARGEST - 100)))

    async def visit() -> None:
        async with await arena.websocket() as line, _reading(line):
            while True:
                await line.send(data)

    await arena.crowd(2, visit)


@attack("session-ids", From.KEY, sent=10_000, proofs=("accepted",))
async def session_ids(arena: Arena) -> None:
    """Create with new request ids as fast as the key's limits let it, on 4 sessions."""
    request = encoded(sim={"tokens": 1, "interval_ms": 0, "ttft_ms": 0})

    async def visit() -> None:
        async with await arena.websocket() as line:
            while True:
                await line.frame(TEXT, create(request, os.urandom(100).hex()))
                await line.hear("accepted")

    await arena.crowd(4, visit)


@attack("ended-logs", From.KEY, sent=1_000, proofs=("accepted",))
async def ended_logs(arena: Arena) -> None:
    """Hold logs of 5 MB past their end: create with credit 0 on one session, and stay."""
    fault = {"kind": "huge_event", "bytes": 5_000_000}
    request = encoded(sim={"tokens": 2, "interval_ms": 0, "ttft_ms": 0, "fault": fault})

    async def visit() -> None:
        async with await arena.websocket() as line:
            while True:
                message = b'{"type":"create","request_id":"%b","credit":0,"request":%b}'
                await line.frame(TEXT, message % (os.urandom(8).hex().encode(), request))
                if (await line.hear("accepted"))["type"] == "error":
                    await asyncio.sleep(0.2)
                await asyncio.sleep(0.05)

    await arena.crowd(1, visit)


@attack("unread-sessions", From.KEY, sent=1_000, proofs=("welcome",))
async def unread_sessions(arena: Arena) -> None:
    """Create streams of megabytes without credit on 20 sessions, and read nothing."""
    fault = {"kind": "huge_event", "bytes": 2_000_000}
    request = encoded(sim={"tokens": 20_000, "interval_ms": 0, "ttft_ms": 0, "fault": fault})

    async def visit() -> None:
        async with await arena.websocket() as line:
            for number in range(4):
                await line.frame(TEXT, create(request, f"{os.urandom(8).hex()}-{number}"))
            await line.gone()

    await arena.crowd(20, visit)


@attack("acks", From.KEY, sent=50_000, proofs=("welcome",))
async def acks(arena: Arena) -> None:
    """Acknowledge 1,024 streams that nobody has, as fast as it is taken."""
    streams = {f"st_{os.urandom(16).hex()}": 2**52 for _ in range(1024)}
    await _flood(arena, frame(TEXT, json.dumps({"type": "ack", "streams": streams}).encode()), sessions=1)


@attack("credits", From.KEY, sent=50_000, proofs=("welcome",))
async def credits_(arena: Arena) -> None:
    """Grant one byte of credit at a time to streams that do not run, as fast as it is taken."""
    data = b"".join(frame(TEXT, b'{"type":"credit","stream":"st_%d","bytes":1}' % n) for n in range(1000))
    await _flood(arena, data, sessions=1)


@attack("hellos", From.KEY, connections=5, sent=20_000, proofs=("welcome",))
async def hellos(arena: Arena) -> None:
    """Resume 1,024 streams that nobody has in each hello, and come back, from 4 places."""
    streams = [{"stream": f"st_{os.urandom(16).hex()}", "after": 5, "epoch": 1} for _ in range(1024)]

    async def visit() -> None:
        async with await arena.websocket(hello=False) as line:
            await line.say(type="hello", version=1, streams=streams)
            await line.hear("welcome")

    await arena.crowd(4, visit)


@attack("attach-churn", From.KEY, sent=5_000, proofs=("accepted",))
async def attach_churn(arena: Arena) -> None:
    """Attach to an ended log of 1 MB and detach, over and over, on 2 sessions."""
    fault = {"kind": "huge_event", "bytes": 1_000_000}
    request = encoded(sim={"tokens": 2, "interval_ms": 0, "ttft_ms": 0, "fault": fault})

    async def visit() -> None:
        async with await arena.websocket() as line:
            await line.frame(TEXT, create(request, os.urandom(8).hex()))
            stream = (await line.hear("accepted")).get("stream")
            pair = (
                json.dumps({"type": "attach", "stream": stream}),
                json.dumps({"type": "detach", "stream": stream}),
            )
            data = b"".join(frame(TEXT, each.encode()) for each in pair) * 20
            async with _reading(line):
                while True:
                    await line.send(data)

    await arena.crowd(2, visit)


@attack("cancels", From.KEY, sent=50_000, proofs=("welcome",))
async def cancels(arena: Arena) -> None:
    """Cancel request ids and streams that nobody has, as fast as it is taken."""
    data = b"".join(
        frame(TEXT, b'{"type":"cancel","request_id":"r-%d"}' % n)
        + frame(TEXT, b'{"type":"cancel","stream":"st_%d"}' % n)
        for n in range(500)
    )
    await _flood(arena, data, sessions=1)


@attack("bare-creates", From.KEY, connections=2, sent=5_000)
async def bare_creates(arena: Arena) -> None:
    """Send bare requests on WebSockets without the subprotocol, one after another, without reading."""
    data = frame(TEXT, encoded(sim={"tokens": 200, "interval_ms": 0, "ttft_ms": 0})) * 50

    async def visit() -> None:
        async with await arena.websocket(hello=False, subprotocol="none") as line:
            async with asyncio.timeout(5):
                while True:
                    await line.send(data)

    async def patient() -> None:
        with contextlib.suppress(TimeoutError):
            await visit()

    await arena.crowd(4, patient)


ATTACKS = (
    refused_creates,
    refused_creates_unread,
    empty_pings,
    byte_fragments,
    pings_unread,
    small_pings_unread,
    partial_messages,
    partial_frames,
    session_json,
    large_types,
    session_ids,
    ended_logs,
    unread_sessions,
    acks,
    credits_,
    hellos,
    attach_churn,
    cancels,
    bare_creates,
)
