"""The provider that a gateway without configured models serves: an entry point of another distribution."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol

from holdfast.errors import ConfigError


class Demo(Protocol):
    """A provider on loopback that needs no configuration: `holdfast-tools` brings one."""

    @property
    def base_url(self) -> str: ...

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


_GROUP = "holdfast.demo"
#: Said where none is installed, and no model configured.
NO_DEMO = "none is configured, and the demo needs the tools: pip install 'holdfast[demo]', or pass --config"


def has_demo() -> bool:
    """Whether a demo provider is installed."""
    return bool(entry_points(group=_GROUP))


def find_demo() -> Demo:
    """Make the demo provider that is installed. Raises `ConfigError` where none is."""
    for entry in entry_points(group=_GROUP):
        demo: Demo = entry.load()()
        return demo
    raise ConfigError(f"models: {NO_DEMO}")
