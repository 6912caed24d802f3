from __future__ import annotations

import pytest

from holdfast.core.http.connection import ErrorCode
from holdfast.core.http.frames import ConnectionFault
from holdfast.core.http.settings import UNLIMITED, PeerSettings


def payload(*pairs: tuple[int, int]) -> bytes:
    return b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs)


def values(peer: PeerSettings) -> tuple[int, int, int, int]:
    return (peer.header_table_size, peer.max_concurrent_streams, peer.initial_window, peer.max_frame_size)


def test_defaults_are_those_of_the_rfc() -> None:
    assert values(PeerSettings()) == (4096, UNLIMITED, 65_535, 16_384)


def test_settings_apply_in_order_and_unknown_ones_are_ignored() -> None:
    peer = PeerSettings()
    smallest = peer.apply(
        payload((1, 100), (1, 50), (1, 9000), (2, 0), (3, 0), (4, 1), (5, 20_000), (6, 7), (99, 1))
    )
    assert smallest == 50
    assert values(peer) == (9000, 0, 1, 20_000)
    assert peer.apply(payload((3, 5))) == 9000
    assert values(peer) == (9000, 5, 1, 20_000)
    assert peer.apply(b"") == 9000


def test_bounds_are_accepted() -> None:
    peer = PeerSettings()
    peer.apply(payload((4, 0), (5, 16_384)))
    peer.apply(payload((1, 0xFFFFFFFF), (4, 0x7FFFFFFF), (5, 16_777_215)))
    assert values(peer) == (0xFFFFFFFF, UNLIMITED, 0x7FFFFFFF, 16_777_215)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (payload((2, 1)), ErrorCode.PROTOCOL_ERROR),
        (payload((2, 2)), ErrorCode.PROTOCOL_ERROR),
        (payload((4, 0x80000000)), ErrorCode.FLOW_CONTROL_ERROR),
        (payload((5, 16_383)), ErrorCode.PROTOCOL_ERROR),
        (payload((5, 16_777_216)), ErrorCode.PROTOCOL_ERROR),
        (payload((3, 1)) + b"\0", ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_value_out_of_bounds_is_a_fault(bad: bytes, code: ErrorCode) -> None:
    with pytest.raises(ConnectionFault) as caught:
        PeerSettings().apply(bad)
    assert caught.value.code == code
