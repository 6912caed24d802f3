"""Checks a configuration for what types cannot say: references, URLs, hashes, and that an open port has keys."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from holdfast.config.auth import AuthConfig
from holdfast.config.gateway import Config
from holdfast.config.providers import ProviderConfig
from holdfast.core.http.connection import OWN_FIELDS, HttpMisuse, request_fields
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def check(config: Config, *, source: str = "configuration", dialects: Dialects = DIALECTS) -> None:
    """Check what types cannot say: references, URLs, hashes, and that an open port has keys.

    `dialects` are the APIs that a provider may name. Raises `ConfigError`.
    """
    for name, provider in config.providers.items():
        _check_provider(f"{source}: providers.{name}", provider, dialects)
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
        # The subjects of an issuer's tokens have names with this prefix.
        if not f"{name}{key.tenant or ''}".isprintable() or name.startswith("sub:"):
            raise ConfigError(
                f"{source}: keys.{name!r}: expected printable names, and none that begins with `sub:`"
            )
        if not _HASH.fullmatch(key.hash):
            raise ConfigError(
                f"{source}: keys.{name}.hash: expected `sha256:` and 64 hex digits (see `holdfast keys create`)"
            )
        if _is_hash_of(key.hash, config.auth.admin_key):
            # Whoever has it would be the admin, and the admin asks for no generation.
            raise ConfigError(f"{source}: keys.{name}.hash: is that of auth.admin_key; a caller needs its own key")
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


def _is_hash_of(hashed: str, key: str | None) -> bool:
    """Whether a caller's hash is that of a key that is configured as such or by its hash."""
    return key is not None and hashed in (key, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}")


def _check_auth(where: str, auth: AuthConfig) -> None:
    """Check `[auth]`. The messages show no values, since most of them are secrets."""
    if auth.token_secret is not None and len(auth.token_secret) < 32:
        raise ConfigError(f"{where}.token_secret: expected at least 32 characters, such as `openssl rand -hex 32`")
    if auth.admin_key is not None and not _HASH.fullmatch(auth.admin_key) and len(auth.admin_key) < 32:
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


def _check_provider(where: str, provider: ProviderConfig, dialects: Dialects) -> None:
    url = urlsplit(provider.base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or url.username:
        raise ConfigError(
            f"{where}.base_url: expected http(s)://host[:port]/path without user, query or fragment, got "
            f"{provider.base_url.split('?')[0]!r}"
        )
    _check_api(where, provider, dialects)
    _check_headers(f"{where}.headers", provider.headers)
    if provider.client_key is not None and provider.client_cert is None:
        raise ConfigError(f"{where}.client_key: needs client_cert as well")
    if provider.min_warm > provider.max_connections:
        raise ConfigError(f"{where}.min_warm: expected at most max_connections, {provider.max_connections}")
    if provider.breaker.max_open_for < provider.breaker.open_for:
        raise ConfigError(f"{where}.breaker.max_open_for: expected at least open_for")
    adaptive = provider.adaptive_concurrency
    if adaptive.enabled and provider.max_concurrency is not None:
        raise ConfigError(f"{where}.max_concurrency: does not go with adaptive_concurrency; set its `max` instead")
    if not adaptive.min <= adaptive.first <= adaptive.max:
        key = "max" if adaptive.max < adaptive.min else "initial"
        expected = f"at least min, {adaptive.min}" if key == "max" else f"from {adaptive.min} to {adaptive.max}"
        raise ConfigError(f"{where}.adaptive_concurrency.{key}: expected {expected}")
    if provider.proxy not in (None, "off"):
        check_proxy(provider.proxy, f"{where}.proxy")


def _check_api(where: str, provider: ProviderConfig, dialects: Dialects) -> None:
    if provider.api not in dialects.names:
        raise ConfigError(f"{where}.api: expected one of {', '.join(dialects.names)}, got {provider.api!r}")
    try:
        dialects.get(provider.api).options(provider.options)
    except msgspec.ValidationError as exc:
        raise ConfigError(place(str(exc), f"{where}.options")) from exc


def _check_headers(where: str, headers: Mapping[str, str]) -> None:
    """Check `headers` of a provider. The messages show no values, since some of them are secrets."""
    for name, value in headers.items():
        field = name.lower().encode()
        if field in OWN_FIELDS or field == b"accept-encoding":
            raise ConfigError(f"{where}: {name!r} cannot be set; the gateway writes it itself")
        try:
            request_fields(b"GET", [(field, value.encode())], b"")
        except (HttpMisuse, UnicodeEncodeError) as exc:
            raise ConfigError(f"{where}: {name!r} cannot be sent: {exc}") from exc


def check_proxy(proxy: str, where: str) -> None:
    """Raise `ConfigError` unless a proxy's URL can be used. It never shows the URL: it may hold a password."""
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


def place(message: str, path: str) -> str:
    """Rewrite msgspec's "... - at `$.server.port`" as "server.port: ...", in the file's own terms."""
    text, _, place = message.partition(" - at `$")
    place = (path + place.rstrip("`")).lstrip(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.+)`", text)
    if unknown:
        return f"{place}{'.' if place else ''}{unknown[1]}: there is no such key"
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else text
