"""What can be used, but is surely not meant: `holdfast check` warns of it, and so does a gateway that starts."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.config.checks import is_loopback, split_url
from holdfast.config.gateway import Config
from holdfast.config.names import Path
from holdfast.config.problems import Problem, suggestion
from holdfast.config.providers import ProviderConfig

_OPERATIONS = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")


def advise(config: Config) -> Iterator[Problem]:
    """Find what refers to nothing, is there twice, or leads to the wrong place."""
    yield from _providers(config)
    yield from _keys(config)
    yield from _limits(config)
    if config.providers and not config.models:
        yield _warning(("providers",), "there are no [models], so the demo is served and no provider is used")


def _warning(path: Path, message: str) -> Problem:
    return Problem(path, message, is_warning=True)


def _providers(config: Config) -> Iterator[Problem]:
    for name, provider in config.providers.items():
        where: Path = ("providers", name)
        url = split_url(provider.base_url)
        if url is None:
            continue
        path = url.path.rstrip("/")
        operation = next((end for end in _OPERATIONS if path.endswith(end)), None)
        if operation is not None:
            yield _warning((*where, "base_url"), f"ends with {operation}, which the gateway adds itself")
        elif not path:
            yield _warning((*where, "base_url"), "has no path; most APIs begin at one such as /v1")
        if _is_own_address(config, provider):
            yield _warning((*where, "base_url"), "is the address of this gateway itself")
        if config.models and not _is_used(config, name):
            yield _warning(where, "no model has it in its route")
        if provider.api_key == "":
            yield _warning((*where, "api_key"), "is empty, so none is sent")


def _is_own_address(config: Config, provider: ProviderConfig) -> bool:
    url, server = split_url(provider.base_url), config.server
    if url is None or server.port == 0:
        return False
    port = url.port or (443 if url.scheme == "https" else 80)
    host = url.hostname or ""
    is_everywhere = server.host in ("0.0.0.0", "::", "")  # noqa: S104 - it is compared
    is_here = host == server.host or (is_loopback(host) and (is_everywhere or is_loopback(server.host)))
    return port == server.port and is_here


def _is_used(config: Config, provider: str) -> bool:
    return any(
        entry.target.partition("/")[0] == provider for model in config.models.values() for entry in model.targets
    )


def _keys(config: Config) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name, key in config.keys.items():
        other = seen.setdefault(key.hash, name)
        if other != name:
            yield _warning(("keys", name, "hash"), f"is that of keys.{other} as well, and one of the two counts")
        for index, model in enumerate(key.models or []):
            if config.models and model not in config.models:
                yield _warning(
                    ("keys", name, "models", index),
                    f"there is no model {model!r}{suggestion(model, config.models)}",
                )
    secret = config.auth.token_secret
    if secret is not None and secret != secret.strip():
        yield _warning(
            ("auth", "token_secret"), "begins or ends with a space or line end, which counts as part of it"
        )


def _limits(config: Config) -> Iterator[Problem]:
    """Warn of limits of nobody. A key store and an issuer have names that are not known here."""
    if config.auth.key_store is not None or config.auth.jwt is not None:
        return
    tenants = {key.tenant or name for name, key in config.keys.items()}
    if not config.has_callers:
        tenants.add("local")
    for section, known, what in (("keys", set(config.keys), "key"), ("tenants", tenants, "tenant")):
        for name in getattr(config.limits, section):
            if name not in known:
                yield _warning(
                    ("limits", section, name), f"there is no {what} of that name{suggestion(name, known)}"
                )
