"""A WebSocket echo server on the gateway's own listener and codec, for conformance suites.

`python echo_gateway.py --port 9001`: ws://127.0.0.1:9001/ echoes text and binary messages.
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop

from holdfast.core.limits.budget import Budget
from holdfast.core.websocket.handshake import UpgradeRejected, check_upgrade, switching_protocols
from holdfast.dialects.chat import CHAT
from holdfast.errors import InvalidRequest
from holdfast.server.listener.admitted import Admitted, Limits
from holdfast.server.listener.exchange import ErrorShape, Exchange, Request, error_response
from holdfast.server.listener.http import HttpConnection
from holdfast.server.listener.turns import Turns
from holdfast.server.listener.websocket import Liveness, WebSocketProtocol
from holdfast.timers import Timers

MAX_MESSAGE = 32 * 1024 * 1024


class EchoProtocol(WebSocketProtocol):
    """Sends back what it receives. It reads no further while its peer does not read."""

    __slots__ = ()

    def text_received(self, text: str) -> None:
        self.codec.send_text(text.encode())

    def binary_received(self, data: bytes) -> None:
        self.codec.send_binary(data)


class EchoApplication:
    is_draining = False

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.turns = Turns()
        self.budget = Budget(1 << 30)

    def admit(self, request: Request, *, may_wait: bool = True) -> Admitted:
        return Admitted(CHAT, self._refuse)

    async def _refuse(self, request: Request, exchange: Exchange) -> None:
        rejected = check_upgrade(request.method.encode(), request.http_version, request.headers)
        if isinstance(rejected, UpgradeRejected):
            exchange.refuse(InvalidRequest(rejected.message), status=rejected.status, headers=rejected.headers)

    def judged(self, connection: HttpConnection, admitted: Admitted) -> None:
        pass

    def upgrade(self, request: Request, connection: HttpConnection, rest: bytes) -> None:
        accepted = check_upgrade(request.method.encode(), request.http_version, request.headers)
        if isinstance(accepted, UpgradeRejected):
            error = InvalidRequest(accepted.message)
            status, headers, body = error_response(error, CHAT, status=accepted.status)
            connection.refuse(status, [*headers, *accepted.headers], body)
            return
        transport = connection.give_away()
        if transport is None:
            return
        transport.write(switching_protocols(accepted))
        echo = EchoProtocol(
            transport,
            self._timers,
            self.turns,
            self.budget.account("echo"),
            max_message=MAX_MESSAGE,
            message_timeout=60.0,
            liveness=Liveness(interval=20.0, timeout=10.0),
        )
        if rest:
            echo.data_received(rest)

    def shape_of(self, path: str | None) -> ErrorShape:
        return CHAT

    def answer_finished(self, connection: HttpConnection) -> None:
        pass

    def connection_made(self, connection: HttpConnection) -> None:
        return None

    def connection_lost(self, connection: HttpConnection) -> None:
        pass


async def serve(host: str, port: int) -> None:
    timers = Timers()
    application = EchoApplication(timers)
    limits = Limits(max_body=1024, header_timeout=10.0, body_timeout=10.0, keep_alive_timeout=10.0)
    turns, budget = application.turns, application.budget
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpConnection(application, timers, turns, budget, limits), host, port, backlog=1024
    )
    print(f"echo on ws://{host}:{server.sockets[0].getsockname()[1]}/", flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(args.host, args.port))
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
