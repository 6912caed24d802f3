"""The table of routes: who may, which handler answers, and whose errors the client reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from holdfast.admission.auth import Authenticator
from holdfast.admission.failures import AuthFailures
from holdfast.admission.keys import Key, KeySet, KeyTable, create_key, parse_hash
from holdfast.admission.origins import OriginRules
from holdfast.admission.principal import Principal, Scopes
from holdfast.core.limits.rate_limit import Concurrency, Lease
from holdfast.dialects.chat import CHAT
from holdfast.errors import Forbidden, HoldfastError, MethodNotAllowed, NotFound, RateLimited, Unauthorized
from holdfast.server.handshakes import Handshake, Handshakes, refuse_without_upgrade
from holdfast.server.listener.admitted import Limits
from holdfast.server.listener.exchange import Exchange, Request, respond_json
from holdfast.server.listener.http import HttpConnection
from holdfast.server.listener.requests import MAX_HEAD
from holdfast.server.router import Guard, Route, Router
from tests.server.stage import HttpClient, MemoryTransport, Stage

ADMIN_KEY, ADMIN_HASH = create_key()
SERVER_KEY, SERVER_HASH = create_key()
PAGE_KEY, PAGE_HASH = create_key()
UPGRADE = (
    "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Plain:
    """A shape of errors that no API has."""

    def error_body(self, error: HoldfastError, status: int) -> bytes:
        return b"plain %d %b" % (status, error.code.encode())


class Echoes:
    """A surface for WebSockets that keeps the handshakes and what is said behind them."""

    subprotocols = ("echo.v2", "echo.v1")
    is_conversation = is_busy = True
    stream_count = 0

    def __init__(self) -> None:
        self.opened: list[Handshake] = []
        self.received = b""
        self.failure: Exception | None = None

    def open(self, handshake: Handshake) -> Any:
        if self.failure is not None:
            raise self.failure
        self.opened.append(handshake)
        return self

    def data_received(self, data: bytes) -> None:
        self.received += data

    def close_when_idle(self) -> None: ...


class World:
    """A router with routes for each guard, and the connections of its clients."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        table = KeyTable()
        page = Principal("tenant", key_id="page", scopes=Scopes(is_server=False))
        keys = [
            Key(parse_hash(SERVER_HASH), Principal("tenant", key_id="server")),
            Key(parse_hash(PAGE_HASH), page),
        ]
        table.replace("config", KeySet(keys, 0.0))
        authenticator = Authenticator(
            table,
            OriginRules(["https://app.example"], is_local=False),
            self,  # type: ignore[arg-type] # nobody sends client tokens
            is_local=False,
            admin_key=ADMIN_HASH,
        )
        self.echoes = Echoes()
        self.connections = Concurrency(1)
        self.has_unfinished = False
        self.seen: list[tuple[Principal, str]] = []
        routes = [
            Route(re.compile("/public"), {"GET": self.answer}, guard=Guard.PUBLIC),
            Route(re.compile("/caller/([^/]+)"), {"GET": self.answer, "POST": self.answer}),
            Route(re.compile("/server"), {"GET": self.answer}, guard=Guard.SERVER),
            Route(re.compile("/admin"), {"GET": self.answer}, guard=Guard.ADMIN),
            Route(re.compile("/plain"), {"POST": self.answer}, dialect=Plain()),
            Route(re.compile("/echo"), {"GET": refuse_without_upgrade}, socket=self.echoes, dialect=Plain()),
            Route(re.compile("/watch"), socket=self.echoes, guard=Guard.SERVER),
            Route(re.compile("/console"), socket=self.echoes, guard=Guard.ADMIN),
        ]
        self.authenticator = authenticator
        self.failures = AuthFailures(stage.timers)
        self.handshakes = Handshakes(
            authenticator, stage.peers, self.connect, lambda owner: self.has_unfinished, self.failures
        )
        self.serve(*routes)

    def serve(self, *routes: Route) -> None:
        """Have these routes, and no others."""
        self.router = Router(
            routes,
            self.authenticator,
            self.stage.peers,
            self.handshakes,
            self.failures,
            budget=self.stage.budget,
            default=CHAT,
        )

    def connect(self, tenant: str, key: str | None) -> Sequence[Lease]:
        lease = self.connections.acquire()
        if lease is None:
            raise RateLimited("too many connections")
        return [lease]

    async def answer(self, request: Request, exchange: Exchange, principal: Principal, argument: str) -> None:
        self.seen.append((principal, argument))
        respond_json(exchange, {})

    async def ask(self, method: str, path: str, key: str = "", **headers: str) -> HttpClient:
        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if key:
            fields.append((b"authorization", b"Bearer " + key.encode()))
        client = HttpClient(method, path, headers=fields)
        admitted = self.router.admit(client.request)
        exchange = client.exchange
        exchange.shape, exchange.headers = admitted.shape, admitted.headers
        exchange.secret = admitted.secret
        if isinstance(admitted.refusal, MethodNotAllowed):
            exchange.refuse(admitted.refusal)
        elif admitted.refusal is not None:
            raise admitted.refusal
        else:
            assert admitted.answer is not None
            await admitted.answer(client.request, exchange)
        return client

    def send(self, data: str) -> bytes:
        """What a connection of its own is answered to these bytes, without any request that a handler answers."""
        stage, transport = self.stage, MemoryTransport()
        self.transport = transport
        limits = Limits(max_body=100, header_timeout=1.0, body_timeout=1.0, keep_alive_timeout=1.0)
        connection = HttpConnection(self.router, stage.timers, stage.turns, stage.budget, limits)
        connection.connection_made(transport)
        connection.data_received(data.encode())
        return bytes(transport.taken)


