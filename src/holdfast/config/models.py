"""The configuration of models: which providers serve them, and how often a request is tried."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from holdfast.config.units import Count, Grace, Seconds


class RetryConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`retry` of a model. A request is tried again only while nothing of its answer was delivered."""

    max_attempts: Annotated[Count, Meta(description="Tries of one request, over the whole route.")] = 4
    initial: Annotated[
        Seconds, Meta(description="The pause before the same endpoint is asked again is drawn from 0 to this,")
    ] = 0.25
    maximum: Annotated[
        Seconds, Meta(description="which doubles each time up to this. `Retry-After` comes on top.")
    ] = 8.0
    max_retry_after: Annotated[
        Grace, Meta(description="A longer `Retry-After` is not waited for: the caller gets the error at once.")
    ] = 30.0
    at_most_once: Annotated[
        bool,
        Meta(
            description="Never billed twice: a request that was sent, and that the provider may have processed "
            "although nothing of its answer came, ends with the error. Only one that was certainly not processed "
            "is tried again. Default: both are."
        ),
    ] = False


class TargetConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """One entry of a route with a weight."""

    target: Annotated[str, Meta(description="`provider/model`.")]
    weight: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Neighbours in the route that have a weight share the requests in that proportion."),
    ] = None


class ModelConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[models.NAME]`: a model that callers may name."""

    route: Annotated[
        list[str | TargetConfig],
        Meta(
            min_length=1,
            description='Targets `"provider/model"` in order of preference. Several that share the load have '
            'weights: `{ target = "provider/model", weight = 3 }`.',
        ),
    ]
    max_concurrency: Annotated[
        Count | None, Meta(description="Generations at a time; more wait in the queue. Default: no limit.")
    ] = None
    retry: RetryConfig = field(default_factory=RetryConfig)

    @property
    def targets(self) -> list[TargetConfig]:
        """The route with each entry in its long form."""
        return [TargetConfig(entry) if isinstance(entry, str) else entry for entry in self.route]
