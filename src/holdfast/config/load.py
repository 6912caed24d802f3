"""Reads a configuration file. Errors name the file, the key, and what was expected."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from holdfast.config.auth import KeyConfig
from holdfast.config.checks import check, place
from holdfast.config.gateway import Config
from holdfast.config.models import ModelConfig
from holdfast.config.providers import ProviderConfig
from holdfast.dialects.table import DIALECTS, Dialects
from holdfast.errors import ConfigError

_T = TypeVar("_T")
#: Settings of earlier versions, and what to use instead.
_MOVED = (
    ("streams", "memory_bytes", "`server.memory_bytes`, which bounds all that clients can make the gateway hold"),
)
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


def load(path: str | Path, *, environ: Mapping[str, str] | None = None, dialects: Dialects = DIALECTS) -> Config:
    """Read and check a configuration file. `dialects` are the APIs that a provider may name.

    Raises `ConfigError`, which names file, key and what was expected.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not UTF-8 text: {exc}") from exc
    return parse(text, source=str(path), environ=environ, dialects=dialects)


def parse(
    text: str,
    *,
    source: str = "configuration",
    environ: Mapping[str, str] | None = None,
    dialects: Dialects = DIALECTS,
) -> Config:
    """Parse and check the text of a configuration; see `load`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{source}: is not valid TOML: {exc}") from exc
    raw = _resolve(raw, "", source, os.environ if environ is None else environ)
    _check_moved(raw, source)
    # Tables with free names are converted one by one, since msgspec's paths leave the name out: `providers[...]`.
    parts: dict[str, Any] = dict(raw)
    for section, type_ in (("providers", ProviderConfig), ("models", ModelConfig), ("keys", KeyConfig)):
        table = raw.get(section, {})
        if isinstance(table, dict):
            parts[section] = {
                name: _convert(item, type_, f"{section}.{name}", source) for name, item in table.items()
            }
    config = _convert(parts, Config, "", source)
    check(config, source=source, dialects=dialects)
    return config


def _check_moved(raw: Mapping[str, Any], source: str) -> None:
    """Say where a setting is now that an earlier version had elsewhere."""
    for section, name, now in _MOVED:
        table = raw.get(section)
        if isinstance(table, dict) and name in table:
            raise ConfigError(f"{source}: {section}.{name}: there is no such setting any more; use {now}")


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


def _convert(value: Any, type_: type[_T], path: str, source: str) -> _T:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{source}: {place(str(exc), path)}") from exc