@pytest.fixture
def world() -> World:
    return World(Stage())


def test_every_path_has_one_route(world: World) -> None:
    found = world.router.find("/caller/a%2fb")
    assert found is not None
    assert found[1] == "a%2fb"
    assert world.router.find("/caller/a/b") is None


async def test_routes_of_one_path_answer_together(world: World) -> None:
    shape = Plain()
    world.serve(
        Route(re.compile("/both"), {"POST": world.answer}, dialect=shape),
        Route(re.compile("/other"), {"GET": world.answer}),
        Route(re.compile("/both"), {"GET": refuse_without_upgrade}, socket=world.echoes, dialect=shape),
    )
    assert handshake(world, path="/both").startswith(b"HTTP/1.1 101")
    assert (await world.ask("POST", "/both", SERVER_KEY)).status == 200
    assert (await world.ask("GET", "/both", SERVER_KEY)).body == b"plain 426 invalid_request"
    assert b"allow: GET, HEAD, POST\r\n" in (await world.ask("PUT", "/both", SERVER_KEY)).answer
    assert [route.pattern.pattern for route in world.router.routes] == ["/both", "/other"]


@pytest.mark.parametrize(
    ("fields", "clash"),
    [
        ({"methods": {"POST": refuse_without_upgrade}}, "both answer POST"),
        ({"socket": Echoes()}, "both open WebSockets"),
        ({"guard": Guard.SERVER}, "their guards are CALLER and SERVER"),
        ({"dialect": CHAT}, "their errors have different dialects"),
        ({"guard": Guard.ADMIN, "socket": Echoes()}, "both open WebSockets, their guards are CALLER and ADMIN"),
    ],
)
def test_routes_of_one_path_that_clash_are_refused_at_the_start(
    world: World, fields: dict[str, Any], clash: str
) -> None:
    route = Route(re.compile("/both"), {"POST": world.answer}, socket=world.echoes)
    with pytest.raises(ValueError, match=f"^two routes of /both clash: {clash}$"):
        world.serve(route, Route(re.compile("/both"), **fields))


