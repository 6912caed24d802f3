"""What the fixtures `path` and `make_path` give: a gateway in front of a simulated provider."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from holdfast.app import Gateway
from holdfast_tools.simulate.server import SimulatedProvider


@dataclass
class GatewayPath:
    """The whole path: `gateway` serves the model `demo` from `provider`."""

    gateway: Gateway
    provider: SimulatedProvider

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def ws_url(self) -> str:
        return self.gateway.url.replace("http", "ws", 1) + "/v1/ws/stream"


#: Makes a path with given `server`, `streams`, `provider` and `model` settings.
MakePath = Callable[..., Awaitable[GatewayPath]]
