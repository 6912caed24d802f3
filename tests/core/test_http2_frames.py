from __future__ import annotations

import pytest

from holdfast.core.http.connection import ErrorCode
from holdfast.core.http.frames import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    ConnectionFault,
    frame_header,
    goaway_frame,
    header_frames,
    ping_frame,
    require_size,
    rst_stream_frame,
    settings_frame,
    unpack_header,
    unpad,
    window_update_frame,
)
from tests.support.http2_peer import Frame, read_frames


def test_written_frames_read_back() -> None:
    written = (
        settings_frame({1: 2, 0x55: 0xFFFFFFFF})
        + SETTINGS_ACK
        + ping_frame(b"12345678", ACK)
        + window_update_frame(7, 0x7FFFFFFF)
        + rst_stream_frame(0x7FFFFFFF, 8)
        + goaway_frame(11, b"calm")
    )
    assert read_frames(written) == [
        Frame(SETTINGS, 0, 0, bytes.fromhex("000100000002 0055ffffffff")),
        Frame(SETTINGS, ACK, 0, b""),
        Frame(PING, ACK, 0, b"12345678"),
        Frame(WINDOW_UPDATE, 0, 7, bytes.fromhex("7fffffff")),
        Frame(RST_STREAM, 0, 0x7FFFFFFF, bytes.fromhex("00000008")),
        Frame(GOAWAY, 0, 0, bytes.fromhex("00000000 0000000b") + b"calm"),
    ]


def test_header_of_a_frame_reads_back() -> None:
    assert unpack_header(frame_header(8, 1, 3, 0xFFFFFF), 0) == (0xFFFFFF08, 1, 3)


def test_short_field_block_is_one_frame() -> None:
    assert read_frames(header_frames(1, b"block", end_stream=True, max_frame_size=5)) == [
        Frame(HEADERS, END_HEADERS | END_STREAM, 1, b"block")
    ]
    assert read_frames(header_frames(1, b"", end_stream=False, max_frame_size=5)) == [
        Frame(HEADERS, END_HEADERS, 1, b"")
    ]


@pytest.mark.parametrize("length", [6, 9, 10, 11, 15])
def test_long_field_block_continues(length: int) -> None:
    block = bytes(range(length))
    frames = read_frames(header_frames(3, block, end_stream=True, max_frame_size=5))
    assert b"".join(frame.payload for frame in frames) == block
    assert all(frame.stream_id == 3 and 0 < len(frame.payload) <= 5 for frame in frames)
    assert [frame.kind for frame in frames] == [HEADERS] + [CONTINUATION] * (len(frames) - 1)
    assert [frame.flags for frame in frames] == [END_STREAM] + [0] * (len(frames) - 2) + [END_HEADERS]


def test_padding_is_taken_off() -> None:
    assert unpad(0, b"\x02abc") == b"\x02abc"
    assert unpad(PADDED, b"\x02abc\0\0") == b"abc"
    assert unpad(PADDED, b"\x00abc") == b"abc"
    assert unpad(PADDED, b"\x00") == b""
    assert unpad(PADDED, b"\x03\0\0\0") == b""


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", ErrorCode.FRAME_SIZE_ERROR),
        (b"\x01", ErrorCode.PROTOCOL_ERROR),
        (b"\x04\0\0\0", ErrorCode.PROTOCOL_ERROR),
        (b"\xff\0\0\0", ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_padding_beyond_the_frame_is_a_fault(payload: bytes, code: ErrorCode) -> None:
    with pytest.raises(ConnectionFault) as caught:
        unpad(PADDED, payload)
    assert caught.value.code == code


def test_frame_of_another_size_is_a_fault() -> None:
    require_size(b"1234", 4, "PING")
    with pytest.raises(ConnectionFault, match="PING") as caught:
        require_size(b"12345", 4, "PING")
    assert caught.value.code == ErrorCode.FRAME_SIZE_ERROR
