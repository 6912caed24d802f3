"""The listening socket: its address, its TLS, and what the kernel watches of the connections that it accepts."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

from holdfast.config import ServerConfig
from holdfast.core.limits.budget import Budget
from holdfast.errors import ConfigError
from holdfast.server.listener.admitted import Limits
from holdfast.server.listener.application import Application
from holdfast.server.listener.handshaking import Handshaking
from holdfast.server.listener.http import HttpConnection
from holdfast.server.listener.turns import Turns
from holdfast.timers import Timers
from holdfast.tls import load_pair

#: Connections that the kernel keeps for us until we accept them.
_BACKLOG = 4096
#: The most seconds that Linux takes for keep-alive; it refuses the option beyond.
_MAX_KEEP_ALIVE = 32767


class Listener:
    """Accepts connections for an application. `start`, then `stop` and `wait_closed`; each once."""

    def __init__(
        self, config: ServerConfig, application: Application, timers: Timers, turns: Turns, budget: Budget
    ) -> None:
        """Raises `ConfigError` where the TLS files cannot be used."""
        self._config = config
        self._turns = turns
        self._budget = budget
        self._application = application
        self._timers = timers
        self._limits = _limits(config)
        self._tls = tls_context(config)
        # The certificate of connections to come: the server keeps the context that it has begun with.
        self._certificate = self._tls
        if self._tls is not None:
            self._tls.sni_callback = self._choose_certificate
        self._server: asyncio.Server | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    @property
    def has_tls(self) -> bool:
        return self._tls is not None

    async def start(self) -> None:
        """Listen. Raises `ConfigError` where the address cannot be had."""
        config = self._config
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._protocol, config.host, config.port, backlog=_BACKLOG
            )
            _watch_peers(self._server, config)
        except OSError as exc:
            raise ConfigError(
                f"cannot listen on {config.host}:{config.port}: {exc.strerror or exc}; is another process using "
                "the port? `--port 0` takes a free one"
            ) from exc

    def _protocol(self) -> asyncio.Protocol:
        connection = HttpConnection(self._application, self._timers, self._turns, self._budget, self._limits)
        if self._tls is None:
            return connection
        return Handshaking(connection, self._tls, self._limits.header_timeout, self._handshakes)

    def configure(self, config: ServerConfig, certificate: ssl.SSLContext | None) -> None:
        """Use other bounds, and what `tls_context` made of another certificate, for connections to come."""
        self._config = config
        self._limits = _limits(config)
        if self._server is not None:
            _watch_peers(self._server, config)
        self._certificate = certificate

    def _choose_certificate(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Is called in each handshake, also where the client names no server (RFC 6066 section 3).

        A certificate is put in place whole, by this. To load it into the context in use would leave that with
        half of it where its files change at that moment.
        """
        if self._certificate is not None:
            connection.context = self._certificate

    @property
    def certificate(self) -> ssl.SSLContext | None:
        """What connections to come are shown."""
        return self._certificate

    @property
    def port(self) -> int:
        if self._server is None or not self._server.sockets:
            raise RuntimeError("the gateway does not listen")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The URL of the gateway on this machine, `http://127.0.0.1:8080`."""
        host = "127.0.0.1" if self._config.host in ("0.0.0.0", "localhost") else self._config.host  # noqa: S104
        if host in ("::", "::1"):
            host = "[::1]"
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}"

    def stop(self) -> None:
        """Accept no more connections."""
        if self._server is not None:
            self._server.close()

    async def wait_closed(self) -> None:
        """Return when the connections that were accepted are closed as well."""
        if self._server is not None:
            await self._server.wait_closed()
        if self._handshakes:
            await asyncio.wait(self._handshakes)


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """Load the certificate. Raises `ConfigError` where the files cannot be used."""
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        load_pair(context, config.tls_cert, config.tls_key)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"server.tls_cert {config.tls_cert!r} and server.tls_key cannot be used: {exc}") from exc
    return context


def _limits(config: ServerConfig) -> Limits:
    return Limits(
        max_body=config.max_body,
        header_timeout=config.header_timeout,
        body_timeout=config.body_timeout,
        keep_alive_timeout=config.keep_alive_timeout,
    )


def _watch_peers(server: asyncio.Server, config: ServerConfig) -> None:
    """Have the kernel find clients that are gone without a word, where nothing of ours is on its way to them.

    Connections inherit the options of the socket that they are accepted from.
    """
    patience = config.ping_interval + config.ping_timeout
    for listener in server.sockets:
        with socket.socket(fileno=os.dup(listener.fileno())) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                ("TCP_KEEPIDLE", max(round(min(config.ping_interval, _MAX_KEEP_ALIVE)), 1)),
                ("TCP_KEEPINTVL", max(round(min(config.ping_timeout / 3, _MAX_KEEP_ALIVE)), 1)),
                ("TCP_KEEPCNT", 3),
                # Also bounds how long sent bytes may stay unacknowledged, which keep-alive does not look at.
                ("TCP_USER_TIMEOUT", round(min(patience * 1000, 2**31 - 1))),
            ):
                if hasattr(socket, name):  # not on every system
                    own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
