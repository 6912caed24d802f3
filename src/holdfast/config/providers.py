"""The configuration of providers: their URL and API, connections, timeouts, and what happens when they fail."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from holdfast.config.limits import AdaptiveConcurrencyConfig
from holdfast.config.units import Count, Seconds


class TimeoutsConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`timeouts` of a provider. Each ends the attempt with its own error."""

    connect: Annotated[Seconds, Meta(description="For TCP, TLS and the HTTP/2 preface.")] = 10.0
    pool: Annotated[Seconds, Meta(description="For the wait for a free connection.")] = 30.0
    first_byte: Annotated[
        Seconds,
        Meta(
            description="From the request to the first byte of a streamed body. Until there is something to show, "
            "a silence may be as long."
        ),
    ] = 300.0
    idle: Annotated[
        Seconds,
        Meta(description="Between two reads of a streamed body that has begun to show something; comments count."),
    ] = 120.0
    answer: Annotated[
        Seconds, Meta(description="From the request to the end of an answer that is not streamed.")
    ] = 600.0
    total: Annotated[Seconds, Meta(description="From the request to the end.")] = 1800.0


class BreakerConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`breaker` of a provider: when it gets no more requests after failures, and when it gets them again."""

    failures: Annotated[
        Count,
        Meta(
            description="The breaker opens after so many failures in a row. One request counts once, and so does "
            "the loss of a connection, however many requests it had; an answer that has begun does not count."
        ),
    ] = 5
    error_rate: Annotated[
        float, Meta(gt=0, le=1, description="It also opens if this share of the attempts within `window` failed,")
    ] = 0.5
    min_requests: Annotated[Count, Meta(description="provided that there were at least so many attempts.")] = 20
    window: Annotated[Seconds, Meta(description="The time over which that share is taken.")] = 30.0
    open_for: Annotated[
        Seconds,
        Meta(description="After this, one trial request is sent. The time doubles with each trial that fails."),
    ] = 5.0
    max_open_for: Annotated[Seconds, Meta(description="The longest such time.")] = 60.0
    refused_for: Annotated[
        Seconds,
        Meta(
            description="The breaker opens at once, for so long, where the provider refuses the gateway's own "
            "credential (401, 403) or says that its quota is used up (`insufficient_quota`)."
        ),
    ] = 60.0


class ProbeConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`probe` of a provider: an active health check. Without this table there are no checks."""

    path: Annotated[
        str,
        Meta(pattern="^/", description="Path from the root of the origin; requested with GET and the API key."),
    ]
    interval: Annotated[Seconds, Meta(description="The time between two checks.")] = 10.0
    timeout: Annotated[
        Seconds, Meta(description="For one check. A check also fails with a status of 500 or more.")
    ] = 5.0


class RetryBudgetConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`retry_budget` of a provider: bounds retries, so that they do not multiply the load of an outage."""

    ratio: Annotated[
        float, Meta(ge=0, description="The share of the requests within `window` that may be retried.")
    ] = 0.1
    floor: Annotated[int, Meta(ge=0, description="So many retries within `window` are allowed in addition.")] = 10
    window: Annotated[Seconds, Meta(description="The time over which requests and retries are counted.")] = 10.0


class ProviderConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[providers.NAME]`: one provider, and the API that it speaks."""

    base_url: Annotated[str, Meta(description="URL up to and including the version, `https://api.openai.com/v1`.")]
    api: Annotated[str, Meta(description="Which API it speaks: `chat`, OpenAI's chat completions.")] = "chat"
    options: Annotated[
        dict[str, Any], Meta(description="Settings of that API: [those of `chat`](#options-of-chat).")
    ] = {}
    api_key: Annotated[
        str | None,
        Meta(description="Sent as its API wants it, `chat` as `Authorization: Bearer`; use `env:NAME`."),
    ] = None
    headers: Annotated[
        dict[str, str], Meta(description="Further request headers; they replace those that the gateway sends.")
    ] = {}
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    http2: Annotated[
        Literal["auto", "prior-knowledge", "off"],
        Meta(
            description="`auto`: HTTP/2 if TLS negotiates it (ALPN), else HTTP/1.1. `prior-knowledge`: only "
            "HTTP/2, also without TLS (h2c). `off`: only HTTP/1.1."
        ),
    ] = "auto"
    max_connections: Annotated[
        Count, Meta(description="Connections to this origin, without those that drain.")
    ] = 1024
    streams_per_connection: Annotated[
        Count,
        Meta(description="Requests at a time on one HTTP/2 connection. The provider's own limit may be lower."),
    ] = 32
    spread: Annotated[
        Count,
        Meta(description="HTTP/2: requests are spread over so many connections before one of them is filled."),
    ] = 4
    min_warm: Annotated[int, Meta(ge=0, description="How many connections are kept open without requests.")] = 0
    max_age: Annotated[
        Seconds, Meta(description="A connection gets no new requests after 80 to 100 % of this, drawn at random.")
    ] = 1800.0
    idle_timeout: Annotated[
        Seconds,
        Meta(
            description="A connection without requests is closed after this, or shortly before the time that "
            "an HTTP/1.1 provider names by `Keep-Alive`."
        ),
    ] = 60.0
    ping_interval: Annotated[
        Seconds, Meta(description="HTTP/2: the time between two PINGs, which also measure the RTT.")
    ] = 15.0
    ping_timeout: Annotated[
        Seconds, Meta(description="A connection that sends nothing for so long after a PING is dead.")
    ] = 10.0
    ca_file: Annotated[
        str | None, Meta(description="PEM file of the certificate authorities to trust, instead of the system's.")
    ] = None
    client_cert: Annotated[str | None, Meta(description="PEM file with a client certificate and its chain.")] = (
        None
    )
    client_key: Annotated[
        str | None, Meta(description="PEM file with the certificate's key, if that is in another file.")
    ] = None
    proxy: Annotated[
        str | None,
        Meta(
            description="`http://[user:password@]host:port` of a proxy for `https` origins (CONNECT); `off` "
            "for none. Default: `HTTPS_PROXY` and `NO_PROXY` of the environment. `http` origins are reached "
            "directly."
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
