"""Builds the parts of authentication from the configuration, and starts and stops them."""

from __future__ import annotations

import time
from collections.abc import Callable

from holdfast.admission.auth import Authenticator
from holdfast.admission.client_tokens import ClientTokens
from holdfast.admission.jwks import TIMEOUT, Document, FileDocument, Jwks, url_document
from holdfast.admission.jwt_verifier import JwtVerifier
from holdfast.admission.key_store import KeyStore
from holdfast.admission.key_watcher import KeyWatcher
from holdfast.admission.keys import KeySet, KeyTable, SecretId, config_keys
from holdfast.admission.origins import OriginRules
from holdfast.config import Config
from holdfast.config.auth import JwtConfig
from holdfast.errors import ConfigError
from holdfast.observe.freshness import Freshness
from holdfast.timers import Timers


class Access:
    """Decides who may call. Call `start`, and in the end `aclose`, each once.

    `on_removed` is called with the secrets that cease to be good, `freshness` is told how old the store and the
    issuer's keys are. `clock` gives Unix seconds.
    """

    def __init__(
        self,
        config: Config,
        timers: Timers,
        *,
        on_removed: Callable[[set[SecretId]], None],
        freshness: Freshness,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        is_local = not config.has_callers
        auth = config.auth
        self.table = KeyTable()
        self.table.on_removed = on_removed
        self.table.replace("config", KeySet(config_keys(config.keys), clock()))
        self.client_tokens = ClientTokens(auth.token_secret, self.table, clock=clock)
        self._jwt = auth.jwt
        self.jwks = None if auth.jwt is None else _jwks(auth.jwt, timers, freshness, clock)
        verifier = None
        if auth.jwt is not None and self.jwks is not None:
            verifier = JwtVerifier(auth.jwt, self.jwks, clock=clock)
        self.authenticator = Authenticator(
            self.table,
            OriginRules(config.server.allowed_origins, is_local=is_local),
            self.client_tokens,
            verifier,
            is_local=is_local,
            admin_key=auth.admin_key,
            clock=clock,
        )
        self.store = None if auth.key_store is None else KeyStore(auth.key_store)
        self.watcher = (
            None
            if self.store is None
            else KeyWatcher(self.store, self.table, timers, freshness=freshness, clock=clock)
        )

    def configure(self, config: Config) -> None:
        """Use the keys and origins of another configuration. Whatever a removed key has opened is ended."""
        self.authenticator.use_origins(OriginRules(config.server.allowed_origins, is_local=not config.has_callers))
        self.table.replace("config", KeySet(config_keys(config.keys), self._clock()))

    @property
    def watched_store(self) -> tuple[KeyStore, KeyWatcher] | None:
        """The key store and what brings its changes into force; None where none is configured."""
        return None if self.store is None or self.watcher is None else (self.store, self.watcher)

    async def start(self) -> None:
        """Read the key store and the issuer's keys. Raises `ConfigError` if a file cannot be used."""
        if self.watcher is not None:
            await self.watcher.start()
        if self.jwks is None or self._jwt is None:
            return
        if self._jwt.jwks_file is None:
            await self.jwks.start()
        else:
            await self.jwks.start(wait=TIMEOUT)
            if not self.jwks.has_keys:
                raise ConfigError(f"auth.jwt.jwks_file: {self._jwt.jwks_file} cannot be used; see the log")

    async def aclose(self) -> None:
        if self.watcher is not None:
            await self.watcher.aclose()
        if self.jwks is not None:
            await self.jwks.aclose()


def _jwks(config: JwtConfig, timers: Timers, freshness: Freshness, clock: Callable[[], float]) -> Jwks:
    document: Document
    if config.jwks_url is not None:
        document, source = url_document(config.jwks_url, timers), config.jwks_url
    else:
        source = config.jwks_file or ""
        document = FileDocument(source)
    return Jwks(document, source=source, max_age=config.refresh, timers=timers, freshness=freshness, clock=clock)
