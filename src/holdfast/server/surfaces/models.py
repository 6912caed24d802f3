"""`GET /v1/models`: which models the caller may ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from holdfast.admission.principal import Principal
from holdfast.server.listener.exchange import Exchange, Request, respond_json
from holdfast.server.router import Route
from holdfast.server.services import Services


class Models:
    """Lists models, in the form that OpenAI's SDKs read."""

    def __init__(self, services: Services) -> None:
        self._launcher = services.launcher
        self._created = int(services.clock())

    def routes(self) -> Iterable[Route]:
        yield Route(re.compile(r"/v1/models"), {"GET": self._list})

    async def _list(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        models = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "holdfast"}
            for name in principal.scopes.filter_models(self._launcher.models)
        ]
        respond_json(exchange, {"object": "list", "data": models})


def models(services: Services) -> Iterable[Route]:
    """The surface of the models."""
    return Models(services).routes()
