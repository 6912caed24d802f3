"""Attacks from a page: a client token whose key has narrow limits."""

from __future__ import annotations

import asyncio
import json
import os
import random

from chaos.hostile.attack import From, attack
from chaos.hostile.requests import chat, create, encoded, many_objects
from chaos.hostile.wire import BINARY, CONTINUATION, PING, TEXT, Arena, Line, frame


@attack("token-json", From.TOKEN, sent=1_000_000)
async def token_json(arena: Arena) -> None:
    """Post the largest list of empty objects as messages, beyond every limit of the token, on 2 connections."""
    request = arena.post(many_objects())

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(request)
            await line.answer()

    await arena.crowd(2, visit)


@attack("token-session-json", From.TOKEN, sent=1_000_000, proofs=("welcome",))
async def token_session_json(arena: Arena) -> None:
    """Create over a session with the largest list of empty objects as messages, over and over."""
    message = frame(TEXT, create(many_objects(), "r"))

    async def visit() -> None:
        async with await arena.websocket() as line:
            while True:
                await line.send(message)
                await line.hear("accepted")

    await arena.crowd(2, visit)


@attack("token-misuse", From.TOKEN, sent=20_000, proofs=("403",))
async def token_misuse(arena: Arena) -> None:
    """Ask with a client token for what servers and the admin may, and for streams of others, pipelined."""
    asked = [
        *(("GET", path) for path in ("/v1/limits", "/v1/pool", "/v1/admin/keys", "/metrics", "/v1/nothing")),
        *(("GET", f"/v1/streams/st_{os.urandom(16).hex()}?live=none") for _ in range(10)),
        *(("DELETE", f"/v1/streams/st_{os.urandom(16).hex()}") for _ in range(10)),
    ]
    many = b"".join(arena.head(method, path) for method, path in asked)

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in asked:
                    await line.answer()

    await arena.crowd(4, visit)


@attack("pings-before-hello", From.TOKEN, sent=50_000, proofs=("101",))
async def pings_before_hello(arena: Arena) -> None:
    """Send empty Ping frames before the hello as fast as they are taken."""
    many = frame(PING) * 5000

    async def visit() -> None:
        async with await arena.websocket(hello=False) as line:
            reading = asyncio.create_task(line.discard())
            try:
                while True:
                    await line.send(many)
            finally:
                reading.cancel()

    await arena.crowd(2, visit)


@attack("malformed-frames", From.TOKEN, connections=10, proofs=("101",))
async def malformed_frames(arena: Arena) -> None:
    """Break RFC 6455 and JSON in a dozen ways, and come back after each."""
    samples = [
        frame(BINARY, b"x"),
        frame(0x3, b"x"),
        frame(CONTINUATION, b"x"),
        bytes((0xF1, 0x80)) + bytes(4),
        bytes((0x81, 0x05)) + b"hello",
        frame(PING, b"x" * 200),
        frame(TEXT, b"\xff\xfe"),
        frame(TEXT, b"{" * 10_000),
        frame(TEXT, b'{"type":"hello","version":"1"}'),
        bytes((0x81, 0xFF)) + b"\xff" * 8 + bytes(4),
        frame(TEXT, b'{"type":"hel', fin=False) + frame(TEXT, b"again"),
        frame(0x8, b"\x00"),
    ]

    async def visit() -> None:
        async with await arena.websocket(hello=random.random() < 0.5) as line:
            await line.send(random.choice(samples))
            async with asyncio.timeout(0.5):
                await line.discard()

    await arena.crowd(3, visit)


@attack("session-churn", From.TOKEN, connections=10, proofs=("welcome",))
async def session_churn(arena: Arena) -> None:
    """Open sessions and cut them, from 4 places."""

    async def visit() -> None:
        async with await arena.websocket():
            pass

    await arena.crowd(4, visit)


@attack("token-rate", From.TOKEN, sent=20_000, proofs=("429",))
async def token_rate(arena: Arena) -> None:
    """Ask for completions far beyond the token's rates, pipelined, and read the refusals."""
    many = arena.post(encoded(stream=False, sim={"tokens": 1, "ttft_ms": 0})) * 50

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in range(50):
                    await line.answer()

    await arena.crowd(2, visit)


@attack("token-creates", From.TOKEN, sent=20_000, proofs=("error",))
async def token_creates(arena: Arena) -> None:
    """Create beyond the token's rates over a session as fast as it is taken, and read the refusals."""
    number = 0

    async def visit() -> None:
        nonlocal number
        async with await arena.websocket() as line:
            reading = asyncio.create_task(_count_errors(arena, line))
            try:
                while not reading.done():
                    number += 1
                    request = json.dumps(chat(sim={"tokens": 1})).encode()
                    await line.frame(TEXT, create(request, f"r-{number}"))
                reading.result()
            finally:
                reading.cancel()

    await arena.crowd(2, visit)


async def _count_errors(arena: Arena, line: Line) -> None:
    while True:
        _, payload = await line.message()
        if payload.startswith(b'{"type":"error"'):
            arena.tally.notes["error"] += 1


ATTACKS = (
    token_json,
    token_session_json,
    token_misuse,
    pings_before_hello,
    malformed_frames,
    session_churn,
    token_rate,
    token_creates,
)
