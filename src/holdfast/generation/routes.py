"""The providers of a process and the routes to them, as one configuration has them; a reload replaces both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from holdfast.config import ModelConfig, ProviderConfig
from holdfast.core.masking import Masking
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.generation.route import Route, Target
from holdfast.timers import Timers
from holdfast.upstream.provider import Provider
from holdfast.upstream.statistics import ProviderStatistics

#: Calls back once every stream that runs now has let go of its provider.
AfterRunning = Callable[[Callable[[], None]], None]


class Routes(Mapping[str, Route]):
    """The route of each model that is served now. Whoever holds this object sees what a reload has changed.

    `start`, then `aclose`; both once. `on_room` is told when a provider has room for another request.
    """

    def __init__(
        self,
        providers: Mapping[str, ProviderConfig],
        models: Mapping[str, ModelConfig],
        timers: Timers,
        *,
        dialects: Dialects = DIALECTS,
        masking: Masking | None = None,
    ) -> None:
        """Raises `ConfigError` for files or a proxy of a provider that cannot be used."""
        self._timers = timers
        self._dialects = dialects
        self._masking = masking or Masking()
        self._providers: dict[str, Provider] = {}
        self._routes: dict[str, Route] = {}
        # Providers that a reload has replaced, while streams still run on them.
        self._retired: set[Provider] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._on_room: Callable[[], None] | None = None
        self._use(self._make(providers), models)

    def __getitem__(self, model: str) -> Route:
        return self._routes[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._routes)

    def __len__(self) -> int:
        return len(self._routes)

    def start(self, on_room: Callable[[], None]) -> None:
        """Open the warm connections and begin the health checks."""
        self._on_room = on_room
        for provider in self._providers.values():
            self._start(provider)

    def _start(self, provider: Provider) -> None:
        if provider.capacity is not None and self._on_room is not None:
            provider.capacity.on_room = self._on_room
        provider.start()

    def replace(
        self,
        providers: Mapping[str, ProviderConfig],
        models: Mapping[str, ModelConfig],
        after_running: AfterRunning,
    ) -> None:
        """Serve other models. A provider whose configuration is the same stays, with its connections.

        One that is no longer named closes when no stream is left that may still use it. Raises `ConfigError`; then
        nothing has changed.
        """
        before = set(self._providers.values())
        self._use(self._make(providers), models)
        now = set(self._providers.values())
        for provider in now - before:
            self._start(provider)
        for provider in before - now:
            self._retired.add(provider)
            after_running(partial(self._retire, provider))

    def _make(self, configs: Mapping[str, ProviderConfig]) -> dict[str, Provider]:
        providers = {}
        for name, config in configs.items():
            known = self._providers.get(name)
            if known is None or known.config != config:
                known = Provider(name, config, self._timers, dialects=self._dialects)
            providers[name] = known
        return providers

    def _use(self, providers: dict[str, Provider], models: Mapping[str, ModelConfig]) -> None:
        self._routes = {name: _route(model, providers, self._masking) for name, model in models.items()}
        self._providers = providers

    def _retire(self, provider: Provider) -> None:
        task = asyncio.get_running_loop().create_task(provider.aclose(), name="retire a provider")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        task.add_done_callback(lambda _: self._retired.discard(provider))

    def statistics(self) -> list[ProviderStatistics]:
        return [provider.statistics() for provider in self._providers.values()]

    async def aclose(self) -> None:
        """Close every provider, also those that streams still used."""
        for provider in [*self._providers.values(), *self._retired]:
            await provider.aclose()
        await asyncio.gather(*self._retiring, return_exceptions=True)


def _route(model: ModelConfig, providers: Mapping[str, Provider], masking: Masking) -> Route:
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
    return Route(targets, model.retry, masking=masking)
