"""Our HTTP/2 client against the `h2` package's server, in memory: bodies arrive whole, windows agree."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived as ServerData
from h2.events import RequestReceived, StreamReset
from h2.exceptions import NoSuchStreamError, StreamClosedError
from h2.settings import SettingCodes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.core.http.connection import (
    DataReceived,
    Event,
    PongReceived,
    ResponseEnded,
    ResponseReceived,
    SettingsChanged,
    StreamFailed,
)
from holdfast.core.http.frames import SETTINGS_ACK
from holdfast.core.http.http2 import Http2Connection

HEAD = [(":status", "200"), ("x-server", "oracle")]
TRAILERS = [(b"x-trailer", b"t")]

choices = st.integers(0, 99)
shares = st.sampled_from([0.1, 0.5, 1.0])
sizes = st.one_of(st.sampled_from([0, 1]), st.integers(2, 300), st.integers(2, 200_000))
reads = st.one_of(st.integers(1, 50), st.integers(1, 300_000))


def pattern(seed: int, size: int) -> bytes:
    """Bytes of which every part tells where it is from."""
    return b"".join(b"%d:%d " % (seed, position) for position in range(size // 4 + 1))[:size]


class Answer:
    """What the server has said on one stream, and what of it the client has reported."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.sent = 0
        self.received = b""
        self.granted = 0
        self.ended = False
        self.trailers: list[tuple[bytes, bytes]] = []


