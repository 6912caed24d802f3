"""The whole way of a token through the gateway, with its real objects and without sockets, loop and clock.

`UpstreamConnection.data_received` of DATA frames, the HTTP/2 connection, the attempt and its reader, the log, the
flusher and the session's flush into a transport that counts bytes; and an acknowledgement of each stream every
64 tokens, as a client sends that acknowledges each second.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import hpack

from bench.micro.operation import Operation, Run
from bench.micro.still_loop import CountingTransport, StillLoop
from holdfast.admission.principal import Principal
from holdfast.admission.queue import Admission
from holdfast.config import StreamsConfig, TimeoutsConfig
from holdfast.config.limits import LimitsConfig, QueueConfig
from holdfast.core.http.frames import DATA, frame_header, header_frames, settings_frame
from holdfast.core.http.http2 import Http2Connection
from holdfast.core.http.request import HttpRequest
from holdfast.core.limits.budget import Budget
from holdfast.core.moderation import ReadModeration
from holdfast.core.session.messages import MAX_SEQ, SUBPROTOCOL
from holdfast.dialects.chat import CHAT
from holdfast.dialects.endpoint import Endpoint
from holdfast.generation.launcher import Launcher
from holdfast.generation.route import Route, Target
from holdfast.observe.events import Observers
from holdfast.observe.request_log import RequestLog
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.delivery.sse import SseDelivery
from holdfast.server.handshakes import Handshake
from holdfast.server.listener.exchange import Request
from holdfast.server.listener.turns import Turns
from holdfast.server.listener.websocket import Liveness
from holdfast.server.peers import Peers
from holdfast.server.services import Services, SurfaceLimits
from holdfast.server.surfaces.holdfast_session import Sessions
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.timers import Timers
from holdfast.upstream.call import Call, ResponseSink
from holdfast.upstream.connection import UpstreamConnection
from holdfast_tools.bench.frames import FrameSplitter, client_frame
from holdfast_tools.simulate.answer import Answer
from holdfast_tools.simulate.request import decode_request

STREAMS = 16
#: Tokens of a stream between two acknowledgements.
ACK_TOKENS = 64
#: Small, so that trimming is part of what is measured: it happens about every 750 tokens of a stream.
LOG_BYTES = 256 * 1024
_SETTING_WINDOW, _SETTING_STREAMS = 4, 3


class _Owner:
    """The pool of the one connection, which has nothing to do."""

    def slot_freed(self, connection: UpstreamConnection) -> None: ...
    def settings_changed(self, connection: UpstreamConnection) -> None: ...
    def request_refused(self, connection: UpstreamConnection) -> None: ...
    def http1_required(self, connection: UpstreamConnection) -> None: ...
    def found_stale(self, connection: UpstreamConnection) -> None: ...
    def connection_draining(self, connection: UpstreamConnection) -> None: ...
    def connection_lost(self, connection: UpstreamConnection) -> None: ...
    def count_reset(self, cause: str) -> None: ...
    def count_goaway(self) -> None: ...


class _OneConnection:
    """The `Upstream` of the route: sends every request on one connection."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection

    async def send(self, request: HttpRequest, sink: ResponseSink) -> Call:
        return self._connection.send(request, sink)


