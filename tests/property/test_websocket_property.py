"""Any bytes, in any pieces: the WebSocket core against itself, Python's decoder and the `websockets` package."""

from __future__ import annotations

from itertools import cycle, pairwise, product

from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Protocol, Side, State
from websockets.uri import parse_uri

from holdfast.core.websocket.connection import WebSocketConnection
from holdfast.core.websocket.events import (
    BinaryMessage,
    CloseReceived,
    ConnectionFailed,
    Event,
    PingReceived,
    PongReceived,
    TextMessage,
)
from holdfast.core.websocket.frames import text_frame
from holdfast.core.websocket.handshake import UpgradeAccepted, check_upgrade, switching_protocols

MAX_MESSAGE = 300

masks = st.binary(min_size=4, max_size=4)
payloads = st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode), st.just(b"x" * 126))
close_payloads = st.builds(
    lambda code, reason: code.to_bytes(2, "big") + reason,
    st.one_of(st.integers(0, 65535), st.sampled_from([1000, 1001, 1005, 1006, 1012, 1015, 3000, 4999])),
    st.one_of(st.just(b""), st.text(max_size=30).map(str.encode), st.binary(max_size=30)),
)


def xor(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def build_frame(first: int, payload: bytes, mask: bytes, *, width: int = 0, masked: bool = True) -> bytes:
    """Build a frame whose length field has at least `width` bytes."""
    size = len(payload)
    width = max(width, 0 if size < 126 else 2)
    marker = {0: size, 2: 126, 8: 127}[width]
    head = bytes((first, (0x80 if masked else 0) | marker)) + size.to_bytes(8, "big")[8 - width :]
    return head + mask + xor(payload, mask) if masked else head + payload


good_frames = st.builds(
    build_frame,
    st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x00, 0x80, 0x80, 0x89, 0x8A]),
    payloads,
    masks,
)
odd_frames = st.one_of(
    st.builds(build_frame, st.integers(0, 255), payloads, masks),
    st.builds(build_frame, st.just(0x88), close_payloads, masks),
    st.builds(build_frame, st.just(0x82), payloads, masks, width=st.sampled_from([0, 2, 8])),
    st.builds(build_frame, st.just(0x81), payloads, masks, masked=st.just(False)),
    st.binary(max_size=40),
)
streams = st.lists(st.one_of(good_frames, good_frames, odd_frames), max_size=8).map(b"".join)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[start:end] for start, end in pairwise(edges)]


def receive(pieces: list[bytes], max_frame: int | None = None) -> tuple[list[Event], bytes, int | None]:
    connection = WebSocketConnection(max_message=MAX_MESSAGE, max_frame=max_frame)
    events = [event for piece in pieces for event in connection.receive_data(piece)]
    events += connection.receive_eof()
    return events, connection.data_to_send(), connection.close_code


@given(streams, st.lists(st.integers(0, 1 << 16), max_size=12), st.sampled_from([None, 100]))
def test_any_chunking_gives_the_same_events_and_answers(
    data: bytes, points: list[int], max_frame: int | None
) -> None:
    whole = receive([data], max_frame)
    assert receive(cut(data, points), max_frame) == whole
    assert receive([bytes([byte]) for byte in data], max_frame) == whole


@given(
    streams, st.lists(st.integers(0, 1 << 16), max_size=12), st.lists(st.integers(0, 3), min_size=1, max_size=9)
)
def test_any_cut_in_shares_gives_the_same_events_and_answers(
    data: bytes, points: list[int], shares: list[int]
) -> None:
    """Whether a share of the frames is read at a time, and more bytes come meanwhile, or all at once."""
    connection = WebSocketConnection(max_message=MAX_MESSAGE)
    events: list[Event] = []
    limits = cycle(shares)
    for piece in cut(data, points):
        limit = next(limits)
        received = connection.receive_data(piece, limit)
        # One that was cut off by the end of a piece is gone on with beside the share.
        assert len(received) <= limit + 1
        events += received
    while connection.has_unread:
        events += connection.receive_data(b"", 1)
    events += connection.receive_eof()
    assert (events, connection.data_to_send(), connection.close_code) == receive([data])


@given(st.one_of(streams, st.binary(max_size=300)), st.lists(st.integers(0, 1 << 16), max_size=6))
def test_garbage_never_raises_and_the_last_event_is_the_only_end(data: bytes, points: list[int]) -> None:
    events, sent, close_code = receive(cut(data, points))
    ends = [event for event in events if isinstance(event, CloseReceived | ConnectionFailed)]
    assert ends == events[-1:]
    assert close_code == ends[0].code
    assert len(sent) <= 32 * 127 + 127


