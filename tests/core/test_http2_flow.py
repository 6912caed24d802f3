from __future__ import annotations

import pytest

from holdfast.core.http.connection import ErrorCode
from holdfast.core.http.flow import MAX_USELESS_FRAMES, BodySender, FloodGuard, SendWindow
from holdfast.core.http.frames import END_STREAM, ConnectionFault
from tests.support.http2_peer import read_frames


def written(sender: BodySender) -> list[tuple[int, int, int]]:
    """(stream id, flags, length) of each DATA frame that the windows allow."""
    out: list[bytes | memoryview] = []
    count = sender.write(out)
    frames = read_frames(b"".join(out))
    assert count == len(frames)
    return [(frame.stream_id, frame.flags, len(frame.payload)) for frame in frames]


def sender_with(*sizes: int) -> tuple[BodySender, list[SendWindow]]:
    sender = BodySender()
    windows = []
    for index, size in enumerate(sizes):
        windows.append(sender.open(2 * index + 1))
        sender.add(windows[-1], bytes(size))
    return sender, windows


def test_small_body_is_one_frame() -> None:
    sender, (window,) = sender_with(10)
    assert written(sender) == [(1, END_STREAM, 10)]
    assert window.body is None
    assert (window.size, sender.window.size) == (65_525, 65_525)
    assert written(sender) == []


def test_body_is_cut_by_the_frame_size() -> None:
    sender, _ = sender_with(40_000)
    assert written(sender) == [(1, 0, 16_384), (1, 0, 16_384), (1, END_STREAM, 7_232)]


def test_frames_stay_small_when_the_peer_takes_large_ones() -> None:
    sender, (window,) = sender_with(200_000)
    sender.max_frame_size = 16_777_215
    window.widen(1_000_000)
    sender.window.widen(1_000_000)
    assert [length for _, _, length in written(sender)] == [65_536, 65_536, 65_536, 3_392]


def test_bodies_take_turns_until_the_connection_window_is_used_up() -> None:
    sender, _ = sender_with(40_000, 20_000, 40_000)
    assert written(sender) == [(1, 0, 16_384), (3, 0, 16_384), (5, 0, 16_384), (1, 0, 16_383)]
    sender.window.widen(20_000)
    assert written(sender) == [(1, END_STREAM, 7_233), (3, END_STREAM, 3_616), (5, 0, 9_151)]


def test_closed_stream_window_holds_one_body_alone() -> None:
    sender, (first, _) = sender_with(10, 10)
    first.size = 0
    assert written(sender) == [(3, END_STREAM, 10)]
    assert first.widen(4)
    assert written(sender) == [(1, 0, 4)]
    assert first.widen(100)
    assert written(sender) == [(1, END_STREAM, 6)]


def test_discarded_body_is_not_sent() -> None:
    sender, (first, second) = sender_with(10, 10)
    sender.discard(first)
    assert written(sender) == [(3, END_STREAM, 10)]
    sender.discard(second)


def test_initial_window_moves_open_windows_also_below_zero() -> None:
    sender, (window,) = sender_with(1000)
    window.widen(-65_535 + 100)
    assert written(sender) == [(1, 0, 100)]
    sender.change_initial_window(10_000, [window])
    assert window.size == 10_000 - 65_535
    assert written(sender) == []
    assert sender.open(3).size == 10_000
    window.widen(55_535 + 50)
    assert written(sender) == [(1, 0, 50)]


def test_window_above_the_limit_is_a_fault() -> None:
    window = SendWindow(1, 0)
    assert window.widen(0x7FFFFFFF)
    assert not window.widen(1)
    sender, (first,) = sender_with(1)
    first.widen(0x7FFFFFFF - 65_535)
    with pytest.raises(ConnectionFault) as caught:
        sender.change_initial_window(65_536, [first])
    assert caught.value.code == ErrorCode.FLOW_CONTROL_ERROR


def test_guard_counts_useless_frames_in_a_row() -> None:
    guard = FloodGuard()
    for _ in range(2):
        for _ in range(MAX_USELESS_FRAMES):
            guard.count()
        guard.restart()
    guard.allow(5)
    guard.restart()
    for _ in range(MAX_USELESS_FRAMES + 5):
        guard.count()
    with pytest.raises(ConnectionFault) as caught:
        guard.count()
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM
