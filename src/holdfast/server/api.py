"""The HTTP surface: what each path means. The WebSocket paths hand their connections to `session`."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from holdfast.admission.auth import Authenticator
from holdfast.admission.jwks import KeysPending
from holdfast.admission.keys import SecretId
from holdfast.admission.limiter import network_of
from holdfast.admission.origins import cors_headers, preflight_headers
from holdfast.admission.principal import Principal
from holdfast.admission.queue import Admission
from holdfast.core.entries import START, Position, encode_end
from holdfast.core.limits.rate_limit import ArrivalRates
from holdfast.core.log import Cursor
from holdfast.core.session.messages import SUBPROTOCOL
from holdfast.core.websocket.handshake import (
    UpgradeRejected,
    check_upgrade,
    offered_subprotocols,
    switching_protocols,
)
from holdfast.dialects.chat import CHAT
from holdfast.dialects.dialect import SseFraming
from holdfast.dialects.failure import end_error, end_http_status
from holdfast.errors import (
    Draining,
    HoldfastError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    RateLimited,
)
from holdfast.generation.launcher import Launcher, Started, Terms
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.delivery.sse import HEADERS as SSE_HEADERS
from holdfast.server.delivery.sse import STREAMS_FRAMING, SseReader
from holdfast.server.listener.exchange import Exchange, Request, error_response
from holdfast.server.listener.http import HttpConnection
from holdfast.server.routes import Handler, Routes
from holdfast.server.surfaces.holdfast_session import SessionProtocol, Sessions
from holdfast.server.surfaces.operations import Operations
from holdfast.streams.directory import Directory
from holdfast.streams.stream import Stream
from holdfast.timers import Timers

logger = logging.getLogger("holdfast")

JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]

#: Bounds of `?timeout=` of a long poll, and its default, in seconds.
MAX_POLL = 60.0
DEFAULT_POLL = 25.0
#: About how many bytes of entries one JSON answer carries.
_READ_BYTES = 1024 * 1024

_CURSOR = re.compile(r"(?:([0-9]{1,10})-)?(-1|[0-9]{1,16})")


class ApiLimits(msgspec.Struct, frozen=True):
    """Times in seconds, bounds as numbers."""

    max_connections: int
    detach_grace_http: float
    sse_keep_alive: float
    #: New connections per second and address; None for no limit.
    connection_rate: int | None = None


class Api:
    """The application behind the listener: authenticates, routes, answers."""

    def __init__(
        self,
        directory: Directory,
        launcher: Launcher,
        sessions: Sessions,
        authenticator: Authenticator,
        timers: Timers,
        flusher: Flusher,
        limits: ApiLimits,
        admission: Admission,
        operations: Operations,
    ) -> None:
        self._directory = directory
        self._launcher = launcher
        self._sessions = sessions
        self._authenticator = authenticator
        self._timers = timers
        self._flusher = flusher
        self._admission = admission
        self.configure(limits)
        self._created = int(time.time())
        self.connections: set[HttpConnection] = set()
        self._numbers = itertools.count(1)
        self.is_draining = False
        self._public: dict[str, Callable[[Exchange], None]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }
        # Upgrades that wait for the keys of a token's issuer.
        self._waiting: set[asyncio.Task[None]] = set()
        self._guards: dict[re.Pattern[str], Callable[[Request], Principal]] = {}
        self._routes: Routes = [
            (re.compile(r"/v1/chat/completions"), {"POST": self._chat_completions}),
            (re.compile(r"/v1/limits"), {"GET": operations.limits}),
            (re.compile(r"/v1/models"), {"GET": self._models}),
            (re.compile(r"/v1/pool"), {"GET": operations.pool}),
            (re.compile(r"/v1/streams/([^/]+)"), {"GET": self._read_stream, "DELETE": self._cancel_stream}),
            (re.compile(r"/v1/ws/stream"), {"GET": self._needs_upgrade}),
        ]

    def add_routes(self, routes: Routes, *, guard: Callable[[Request], Principal] | None = None) -> None:
        """Serve more paths. `guard` authenticates their requests instead of the callers' authenticator."""
        self._routes += routes
        if guard is not None:
            self._guards |= {pattern: guard for pattern, _ in routes}

    def configure(self, limits: ApiLimits) -> None:
        """Set limits for what comes from now on."""
        self._limits = limits
        rate = limits.connection_rate
        self._arrivals = None if rate is None else ArrivalRates(rate)

    # -- the listener's side --

    def connection_made(self, connection: HttpConnection) -> HoldfastError | None:
        self.connections.add(connection)
        connection.number = next(self._numbers)
        if len(self.connections) + len(self._sessions.open) > self._limits.max_connections:
            return Overloaded("the gateway has as many connections as it may have", retry_after=1.0)
        rates = self._arrivals
        if rates is not None and not rates.take(network_of(connection.address), self._timers.now()):
            return RateLimited("too many new connections from this address", retry_after=1.0)
        return None

    def connection_lost(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)

    def revoke(self, removed: set[SecretId]) -> None:
        """End the answers to requests that came with these secrets, or with tokens that were made with them."""
        for connection in list(self.connections):
            connection.revoke(removed)

    def drain(self) -> None:
        """Say to probes that this process goes, and close what is idle; new work is the registry's to refuse."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.close_idle()

    @property
    def is_busy(self) -> bool:
        """Whether an HTTP answer is under way."""
        return any(connection.is_busy for connection in self.connections)

    async def handle(self, request: Request, exchange: Exchange) -> None:
        public = self._public.get(request.path)
        if public is not None:
            if request.method in ("GET", "HEAD"):
                public(exchange)
            else:
                _refuse_method(request, exchange, ["GET"])
            return
        for pattern, handlers in self._routes:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            if request.method == "OPTIONS" and request.header(b"access-control-request-method") is not None:
                self._preflight(request, exchange, handlers)
                return
            exchange.headers += cors_headers(self._authenticator.check_origin(request.headers))
            handler = handlers.get("GET" if request.method == "HEAD" else request.method)
            if handler is None:
                _refuse_method(request, exchange, handlers)
                return
            guard = self._guards.get(pattern)
            principal = guard(request) if guard is not None else await self._authenticate(request)
            if principal.key_id is not None:
                exchange.secret = (principal.key_id, principal.generation)
            await handler(request, exchange, principal, match[1] if match.groups() else "")
            return
        raise NotFound(f"there is nothing at {request.path[:200]}")

    async def _authenticate(self, request: Request) -> Principal:
        try:
            return self._authenticator.authenticate(request.headers, request.query)
        except KeysPending as pending:
            await pending.wait()
        try:
            return self._authenticator.authenticate(request.headers, request.query)
        except KeysPending as pending:
            raise pending.refusal() from pending

    def _preflight(self, request: Request, exchange: Exchange, handlers: dict[str, Handler]) -> None:
        """Tell a browser what its page may send. It asks without credentials: the Origin alone decides."""
        origin = self._authenticator.check_origin(request.headers)
        if origin is None:
            raise InvalidRequest("a preflight needs an Origin header", param="origin")
        requested = (request.header(b"access-control-request-headers") or "").encode("latin-1")
        exchange.respond(204, preflight_headers(origin, handlers, requested))

    def upgrade(self, request: Request, connection: HttpConnection, rest: bytes) -> None:
        try:
            self._upgrade(request, connection, rest)
        except KeysPending as pending:
            # What the client sends meanwhile stays in the socket, for the session.
            connection.pause_reading()
            task = asyncio.get_running_loop().create_task(
                self._upgrade_later(pending, request, connection, rest), name="websocket handshake"
            )
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _upgrade_later(
        self, pending: KeysPending, request: Request, connection: HttpConnection, rest: bytes
    ) -> None:
        await pending.wait()
        connection.resume_reading()
        try:
            self._upgrade(request, connection, rest)
        except KeysPending as again:
            connection.refuse(*error_response(again.refusal()))
        except Exception:
            logger.exception("a WebSocket handshake failed")
            connection.abort()

    def _upgrade(self, request: Request, connection: HttpConnection, rest: bytes) -> None:
        try:
            if request.path != "/v1/ws/stream":
                raise NotFound(f"there is no WebSocket at {request.path[:200]}; try /v1/ws/stream")
            principal = self._authenticator.authenticate(
                request.headers, request.query, offered_subprotocols(request.headers)
            )
            if self.is_draining and not self._directory.has_unfinished(principal.owner):
                raise Draining(retry_after=1.0)
        except HoldfastError as exc:
            connection.refuse(*error_response(exc))
            return
        accepted = check_upgrade(request.method.encode(), request.http_version, request.headers)
        if isinstance(accepted, UpgradeRejected):
            status, headers, body = error_response(InvalidRequest(accepted.message), status=accepted.status)
            connection.refuse(status, [*headers, *accepted.headers], body)
            return
        negotiated = SUBPROTOCOL in accepted.subprotocols
        try:
            leases = self._admission.connect(principal.tenant, principal.key_id)
        except RateLimited as exc:
            connection.refuse(*error_response(exc))
            return
        transport = connection.give_away()
        self.connection_lost(connection)
        if transport is None:
            for lease in leases:
                lease.release()
            return
        transport.write(switching_protocols(accepted, subprotocol=SUBPROTOCOL if negotiated else None))
        session = SessionProtocol(transport, self._sessions, principal, negotiated=negotiated, leases=leases)
        session.number = connection.number
        if rest:
            session.data_received(rest)

    # -- operations --

    def _healthz(self, exchange: Exchange) -> None:
        _respond_json(exchange, {"status": "ok"})

    def _readyz(self, exchange: Exchange) -> None:
        if self.is_draining:
            _respond_json(exchange, {"status": "draining"}, status=503)
        else:
            _respond_json(exchange, {"status": "ready"})

    async def _models(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        models = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "holdfast"}
            for name in principal.scopes.filter_models(self._launcher.models)
        ]
        _respond_json(exchange, {"object": "list", "data": models})

    async def _needs_upgrade(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        rejected = check_upgrade(b"GET", request.http_version, request.headers)
        if isinstance(rejected, UpgradeRejected):
            status, headers, body = error_response(InvalidRequest(rejected.message), status=rejected.status)
            exchange.respond(status, [*headers, *rejected.headers], body)

    # -- generations --

    async def _chat_completions(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        chat = CHAT.parse(request.body)
        policy = request.header(b"holdfast-on-disconnect")
        if policy not in (None, "cancel", "continue"):
            raise InvalidRequest(
                "holdfast-on-disconnect must be `cancel` or `continue`", param="holdfast-on-disconnect"
            )
        name, request_id = "holdfast-request-id", request.header(b"holdfast-request-id")
        if request_id is None:
            name, request_id = "idempotency-key", request.header(b"idempotency-key")
        if request_id is not None and not 1 <= len(request_id) <= 256:
            raise InvalidRequest(f"{name} must have 1 to 256 characters", param=name)
        answer: asyncio.Future[Started | HoldfastError] = asyncio.get_running_loop().create_future()
        terms = Terms(
            self._limits.detach_grace_http,
            request_id=request_id,
            keeps_running=policy == "continue",
            connection=exchange.connection_number,
        )
        self._launcher.create(principal, CHAT, request.body, terms, answer.set_result)
        started = await answer
        # A refusal tells what is left as well.
        exchange.headers += self._admission.headers(principal.tenant, principal.key_id)
        if isinstance(started, HoldfastError):
            raise started
        stream = started.stream
        if chat.stream:
            self._stream_sse(stream, exchange, framing=CHAT.framing)
        else:
            await self._answer_whole(stream, exchange)

    def _stream_sse(
        self,
        stream: Stream,
        exchange: Exchange,
        *,
        position: Position = START,
        framing: SseFraming,
    ) -> None:
        SseReader(
            stream,
            exchange,
            self._timers,
            self._flusher,
            position=position,
            framing=framing,
            keep_alive=self._limits.sse_keep_alive,
        )

    async def _answer_whole(self, stream: Stream, exchange: Exchange) -> None:
        """Answer a request that is not streamed: with the one entry, or with why there is none."""
        waiter = Waiter(stream, exchange)
        await waiter.wait_for_end()
        headers = [*JSON, (b"holdfast-stream-id", stream.id.encode())]
        end = stream.end
        if end is None:
            return  # the client left
        payloads = waiter.read()
        if end.status == "completed" and len(payloads) == 2:
            exchange.respond(200, headers, payloads[0])
        else:
            status, error_headers, body = error_response(end_error(end), status=end_http_status(end))
            exchange.respond(status, [*error_headers, headers[-1]], body)

    # -- reading a stream --

    async def _read_stream(
        self, request: Request, exchange: Exchange, principal: Principal, stream_id: str
    ) -> None:
        stream = await self._find(principal, stream_id)
        position = _position_of(request)
        live = request.query.get("live", "sse")
        timeout = _poll_timeout(request)
        stream.log.check(position)
        has_all = position.seq == stream.log.next - 1
        if live == "sse":
            if stream.is_ended and has_all:
                # An EventSource reconnects after every end, and stops only at 204 (HTML section 9.2.3).
                exchange.respond(204, [])
            elif request.method == "HEAD":
                exchange.start(200, [*SSE_HEADERS, (b"holdfast-stream-id", stream.id.encode())])
                exchange.end()
            else:
                self._stream_sse(stream, exchange, position=position, framing=STREAMS_FRAMING)
        elif live in ("none", "long-poll"):
            if live == "long-poll" and has_all and not stream.is_ended:
                await Waiter(stream, exchange, position).wait_for_entry(timeout)
            if not exchange.is_complete:
                _respond_entries(stream, exchange, position.seq)
        else:
            raise InvalidRequest("`live` must be `sse`, `long-poll` or `none`", param="live")

    async def _find(self, principal: Principal, stream_id: str) -> Stream:
        answer: asyncio.Future[list[Stream | HoldfastError]] = asyncio.get_running_loop().create_future()
        self._directory.open(principal.owner, [stream_id], answer.set_result)
        found = (await answer)[0]
        if isinstance(found, HoldfastError):
            raise found
        return found

    async def _cancel_stream(
        self, request: Request, exchange: Exchange, principal: Principal, stream_id: str
    ) -> None:
        stream = await self._find(principal, stream_id)
        stream.cancel()
        end = stream.end
        _respond_json(exchange, {"stream": stream.id, "status": None if end is None else end.status})


class Waiter:
    """Waits on a stream on behalf of one exchange; the client's leaving ends the wait."""

    def __init__(self, stream: Stream, exchange: Exchange, position: Position = START) -> None:
        self._stream = stream
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wants_end = False
        self._cursor = stream.attach(self, position)
        self._exchange = exchange
        exchange.on_disconnect = self._disconnected
        exchange.on_revoked = self._revoked
        if exchange.is_complete:  # the client was gone before its request began
            self._disconnected()

    def wake(self, cursor: Cursor) -> None:
        if not self._future.done() and (self._stream.is_ended or not self._wants_end):
            self._future.set_result(None)

    def position_changed(self, cursor: Cursor) -> None: ...

    def epoch_changed(self, cursor: Cursor) -> None: ...

    def _disconnected(self) -> None:
        self._stream.lose(self._cursor)
        if not self._future.done():
            self._future.set_result(None)

    def _revoked(self, error: HoldfastError) -> None:
        self._exchange.respond(*error_response(error))
        self._disconnected()

    async def wait_for_end(self) -> None:
        self._wants_end = True
        if not self._stream.is_ended:
            await self._future
        self._stream.release(self._cursor)

    async def wait_for_entry(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self._future, timeout)
        except TimeoutError:
            pass
        self._stream.release(self._cursor)

    def read(self) -> list[bytes]:
        return self._cursor.read_payloads(self._stream.log.bytes)


