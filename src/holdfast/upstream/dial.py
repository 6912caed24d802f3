"""Makes connections: races addresses (RFC 8305), opens tunnels through proxies, negotiates TLS, ALPN and HTTP."""

from __future__ import annotations

import asyncio
import base64
import errno
import ipaddress
import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from holdfast.config import ProviderConfig, check_proxy
from holdfast.core.http.connection import HttpConnection
from holdfast.core.http.http1 import Http1Connection
from holdfast.core.http.http2 import Http2Connection
from holdfast.descriptors import check_descriptor
from holdfast.errors import ConfigError, ConnectTimeout, UpstreamConnectError
from holdfast.tls import load_pair
from holdfast.upstream.connection import UpstreamConnection

logger = logging.getLogger("holdfast")

#: Seconds before the next address is tried as well (RFC 8305 section 8).
_ATTEMPT_DELAY: Final = 0.25
_MAX_PROXY_HEAD: Final = 16_384
_PROXY_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
#: How many seconds the closing of TLS may take.
_TLS_SHUTDOWN: Final = 1.0

#: What TLS offers, by the setting `http2`.
_ALPN: Final = {"auto": ["h2", "http/1.1"], "prior-knowledge": ["h2"], "off": ["http/1.1"]}

_Address: TypeAlias = tuple[int, tuple[str, int]]  # family and socket address


@dataclass(slots=True, frozen=True)
class Origin:
    """Where a provider is, and how to connect to it.

    `name` is what callers may know of it: addresses stay in the log.
    """

    name: str
    url: str
    scheme: bytes
    authority: bytes
    host: str
    port: int
    http2: str
    max_streams: int
    tls: ssl.SSLContext | None = field(repr=False)
    #: Host and port of the proxy, and its Proxy-Authorization.
    proxy: tuple[str, int] | None
    proxy_authorization: bytes | None = field(repr=False)

    @classmethod
    def of(
        cls, config: ProviderConfig, environ: Mapping[str, str] | None = None, *, name: str | None = None
    ) -> Origin:
        """Read a provider's configuration. Raises `ConfigError` for TLS files or a proxy that cannot be used."""
        url = urlsplit(config.base_url)
        secure = url.scheme == "https"
        host, port = url.hostname or "", url.port or (443 if secure else 80)
        proxy = _proxy_url(config, host, os.environ if environ is None else environ) if secure else None
        parts = urlsplit(proxy) if proxy is not None else None
        return cls(
            name="the provider" if name is None else f"the provider {name!r}",
            url=f"{url.scheme}://{url.netloc}",
            scheme=url.scheme.encode(),
            authority=url.netloc.encode("idna" if not url.netloc.isascii() else "ascii"),
            host=host,
            port=port,
            http2=config.http2,
            max_streams=config.streams_per_connection,
            tls=_tls_context(config) if secure else None,
            proxy=None if parts is None or parts.hostname is None else (parts.hostname, parts.port or 80),
            proxy_authorization=None if parts is None else _basic(parts.username, parts.password),
        )

    @property
    def expects_http2(self) -> bool:
        """Whether a connection will probably speak HTTP/2, according to the configuration."""
        return self.http2 == "prior-knowledge" or (self.http2 == "auto" and self.tls is not None)

    def without_http2(self) -> Origin:
        """Return the same origin, which new connections do not offer HTTP/2 to."""
        if self.tls is not None:
            self.tls.set_alpn_protocols(_ALPN["off"])
        return replace(self, http2="off")

    def speak(self, alpn: str | None) -> HttpConnection:
        """Make the HTTP connection for the protocol that ALPN chose. Raises `UpstreamConnectError`."""
        if self.http2 == "prior-knowledge":
            if self.tls is not None and alpn != "h2":
                raise UpstreamConnectError(
                    "the provider does not offer HTTP/2 by ALPN; set `http2` to auto or off"
                )
            return Http2Connection(max_streams=self.max_streams)
        return Http2Connection(max_streams=self.max_streams) if alpn == "h2" else Http1Connection()


