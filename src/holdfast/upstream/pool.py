"""The connections to one origin. It does what `core.pool` decides, and is the `Upstream` of the pump."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Mapping

from holdfast.config import ProviderConfig
from holdfast.core import pool as core
from holdfast.core.frameless import without_frames
from holdfast.core.http.connection import HttpMisuse
from holdfast.core.http.request import HttpRequest
from holdfast.core.pool_member import Member, State
from holdfast.errors import PoolTimeout, UpstreamConnectError, UpstreamError, UpstreamMalformed
from holdfast.timers import Deadline, Timers
from holdfast.upstream.call import Call, ResponseSink
from holdfast.upstream.connection import UpstreamConnection
from holdfast.upstream.dial import Origin, dial
from holdfast.upstream.statistics import ConnectionStatistics, PoolStatistics

logger = logging.getLogger("holdfast")

_CLOSED = "the pool is closed: this process is shutting down"


class _Pending(core.PoolRequest):
    """A request until it has been sent, or has failed."""

    __slots__ = ("call", "error", "future", "request", "sink")

    def __init__(self, request: HttpRequest, sink: ResponseSink) -> None:
        super().__init__()
        self.request = request
        self.sink = sink
        self.call: Call | None = None
        self.error: Exception | None = None
        self.future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)


class Pool:
    """Keeps connections alive and lends their free slots, first come, first served; implements `Upstream`.

    Construct it inside a running event loop. Its only tasks are dials.
    """

    def __init__(
        self,
        config: ProviderConfig,
        timers: Timers,
        *,
        rng: random.Random | None = None,
        environ: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        """`name` is the provider's. Raises `ConfigError` for TLS files or a proxy that cannot be used."""
        self._config = config
        self._timers = timers
        self._rng = rng or random.SystemRandom()
        self._origin = Origin.of(config, environ, name=name)
        self._core = core.ConnectionPool(
            core.PoolLimits(
                streams_per_connection=config.streams_per_connection,
                spread=config.spread,
                max_connections=config.max_connections,
                min_warm=config.min_warm,
                max_age=config.max_age,
                idle_timeout=config.idle_timeout,
                wait_timeout=config.timeouts.pool,
                patience=min(1.0, config.timeouts.connect / 4),
            ),
            expected_capacity=config.streams_per_connection if self._origin.expects_http2 else 1,
        )
        self._members: dict[UpstreamConnection, Member] = {}
        self._connections: dict[Member, UpstreamConnection] = {}
        self._dials: dict[Member, asyncio.Task[None]] = {}
        self._closing: set[UpstreamConnection] = set()
        self._timer: Deadline | None = None
        self._timer_at = float("inf")
        self._is_closed = False
        self._requests = 0
        self._connects = 0
        self._wait_timeouts = 0
        self._goaways = 0
        self._connect_failures: Counter[str] = Counter()
        self._resets: Counter[str] = Counter()

    def start(self) -> None:
        """Open the warm connections."""
        self._act(self._core.start(self._timers.now()))

    async def send(self, request: HttpRequest, sink: ResponseSink) -> Call:
        """Send a request on a free slot; connect, or wait for one, if there is none. See `Upstream.send`."""
        if self._is_closed:
            raise UpstreamConnectError(_CLOSED)
        self._requests += 1
        pending = _Pending(request, sink)
        self._act(self._core.request(pending, self._timers.now()))
        if pending.call is None and pending.error is None:
            pending.future = asyncio.get_running_loop().create_future()
            try:
                await pending.future
            except asyncio.CancelledError:
                self._core.cancel(pending)
                if pending.call is not None:
                    pending.call.cancel()
                raise
        if pending.call is None:
            raise pending.error or UpstreamConnectError()
        return pending.call

    async def aclose(self) -> None:
        """Close all connections at once, and wait until their sockets are closed."""
        self._is_closed = True
        self._act(self._core.close())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.gather(*self._dials.values(), return_exceptions=True)
        for connection in list(self._closing):
            connection.abort("closed")
        await asyncio.gather(*[connection.gone for connection in self._closing])

    def statistics(self) -> PoolStatistics:
        now = self._timers.now()
        return PoolStatistics(
            origin=self._origin.url,
            connections=[
                _connection_statistics(member, self._connections[member], now) for member in self._core.members
            ],
            connecting=self._core.connecting,
            waiting=self._core.waiting,
            streams=self._core.used,
            requests=self._requests,
            connects=self._connects,
            connect_failures=dict(self._connect_failures),
            wait_timeouts=self._wait_timeouts,
            goaways=self._goaways,
            resets=dict(self._resets),
        )

    # -- actions -------------------------------------------------------------------------------------------

    def _act(self, actions: list[core.Action], failure: UpstreamError | None = None) -> None:
        due = deque(actions)
        while due:
            action = due.popleft()
            if isinstance(action, core.Lend):
                due.extend(self._lend(action))
            elif isinstance(action, core.Open):
                self._open(action.member)
            elif isinstance(action, core.Close):
                self._close(action.member)
            else:
                assert isinstance(action.request, _Pending)  # noqa: S101 - no others are given to the core
                if isinstance(action, core.Fail):
                    action.request.error = failure
                elif self._is_closed:
                    action.request.error = UpstreamConnectError(_CLOSED)
                else:
                    self._wait_timeouts += 1
                    action.request.error = PoolTimeout(
                        f"no connection to {self._origin.name} came free within {self._config.timeouts.pool:g} s"
                    )
                action.request.wake()
        self._set_timer()

    def _lend(self, action: core.Lend) -> list[core.Action]:
        pending, member = action.request, action.member
        assert isinstance(pending, _Pending)  # noqa: S101 - no others are given to the core
        connection = self._connections[member]
        if connection.has_unread():
            # Not by `connection_lost`: many may be closed at once, and each would be lent within the call before.
            self._forget(member, connection)
            connection.abort("closed")
            return self._core.lend_failed(pending, member, self._timers.now())
        try:
            pending.call = connection.send(pending.request, pending.sink)
        except HttpMisuse as exc:
            pending.error = UpstreamMalformed(f"the request cannot be sent: {exc}")
            self._act(self._core.released(member, self._timers.now()))
        pending.wake()
        return []

    def _open(self, member: Member) -> None:
        self._dials[member] = asyncio.get_running_loop().create_task(
            self._dial(member), name=f"connect {self._origin.url}"
        )

    async def _dial(self, member: Member) -> None:
        failure: UpstreamError | None = None
        try:
            connection = await dial(self._origin, self._make, self._config.timeouts.connect)
            if connection.is_lost:
                raise UpstreamConnectError(f"{self._origin.name} closed the connection at once")
        except UpstreamError as exc:
            failure = without_frames(exc)
        except Exception:
            # A fault of ours; without this, those who wait for the connection would wait for their own deadlines.
            logger.exception("cannot connect to %s", self._origin.url)
            failure = UpstreamConnectError(f"cannot connect to {self._origin.name}")
        finally:
            self._dials.pop(member, None)
        now = self._timers.now()
        if member.state is State.GONE:
            if failure is None:
                self._await_end(connection)
                connection.close()
            return
        if failure is not None:
            logger.info("%s (%s)", failure, failure.detail or self._origin.url)
            self._connect_failures[failure.code] += 1
            self._act(self._core.open_failed(member, now), failure)
            return
        self._connects += 1
        self._members[connection] = member
        self._connections[member] = connection
        self._act(
            self._core.opened(member, now, capacity=_capacity(connection), lifetime=self._rng.uniform(0.0, 1.0))
        )

    def _make(self) -> UpstreamConnection:
        config = self._config
        return UpstreamConnection(
            self,
            self._timers,
            self._origin.speak,
            scheme=self._origin.scheme,
            authority=self._origin.authority,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_timeout,
        )

    def _close(self, member: Member) -> None:
        task = self._dials.get(member)
        if task is not None:
            task.cancel()
        connection = self._connections.get(member)
        if connection is not None:
            self._forget(member, connection)
            connection.close()

    def _forget(self, member: Member, connection: UpstreamConnection) -> None:
        self._connections.pop(member, None)
        self._members.pop(connection, None)
        self._await_end(connection)

    def _await_end(self, connection: UpstreamConnection) -> None:
        if not connection.gone.done():
            self._closing.add(connection)
            connection.gone.add_done_callback(lambda _: self._closing.discard(connection))

    # -- time ----------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        """Keep one timer at the next deadline or before it. It is replaced only by an earlier one, so seldom."""
        deadline = self._core.next_deadline()
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._timers.after(max(0.0, deadline - self._timers.now()), self._timeout)

    def _timeout(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        self._act(self._core.handle_timeout(self._timers.now()))

    # -- called by connections -----------------------------------------------------------------------------

    def slot_freed(self, connection: UpstreamConnection) -> None:
        member = self._members.get(connection)
        if member is None:
            return
        self.settings_changed(connection)
        keep_alive = connection.http.keep_alive_timeout
        self._act(self._core.released(member, self._timers.now(), keep_alive=keep_alive))

    def settings_changed(self, connection: UpstreamConnection) -> None:
        member = self._members.get(connection)
        if member is not None and connection.http.is_usable:
            capacity = _capacity(connection)
            if capacity != member.capacity:
                self._act(self._core.resized(member, self._timers.now(), capacity))

    def request_refused(self, connection: UpstreamConnection) -> None:
        member = self._members.get(connection)
        if member is not None:
            self._core.refused(member, self._timers.now())

    def http1_required(self, connection: UpstreamConnection) -> None:
        if self._origin.http2 == "prior-knowledge":
            return  # it was told so
        if self._origin.http2 == "auto":
            logger.warning("%s demands HTTP/1.1: it is asked over HTTP/1.1 from now on", self._origin.url)
            self._origin = self._origin.without_http2()
        member = self._members.get(connection)
        if member is not None:
            self._act(self._core.drain(member, self._timers.now()))

    def found_stale(self, connection: UpstreamConnection) -> None:
        if connection in self._members:
            self._act(self._core.found_stale(self._timers.now()))

    def connection_draining(self, connection: UpstreamConnection) -> None:
        member = self._members.get(connection)
        if member is not None:
            self._act(self._core.drain(member, self._timers.now()))

    def connection_lost(self, connection: UpstreamConnection) -> None:
        member = self._members.get(connection)
        if member is not None:
            self._forget(member, connection)
            self._act(self._core.closed(member, self._timers.now()))

    def count_reset(self, cause: str) -> None:
        self._resets[cause] += 1

    def count_goaway(self) -> None:
        self._goaways += 1


def _capacity(connection: UpstreamConnection) -> int:
    """How many requests the connection takes at a time, its open ones included."""
    return connection.http.open_streams + connection.http.available_streams


def _connection_statistics(member: Member, connection: UpstreamConnection, now: float) -> ConnectionStatistics:
    windows = connection.http.windows()
    return ConnectionStatistics(
        protocol=connection.http.alpn,
        state=member.state.value,
        age=round(now - member.ready_at, 3),
        streams=member.used,
        capacity=member.capacity,
        rtt=None if connection.rtt is None else round(connection.rtt, 6),
        receive_window=windows.receive,
        send_window=windows.send,
    )