class HotPath:
    """16 running streams of one provider connection, read over `sockets` WebSockets.

    Each read brings `per_read` DATA frames of one token each, in turn of `spread` streams.
    """

    def __init__(self, *, per_read: int, spread: int = STREAMS, sockets: int = STREAMS) -> None:
        self.loop = StillLoop()  # type: ignore[abstract] # what it lacks is never called
        self._timers = Timers(self.loop)
        self._per_read = per_read
        self._spread = spread
        with self.loop.running():
            self._connect_provider()
            self._open_sessions(sockets)
            self._answer()
        self._make_reads()
        self._tokens = 0
        self._check()

    def _connect_provider(self) -> None:
        self._connection = UpstreamConnection(
            _Owner(),
            self._timers,
            lambda _: Http2Connection(max_streams=STREAMS),
            scheme=b"http",
            authority=b"provider",
            ping_interval=15.0,
            ping_timeout=10.0,
        )
        self.provider_transport = CountingTransport()
        self._connection.connection_made(self.provider_transport)
        self._connection.data_received(settings_frame({_SETTING_STREAMS: 100, _SETTING_WINDOW: 1 << 20}))

    def _open_sessions(self, sockets: int) -> None:
        endpoint = Endpoint(base_url="http://provider/v1")
        target = Target("sim", "demo", endpoint, _OneConnection(self._connection), TimeoutsConfig())
        streams = StreamsConfig(log_bytes=LOG_BYTES)
        self._directory = Directory(streams, self._timers, MemoryStore(self._timers), Budget(1 << 30))
        observers = Observers(RequestLog())
        launcher = Launcher(
            self._directory,
            {"demo": Route([target])},
            Admission(LimitsConfig(), QueueConfig(), {"demo": None}, self._timers),
            self._timers,
            observers,
        )
        limits = SurfaceLimits(
            max_message=1 << 20,
            max_streams=STREAMS,
            log_bytes=LOG_BYTES,
            hello_timeout=10.0,
            detach_grace=60.0,
            detach_grace_http=0.0,
            liveness=Liveness(20.0, 10.0),
        )
        # Not held back: the loop's clock stands still, and to sleep is nothing that this measures.
        flusher = Flusher(ReadModeration(max_hold=0.0), self.loop)
        services = Services(
            launcher=launcher,
            directory=self._directory,
            timers=self._timers,
            turns=Turns(self.loop, clock=itertools.repeat(0.0).__next__),
            budget=Budget(1 << 30),
            flusher=flusher,
            sse=SseDelivery(self._timers, flusher, keep_alive=15.0),
            peers=Peers(self._timers, max_connections=sockets),
            observer=observers,
            limits=limits,
        )
        shared = Sessions(services, CHAT)
        self._client_transports = [CountingTransport() for _ in range(sockets)]
        request = Request("GET", "/v1/ws/stream", {}, [], b"", "1.1")
        self._sessions = [
            shared.open(Handshake(transport, Principal("tenant"), request, subprotocol=SUBPROTOCOL))
            for transport in self._client_transports
        ]
        for transport in self._client_transports:
            transport.kept = []
        for session in self._sessions:
            session.data_received(client_frame(b'{"type":"hello","version":1,"client":"bench/1"}'))
        for number in range(STREAMS):
            create = {"type": "create", "request_id": f"r{number}", "request": json.loads(_request(number))}
            self._sessions[number % sockets].data_received(client_frame(json.dumps(create).encode()))
        self.loop.settle()

    def _answer(self) -> None:
        """Begin the answers, and learn the ids of the streams from what the clients are told."""
        encoder = hpack.Encoder()
        for number in range(STREAMS):
            block = encoder.encode([(b":status", b"200"), (b"content-type", b"text/event-stream")])
            head = header_frames(_h2_stream(number), block, end_stream=False, max_frame_size=16_384)
            self._connection.data_received(head)
        self.loop.settle()
        self._streams = {}
        by_id = {stream.id: stream for stream in self._directory.running()}
        self._acks = []
        for session, transport in zip(self._sessions, self._client_transports, strict=True):
            accepted = [message for message in _taken(transport) if message["type"] == "accepted"]
            for message in accepted:
                number = int(message["request_id"][1:])
                self._streams[number] = by_id[message["stream"]]
            acks = {message["stream"]: MAX_SEQ for message in accepted}
            self._acks.append((session, client_frame(json.dumps({"type": "ack", "streams": acks}).encode())))
            transport.kept = None

    def _make_reads(self) -> None:
        """Make the bytes of some tokens of each stream; they come again and again."""
        answers = [
            Answer(decode_request(_request(number)), answer_id="chatcmpl-1", created=1)
            for number in range(STREAMS)
        ]
        self._events = [[answer.content(token, token + 1) for token in range(ACK_TOKENS)] for answer in answers]
        frames = []
        for number in range(ACK_TOKENS * self._spread):
            token, stream = divmod(number, self._spread)
            event = self._events[stream][token]
            frames.append(frame_header(DATA, 0, _h2_stream(stream), len(event)) + event)
        size = self._per_read
        self._reads: Iterator[bytes] = itertools.cycle(
            [b"".join(frames[at : at + size]) for at in range(0, len(frames), size)]
        )

    @property
    def step(self) -> int:
        """Tokens between two acknowledgements of all streams."""
        return ACK_TOKENS * self._spread

    def run(self, tokens: int) -> None:
        """Bring so many tokens, a multiple of `step`, from the provider to the clients."""
        receive, turn, reads = self._connection.data_received, self.loop.turn, self._reads
        with self.loop.running():
            for _ in range(tokens // self.step):
                for read in itertools.islice(reads, self.step // self._per_read):
                    receive(read)
                    turn()
                for session, ack in self._acks:
                    session.data_received(ack)
                turn()
        self._tokens += tokens
        # A benchmark that loses tokens would only be fast.
        if sum(stream.log.next for stream in self._streams.values()) != self._tokens:
            raise RuntimeError("the logs do not hold as many entries as the provider sent")
        for stream in self._streams.values():
            if any(cursor.position != stream.log.next for cursor in stream.log.cursors):
                raise RuntimeError("a session has not been written what its log holds")

    def _check(self) -> None:
        """Bring tokens, and compare what was written to the sockets with what the provider sent."""
        for transport in self._client_transports:
            transport.kept = []
        self.run(self.step)
        received: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for transport in self._client_transports:
            for message in _taken(transport):
                entries = [message["data"]] if message["type"] == "event" else message["data"]
                numbered = enumerate(entries, message["seq"])
                received[message["stream"]] += [
                    (seq, entry["choices"][0]["delta"]["content"]) for seq, entry in numbered
                ]
            transport.kept = None
        for number in range(self._spread):
            sent = [json.loads(event[6:])["choices"][0]["delta"]["content"] for event in self._events[number]]
            expected = [(seq, sent[seq]) for seq in range(ACK_TOKENS)]
            if len(sent) != ACK_TOKENS or received[self._streams[number].id] != expected:
                raise RuntimeError(f"the client of stream {number} received other tokens than were sent")


def _request(number: int) -> bytes:
    sim = {"tokens": 1000, "seed": number}
    return json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}], "sim": sim}).encode()


def _h2_stream(number: int) -> int:
    """The h2 stream of the request with this number: a client's are odd, RFC 9113 section 5.1.1."""
    return 2 * number + 1


def _taken(transport: CountingTransport) -> list[dict[str, Any]]:
    frames, splitter = transport.kept or [], FrameSplitter()
    return [json.loads(payload) for data in frames for _, payload in splitter.feed(data)]


def _operation(name: str, what: str, *, per_read: int, spread: int = STREAMS, sockets: int = STREAMS) -> Operation:
    def build() -> Run:
        return HotPath(per_read=per_read, spread=spread, sockets=sockets).run

    step = ACK_TOKENS * spread
    return Operation(name, what, build, step=step, counted=1024)


OPERATIONS = (
    _operation("hot_path_1", "a token, 1 DATA frame per read", per_read=1),
    _operation("hot_path_4", "a token, 4 DATA frames per read, each of another stream", per_read=4),
    _operation("hot_path_16", "a token, 16 DATA frames per read, each of another stream", per_read=16),
    _operation("hot_path_16_shared", "the same, 16 streams on 4 sockets", per_read=16, sockets=4),
    _operation("hot_path_16_one", "a token, 16 DATA frames per read, all of one stream", per_read=16, spread=1),
)
