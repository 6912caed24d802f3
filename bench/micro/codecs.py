"""What reads and writes bytes: WebSocket frames, HTTP/2 frames (ours and the `h2` package), SSE."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial

import h2.config
import h2.connection
import h2.events
import hpack

from bench.micro.operation import Operation, Run
from holdfast.core.http.connection import DataReceived
from holdfast.core.http.frames import (
    DATA,
    END_STREAM,
    frame_header,
    header_frames,
    settings_frame,
    window_update_frame,
)
from holdfast.core.http.http2 import Http2Connection
from holdfast.core.sse import EventSplitter, write_event
from holdfast.core.websocket.connection import WebSocketConnection
from holdfast.core.websocket.events import TextMessage
from holdfast.core.websocket.frames import text_frame
from holdfast.dialects.chat import CHAT, ChatOptions
from holdfast_tools.bench.frames import client_frame

STREAMS = 16
PAYLOAD = b"x" * 250
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"' + b"x" * 180 + b'"}}]}\n\n'
FIELDS = [
    (b"authorization", b"Bearer sk-" + b"aB3dE5" * 25),
    (b"content-type", b"application/json"),
    (b"accept", b"text/event-stream"),
    (b"user-agent", b"holdfast/0.1"),
]
BODY = b'{"model": "demo", "messages": [{"role": "user", "content": "hello"}], "stream": true}'
_OPENING = settings_frame({}) + window_update_frame(0, (1 << 31) - 65_536)


# -- HTTP/2 --------------------------------------------------------------------------------------------


class Ours:
    """Our client connection, driven as its shell does: windows given back, bytes to write asked for, per read."""

    def __init__(self) -> None:
        self.connection = Http2Connection(initial_window=1 << 20)
        self.connection.receive_data(_OPENING)

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
    """The `h2` package, driven in the same way."""

    def __init__(self) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.connection.local_settings.initial_window_size = 1 << 20
        self.connection.local_settings.acknowledge()
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window((1 << 24) - 65_535)
        self.connection.receive_data(_OPENING)

    def request(self, number: int) -> int:
        connection = self.connection
        stream_id = int(connection.get_next_available_stream_id())
        head = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"api.example")]
        head += [(b":path", b"/v1/chat"), *FIELDS, (b"x-request-id", b"%032x" % number)]
        head.append((b"content-length", b"%d" % len(BODY)))
        connection.send_headers(stream_id, head)
        connection.send_data(stream_id, BODY, end_stream=True)
        return stream_id

    def flush(self) -> bytes:
        return bytes(self.connection.data_to_send())

    def read(self, data: bytes) -> int:
        connection = self.connection
        received = 0
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                received += event.flow_controlled_length
        connection.data_to_send()
        return received


def _data_frames(make: Callable[[], Ours | H2Package], per_read: int, spread: int) -> Run:
    client, encoder = make(), hpack.Encoder()
    streams = [client.request(number) for number in range(STREAMS)]
    for stream_id in streams:
        block = encoder.encode([(b":status", b"200"), (b"content-type", b"text/event-stream")])
        client.read(header_frames(stream_id, block, end_stream=False, max_frame_size=16_384))
    client.flush()
    order = [streams[number % spread] for number in range(STREAMS)]
    frames = [frame_header(DATA, 0, stream_id, len(PAYLOAD)) + PAYLOAD for stream_id in order]
    reads = [b"".join(frames[at : at + per_read]) for at in range(0, STREAMS, per_read)]

    def run(count: int) -> None:
        received = 0
        read = client.read
        for _ in range(count // STREAMS):
            for data in reads:
                received += read(data)
        if received != count * len(PAYLOAD):
            raise RuntimeError(f"{received} bytes of body were received of {count * len(PAYLOAD)}")

    return run


def _requests(make: Callable[[], Ours | H2Package]) -> Run:
    """A request with the usual ten fields and a small body, and its short answer."""
    client, encoder, numbers = make(), hpack.Encoder(), itertools.count()

    def run(count: int) -> None:
        received = 0
        for _ in range(count):
            stream_id = client.request(next(numbers))
            client.flush()
            block = encoder.encode([(b":status", b"200")])
            head = header_frames(stream_id, block, end_stream=False, max_frame_size=16_384)
            received += client.read(head + frame_header(DATA, END_STREAM, stream_id, 2) + b"{}")
        if received != 2 * count:
            raise RuntimeError(f"{received} bytes of answers were received of {2 * count}")

    return run


def _http2() -> list[Operation]:
    operations = []
    for per_read, spread in ((1, 16), (4, 16), (16, 16), (16, 1)):
        where = "all of one stream" if spread == 1 else "each of another stream"
        what = f"a DATA frame, {per_read} per read" + (f", {where}" if per_read > 1 else "")
        name = f"http2_data_{per_read}" + ("_one" if spread == 1 else "")
        for prefix, made in (("", Ours), ("h2_", H2Package)):
            operations.append(
                Operation(
                    f"{prefix}{name}",
                    f"{what} (h2 package)" if prefix else what,
                    partial(_data_frames, made, per_read, spread),
                    step=STREAMS,
                    counted=STREAMS * 16,
                    beside="" if prefix else f"h2_{name}",
                )
            )
    what = "a request of ten fields, with its answer"
    operations += [
        Operation("http2_request", what, lambda: _requests(Ours), counted=100, beside="h2_http2_request"),
        Operation("h2_http2_request", f"{what} (h2 package)", lambda: _requests(H2Package), counted=100),
    ]
    return operations


# -- WebSocket and SSE ---------------------------------------------------------------------------------


def _frame_write() -> Run:
    message = b'{"type":"event","stream":"st_' + b"0" * 32 + b'","seq":17,"data":' + PAYLOAD + b"}"

    def run(count: int) -> None:
        frame = b""
        for _ in range(count):
            frame = text_frame(message)
        if not frame.endswith(message):
            raise RuntimeError("the frame does not hold the message")

    return run


def _frame_read() -> Run:
    connection = WebSocketConnection()
    frame = client_frame(b'{"type":"ack","streams":{"st_' + b"0" * 32 + b'":12345}}')

    def run(count: int) -> None:
        receive, messages = connection.receive_data, 0
        for _ in range(count):
            for event in receive(frame):
                messages += type(event) is TextMessage
        if messages != count:
            raise RuntimeError(f"{messages} messages were read of {count}")

    return run


def _sse_split(per_read: int) -> Run:
    splitter = EventSplitter()
    splitter.feed(b": begun\n\n")
    data = EVENT * per_read

    def run(count: int) -> None:
        feed, events = splitter.feed, 0
        for _ in range(count // per_read):
            events += len(feed(data))
        if events != count:
            raise RuntimeError(f"{events} events were split of {count}")

    return run


def _sse_write() -> Run:
    payload = EVENT[6:-2]

    def run(count: int) -> None:
        event = b""
        for _ in range(count):
            event = write_event(payload, id=b"1-17")
        if event != b"id: 1-17\n" + EVENT:
            raise RuntimeError("the event does not hold the payload")

    return run


# -- requests ------------------------------------------------------------------------------------------


def _chat_request(messages: int) -> Run:
    """Read a request of chat completions, and write it for the provider."""
    talk = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": "x" * 200} for number in range(messages)
    ]
    body = {"model": "demo", "messages": talk, "stream": True, "temperature": 0.7, "max_tokens": 512}
    raw, options, stream = json.dumps(body).encode(), ChatOptions(), "st_" + "0" * 32

    def run(count: int) -> None:
        size = 0
        for _ in range(count):
            size += len(CHAT.request(CHAT.parse(raw), "theirs", options, path="/v1", stream_id=stream).body)
        if size < count * 200 * messages:
            raise RuntimeError(f"{size} bytes were written for {count} requests")

    return run


OPERATIONS = (
    Operation("chat_request", "a chat request of 2 messages read and written", lambda: _chat_request(2)),
    Operation("chat_request_long", "a chat request of 100 messages read and written", lambda: _chat_request(100)),
    Operation("websocket_write", "a text frame of 310 bytes written", _frame_write),
    Operation("websocket_read", "a masked `ack` of 75 bytes read", _frame_read),
    Operation("sse_split_1", "an event split, 1 per read", lambda: _sse_split(1)),
    Operation("sse_split_16", "an event split, 16 per read", lambda: _sse_split(16), step=16, counted=512),
    Operation("sse_write", "an event with its id written", _sse_write),
    *_http2(),
)
