"""One gateway process from its start to its end: it starts, takes another configuration, drains and closes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack

import msgspec

from holdfast.admission.access import Access
from holdfast.admission.queue import Admission
from holdfast.config import Config, check
from holdfast.core.masking import Masking
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError
from holdfast.generation.launcher import Launcher
from holdfast.observe.events import Observer
from holdfast.observe.freshness import Freshness
from holdfast.process import Process, build
from holdfast.server.drain import Drain
from holdfast.server.peers import Peers
from holdfast.server.services import Surface
from holdfast.server.surfaces.table import SURFACES
from holdfast.streams.directory import Directory
from holdfast.timers import Timers
from holdfast.upstream.statistics import ProviderStatistics

logger = logging.getLogger("holdfast")


class Gateway:
    """One gateway process. `start`, then `aclose`; both once.

    Without configured models it starts a simulated provider on loopback and serves it as the model `demo`.
    `dialects` are the APIs that providers may speak. `surfaces` are served beside the gateway's own, and
    `observers` are told what happens to requests and connections. `masking` learns the configuration's secrets, so
    that whoever writes a log may use it too.
    """

    def __init__(
        self,
        config: Config,
        *,
        dialects: Dialects = DIALECTS,
        surfaces: Iterable[Surface] = (),
        observers: Iterable[Observer] = (),
        masking: Masking | None = None,
    ) -> None:
        self.config = config
        self._masking = masking or Masking()
        self._dialects = dialects
        self._surfaces = (*SURFACES, *surfaces)
        self._observers = tuple(observers)
        self._built: Process | None = None
        # What was built, to be closed in reverse.
        self._closing = AsyncExitStack()
        self._is_serving = False

    @property
    def process(self) -> Process:
        """The objects that it is made of. Raises RuntimeError before `start`."""
        if self._built is None:
            raise RuntimeError("the gateway has not started")
        return self._built

    async def start(self) -> None:
        """Listen. Raises `ConfigError` where the configuration, the address or the TLS files cannot be used."""
        # Also for a configuration that was not read from a file: no port is ever open to everyone by mistake.
        check(self.config, dialects=self._dialects)
        async with AsyncExitStack() as closing:
            self._built = await build(
                self.config,
                closing,
                dialects=self._dialects,
                surfaces=self._surfaces,
                observers=self._observers,
                masking=self._masking,
            )
            self._closing = closing.pop_all()
        self._is_serving = True

    def reload(self, config: Config) -> None:
        """Use another configuration for new requests and connections; streams that run are not touched.

        Its files are opened anew: with the configuration in use, this takes renewed certificates. What only a
        start can change is logged and stays. Raises `ConfigError`; then nothing has changed.
        """
        check(config, dialects=self._dialects)
        old, process = self.config, self.process
        if old.models and not config.models:
            raise ConfigError("models: a running gateway keeps at least one; the demo needs a start of its own")
        kept_auth = msgspec.structs.replace(config, auth=old.auth)
        if not config.has_callers == kept_auth.has_callers == old.has_callers:
            raise ConfigError("keys: a gateway changes between callers with and without keys only at its start")
        kept = {name: getattr(old.server, name) for name in ("host", "port", "max_hold")}
        if (config.server.tls_cert is not None) != process.listener.has_tls:
            kept |= {"tls_cert": old.server.tls_cert, "tls_key": old.server.tls_key}
        server = msgspec.structs.replace(config.server, **kept)
        prepared = process.prepare(msgspec.structs.replace(kept_auth, server=server))
        previous = process.in_use
        try:
            # Whatever is known to fail has been done; what fails here is a fault of ours.
            process.configure(prepared)
        except Exception:
            process.configure(previous)
            raise
        self.config = prepared.config
        process.admission.admit_waiting()
        for name, value in kept.items():
            if value != getattr(config.server, name):
                logger.warning("server.%s takes effect at the next start", name)
        if config.auth != old.auth:
            logger.warning("[auth] takes effect at the next start")

    async def drain(self) -> bool:
        """Take no new work, and wait until running streams have ended and clients are gone.

        Readers and probes are still served. False where `server.drain_timeout` passed first. `aclose` follows.
        """
        server = self.config.server
        return await self._drain().run(timeout=server.drain_timeout, window=server.drain_window)

    def _drain(self) -> Drain:
        return Drain(self.peers, self.directory, self.launcher, self.timers)

    async def aclose(self, *, grace: float = 0.0) -> None:
        """Stop at once: running streams end `incomplete`, connections are closed, nothing is left behind.

        Clients have `grace` seconds to take what was written to them.
        """
        closing, self._closing = self._closing, AsyncExitStack()
        if self._is_serving:
            self._is_serving = False
            self.process.listener.stop()
            self.launcher.seal()
            await self._drain().finish(grace=grace)
            await self.launcher.aclose()
            self.peers.abort()
        await closing.aclose()

    # -- what it is made of, for those who run it inside their own process --

    @property
    def timers(self) -> Timers:
        return self.process.timers

    @property
    def freshness(self) -> Freshness:
        """Whether the configuration, keys and certificates in use are still those that are there now."""
        return self.process.freshness

    @property
    def access(self) -> Access:
        return self.process.access

    @property
    def admission(self) -> Admission:
        return self.process.admission

    @property
    def directory(self) -> Directory:
        return self.process.directory

    @property
    def launcher(self) -> Launcher:
        return self.process.launcher

    @property
    def peers(self) -> Peers:
        return self.process.peers

    def has_healthy_route(self, model: str) -> bool:
        """Whether a request for this model would be tried now; False for models that there are not."""
        route = self.process.routes.get(model)
        return route is not None and route.is_healthy(self.timers.now())

    def pool_statistics(self) -> list[ProviderStatistics]:
        """What `GET /v1/pool` shows."""
        return self.process.routes.statistics()

    @property
    def port(self) -> int:
        return self.process.listener.port

    @property
    def url(self) -> str:
        """The URL of the gateway on this machine, `http://127.0.0.1:8080`."""
        return self.process.listener.url
