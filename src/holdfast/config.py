"""The gateway's configuration: one TOML file, typed, with errors that name file, key and what was expected.

Every field is documented here; `docs/reference/configuration.md` is generated from these classes. Durations are in
seconds and sizes in bytes. A string value of the form `env:NAME` is replaced by that environment variable.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field

from holdfast.config_auth import AuthConfig, KeyConfig
from holdfast.config_limits import (
    AdaptiveConcurrencyConfig,
    Count,
    Grace,
    LimitsConfig,
    QueueConfig,
    Seconds,
    Size,
)
from holdfast.config_logging import LoggingConfig
from holdfast.errors import ConfigError


class ServerConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[server]`: the listening socket and what a connection may do."""

    host: Annotated[
        str, Meta(description="Address to listen on. Other than loopback only with `[keys]` or `[auth]`.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port; 0 takes a free one.")] = 8080
    allowed_origins: Annotated[
        list[str],
        Meta(
            description='Origins of web pages that may call, `"https://app.example"`; `"*"` for all. Pages that '
            "the gateway itself serves may always."
        ),
    ] = []
    tls_cert: Annotated[str | None, Meta(description="PEM file with the certificate chain; enables TLS.")] = None
    tls_key: Annotated[str | None, Meta(description="PEM file with the private key.")] = None
    max_body: Annotated[Size, Meta(description="Largest HTTP body and WebSocket message.")] = 16 * 1024 * 1024
    max_connections: Annotated[Count, Meta(description="Open connections; more are refused with 503.")] = 20_000
    max_connections_per_second_per_address: Annotated[
        Count | None,
        Meta(
            description="New connections from one IPv4 address or IPv6 /64; more get 429. Not behind a load "
            "balancer, whose address all share. Default: no limit."
        ),
    ] = None
    header_timeout: Annotated[
        Seconds, Meta(description="From connecting (or the previous answer's first new byte) to a complete head.")
    ] = 10.0
    body_timeout: Annotated[Seconds, Meta(description="From a complete head to a complete body.")] = 60.0
    keep_alive_timeout: Annotated[Seconds, Meta(description="Idle HTTP connections are closed after this.")] = 75.0
    hello_timeout: Annotated[Seconds, Meta(description="A WebSocket must send its first message within this.")] = (
        10.0
    )
    ping_interval: Annotated[Seconds, Meta(description="A WebSocket silent for this long is pinged.")] = 20.0
    ping_timeout: Annotated[Seconds, Meta(description="A pinged WebSocket that stays silent is dropped.")] = 10.0
    sse_keep_alive: Annotated[Seconds, Meta(description="A silent SSE response gets a comment this often.")] = 15.0
    max_hold: Annotated[
        float,
        Meta(
            ge=0, le=0.01, description="Under load turns of the event loop begin up to this far apart; 0: at once."
        ),
    ] = 0.001
    drain_timeout: Annotated[
        Grace, Meta(description="After SIGTERM running streams have this long; then they end as `incomplete`.")
    ] = 600.0
    drain_window: Annotated[
        Grace,
        Meta(
            description="After SIGTERM clients are told to leave within this; with fewer than 1,000 WebSockets "
            "within a share of it."
        ),
    ] = 30.0
    max_streams_per_session: Annotated[Count, Meta(description="Streams that one session may read at a time.")] = (
        1024
    )


class StreamsConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """`[streams]`: the logs and how long they live."""

    log_bytes: Annotated[
        Size,
        Meta(description="Bound of one log. Beyond it what all readers have is trimmed, else the provider waits."),
    ] = 8 * 1024 * 1024
    memory_bytes: Annotated[
        Size,
        Meta(description="Bound of all logs. Ended streams go first, then new work is refused as `overloaded`."),
    ] = 512 * 1024 * 1024
    max_streams: Annotated[Count, Meta(description="Streams that are kept, running and ended.")] = 100_000
    retention: Annotated[Grace, Meta(description="How long an ended stream can be read.")] = 600.0
    retention_acknowledged: Annotated[
        Grace, Meta(description="The same once its creator has acknowledged the end.")
    ] = 30.0
    detach_grace: Annotated[
        Grace, Meta(description="A stream that lost its last WebSocket reader is cancelled after this.")
    ] = 60.0
    detach_grace_http: Annotated[
        Grace,
        Meta(description="The same for HTTP readers, unless the request says `holdfast-on-disconnect: continue`."),
    ] = 0.0


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
    """`[providers.NAME]`: one OpenAI-compatible endpoint."""

    base_url: Annotated[str, Meta(description="URL up to and including the version, `https://api.openai.com/v1`.")]
    api_key: Annotated[str | None, Meta(description="Sent as `Authorization: Bearer`; use `env:NAME`.")] = None
    headers: Annotated[dict[str, str], Meta(description="Further request headers.")] = {}
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    stream_usage: Annotated[
        bool, Meta(description="Ask for usage on every stream (`stream_options.include_usage`).")
    ] = True
    requires_finish_reason: Annotated[
        bool,
        Meta(
            description="A streamed answer that ends without a `finish_reason` is `incomplete`. Switch it off for "
            "a provider that never sends one."
        ),
    ] = True
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
    adaptive_concurrency: AdaptiveConcurrencyConfig = field(default_factory=AdaptiveConcurrencyConfig)

    def __repr__(self) -> str:
        return f"ProviderConfig(base_url={self.base_url.split('?')[0]!r})"


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


