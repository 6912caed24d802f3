"""A WebSocket echo server: the thinnest asyncio shell round the sans-I/O core, for the conformance suites.

`python echo_shell.py --port 0` prints the port that it listens on and serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio

from holdfast.core.websocket.connection import WebSocketConnection
from holdfast.core.websocket.events import BinaryMessage, TextMessage
from holdfast.core.websocket.handshake import UpgradeAccepted, check_upgrade, switching_protocols

MAX_REQUEST_HEAD = 16 * 1024
LINGER = 2.0


class EchoProtocol(asyncio.Protocol):
    """One connection: reads the request head, then echoes every message."""

    def __init__(self, max_message: int) -> None:
        self.websocket = WebSocketConnection(max_message=max_message)
        self.head: bytes | None = b""  # None once the handshake is over
        self.linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.linger is not None:
            self.linger.cancel()

    def pause_writing(self) -> None:
        # A peer that does not read its echoes is not read either.
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> None:
        self.websocket.receive_eof()

    def data_received(self, data: bytes) -> None:
        if self.head is None:
            self.receive(data)
            return
        head, separator, rest = (self.head + data).partition(b"\r\n\r\n")
        if not separator:
            self.head = head
            if len(head) > MAX_REQUEST_HEAD:
                self.transport.abort()
            return
        self.head = None
        if self.shake_hands(head) and rest:
            self.receive(rest)

    def shake_hands(self, head: bytes) -> bool:
        request_line, *lines = head.split(b"\r\n")
        method, _, version = request_line.split(b" ")
        fields = (line.partition(b":") for line in lines)
        headers = [(name.lower(), value.strip()) for name, _, value in fields]
        verdict = check_upgrade(method, version.removeprefix(b"HTTP/").decode("latin-1"), headers)
        if isinstance(verdict, UpgradeAccepted):
            self.transport.write(switching_protocols(verdict))
            return True
        answer = [b"HTTP/1.1 %d -" % verdict.status, b"connection: close", b"content-length: 0"]
        answer += [name + b": " + value for name, value in verdict.headers if name != b"connection"]
        self.transport.write(b"\r\n".join(answer) + b"\r\n\r\n")
        self.transport.close()
        return False

    def receive(self, data: bytes) -> None:
        websocket = self.websocket
        was_closed = websocket.is_closed
        for event in websocket.receive_data(data):
            if isinstance(event, TextMessage):
                websocket.send_text(event.data.encode())
            elif isinstance(event, BinaryMessage):
                websocket.send_binary(event.data)
        if output := websocket.data_to_send():
            self.transport.write(output)
        if websocket.is_closed and not was_closed:
            # RFC 6455 section 7.1.1: half-close and read on. To close at once while bytes of the peer are unread
            # would reset the connection, and the reset may overtake our Close frame.
            self.transport.write_eof()
            self.linger = asyncio.get_running_loop().call_later(LINGER, self.transport.abort)


async def serve(port: int, max_message: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EchoProtocol(max_message), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--max-message", type=int, default=16 * 1024 * 1024)
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(arguments.port, arguments.max_message))
    except KeyboardInterrupt:
        pass
