"""A provider that writes as fast as it can must leave others their turns of the event loop."""

from __future__ import annotations

import asyncio
import socket
import threading

import uvloop

from holdfast.core.http.http1 import Http1Connection
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.errors import UpstreamError
from holdfast.timers import Timers
from holdfast.upstream.connection import _TURN_BYTES, UpstreamConnection

SIZE = 64 * 1024 * 1024
#: The most that uvloop reads at a time.
READ = 256_000


class Owner:
    def slot_freed(self, connection: UpstreamConnection) -> None: ...
    def settings_changed(self, connection: UpstreamConnection) -> None: ...
    def request_refused(self, connection: UpstreamConnection) -> None: ...
    def http1_required(self, connection: UpstreamConnection) -> None: ...
    def found_stale(self, connection: UpstreamConnection) -> None: ...
    def connection_draining(self, connection: UpstreamConnection) -> None: ...
    def connection_lost(self, connection: UpstreamConnection) -> None: ...
    def count_reset(self, cause: str) -> None: ...
    def count_goaway(self) -> None: ...


class TurnSink:
    """Counts the bytes of each turn. A turn takes its time, as it does with events in it: more comes meanwhile."""

    def __init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.most = self.turn = self.total = 0

    def response_received(self, status: int, headers: Headers) -> None: ...

    def data_received(self, chunks: list[bytes]) -> None:
        if not self.turn:
            asyncio.get_running_loop().call_soon(self._end_turn)
        size = sum(map(len, chunks))
        self.turn += size
        self.total += size
        sum(b"".join(chunks))

    def _end_turn(self) -> None:
        self.most = max(self.most, self.turn)
        self.turn = 0

    def response_ended(self) -> None:
        self.done.set_result(None)

    def response_failed(self, error: UpstreamError) -> None:
        self.done.set_exception(error)


def provide(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    with peer:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
        peer.sendall(bytes(SIZE))
        peer.recv(1)


async def read_all(address: tuple[str, int]) -> TurnSink:
    loop = asyncio.get_running_loop()
    timers = Timers()
    connection = UpstreamConnection(
        Owner(),
        timers,
        lambda _: Http1Connection(),
        scheme=b"http",
        authority=b"x",
        ping_interval=60,
        ping_timeout=60,
    )
    await loop.create_connection(lambda: connection, *address)
    await connection.established
    sink = TurnSink()
    connection.send(HttpRequest("GET", "/", []), sink)
    await sink.done
    connection.close()
    await connection.gone
    timers.close()
    return sink


def test_fast_provider_takes_a_bounded_part_of_a_turn() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=provide, args=(listener,))
        thread.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sink = runner.run(read_all(listener.getsockname()))
        thread.join()
    assert sink.total == SIZE
    assert sink.most < _TURN_BYTES + READ
