"""The configuration of models: which providers serve them, and how often a request is tried."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from holdfast.config.units import Count, Grace, Seconds


class RetryConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`retry` of a model. A request is tried again only while no part of its answer has been delivered."""

    max_attempts: Annotated[Count, Meta(description="How often one request is tried, over the whole route.")] = 4
    initial: Annotated[
        Seconds,
        Meta(description="The first delay before the same endpoint is asked again is drawn from 0 to this."),
    ] = 0.25
    maximum: Annotated[
        Seconds,
        Meta(description="That bound doubles with each retry, up to this. `Retry-After` is added to the delay."),
    ] = 8.0
    max_retry_after: Annotated[
        Grace,
        Meta(
            description="An endpoint that asks for more by `Retry-After` is not asked again; if no other is "
            "left, the request fails."
        ),
    ] = 30.0
    max_total_wait: Annotated[
        Grace,
        Meta(
            description="One request waits for so long at most, all its delays together. Where the next one would "
            "be too long, the request fails at once, and the caller is told the provider's `Retry-After`."
        ),
    ] = 20.0
    at_most_once: Annotated[
        bool,
        Meta(
            description="No request is billed twice: if a provider may have processed a request although no "
            "part of its answer came, the request fails. It is tried again only if it was certainly not "
            "processed. Default: it is tried again in both cases."
        ),
    ] = False


class TargetConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """One entry of a route with a weight."""

    target: Annotated[str, Meta(description="`provider/model`.")]
    weight: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Neighbours in the route with weights share the requests in proportion to them."),
    ] = None


class ModelConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[models.NAME]`: a model that callers may request by this name."""

    route: Annotated[
        list[str | TargetConfig],
        Meta(
            min_length=1,
            description='Targets `"provider/model"` in the order of preference. Targets that share the load have '
            'weights: `{ target = "provider/model", weight = 3 }`.',
        ),
    ]
    max_concurrency: Annotated[
        Count | None,
        Meta(description="Generations at a time; further requests wait in the queue. Default: no limit."),
    ] = None
    retry: RetryConfig = field(default_factory=RetryConfig)

    @property
    def targets(self) -> list[TargetConfig]:
        """The entries of the route, each in its long form."""
        return [TargetConfig(entry) if isinstance(entry, str) else entry for entry in self.route]