@given(st.lists(st.binary(max_size=8), max_size=6), st.booleans())
def test_text_is_accepted_exactly_when_python_decodes_it(pieces: list[bytes], in_fragments: bool) -> None:
    content = b"".join(pieces)
    if in_fragments and pieces:
        last = len(pieces) - 1
        frames = [
            build_frame((0x80 if index == last else 0) | (index == 0), piece, b"mask")
            for index, piece in enumerate(pieces)
        ]
    else:
        frames = [build_frame(0x81, content, b"mask")]
    expected: list[Event]
    try:
        expected = [TextMessage(content.decode())]
    except UnicodeDecodeError:
        expected = [ConnectionFailed(1007, "text message is not valid UTF-8")]
    for reads in ([b"".join(frames)], frames, [bytes([byte]) for byte in b"".join(frames)]):
        connection = WebSocketConnection()
        assert [event for read in reads for event in connection.receive_data(read)] == expected


# Each incomplete character can be completed by bytes of these, if it can be completed at all.
COMPLETIONS = [bytes(tail) for size in range(4) for tail in product((0x80, 0x90, 0xA0), repeat=size)]


def can_become_text(content: bytes) -> bool:
    for tail in COMPLETIONS:
        try:
            (content + tail).decode()
        except UnicodeDecodeError:
            continue
        return True
    return False


almost_text = st.lists(
    st.one_of(
        st.characters().map(str.encode),
        st.sampled_from(
            [b"\xed", b"\xa0", b"\xe0", b"\x9f", b"\xf4", b"\x90", b"\xf0", b"\x8f", b"\xc1", b"\xff"]
        ),
        st.binary(min_size=1, max_size=1),
    ),
    max_size=8,
).map(b"".join)


@given(almost_text)
def test_text_fails_at_the_first_byte_after_which_nothing_can_complete_it(content: bytes) -> None:
    frame = build_frame(0x81, content + b"x" * 126, b"mask", width=2)
    connection = WebSocketConnection()
    assert connection.receive_data(frame[:8]) == []
    for size in range(1, len(content) + 1):
        events = connection.receive_data(frame[7 + size : 8 + size])
        if not can_become_text(content[:size]):
            assert isinstance(events[0], ConnectionFailed)
            return
        assert events == []


# -- the websockets package, server side: does it judge as we do? ---------------------------------------

ascii_payloads = st.text(st.characters(max_codepoint=127), max_size=200).map(str.encode)
one_fault_close_payloads = st.one_of(
    st.binary(max_size=2),
    st.builds(
        lambda code, reason: code.to_bytes(2, "big") + reason.encode(), st.integers(0, 65535), st.text(max_size=9)
    ),
    st.builds(
        lambda code, reason: code.to_bytes(2, "big") + reason, st.integers(3000, 4999), st.binary(max_size=9)
    ),
)
whole_frames = st.one_of(
    st.builds(build_frame, st.sampled_from([0x81, 0x82, 1, 2, 0, 0, 0x80, 0x80, 0x89]), ascii_payloads, masks),
    st.builds(build_frame, st.integers(0, 255).filter(lambda first: first & 0xF != 8), ascii_payloads, masks),
    st.builds(build_frame, st.just(0x88), one_fault_close_payloads, masks),
    st.builds(build_frame, st.just(0x81), ascii_payloads, masks, masked=st.just(False)),
)


def judge(data: bytes) -> tuple[list[Event], int | None]:
    """What the `websockets` package makes of a client's bytes, in our terms: messages, and how it ends."""
    protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=None)
    protocol.receive_data(data)
    events: list[Event] = []
    message, is_text = b"", False
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if event.opcode != Opcode.CONT:
                message, is_text = b"", event.opcode == Opcode.TEXT
            message += event.data
            if event.fin:
                events.append(TextMessage(message.decode()) if is_text else BinaryMessage(message))
        elif event.opcode != Opcode.CLOSE:
            kind = PingReceived if event.opcode == Opcode.PING else PongReceived
            events.append(kind(bytes(event.data)))
    if protocol.close_rcvd is not None:
        # The package fails when a Close frame cuts a fragmented message short. We do not: RFC 6455 has no such
        # rule, and nothing can follow anyway.
        return events, protocol.close_rcvd.code
    return events, None if protocol.close_sent is None else protocol.close_sent.code


@given(st.lists(whole_frames, max_size=8).map(b"".join))
def test_frames_are_judged_as_the_websockets_package_judges_them(data: bytes) -> None:
    expected, code = judge(data)
    connection = WebSocketConnection()
    events = connection.receive_data(data)
    assert connection.close_code == code
    if code is not None:
        assert isinstance(events.pop(), CloseReceived | ConnectionFailed)
    assert events == expected