async def dial(origin: Origin, make: Callable[[], UpstreamConnection], timeout: float) -> UpstreamConnection:
    """Connect within `timeout` seconds: TCP, proxy, TLS, and HTTP/2's SETTINGS.

    Raises `ConnectTimeout` or `UpstreamConnectError`. Cancellation-safe: no socket stays open.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _dial(origin, make)
    except TimeoutError as exc:
        timed_out = ConnectTimeout(f"no connection to {origin.name} within {timeout:g} s")
        timed_out.detail = origin.url
        raise timed_out from exc
    except ssl.SSLCertVerificationError as exc:
        raise _unreachable(
            f"the certificate of {origin.name} is not trusted", f"{origin.url}: {exc.verify_message}"
        ) from exc
    except OSError as exc:
        error = _unreachable(f"cannot connect to {origin.name}", f"{origin.url}: {exc.strerror or exc}")
        error.is_own_bound = exc.errno in (errno.EMFILE, errno.ENFILE)
        raise error from exc
    except UpstreamConnectError as exc:
        exc.detail = exc.detail or origin.url
        raise


def _unreachable(message: str, detail: str) -> UpstreamConnectError:
    error = UpstreamConnectError(message)
    error.detail = detail
    return error


async def _dial(origin: Origin, make: Callable[[], UpstreamConnection]) -> UpstreamConnection:
    loop = asyncio.get_running_loop()
    sock = await _connect(*(origin.proxy or (origin.host, origin.port)))
    connection: UpstreamConnection | None = None
    try:
        if origin.proxy is not None:
            await _open_tunnel(sock, origin)
        tls = origin.tls
        connection = make()
        made = connection
        await loop.create_connection(
            lambda: made,
            sock=sock,
            ssl=tls,
            server_hostname=None if tls is None else origin.host,
            # Our own deadline decides. asyncio demands one for TLS, which must not end sooner.
            ssl_handshake_timeout=None if tls is None else 3600.0,
            ssl_shutdown_timeout=None if tls is None else _TLS_SHUTDOWN,
        )
        await connection.established
    except BaseException:
        if connection is not None and connection.transport is not None:
            connection.abort("closed")
        sock.close()
        raise
    return connection


# -- addresses -------------------------------------------------------------------------------------------


async def _connect(host: str, port: int) -> socket.socket:
    """Open a TCP connection to the first address that answers. Each one gets a head start over the next."""
    addresses = await _resolve(host, port)
    if len(addresses) == 1:
        return await _connect_to(addresses[0])
    running: set[asyncio.Task[socket.socket]] = set()
    errors: list[OSError] = []
    queue = list(reversed(addresses))
    try:
        while queue or running:
            if queue:
                running.add(asyncio.ensure_future(_connect_to(queue.pop())))
            done, running = await asyncio.wait(
                running, timeout=_ATTEMPT_DELAY if queue else None, return_when=asyncio.FIRST_COMPLETED
            )
            winner: socket.socket | None = None
            for task in done:
                error = task.exception()
                if error is None and winner is None:
                    winner = task.result()
                elif error is None:
                    task.result().close()
                elif isinstance(error, OSError):
                    errors.append(error)
                else:
                    raise error
            if winner is not None:
                return winner
    finally:
        for task in running:
            task.cancel()
        for task in running:
            # It may have connected in this very turn: then its socket is closed.
            task.add_done_callback(_close_result)
    raise errors[0]


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _connect_to(candidate: _Address) -> socket.socket:
    family, address = candidate
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        check_descriptor(sock.fileno())
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(sock)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_alive(sock: socket.socket) -> None:
    """Let the kernel find dead peers, also on connections without PINGs."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except OSError:  # the platform does not support it
        logger.debug("TCP keep-alive cannot be set", exc_info=True)


async def _resolve(host: str, port: int) -> list[_Address]:
    """Return the host's addresses, alternating between the families (RFC 8305 section 4)."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return [(family, (host, port))]
    except ValueError:
        pass
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses: list[_Address] = [(int(family), (str(place[0]), port)) for family, _, _, _, place in found]
    if not addresses:
        raise OSError(f"no address is known for {host}")
    first = [address for address in addresses if address[0] == addresses[0][0]]
    second = [address for address in addresses if address[0] != addresses[0][0]]
    mixed: list[_Address] = []
    for index in range(max(len(first), len(second))):
        mixed += first[index : index + 1] + second[index : index + 1]
    return mixed


# -- proxies ---------------------------------------------------------------------------------------------


async def _open_tunnel(sock: socket.socket, origin: Origin) -> None:
    """Ask the proxy for a tunnel to the origin (RFC 9110 section 9.3.6)."""
    loop = asyncio.get_running_loop()
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    authority = f"{host}:{origin.port}".encode("idna" if not host.isascii() else "ascii")
    head = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n" % (authority, authority)
    if origin.proxy_authorization is not None:
        head += b"proxy-authorization: %b\r\n" % origin.proxy_authorization
    await loop.sock_sendall(sock, head + b"\r\n")
    answer = b""
    # Bytes after the answer would be the origin's, which sends nothing before TLS begins: none can be lost here.
    while b"\r\n\r\n" not in answer:
        part = await loop.sock_recv(sock, 4096)
        answer += part
        if not part or len(answer) > _MAX_PROXY_HEAD:
            raise UpstreamConnectError("the proxy gave no answer to CONNECT that could be read")
    status = _PROXY_STATUS.match(answer)
    if status is None or not status[1].startswith(b"2"):
        shown = status[1].decode() if status is not None else "no HTTP status"
        raise UpstreamConnectError(f"the proxy refused to connect to {origin.name}: {shown}")


def _proxy_url(config: ProviderConfig, host: str, environ: Mapping[str, str]) -> str | None:
    if config.proxy is not None:
        return None if config.proxy == "off" else config.proxy
    for name in ("https_proxy", "HTTPS_PROXY"):
        if environ.get(name):
            if _is_exempt(host, (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")):
                return None
            proxy = environ[name]
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            check_proxy(proxy, f"environment variable {name}")
            return proxy
    return None


def _is_exempt(host: str, patterns: Iterable[str]) -> bool:
    """Whether NO_PROXY has the host itself, a domain above it, a network that contains it, or `*`."""
    for pattern in map(str.strip, patterns):
        if pattern == "*":
            return True
        name = pattern.lower().lstrip("*").lstrip(".").partition(":")[0] if "/" not in pattern else ""
        if name and (host == name or host.endswith("." + name)):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False):
                return True
        except ValueError:
            continue
    return False


def _basic(user: str | None, password: str | None) -> bytes | None:
    if user is None:
        return None
    return b"Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode())


# -- TLS -------------------------------------------------------------------------------------------------


def _tls_context(config: ProviderConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"ca_file {config.ca_file!r} of {config.base_url} cannot be used: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.client_cert is not None:
        try:
            load_pair(context, config.client_cert, config.client_key)
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"client_cert {config.client_cert!r} of {config.base_url} cannot be used: {exc}"
            ) from exc
    context.set_alpn_protocols(_ALPN[config.http2])
    return context
