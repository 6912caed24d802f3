"""The configuration of limits and the queue. `docs/how-to/limits.md` explains what they do."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from holdfast.config.units import Count, Seconds

_Limit = Annotated[int, Meta(ge=0)] | None
_PriorityName = Literal["high", "normal", "low"]


class LimitConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """Limits of one key or tenant. A limit that is left out is that of all others; 0 means no limit."""

    requests_per_minute: Annotated[
        _Limit, Meta(description="How many generations may be requested within any minute.")
    ] = None
    tokens_per_minute: Annotated[
        _Limit,
        Meta(
            description="Tokens of prompts and answers within any minute: estimated when a request comes, "
            "corrected at its end."
        ),
    ] = None
    concurrent_streams: Annotated[
        _Limit,
        Meta(
            description="Generations at a time. A request beyond a key's limit, which also counts those that "
            "wait, is refused; a request beyond a tenant's limit waits in the queue."
        ),
    ] = None
    connections: Annotated[
        _Limit, Meta(description="Open WebSockets, and HTTP requests whose answer is streamed or waited for.")
    ] = None
    priority: Annotated[
        _PriorityName | None,
        Meta(
            description="A key's priority in the queue: its tokens count a quarter with `high`, fourfold with "
            "`low`."
        ),
    ] = None


class LimitsConfig(LimitConfig, forbid_unknown_fields=True, frozen=True):
    """`[limits]`: the limits of each key. Without this section there are none."""

    tenant: Annotated[LimitConfig, Meta(description="The limits of each tenant.")] = field(
        default_factory=LimitConfig
    )
    keys: Annotated[dict[str, LimitConfig], Meta(description="Limits of single keys, by their name.")] = {}
    tenants: Annotated[dict[str, LimitConfig], Meta(description="Limits of single tenants.")] = {}
    answer_tokens: Annotated[
        Count, Meta(description="The estimated tokens of an answer if the request does not set `max_tokens`.")
    ] = 1024

    def of_key(self, name: str | None) -> LimitConfig:
        """Return the limits of a key. None is a caller without a key; a client token has its key's limits."""
        return merged(self.keys.get(name) if name is not None else None, self)

    def of_tenant(self, name: str) -> LimitConfig:
        return merged(self.tenants.get(name), self.tenant)


class QueueConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[queue]`: requests wait here while their model, their tenant or their providers are at a limit."""

    max_waiting: Annotated[
        int, Meta(ge=0, description="How many requests may wait, for all models together; 0 refuses them at once.")
    ] = 1000
    max_waiting_per_tenant: Annotated[
        Count, Meta(description="How many requests of one tenant may wait, so that no tenant fills the queue.")
    ] = 250
    deadline: Annotated[
        Seconds, Meta(description="A request that has waited so long fails with `queue_timeout`; it was not sent.")
    ] = 60.0


class AdaptiveConcurrencyConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`adaptive_concurrency` of a provider: a limit of concurrent requests that adapts to how soon it answers."""

    enabled: Annotated[
        bool, Meta(description="Whether the limit is used. Without it, a provider gets all requests at once.")
    ] = False
    min: Annotated[Count, Meta(description="The limit is never lower than this.")] = 4
    max: Annotated[Count, Meta(description="The limit is never higher than this.")] = 1000
    initial: Annotated[
        Count | None,
        Meta(description="The first limit. Default: 20, or the nearest value between `min` and `max`."),
    ] = None
    tolerance: Annotated[
        float,
        Meta(
            ge=1,
            description="The median time to first token may be so many times the one under light load.",
        ),
    ] = 1.5
    baseline_interval: Annotated[
        Seconds,
        Meta(description="If the load is never light, it is lowered at this interval to measure that time again."),
    ] = 300.0

    @property
    def first(self) -> int:
        """The first limit."""
        return min(max(20, self.min), self.max) if self.initial is None else self.initial


def merged(own: LimitConfig | None, default: LimitConfig) -> LimitConfig:
    """Fill the limits that a key or tenant leaves out with the defaults. In the result, None means no limit."""
    values = {}
    for name in LimitConfig.__struct_fields__:
        value = None if own is None else getattr(own, name)
        if value is None:
            value = getattr(default, name)
        values[name] = None if value == 0 else value
    return LimitConfig(**values)
