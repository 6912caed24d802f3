"""The launcher and all that it stands on, in virtual time and without sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from holdfast.admission.principal import Principal
from holdfast.admission.queue import Admission
from holdfast.config import RetryConfig, StreamsConfig
from holdfast.config.limits import LimitsConfig, QueueConfig
from holdfast.config.providers import RetryBudgetConfig, TimeoutsConfig
from holdfast.core.limits.budget import Budget
from holdfast.core.masking import Masking
from holdfast.dialects.chat import CHAT
from holdfast.dialects.dialect import Dialect
from holdfast.dialects.endpoint import Endpoint
from holdfast.errors import HoldfastError
from holdfast.generation.launcher import Launcher, Started, Terms
from holdfast.generation.route import Route, Target
from holdfast.observe.events import Event, Observer, Observers
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.streams.store import LogStore
from holdfast.streams.stream import Stream
from holdfast.streams.writer import StoreWriter
from holdfast.timers import Timers
from holdfast.upstream.capacity import Capacity, FixedLimit
from holdfast.upstream.health import Health
from tests.support.clock import Clock
from tests.support.scripted_upstream import ScriptedUpstream

_E = TypeVar("_E")
ALICE = Principal("acme", key_id="alice")


class Recorder:
    """An observer that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[_E]) -> list[_E]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[_E]) -> _E:
        (event,) = self.of(kind)
        return event

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


class Raising:
    def observe(self, event: Event) -> None:
        raise RuntimeError("this observer is broken")


def request(model: str = "demo", **fields: object) -> bytes:
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True, **fields}
    ).encode()


class Gateway:
    """Everything between a surface and the providers. The model `demo` goes to the `providers`, in their order.

    `limits` gives providers a `max_concurrency`. Delays between tries are short, and no provider answers slowly.
    """

    def __init__(
        self,
        clock: Clock,
        *providers: str,
        limits: Mapping[str, int] | None = None,
        retry: dict[str, Any] | None = None,
        streams: dict[str, Any] | None = None,
        queue: dict[str, Any] | None = None,
        admission: dict[str, Any] | None = None,
        models: Mapping[str, int | None] | None = None,
        store: LogStore | None = None,
        memory: int = 1 << 30,
        observer: Observer | None = None,
        masking: Masking | None = None,
        total: float = 300.0,
    ) -> None:
        self.clock = clock
        self._masking = masking
        self._total = total
        self.timers = Timers(clock)
        self.upstreams: dict[str, ScriptedUpstream] = {}
        self.targets: dict[str, Target] = {}
        self._retry = msgspec.convert({"initial": 0.5, **(retry or {})}, RetryConfig)
        for name in providers or ("sim",):
            self.add_provider(name, limit=(limits or {}).get(name))
        self.routes = {"demo": self.route(*self.targets)}
        self.store = store or MemoryStore(self.timers)
        writer = None
        if self.store.is_shared:
            writer = StoreWriter(self.store, clock, lambda stream, error: stream.cancel("lost"))
        self.budget = Budget(memory)
        self.directory = Directory(
            msgspec.convert(streams or {}, StreamsConfig), self.timers, self.store, self.budget, writer=writer
        )
        self.admission = Admission(
            msgspec.convert(admission or {}, LimitsConfig),
            msgspec.convert(queue or {}, QueueConfig),
            models or {"demo": None},
            self.timers,
            self.routes,
        )
        self.recorder = Recorder()
        observers = [self.recorder] if observer is None else [observer, self.recorder]
        self.launcher = Launcher(
            self.directory, self.routes, self.admission, self.timers, Observers(*observers), clock=clock.time
        )

    def add_provider(self, name: str, *, limit: int | None = None, api: str = "chat") -> Target:
        capacity = None
        if limit is not None:
            capacity = Capacity(FixedLimit(limit), self.timers)
            capacity.on_room = lambda: self.admission.admit_waiting()
        upstream = self.upstreams[name] = ScriptedUpstream()
        target = self.targets[name] = Target(
            name,
            "large",
            Endpoint(base_url="http://provider/v1", api=api),
            upstream,
            TimeoutsConfig(first_byte=30.0, idle=10.0, total=self._total),
            Health(budget=RetryBudgetConfig(floor=100)),
            capacity=capacity,
        )
        return target

    def route(self, *providers: str) -> Route:
        return Route([self.targets[name] for name in providers], self._retry, masking=self._masking)

    # -- what a surface does --

    def create(
        self,
        request_id: str | None = None,
        *,
        raw: bytes | None = None,
        principal: Principal = ALICE,
        dialect: Dialect = CHAT,
        grace: float = 60.0,
        **terms: Any,
    ) -> Started | HoldfastError:
        """Ask for a generation, and let the loop settle."""
        answers: list[Started | HoldfastError] = []
        self.launcher.create(
            principal,
            dialect,
            raw or request(),
            Terms(grace, request_id=request_id, connection=1, **terms),
            answers.append,
        )
        self.clock.settle()
        (answer,) = answers
        return answer

    def start(self, request_id: str | None = None, **options: Any) -> Stream:
        """Ask for a generation that is not refused."""
        started = self.create(request_id, **options)
        assert isinstance(started, Started), started
        return started.stream

    def settle(self) -> None:
        self.clock.settle()

    def upstream(self, name: str = "sim") -> ScriptedUpstream:
        return self.upstreams[name]

    # -- what is left --

    @property
    def held(self) -> dict[str, int]:
        """Whatever is held of anything, by its name; empty where nothing is."""
        held = dict(self.admission.held)
        for name, target in self.targets.items():
            if target.capacity is not None:
                held[f"slots of {name}"] = target.capacity.statistics().in_flight
        held["unfinished"] = self.directory.unfinished
        held["running"] = self.budget.running
        held["generations"] = len(self.launcher._generations)
        held["pumps"] = len(self.launcher._pumps)
        return {name: count for name, count in held.items() if count}
