"""What a DATA frame and a request cost our HTTP/2 client, beside the `h2` package, in one run.

    .venv/bin/python bench/micro_http2.py [--seconds 1.5]

No sockets: both get the same bytes of 250-byte DATA frames for 16 streams, 1, 4 or 16 frames per read, and hand
the bodies on, give their windows back and ask for the bytes to write, as a shell does after each read. A request
has the usual ten fields and a small body, and ends with its response. The two take turns; the best turn counts,
since other load on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable
from functools import partial

import h2
import h2.config
import h2.connection
import h2.events
import hpack

from holdfast.core.http import DataReceived
from holdfast.core.http2 import Http2Connection
from holdfast.core.http2_frames import (
    DATA,
    END_STREAM,
    frame_header,
    header_frames,
    settings_frame,
    window_update_frame,
)

STREAMS = 16
PAYLOAD = b"x" * 250
FIELDS = [
    (b"authorization", b"Bearer sk-" + b"aB3dE5" * 25),
    (b"content-type", b"application/json"),
    (b"accept", b"text/event-stream"),
    (b"user-agent", b"holdfast/0.1"),
]
BODY = b'{"model": "demo", "messages": [{"role": "user", "content": "hello"}], "stream": true}'


class Ours:
    name = "holdfast"

    def __init__(self) -> None:
        self.connection = Http2Connection(initial_window=1 << 20)
        self.connection.receive_data(settings_frame({}) + window_update_frame(0, (1 << 31) - 65_536))

    def request(self, number: int) -> int:
        fields = [*FIELDS, (b"x-request-id", b"%032x" % number)]
        return self.connection.send_request(b"POST", b"https", b"api.example", b"/v1/chat", fields, BODY)

    def flush(self) -> bytes:
        return self.connection.data_to_send()

    def read(self, data: bytes) -> int:
        connection = self.connection
        received = 0
        for event in connection.receive_data(data):
            if type(event) is DataReceived:
                size = 0
                for chunk in event.chunks:
                    size += len(chunk)
                connection.grant(event.stream_id, size)
                received += size
        connection.data_to_send()
        return received


class H2Package:
    name = "h2"

    def __init__(self) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.connection.local_settings.initial_window_size = 1 << 20
        self.connection.local_settings.acknowledge()
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window((1 << 24) - 65_535)
        self.connection.receive_data(settings_frame({}) + window_update_frame(0, (1 << 31) - 65_536))

    def request(self, number: int) -> int:
        connection = self.connection
        stream_id = connection.get_next_available_stream_id()
        head = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.example")]
        head += [(b":path", b"/v1/chat"), *FIELDS, (b"x-request-id", b"%032x" % number)]
        head.append((b"content-length", b"%d" % len(BODY)))
        connection.send_headers(stream_id, head)
        connection.send_data(stream_id, BODY, end_stream=True)
        return stream_id

    def flush(self) -> bytes:
        return self.connection.data_to_send()

    def read(self, data: bytes) -> int:
        connection = self.connection
        received = 0
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                received += event.flow_controlled_length
        connection.data_to_send()
        return received


Client = Ours | H2Package


def open_streams(client: Client) -> list[int]:
    encoder = hpack.Encoder()
    streams = [client.request(number) for number in range(STREAMS)]
    for stream_id in streams:
        block = encoder.encode([(b":status", b"200"), (b"content-type", b"text/event-stream")])
        client.read(header_frames(stream_id, block, end_stream=False, max_frame_size=16_384))
    client.flush()
    return streams


def data_turn(client: Client, reads: list[bytes], frames: int) -> float:
    """Microseconds per frame of one pass over the reads."""
    start = time.perf_counter()
    received = sum(client.read(read) for read in reads)
    elapsed = time.perf_counter() - start
    assert received == frames * len(PAYLOAD)
    return elapsed / frames * 1e6


def request_turn(client: Client, counter: itertools.count[int], response: Callable[[int], bytes]) -> float:
    """Microseconds per `request` with its bytes taken; the response is read outside the measured time."""
    elapsed = 0.0
    for _ in range(200):
        number = next(counter)
        start = time.perf_counter()
        stream_id = client.request(number)
        client.flush()
        elapsed += time.perf_counter() - start
        client.read(response(stream_id))
    return elapsed / 200 * 1e6


def best(turns: dict[str, Callable[[], float]], seconds: float) -> dict[str, float]:
    """The best turn of each, taken in alternation."""
    results = dict.fromkeys(turns, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, turn in turns.items():
            results[name] = min(results[name], turn())
    return results


def report(what: str, results: dict[str, float]) -> None:
    ours, package = results[Ours.name], results[H2Package.name]
    print(f"{what:<50}{ours:>9.2f} µs{package:>11.2f} µs{package / ours:>8.1f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="per line")
    seconds = parser.parse_args().seconds
    print(f"$ {' '.join([sys.executable.rsplit('/', 1)[-1], *sys.argv])}")
    versions = f"h2 {h2.__version__}, hpack {hpack.__version__}"
    print(f"Python {platform.python_version()}, {versions}, {platform.machine()}, {platform.system()}")
    print(f"{'':<50}{Ours.name:>12}{H2Package.name:>14}")
    for per_read, spread in [(1, 16), (4, 16), (16, 16), (4, 1), (16, 1)]:
        turns: dict[str, Callable[[], float]] = {}
        for client in (Ours(), H2Package()):
            streams = open_streams(client)
            order = [streams[number % spread] for number in range(960)]
            frames = [frame_header(DATA, 0, stream_id, len(PAYLOAD)) + PAYLOAD for stream_id in order]
            reads = [b"".join(frames[start : start + per_read]) for start in range(0, len(frames), per_read)]
            turns[client.name] = partial(data_turn, client, reads, 960)
        where = "each of another stream" if spread > 1 else "all of one stream"
        line = f"DATA frame, {per_read} per read" + (f", {where}" if per_read > 1 else "")
        report(line, best(turns, seconds))
    turns = {}
    for client in (Ours(), H2Package()):
        encoder = hpack.Encoder()

        def response(stream_id: int, encoder: hpack.Encoder = encoder) -> bytes:
            block = encoder.encode([(b":status", b"200")])
            head = header_frames(stream_id, block, end_stream=False, max_frame_size=16_384)
            return head + frame_header(DATA, END_STREAM, stream_id, 2) + b"{}"

        turns[client.name] = partial(request_turn, client, itertools.count(), response)
    report("request with ten fields and a small body", best(turns, seconds))


if __name__ == "__main__":
    main()