def test_path_that_an_earlier_pattern_takes_is_refused_at_the_start(world: World) -> None:
    pattern, fixed = Route(re.compile("/caller/([^/]+)")), Route(re.compile("/caller/ws"), socket=world.echoes)
    with pytest.raises(ValueError, match=r"^the route /caller/ws is never found: the earlier route /caller/\("):
        world.serve(pattern, fixed)
    world.serve(fixed, pattern)
    assert handshake(world, path="/caller/ws").startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [
        ("/public", "", None),
        ("/caller/x", "", Unauthorized),
        ("/caller/x", "hf_wrong", Unauthorized),
        ("/caller/x", PAGE_KEY, None),
        ("/server", PAGE_KEY, Forbidden),
        ("/server", SERVER_KEY, None),
        ("/server", ADMIN_KEY, None),
        ("/admin", SERVER_KEY, Unauthorized),
        ("/admin", ADMIN_HASH, Unauthorized),
        ("/admin", ADMIN_KEY, None),
        ("/nothing", ADMIN_KEY, NotFound),
    ],
)
async def test_guard_lets_through_whom_it_should(
    world: World, path: str, key: str, expected: type[HoldfastError] | None
) -> None:
    if expected is None:
        assert (await world.ask("GET", path, key)).status == 200
        assert len(world.seen) == 1
    else:
        with pytest.raises(expected):
            await world.ask("GET", path, key)
        assert world.seen == []


async def test_handler_gets_the_caller_and_what_the_path_holds(world: World) -> None:
    client = await world.ask("HEAD", "/caller/st_1", SERVER_KEY)
    (principal, argument) = world.seen[0]
    assert (principal.key_id, argument, client.exchange.secret) == ("server", "st_1", ("server", 0))


async def test_admin_key_opens_no_websocket_as_a_subprotocol(world: World) -> None:
    answer = world.send(
        f"GET /echo HTTP/1.1\r\nhost: x\r\n{UPGRADE}sec-websocket-protocol: holdfast.token.{ADMIN_KEY}\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 401")


async def test_method_that_a_path_has_not_is_refused_with_those_that_it_has(world: World) -> None:
    client = await world.ask("DELETE", "/caller/x", SERVER_KEY)
    assert client.status == 405
    assert b"allow: GET, HEAD, POST\r\n" in client.answer


async def test_page_of_an_allowed_origin_gets_its_preflight_without_a_credential(world: World) -> None:
    page = {"origin": "https://app.example", "access_control_request_method": "POST"}
    client = await world.ask("OPTIONS", "/caller/x", **page)
    assert client.status == 204
    assert b"access-control-allow-methods: GET, POST\r\n" in client.answer
    with pytest.raises(Forbidden):
        await world.ask("OPTIONS", "/caller/x", **(page | {"origin": "https://other.example"}))
    assert (await world.ask("OPTIONS", "/public", **page)).status == 405


# -- the shape of errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (f"POST /plain HTTP/1.1\r\nhost: x\r\nx-api-key: {SERVER_KEY}\r\ncontent-length: 101\r\n\r\n", 413),
        ("POST /plain HTTP/1.1\r\nhost: x\r\ncontent-length: 101\r\n\r\n", 401),
        ("POST /plain?a=b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (f"POST /pl%61in HTTP/1.1\r\nhost: x\r\na: {'b' * MAX_HEAD}\r\n\r\n", 431),
        ("POST /plain HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\n\r\n", 415),
        (f"GET /plain HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n", 404),
        (f"GET /echo HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n", 401),
    ],
)
def test_listener_and_handshake_refuse_in_the_shape_of_the_path(
    world: World, request_text: str, status: int
) -> None:
    answer = world.send(request_text)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\n\r\nplain %d " % status in answer


@pytest.mark.parametrize(
    "request_text",
    [
        "POST /caller/x HTTP/1.1\r\nhost: x\r\ncontent-length: 101\r\n\r\n",
        "POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 101\r\n\r\n",
        "no request at all\r\n\r\n",
        "POST /plain" + "x" * (2 * MAX_HEAD),
    ],
)
def test_refusal_of_a_path_without_a_dialect_has_the_default_shape(world: World, request_text: str) -> None:
    assert b'\r\n\r\n{"error":{"message":' in world.send(request_text)


