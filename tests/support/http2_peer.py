"""A scripted HTTP/2 server in memory: writes any frame, right or wrong, and reads what the client wrote."""

from __future__ import annotations

from typing import NamedTuple

from hpack import Decoder, Encoder

from holdfast.core.http.connection import ConnectionFailed, Event, SettingsChanged, StreamFailed
from holdfast.core.http.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from holdfast.core.http.http2 import Http2Connection

OK = [(b":status", b"200")]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs)
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def reset(stream_id: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: int = 0, debug: bytes = b"") -> bytes:
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + debug
    return frame(GOAWAY, 0, 0, payload)


def data(stream_id: int, payload: bytes, *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream_id, payload)


def read_frames(written: bytes) -> list[Frame]:
    frames = []
    position = 0
    while position < len(written):
        length = int.from_bytes(written[position : position + 3], "big")
        kind, flags = written[position + 3 : position + 5]
        stream_id = int.from_bytes(written[position + 5 : position + 9], "big")
        position += 9 + length
        frames.append(Frame(kind, flags, stream_id, written[position - length : position]))
    return frames


class Peer:
    """A client connection and the server's end of it; established unless told otherwise."""

    def __init__(self, *, established: bool = True, server_settings: bytes = b"", **options: int) -> None:
        self.client = Http2Connection(**options)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.preface = self.client.data_to_send()
        assert self.preface.startswith(PREFACE)
        if established:
            (event,) = self.client.receive_data(server_settings or settings())
            assert isinstance(event, SettingsChanged)
            assert self.sent() == [Frame(SETTINGS, 1, 0, b"")]

    def request(self, body: bytes = b"", *, method: bytes = b"GET") -> int:
        return self.client.send_request(method, b"https", b"a.example", b"/", [], body)

    def send(self, *frames: bytes) -> list[Event]:
        return self.client.receive_data(b"".join(frames))

    def sent(self) -> list[Frame]:
        return read_frames(self.client.data_to_send())

    def block(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        return self.encoder.encode(fields)

    def headers(self, stream_id: int, fields: list[tuple[bytes, bytes]] = OK, *, end: bool = False) -> bytes:
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream_id, self.block(fields))

    def split_headers(self, stream_id: int, fields: list[tuple[bytes, bytes]], size: int) -> list[bytes]:
        """HEADERS and CONTINUATION frames of at most this size."""
        block = self.block(fields)
        parts = [block[start : start + size] for start in range(0, len(block), size)]
        frames = [
            frame(CONTINUATION if index else HEADERS, 0, stream_id, part) for index, part in enumerate(parts[:-1])
        ]
        return [*frames, frame(CONTINUATION, END_HEADERS, stream_id, parts[-1])]

    def answered(self, body: bytes = b"", *, method: bytes = b"GET") -> int:
        """A request whose response has begun."""
        stream_id = self.request(body, method=method)
        self.send(self.headers(stream_id))
        self.client.data_to_send()
        return stream_id


def assert_stream_failed(peer: Peer, events: list[Event], stream_id: int, code: int) -> None:
    """The stream failed for the peer's fault: it was reset, and the connection goes on."""
    failed = events[-1]
    assert isinstance(failed, StreamFailed)
    assert (failed.stream_id, failed.code, failed.processed) == (stream_id, code, True)
    assert Frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big")) in peer.sent()
    assert not peer.client.is_closed
    assert peer.client.open_streams == 0


def assert_connection_failed(peer: Peer, events: list[Event], code: int, reason: str = "") -> None:
    """The connection failed for the peer's fault: GOAWAY was sent, and each stream was failed first."""
    failed = events[-1]
    assert isinstance(failed, ConnectionFailed)
    assert failed.code == code, failed
    assert reason in failed.reason
    last = peer.sent()[-1]
    assert (last.kind, last.payload[:8]) == (GOAWAY, bytes(4) + code.to_bytes(4, "big"))
    assert peer.client.is_closed
    assert not peer.client.is_usable
    assert peer.client.open_streams == peer.client.available_streams == 0
    assert peer.send(settings()) == []
    assert peer.client.receive_eof() == []
