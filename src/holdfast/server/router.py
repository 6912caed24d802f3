"""The one table of paths: what each means over HTTP and to WebSockets, who may, and how its errors look.

Surfaces make the routes; the composition root puts them together. Nothing here knows a path.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from holdfast.admission.auth import Authenticator
from holdfast.admission.failures import AuthFailures
from holdfast.admission.jwks import KeysPending
from holdfast.admission.origins import cors_headers, preflight_headers
from holdfast.admission.principal import Principal
from holdfast.core.limits.budget import Budget
from holdfast.errors import HoldfastError, InvalidRequest, MethodNotAllowed, NotFound
from holdfast.server.handshakes import Handshakes, SocketSurface, Upgrade
from holdfast.server.listener.admitted import MAX_REFUSED, Admitted
from holdfast.server.listener.exchange import ErrorShape, Exchange, Request, error_response
from holdfast.server.listener.http import HttpConnection
from holdfast.server.peers import Peers

#: Answers one request of a caller whom the route's guard has let through; the text is what the path's one group
#: matched.
Handler: TypeAlias = Callable[[Request, Exchange, Principal, str], Awaitable[None]]


class Guard(enum.Enum):
    """Who may use a route. Each but PUBLIC also keeps to the allowed origins, and answers preflights.

    A WebSocket needs a credential on every route.
    """

    PUBLIC = enum.auto()  # anyone, also without a credential
    CALLER = enum.auto()  # whoever has a credential
    SERVER = enum.auto()  # a server's credential, not one for browsers
    ADMIN = enum.auto()  # the admin key alone

    def check(self, principal: Principal) -> None:
        """Raises `Forbidden` or `Unauthorized`."""
        if self is Guard.SERVER:
            principal.require_server()
        elif self is Guard.ADMIN:
            principal.require_admin()


@dataclass(slots=True, frozen=True)
class Route:
    """One path. `pattern` has at most one group. `methods` answer HTTP, `socket` opens WebSockets.

    `dialect` is the API whose errors the path's clients read, None where it belongs to none.
    """

    pattern: re.Pattern[str]
    methods: Mapping[str, Handler] = field(default_factory=dict)
    socket: SocketSurface | None = None
    guard: Guard = Guard.CALLER
    dialect: ErrorShape | None = None


#: The largest body of a path that is no request for a generation; public paths take none.
SMALL_BODY = 64 * 1024
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
#: Of what a client sent, an error quotes so many characters.
_MAX_QUOTED = 100

#: Of public paths, where nobody is asked who they are.
_ANYONE = Principal("")


class Router:
    """The application behind the listener: finds the route, asks the guard, calls the handler.

    `default` is the shape of errors where no route says another. Routes of one pattern become one, so that several
    surfaces can share a path. Raises ValueError where they contradict each other, or where a route is never found.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        authenticator: Authenticator,
        peers: Peers,
        handshakes: Handshakes,
        failures: AuthFailures,
        *,
        budget: Budget,
        default: ErrorShape,
    ) -> None:
        self.routes = _merge(routes)
        self._failures = failures
        self._authenticator = authenticator
        self._peers = peers
        self._handshakes = handshakes
        self._budget = budget
        self._default = default

    def find(self, path: str) -> tuple[Route, str] | None:
        """Return the first route of a path, and what its group matched."""
        for route in self.routes:
            match = route.pattern.fullmatch(path)
            if match is not None:
                return route, match[1] if match.groups() else ""
        return None

    # -- the listener's side --

    @property
    def is_draining(self) -> bool:
        return self._peers.is_draining

    def connection_made(self, connection: HttpConnection) -> HoldfastError | None:
        return self._peers.admit(connection)

    def judged(self, connection: HttpConnection, admitted: Admitted) -> None:
        if admitted.failed is not None and admitted.failed(
            address=connection.address, connection=connection.number
        ):
            connection.refused += 1
            admitted.closes = connection.refused >= MAX_REFUSED
        try:
            if not admitted.is_public:
                self._peers.check_slot(connection)
        except HoldfastError as exc:
            admitted.refusal = exc
        else:
            if admitted.account is not None:
                connection.refused = 0
                self._peers.known(connection)

    def connection_lost(self, connection: HttpConnection) -> None:
        self._peers.discard(connection)

    def answer_finished(self, connection: HttpConnection) -> None:
        self._peers.check_settled()

    def shape_of(self, path: str | None) -> ErrorShape:
        found = None if path is None else self.find(path)
        return self._shape(None if found is None else found[0])

    def _shape(self, route: Route | None) -> ErrorShape:
        return self._default if route is None or route.dialect is None else route.dialect

    def admit(self, request: Request, *, may_wait: bool = True) -> Admitted:
        """Judge a request by its head: route, origin, method and credential, in this order."""
        found = self.find(request.path)
        if found is None:
            return Admitted(self._default, refusal=NotFound(f"there is nothing at {request.path[:_MAX_QUOTED]}"))
        route, argument = found
        admitted = Admitted(self._shape(route))
        try:
            self._admit(route, argument, request, admitted)
        except HoldfastError as exc:
            admitted.refusal = exc
            admitted.failed = partial(
                self._failures.note,
                exc,
                method=request.method,
                route=route.pattern.pattern,
                describe=lambda: self._authenticator.describe(request.headers),
            )
        except KeysPending as pending:
            if may_wait:
                raise
            admitted.refusal = pending.refusal()
        return admitted

    def _admit(self, route: Route, argument: str, request: Request, admitted: Admitted) -> None:
        """Raises `HoldfastError` and `KeysPending`."""
        is_public = admitted.is_public = route.guard is Guard.PUBLIC
        admitted.max_body = 0 if is_public else SMALL_BODY
        if not is_public:
            origin = self._authenticator.check_origin(request.headers)
            if request.method == "OPTIONS" and request.header(b"access-control-request-method") is not None:
                admitted.answer = partial(self._preflight, route.methods)
                return
            admitted.headers += cors_headers(origin)
        handler = route.methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(sorted({*route.methods, "HEAD"} if "GET" in route.methods else route.methods))
            # RFC 9110 section 15.5.6: the answer says which methods there are.
            admitted.headers.append((b"allow", allowed.encode()))
            raise MethodNotAllowed(f"{request.path[:_MAX_QUOTED]} takes {allowed}, not {request.method}")
        principal = _ANYONE
        if not is_public:
            principal = self._authenticator.authenticate(request.headers, request.query)
            route.guard.check(principal)
            admitted.account = self._budget.account(principal.tenant)
            if route.guard is Guard.CALLER and request.method in _METHODS_WITH_BODY:
                admitted.max_body = None
        if principal.key_id is not None:
            admitted.secret = (principal.key_id, principal.generation)

        async def answer(request: Request, exchange: Exchange) -> None:
            await handler(request, exchange, principal, argument)

        admitted.answer = answer

    async def _preflight(self, methods: Collection[str], request: Request, exchange: Exchange) -> None:
        """Tell a browser what its page may send. It asks without credentials: the Origin alone decides."""
        origin = self._authenticator.check_origin(request.headers)
        if origin is None:
            raise InvalidRequest("a preflight needs an Origin header", param="origin")
        requested = (request.header(b"access-control-request-headers") or "").encode("latin-1")
        exchange.respond(204, preflight_headers(origin, methods, requested))

    def upgrade(self, request: Request, connection: HttpConnection, rest: bytes) -> None:
        found = self.find(request.path)
        route, argument = (None, "") if found is None else found
        shape = self._shape(route)
        if route is None or route.socket is None:
            sockets = ", ".join(other.pattern.pattern for other in self.routes if other.socket is not None)
            error = NotFound(f"there is no WebSocket at {request.path[:_MAX_QUOTED]}; try {sockets}")
            connection.refuse(*error_response(error, shape))
            return
        try:
            self._peers.check_slot(connection)
        except HoldfastError as exc:
            connection.refuse(*error_response(exc, shape))
            return
        upgrade = Upgrade(request, route.pattern.pattern, argument, shape, connection, rest)
        self._handshakes.begin(route.socket, route.guard.check, upgrade)


