"""The benchmarks' clients notice what is lost, doubled, moved or cut short."""

from __future__ import annotations

import json

import pytest

from bench.client_frames import PING, TEXT, FrameSplitter, client_frame
from bench.readers import Reading, Tally
from holdfast.core.websocket.connection import OP_PING, WebSocketConnection, frame_header, text_frame
from holdfast.core.websocket.events import TextMessage


def entry(token: int) -> bytes:
    return b'{"object":"chat.completion.chunk","choices":[{"delta":{"content":" birch%d"}}]}' % token


@pytest.fixture
def reading() -> Reading:
    reading = Reading(Tally())
    reading.take(0, 1, b'{"object":"chat.completion.chunk","choices":[{"delta":{"content":""}}]}')
    reading.take(1, 2, entry(0) + entry(1))
    return reading


def test_reading_of_whole_answer_has_no_fault(reading: Reading) -> None:
    reading.end(3, "completed")
    tally = reading.tally
    assert (tally.entries, tally.begun, tally.ended) == (3, 1, 1)
    assert (tally.lost, tally.doubled, tally.faults) == (0, 0, 0)


def test_reading_with_a_gap_counts_what_is_lost(reading: Reading) -> None:
    reading.take(5, 1, entry(4))
    assert (reading.tally.lost, reading.tally.doubled) == (2, 0)
    assert reading.tally.faults == 2  # the number of the entry, and that of the token


def test_reading_of_an_entry_again_counts_it_as_doubled(reading: Reading) -> None:
    reading.take(2, 1, entry(1))
    assert (reading.tally.lost, reading.tally.doubled) == (0, 1)


def test_reading_of_another_token_under_the_right_number_is_a_fault(reading: Reading) -> None:
    reading.take(3, 1, entry(7))
    assert (reading.tally.lost, reading.tally.faults) == (0, 1)


@pytest.mark.parametrize(("seq", "status"), [(4, "completed"), (3, "incomplete")])
def test_reading_that_ends_early_or_badly_is_a_fault(reading: Reading, seq: int, status: str) -> None:
    reading.end(seq, status)
    assert reading.tally.faults == 1


@pytest.mark.parametrize("size", [0, 125, 126, 65_535])
def test_client_frame_is_understood_by_the_server(size: int) -> None:
    (event,) = WebSocketConnection().receive_data(client_frame(b"x" * size))
    assert event == TextMessage("x" * size)


def test_client_frame_beyond_its_length_is_refused() -> None:
    with pytest.raises(ValueError, match="65535"):
        client_frame(b"x" * 65_536)


def test_frames_of_the_server_are_split_however_they_arrive() -> None:
    messages = [b"x" * size for size in (0, 125, 126, 70_000)]
    data = b"".join(map(text_frame, messages)) + frame_header(OP_PING, 2) + b"hi"
    expected = [*((TEXT, message) for message in messages), (PING, b"hi")]
    for step in (1, 7, len(data)):
        splitter = FrameSplitter()
        found = [frame for at in range(0, len(data), step) for frame in splitter.feed(data[at : at + step])]
        assert found == expected


def test_entries_are_json_as_the_provider_sends_them() -> None:
    assert json.loads(entry(3))["choices"][0]["delta"]["content"] == " birch3"
