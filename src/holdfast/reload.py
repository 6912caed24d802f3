"""Follows the configuration file of a running gateway: on SIGHUP, and when the file has changed."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from holdfast.app import Gateway
from holdfast.config import Config
from holdfast.errors import ConfigError
from holdfast.timers import Deadline

logger = logging.getLogger("holdfast")

#: How often the file is looked at, in seconds.
INTERVAL = 2.0

_Signature = tuple[int, int, int] | None


class ConfigFile:
    """Reloads a gateway. `load` reads the file and raises `ConfigError`; make it before the file is read first."""

    def __init__(self, path: Path, load: Callable[[], Config]) -> None:
        self._path = path
        self._load = load
        self._seen = self._signature()
        self._timer: Deadline | None = None
        self.on_reload: Callable[[Config], None] = _nothing

    def follow(self, gateway: Gateway, *, interval: float = INTERVAL) -> None:
        """Begin, with a gateway that has started. `close` ends it."""
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload, gateway)
        self._look(gateway, interval)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def reload(self, gateway: Gateway) -> None:
        """Read the file now. One that cannot be used is refused, and the gateway goes on as it was."""
        self._seen = self._signature()
        try:
            config = self._load()
            gateway.reload(config)
        except ConfigError as exc:
            logger.error("the configuration was refused, the old one stays: %s", exc.message)
        else:
            self.on_reload(config)
            logger.warning("the configuration was reloaded from %s", self._path)

    def _look(self, gateway: Gateway, interval: float) -> None:
        signature = self._signature()
        # While an editor replaces the file there may be none for a moment.
        if signature is not None and signature != self._seen:
            self.reload(gateway)
        self._timer = gateway.timers.after(interval, lambda: self._look(gateway, interval))

    def _signature(self) -> _Signature:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _nothing(_: Config) -> None:
    pass
