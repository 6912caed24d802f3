"""The configuration of limits and the queue. What they do is told in `docs/how-to/limits.md`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from holdfast.config.units import Count, Seconds

_Limit = Annotated[int, Meta(ge=0)] | None
_PriorityName = Literal["high", "normal", "low"]


class LimitConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """Limits of one key or tenant: what is left out is as for all others, and 0 is no limit."""

    requests_per_minute: Annotated[_Limit, Meta(description="Generations asked for within any minute.")] = None
    tokens_per_minute: Annotated[
        _Limit,
        Meta(description="Tokens of prompts and answers: estimated when a request comes, settled at its end."),
    ] = None
    concurrent_streams: Annotated[
        _Limit,
        Meta(
            description="Generations at a time. Beyond a key's limit, which counts those that wait as well, a "
            "request is refused; beyond a tenant's it has to wait."
        ),
    ] = None
    connections: Annotated[_Limit, Meta(description="Open WebSockets.")] = None
    priority: Annotated[
        _PriorityName | None,
        Meta(description="Of a key, in the queue: tokens count a quarter for `high` and fourfold for `low`."),
    ] = None


class LimitsConfig(LimitConfig, forbid_unknown_fields=True, frozen=True):
    """`[limits]`: what each key may use. Without it there is no limit."""

    tenant: Annotated[LimitConfig, Meta(description="What each tenant may use.")] = field(
        default_factory=LimitConfig
    )
    keys: Annotated[dict[str, LimitConfig], Meta(description="Limits of single keys, by their name.")] = {}
    tenants: Annotated[dict[str, LimitConfig], Meta(description="Limits of single tenants.")] = {}
    answer_tokens: Annotated[
        Count, Meta(description="Estimate for the answer of a request that does not say `max_tokens`.")
    ] = 1024

    def of_key(self, name: str | None) -> LimitConfig:
        """The limits of a key, of no key (a caller on this machine), or of a token by the key that it is from."""
        return merged(self.keys.get(name) if name is not None else None, self)

    def of_tenant(self, name: str) -> LimitConfig:
        return merged(self.tenants.get(name), self.tenant)


class QueueConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[queue]`: where requests wait while their model, their tenant or their providers have all that they may."""

    max_waiting: Annotated[
        int, Meta(ge=0, description="Requests that may wait, for all models together; 0 refuses them at once.")
    ] = 1000
    max_waiting_per_tenant: Annotated[
        Count, Meta(description="The same for one tenant, so that one cannot fill the queue.")
    ] = 250
    deadline: Annotated[
        Seconds, Meta(description="Who has waited this long fails with `queue_timeout`; nothing was sent.")
    ] = 60.0


class AdaptiveConcurrencyConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`adaptive_concurrency` of a provider: a bound of its requests at a time that follows how soon it answers."""

    enabled: Annotated[bool, Meta(description="Without it a provider is given all requests at once.")] = False
    min: Annotated[Count, Meta(description="The limit never falls below this,")] = 4
    max: Annotated[Count, Meta(description="nor grows beyond this.")] = 1000
    initial: Annotated[
        Count | None, Meta(description="Where it begins. Default: 20, or what `min` and `max` have nearest to it.")
    ] = None
    tolerance: Annotated[
        float,
        Meta(
            ge=1,
            description="The median time to the first token may be so many times what it is under light load.",
        ),
    ] = 1.5
    baseline_interval: Annotated[
        Seconds,
        Meta(description="If the load is never light, it is lowered this often to measure that time anew."),
    ] = 300.0

    @property
    def first(self) -> int:
        """Where the limit begins."""
        return min(max(20, self.min), self.max) if self.initial is None else self.initial


def merged(own: LimitConfig | None, default: LimitConfig) -> LimitConfig:
    """Put defaults where a key or tenant says nothing; then None alone is no limit."""
    values = {}
    for name in LimitConfig.__struct_fields__:
        value = None if own is None else getattr(own, name)
        if value is None:
            value = getattr(default, name)
        values[name] = None if value == 0 else value
    return LimitConfig(**values)
