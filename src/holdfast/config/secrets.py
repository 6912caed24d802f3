"""Which texts of a configuration are secrets: they appear in no log, error or statistics."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from holdfast.config.gateway import Config
from holdfast.config.providers import ProviderConfig

#: Configured headers whose values are public. Those of all others count as secret: most that are configured are.
_PUBLIC_HEADERS = frozenset(
    (
        "accept",
        "accept-encoding",
        "accept-language",
        "anthropic-beta",
        "anthropic-version",
        "api-version",
        "cache-control",
        "content-type",
        "http-referer",
        "openai-beta",
        "referer",
        "user-agent",
        "x-title",
    )
)


def secrets_of(config: Config, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """Name the secrets of a configuration, and the passwords of the environment's proxies."""
    for provider in config.providers.values():
        yield from _of_provider(provider)
    environ = os.environ if environ is None else environ
    for name in ("https_proxy", "HTTPS_PROXY"):
        yield from _of_proxy(environ.get(name, ""))
    admin_key = config.auth.admin_key
    if admin_key is not None and not admin_key.startswith("sha256:"):
        yield admin_key
    if config.auth.token_secret is not None:
        yield config.auth.token_secret


def _of_provider(provider: ProviderConfig) -> Iterator[str]:
    if provider.api_key:
        yield provider.api_key
    for name, value in provider.headers.items():
        if name.lower() not in _PUBLIC_HEADERS:
            yield from _of_header(value)
    if provider.proxy:
        yield from _of_proxy(provider.proxy)


def _of_header(value: str) -> Iterator[str]:
    yield value
    scheme, _, credential = value.strip().partition(" ")
    credential = credential.strip()
    if credential:
        yield credential
        if scheme.lower() == "basic":
            try:
                decoded = base64.b64decode(credential, validate=True).decode()
            except (binascii.Error, ValueError):
                return
            yield decoded
            yield decoded.partition(":")[2]


def _of_proxy(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:  # whoever uses it says so
        return
    if parts.password:
        yield parts.password
        password = unquote(parts.password)
        yield password
        yield f"{unquote(parts.username or '')}:{password}"
