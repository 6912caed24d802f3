"""A client that sends as fast as it can must leave others their turns of the event loop, and their memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from holdfast.core.limits.budget import Kind
from holdfast.core.patience import CLOSED_PAST, SLOWED_PAST
from holdfast.core.websocket.frames import OP_CONTINUATION, OP_PING, OP_TEXT, frame_header, xor_mask
from holdfast.server.listener.turns import OWING, TURN, FairProtocol
from holdfast.server.listener.websocket import WebSocketProtocol
from tests.support.gateway_client import DEADLINE, Http, Session, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

HOST = b"host: localhost\r\n"
COMPLETIONS = b"/v1/chat/completions"
MASK = b"mask"
UPGRADE = (
    b"GET /v1/ws/stream HTTP/1.1\r\n%bupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: holdfast.v1\r\n\r\n" % HOST
)
#: Honest probes beside each attack.
PROBES = 40
#: CPU seconds that one turn of the loop may take beside an attack. Without turns a read alone took a second; the
#: share of all clients is twice `TURN`, and the rest is what the test itself does.
LONGEST = 0.1


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    header = bytearray(frame_header(opcode, len(payload)))
    header[0] = (0x80 if fin else 0) | opcode
    header[1] |= 0x80
    return bytes(header) + MASK + xor_mask(payload, MASK)


def say(**message: Any) -> bytes:
    return frame(OP_TEXT, json.dumps(message).encode())


HELLO = say(type="hello", version=1)
ATTACKS = {
    "empty pings before hello": (UPGRADE, frame(OP_PING)),
    "fragments of one byte": (
        UPGRADE + HELLO + frame(OP_TEXT, b"{", fin=False),
        frame(OP_CONTINUATION, b" ", fin=False),
    ),
    "ping messages": (UPGRADE + HELLO, say(type="ping")),
    "requests that are refused": (UPGRADE + HELLO, say(type="create", request_id="r", request={"model": "none"})),
    "acknowledgements of nothing": (UPGRADE + HELLO, say(type="ack", streams={"st_1": 1})),
    "chunks of one byte": (
        b"POST %b HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n" % (COMPLETIONS, HOST),
        b"1\r\n \r\n",
    ),
    "pipelined probes": (b"", b"GET /healthz HTTP/1.1\r\n%b\r\n" % HOST),
    "pipelined requests that are not found": (b"", b"GET /x HTTP/1.1\r\n%b\r\n" % HOST),
}


class Attacker(threading.Thread):
    """Sends one thing again and again, as fast as a socket takes it, and comes back where it is sent away."""

    def __init__(self, port: int, opening: bytes, again: bytes, *, reads: bool) -> None:
        super().__init__(daemon=True)
        self._address = ("127.0.0.1", port)
        self._opening = opening
        self._again = again * (65536 // len(again) + 1)
        self._reads = reads
        self.is_over = False
        self.sent = 0

    def run(self) -> None:
        while not self.is_over:
            try:
                with socket.create_connection(self._address, timeout=0.2) as client:
                    client.sendall(self._opening)
                    self._attack(client)
            except OSError:
                continue

    def _attack(self, client: socket.socket) -> None:
        client.setblocking(False)
        at = 0
        while not self.is_over:
            try:
                size = client.send(self._again[at:])
                at = (at + size) % len(self._again)
                self.sent += size
            except BlockingIOError:
                time.sleep(0.001)
            if self._reads:
                try:
                    if not client.recv(1 << 20):
                        return
                except BlockingIOError:
                    pass


@contextmanager
def attack(
    path: GatewayPath, opening: bytes, again: bytes, *, count: int = 2, reads: bool = True
) -> Iterator[None]:
    attackers = [Attacker(path.gateway.port, opening, again, reads=reads) for _ in range(count)]
    for attacker in attackers:
        attacker.start()
    try:
        yield
    finally:
        for attacker in attackers:
            attacker.is_over = True
        for attacker in attackers:
            attacker.join()


class Watch:
    """Measures the CPU time of each turn of the loop, which other threads and processes have no part in."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - before)
            before = now


@asynccontextmanager
async def watched() -> AsyncIterator[Watch]:
    watch = Watch()
    watching = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        watching.cancel()


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack_leaves_others_their_turns(path: GatewayPath, name: str) -> None:
    opening, again = ATTACKS[name]
    with attack(path, opening, again):
        await asyncio.sleep(0.1)
        async with await Http.open(path.url) as http, watched() as watch:
            for _ in range(PROBES):
                assert (await http.ask("GET", "/healthz")).status == 200
                await asyncio.sleep(0.005)
    path.gateway.peers.abort()
    await eventually(lambda: not path.gateway.peers)
    assert path.gateway.process.budget.used == 0
    print(f"{name}: longest turn {watch.longest * 1000:.1f} ms of CPU")
    assert TURN < LONGEST
    assert watch.longest < LONGEST


