"""The composition root: builds every object of a gateway process from its configuration, and wires them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Protocol

import msgspec

from holdfast.admission.access import Access
from holdfast.admission.keys import SecretId
from holdfast.admission.queue import Admission
from holdfast.config import Config, ModelConfig, ProviderConfig, ServerConfig, check
from holdfast.core.moderation import ReadModeration
from holdfast.errors import ConfigError
from holdfast.generation.launcher import Launcher
from holdfast.generation.route import Route, Target
from holdfast.observe.events import Observers
from holdfast.observe.request_log import RequestLog
from holdfast.server.api import Api, ApiLimits
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.drain import Drain
from holdfast.server.listener.http import HttpConnection, Limits
from holdfast.server.listener.websocket import Liveness
from holdfast.server.surfaces.bounds import Bounds, collect
from holdfast.server.surfaces.holdfast_session import SessionLimits, Sessions
from holdfast.server.surfaces.keys import AdminApi, TokenApi
from holdfast.server.surfaces.operations import Operations
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.timers import Timers
from holdfast.upstream.provider import Provider
from holdfast.upstream.statistics import ProviderStatistics

logger = logging.getLogger("holdfast")

#: Connections that the kernel keeps for us until we accept them.
_BACKLOG = 4096
#: How often is looked whether a provider that was replaced is still needed, in seconds.
_RETIRE_INTERVAL = 0.5


class Demo(Protocol):
    """A provider on loopback that needs no configuration: what `holdfast-tools` brings."""

    @property
    def base_url(self) -> str: ...

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


class Gateway:
    """One gateway process. `start`, then `aclose`; both once.

    Without configured models it starts a simulated provider on loopback and serves it as the model `demo`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._server: asyncio.Server | None = None
        self._demo: Demo | None = None
        self._providers: dict[str, Provider] = {}
        self._routes: dict[str, Route] = {}
        # Providers that a reload has replaced, while streams still run on them.
        self._retired: list[Provider] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    async def start(self) -> None:
        """Listen. Raises `ConfigError` where the configuration, the address or the TLS files cannot be used."""
        config = self.config
        # Also for a configuration that was not read from a file: no port is ever open to everyone by mistake.
        check(config)
        providers, models = dict(config.providers), dict(config.models)
        if not models:
            self._demo = _demo()
            await self._demo.start()
            providers["demo"] = ProviderConfig(base_url=self._demo.base_url)
            models["demo"] = ModelConfig(route=["demo/demo"])
        self.timers = Timers()
        self.flusher = Flusher(ReadModeration(max_hold=config.server.max_hold))
        try:
            for name, provider in providers.items():
                self._providers[name] = Provider(name, provider, self.timers)
            self.access = Access(config, self.timers)
            await self.access.start()
        except ConfigError:
            await self.aclose()
            raise
        self._routes = {name: _route(model, self._providers) for name, model in models.items()}
        self.admission = Admission(
            config.limits,
            config.queue,
            {name: model.max_concurrency for name, model in models.items()},
            self.timers,
            self._routes,
            own_limits=self.access.table.limits_of,
        )
        self._listen_to_capacities(self._providers)
        self.request_log = RequestLog(content=config.logging.content)
        observers = Observers(self.request_log)
        self.directory = Directory(config.streams, self.timers, MemoryStore(self.timers))
        self.launcher = Launcher(self.directory, self._routes, self.admission, self.timers, observers)
        self.sessions = Sessions(
            self.directory,
            self.launcher,
            self.timers,
            self.flusher,
            _session_limits(config),
        )
        self.api = Api(
            self.directory,
            self.launcher,
            self.sessions,
            self.access.authenticator,
            self.timers,
            self.flusher,
            _api_limits(config),
            self.admission,
            Operations(self.pool_statistics, self.bounds),
        )
        self.access.table.on_removed = self._revoke
        self._add_credential_routes()
        await self._listen()
        for runtime in self._providers.values():
            runtime.start()

    def _listen_to_capacities(self, providers: Mapping[str, Provider]) -> None:
        """Let requests in as soon as a provider has room for them."""
        for provider in providers.values():
            if provider.capacity is not None:
                provider.capacity.on_room = self.admission.admit_waiting

    def _revoke(self, removed: set[SecretId]) -> None:
        self.sessions.revoke(removed)
        self.api.revoke(removed)

    def _add_credential_routes(self) -> None:
        access, admin_key = self.access, self.config.auth.admin_key
        self.api.add_routes(TokenApi(access.client_tokens).routes)
        if admin_key is not None and access.store is not None and access.watcher is not None:
            admin = AdminApi(admin_key, access.store, access.watcher)
            self.api.add_routes(admin.routes, guard=admin.authenticate)

    def reload(self, config: Config) -> None:
        """Use another configuration for new requests and connections; streams that run are not touched.

        What only a start can change is logged and stays. Raises `ConfigError`; then nothing has changed.
        """
        check(config)
        old = self.config
        if not config.models:
            raise ConfigError("models: a running gateway keeps at least one; the demo needs a start of its own")
        if config.has_callers != old.has_callers:
            raise ConfigError("keys: a gateway changes between callers with and without keys only at its start")
        kept = {name: getattr(old.server, name) for name in ("host", "port", "max_hold")}
        if (config.server.tls_cert is None) != (self._tls is None):
            kept |= {"tls_cert": old.server.tls_cert, "tls_key": old.server.tls_key}
        server = msgspec.structs.replace(config.server, **kept)
        _tls(server.tls_cert, server.tls_key)  # raises before anything has changed
        providers = {
            name: known
            if (known := self._providers.get(name)) is not None and known.config == provider
            else Provider(name, provider, self.timers)
            for name, provider in config.providers.items()
        }
        routes = {name: _route(model, providers) for name, model in config.models.items()}
        for name, value in kept.items():
            if value != getattr(config.server, name):
                logger.warning("server.%s takes effect at the next start", name)
        if config.auth != old.auth:
            logger.warning("[auth] takes effect at the next start")
        self.config = msgspec.structs.replace(config, server=server, auth=old.auth)
        self._use_providers(providers, routes)
        self._use_settings(self.config)

    def _use_providers(self, providers: dict[str, Provider], routes: dict[str, Route]) -> None:
        before, self._providers = self._providers, providers
        self._listen_to_capacities(providers)
        self._routes.clear()  # the launcher and admission have the same
        self._routes.update(routes)
        for provider in providers.values():
            if provider not in before.values():
                provider.start()
        for provider in before.values():
            if provider not in providers.values():
                self._retired.append(provider)
                task = asyncio.get_running_loop().create_task(self._retire(provider), name="retire a provider")
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)

    async def _retire(self, provider: Provider) -> None:
        """Close a provider when no stream is left that may still use it."""
        streams = self.directory.running()
        while any(not stream.is_ended for stream in streams):  # noqa: ASYNC110 - they may take an hour
            await asyncio.sleep(_RETIRE_INTERVAL)
        await provider.aclose()
        self._retired.remove(provider)

    def _use_settings(self, config: Config) -> None:
        self.access.configure(config)
        self.admission.configure(
            config.limits, config.queue, {name: model.max_concurrency for name, model in config.models.items()}
        )
        self.directory.configure(config.streams)
        self.request_log.content = config.logging.content
        self.sessions.limits = _session_limits(config)
        self.api.configure(_api_limits(config))
        self._http_limits = _http_limits(config)
        if self._server is not None:
            _watch_peers(self._server, config.server)
        cert = config.server.tls_cert
        if self._tls is not None and cert is not None:
            self._tls.load_cert_chain(cert, config.server.tls_key)

    def has_healthy_route(self, model: str) -> bool:
        """Whether a request for this model would be tried now; False for models that there are not."""
        route = self._routes.get(model)
        return route is not None and route.is_healthy(self.timers.now())

    def pool_statistics(self) -> list[ProviderStatistics]:
        """What `GET /v1/pool` shows."""
        return [provider.statistics() for provider in self._providers.values()]

    def bounds(self, tenant: str, key: str | None) -> Bounds:
        """What `GET /v1/limits` shows to this caller."""
        return collect(
            self.config,
            self.directory,
            self.sessions,
            self.admission,
            connections=len(self.api.connections) + len(self.sessions.open),
            providers=self.pool_statistics(),
            caller=(tenant, key),
            now=self.timers.now(),
        )

    async def _listen(self) -> None:
        server = self.config.server
        self._http_limits = _http_limits(self.config)
        self._tls = _tls(server.tls_cert, server.tls_key)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: HttpConnection(self.api, self.timers, self._http_limits),
                server.host,
                server.port,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else server.header_timeout,
                backlog=_BACKLOG,
            )
            _watch_peers(self._server, server)
        except OSError as exc:
            await self.aclose()
            raise ConfigError(
                f"cannot listen on {server.host}:{server.port}: {exc.strerror or exc}; is another process using "
                "the port? `--port 0` takes a free one"
            ) from exc

    @property
    def port(self) -> int:
        if self._server is None or not self._server.sockets:
            raise RuntimeError("the gateway does not listen")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where the gateway is reached from this machine, `http://127.0.0.1:8080`."""
        server = self.config.server
        host = "127.0.0.1" if server.host in ("0.0.0.0", "localhost") else server.host  # noqa: S104
        if host in ("::", "::1"):
            host = "[::1]"
        return f"{'https' if server.tls_cert else 'http'}://{host}:{self.port}"

    async def drain(self) -> bool:
        """Take no new work, and wait until running streams have ended and clients are gone.

        Readers and probes are still served. False where `server.drain_timeout` passed first. `aclose` follows.
        """
        server = self.config.server
        drain = Drain(
            self.api,
            self.sessions,
            self.directory,
            self.launcher,
            self.timers,
            timeout=server.drain_timeout,
            window=server.drain_window,
        )
        return await drain.run()

    async def aclose(self, *, grace: float = 0.0) -> None:
        """Stop at once: running streams end `incomplete`, connections are closed, nothing is left behind.

        Clients have `grace` seconds to take what was written to them.
        """
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if hasattr(self, "api"):
            self.launcher.seal()
            self.api.drain()
            await asyncio.sleep(0)  # the ends are written at the end of this turn
            deadline = self.timers.now() + grace
            while self.timers.now() < deadline and (self.sessions.open or self.api.is_busy):
                self.sessions.close_idle()
                await asyncio.sleep(0.01)
            for session in list(self.sessions.open):
                session.close(1012, "draining")
            await self.launcher.aclose()
            for connection in list(self.api.connections):
                connection.abort()
            for session in list(self.sessions.open):
                session.abort()
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for provider in [*self._providers.values(), *self._retired]:
            await provider.aclose()
        if self._demo is not None:
            await self._demo.aclose()
        if server is not None:
            await server.wait_closed()
        if hasattr(self, "access"):
            await self.access.aclose()
        if hasattr(self, "timers"):
            self.timers.close()


def _demo() -> Demo:
    for entry in entry_points(group="holdfast.demo"):
        demo: Demo = entry.load()()
        return demo
    raise ConfigError(
        "models: none is configured, and the demo needs the tools: pip install 'holdfast[demo]', or pass --config"
    )


def _route(model: ModelConfig, providers: Mapping[str, Provider]) -> Route:
    targets = []
    for entry in model.targets:
        name, _, target_model = entry.target.partition("/")
        provider = providers[name]
        targets.append(
            Target(
                name,
                target_model,
                provider.endpoint,
                provider.pool,
                provider.config.timeouts,
                provider.health,
                entry.weight,
                provider.capacity,
            )
        )
    return Route(targets, model.retry)


def _session_limits(config: Config) -> SessionLimits:
    server, streams = config.server, config.streams
    return SessionLimits(
        max_message=server.max_body,
        max_streams=server.max_streams_per_session,
        log_bytes=streams.log_bytes,
        hello_timeout=server.hello_timeout,
        detach_grace=streams.detach_grace,
        liveness=Liveness(server.ping_interval, server.ping_timeout),
    )


def _api_limits(config: Config) -> ApiLimits:
    server = config.server
    return ApiLimits(
        max_connections=server.max_connections,
        detach_grace_http=config.streams.detach_grace_http,
        sse_keep_alive=server.sse_keep_alive,
        connection_rate=server.max_connections_per_second_per_address,
    )


def _http_limits(config: Config) -> Limits:
    server = config.server
    return Limits(
        max_body=server.max_body,
        header_timeout=server.header_timeout,
        body_timeout=server.body_timeout,
        keep_alive_timeout=server.keep_alive_timeout,
    )


def _watch_peers(server: asyncio.Server, config: ServerConfig) -> None:
    """Have the kernel find clients that are gone without a word, where nothing of ours is on its way to them.

    Connections inherit the options of the socket that they are accepted from.
    """
    patience = config.ping_interval + config.ping_timeout
    for listener in server.sockets:
        with socket.socket(fileno=os.dup(listener.fileno())) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                ("TCP_KEEPIDLE", max(round(config.ping_interval), 1)),
                ("TCP_KEEPINTVL", max(round(config.ping_timeout / 3), 1)),
                ("TCP_KEEPCNT", 3),
                # Also bounds how long sent bytes may stay unacknowledged, which keep-alive does not look at.
                ("TCP_USER_TIMEOUT", round(patience * 1000)),
            ):
                if hasattr(socket, name):  # not on every system
                    own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _tls(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"server.tls_cert {cert!r} and server.tls_key cannot be used: {exc}") from exc
    return context
