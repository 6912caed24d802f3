"""One configured provider at run time: its pool, its health, its capacity, and its endpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from holdfast.config import ProviderConfig
from holdfast.dialects.endpoint import Endpoint
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.timers import Timers
from holdfast.upstream.capacity import capacity_of
from holdfast.upstream.health import Health, Probe
from holdfast.upstream.pool import Pool
from holdfast.upstream.statistics import ProviderStatistics


class Provider:
    """A provider, shared by all models that it serves.

    Construct it inside a running event loop; then call `start`, and in the end `aclose`.
    """

    def __init__(
        self,
        name: str,
        config: ProviderConfig,
        timers: Timers,
        *,
        dialects: Dialects = DIALECTS,
        gateway_id: str = "",
    ) -> None:
        """Raises `ConfigError` for files or a proxy that cannot be used."""
        self.name = name
        self.config = config
        # Read before the pool reads them: one that changes in between is found to be another one later.
        self.tls_files = tls_files(config)
        self.health = Health(config.breaker, config.retry_budget, name=name)
        self.capacity = capacity_of(config, timers)
        self.pool = Pool(config, timers, name=name)
        self.endpoint = Endpoint(
            base_url=config.base_url,
            api=config.api,
            api_key=config.api_key,
            headers=config.headers,
            options=config.options,
            dialects=dialects,
            gateway_id=gateway_id,
        )
        self._timers = timers
        self._probe: Probe | None = None
        if config.probe is not None:
            request = self.endpoint.probe(config.probe.path)
            self._probe = Probe(config.probe, request, self.pool, self.health, timers)

    def start(self) -> None:
        """Open the warm connections and begin the health checks."""
        self.pool.start()
        if self._probe is not None:
            self._probe.start()

    async def aclose(self) -> None:
        if self._probe is not None:
            await self._probe.aclose()
        await self.pool.aclose()

    def statistics(self) -> ProviderStatistics:
        return ProviderStatistics(
            provider=self.name,
            pool=self.pool.statistics(),
            health=self.health.statistics(self._timers.now()),
            concurrency=None if self.capacity is None else self.capacity.statistics(),
        )


def tls_files(config: ProviderConfig) -> bytes:
    """Return a digest of the files that a provider's TLS is made from, so that renewed ones are found."""
    digest = hashlib.sha256()
    for path in (config.ca_file, config.client_cert, config.client_key):
        if path is not None:
            try:
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
            except OSError:  # whoever uses the file says so
                digest.update(b"absent")
    return digest.digest()
