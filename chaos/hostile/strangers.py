"""Attacks from whoever reaches the port: no credential, or one that is not good."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct

from chaos.hostile.attack import From, attack
from chaos.hostile.requests import LARGEST, MIB, many_objects
from chaos.hostile.wire import PING, Arena, Line, frame

#: More sockets than the gateway takes connections.
MORE_THAN_ALL = 700


async def _crowded(arena: Arena, line: Line) -> None:
    """Stay until thrown out."""
    arena.tally.notes["in"] += 1
    await line.gone()


@attack("idle-sockets", From.STRANGER, connections=MORE_THAN_ALL // 2, sent=0, proofs=("in",), crowds=True)
async def idle_sockets(arena: Arena) -> None:
    """Take every connection that there is, say nothing, and come back when thrown out."""

    async def visit() -> None:
        async with await arena.connect_raw() as line:
            await _crowded(arena, line)

    await arena.crowd(MORE_THAN_ALL, visit)


@attack("slow-heads", From.STRANGER, connections=200, sent=500, crowds=True)
async def slow_heads(arena: Arena) -> None:
    """Send the head of a request byte by byte, one a second, on 300 connections."""
    head = arena.head("GET", "/v1/models", {"x-slow": "y" * 4000})

    async def visit() -> None:
        async with await arena.connect() as line:
            for place in range(len(head)):
                await line.send(head[place : place + 1])
                await asyncio.sleep(1)

    await arena.crowd(300, visit)


@attack("slow-bodies", From.STRANGER, connections=100, sent=500, crowds=True)
async def slow_bodies(arena: Arena) -> None:
    """Announce bodies of 1 MiB without a credential, and send them byte by byte, on 300 connections."""
    head = arena.head("POST", "/v1/chat/completions", {"content-length": MIB})

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(head)
            while True:
                await line.send(b"{")
                await asyncio.sleep(0.5)

    await arena.crowd(300, visit)


@attack("stranger-bodies", From.STRANGER, connections=40, sent=100_000)
async def stranger_bodies(arena: Arena) -> None:
    """Send the largest bodies without a credential on 100 connections, all but the last byte, and keep them."""
    head = arena.head("POST", "/v1/chat/completions", {"content-length": LARGEST})
    almost = bytes(LARGEST - 1)

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(head)
            await line.send(almost)
            arena.tally.notes["held"] += 1
            await line.gone()

    await arena.crowd(100, visit)


@attack("chunks-of-a-byte", From.STRANGER, sent=10_000)
async def chunks_of_a_byte(arena: Arena) -> None:
    """Send bodies in chunks of one byte without a credential, as fast as they are taken, on 4 connections."""
    head = arena.head("POST", "/v1/chat/completions", {"transfer-encoding": "chunked"})
    chunks = b"1\r\n \r\n" * 10_000

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(head)
            while True:
                await line.send(chunks)

    await arena.crowd(4, visit)


@attack("pipelined-probes", From.STRANGER, sent=50_000)
async def pipelined_probes(arena: Arena) -> None:
    """Pipeline `GET /healthz` as fast as they are taken on 4 connections, and read no answer."""
    many = arena.head("GET", "/healthz") * 500

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)

    await arena.crowd(4, visit)


@attack("pipelined-refusals", From.STRANGER, sent=50_000, proofs=("401",))
async def pipelined_refusals(arena: Arena) -> None:
    """Pipeline requests without a credential as fast as they are taken on 4 connections, and read the answers."""
    many = arena.head("GET", "/v1/models") * 100

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in range(100):
                    await line.answer()

    await arena.crowd(4, visit)


@attack("header-flood", From.STRANGER, sent=50_000)
async def header_flood(arena: Arena) -> None:
    """Send heads of a thousand fields, and heads that have no end, on 8 connections."""
    thousand = arena.head("GET", "/v1/models", {f"x-{number}": "y" * 40 for number in range(1000)})
    endless = arena.head("GET", "/v1/models")[:-2]
    fields = b"".join(b"y-%d: z\r\n" % number for number in range(5000))

    async def visit() -> None:
        async with await arena.connect() as line:
            if random.random() < 0.5:
                await line.send(thousand)
                await line.answer()
            else:
                await line.send(endless)
                while True:
                    await line.send(fields)

    await arena.crowd(8, visit)


@attack("connection-churn", From.STRANGER, connections=300, sent=0)
async def connection_churn(arena: Arena) -> None:
    """Connect and cut by RST as fast as it goes, from 8 places."""
    loop = asyncio.get_running_loop()

    async def visit() -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(sock, ("127.0.0.1", arena.port))
            arena.tally.connections += 1

    await arena.crowd(8, visit)


@attack("wrong-keys", From.STRANGER, sent=50_000, proofs=("401",))
async def wrong_keys(arena: Arena) -> None:
    """Guess keys, 50 at a time, on 4 connections."""

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                guesses = [{"authorization": f"Bearer hf_{os.urandom(24).hex()}"} for _ in range(50)]
                await line.send(b"".join(arena.head("GET", "/v1/limits", guess) for guess in guesses))
                for _ in guesses:
                    await line.answer()

    await arena.crowd(4, visit)


@attack("token-garbage", From.STRANGER, sent=50_000)
async def token_garbage(arena: Arena) -> None:
    """Show things that look like client tokens and JWTs of 12 kB: other algorithms, no signature, deep claims."""
    odd = ["eyJhbGciOiJub25lIn0", "eyJhbGciOiJIUzI1NiIsInR5cCI6ImhvbGRmYXN0LWNsaWVudCtqd3QifQ", "e" * 4000]
    heads = []
    for number in range(40):
        claims = os.urandom(3000).hex() if number % 2 else "eyJ" * 2000
        value = f"{'hft_' if number % 3 else ''}{odd[number % 3]}.{claims}.{os.urandom(32).hex()}"
        heads.append(arena.head("GET", "/v1/models", {"authorization": f"Bearer {value}"}))
    many = b"".join(heads)

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in heads:
                    await line.answer()

    await arena.crowd(4, visit)


@attack("preflights", From.STRANGER, sent=50_000)
async def preflights(arena: Arena) -> None:
    """Ask for CORS preflights of a thousand origins, pipelined, and read the answers."""
    many = b"".join(
        arena.head(
            "OPTIONS",
            "/v1/chat/completions",
            {"origin": f"https://{number}.example", "access-control-request-method": "POST"},
        )
        for number in range(100)
    )

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(many)
                for _ in range(100):
                    await line.answer()

    await arena.crowd(4, visit)


@attack("upgrade-flood", From.STRANGER, connections=20, proofs=("401",))
async def upgrade_flood(arena: Arena) -> None:
    """Ask for WebSockets without a good credential, with tokens of garbage among the subprotocols."""

    async def visit() -> None:
        subprotocol = f"holdfast.v1, holdfast.token.hft_{os.urandom(200).hex()}"
        await arena.websocket(subprotocol=subprotocol)

    await arena.crowd(8, visit)


@attack("garbage", From.STRANGER, connections=20)
async def garbage(arena: Arena) -> None:
    """Send what is not HTTP/1.1: random bytes, the preface of HTTP/2, a TLS record, frames, long lines."""
    samples = [
        os.urandom(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
        b"\x16\x03\x01\x02\x00\x01" + os.urandom(500),
        frame(PING) * 200,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\r\n" * 10_000,
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
    ]

    async def visit() -> None:
        async with await arena.connect_raw() as line:
            await line.send(random.choice(samples))
            async with asyncio.timeout(0.5):
                await line.discard()

    await arena.crowd(16, visit)


@attack("chunk-extensions", From.STRANGER, sent=50_000)
async def chunk_extensions(arena: Arena) -> None:
    """Send chunks whose extensions have no end, on 4 connections."""
    head = arena.head("POST", "/v1/chat/completions", {"transfer-encoding": "chunked"})
    extension = b";name=" + b"v" * 65536

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(head + b"1")
            while True:
                await line.send(extension)

    await arena.crowd(4, visit)


@attack("trailers", From.STRANGER, sent=10_000)
async def trailers(arena: Arena) -> None:
    """Send trailers without end behind an empty body, on 4 connections."""
    head = arena.head("POST", "/v1/chat/completions", {"transfer-encoding": "chunked"})
    fields = b"".join(b"t-%d: v\r\n" % number for number in range(2000))

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(head + b"0\r\n")
            while True:
                await line.send(fields)

    await arena.crowd(4, visit)


@attack("half-closed", From.STRANGER, connections=50, crowds=True)
async def half_closed(arena: Arena) -> None:
    """Ask, close the own half, and stay, on 200 connections."""
    requests = [
        arena.head("GET", "/healthz"),
        arena.head("GET", "/v1/models"),
        arena.head("POST", "/v1/chat/completions", {"content-length": 100}),
    ]

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(random.choice(requests))
            line.half_close()
            await line.gone()

    await arena.crowd(200, visit)


@attack("expect-continue", From.STRANGER, connections=20, crowds=True)
async def expect_continue(arena: Arena) -> None:
    """Ask to be told to go on with the largest body, and send nothing, on 100 connections."""
    fields = {"content-length": str(LARGEST), "expect": "100-continue"}
    head = arena.head("POST", "/v1/chat/completions", fields)

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(head)
            await line.answer()
            await line.gone()

    await arena.crowd(100, visit)


@attack("other-hosts", From.STRANGER, sent=20_000)
async def other_hosts(arena: Arena) -> None:
    """Ask for other authorities, absolute targets and paths of 8 kB, pipelined."""
    targets = ["http://other.example/v1/models", "/" + "%2e/" * 2000, "*", f"/v1/streams/{'s' * 4000}"]
    heads = [
        arena.head("GET", target, {"host": "other.example"} if place % 2 else None)
        for place, target in enumerate(targets)
    ]

    async def visit() -> None:
        async with await arena.connect() as line:
            while True:
                await line.send(random.choice(heads))
                await line.answer()

    await arena.crowd(8, visit)


@attack("tls-half-open", From.STRANGER, connections=MORE_THAN_ALL // 2, sent=1000, proofs=("in",), needs_tls=True)
async def tls_half_open(arena: Arena) -> None:
    """Begin TLS handshakes on more connections than there are, and leave them half open."""
    # A ClientHello whose record says that 512 bytes come (RFC 8446 section 5.1), and of which 40 do.
    beginning = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(29)

    async def visit() -> None:
        async with await arena.connect_raw() as line:
            await line.send(beginning)
            await _crowded(arena, line)

    await arena.crowd(MORE_THAN_ALL, visit)


@attack("tls-churn", From.STRANGER, connections=20, proofs=("200",), needs_tls=True)
async def tls_churn(arena: Arena) -> None:
    """Shake hands, ask once, and leave, from 4 places."""
    request = arena.head("GET", "/healthz")

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(request)
            await line.answer()

    await arena.crowd(4, visit)


@attack("stranger-json", From.STRANGER, sent=100_000)
async def stranger_json(arena: Arena) -> None:
    """Send whole bodies of `{}`, the largest, without a credential, one after another, on 2 connections."""
    request = arena.post(many_objects())

    async def visit() -> None:
        async with await arena.connect() as line:
            await line.send(request)
            await line.answer()

    await arena.crowd(2, visit)


ATTACKS = (
    idle_sockets,
    slow_heads,
    slow_bodies,
    stranger_bodies,
    chunks_of_a_byte,
    pipelined_probes,
    pipelined_refusals,
    header_flood,
    connection_churn,
    wrong_keys,
    token_garbage,
    preflights,
    upgrade_flood,
    garbage,
    chunk_extensions,
    trailers,
    half_closed,
    expect_continue,
    other_hosts,
    stranger_json,
    tls_half_open,
    tls_churn,
)
