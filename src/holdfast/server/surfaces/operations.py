"""What operators and their probes look at: whether the process is well, its pools and its bounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from holdfast.admission.principal import Principal
from holdfast.observe.freshness import Freshness
from holdfast.server.listener.exchange import Exchange, Request, respond_json
from holdfast.server.peers import Peers
from holdfast.server.router import Guard, Route
from holdfast.server.surfaces.bounds import Bounds
from holdfast.upstream.statistics import ProviderStatistics


class Operations:
    """Serves the probes to anyone, the bounds to servers, the pools to the admin; to servers where there is none.

    `bounds` gets the caller.
    """

    def __init__(
        self,
        peers: Peers,
        pool_statistics: Callable[[], list[ProviderStatistics]],
        bounds: Callable[[Principal], Bounds],
        freshness: Freshness,
        *,
        has_admin: bool,
    ) -> None:
        self._peers = peers
        self._pool_statistics = pool_statistics
        self._bounds = bounds
        self._freshness = freshness
        # It tells of every tenant's load, and of the providers.
        self._pool_guard = Guard.ADMIN if has_admin else Guard.SERVER

    def routes(self) -> Iterable[Route]:
        yield Route(re.compile(r"/healthz"), {"GET": self._healthz}, guard=Guard.PUBLIC)
        yield Route(re.compile(r"/readyz"), {"GET": self._readyz}, guard=Guard.PUBLIC)
        yield Route(re.compile(r"/v1/pool"), {"GET": self._pool}, guard=self._pool_guard)
        yield Route(re.compile(r"/v1/limits"), {"GET": self._limits}, guard=Guard.SERVER)

    async def _healthz(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        respond_json(exchange, {"status": "ok"})

    async def _readyz(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        """Answer whether new work is taken. What is stale is told, and is no reason to send work elsewhere."""
        if self._peers.is_draining:
            respond_json(exchange, {"status": "draining"}, status=503)
        else:
            freshness = self._freshness
            body = {"status": "ready", "stale": freshness.is_stale, "sources": freshness.report()}
            respond_json(exchange, body)

    async def _pool(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        """Answer with each provider's connections, breaker, waiters and counters."""
        respond_json(exchange, {"providers": self._pool_statistics()})

    async def _limits(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        """Answer with every bound and its present use, and with those of the caller's own key and tenant."""
        respond_json(exchange, self._bounds(principal))