# -- the websockets package, client side: a conversation -------------------------------------------------

short = st.binary(max_size=125)
actions = st.one_of(
    st.tuples(st.sampled_from(["client text", "server text"]), st.text(max_size=300)),
    st.tuples(st.sampled_from(["client binary", "server binary"]), st.binary(max_size=70_000)),
    st.tuples(st.just("client fragments"), st.lists(st.text(max_size=50), min_size=2, max_size=5)),
    st.tuples(st.sampled_from(["client ping", "client pong", "server ping"]), short),
)
endings = st.tuples(
    st.sampled_from(["client", "server"]), st.sampled_from([1000, 1001, 1012, 4400]), st.text(max_size=30)
)


class Conversation:
    """The package's client and our server, connected in memory; after each turn both have read everything."""

    def __init__(self) -> None:
        self.client = ClientProtocol(parse_uri("ws://gateway.example/v1/ws/stream"), max_size=None)
        self.client.send_request(self.client.connect())
        head = b"".join(self.client.data_to_send()).removesuffix(b"\r\n\r\n")
        request_line, *lines = head.split(b"\r\n")
        headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]
        accepted = check_upgrade(request_line.split(b" ")[0], request_line[-3:].decode(), headers)
        assert isinstance(accepted, UpgradeAccepted)
        self.client.receive_data(switching_protocols(accepted))
        assert isinstance(self.client.events_received()[0], Response)
        assert self.client.state is State.OPEN
        self.server = WebSocketConnection()

    def turn(self) -> tuple[list[Event], list[tuple[int, bytes]]]:
        """Carry bytes to and fro; return what the server and what the client received."""
        at_server: list[Event] = []
        at_client: list[tuple[int, bytes]] = []
        for _ in range(3):
            for data in self.client.data_to_send():
                at_server += self.server.receive_data(data)
            self.client.receive_data(self.server.data_to_send())
            for event in self.client.events_received():
                assert isinstance(event, Frame)
                at_client.append((int(event.opcode), bytes(event.data)))
        return at_server, at_client

    def act(self, action: str, content: str | bytes | list[str]) -> None:
        client, server = self.client, self.server
        expected: tuple[list[Event], list[tuple[int, bytes]]]
        match action, content:
            case "client text", str():
                client.send_text(content.encode())
                expected = [TextMessage(content)], []
            case "client binary", bytes():
                client.send_binary(content)
                expected = [BinaryMessage(content)], []
            case "client fragments", list():
                client.send_text(content[0].encode(), fin=False)
                for piece in content[1:]:
                    client.send_continuation(piece.encode(), fin=False)
                client.send_ping(b"between")
                client.send_continuation(b"", fin=True)
                expected = [PingReceived(b"between"), TextMessage("".join(content))], [(Opcode.PONG, b"between")]
            case "client ping", bytes():
                client.send_ping(content)
                expected = [PingReceived(content)], [(Opcode.PONG, content)]
            case "client pong", bytes():
                client.send_pong(content)
                expected = [PongReceived(content)], []
            case "server text", str():
                server.send_text(content.encode())
                expected = [], [(Opcode.TEXT, content.encode())]
            case "server binary", bytes():
                server.send_binary(content)
                expected = [], [(Opcode.BINARY, content)]
            case "server ping", bytes():
                server.send_ping(content)
                expected = [PongReceived(content)], [(Opcode.PING, content)]
            case _:
                raise AssertionError(action)
        assert self.turn() == expected

    def end(self, side: str, code: int, reason: str) -> None:
        if side == "client":
            self.client.send_close(code, reason)
        else:
            self.server.send_close(code, reason)
        at_server, _ = self.turn()
        assert at_server == [CloseReceived(code, reason)]
        assert self.client.close_rcvd is not None
        assert self.client.close_rcvd.code == self.server.close_code == code
        assert self.server.is_closed
        self.client.receive_eof()
        assert self.client.state is State.CLOSED
        assert self.client.parser_exc is None
        assert self.server.receive_eof() == []


@given(st.lists(actions, max_size=6), endings)
def test_conversation_with_the_client_of_the_websockets_package_is_understood_by_both(
    script: list[tuple[str, str | bytes | list[str]]], ending: tuple[str, int, str]
) -> None:
    conversation = Conversation()
    for action, content in script:
        conversation.act(action, content)
    conversation.end(*ending)


@given(st.binary(max_size=70_000))
def test_text_frame_is_read_by_the_websockets_package(payload: bytes) -> None:
    client = Conversation().client
    client.receive_data(text_frame(payload))
    assert client.events_received() == [Frame(Opcode.TEXT, payload)]
