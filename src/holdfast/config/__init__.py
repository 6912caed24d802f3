"""The gateway's configuration: one TOML file, typed, with errors that name file, key and what was expected.

    server  streams  providers  models  auth  limits  logging   the sections: one module each
    units       durations, sizes and counts
    gateway     `Config`, the whole file
    load        reads a file, and replaces `env:NAME` by that environment variable
    checks      what types cannot say: references, URLs, that an open port has keys

Every field is documented where it is defined; `docs/reference/configuration.md` is generated from these classes.
Durations are in seconds and sizes in bytes.
"""

from __future__ import annotations

from holdfast.config.auth import AuthConfig, KeyConfig
from holdfast.config.checks import check, check_proxy, is_loopback
from holdfast.config.gateway import Config
from holdfast.config.limits import AdaptiveConcurrencyConfig, LimitsConfig, QueueConfig
from holdfast.config.load import load, parse
from holdfast.config.logging import LoggingConfig
from holdfast.config.models import ModelConfig, RetryConfig, TargetConfig
from holdfast.config.providers import BreakerConfig, ProbeConfig, ProviderConfig, RetryBudgetConfig, TimeoutsConfig
from holdfast.config.secrets import secrets_of
from holdfast.config.server import ServerConfig
from holdfast.config.streams import StreamsConfig

__all__ = [
    "AdaptiveConcurrencyConfig",
    "AuthConfig",
    "BreakerConfig",
    "Config",
    "KeyConfig",
    "LimitsConfig",
    "LoggingConfig",
    "ModelConfig",
    "ProbeConfig",
    "ProviderConfig",
    "QueueConfig",
    "RetryBudgetConfig",
    "RetryConfig",
    "ServerConfig",
    "StreamsConfig",
    "TargetConfig",
    "TimeoutsConfig",
    "check",
    "check_proxy",
    "is_loopback",
    "load",
    "parse",
    "secrets_of",
]
