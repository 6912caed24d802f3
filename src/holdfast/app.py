"""The composition root: builds every object of a gateway process from its configuration, and wires them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

import msgspec

from holdfast.admission.access import Access
from holdfast.admission.queue import Admission
from holdfast.config import Config, ModelConfig, ProviderConfig, check
from holdfast.core.moderation import ReadModeration
from holdfast.demo import find_demo
from holdfast.dialects.chat import CHAT
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError
from holdfast.generation.launcher import Launcher
from holdfast.generation.routes import Routes
from holdfast.observe.events import Observers
from holdfast.observe.request_log import RequestLog
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.delivery.sse import SseDelivery
from holdfast.server.drain import Drain
from holdfast.server.handshakes import Handshakes
from holdfast.server.listener.listening import Listener, tls_context
from holdfast.server.peers import Peers
from holdfast.server.router import Route, Router
from holdfast.server.services import Services, Surface, SurfaceLimits
from holdfast.server.surfaces.bounds import Bounds, collect
from holdfast.server.surfaces.generations import generations
from holdfast.server.surfaces.holdfast_session import sessions
from holdfast.server.surfaces.keys import AdminApi, TokenApi
from holdfast.server.surfaces.models import models
from holdfast.server.surfaces.operations import Operations
from holdfast.server.surfaces.streams import streams
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.timers import Timers
from holdfast.upstream.statistics import ProviderStatistics

logger = logging.getLogger("holdfast")

#: What clients can speak with. A surface is given the services of the process and returns its routes.
SURFACES: tuple[Surface, ...] = (
    generations("/v1/chat/completions", CHAT),
    sessions("/v1/ws/stream", CHAT),
    streams,
    models,
)


class Gateway:
    """One gateway process. `start`, then `aclose`; both once.

    Without configured models it starts a simulated provider on loopback and serves it as the model `demo`.
    `dialects` are the APIs that providers may speak; `surfaces` are served beside the gateway's own.
    """

    def __init__(self, config: Config, *, dialects: Dialects = DIALECTS, surfaces: Iterable[Surface] = ()) -> None:
        self.config = config
        self._dialects = dialects
        self._surfaces = (*SURFACES, *surfaces)
        # What was built, to be closed in reverse.
        self._closing = AsyncExitStack()
        self._is_serving = False

    async def start(self) -> None:
        """Listen. Raises `ConfigError` where the configuration, the address or the TLS files cannot be used."""
        # Also for a configuration that was not read from a file: no port is ever open to everyone by mistake.
        check(self.config, dialects=self._dialects)
        async with AsyncExitStack() as closing:
            await self._build(closing)
            self._closing = closing.pop_all()

    async def _build(self, closing: AsyncExitStack) -> None:
        config, clock = self.config, time.time
        server = config.server
        timers = Timers()
        closing.callback(timers.close)
        provider_configs, model_configs = dict(config.providers), dict(config.models)
        if not model_configs:
            demo = find_demo()
            await demo.start()
            closing.push_async_callback(demo.aclose)
            provider_configs["demo"] = ProviderConfig(base_url=demo.base_url)
            model_configs["demo"] = ModelConfig(route=["demo/demo"])
        peers = Peers(
            timers,
            max_connections=server.max_connections,
            connection_rate=server.max_connections_per_second_per_address,
        )
        access = Access(config, timers, on_removed=peers.revoke, clock=clock)
        closing.push_async_callback(access.aclose)
        await access.start()
        routes = Routes(provider_configs, model_configs, timers, dialects=self._dialects)
        closing.push_async_callback(routes.aclose)
        admission = Admission(
            config.limits,
            config.queue,
            _bounds_of(model_configs),
            timers,
            routes,
            own_limits=access.table.limits_of,
        )
        request_log = RequestLog(content=config.logging.content)
        observers = Observers(request_log)
        directory = Directory(config.streams, timers, MemoryStore(timers))
        launcher = Launcher(directory, routes, admission, timers, observers, clock=clock)
        flusher = Flusher(ReadModeration(max_hold=server.max_hold))
        services = Services(
            launcher=launcher,
            directory=directory,
            timers=timers,
            flusher=flusher,
            sse=SseDelivery(timers, flusher, keep_alive=server.sse_keep_alive),
            peers=peers,
            observer=observers,
            limits=SurfaceLimits.of(config),
            rate_headers=admission.headers,
            clock=clock,
        )
        handshakes = Handshakes(access.authenticator, peers, admission.connect, directory.has_unfinished)
        router = Router(
            [*self._own_routes(services, access), *_routes_of(self._surfaces, services)],
            access.authenticator,
            peers,
            handshakes,
            default=CHAT,
        )
        listener = Listener(server, router, timers)
        self.timers, self.access, self.admission, self.request_log = timers, access, admission, request_log
        self.directory, self.launcher, self.peers, self.router = directory, launcher, peers, router
        self._routes, self._services, self._listener = routes, services, listener
        await listener.start()
        closing.push_async_callback(listener.wait_closed)
        routes.start(admission.admit_waiting)
        self._is_serving = True

    def _own_routes(self, services: Services, access: Access) -> Iterable[Route]:
        """Make the routes that look at more of the process than surfaces are given."""
        yield from Operations(services.peers, self.pool_statistics, self.bounds).routes()
        yield from TokenApi(access.client_tokens).routes()
        if self.config.auth.admin_key is not None:
            yield from AdminApi(access.watched_store).routes()

    def reload(self, config: Config) -> None:
        """Use another configuration for new requests and connections; streams that run are not touched.

        What only a start can change is logged and stays. Raises `ConfigError`; then nothing has changed.
        """
        check(config, dialects=self._dialects)
        old = self.config
        if not config.models:
            raise ConfigError("models: a running gateway keeps at least one; the demo needs a start of its own")
        if config.has_callers != old.has_callers:
            raise ConfigError("keys: a gateway changes between callers with and without keys only at its start")
        kept = {name: getattr(old.server, name) for name in ("host", "port", "max_hold")}
        if (config.server.tls_cert is not None) != self._listener.has_tls:
            kept |= {"tls_cert": old.server.tls_cert, "tls_key": old.server.tls_key}
        server = msgspec.structs.replace(config.server, **kept)
        tls_context(server)  # raises before anything has changed
        self._routes.replace(config.providers, config.models, self.launcher.after_running)
        for name, value in kept.items():
            if value != getattr(config.server, name):
                logger.warning("server.%s takes effect at the next start", name)
        if config.auth != old.auth:
            logger.warning("[auth] takes effect at the next start")
        self.config = msgspec.structs.replace(config, server=server, auth=old.auth)
        self._use_settings(self.config)

    def _use_settings(self, config: Config) -> None:
        server = config.server
        self.access.configure(config)
        self.admission.configure(config.limits, config.queue, _bounds_of(config.models))
        self.directory.configure(config.streams)
        self.request_log.content = config.logging.content
        self._services.limits = SurfaceLimits.of(config)
        self._services.sse.keep_alive = server.sse_keep_alive
        self.peers.configure(
            max_connections=server.max_connections, connection_rate=server.max_connections_per_second_per_address
        )
        self._listener.configure(server)

    def has_healthy_route(self, model: str) -> bool:
        """Whether a request for this model would be tried now; False for models that there are not."""
        route = self._routes.get(model)
        return route is not None and route.is_healthy(self.timers.now())

    def pool_statistics(self) -> list[ProviderStatistics]:
        """What `GET /v1/pool` shows."""
        return self._routes.statistics()

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

    @property
    def port(self) -> int:
        return self._listener.port

    @property
    def url(self) -> str:
        """The URL of the gateway on this machine, `http://127.0.0.1:8080`."""
        return self._listener.url

    async def drain(self) -> bool:
        """Take no new work, and wait until running streams have ended and clients are gone.

        Readers and probes are still served. False where `server.drain_timeout` passed first. `aclose` follows.
        """
        server = self.config.server
        drain = Drain(self.peers, self.directory, self.launcher, self.timers)
        return await drain.run(timeout=server.drain_timeout, window=server.drain_window)

    async def aclose(self, *, grace: float = 0.0) -> None:
        """Stop at once: running streams end `incomplete`, connections are closed, nothing is left behind.

        Clients have `grace` seconds to take what was written to them.
        """
        closing, self._closing = self._closing, AsyncExitStack()
        if self._is_serving:
            self._is_serving = False
            self._listener.stop()
            self.launcher.seal()
            await Drain(self.peers, self.directory, self.launcher, self.timers).finish(grace=grace)
            await self.launcher.aclose()
            self.peers.abort()
        await closing.aclose()


def _bounds_of(models: Mapping[str, ModelConfig]) -> dict[str, int | None]:
    """How many streams each model may have at a time."""
    return {name: model.max_concurrency for name, model in models.items()}


def _routes_of(surfaces: Iterable[Surface], services: Services) -> Iterable[Route]:
    for surface in surfaces:
        yield from surface(services)
