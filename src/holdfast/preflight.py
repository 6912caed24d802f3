"""Opens everything that a start would open, so that `holdfast check` finds what `serve` would."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509

from holdfast.admission.jwks import file_fetcher, parse_jwks
from holdfast.admission.key_store import KeyStore
from holdfast.config import Config, ProviderConfig, ServerConfig, is_loopback
from holdfast.config.auth import AuthConfig
from holdfast.config.checks import split_url
from holdfast.config.problems import Problem
from holdfast.demo import NO_DEMO, has_demo
from holdfast.errors import ConfigError
from holdfast.server.listener.listening import tls_context
from holdfast.upstream.dial import Origin

#: A secret's file is nobody else's to read but its group's, and nobody's to write but its owner's.
_TOO_OPEN = 0o026
_SECRET_HEADERS = ("authorization", "x-api-key", "api-key", "cookie")


def inspect(config: Config, known: Iterable[Problem] = ()) -> list[Problem]:
    """Open each file that the configuration names, and the address. Nothing is created, and no provider asked.

    What stands where one of the `known` problems is, or around it, is not told a second time.
    """
    places = [problem.path for problem in known if not problem.is_warning]
    return [
        problem
        for problem in _inspect(config)
        if not any(place[: len(problem.path)] == problem.path for place in places)
    ]


def _inspect(config: Config) -> Iterator[Problem]:
    yield from _server(config.server)
    yield from _auth(config.auth)
    for name, provider in config.providers.items():
        for problem in [*_provider(provider), *_own_address(provider, config.server)]:
            yield problem.within(("providers", name))
    if not config.models and not has_demo():
        yield Problem(("models",), NO_DEMO)


def inspect_modes(path: Path, raw: Mapping[str, Any], config: Config) -> Iterator[Problem]:
    """Warn of files with secrets that others may read or write. `raw` is the text of the file as TOML gives it."""
    literal = next(_literal_secrets(raw), None)
    if literal is not None and (mode := _mode_too_open(path)) is not None:
        yield Problem(literal, f"is a secret in a file with mode {mode}; use 0600, or `env:NAME`", is_warning=True)
    key = config.server.tls_key
    if key is not None and (mode := _mode_too_open(Path(key))) is not None:
        yield Problem(("server", "tls_key"), f"has mode {mode}; use 0600", is_warning=True)


def _mode_too_open(path: Path) -> str | None:
    """Return the mode of a file that others may read, or others or its group may write."""
    if sys.platform == "win32":
        return None
    try:
        mode = path.stat().st_mode & 0o777
    except (OSError, ValueError):
        return None
    return f"{mode:04o}" if mode & _TOO_OPEN else None


def _literal_secrets(raw: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Find secrets that stand in the file itself. What is of another type is told elsewhere."""
    auth = _table(raw, "auth")
    for name in ("admin_key", "token_secret"):
        value = _text(auth, name)
        if value and not value.startswith(("env:", "sha256:")):
            yield ("auth", name)
    providers = _table(raw, "providers")
    for name in providers:
        provider = _table(providers, name)
        if (key := _text(provider, "api_key")) and not key.startswith("env:"):
            yield ("providers", name, "api_key")
        headers = _table(provider, "headers")
        for header in headers:
            value = _text(headers, header)
            if value and header.lower() in _SECRET_HEADERS and not value.startswith("env:"):
                yield ("providers", name, "headers", header)
        if "@" in _text(provider, "proxy"):
            yield ("providers", name, "proxy")