class Config(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file. Without models the gateway serves the model `demo` from a built-in simulated provider."""

    server: ServerConfig = field(default_factory=ServerConfig)
    streams: StreamsConfig = field(default_factory=StreamsConfig)
    providers: dict[str, ProviderConfig] = {}
    models: dict[str, ModelConfig] = {}
    keys: dict[str, KeyConfig] = {}
    auth: AuthConfig = field(default_factory=AuthConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def has_callers(self) -> bool:
        """Whether callers are told apart; without any such setting everyone on this machine may call."""
        return bool(self.keys) or self.auth.key_store is not None or self.auth.jwt is not None


_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


def load(path: str | Path, *, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check a configuration file. Raises `ConfigError` naming file, key and what was expected."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not UTF-8 text: {exc}") from exc
    return parse(text, source=str(path), environ=environ)


def parse(text: str, *, source: str = "configuration", environ: Mapping[str, str] | None = None) -> Config:
    """Check configuration text; see `load`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{source}: is not valid TOML: {exc}") from exc
    raw = _resolve(raw, "", source, os.environ if environ is None else environ)
    # Tables with free names are converted one by one: msgspec's own paths say `providers[...]` without the name.
    parts: dict[str, Any] = dict(raw)
    for section, type_ in (("providers", ProviderConfig), ("models", ModelConfig), ("keys", KeyConfig)):
        table = raw.get(section, {})
        if isinstance(table, dict):
            parts[section] = {
                name: _convert(item, type_, f"{section}.{name}", source) for name, item in table.items()
            }
    config = _convert(parts, Config, "", source)
    check(config, source=source)
    return config


def check(config: Config, *, source: str = "configuration") -> None:
    """Check what types cannot say: references, URLs, hashes, and that an open port has keys."""
    for name, provider in config.providers.items():
        _check_provider(f"{source}: providers.{name}", provider)
    for name, model in config.models.items():
        if not name.isprintable():
            raise ConfigError(f"{source}: models.{name!r}: expected a printable name")
        for index, entry in enumerate(model.targets):
            provider_name, slash, target_model = entry.target.partition("/")
            where = f'{source}: models."{name}".route[{index}]'
            if not slash or not target_model:
                raise ConfigError(f'{where}: expected "provider/model", got {entry.target!r}')
            if provider_name not in config.providers:
                known = ", ".join(sorted(config.providers)) or "none is configured"
                raise ConfigError(f"{where}: there is no provider {provider_name!r} ({known})")
        if model.retry.maximum < model.retry.initial:
            raise ConfigError(f'{source}: models."{name}".retry.maximum: expected at least `initial`')
    for name, key in config.keys.items():
        # Names with this beginning are those of the subjects of an issuer's tokens.
        if not f"{name}{key.tenant or ''}".isprintable() or name.startswith("sub:"):
            raise ConfigError(
                f"{source}: keys.{name!r}: expected printable names, and none that begins with `sub:`"
            )
        if not _HASH.fullmatch(key.hash):
            raise ConfigError(
                f"{source}: keys.{name}.hash: expected `sha256:` and 64 hex digits (see `holdfast keys create`)"
            )
    server = config.server
    for origin in server.allowed_origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"{source}: server.allowed_origins: expected scheme://host[:port] in lower case, got {origin!r}"
            )
    if (server.tls_cert is None) != (server.tls_key is None):
        raise ConfigError(f"{source}: server.tls_cert and server.tls_key go together")
    _check_auth(f"{source}: auth", config.auth)
    if not config.has_callers and not is_loopback(server.host):
        raise ConfigError(
            f"{source}: server.host is {server.host!r}, but there are no [keys], so anyone who reaches the port "
            "could spend your provider's money. Run `holdfast keys create` and add what it prints, or listen on "
            "127.0.0.1."
        )


