"""Checks a configuration for what types cannot say: references, URLs, hashes, and that an open port has keys."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Collection, Iterator
from urllib.parse import SplitResult, urlsplit

import msgspec

from holdfast.config.auth import AuthConfig, KeyConfig
from holdfast.config.gateway import Config
from holdfast.config.models import ModelConfig
from holdfast.config.names import Path
from holdfast.config.problems import Problem, refuse, suggestion
from holdfast.config.providers import ProviderConfig
from holdfast.config.server import ServerConfig
from holdfast.config.shape import of_validation
from holdfast.core.http.connection import OWN_FIELDS
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
#: RFC 9110 sections 5.1 and 5.5.
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_IN_A_FIELD = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: What frames a message is the connection's own matter (RFC 9110 section 7.6.1, RFC 9112 section 6).
_FRAMING = frozenset({*(name.decode() for name in OWN_FIELDS), "te", "keep-alive", "accept-encoding"})


def check(config: Config, *, source: str = "configuration", dialects: Dialects = DIALECTS) -> None:
    """Check what types cannot say: references, URLs, hashes, and that an open port has keys.

    `dialects` are the APIs that a provider may name. Raises `ConfigError` with every problem, one a line.
    """
    refuse(find_problems(config, dialects), source)


def find_problems(
    config: Config, dialects: Dialects = DIALECTS, *, broken: Collection[Path] = ()
) -> Iterator[Problem]:
    """Find everything that cannot work. Settings that are `broken` were left out of the configuration.

    What is wrong only because of them is not told: they are.
    """
    gone = {path[:2] for path in broken}
    callers_are_broken = any(path[:1] in (("keys",), ("auth",)) for path in broken)
    for problem in _all_problems(config, dialects, gone, callers_are_broken=callers_are_broken):
        if not any(problem.path[: len(path)] == path for path in broken):
            yield problem


def _all_problems(
    config: Config, dialects: Dialects, gone: Collection[Path], *, callers_are_broken: bool
) -> Iterator[Problem]:
    for name, provider in config.providers.items():
        for problem in _provider(provider, dialects):
            yield problem.within(("providers", name))
    for name, model in config.models.items():
        for problem in _model(name, model, config, gone):
            yield problem.within(("models", name))
    for name, key in config.keys.items():
        for problem in _key(name, key, config.auth):
            yield problem.within(("keys", name))
    for problem in _server(config.server):
        yield problem.within(("server",))
    for problem in _auth(config.auth):
        yield problem.within(("auth",))
    if not config.has_callers and not callers_are_broken and not is_loopback(config.server.host):
        yield Problem(
            ("server", "host"),
            f"is {config.server.host!r}, but there are no [keys], so anyone who reaches the port could spend your "
            "provider's money. Run `holdfast keys create` and add what it prints, or listen on 127.0.0.1.",
        )


def _model(name: str, model: ModelConfig, config: Config, gone: Collection[Path]) -> Iterator[Problem]:
    if not name.isprintable():
        yield Problem((), "expected a printable name")
    for index, entry in enumerate(model.targets):
        provider, slash, target_model = entry.target.partition("/")
        where: Path = ("route", index)
        if not slash or not target_model:
            yield Problem(where, f'expected "provider/model", got {entry.target!r}')
        elif provider not in config.providers and ("providers", provider) not in gone:
            known = ", ".join(sorted(config.providers)) or "none is configured"
            hint = suggestion(provider, config.providers)
            yield Problem(where, f"there is no provider {provider!r} ({known}){hint}")
    if model.retry.maximum < model.retry.initial:
        yield Problem(("retry", "maximum"), "expected at least `initial`")


def _key(name: str, key: KeyConfig, auth: AuthConfig) -> Iterator[Problem]:
    # The subjects of an issuer's tokens have names with this prefix.
    if not f"{name}{key.tenant or ''}".isprintable() or name.startswith("sub:"):
        yield Problem((), "expected printable names, and none that begins with `sub:`")
    if not _HASH.fullmatch(key.hash):
        yield Problem(("hash",), "expected `sha256:` and 64 hex digits (see `holdfast keys create`)")
    elif _is_hash_of(key.hash, auth.admin_key):
        # Whoever has it would be the admin, and the admin asks for no generation.
        yield Problem(("hash",), "is that of auth.admin_key; a caller needs its own key")


def _is_hash_of(hashed: str, key: str | None) -> bool:
    """Whether a caller's hash is that of a key that is configured as such or by its hash."""
    return key is not None and hashed in (key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}")


def _server(server: ServerConfig) -> Iterator[Problem]:
    if server.memory_bytes < 4 * server.max_body:
        yield Problem(
            ("memory_bytes",),
            f"expected at least four times server.max_body ({4 * server.max_body}), got {server.memory_bytes}",
        )
    if not is_host(server.host):
        yield Problem(("host",), f"expected a name or an address, got {server.host[:100]!r}")
    for index, origin in enumerate(server.allowed_origins):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            yield Problem(
                ("allowed_origins", index), f"expected scheme://host[:port] in lower case, got {origin!r}"
            )
    if (server.tls_cert is None) != (server.tls_key is None):
        has, lacks = ("tls_key", "tls_cert") if server.tls_cert is None else ("tls_cert", "tls_key")
        yield Problem((has,), f"server.tls_cert and server.tls_key go together: there is no {lacks}")


