"""The providers of a process and the routes to them, as one configuration has them; a reload replaces both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from holdfast.config import ModelConfig, ProviderConfig
from holdfast.core.masking import Masking
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.generation.route import Route, Target
from holdfast.timers import Timers
from holdfast.upstream.provider import Provider, tls_files
from holdfast.upstream.statistics import ProviderStatistics

#: Calls back once every stream that runs now has let go of its provider.
AfterRunning = Callable[[Callable[[], None]], None]


class Serving(NamedTuple):
    """The providers and the routes of one configuration, by their names."""

    providers: dict[str, Provider]
    routes: dict[str, Route]


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
        gateway_id: str = "",
        masking: Masking | None = None,
    ) -> None:
        """`gateway_id` names this process to gateways among the providers.

        Raises `ConfigError` for files or a proxy of a provider that cannot be used."""
        self._timers = timers
        self._dialects = dialects
        self._gateway_id = gateway_id
        self._masking = masking or Masking()
        self._serving = Serving({}, {})
        # Providers that a reload has replaced, while streams still run on them.
        self._retired: set[Provider] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._on_room: Callable[[], None] | None = None
        self._serving = self.prepare(providers, models)

    def __getitem__(self, model: str) -> Route:
        return self._serving.routes[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._serving.routes)

    def __len__(self) -> int:
        return len(self._serving.routes)

    @property
    def serving(self) -> Serving:
        """What is served now."""
        return self._serving

    def start(self, on_room: Callable[[], None]) -> None:
        """Open the warm connections and begin the health checks."""
        self._on_room = on_room
        for provider in self._serving.providers.values():
            self._start(provider)

    def _start(self, provider: Provider) -> None:
        if provider.capacity is not None and self._on_room is not None:
            provider.capacity.on_room = self._on_room
        provider.start()

    def prepare(self, providers: Mapping[str, ProviderConfig], models: Mapping[str, ModelConfig]) -> Serving:
        """Make what other models need, without using it yet. A provider that has not changed is the one in use.

        Raises `ConfigError` for files or a proxy of a provider that cannot be used.
        """
        made: dict[str, Provider] = {}
        for name, config in providers.items():
            known = self._serving.providers.get(name)
            is_same = known is not None and known.config == config and known.tls_files == tls_files(config)
            if known is None or not is_same:
                known = Provider(name, config, self._timers, dialects=self._dialects, gateway_id=self._gateway_id)
            made[name] = known
        return Serving(made, {name: _route(model, made, self._masking) for name, model in models.items()})

    def replace(self, serving: Serving, after_running: AfterRunning) -> None:
        """Serve what was prepared. A provider that has not changed stays, with its connections.

        One that is no longer named closes when no stream is left that may still use it.
        """
        before = set(self._serving.providers.values())
        self._serving = serving
        now = set(serving.providers.values())
        for provider in now - before:
            self._start(provider)
        for provider in before - now:
            self._retired.add(provider)
            after_running(partial(self._retire, provider))

    def _retire(self, provider: Provider) -> None:
        task = asyncio.get_running_loop().create_task(provider.aclose(), name="retire a provider")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        task.add_done_callback(lambda _: self._retired.discard(provider))

    def statistics(self) -> list[ProviderStatistics]:
        return [provider.statistics() for provider in self._serving.providers.values()]

    async def aclose(self) -> None:
        """Close every provider, also those that streams still used."""
        for provider in [*self._serving.providers.values(), *self._retired]:
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