class ClientAgainstServer(RuleBasedStateMachine):
    """Streams that are open at the server are in `answers`; `upload` holds what the server has got of requests."""

    @initialize(
        initial_window=st.integers(1, 100_000),
        connection_window=st.integers(65_535, 200_000),
        max_frame_size=st.sampled_from([16_384, 20_000, 100_000]),
        server_window=st.integers(0, 100_000),
        server_frame_size=st.sampled_from([16_384, 20_000, 100_000]),
    )
    def connect(
        self,
        initial_window: int,
        connection_window: int,
        max_frame_size: int,
        server_window: int,
        server_frame_size: int,
    ) -> None:
        self.client = Http2Connection(
            initial_window=initial_window, connection_window=connection_window, max_frame_size=max_frame_size
        )
        self.server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.server.initiate_connection()
        self.largest_answer = 100 * initial_window  # so that each answer ends in a bounded number of turns
        self.to_server: list[bytes] = []
        self.to_client = bytearray()
        self.requests: dict[int, bytes] = {}
        self.uploads: dict[int, bytes] = {}
        self.unacknowledged: dict[int, int] = {}
        self.answers: dict[int, Answer] = {}
        self.reset_by_client: set[int] = set()
        self.reset_by_server: set[int] = set()
        self.done: set[int] = set()
        self.pings = self.pongs = 0
        self.established = False
        # The h2 package takes an acknowledgement for any settings frame of its own that changes the same values,
        # so it had better not have two different ones under way.
        self.deliver_all()
        self.server_changes_settings(server_window, server_frame_size, 20, 4096)
        for size in (0, 10, 150_000):
            self.request(size)
        self.deliver_all()

    # -- the client ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.client.available_streams > 0)
    @rule(size=sizes)
    def request(self, size: int) -> None:
        body = pattern(len(self.requests), size)
        stream_id = self.client.send_request(b"POST", b"https", b"a.example", b"/", [(b"x-n", b"%d" % size)], body)
        self.requests[stream_id] = body

    def open_at_client(self) -> list[int]:
        gone = self.done | self.reset_by_client
        return [stream_id for stream_id in self.requests if stream_id not in gone]

    @precondition(lambda self: self.open_at_client())
    @rule(choice=choices)
    def client_resets(self, choice: int) -> None:
        streams = self.open_at_client()
        stream_id = streams[choice % len(streams)]
        self.client.reset_stream(stream_id)
        self.reset_by_client.add(stream_id)

    @precondition(lambda self: self.answers)
    @rule(choice=choices, share=shares)
    def grant(self, choice: int, share: float) -> None:
        stream_id = list(self.answers)[choice % len(self.answers)]
        answer = self.answers[stream_id]
        n = int((len(answer.received) - answer.granted) * share)
        self.client.grant(stream_id, n)
        answer.granted += n

    @rule()
    def client_pings(self) -> None:
        self.client.send_ping(b"%08d" % self.pings)
        self.pings += 1

    # -- the server ----------------------------------------------------------------------------------------

    def open_at_server(self) -> list[int]:
        """Streams that the server has seen and has neither ended nor found reset."""
        return [
            stream_id
            for stream_id in self.uploads
            if stream_id not in self.reset_by_server
            and not (stream_id in self.answers and self.answers[stream_id].ended)
        ]

    def unanswered(self) -> list[int]:
        return [stream_id for stream_id in self.open_at_server() if stream_id not in self.answers]

    def answering(self) -> list[int]:
        return [stream_id for stream_id in self.open_at_server() if stream_id in self.answers]

    def all_sent(self) -> list[int]:
        answers = self.answers
        return [sid for sid in self.answering() if answers[sid].sent == len(answers[sid].body)]

    @precondition(lambda self: self.unanswered())
    @rule(choice=choices, size=sizes, declare=st.booleans(), early=st.booleans())
    def server_answers(self, choice: int, size: int, declare: bool, early: bool) -> None:
        streams = self.unanswered()
        stream_id = streams[choice % len(streams)]
        size = min(size, self.largest_answer)
        if early:
            self.server.send_headers(stream_id, [(":status", "103"), ("link", "x")])
        declared = [("content-length", str(size))] if declare else []
        self.server.send_headers(stream_id, HEAD + declared)
        self.answers[stream_id] = Answer(pattern(1000 + stream_id, size))

    @precondition(lambda self: self.answering())
    @rule(choice=choices, size=sizes, padding=st.one_of(st.none(), st.integers(0, 255)))
    def server_sends(self, choice: int, size: int, padding: int | None) -> None:
        streams = self.answering()
        self.send_some(streams[choice % len(streams)], size, padding)

    @precondition(lambda self: self.answering())
    @rule(choice=choices, count=st.integers(1, 50))
    def server_sends_padding(self, choice: int, count: int) -> None:
        streams = self.answering()
        for _ in range(count):
            self.send_some(streams[choice % len(streams)], 1, 255)

    def send_some(self, stream_id: int, size: int, padding: int | None) -> None:
        answer = self.answers[stream_id]
        overhead = 0 if padding is None else padding + 1
        room = min(self.server.local_flow_control_window(stream_id), self.server.max_outbound_frame_size)
        size = min(size, room - overhead, len(answer.body) - answer.sent)
        if size < 0 or (size == 0 and padding is None):
            return
        self.server.send_data(stream_id, answer.body[answer.sent : answer.sent + size], pad_length=padding)
        answer.sent += size

    @precondition(lambda self: self.all_sent())
    @rule(choice=choices, trailers=st.booleans())
    def server_ends(self, choice: int, trailers: bool) -> None:
        streams = self.all_sent()
        stream_id = streams[choice % len(streams)]
        if trailers:
            self.answers[stream_id].trailers = TRAILERS
            self.server.send_headers(stream_id, TRAILERS, end_stream=True)
        else:
            self.server.end_stream(stream_id)
        self.answers[stream_id].ended = True

    @precondition(lambda self: self.open_at_server())
    @rule(choice=choices, code=st.sampled_from([2, 7, 8]))
    def server_resets(self, choice: int, code: int) -> None:
        streams = self.open_at_server()
        stream_id = streams[choice % len(streams)]
        self.server.reset_stream(stream_id, code)
        self.reset_by_server.add(stream_id)

    # All four each time: see `connect`.
    @rule(
        window=st.integers(0, 100_000),
        frame_size=st.sampled_from([16_384, 50_000]),
        streams=st.integers(5, 30),
        table=st.sampled_from([0, 100, 4096, 10_000]),
    )
    def server_changes_settings(self, window: int, frame_size: int, streams: int, table: int) -> None:
        self.server.update_settings(
            {
                SettingCodes.INITIAL_WINDOW_SIZE: window,
                SettingCodes.MAX_FRAME_SIZE: frame_size,
                SettingCodes.MAX_CONCURRENT_STREAMS: streams,
                SettingCodes.HEADER_TABLE_SIZE: table,
            }
        )

    @rule()
    def server_pings(self) -> None:
        self.server.ping(bytes(8))

    @rule(share=shares)
    def server_acknowledges(self, share: float) -> None:
        for stream_id, size in self.unacknowledged.items():
            part = int(size * share)
            try:
                self.server.acknowledge_received_data(part, stream_id)
            except StreamClosedError:
                continue
            self.unacknowledged[stream_id] -= part

    # -- the wire ------------------------------------------------------------------------------------------

    def client_writes(self) -> None:
        """Take what the client writes, cut after each acknowledgement.

        The h2 package obeys settings that were acknowledged, such as a larger MAX_FRAME_SIZE, from its next
        read on only.
        """
        written = self.client.data_to_send()
        while written:
            end = written.find(SETTINGS_ACK) + len(SETTINGS_ACK) if SETTINGS_ACK in written else len(written)
            self.to_server.append(written[:end])
            written = written[end:]

    @rule(size=reads)
    def deliver_to_server(self, size: int) -> None:
        self.client_writes()
        events = []
        while size > 0 and self.to_server:
            part, rest = self.to_server[0][:size], self.to_server[0][size:]
            size -= len(part)
            self.to_server[:1] = [rest] if rest else []
            events += self.server.receive_data(part)
        for event in events:
            if isinstance(event, RequestReceived):
                self.uploads[event.stream_id] = b""
                self.unacknowledged[event.stream_id] = 0
            elif isinstance(event, ServerData):
                self.uploads[event.stream_id] += event.data
                self.unacknowledged[event.stream_id] += event.flow_controlled_length
            elif isinstance(event, StreamReset):
                self.reset_by_server.add(event.stream_id)  # closed there, whoever did it

    @rule(size=reads)
    def deliver_to_client(self, size: int) -> None:
        self.to_client += self.server.data_to_send()
        part = bytes(self.to_client[:size])
        del self.to_client[:size]
        for event in self.client.receive_data(part):
            self.take(event)

    def take(self, event: Event) -> None:
        if isinstance(event, SettingsChanged):
            self.established = True
        elif isinstance(event, PongReceived):
            assert event.payload == b"%08d" % self.pongs
            self.pongs += 1
        else:
            assert isinstance(event, ResponseReceived | DataReceived | ResponseEnded | StreamFailed), event
            stream_id = event.stream_id
            assert stream_id not in self.done
            assert stream_id not in self.reset_by_client
            if isinstance(event, ResponseReceived):
                assert event.status == 200
                assert event.headers[0] == (b"x-server", b"oracle")
            elif isinstance(event, DataReceived):
                assert all(event.chunks)
                self.answers[stream_id].received += b"".join(event.chunks)
            elif isinstance(event, ResponseEnded):
                answer = self.answers[stream_id]
                assert answer.received == answer.body
                assert event.trailers == answer.trailers
                self.done.add(stream_id)
            else:
                assert stream_id in self.reset_by_server
                self.done.add(stream_id)

    # -- what holds ----------------------------------------------------------------------------------------

    @invariant()
    def received_is_a_prefix_of_sent(self) -> None:
        for stream_id, answer in getattr(self, "answers", {}).items():
            assert answer.body.startswith(answer.received)
            assert self.requests[stream_id].startswith(self.uploads[stream_id])
            assert len(answer.received) <= answer.sent

    @rule()
    def deliver_all(self) -> None:
        while True:
            self.client_writes()
            self.to_client += self.server.data_to_send()
            if not self.to_server and not self.to_client:
                return
            if self.to_server:
                self.deliver_to_server(sum(map(len, self.to_server)))
            if self.to_client:
                self.deliver_to_client(len(self.to_client))

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        self.deliver_all()
        assert self.established
        assert self.pongs == self.pings
        self.assert_windows_agree()
        self.finish()
        self.assert_windows_agree()
        for stream_id in self.requests:
            if stream_id not in self.reset_by_server | self.reset_by_client:
                assert stream_id in self.done
        assert self.client.open_streams == 0
        assert not self.client.is_closed

    def finish(self) -> None:
        """Let every stream that is left run to its end."""
        self.server_changes_settings(50_000, 16_384, 20, 4096)
        for _ in range(1000):
            self.server_acknowledges(1.0)
            for stream_id, answer in self.answers.items():
                self.client.grant(stream_id, len(answer.received) - answer.granted)
                answer.granted = len(answer.received)
            for stream_id in self.open_at_server():
                if self.uploads[stream_id] != self.requests[stream_id]:
                    continue
                if stream_id not in self.answers:
                    self.server.send_headers(stream_id, HEAD)
                    self.answers[stream_id] = Answer(b"late")
                self.send_some(stream_id, 1 << 20, None)
                answer = self.answers[stream_id]
                if answer.sent == len(answer.body):
                    self.server.end_stream(stream_id)
                    answer.ended = True
            self.deliver_all()
            if not self.client.open_streams:
                return

    def assert_windows_agree(self) -> None:
        receive, send = self.client.windows().receive, self.client.windows().send
        assert receive == self.server.outbound_flow_control_window
        assert send == self.server.inbound_flow_control_window
        for stream_id in self.open_at_client():
            try:
                stream = self.server._get_stream_by_id(stream_id)
            except (NoSuchStreamError, StreamClosedError):
                continue
            windows = self.client.stream_windows(stream_id)
            assert windows.receive == stream.outbound_flow_control_window
            assert windows.send == stream.inbound_flow_control_window


TestClientAgainstServer = ClientAgainstServer.TestCase
TestClientAgainstServer.settings = settings(
    max_examples=60, stateful_step_count=100, deadline=None, report_multiple_bugs=False
)