async def test_handlers_and_methods_errors_have_the_shape_of_the_path(world: World) -> None:
    client = await world.ask("GET", "/plain", SERVER_KEY)
    assert client.body == b"plain 405 method_not_allowed"
    with pytest.raises(Unauthorized):
        await world.ask("POST", "/plain")
    client = await world.ask("GET", "/echo", SERVER_KEY)
    assert client.body == b"plain 426 invalid_request"


# -- WebSockets ----------------------------------------------------------------------------------------


def handshake(
    world: World, *, subprotocols: str = "", rest: str = "", path: str = "/echo", key: str = SERVER_KEY
) -> bytes:
    offer = f"sec-websocket-protocol: {subprotocols}\r\n" if subprotocols else ""
    return world.send(
        f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{UPGRADE}{offer}\r\n{rest}"
    )


def test_handshake_is_handed_to_the_surface_with_what_came_behind_it(world: World) -> None:
    answer = handshake(world, subprotocols="echo.v1, echo.v2", rest="frames")
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"sec-websocket-protocol: echo.v2\r\n" in answer.lower()
    (opened,) = world.echoes.opened
    assert (opened.subprotocol, opened.principal.key_id, opened.number) == ("echo.v2", "server", 1)
    assert world.echoes.received == b"frames"
    assert (len(world.stage.peers), world.stage.peers.statistics().conversations) == (1, 1)


def test_surface_gets_the_request_and_what_the_path_holds(world: World) -> None:
    world.serve(Route(re.compile("/rooms/([^/]+)/ws"), socket=world.echoes))
    assert handshake(world, path="/rooms/blue/ws?model=demo").startswith(b"HTTP/1.1 101")
    (opened,) = world.echoes.opened
    assert (opened.argument, opened.request.path) == ("blue", "/rooms/blue/ws")
    assert (opened.request.query, opened.request.header(b"host")) == ({"model": "demo"}, "x")


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/watch", PAGE_KEY, 403),
        ("/watch", SERVER_KEY, 101),
        ("/console", SERVER_KEY, 401),
        ("/console", ADMIN_KEY, 101),
    ],
)
def test_guard_of_a_route_holds_for_its_websockets(world: World, path: str, key: str, status: int) -> None:
    assert handshake(world, path=path, key=key).startswith(b"HTTP/1.1 %d " % status)
    assert len(world.echoes.opened) == world.connections.used == (status == 101)


def test_connection_of_a_surface_that_fails_is_cut_and_counted_no_more(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.echoes.failure = RuntimeError("planted")
    handshake(world)
    assert "planted" in caplog.text
    assert world.transport.is_aborted
    assert (world.connections.used, len(world.stage.peers)) == (0, 0)


def test_handshake_without_a_known_subprotocol_has_none(world: World) -> None:
    assert b"sec-websocket-protocol" not in handshake(world, subprotocols="other").lower()
    assert world.echoes.opened[0].subprotocol is None


def test_handshake_beyond_the_connections_of_a_key_is_refused(world: World) -> None:
    handshake(world)
    assert handshake(world).startswith(b"HTTP/1.1 429")
    assert len(world.echoes.opened) == 1


def test_handshake_at_another_path_names_the_paths_that_there_are(world: World) -> None:
    assert b"there is no WebSocket at /nowhere; try /echo, /watch, /console" in handshake(world, path="/nowhere")


@pytest.mark.parametrize("has_unfinished", [False, True])
def test_process_that_goes_opens_conversations_for_what_is_unfinished_alone(
    world: World, has_unfinished: bool
) -> None:
    world.has_unfinished = has_unfinished
    world.stage.peers.close_when_idle()
    assert handshake(world).startswith(b"HTTP/1.1 101" if has_unfinished else b"HTTP/1.1 503")