# -- what serves nothing, and what does ------------------------------------------------------------------


async def test_client_that_sends_nothing_but_pings_is_closed(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http, asyncio.timeout(DEADLINE):
        http.send(UPGRADE + HELLO + frame(OP_PING) * (3 * CLOSED_PAST))
        # It would take the slowed connection half a minute: what it has sent is counted as it comes.
        session = await only_session(path)
        while not session.codec.is_closing:
            session._go_on()
            await asyncio.sleep(0.001)
        data = await http.reader.read()
    assert frame_of_close(data, 4400)


async def only_session(path: GatewayPath) -> WebSocketProtocol:
    await eventually(lambda: any(isinstance(peer, WebSocketProtocol) for peer in path.gateway.peers))
    (peer,) = path.gateway.peers
    assert isinstance(peer, WebSocketProtocol)
    return peer


def frame_of_close(data: bytes, code: int) -> bool:
    return b"\x88" in data and code.to_bytes(2, "big") in data


async def test_client_that_is_slowed_down_is_read_no_faster(path: GatewayPath) -> None:
    async with await Http.open(path.url) as http:
        http.send(UPGRADE + HELLO + frame(OP_PING) * (SLOWED_PAST + 300))
        session = await only_session(path)
        await eventually(lambda: session.is_paused)
        await eventually(lambda: not session.is_paused)
        assert not session.codec.is_closing


async def test_busy_honest_client_is_never_slowed_down(path: GatewayPath) -> None:
    """Thousands of streams on one connection, with credit and acknowledgement for each message."""
    count = 2500
    async with await Session.open(path.url) as session:
        connection = await only_session(path)
        ended = 0
        created = 0
        while ended < count:
            while created < min(ended + 50, count):
                request = chat({"tokens": 3})
                await session.send(type="create", request_id=f"r-{created}", request=request, credit=1 << 16)
                created += 1
            message = await session.receive()
            assert message["type"] in ("accepted", "event", "events", "end")
            if message["type"] in ("event", "events"):
                await session.send(type="credit", stream=message["stream"], bytes=400)
                last = message["seq"] + (len(message["data"]) if message["type"] == "events" else 1) - 1
                await session.send(type="ack", streams={message["stream"]: last})
            elif message["type"] == "end":
                await session.send(type="ack", streams={message["stream"]: message["seq"]})
                ended += 1
        assert connection._patience is None
        assert not connection.codec.is_closing


# -- memory ----------------------------------------------------------------------------------------------


async def test_ping_with_a_huge_t_is_refused_and_a_long_one_answered(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.send(type="ping", t="x" * 256)
        assert (await session.expect("pong"))["t"] == "x" * 256
        await session.send(type="ping", t="x" * (4 << 20))
        assert len((await session.expect("error"))["message"]) < 300
    await eventually(lambda: len(path.gateway.peers) == 0)


async def test_client_that_reads_nothing_is_read_no_further_and_goes_on_once_it_reads(path: GatewayPath) -> None:
    """Its messages wait in its own socket, and none is lost."""
    budget = path.gateway.process.budget
    async with await Http.open(path.url) as http:
        http.send(UPGRADE + HELLO)
        await http.reader.readuntil(b"welcome")
        http.transport.pause_reading()
        session = await only_session(path)
        # Answers of 400 bytes to messages of 60: few enough not to be useless, and more than sockets hold.
        create = {"request_id": "r" * 200, "request": {"model": "n" * 60}}
        most = 0
        for _ in range(40):
            http.send(say(type="create", **create) * 100)
            await asyncio.sleep(0.002)
            most = max(most, budget.used)
        assert most < 1 << 20
        assert not session.codec.is_closing or session.is_paused


async def test_message_that_does_not_end_is_given_up_in_spite_of_pings(make_path: MakePath) -> None:
    path = await make_path(server={"body_timeout": 0.2})
    async with await Http.open(path.url) as http:
        http.send(UPGRADE + HELLO + frame(OP_TEXT, b" " * 100, fin=False))

        async def go_on() -> None:
            while True:
                http.send(frame(OP_PING) + frame(OP_CONTINUATION, b" " * 100, fin=False))
                await asyncio.sleep(0.02)

        going_on = asyncio.create_task(go_on())
        async with asyncio.timeout(DEADLINE):
            data = await http.reader.read()
        going_on.cancel()
    assert b"took longer than 0.2 s" in data
    assert frame_of_close(data, 4400)
    await eventually(lambda: path.gateway.process.budget.used == 0)


async def test_messages_in_pieces_that_end_in_time_go_on_for_longer(make_path: MakePath) -> None:
    path = await make_path(server={"body_timeout": 0.3})
    async with await Session.open(path.url) as session:
        for number in range(10):
            text = json.dumps({"type": "ping", "t": number})

            async def pieces(text: str = text) -> AsyncIterator[str]:
                yield text[:5]
                await asyncio.sleep(0.05)
                yield text[5:]

            await session.socket.send(pieces())
            assert (await session.expect("pong"))["t"] == number


async def test_partial_messages_beyond_the_tenants_share_are_refused(make_path: MakePath) -> None:
    path = await make_path(server={"max_body": 1 << 20, "memory_bytes": 4 << 20})
    budget = path.gateway.process.budget
    size = 900 * 1024
    clients = [await Http.open(path.url) for _ in range(10)]
    for http in clients:
        http.send(UPGRADE + HELLO + frame(OP_TEXT, b" " * size, fin=False))
        await asyncio.sleep(0.02)
        assert budget.used <= budget.limit
    await eventually(lambda: sum(is_closing(peer) for peer in path.gateway.peers) >= 5)
    assert budget.by_kind[Kind.MESSAGES] >= 2 * size
    async with asyncio.timeout(DEADLINE):
        data = await clients[-1].reader.read()
    assert b'"code":"overloaded"' in data
    assert frame_of_close(data, 1013)
    for http in clients:
        await http.__aexit__()
    await eventually(lambda: budget.used == 0)


def is_closing(peer: object) -> bool:
    return isinstance(peer, WebSocketProtocol) and peer.codec.is_closing


async def test_account_that_owes_time_is_read_on_once_it_is_paid_back(make_path: MakePath) -> None:
    """Large bodies and messages of a tenant wait, however long they may take; its small ones do not."""
    path = await make_path(server={"body_timeout": 0.2})
    account = path.gateway.process.budget.account("local")
    clock = asyncio.get_running_loop().time
    body = json.dumps({"model": "none", "messages": [{"content": "x" * 600_000}]}).encode()
    message = say(
        type="create", request_id="r", request={"model": "none", "messages": [{"content": "x" * 600_000}]}
    )
    head = b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n" % (COMPLETIONS, HOST, len(body))
    beginnings = [head + body[:300_000], UPGRADE + HELLO + message[:300_000]]
    async with (
        await Http.open(path.url) as http,
        await Http.open(path.url) as socket,
        await Session.open(path.url) as small,
    ):
        http.send(beginnings[0])
        socket.send(beginnings[1])
        await socket.reader.readuntil(b"welcome")
        await eventually(lambda: account.used >= 590_000)
        account.owe(0.0201, clock())
        account.owes_until = clock() + 0.8
        http.send(body[300_000:])
        socket.send(message[300_000:])
        await small.send(type="ping", t=1)
        await small.expect("pong")
        assert clock() < account.owes_until
        async with asyncio.timeout(DEADLINE):
            answers = await asyncio.gather(http.response(), socket.reader.readuntil(b"model_not_found"))
        assert clock() >= account.owes_until
        assert answers[0].code == "model_not_found"


async def test_client_that_leaves_while_its_tenant_owes_time_is_noticed(path: GatewayPath) -> None:
    budget = path.gateway.process.budget
    account = budget.account("local")
    async with await Http.open(path.url) as http, await Http.open(path.url) as socket:
        http.send(b"POST %b HTTP/1.1\r\n%bcontent-length: 900000\r\n\r\n" % (COMPLETIONS, HOST) + bytes(300_000))
        socket.send(UPGRADE + HELLO + frame(OP_TEXT, b" " * 300_000, fin=False))
        await eventually(lambda: account.used >= 590_000)
        account.owe(10.0, asyncio.get_running_loop().time())
        http.send(bytes(300_000))
        socket.send(frame(OP_CONTINUATION, b" " * 300_000))
        await eventually(lambda: sum(is_owing(peer) for peer in path.gateway.peers) == 2)
    await eventually(lambda: len(path.gateway.peers) == 0)
    assert budget.used == 0


def is_owing(peer: object) -> bool:
    return isinstance(peer, FairProtocol) and bool(peer._pauses & OWING)
