"""The configuration of providers: where they are, how they are connected to, and when they are left alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from holdfast.config.limits import AdaptiveConcurrencyConfig
from holdfast.config.units import Count, Seconds


class TimeoutsConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`timeouts` of a provider; each ends the attempt with an error of its own."""

    connect: Annotated[Seconds, Meta(description="TCP, TLS and the HTTP/2 preface.")] = 10.0
    pool: Annotated[Seconds, Meta(description="Waiting for a connection of the pool.")] = 30.0
    first_byte: Annotated[Seconds, Meta(description="From the request to the first byte of a streamed body.")] = (
        300.0
    )
    idle: Annotated[Seconds, Meta(description="Between two reads of a streamed body; comments count.")] = 120.0
    total: Annotated[Seconds, Meta(description="From the request to the end.")] = 1800.0


class BreakerConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`breaker` of a provider: when it is left alone after failures, and how it comes back."""

    failures: Annotated[
        Count, Meta(description="It opens after so many failures in a row; a request's 500s count once.")
    ] = 5
    error_rate: Annotated[
        float, Meta(gt=0, le=1, description="Or where this share of the outcomes within `window` failed,")
    ] = 0.5
    min_requests: Annotated[Count, Meta(description="given that there were at least so many.")] = 20
    window: Annotated[Seconds, Meta(description="Over which the share is taken.")] = 30.0
    open_for: Annotated[
        Seconds, Meta(description="After this one trial request is let through; doubled each time that it fails.")
    ] = 5.0
    max_open_for: Annotated[Seconds, Meta(description="Bound of that doubling.")] = 60.0


class ProbeConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`probe` of a provider: an active health check. Without this table there is none."""

    path: Annotated[
        str, Meta(pattern="^/", description="Path from the root of the origin, asked with GET and the API key.")
    ]
    interval: Annotated[Seconds, Meta(description="Between two checks.")] = 10.0
    timeout: Annotated[Seconds, Meta(description="For one check; a status of 500 or more fails it too.")] = 5.0


class RetryBudgetConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`retry_budget` of a provider: bounds repetitions, so that an outage is not multiplied."""

    ratio: Annotated[
        float, Meta(ge=0, description="Share of the requests within `window` that may be repeated,")
    ] = 0.1
    floor: Annotated[int, Meta(ge=0, description="on top of so many in any case.")] = 10
    window: Annotated[Seconds, Meta(description="Over which requests and repetitions are counted.")] = 10.0


class ProviderConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[providers.NAME]`: one place to ask."""

    base_url: Annotated[str, Meta(description="URL up to and including the version, `https://api.openai.com/v1`.")]
    api: Annotated[str, Meta(description="Which API it speaks: `chat`, OpenAI's chat completions.")] = "chat"
    options: Annotated[
        dict[str, Any], Meta(description="Settings of that API; see below for those of `chat`.")
    ] = {}
    api_key: Annotated[
        str | None,
        Meta(description="Sent as its API wants it, `chat` as `Authorization: Bearer`; use `env:NAME`."),
    ] = None
    headers: Annotated[dict[str, str], Meta(description="Further request headers.")] = {}
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    http2: Annotated[
        Literal["auto", "prior-knowledge", "off"],
        Meta(
            description="`auto`: HTTP/2 where TLS negotiates it (ALPN), else HTTP/1.1. `prior-knowledge`: HTTP/2 "
            "alone, also without TLS (h2c). `off`: HTTP/1.1 alone."
        ),
    ] = "auto"
    max_connections: Annotated[
        Count, Meta(description="Connections to this origin, those that drain not counted.")
    ] = 1024
    streams_per_connection: Annotated[
        Count,
        Meta(description="Requests at a time on one HTTP/2 connection; the provider's own limit may be lower."),
    ] = 32
    spread: Annotated[
        Count,
        Meta(description="HTTP/2: requests are spread over so many connections before any of them is filled."),
    ] = 4
    min_warm: Annotated[int, Meta(ge=0, description="Connections that are kept open without any request.")] = 0
    max_age: Annotated[
        Seconds, Meta(description="A connection gets no new requests after 80 to 100 % (at random) of this.")
    ] = 1800.0
    idle_timeout: Annotated[
        Seconds,
        Meta(
            description="A connection without requests is closed after this, and before the time that an HTTP/1.1 "
            "provider's `Keep-Alive` names."
        ),
    ] = 60.0
    ping_interval: Annotated[
        Seconds, Meta(description="HTTP/2: between two PINGs, which also measure the RTT.")
    ] = 15.0
    ping_timeout: Annotated[
        Seconds, Meta(description="A connection that has sent nothing for this long after a PING is dead.")
    ] = 10.0
    ca_file: Annotated[
        str | None, Meta(description="PEM file of the certificate authorities to trust instead of the system's.")
    ] = None
    client_cert: Annotated[str | None, Meta(description="PEM file with a client certificate (chain).")] = None
    client_key: Annotated[
        str | None, Meta(description="PEM file with its key, if that is not in the same file.")
    ] = None
    proxy: Annotated[
        str | None,
        Meta(
            description="`http://[user:password@]host:port` of a proxy for `https` origins (CONNECT); `off` for "
            "none. Default: `HTTPS_PROXY` and `NO_PROXY` of the environment. `http` origins are reached directly."
        ),
    ] = None
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    probe: ProbeConfig | None = None
    retry_budget: RetryBudgetConfig = field(default_factory=RetryBudgetConfig)
    max_concurrency: Annotated[
        Count | None, Meta(description="Requests at a time; more wait in the queue. Default: no limit.")
    ] = None
    adaptive_concurrency: AdaptiveConcurrencyConfig = field(default_factory=AdaptiveConcurrencyConfig)

    def __repr__(self) -> str:
        return f"ProviderConfig(base_url={self.base_url.split('?')[0]!r})"
