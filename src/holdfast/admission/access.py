"""Puts the parts of authentication together as the configuration says, and starts and stops them."""

from __future__ import annotations

import time

from holdfast.admission.auth import Authenticator
from holdfast.admission.key_store import KeyStore
from holdfast.admission.key_watcher import KeyWatcher
from holdfast.admission.keys import KeyTable, config_keys
from holdfast.admission.origins import OriginRules
from holdfast.config import Config
from holdfast.timers import Timers


class Access:
    """What decides who may call. `start`, then `aclose`; both once."""

    def __init__(self, config: Config, timers: Timers) -> None:
        is_local = not config.has_callers
        self.table = KeyTable()
        self.table.replace("config", config_keys(config.keys), time.time())
        self.origins = OriginRules(config.server.allowed_origins, is_local=is_local)
        self.authenticator = Authenticator(self.table, self.origins, is_local=is_local)
        self._watcher: KeyWatcher | None = None
        if config.auth.key_store is not None:
            self._watcher = KeyWatcher(KeyStore(config.auth.key_store), self.table, timers)

    async def start(self) -> None:
        """Read what is kept outside of the configuration. Raises `ConfigError`."""
        if self._watcher is not None:
            self._watcher.start()

    async def aclose(self) -> None:
        if self._watcher is not None:
            await self._watcher.aclose()
