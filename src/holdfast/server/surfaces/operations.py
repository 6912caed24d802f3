"""What operators look at: the state of the pools."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from holdfast.admission.auth import Principal
from holdfast.server.listener.exchange import Exchange, Request
from holdfast.server.surfaces.bounds import Bounds
from holdfast.upstream.statistics import ProviderStatistics

_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class Operations:
    """The handlers of the operations' paths; each is called by the API with an authenticated caller."""

    def __init__(
        self,
        pool_statistics: Callable[[], list[ProviderStatistics]],
        bounds: Callable[[str, str | None], Bounds],
    ) -> None:
        self._pool_statistics = pool_statistics
        self._bounds = bounds

    async def pool(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        """`GET /v1/pool`: per provider its connections, breaker, waiters and counters."""
        principal.require_server()
        exchange.respond(200, _JSON, msgspec.json.encode({"providers": self._pool_statistics()}))

    async def limits(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        """`GET /v1/limits`: every bound with its present use, and those of the caller's own key and tenant."""
        principal.require_server()
        bounds = self._bounds(principal.tenant, principal.key_id)
        exchange.respond(200, _JSON, msgspec.json.encode(bounds))
