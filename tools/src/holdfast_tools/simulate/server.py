"""The simulated provider itself: a listener, its connections, and what they share."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence

from holdfast_tools.simulate.connection import Connection
from holdfast_tools.simulate.control import Control, FaultPlan
from holdfast_tools.simulate.faults import ConnectionFault, RandomFailures
from holdfast_tools.simulate.pacer import Pacer
from holdfast_tools.simulate.request_log import RequestLog
from holdfast_tools.simulate.service import Service
from holdfast_tools.simulate.statistics import Counters, Statistics


class SimulatedProvider:
    """An OpenAI-compatible provider that answers with deterministic text and fails as it is told.

    One port speaks HTTP/1.1 and HTTP/2 (by ALPN over TLS, with prior knowledge without). Construct it inside a
    running event loop. It makes no task: everything runs in callbacks of the loop.
    """

    def __init__(
        self,
        *,
        models: tuple[str, ...] = ("demo",),
        max_concurrent_streams: int = 128,
        initial_window_size: int = 65_535,
        connection_faults: Sequence[ConnectionFault] = (),
        random_failures: RandomFailures | None = None,
        log: RequestLog | None = None,
    ) -> None:
        """`connection_faults` hit every connection; `arm` and `arm_current` hit chosen ones.

        `log` is told of every chat completion; it belongs to the caller, who closes it last.
        """
        self._loop = asyncio.get_running_loop()
        self._plan = FaultPlan()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._is_closed = False
        self._all_closed: asyncio.Future[None] | None = None
        self._host = ""
        self.port = 0
        self.pacer = Pacer(self._loop)
        self.counters = Counters()
        self.service = Service(self.pacer, self.counters, self._plan, models, log)
        self.ssl_context: ssl.SSLContext | None = None
        self.protocols: tuple[str, ...] = ("h2", "http/1.1")
        self.max_concurrent_streams = max_concurrent_streams
        self.initial_window_size = initial_window_size
        for fault in connection_faults:
            self._plan.arm_every(fault)
        self._plan.storm(random_failures)
        control = Control(self._plan, lambda own: [other for other in self._connections if other is not own])
        self.service.add_route("POST", "/control/connection-faults", control.arm)
        self.service.add_route("DELETE", "/control/connection-faults", control.disarm)
        self.service.add_route("POST", "/control/random-failures", control.storm)
        self.service.add_route("DELETE", "/control/random-failures", control.calm)

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        ssl_context: ssl.SSLContext | None = None,
        alpn: tuple[str, ...] = ("h2", "http/1.1"),
    ) -> None:
        """Listen; port 0 takes a free one, which `port` then names.

        `alpn` are the protocols that are spoken, also without TLS. `ssl_context` is told about them.
        """
        self.protocols = alpn
        self.ssl_context = ssl_context
        if ssl_context is not None:
            ssl_context.set_alpn_protocols(list(alpn))
        self._server = await self._loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        self._host = host
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def base_url(self) -> str:
        """The URL to give to clients, `http://HOST:PORT/v1`."""
        scheme = "http" if self.ssl_context is None else "https"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{self.port}/v1"

    def statistics(self) -> Statistics:
        """Return the counts as they are now."""
        return self.counters.snapshot()

    async def until(self, predicate: Callable[[Statistics], bool], timeout: float = 5.0) -> Statistics:
        """Wait until `predicate` holds for the counts; TimeoutError shows them if it does not in time."""
        return await self.counters.until(predicate, timeout)

    def arm(self, fault: ConnectionFault, *, count: int = 1) -> None:
        """Give `fault` to each of the next `count` accepted connections, after what was armed before."""
        self._plan.arm_next(fault, count)

    def arm_current(self, fault: ConnectionFault) -> int:
        """Give `fault` to all connections that are open now; return how many they are."""
        connections = list(self._connections)
        for connection in connections:
            connection.arm(fault)
        return len(connections)

    def disarm(self) -> None:
        """Take back the faults that no connection has got yet."""
        self._plan.disarm()

    def storm(self, failures: RandomFailures | None) -> None:
        """Let requests and connections fail at random from now on, or (None) no longer."""
        self._plan.storm(failures)

    async def aclose(self) -> None:
        """Stop listening, abort all connections and wait until they are gone. May be called twice."""
        self._is_closed = True
        server, self._server = self._server, None
        if server is not None:
            server.close()
        while self._connections:
            self._all_closed = self._loop.create_future()
            for connection in list(self._connections):
                connection.abort()
            await self._all_closed
        if server is not None:
            await server.wait_closed()
        self.pacer.clear()

    # -- for connections -------------------------------------------------------------------------------

    def connection_opened(self, connection: Connection) -> None:
        if self._is_closed:  # accepted while `aclose` ran
            connection.abort()
        self._connections.add(connection)
        self.counters.connections += 1
        self.counters.open_connections += 1
        self.counters.changed()
        for fault in self._plan.for_connection():
            connection.arm(fault)

    def connection_closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.counters.open_connections -= 1
        self.counters.changed()
        if self._all_closed is not None and not self._connections and not self._all_closed.done():
            self._all_closed.set_result(None)
