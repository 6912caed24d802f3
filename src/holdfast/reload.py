"""Reloads a running gateway's configuration file: on SIGHUP, and when the file has changed."""

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

#: Seconds between two looks at the file.
INTERVAL = 2.0

_Signature = tuple[int, int, int] | None


class ConfigFile:
    """Reloads a gateway. `load` reads the file, and raises `ConfigError`.

    Construct it before the file is read for the first time, so that no change of it is missed.
    """

    def __init__(self, path: Path, load: Callable[[], Config]) -> None:
        self._path = path
        self._load = load
        self._seen = self._signature()
        self._timer: Deadline | None = None
        self._on_reload: Callable[[Config], None] | None = None

    def follow(
        self,
        gateway: Gateway,
        *,
        on_reload: Callable[[Config], None] | None = None,
        interval: float = INTERVAL,
    ) -> None:
        """Begin, with a gateway that has started; `close` ends it. `on_reload` gets each configuration in use."""
        self._on_reload = on_reload
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload, gateway)
        self._look(gateway, interval)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def reload(self, gateway: Gateway) -> None:
        """Read the file now. If it cannot be used, the gateway keeps its present configuration."""
        self._seen = self._signature()
        try:
            config = self._load()
            gateway.reload(config)
        except ConfigError as exc:
            logger.error("the configuration was refused, the old one stays: %s", exc.message)
        else:
            if self._on_reload is not None:
                self._on_reload(config)
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
