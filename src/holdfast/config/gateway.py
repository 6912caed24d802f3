"""The whole configuration file as one struct."""

from __future__ import annotations

from msgspec import Struct, field

from holdfast.config.auth import AuthConfig, KeyConfig
from holdfast.config.limits import LimitsConfig, QueueConfig
from holdfast.config.logging import LoggingConfig
from holdfast.config.models import ModelConfig
from holdfast.config.providers import ProviderConfig
from holdfast.config.server import ServerConfig
from holdfast.config.streams import StreamsConfig


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
        """Whether callers need credentials. Without any such setting, everyone on this machine may call."""
        return bool(self.keys) or self.auth.key_store is not None or self.auth.jwt is not None
