"""The load generator's frames: understood by the server, and split however they arrive."""

from __future__ import annotations

import pytest

from holdfast.core.websocket.connection import WebSocketConnection
from holdfast.core.websocket.events import TextMessage
from holdfast.core.websocket.frames import OP_PING, frame_header, text_frame
from holdfast_tools.bench.frames import PING, TEXT, FrameSplitter, client_frame


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_client_frame_is_understood_by_the_server(size: int) -> None:
    (event,) = WebSocketConnection().receive_data(client_frame(b"x" * size))
    assert event == TextMessage("x" * size)


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
def test_frames_of_the_server_are_split_however_they_arrive(step: int) -> None:
    messages = [b"x" * size for size in (0, 125, 126, 70_000)]
    data = b"".join(map(text_frame, messages)) + frame_header(OP_PING, 2) + b"hi"
    splitter = FrameSplitter()
    found = [frame for at in range(0, len(data), step) for frame in splitter.feed(data[at : at + step])]
    assert found == [*((TEXT, message) for message in messages), (PING, b"hi")]
