"""Opens WebSockets: who may, what is refused, and to whom the connection goes.

The checks come in this order: the caller, the route's guard, whether this process takes new conversations, the
handshake itself (RFC 6455 section 4.2), and the connections of the caller's key and tenant. Whatever fails is an
HTTP answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.admission.auth import Authenticator
from holdfast.admission.failures import AuthFailures
from holdfast.admission.jwks import KeysPending
from holdfast.admission.principal import Principal
from holdfast.core.entries import Owner
from holdfast.core.limits.rate_limit import Lease
from holdfast.core.websocket.handshake import (
    UpgradeRejected,
    check_upgrade,
    offered_subprotocols,
    switching_protocols,
)
from holdfast.errors import Draining, HoldfastError, InvalidRequest, RateLimited
from holdfast.server.listener.admitted import KEYS_TIMEOUT
from holdfast.server.listener.exchange import ErrorShape, Exchange, Request, error_response
from holdfast.server.listener.http import HttpConnection
from holdfast.server.listener.turns import KEYS
from holdfast.server.peers import Peer, Peers

logger = logging.getLogger("holdfast")


@dataclass(slots=True, frozen=True)
class Upgrade:
    """A request for a WebSocket, and the connection that it came on, with `rest` behind it.

    `argument` is what the path's one group matched, `shape` that of the errors on the path. `route` is the path's
    pattern.
    """

    request: Request
    route: str
    argument: str
    shape: ErrorShape
    connection: HttpConnection
    rest: bytes


@dataclass(slots=True, frozen=True)
class Handshake:
    """An accepted handshake. Whoever gets it owns the transport, and releases the leases with the connection.

    `argument` is what the path's one group matched. `subprotocol` is the one that both sides speak, None where the
    client offered none of the surface's. `number` is that of the connection, for the log.
    """

    transport: asyncio.Transport
    principal: Principal
    request: Request
    argument: str = ""
    subprotocol: str | None = None
    number: int = 0
    leases: Sequence[Lease] = ()


class Conversation(Peer, Protocol):
    """An open WebSocket."""

    def data_received(self, data: bytes) -> None: ...


class SocketSurface(Protocol):
    """What a path means to WebSockets."""

    @property
    def subprotocols(self) -> Sequence[str]:
        """The subprotocols that it speaks, the preferred one first."""

    def open(self, handshake: Handshake) -> Conversation:
        """Begin a conversation; it becomes the transport's protocol."""


#: Counts one more WebSocket of a tenant and key. Raises `RateLimited`.
Connect = Callable[[str, str | None], Sequence[Lease]]
#: Raises `Forbidden` or `Unauthorized` for a caller who may not use the route.
Check = Callable[[Principal], None]


class Handshakes:
    """Turns upgrade requests into conversations. `has_unfinished` says whether an owner could resume anything."""

    def __init__(
        self,
        authenticator: Authenticator,
        peers: Peers,
        connect: Connect,
        has_unfinished: Callable[[Owner], bool],
        failures: AuthFailures,
    ) -> None:
        self._failures = failures
        self._authenticator = authenticator
        self._peers = peers
        self._connect = connect
        self._has_unfinished = has_unfinished
        # Handshakes that wait for the keys of a token's issuer.
        self._waiting: set[asyncio.Task[None]] = set()

    def begin(self, surface: SocketSurface, check: Check, upgrade: Upgrade) -> None:
        """Answer a handshake, now or when the keys are there that its credential needs.

        `check` is the route's guard, which is asked once the caller is known.
        """
        try:
            self._begin(surface, check, upgrade)
        except KeysPending as pending:
            # What the client sends meanwhile stays in the socket, for the conversation.
            upgrade.connection.pause(KEYS)
            task = asyncio.get_running_loop().create_task(
                self._begin_later(pending, surface, check, upgrade),
                name="websocket handshake",
            )
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _begin_later(
        self, pending: KeysPending, surface: SocketSurface, check: Check, upgrade: Upgrade
    ) -> None:
        connection = upgrade.connection
        try:
            async with asyncio.timeout(KEYS_TIMEOUT):
                await pending.wait()
        except TimeoutError:
            pass  # it is asked once more, and refused
        connection.resume(KEYS)
        try:
            self._begin(surface, check, upgrade)
        except KeysPending as again:
            connection.refuse(*error_response(again.refusal(), upgrade.shape))
        except Exception:
            logger.exception("a WebSocket handshake failed")
            connection.abort()

    def _begin(self, surface: SocketSurface, check: Check, upgrade: Upgrade) -> None:
        request, connection, shape = upgrade.request, upgrade.connection, upgrade.shape
        try:
            principal = self._authenticator.authenticate(
                request.headers, request.query, offered_subprotocols(request.headers)
            )
            check(principal)
            if self._peers.is_draining and not self._has_unfinished(principal.owner):
                raise Draining(retry_after=1.0)
        except HoldfastError as exc:
            self._note_failure(exc, upgrade)
            connection.refuse(*error_response(exc, shape))
            return
        accepted = check_upgrade(request.method.encode(), request.http_version, request.headers)
        if isinstance(accepted, UpgradeRejected):
            status, headers, body = error_response(InvalidRequest(accepted.message), shape, status=accepted.status)
            connection.refuse(status, [*headers, *accepted.headers], body)
            return
        subprotocol = next((name for name in surface.subprotocols if name in accepted.subprotocols), None)
        try:
            leases = self._connect(principal.tenant, principal.key_id)
        except RateLimited as exc:
            connection.refuse(*error_response(exc, shape))
            return
        address = connection.address
        transport = connection.give_away()
        if transport is None:
            for lease in leases:
                lease.release()
            return
        self._peers.discard(connection)
        transport.write(switching_protocols(accepted, subprotocol=subprotocol))
        handshake = Handshake(
            transport, principal, request, upgrade.argument, subprotocol, connection.number, leases
        )
        try:
            conversation = surface.open(handshake)
        except BaseException:
            # Nobody has the transport yet, so nobody would ever close it.
            transport.abort()
            for lease in leases:
                lease.release()
            raise
        self._peers.add(conversation, address)
        if upgrade.rest:
            conversation.data_received(upgrade.rest)

    def _note_failure(self, error: HoldfastError, upgrade: Upgrade) -> None:
        headers = upgrade.request.headers
        self._failures.note(
            error,
            address=upgrade.connection.address,
            connection=upgrade.connection.number,
            method="WebSocket",
            route=upgrade.route,
            describe=lambda: self._authenticator.describe(headers, offered_subprotocols(headers)),
        )


async def refuse_without_upgrade(request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
    """Answer a plain GET of a path that is a WebSocket's: RFC 9110 section 15.5.22."""
    rejected = check_upgrade(b"GET", request.http_version, request.headers)
    if isinstance(rejected, UpgradeRejected):
        exchange.refuse(InvalidRequest(rejected.message), status=rejected.status, headers=rejected.headers)
