"""What operators look at: the state of the pools."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from holdfast.admission.auth import Principal
from holdfast.server.http import Exchange, Request
from holdfast.upstream.statistics import ProviderStatistics


class Operations:
    """The handlers of the operations' paths; each is called by the API with an authenticated caller."""

    def __init__(self, pool_statistics: Callable[[], list[ProviderStatistics]]) -> None:
        self._pool_statistics = pool_statistics

    async def pool(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        """`GET /v1/pool`: per provider its connections, breaker, waiters and counters."""
        exchange.respond(
            200,
            [(b"content-type", b"application/json"), (b"cache-control", b"no-store")],
            msgspec.json.encode({"providers": self._pool_statistics()}),
        )
