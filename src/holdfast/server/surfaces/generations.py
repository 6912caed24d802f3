"""`POST` of one dialect: a generation over HTTP, streamed in the dialect's own form or answered whole."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from holdfast.admission.principal import Principal
from holdfast.core.hops import HEADER, check_hops
from holdfast.core.limits.budget import LONG_STEP
from holdfast.dialects.dialect import Dialect
from holdfast.dialects.failure import end_error, end_http_status
from holdfast.errors import HoldfastError, InvalidRequest
from holdfast.generation.launcher import Started, Terms
from holdfast.server.delivery.sse import stream_header
from holdfast.server.delivery.waiter import Waiter
from holdfast.server.listener.exchange import JSON_HEADERS, Exchange, Request
from holdfast.server.listener.turns import LARGE
from holdfast.server.router import Route
from holdfast.server.services import Services, Surface
from holdfast.streams.store import Done, answer_of
from holdfast.streams.stream import Stream


class Generations:
    """Serves the requests of one dialect."""

    def __init__(self, services: Services, dialect: Dialect) -> None:
        self._services = services
        self._dialect = dialect

    def routes(self, path: str) -> Iterable[Route]:
        """Make the route of the dialect's path."""
        yield Route(re.compile(re.escape(path)), {"POST": self._create}, dialect=self._dialect)

    async def _create(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        services = self._services
        policy = request.header(b"holdfast-on-disconnect")
        if policy not in (None, "cancel", "continue"):
            raise InvalidRequest(
                "holdfast-on-disconnect must be `cancel` or `continue`", param="holdfast-on-disconnect"
            )
        terms = Terms(
            detach_grace=services.limits.detach_grace_http,
            request_id=_request_id(request),
            hops=check_hops(request.header(HEADER), services.gateway_id),
            keeps_running=policy == "continue",
            connection=exchange.connection_number,
        )
        exchange.hold(services.connect(principal.tenant, principal.key_id))
        result: Started | HoldfastError = await answer_of(partial(self._begin, request, principal, terms))
        exchange.body_used()
        # A refusal tells what is left as well.
        exchange.headers += self._dialect.rate_headers(services.rates(principal.tenant, principal.key_id))
        if isinstance(result, HoldfastError):
            try:
                raise result
            finally:
                # A frame that knows what it raised is a cycle, and would keep the request.
                del result
        if result.is_streamed:
            services.sse.send(result.stream, exchange, self._dialect.framing)
        else:
            await self._answer_whole(result.stream, exchange)

    def _begin(
        self, request: Request, principal: Principal, terms: Terms, done: Done[Started | HoldfastError]
    ) -> None:
        """Start the generation. That is one step of the loop, outside the socket's turn, so it is counted here."""
        services = self._services
        clock = services.turns.clock  # a loop's own clock may stand still within a turn
        begun = clock()
        services.launcher.create(principal, self._dialect, request.body, terms, done)
        cost = clock() - begun
        if cost > LONG_STEP and len(request.body) >= LARGE:
            services.budget.account(principal.tenant).owe(cost, services.timers.now())

    async def _answer_whole(self, stream: Stream, exchange: Exchange) -> None:
        """Answer a request that is not streamed: with the one entry, or with why there is none."""
        waiter = Waiter(stream, exchange, wants_end=True)
        await waiter.wait()
        end = stream.end
        if end is None:
            return  # the client left
        payloads = waiter.read()
        if end.status == "completed" and len(payloads) == 2:
            exchange.respond(200, [*JSON_HEADERS, stream_header(stream)], payloads[0])
        else:
            exchange.refuse(end_error(end), status=end_http_status(end), headers=[stream_header(stream)])


def _request_id(request: Request) -> str | None:
    name, request_id = "holdfast-request-id", request.header(b"holdfast-request-id")
    if request_id is None:
        name, request_id = "idempotency-key", request.header(b"idempotency-key")
    if request_id is not None and not 1 <= len(request_id) <= 256:
        raise InvalidRequest(f"{name} must have 1 to 256 characters", param=name)
    return request_id


def generations(path: str, dialect: Dialect) -> Surface:
    """Make the surface of a dialect's generations on a path."""
    return lambda services: Generations(services, dialect).routes(path)
