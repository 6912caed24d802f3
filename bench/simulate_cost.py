"""What the simulated provider costs: CPU per paced token, and events per second unpaced.

    .venv/bin/python -m bench.simulate_cost [--streams 200] [--seconds 5]

The provider is a process of its own; its CPU time counts from just before the first token on. The client only
counts bytes. Most of a paced token over HTTP/1.1 is its system call, so the first line shows what bare writes of
that size cost on uvloop here and now. Other load on the machine makes all of it worse: compare within a run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import cast

import hpack
import uvloop

from bench.processes import Server, cpu_ns, simulated_provider
from holdfast_tools.simulate import http2_frames as h2

READER = """
import asyncio, sys, uvloop
async def main():
    loop = asyncio.get_running_loop()
    pairs = [await asyncio.open_connection("127.0.0.1", int(sys.argv[1])) for _ in range(int(sys.argv[2]))]
    await asyncio.gather(*(reader.read() for reader, _ in pairs), return_exceptions=True)
uvloop.run(main())
"""


def chat(sim: dict[str, object]) -> bytes:
    body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": True, "sim": sim}
    return json.dumps(body).encode()


class Client(asyncio.Protocol):
    """One connection; counts the bytes of its answers."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        self.bodies = bodies
        self.received = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self.requests())

    def requests(self) -> bytes:
        raise NotImplementedError

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Http1Client(Client):
    """One stream."""

    def requests(self) -> bytes:
        body = self.bodies[0]
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if data.endswith(b"0\r\n\r\n"):
            self.end()


class Http2Client(Client):
    """Several streams, with windows as large as they can be."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        super().__init__(bodies)
        self.left = len(bodies)
        self.tail = b""

    def requests(self) -> bytes:
        encoder = hpack.Encoder()
        out = [h2.PREFACE, h2.settings_frame({h2.INITIAL_WINDOW_SIZE: h2.MAX_WINDOW})]
        out.append(h2.window_update_frame(0, h2.MAX_WINDOW - h2.DEFAULT_WINDOW))
        for number, body in enumerate(self.bodies):
            fields = [(":method", "POST"), (":scheme", "http"), (":path", "/v1/chat/completions")]
            block = encoder.encode(fields)
            stream_id = 2 * number + 1
            out.append(h2.header_frames(stream_id, block, 16_384, 16_384))
            out.append(h2.frame_header(len(body), h2.DATA, h2.END_STREAM, stream_id) + body)
        return b"".join(out)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        # An empty DATA frame with END_STREAM ends each answer.
        data = self.tail + data
        self.left -= data.count(b"data: [DONE]\n\n\x00\x00\x00\x00\x01")
        self.tail = data[-18:]
        if self.left <= 0:
            self.end()


async def measure(
    provider: Server, client: Callable[[Sequence[bytes]], Client], groups: Sequence[Sequence[bytes]], settle: float
) -> tuple[float, float, int]:
    """Return the provider's CPU seconds, the wall seconds and the bytes received."""
    loop = asyncio.get_running_loop()
    pairs = []
    for bodies in groups:
        pairs.append(await loop.create_connection(partial(client, bodies), "127.0.0.1", provider.port))
    await asyncio.sleep(settle)
    cpu, wall = cpu_ns(provider.pid), time.perf_counter()
    await asyncio.gather(*(protocol.done for _, protocol in pairs))
    taken, wall = (cpu_ns(provider.pid) - cpu) / 1e9, time.perf_counter() - wall
    for transport, _ in pairs:
        transport.abort()
    return taken, wall, sum(protocol.received for _, protocol in pairs)


async def bare_writes(args: argparse.Namespace) -> None:
    """Write as many bytes as often, from this process to a child, and print the CPU that it takes."""
    loop = asyncio.get_running_loop()
    transports: list[asyncio.Transport] = []
    are_all_there = asyncio.Event()

    class Writer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(cast(asyncio.Transport, transport))
            if len(transports) == args.streams:
                are_all_there.set()

    server = await loop.create_server(Writer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader = subprocess.Popen([sys.executable, "-c", READER, str(port), str(args.streams)])  # noqa: ASYNC220
    await are_all_there.wait()
    per_tick = max(1, round(args.streams * args.rate / 1000))
    total = int(args.streams * args.rate * 2)
    written = 0
    done = loop.create_future()

    def tick() -> None:
        nonlocal written
        for _ in range(per_tick):
            transports[written % args.streams].write(b"x" * 255)
            written += 1
        if written < total:
            loop.call_later(0.001, tick)
        else:
            done.set_result(None)

    cpu = time.process_time()
    tick()
    await done
    print(f"{'bare writes of 255 bytes':57} {(time.process_time() - cpu) / written * 1e6:10.2f} us CPU per write")
    for transport in transports:
        transport.abort()
    server.close()
    reader.terminate()
    reader.wait()


async def paced(args: argparse.Namespace, provider: Server) -> None:
    tokens = int(args.rate * args.seconds)
    for name, client, per_connection in (
        ("HTTP/1.1", Http1Client, 1),
        ("HTTP/2, 1 connection", Http2Client, args.streams),
        ("HTTP/2, 32 streams per connection", Http2Client, 32),
    ):
        for label, interval, burst in (("paced", 1000 / args.rate, 1), ("burst 5", 5000 / args.rate, 5)):
            # Each stream begins at its own moment of the interval, as streams of real clients would.
            bodies = [
                chat(
                    {
                        "tokens": tokens,
                        "interval_ms": interval,
                        "burst": burst,
                        "ttft_ms": 1000 + interval * number / args.streams,
                        "seed": number,
                    }
                )
                for number in range(args.streams)
            ]
            groups = [bodies[at : at + per_connection] for at in range(0, args.streams, per_connection)]
            cpu, wall, _ = await measure(provider, client, groups, 0.9)
            events = tokens * args.streams
            print(
                f"{name:34} {label:8} {events / wall:9.0f} events/s  {cpu / events * 1e6:6.2f} us/event"
                f"  {100 * cpu / wall:4.0f} % of a core",
                flush=True,
            )


async def unpaced(provider: Server) -> None:
    tokens = 250_000
    for name, client, per_connection in (("HTTP/1.1", Http1Client, 1), ("HTTP/2", Http2Client, 4)):
        bodies = [chat({"tokens": tokens, "interval_ms": 0, "ttft_ms": 0, "seed": n}) for n in range(4)]
        groups = [bodies[at : at + per_connection] for at in range(0, 4, per_connection)]
        cpu, wall, received = await measure(provider, client, groups, 0.0)
        events = 4 * tokens
        print(
            f"{name:34} {'unpaced':8} {events / wall:9.0f} events/s  {cpu / events * 1e6:6.2f} us/event"
            f"  {events / cpu:9.0f} events per CPU second, {received / events:.0f} bytes each",
            flush=True,
        )


async def run(args: argparse.Namespace) -> None:
    await bare_writes(args)
    # On any core: its clients have this process, and are not to be in its way.
    with simulated_provider(None, "--max-concurrent-streams", "1000") as provider:
        await paced(args, provider)
        await unpaced(provider)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50, help="tokens per second and stream")
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, uvloop {version('uvloop')}, {platform.machine()}, {arguments}")
    uvloop.run(run(arguments))