def _auth(auth: AuthConfig) -> Iterator[Problem]:
    """Check `[auth]`. The messages show no values, since most of them are secrets."""
    if auth.token_secret is not None and len(auth.token_secret) < 32:
        yield Problem(("token_secret",), "expected at least 32 characters, such as `openssl rand -hex 32`")
    if auth.admin_key is not None and not _HASH.fullmatch(auth.admin_key):
        if len(auth.admin_key) < 32:
            yield Problem(("admin_key",), "expected at least 32 characters (see `holdfast keys create`)")
        elif (reason := why_not_a_field(auth.admin_key)) is not None:
            yield Problem(("admin_key",), f"{reason}, so nobody could send it")
    if auth.jwt is not None:
        if (auth.jwt.jwks_url is None) == (auth.jwt.jwks_file is None):
            yield Problem(("jwt",), "expected either jwks_url or jwks_file")
        if auth.jwt.jwks_url is not None:
            url = split_url(auth.jwt.jwks_url)
            if url is None or (url.scheme != "https" and not (url.scheme == "http" and is_loopback(_host(url)))):
                yield Problem(("jwt", "jwks_url"), "expected https://host/path, or http on this machine")
        if not auth.jwt.audience:
            yield Problem(("jwt", "audience"), "expected at least one audience")


def _provider(provider: ProviderConfig, dialects: Dialects) -> Iterator[Problem]:
    url = split_url(provider.base_url)
    if url is None or url.scheme not in ("http", "https") or url.query or url.fragment or url.username:
        yield Problem(
            ("base_url",),
            "expected http(s)://host[:port]/path without user, query, fragment or spaces, and a port of at most "
            f"65535, got {_shown(provider.base_url)!r}",
        )
    yield from _api(provider, dialects)
    yield from _credentials(provider)
    if provider.client_key is not None and provider.client_cert is None:
        yield Problem(("client_key",), "needs client_cert as well")
    if provider.min_warm > provider.max_connections:
        yield Problem(("min_warm",), f"expected at most max_connections, {provider.max_connections}")
    if provider.breaker.max_open_for < provider.breaker.open_for:
        yield Problem(("breaker", "max_open_for"), "expected at least open_for")
    adaptive = provider.adaptive_concurrency
    if adaptive.enabled and provider.max_concurrency is not None:
        yield Problem(("max_concurrency",), "does not go with adaptive_concurrency; set its `max` instead")
    if not adaptive.min <= adaptive.first <= adaptive.max:
        key = "max" if adaptive.max < adaptive.min else "initial"
        expected = f"at least min, {adaptive.min}" if key == "max" else f"from {adaptive.min} to {adaptive.max}"
        yield Problem(("adaptive_concurrency", key), f"expected {expected}")
    if provider.proxy not in (None, "off") and not _is_proxy(provider.proxy or ""):
        yield Problem(("proxy",), _PROXY)
    if provider.probe is not None and not _is_target(provider.probe.path):
        yield Problem(("probe", "path"), "expected a path in ASCII without spaces")


def _api(provider: ProviderConfig, dialects: Dialects) -> Iterator[Problem]:
    if provider.api not in dialects.names:
        hint = suggestion(provider.api, dialects.names)
        yield Problem(("api",), f"expected one of {', '.join(dialects.names)}, got {provider.api!r}{hint}")
        return
    try:
        dialects.get(provider.api).options(provider.options)
    except msgspec.ValidationError as exc:
        yield of_validation(exc).within(("options",))


def _credentials(provider: ProviderConfig) -> Iterator[Problem]:
    """Check what is sent as a header. The values may be secret."""
    if provider.api_key is not None and (reason := why_not_a_field(provider.api_key)) is not None:
        yield Problem(("api_key",), f"{reason}, so every request with it would fail")
    for name, value in provider.headers.items():
        if not _FIELD_NAME.fullmatch(name):
            yield Problem(("headers", name), "is not the name of a header")
        elif name.lower() in _FRAMING:
            yield Problem(("headers", name), "belongs to the connection and cannot be set")
        elif (reason := why_not_a_field(value)) is not None:
            yield Problem(("headers", name), f"{reason}, so every request with it would fail")


def why_not_a_field(value: str) -> str | None:
    """Say why a text cannot be the value of a header (RFC 9110 section 5.5); None where it can."""
    if value.endswith(("\n", "\r")):
        return "ends with a line end"
    if _NOT_IN_A_FIELD.search(value):
        return "has a control character"
    if value != value.strip():
        return "begins or ends with a space"
    return None


def split_url(text: str) -> SplitResult | None:
    """Split a URL; None where there is no host, or something in it that no URL has."""
    # `urlsplit` drops line ends and tabs without a word.
    if not text.isprintable() or " " in text or not text.isascii():
        return None
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port
    except ValueError:  # the port, or an IPv6 address
        return None
    return url if host and is_host(host) else None


def is_host(name: str) -> bool:
    """Whether a name or address can be looked up: no label of it is empty, or too long."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return name.isprintable()


def _host(url: SplitResult) -> str:
    return url.hostname or ""


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    start, at, end = url.split("?")[0].rpartition("@")
    return (f"...@{end}" if at else start + end)[:200]


def _is_target(path: str) -> bool:
    return path.isascii() and path.isprintable() and " " not in path


_PROXY = "expected http://[user:password@]host:port"


def _is_proxy(proxy: str) -> bool:
    url = split_url(proxy)
    return url is not None and url.scheme == "http" and url.port != 0


def check_proxy(proxy: str, where: str) -> None:
    """Raise `ConfigError` unless a proxy's URL can be used. It never shows the URL: it may hold a password."""
    if not _is_proxy(proxy):
        raise ConfigError(f"{where}: {_PROXY}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. Names other than localhost count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