def _table(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    return value if isinstance(value, str) else ""


# -- the listening socket ------------------------------------------------------------------------------------


def _server(server: ServerConfig) -> Iterator[Problem]:
    if (reason := _why_no_address(server)) is not None:
        yield Problem(("server", "host"), reason)
    named = {"tls_cert": server.tls_cert, "tls_key": server.tls_key}
    unreadable = [Problem(("server", name), why) for name, path in named.items() if (why := _why_unreadable(path))]
    yield from unreadable
    if server.tls_cert is None or server.tls_key is None or unreadable:
        return
    try:
        tls_context(server)
    except ConfigError as exc:
        if isinstance(exc.__cause__, ssl.SSLError) and exc.__cause__.reason == "KEY_VALUES_MISMATCH":
            yield Problem(("server", "tls_key"), f"is not the key of the certificate in {server.tls_cert}")
        else:
            yield Problem(("server", "tls_cert"), f"cannot be used: {exc.__cause__}")
        return
    try:
        end = x509.load_pem_x509_certificate(Path(server.tls_cert).read_bytes()).not_valid_after_utc
    except ValueError:
        return  # OpenSSL takes forms that this reader does not know
    if end < datetime.datetime.now(datetime.UTC):
        yield Problem(("server", "tls_cert"), f"has expired on {end:%Y-%m-%d}", is_warning=True)


def _why_no_address(server: ServerConfig) -> str | None:
    """Try the address with a free port: the gateway itself may be listening on its own."""
    try:
        found = socket.getaddrinfo(server.host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as own:
            own.bind(address)
    except (OSError, UnicodeError) as exc:
        return f"cannot listen on {server.host}: {getattr(exc, 'strerror', None) or exc}"
    return None


def _why_unreadable(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as exc:
        return f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}"
    return None


# -- keys ----------------------------------------------------------------------------------------------------


def _auth(auth: AuthConfig) -> Iterator[Problem]:
    if auth.key_store is not None:
        yield from _key_store(Path(auth.key_store))
    if auth.jwt is not None and auth.jwt.jwks_file is not None:
        where = ("auth", "jwt", "jwks_file")
        try:
            if not parse_jwks(file_fetcher(auth.jwt.jwks_file)()):
                yield Problem(where, f"{auth.jwt.jwks_file} has no key that could be used", is_warning=True)
        except (OSError, ValueError) as exc:
            yield Problem(where, f"{auth.jwt.jwks_file} cannot be used: {getattr(exc, 'strerror', None) or exc}")


def _key_store(path: Path) -> Iterator[Problem]:
    where = ("auth", "key_store")
    try:
        if path.exists():
            for bad in KeyStore(path).inspect():
                yield Problem(where, f"leaves out the key {bad.id!r}: {bad.problem}", is_warning=True)
        elif (reason := _why_not_made(path)) is not None:
            yield Problem(where, reason)
    except ConfigError as exc:
        yield Problem(where, exc.message)
    except OSError as exc:
        yield Problem(where, f"{path}: cannot be used as a key store: {exc}")


def _why_not_made(path: Path) -> str | None:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path}: there is no folder {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{path}: cannot be created, since {folder} cannot be written to"
    return None


# -- providers -----------------------------------------------------------------------------------------------


def _provider(provider: ProviderConfig) -> Iterator[Problem]:
    named = {"ca_file": provider.ca_file, "client_cert": provider.client_cert, "client_key": provider.client_key}
    unreadable = [Problem((name,), why) for name, path in named.items() if (why := _why_unreadable(path))]
    yield from unreadable
    if not unreadable and split_url(provider.base_url) is not None:
        try:
            Origin.of(provider)
        except ConfigError as exc:
            yield Problem((), exc.message)


def _own_address(provider: ProviderConfig, server: ServerConfig) -> Iterator[Problem]:
    """Warn of another address of this machine, where the gateway listens on all of them."""
    url = split_url(provider.base_url)
    if url is None or url.port != server.port or server.host not in ("0.0.0.0", "::"):  # noqa: S104
        return
    host = url.hostname or ""
    if not is_loopback(host) and _is_of_this_machine(host):
        yield Problem(("base_url",), "is the address of this gateway itself", is_warning=True)


def _is_of_this_machine(host: str) -> bool:
    """Whether an IP address can be listened on here. Names are not asked for: that may take long."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family) as own:
            own.bind((host, 0))
    except (OSError, ValueError):
        return False
    return True
