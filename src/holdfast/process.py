"""The composition root: builds every object of a gateway process from its configuration, and wires them."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import NamedTuple

from holdfast.admission.access import Access
from holdfast.admission.failures import AuthFailures
from holdfast.admission.principal import Principal
from holdfast.admission.queue import Admission
from holdfast.config import Config, ModelConfig, ProviderConfig, secrets_of
from holdfast.core.limits.budget import Budget
from holdfast.core.masking import Masking
from holdfast.core.moderation import ReadModeration
from holdfast.demo import find_demo
from holdfast.descriptors import Descriptors
from holdfast.dialects.chat import CHAT
from holdfast.dialects.table import Dialects
from holdfast.generation.launcher import Launcher
from holdfast.generation.routes import Routes, Serving
from holdfast.observe.events import Observer, Observers
from holdfast.observe.freshness import Freshness
from holdfast.observe.request_log import RequestLog
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.delivery.sse import SseDelivery
from holdfast.server.handshakes import Handshakes
from holdfast.server.listener.listening import Listener, tls_context
from holdfast.server.listener.turns import Turns
from holdfast.server.peers import Peers
from holdfast.server.router import Route, Router
from holdfast.server.services import Services, Surface, SurfaceLimits
from holdfast.server.surfaces.bounds import Bounds, Largest, collect
from holdfast.server.surfaces.keys import AdminApi, TokenApi
from holdfast.server.surfaces.operations import Operations
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.timers import Timers


class Prepared(NamedTuple):
    """A configuration, and what was made of its files and providers to use it."""

    config: Config
    serving: Serving
    certificate: ssl.SSLContext | None


class Process:
    """The objects of one gateway process. Make it inside a running event loop, then `start` it.

    `dialects` are the APIs that providers may speak, `surfaces` what clients speak with, `observers` are told what
    happens beside the request log. `masking` learns the secrets of the configuration. `closing` gets what is to be
    closed, in the order of its making.
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
        self.freshness = Freshness()
        self.descriptors = Descriptors()
        self.peers = Peers(
            timers,
            max_connections=self.descriptors.connections(server.max_connections),
            connection_rate=server.max_connections_per_second_per_address,
            per_address=server.max_connections_per_address,
            max_descriptor=self.descriptors.max_descriptor,
        )
        self.failures = AuthFailures(timers)
        closing.callback(self.failures.close)
        self.access = Access(config, timers, on_removed=self.peers.revoke, freshness=self.freshness, clock=clock)
        closing.push_async_callback(self.access.aclose)
        self._demo_url = demo_url
        providers, models = self._served(config)
        self._masking = masking
        masking.add(secrets_of(config))
        gateway_id = secrets.token_hex(8)
        self.routes = Routes(providers, models, timers, dialects=dialects, gateway_id=gateway_id, masking=masking)
        closing.push_async_callback(self.routes.aclose)
        table = self.access.table
        self.admission = Admission(
            config.limits, config.queue, _bounds_of(models), timers, self.routes, own_limits=table.limits_of
        )
        table.on_limits = self._use_limits
        self.request_log = RequestLog(content=config.logging.content)
        observer = Observers(self.request_log, *observers)
        self.budget = Budget(server.memory_bytes)
        self.directory = Directory(config.streams, timers, MemoryStore(timers), self.budget)
        self._largest = Largest(self.directory, self.peers, self.admission)
        self.launcher = Launcher(self.directory, self.routes, self.admission, timers, observer, clock=clock)
        flusher = Flusher(ReadModeration(max_hold=server.max_hold))
        turns = Turns()
        self.services = Services(
            launcher=self.launcher,
            directory=self.directory,
            timers=timers,
            turns=turns,
            budget=self.budget,
            flusher=flusher,
            sse=SseDelivery(timers, flusher, keep_alive=server.sse_keep_alive),
            peers=self.peers,
            observer=observer,
            limits=SurfaceLimits.of(config),
            rates=self.admission.rates,
            connect=self.admission.connect,
            clock=clock,
            gateway_id=gateway_id,
        )
        authenticator = self.access.authenticator
        self.router = Router(
            [*self._own_routes(), *(route for surface in surfaces for route in surface(self.services))],
            authenticator,
            self.peers,
            Handshakes(
                authenticator, self.peers, self.admission.connect, self.directory.has_unfinished, self.failures
            ),
            self.failures,
            budget=self.budget,
            default=CHAT,
        )
        self.listener = Listener(server, self.router, timers, turns, self.budget)

    def _own_routes(self) -> Iterable[Route]:
        """Make the routes that look at more of the process than surfaces are given."""
        has_admin = self.config.auth.admin_key is not None
        yield from Operations(
            self.peers, self.routes.statistics, self.bounds, self.freshness, has_admin=has_admin
        ).routes()
        yield from TokenApi(self.access.client_tokens).routes()
        if has_admin:
            yield from AdminApi(self.access.watched_store).routes()

    async def start(self, closing: AsyncExitStack) -> None:
        """Read what is kept outside of the configuration, listen, and connect to the providers.

        Raises `ConfigError` where a file or the address cannot be used.
        """
        await self.access.start()
        await self.listener.start()
        closing.push_async_callback(self.listener.wait_closed)
        self.routes.start(self.admission.admit_waiting)

    @property
    def in_use(self) -> Prepared:
        """What `configure` was given last, or what the process began with."""
        return Prepared(self.config, self.routes.serving, self.listener.certificate)

    def prepare(self, config: Config) -> Prepared:
        """Make what a checked configuration needs, and open its files, without using anything yet.

        Raises `ConfigError` where something of it cannot be used.
        """
        self._masking.add(secrets_of(config))
        return Prepared(config, self.routes.prepare(*self._served(config)), tls_context(config.server))

    def configure(self, prepared: Prepared) -> None:
        """Use what was prepared from now on. Called again with what was in use, it takes back what it has done.

        A setting that takes effect at the next start alone is not here: `Gateway.reload` says so in the log.
        """
        self.config = config = prepared.config
        server = config.server
        self.listener.configure(server, prepared.certificate)
        self.access.configure(config)
        self._use_limits(admits=False)
        self.budget.configure(server.memory_bytes)
        self.directory.configure(config.streams)
        self.request_log.content = config.logging.content
        self.services.limits = SurfaceLimits.of(config)
        self.services.sse.keep_alive = server.sse_keep_alive
        self.peers.configure(
            max_connections=self.descriptors.connections(server.max_connections),
            connection_rate=server.max_connections_per_second_per_address,
            per_address=server.max_connections_per_address,
        )
        # The last step, since providers that it retires do not come back.
        self.routes.replace(prepared.serving, self.launcher.after_running)

    def _use_limits(self, *, admits: bool = True) -> None:
        """Use the limits of the configuration, and those that keys bring along, as they are now."""
        config = self.config
        bounds = _bounds_of(self._served(config)[1])
        self.admission.configure(config.limits, config.queue, bounds, admits=admits)

    def _served(self, config: Config) -> tuple[Mapping[str, ProviderConfig], Mapping[str, ModelConfig]]:
        """Return the providers and models of a configuration; without models those of the demo."""
        if config.models or self._demo_url is None:
            return config.providers, config.models
        demo = {"demo": ProviderConfig(base_url=self._demo_url)}
        return {**config.providers, **demo}, {"demo": ModelConfig(route=["demo/demo"])}

    def bounds(self, caller: Principal) -> Bounds:
        """What `GET /v1/limits` shows to this caller."""
        return collect(
            self.config,
            self.directory,
            self.peers,
            self.admission,
            self._largest,
            providers=self.routes.statistics(),
            caller=caller,
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
