"""What a surface of its own gets from `ClientSocket` and its outlet; the smallest one stands for all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from holdfast.admission.principal import Principal
from holdfast.core.entries import EndBody, Position
from holdfast.errors import AheadOfLog, HoldfastError, TooManyStreams, Unauthorized, UnknownStream
from holdfast.server.delivery.client_socket import ClientSocket
from holdfast.server.handshakes import Handshake
from holdfast.server.listener.exchange import Request
from holdfast.streams.stream import Stream
from holdfast_tools.bench.frames import CLOSE, TEXT, FrameSplitter
from tests.server.stage import LIMITS, TENANT, MemoryTransport, Stage


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

    @property
    def waiting_bytes(self) -> int:
        return sum(map(len, self.due))

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
    cursor = teller.read(source.stream)
    source.say(0)
    assert teller.hear() == []
    source.say(0, 0)
    assert teller.hear() == []
    source.say(1)
    assert teller.hear() == [b'{"n":1}']
    assert cursor.position == 4


def test_what_is_said_at_an_end_without_a_form_is_sent_by_itself(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    teller.read(source.stream)
    source.say(1)
    source.end()
    assert teller.hear() == [b'{"n":1}', b"end of st_a"]
    assert source.stream.reader_count == 0


def test_stream_whose_end_is_told_is_read_no_more(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    teller.read(source.stream)
    source.end()
    teller.hear()
    assert teller.read_at_end == [0]


def test_conversation_that_is_idle_behind_an_end_is_closed_when_that_is_told(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    teller.read(source.stream)
    stage.peers.close_when_idle()
    source.end()
    assert teller.hear() == [b"end of st_a"]
    assert teller.close_frame == (1012, "draining")


# -- what a conversation may read ----------------------------------------------------------------------


def test_conversation_reads_no_more_streams_than_a_session_may(stage: Stage) -> None:
    teller = Teller(stage)
    sources = [stage.streams.make(f"st_{number}") for number in range(LIMITS.max_streams + 1)]
    cursors = [teller.read(source.stream) for source in sources[:-1]]
    for read in (lambda: teller.check_room(), lambda: teller.read(sources[-1].stream)):
        with pytest.raises(TooManyStreams):
            read()
    assert sources[-1].stream.reader_count == 0
    sources[0].say(1)
    sources[0].end()
    assert teller.hear() == [b'{"n":1}', b"end of st_0"]
    teller.read(sources[-1].stream)
    assert teller.stream_count == LIMITS.max_streams
    assert cursors[0] not in teller.outlet.streams


def test_newer_cursor_of_a_stream_takes_the_place_of_the_older(stage: Stage) -> None:
    teller = Teller(stage)
    sources = [stage.streams.make(f"st_{number}") for number in range(LIMITS.max_streams)]
    older = [teller.read(source.stream) for source in sources][-1]
    source = sources[-1]
    source.say(1, 2)
    teller.hear()
    newer = teller.read(source.stream, Position(0), credit=100, replaces=older)
    assert (teller.stream_count, source.stream.reader_count, newer.credit) == (LIMITS.max_streams, 1, 100)
    assert older not in teller.outlet.streams
    assert teller.hear() == [b'{"n":2}']
    newest = teller.read_created(source.stream, replaces=newer)
    assert (teller.stream_count, source.stream.reader_count, newest.position) == (LIMITS.max_streams, 1, 0)


def test_position_that_is_refused_leaves_the_older_cursor(stage: Stage) -> None:
    teller, source = Teller(stage), stage.streams.make("st_a")
    older = teller.read(source.stream)
    with pytest.raises(AheadOfLog):
        teller.read(source.stream, Position(5), replaces=older)
    assert list(teller.outlet.streams) == [older]


def test_expired_token_reads_nothing_further(stage: Stage) -> None:
    teller, source = Teller(stage, Principal("tenant", expires=999.0)), stage.streams.make("st_a")
    for read in (lambda: teller.check_room(), lambda: teller.read(source.stream)):
        with pytest.raises(Unauthorized):
            read()
    assert source.stream.reader_count == 0


def test_bound_is_told_before_what_a_lookup_has_found(stage: Stage) -> None:
    teller = Teller(stage)
    for number in range(LIMITS.max_streams):
        with pytest.raises(UnknownStream):
            teller.read(UnknownStream())
        teller.read(stage.streams.make(f"st_{number}").stream)
    with pytest.raises(TooManyStreams):
        teller.read(UnknownStream())


def test_created_stream_is_read_with_the_credential_that_created_it(stage: Stage) -> None:
    teller, source = Teller(stage, Principal("tenant", expires=999.0)), stage.streams.make("st_a")
    teller.read_created(source.stream)
    source.say(1)
    assert teller.hear() == [b'{"n":1}']


def test_created_stream_beyond_the_bound_waits_for_its_reader(stage: Stage) -> None:
    teller = Teller(stage)
    for number in range(LIMITS.max_streams):
        teller.read_created(stage.streams.make(f"st_{number}").stream)
    source = stage.streams.make("st_a")
    with pytest.raises(TooManyStreams):
        teller.read_created(source.stream)
    assert (teller.stream_count, source.stream.reader_count) == (LIMITS.max_streams, 0)
    stage.loop.pass_time(61.0)
    assert source.calls == ["abandon"]


@pytest.mark.parametrize("is_lost", [False, True])
def test_stream_that_is_found_for_a_client_that_has_gone_waits_for_its_return(stage: Stage, is_lost: bool) -> None:
    teller, found, created = Teller(stage), stage.streams.make("st_a"), stage.streams.make("st_b")
    if is_lost:
        teller.connection_lost(None)
    else:
        teller.close(1000)
    teller.read(found.stream)
    teller.read_created(created.stream)
    for source in (found, created):
        assert (source.stream.reader_count, len(source.stream.log.cursors)) == (0, 1)
    assert teller.stream_count == 0


# -- the first message ---------------------------------------------------------------------------------


def test_client_that_does_not_begin_is_sent_away(stage: Stage) -> None:
    teller = Teller(stage)
    stage.loop.pass_time(LIMITS.hello_timeout + 0.2)
    assert teller.hear() == []
    assert teller.close_frame == (4408, "hello_timeout")


def test_client_that_has_begun_may_stay(stage: Stage) -> None:
    teller = Teller(stage)
    stage.loop.pass_time(LIMITS.hello_timeout - 0.2)
    teller.begin()
    teller.begin()
    stage.loop.pass_time(1.0)
    teller.hear()
    assert teller.close_frame is None


def test_client_that_leaves_before_it_begins_leaves_no_timer(stage: Stage) -> None:
    teller = Teller(stage)
    teller.connection_lost(None)
    assert stage.timers.pending == 0
