"""The composition root: builds every object of a gateway process from its configuration, and wires them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack

from holdfast.admission.access import Access
from holdfast.admission.queue import Admission
from holdfast.config import Config, ModelConfig, ProviderConfig, secrets_of
from holdfast.core.masking import Masking
from holdfast.core.moderation import ReadModeration
from holdfast.demo import find_demo
from holdfast.dialects.chat import CHAT
from holdfast.dialects.table import Dialects
from holdfast.generation.launcher import Launcher
from holdfast.generation.routes import Routes
from holdfast.observe.events import Observer, Observers
from holdfast.observe.request_log import RequestLog
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.delivery.sse import SseDelivery
from holdfast.server.handshakes import Handshakes
from holdfast.server.listener.listening import Listener
from holdfast.server.peers import Peers
from holdfast.server.router import Route, Router
from holdfast.server.services import Services, Surface, SurfaceLimits
from holdfast.server.surfaces.bounds import Bounds, collect
from holdfast.server.surfaces.keys import AdminApi, TokenApi
from holdfast.server.surfaces.operations import Operations
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.timers import Timers
from holdfast.upstream.statistics import ProviderStatistics


class Process:
    """The objects of one gateway process. Make it inside a running event loop, then `start` it.

    `dialects` are the APIs that providers may speak, `surfaces` what clients speak with, `observers` are told what
    happens beside the request log. `closing` gets what is to be closed, in the order of its making.
    """

    def __init__(
        self,
        config: Config,
        demo_url: str | None,
        closing: AsyncExitStack,
        *,
        dialects: Dialects,
        surfaces: Iterable[Surface],
        observers: Iterable[Observer],
        masking: Masking,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`demo_url` is the provider of the model `demo`, where no model is configured. Raises `ConfigError`."""
        self.config = config
        server = config.server
        self.timers = timers = Timers()
        closing.callback(timers.close)
        self.peers = Peers(
            timers,
            max_connections=server.max_connections,
            connection_rate=server.max_connections_per_second_per_address,
        )
        self.access = Access(config, timers, on_removed=self.peers.revoke, clock=clock)
        closing.push_async_callback(self.access.aclose)
        providers, models = config.providers, config.models
        if demo_url is not None:
            providers = {**providers, "demo": ProviderConfig(base_url=demo_url)}
            models = {"demo": ModelConfig(route=["demo/demo"])}
        masking.add(secrets_of(config))
        self.routes = Routes(providers, models, timers, dialects=dialects, masking=masking)
        closing.push_async_callback(self.routes.aclose)
        self.admission = Admission(
            config.limits,
            config.queue,
            _bounds_of(models),
            timers,
            self.routes,
            own_limits=self.access.table.limits_of,
        )
        self.request_log = RequestLog(content=config.logging.content)
        observer = Observers(self.request_log, *observers)
        self.directory = Directory(config.streams, timers, MemoryStore(timers))
        self.launcher = Launcher(self.directory, self.routes, self.admission, timers, observer, clock=clock)
        flusher = Flusher(ReadModeration(max_hold=server.max_hold))
        self.services = Services(
            launcher=self.launcher,
            directory=self.directory,
            timers=timers,
            flusher=flusher,
            sse=SseDelivery(timers, flusher, keep_alive=server.sse_keep_alive),
            peers=self.peers,
            observer=observer,
            limits=SurfaceLimits.of(config),
            rates=self.admission.rates,
            clock=clock,
        )
        authenticator = self.access.authenticator
        self.router = Router(
            [*self._own_routes(), *(route for surface in surfaces for route in surface(self.services))],
            authenticator,
            self.peers,
            Handshakes(authenticator, self.peers, self.admission.connect, self.directory.has_unfinished),
            default=CHAT,
        )
        self.listener = Listener(server, self.router, timers)

    def _own_routes(self) -> Iterable[Route]:
        """Make the routes that look at more of the process than surfaces are given."""
        yield from Operations(self.peers, self.pool_statistics, self.bounds).routes()
        yield from TokenApi(self.access.client_tokens).routes()
        if self.config.auth.admin_key is not None:
            yield from AdminApi(self.access.watched_store).routes()

    async def start(self, closing: AsyncExitStack) -> None:
        """Read what is kept outside of the configuration, listen, and connect to the providers.

        Raises `ConfigError` where a file or the address cannot be used.
        """
        await self.access.start()
        await self.listener.start()
        closing.push_async_callback(self.listener.wait_closed)
        self.routes.start(self.admission.admit_waiting)

    def configure(self, config: Config) -> None:
        """Use the settings of a checked configuration from now on; its providers and models are `routes`' matter.

        A setting that takes effect at the next start alone is not here: `Gateway.reload` says so in the log.
        """
        self.config = config
        server = config.server
        self.access.configure(config)
        self.admission.configure(config.limits, config.queue, _bounds_of(config.models))
        self.directory.configure(config.streams)
        self.request_log.content = config.logging.content
        self.services.limits = SurfaceLimits.of(config)
        self.services.sse.keep_alive = server.sse_keep_alive
        self.peers.configure(
            max_connections=server.max_connections, connection_rate=server.max_connections_per_second_per_address
        )
        self.listener.configure(server)

    def pool_statistics(self) -> list[ProviderStatistics]:
        """What `GET /v1/pool` shows."""
        return self.routes.statistics()

    def bounds(self, tenant: str, key: str | None) -> Bounds:
        """What `GET /v1/limits` shows to this caller."""
        return collect(
            self.config,
            self.directory,
            self.peers,
            self.admission,
            providers=self.pool_statistics(),
            caller=(tenant, key),
            now=self.timers.now(),
        )


async def build(
    config: Config,
    closing: AsyncExitStack,
    *,
    dialects: Dialects,
    surfaces: Iterable[Surface],
    observers: Iterable[Observer],
    masking: Masking,
) -> Process:
    """Make a process and start it; where no model is configured, with a demo provider on loopback."""
    demo_url = None
    if not config.models:
        demo = find_demo()
        await demo.start()
        closing.push_async_callback(demo.aclose)
        demo_url = demo.base_url
    process = Process(
        config, demo_url, closing, dialects=dialects, surfaces=surfaces, observers=observers, masking=masking
    )
    await process.start(closing)
    return process


def _bounds_of(models: Mapping[str, ModelConfig]) -> dict[str, int | None]:
    """How many streams each model may have at a time."""
    return {name: model.max_concurrency for name, model in models.items()}