def _respond_entries(stream: Stream, exchange: Exchange, after: int) -> None:
    log = stream.log
    start = after + 1
    payloads = log.slice(start, _READ_BYTES) if start < log.next else []
    stop = start + len(payloads)
    end = log.end if log.end is not None and stop == log.next else None
    if end is not None and payloads:
        payloads.pop()
    entries = b",".join(b'{"seq":%d,"data":%b}' % (seq, payload) for seq, payload in enumerate(payloads, start))
    status = stream.end.status if end is not None and stream.end is not None else "running"
    exchange.respond(
        200,
        JSON,
        b'{"stream":"%b","status":"%b","epoch":%d,"next":%d,"entries":[%b],"end":%b}'
        % (log.stream, status.encode(), log.epoch, stop, entries, b"null" if end is None else encode_end(end)),
    )


def _position_of(request: Request) -> Position:
    """The reader's place: `Last-Event-ID` first, since an EventSource keeps its URL when it comes back."""
    name, value = "last-event-id", request.header(b"last-event-id")
    if not value:
        name, value = "after", request.query.get("after")
    if not value:
        return START
    match = _CURSOR.fullmatch(value)
    if match is None:
        raise InvalidRequest(f"`{name}` must be a sequence number, or `<epoch>-<number>`", param=name)
    return Position(int(match[2]), int(match[1]) if match[1] else None)


def _refuse_method(request: Request, exchange: Exchange, methods: Collection[str]) -> None:
    """RFC 9110 section 15.5.6: the answer says which methods there are."""
    allowed = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
    error = MethodNotAllowed(f"{request.path[:200]} takes {allowed}, not {request.method}")
    status, headers, body = error_response(error)
    exchange.respond(status, [*headers, (b"allow", allowed.encode())], body)


def _poll_timeout(request: Request) -> float:
    value = request.query.get("timeout")
    if value is None:
        return DEFAULT_POLL
    try:
        timeout = float(value)
    except ValueError:
        timeout = -1.0
    if not 0 <= timeout <= MAX_POLL:
        raise InvalidRequest(f"`timeout` must be 0 to {MAX_POLL:g} seconds", param="timeout")
    return timeout


def _respond_json(exchange: Exchange, body: dict[str, Any], *, status: int = 200) -> None:
    exchange.respond(status, JSON, msgspec.json.encode(body))
