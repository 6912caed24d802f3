"""The gateway's configuration: one TOML file, typed, with errors that name file, key and what was expected.

    server  streams  providers  models  auth  limits  logging   the sections: one module each
    units       durations, sizes and counts
    gateway     `Config`, the whole file
    load        reads a file, and replaces `env:NAME` by that environment variable
    shape       the types, applied so that every part that does not fit is told
    checks      what types cannot say: references, URLs, that an open port has keys
    advice      what can be used, but is surely not meant
    problems    what is wrong, with its line in the file
    lines       in which line of the file a setting begins
    names       how the place of a setting is written

Every field is documented where it is defined; `docs/reference/configuration.md` is generated from these classes.
Durations are in seconds and sizes in bytes.
"""

from __future__ import annotations

from holdfast.config.auth import AuthConfig, KeyConfig
from holdfast.config.checks import check, check_proxy, is_loopback
from holdfast.config.gateway import Config
from holdfast.config.limits import AdaptiveConcurrencyConfig, LimitsConfig, QueueConfig
from holdfast.config.load import Loaded, examine, load, parse, read_text, survey
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
    "Loaded",
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
    "examine",
    "is_loopback",
    "load",
    "parse",
    "read_text",
    "secrets_of",
    "survey",
]
