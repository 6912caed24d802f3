"""Clients for the relay benchmark: open streams through a gateway, count every event, sample latencies.

Run by `relay.py` as a process of its own. Each second it prints one JSON line with what it has received so far.
The clients speak just enough of each protocol, so that they cost less than what they measure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from urllib.parse import urlsplit

MARK = b'"chat.completion.chunk"'
SENT = b'"sim_sent_ns":'
#: Latencies kept for one line; beyond it every further one is dropped, so that a slow reader stays bounded.
MAX_SAMPLES = 20_000


class Counter:
    """What all clients of this process have received."""

    def __init__(self) -> None:
        self.events = 0
        self.bytes = 0
        self.ended = 0
        self.errors: list[str] = []
        self.samples: list[int] = []

    def line(self) -> str:
        samples, self.samples = sorted(self.samples), []
        record: dict[str, object] = {
            "t": time.monotonic(),
            "events": self.events,
            "bytes": self.bytes,
            "ended": self.ended,
            "errors": self.errors[:3],
        }
        if samples:
            record["latency_ms"] = [round(samples[int((len(samples) - 1) * q)] / 1e6, 3) for q in (0.5, 0.99, 1.0)]
        return json.dumps(record)


class Client(asyncio.Protocol):
    """One connection that counts the events it receives, also those that two reads share."""

    def __init__(self, counter: Counter, opening: bytes) -> None:
        self._counter = counter
        self._opening = opening
        self._tail = b""
        self._seen_head = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._opening)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        counter = self._counter
        counter.bytes += len(data)
        if not self._seen_head:
            self._seen_head = True
            if not data.startswith((b"HTTP/1.1 101", b"HTTP/1.1 200")):
                counter.errors.append(data[:300].decode("latin-1"))
        joined = self._tail + data
        counter.events += joined.count(MARK)
        self._tail = joined[-(len(MARK) - 1) :]
        at = data.find(SENT)
        if at >= 0 and len(counter.samples) < MAX_SAMPLES:
            end = data.find(b"}", at)
            if end > 0:
                counter.samples.append(time.monotonic_ns() - int(data[at + len(SENT) : end].split(b",")[0]))
        if b'"type":"end"' in data or b"[DONE]" in data:
            counter.ended += 1
        elif b'"type":"error"' in data:
            counter.errors.append(data[:500].decode("latin-1"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._counter.errors.append(f"connection lost: {exc}")


def frame(text: bytes) -> bytes:
    """A client's text frame, masked with zeros."""
    size = len(text)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + text


def openings(args: argparse.Namespace) -> list[bytes]:
    """What each connection sends first: the streams are dealt to the sockets in turn."""
    parts = urlsplit(args.url)
    host = parts.netloc.encode()
    bodies = [
        json.dumps(
            {
                "model": "demo",
                "stream": True,
                "messages": [{"role": "user", "content": "bench"}],
                "sim": {**json.loads(args.sim), "seed": number},
            }
        ).encode()
        for number in range(args.streams)
    ]
    if args.kind == "sse":
        head = (
            f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            "content-type: application/json\r\naccept: text/event-stream\r\n"
        ).encode()
        return [head + b"content-length: %d\r\n\r\n" % len(body) + body for body in bodies]
    shake = (
        b"GET /v1/ws/stream HTTP/1.1\r\nhost: " + host + b"\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"sec-websocket-protocol: holdfast.v1\r\n\r\n" + frame(b'{"type":"hello","version":1,"client":"bench/1"}')
    )
    sockets: list[bytes] = [shake] * min(args.sockets or args.streams, args.streams)
    for number, body in enumerate(bodies):
        create = frame(b'{"type":"create","request_id":"%d-%d","request":%b}' % (os.getpid(), number, body))
        sockets[number % len(sockets)] += create
    return sockets


ACCEPTED = re.compile(rb'"type":"accepted","request_id":"[^"]+","stream":"([^"]+)"')
#: An acknowledgement beyond what was sent counts as the last that was sent (PROTOCOL.md, section 5).
ALL = 2**53 - 1
#: Seconds between acknowledgements, as in the SDK.
ACK_INTERVAL = 1.0


class AckingClient(Client):
    """A WebSocket client that acknowledges everything each second, as the SDK does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._missing = self._opening.count(b'"type":"create"')
        self._head = b""
        self._ack = b""
        asyncio.get_running_loop().call_later(ACK_INTERVAL, self._acknowledge)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._missing:
            self._head += data
            streams = ACCEPTED.findall(self._head)
            if len(streams) >= self._missing:
                self._missing, self._head = 0, b""
                acks = b",".join(b'"%b":%d' % (stream, ALL) for stream in streams)
                self._ack = frame(b'{"type":"ack","streams":{%b}}' % acks)

    def _acknowledge(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self._ack)  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_later(ACK_INTERVAL, self._acknowledge)


async def run(args: argparse.Namespace) -> None:
    counter = Counter()
    parts = urlsplit(args.url)
    loop = asyncio.get_running_loop()
    kind = AckingClient if args.kind == "ws" else Client
    for opening in openings(args):
        await loop.create_connection(
            lambda opening=opening: kind(counter, opening),
            parts.hostname,
            parts.port,  # type: ignore[misc]
        )
    deadline = loop.time() + args.seconds
    while loop.time() < deadline:
        await asyncio.sleep(1.0)
        print(counter.line(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="base URL up to /v1")
    parser.add_argument("--kind", choices=["ws", "sse"], required=True)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--sockets", type=int, default=0, help="WebSockets that carry them; 0: one each")
    parser.add_argument("--sim", default="{}", help="the `sim` field of each request, as JSON")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        sys.exit("the load generator needs uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(args))


if __name__ == "__main__":
    main()
