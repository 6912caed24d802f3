"""The peer's HTTP/2 settings (RFC 9113 section 6.5): their initial values, and their bounds."""

from __future__ import annotations

from struct import Struct as Packing
from typing import Final

from holdfast.core.http.connection import ErrorCode
from holdfast.core.http.frames import (
    DEFAULT_WINDOW,
    MAX_31_BITS,
    MAX_FRAME_SIZE,
    MIN_FRAME_SIZE,
    ConnectionFault,
)

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE_SETTING: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

#: The value of `max_concurrent_streams` until the peer sets one.
UNLIMITED: Final = 0xFFFF_FFFF
DEFAULT_TABLE_SIZE: Final = 4096

_read_settings: Final = Packing(">HI").iter_unpack


class PeerSettings:
    """The values that the peer's SETTINGS frames have set so far, or the initial ones."""

    __slots__ = ("header_table_size", "initial_window", "max_concurrent_streams", "max_frame_size")

    def __init__(self) -> None:
        self.header_table_size = DEFAULT_TABLE_SIZE
        self.max_concurrent_streams = UNLIMITED
        self.initial_window = DEFAULT_WINDOW
        self.max_frame_size = MIN_FRAME_SIZE

    def apply(self, payload: bytes) -> int:
        """Apply the settings of one frame, in order. Raises `ConnectionFault` for values out of bounds.

        Returns the smallest header table size among them, which RFC 7541 section 4.2 wants signalled. Unknown
        settings are ignored, as section 6.5.2 demands.
        """
        smallest_table = self.header_table_size
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a SETTINGS frame of {len(payload)} bytes")
        for key, value in _read_settings(payload):
            if key == HEADER_TABLE_SIZE:
                self.header_table_size = value
                smallest_table = min(smallest_table, value)
            elif key == ENABLE_PUSH:
                # Section 6.5.2: "A server MUST NOT explicitly set this value to 1."
                if value != 0:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a server set ENABLE_PUSH to {value}")
            elif key == MAX_CONCURRENT_STREAMS:
                self.max_concurrent_streams = value
            elif key == INITIAL_WINDOW_SIZE:
                # "Values above the maximum flow-control window size of 2^31-1 MUST be treated as a connection
                # error (Section 5.4.1) of type FLOW_CONTROL_ERROR."
                if value > MAX_31_BITS:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
                self.initial_window = value
            elif key == MAX_FRAME_SIZE_SETTING:
                if not MIN_FRAME_SIZE <= value <= MAX_FRAME_SIZE:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
                self.max_frame_size = value
        return smallest_table