def _merge(routes: Iterable[Route]) -> tuple[Route, ...]:
    merged: dict[re.Pattern[str], Route] = {}
    for route in routes:
        other = merged.get(route.pattern)
        if other is None:
            _check_is_found(route.pattern, merged)
            merged[route.pattern] = route
        else:
            merged[route.pattern] = _join(other, route)
    return tuple(merged.values())


def _check_is_found(pattern: re.Pattern[str], earlier: Iterable[re.Pattern[str]]) -> None:
    """Raise for a fixed path that an earlier pattern matches: the first route of a path is the one found."""
    path = pattern.pattern
    if pattern.fullmatch(path):
        for other in earlier:
            if other.fullmatch(path):
                raise ValueError(f"the route {path} is never found: the earlier route {other.pattern} matches it")


def _join(first: Route, second: Route) -> Route:
    """Make one route of two of one pattern."""
    clashes = [f"both answer {method}" for method in sorted(first.methods.keys() & second.methods.keys())]
    if first.socket is not None and second.socket is not None:
        clashes.append("both open WebSockets")
    if first.guard is not second.guard:
        clashes.append(f"their guards are {first.guard.name} and {second.guard.name}")
    if first.dialect is not second.dialect:
        clashes.append("their errors have different dialects")
    if clashes:
        raise ValueError(f"two routes of {first.pattern.pattern} clash: {', '.join(clashes)}")
    return replace(first, methods={**first.methods, **second.methods}, socket=first.socket or second.socket)