def _check_auth(where: str, auth: AuthConfig) -> None:
    """The messages name no value: most of them are secrets."""
    if auth.token_secret is not None and len(auth.token_secret) < 32:
        raise ConfigError(f"{where}.token_secret: expected at least 32 characters, such as `openssl rand -hex 32`")
    if auth.admin_key is not None:
        if auth.key_store is None:
            raise ConfigError(f"{where}.admin_key: the admin API needs auth.key_store as well")
        if not _HASH.fullmatch(auth.admin_key) and len(auth.admin_key) < 32:
            raise ConfigError(f"{where}.admin_key: expected at least 32 characters (see `holdfast keys create`)")
    if auth.jwt is not None:
        if (auth.jwt.jwks_url is None) == (auth.jwt.jwks_file is None):
            raise ConfigError(f"{where}.jwt: expected either jwks_url or jwks_file")
        if auth.jwt.jwks_url is not None:
            url = urlsplit(auth.jwt.jwks_url)
            if not url.hostname or (
                url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname))
            ):
                raise ConfigError(f"{where}.jwt.jwks_url: expected https://host/path, or http on this machine")
        if not auth.jwt.audience:
            raise ConfigError(f"{where}.jwt.audience: expected at least one audience")


def _check_provider(where: str, provider: ProviderConfig) -> None:
    url = urlsplit(provider.base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or url.username:
        raise ConfigError(
            f"{where}.base_url: expected http(s)://host[:port]/path without user, query or fragment, got "
            f"{provider.base_url.split('?')[0]!r}"
        )
    if provider.client_key is not None and provider.client_cert is None:
        raise ConfigError(f"{where}.client_key: needs client_cert as well")
    if provider.min_warm > provider.max_connections:
        raise ConfigError(f"{where}.min_warm: expected at most max_connections, {provider.max_connections}")
    if provider.breaker.max_open_for < provider.breaker.open_for:
        raise ConfigError(f"{where}.breaker.max_open_for: expected at least open_for")
    adaptive = provider.adaptive_concurrency
    if not adaptive.min <= adaptive.first <= adaptive.max:
        key = "max" if adaptive.max < adaptive.min else "initial"
        expected = f"at least min, {adaptive.min}" if key == "max" else f"from {adaptive.min} to {adaptive.max}"
        raise ConfigError(f"{where}.adaptive_concurrency.{key}: expected {expected}")
    if provider.proxy not in (None, "off"):
        check_proxy(provider.proxy, f"{where}.proxy")


def check_proxy(proxy: str, where: str) -> None:
    """Raise `ConfigError` unless a proxy's URL can be used. It is not shown: it may hold a password."""
    url = urlsplit(proxy)
    try:
        is_valid = url.scheme == "http" and bool(url.hostname) and url.port != 0
    except ValueError:  # the port
        is_valid = False
    if not is_valid:
        raise ConfigError(f"{where}: expected http://[user:password@]host:port")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. Names other than localhost count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _resolve(value: Any, path: str, source: str, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, f"{path}.{key}".lstrip("."), source, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, f"{path}[{index}]", source, environ) for index, item in enumerate(value)]
    if isinstance(value, str) and value.startswith("env:"):
        match = _ENV.fullmatch(value)
        if match is None:
            raise ConfigError(f"{source}: {path}: expected `env:NAME` with the name of an environment variable")
        if match[1] not in environ:
            raise ConfigError(f"{source}: {path}: the environment variable {match[1]} is not set")
        return environ[match[1]]
    return value


_T = TypeVar("_T")


def _convert(value: Any, type_: type[_T], path: str, source: str) -> _T:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{source}: {_place(str(exc), path)}") from exc


def _place(message: str, path: str) -> str:
    """Put msgspec's place, "... - at `$.server.port`", first and in the file's own terms."""
    text, _, place = message.partition(" - at `$")
    place = (path + place.rstrip("`")).lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.+)`", text)
    if unknown:
        return f"{place}{'.' if place else ''}{unknown[1]}: there is no such key"
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else text
