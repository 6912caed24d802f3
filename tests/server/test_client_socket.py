"""What a surface of its own gets from `ClientSocket` and its outlet; the smallest one stands for all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from holdfast.admission.principal import Principal
from holdfast.core.entries import EndBody
from holdfast.errors import HoldfastError
from holdfast.server.delivery.client_socket import ClientSocket
from holdfast.server.handshakes import Handshake
from holdfast.server.listener.exchange import Request
from holdfast.streams.stream import Stream
from holdfast_tools.bench.frames import CLOSE, TEXT, FrameSplitter
from tests.server.stage import TENANT, MemoryTransport, Stage


class Bare:
    """A form of a stream that is its payloads: those that say nothing, and the end, have none."""

    def entry(self, stream: bytes, epoch: int, seq: int, payload: bytes) -> bytes:
        return b"" if payload == b'{"n":0}' else payload

    def entries(self, stream: bytes, epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
        return b"".join(self.entry(stream, epoch, first, payload) for payload in payloads)

    def end(self, stream: bytes, epoch: int, seq: int, payload: bytes, end: EndBody) -> bytes:
        return b""


class Words:
    """The control messages of `Teller`."""

    def __init__(self) -> None:
        self.due: list[bytes] = []

    @property
    def waiting(self) -> int:
        return len(self.due)

    def data_to_send(self) -> list[bytes]:
        due, self.due = self.due, []
        return due


class Teller(ClientSocket):
    """Delivers payloads, and says `end of STREAM` behind them."""

    def __init__(self, stage: Stage, principal: Principal = TENANT) -> None:
        self.words = Words()
        self.carrier = MemoryTransport()
        self._splitter = FrameSplitter()
        self.stage = stage
        self.read_at_end: list[int] = []
        self.close_frame: tuple[int, str] | None = None
        request = Request("GET", "/tell", {}, [], b"", "1.1")
        super().__init__(
            Handshake(self.carrier, principal, request), stage.services, control=self.words, framing=Bare()
        )
        stage.peers.add(self)

    def end_written(self, stream: Stream) -> None:
        self.read_at_end.append(self.stream_count)
        self.words.due.append(b"end of " + stream.id.encode())

    def end(self, error: HoldfastError) -> None:
        self.close(error.close_code or 1000, error.code)

    @property
    def has_said_all(self) -> bool:
        return not self.words.due

    def hear(self) -> list[bytes]:
        """Turn the loop, and return the messages that the client has got."""
        self.stage.loop.turn()
        messages, data = [], bytes(self.carrier.taken)
        self.carrier.taken.clear()
        for first, payload in self._splitter.feed(data):
            if first == TEXT:
                messages.append(payload)
            elif first == CLOSE:
                self.close_frame = int.from_bytes(payload[:2], "big"), payload[2:].decode()
        return messages


@pytest.fixture
def stage() -> Stage:
    return Stage()


# -- what the outlet sends -----------------------------------------------------------------------------


def test_entry_without_a_form_is_no_message(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    cursor = source.stream.attach(teller.outlet)
    teller.outlet.add(source.stream, cursor)
    source.say(0)
    assert teller.hear() == []
    source.say(0, 0)
    assert teller.hear() == []
    source.say(1)
    assert teller.hear() == [b'{"n":1}']
    assert cursor.position == 4


def test_what_is_said_at_an_end_without_a_form_is_sent_by_itself(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    teller.outlet.add(source.stream, source.stream.attach(teller.outlet))
    source.say(1)
    source.end()
    assert teller.hear() == [b'{"n":1}', b"end of st_a"]
    assert source.stream.reader_count == 0


def test_stream_whose_end_is_told_is_read_no_more(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    teller.outlet.add(source.stream, source.stream.attach(teller.outlet))
    source.end()
    teller.hear()
    assert teller.read_at_end == [0]


def test_conversation_that_is_idle_behind_an_end_is_closed_when_that_is_told(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    teller.outlet.add(source.stream, source.stream.attach(teller.outlet))
    stage.peers.close_when_idle()
    source.end()
    assert teller.hear() == [b"end of st_a"]
    assert teller.close_frame == (1012, "draining")
