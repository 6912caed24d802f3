"""Looks at the files of a running gateway, and reloads it when they have changed, or on SIGHUP."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from holdfast.app import Gateway
from holdfast.config import Config, read_text
from holdfast.config.load import MAX_SIZE
from holdfast.errors import ConfigError
from holdfast.observe.audit import audit
from holdfast.observe.freshness import SAY_AGAIN, Source
from holdfast.reload.changes import changes, refusal
from holdfast.reload.looks import Look, Settling, look_at
from holdfast.timers import Deadline

logger = logging.getLogger("holdfast")

#: Seconds between two looks at the files.
INTERVAL: Final = 1.0
#: The largest certificate or list of authorities, in bytes.
_MAX_TLS_SIZE: Final = 4 * 1024 * 1024
_MAX_SHOWN: Final = 20


class ConfigFile:
    """Keeps a gateway at what its configuration file, and the TLS files that this names, say.

    `parse` makes a configuration of the text, and raises `ConfigError`. Call `load`, give its result to a gateway,
    then `follow`, and in the end `close`. `clock` gives Unix seconds.
    """

    def __init__(
        self, path: Path, parse: Callable[[str], Config], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._parse = parse
        self._clock = clock
        self._settling = Settling()
        self._certificates: _Certificates | None = None
        #: The text in use and what it says, without what only a start can change.
        self._in_use: tuple[str, Config] | None = None
        self._since = 0.0
        self._tried_at = 0.0
        self._is_pipe = False
        self._timer: Deadline | None = None
        self._on_reload: Callable[[Config], None] | None = None

    def load(self) -> Config:
        """Read the file for a start. Raises `ConfigError`."""
        look = look_at([self._path], None, max_size=MAX_SIZE)
        if look.is_whole:
            text = self._text(look)
        else:
            # It says why it cannot be read. A pipe can be, once, and says nothing new later.
            text, self._is_pipe = read_text(self._path), not self._path.is_file()
        self._settling = Settling(look)
        config = self._parse(text)
        self._in_use, self._since = (text, config), self._clock()
        return config

    def follow(
        self,
        gateway: Gateway,
        *,
        on_reload: Callable[[Config], None] | None = None,
        interval: float = INTERVAL,
    ) -> None:
        """Begin, with a gateway that has started; `close` ends it. `on_reload` gets each configuration in use."""
        self.attach(gateway, on_reload=on_reload)
        loop = asyncio.get_running_loop()

        def look() -> None:
            # Set first: whatever goes wrong in a look, there is a next one.
            self._timer = gateway.timers.after(interval, look)
            self.look(gateway, loop.time())

        def ask() -> None:
            if not self._settling.is_asked and self._timer is not None:
                self._timer.cancel()
                self.ask()
                look()

        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, ask)
        look()

    def attach(self, gateway: Gateway, *, on_reload: Callable[[Config], None] | None = None) -> None:
        """Begin without a timer or a signal: whoever calls this calls `look` and `ask`."""
        self._on_reload = on_reload
        self._certificates = _Certificates(gateway, self._clock)
        self._taken(gateway)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def ask(self) -> None:
        """Take the file, and certificates, even if they have not changed, after two looks that saw the same."""
        if self._is_pipe:
            logger.warning("%s is no file that could be read again", self._path)
        else:
            self._settling.ask()
        if self._certificates is not None:
            self._certificates.ask()

    def look(self, gateway: Gateway, now: float) -> None:
        """Look at the files once, `now` on a clock that only goes forward; take what two looks saw the same."""
        try:
            if not self._is_pipe:
                self._look(gateway, now)
        except Exception as exc:  # noqa: BLE001 - a supervisor: the gateway serves on with what it has
            self._failed(gateway, "failed", f"{type(exc).__name__}", trace=exc)
        if self._certificates is not None:
            self._certificates.look(now)

    def _look(self, gateway: Gateway, now: float) -> None:
        look = look_at([self._path], self._settling.known(), max_size=MAX_SIZE)
        is_asked = self._settling.is_asked
        if self._settling.look(look, now):
            self._deal_with(gateway, look, now, is_asked=is_asked)
        elif is_asked and self._settling.is_restless:
            logger.warning(
                "%s is being written still; it is taken when two looks, a second apart, see the same", self._path
            )
        elif look == self._settling.dealt_with and self._is_stale(gateway) and now - self._tried_at >= SAY_AGAIN:
            # What it lacked, such as a file that it names, may be there by now; if not, the log says so again.
            self._deal_with(gateway, look, now, is_asked=False)

    def _deal_with(self, gateway: Gateway, look: Look, now: float, *, is_asked: bool) -> None:
        self._tried_at = now
        if not look.is_whole:
            self._failed(gateway, "unreadable", "it cannot be read")
            return
        old = self._in_use
        try:
            text = self._text(look)
            if not is_asked and old is not None and text == old[0]:
                self._taken(gateway)
                return
            config = self._parse(text)
            reason = refusal(old, (text, config), is_asked=is_asked)
            if reason is not None:
                raise ConfigError(f"{self._path}: {reason}")
            gateway.reload(config)
        except ConfigError as exc:
            self._failed(gateway, "refused", exc.message)
            return
        self._in_use, self._since = (text, config), self._clock()
        self._taken(gateway)
        if self._on_reload is not None:
            self._on_reload(config)
        self._tell(changes(config if old is None else old[1], config), is_asked=is_asked)

    def _text(self, look: Look) -> str:
        content = look.contents[0] or b""
        try:
            return content.decode()
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{self._path}: is not UTF-8 text: {exc}") from exc

    # -- what is told --

    @property
    def version(self) -> str:
        """The beginning of the SHA-256 of the text in use, as `sha256sum` shows it."""
        return "" if self._in_use is None else hashlib.sha256(self._in_use[0].encode()).hexdigest()[:12]

    def _is_stale(self, gateway: Gateway) -> bool:
        state = gateway.freshness.report().get(Source.CONFIGURATION.value)
        return state is not None and state.stale

    def _taken(self, gateway: Gateway) -> None:
        if gateway.freshness.taken(Source.CONFIGURATION, self._since, version=self.version):
            logger.warning("the configuration file %s and what is in use are the same again", self._path)

    def _failed(self, gateway: Gateway, reason: str, detail: str, *, trace: Exception | None = None) -> None:
        if gateway.freshness.failed(Source.CONFIGURATION, reason, self._clock(), detail=detail):
            shown = "; ".join(detail.split("\n"))
            logger.error("the configuration was refused, the old one stays: %s", shown, exc_info=trace)
            audit("reload", outcome=reason, file=str(self._path), version=self.version, reason=shown)

    def _tell(self, changed: list[str], *, is_asked: bool) -> None:
        shown = ", ".join(changed[:_MAX_SHOWN]) or "nothing has changed"
        if len(changed) > _MAX_SHOWN:
            shown += f" and {len(changed) - _MAX_SHOWN} more"
        logger.info("the configuration was reloaded from %s: %s", self._path, shown)
        cause = "signal" if is_asked else "file"
        audit("reload", outcome="taken", cause=cause, file=str(self._path), version=self.version, changes=shown)


class _Certificates:
    """Renews certificates when their files have changed: the server's own, and those of providers' TLS.

    They are read apart from the configuration: a file that is refused must not let them run out.
    """

    def __init__(self, gateway: Gateway, clock: Callable[[], float]) -> None:
        self._gateway = gateway
        self._clock = clock
        self._paths = _tls_paths(gateway.config)
        self._settling = Settling(look_at(self._paths, None, max_size=_MAX_TLS_SIZE))
        self._tried_at = 0.0
        if self._paths:
            gateway.freshness.taken(Source.CERTIFICATES, clock())

    def ask(self) -> None:
        self._settling.ask()

    def look(self, now: float) -> None:
        gateway = self._gateway
        paths = _tls_paths(gateway.config)
        if paths != self._paths:
            # The reload that has brought them has read them as well; what changed in between, this finds later.
            self._paths, self._settling = paths, Settling()
        look = look_at(self._paths, self._settling.known(), max_size=_MAX_TLS_SIZE)
        is_due = self._settling.look(look, now)
        states = gateway.freshness.report()
        is_stale = Source.CERTIFICATES.value in states and states[Source.CERTIFICATES.value].stale
        if self._paths and (is_due or (is_stale and now - self._tried_at >= SAY_AGAIN)):
            self._tried_at = now
            self._renew()

    def _renew(self) -> None:
        gateway = self._gateway
        try:
            gateway.reload(gateway.config)
        except Exception as exc:
            detail = exc.message if isinstance(exc, ConfigError) else type(exc).__name__
            trace = None if isinstance(exc, ConfigError) else exc
            if gateway.freshness.failed(Source.CERTIFICATES, "refused", self._clock(), detail=detail):
                logger.error("the certificates were refused, the old ones stay: %s", detail, exc_info=trace)
                audit("reload", outcome="refused", cause="certificates", reason=detail)
            return
        gateway.freshness.taken(Source.CERTIFICATES, self._clock())
        logger.info("the certificates were read again")
        audit("reload", outcome="taken", cause="certificates")


def _tls_paths(config: Config) -> list[Path]:
    """Return the files that TLS is made from."""
    named = [config.server.tls_cert, config.server.tls_key]
    for provider in config.providers.values():
        named += [provider.ca_file, provider.client_cert, provider.client_key]
    return [Path(path) for path in dict.fromkeys(named) if path is not None]
