"""The settings of a client, checked when they are made and not when they are first used."""

from __future__ import annotations

import math
import re
import ssl as ssl_module
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

from holdfast.core.session.messages import MAX_CREDIT
from holdfast.errors import ConfigError

_PATH = "/v1/ws/stream"
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_FIELD_VALUE = re.compile(r"[\x20-\x7e\t]*")
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")
#: Headers that the client or the WebSocket handshake sets (RFC 6455 section 4.1).
_RESERVED = {
    "authorization",
    "connection",
    "content-length",
    "host",
    "transfer-encoding",
    "upgrade",
    "x-client-version",
}


@dataclass(frozen=True, slots=True)
class WebSocketConfig:
    """Where the gateway is, and how long to keep trying. Times are in seconds, sizes in bytes.

    `base_url` is `http(s)://` or `ws(s)://`, with or without a path prefix and a final `/v1`. `api_key` goes into
    the Authorization header and never into a URL, a log or a repr. `max_retries` is how many attempts in
    a row are made to connect again before every waiting call raises; each waits a random time of up to
    `initial_backoff`, doubled each time up to `max_backoff`. A stream that the gateway cannot resume for now is
    asked for again by the same rule before its call raises. After `ping_interval` of silence the client pings,
    and after `ping_timeout` more it gives the connection up. `connect_timeout` covers everything up to the
    gateway's welcome. `stream_window` is how much of one stream may be received before the application takes it.
    `max_message` is the largest message that is accepted or sent. `headers` are added to the handshake. `ssl`
    replaces the default context of `https://`. Raises `ConfigError`.
    """

    base_url: str = "http://127.0.0.1:8080/v1"
    _: KW_ONLY
    api_key: str | None = field(default=None, repr=False)
    max_retries: int = 5
    initial_backoff: float = 1.0
    max_backoff: float = 60.0
    ping_interval: float = 20.0
    ping_timeout: float = 10.0
    connect_timeout: float = 10.0
    stream_window: int = 256 * 1024
    max_message: int = 16 * 1024 * 1024
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    ssl: ssl_module.SSLContext | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        scheme = _split(self.base_url).scheme
        if self.api_key is not None and not (
            isinstance(self.api_key, str) and _CREDENTIAL.fullmatch(self.api_key)
        ):
            raise _wrong("api_key", "a non-empty string of ASCII characters without spaces", "something else")
        _check_int("max_retries", self.max_retries, 0, 1_000_000)
        _check_int("stream_window", self.stream_window, 1024, MAX_CREDIT)
        _check_int("max_message", self.max_message, 1024, MAX_CREDIT)
        for name in ("initial_backoff", "max_backoff", "ping_interval", "ping_timeout", "connect_timeout"):
            _check_seconds(name, getattr(self, name))
        if self.max_backoff < self.initial_backoff:
            raise _wrong("max_backoff", f"at least initial_backoff ({self.initial_backoff})", self.max_backoff)
        _check_headers(self.headers)
        object.__setattr__(self, "headers", MappingProxyType(dict(self.headers)))
        if self.ssl is not None:
            if not isinstance(self.ssl, ssl_module.SSLContext):
                raise _wrong("ssl", "an ssl.SSLContext or None", type(self.ssl).__name__)
            if _SCHEMES[scheme] != "wss":
                raise _wrong("ssl", "None, or base_url https:// or wss://", f"a context for {scheme}://")

    @property
    def url(self) -> str:
        """The WebSocket URL that the client connects to."""
        parts = _split(self.base_url)
        prefix = parts.path.rstrip("/").removesuffix(_PATH.removeprefix("/v1")).removesuffix("/v1")
        return f"{_SCHEMES[parts.scheme]}://{parts.netloc}{prefix}{_PATH}"


def _split(base_url: object) -> SplitResult:
    # What was given is not repeated where it may hold a secret.
    if not isinstance(base_url, str):
        raise _wrong("base_url", "a URL such as http://127.0.0.1:8080/v1", type(base_url).__name__)
    try:
        parts = urlsplit(base_url)
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise _wrong("base_url", "a URL such as http://127.0.0.1:8080/v1", "no valid URL") from None
    if "@" in parts.netloc:
        raise _wrong("base_url", "free of credentials; pass them as api_key", "a URL with user information")
    if parts.query or parts.fragment:
        expected = "free of a query and a fragment; a token belongs into api_key, URLs end up in logs"
        raise _wrong("base_url", expected, "a URL with one")
    if parts.scheme not in _SCHEMES:
        raise _wrong("base_url", "http://, https://, ws:// or wss://", repr(base_url))
    if not valid or not base_url.isascii() or any(char <= " " for char in base_url):
        raise _wrong("base_url", "a URL with a host, such as http://127.0.0.1:8080/v1", repr(base_url))
    return parts


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(name, f"an integer from {low} to {high}", repr(value))


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _wrong(name, "a positive, finite number of seconds", repr(value))


def _check_headers(headers: object) -> None:
    if not isinstance(headers, Mapping):
        raise _wrong("headers", "a mapping of names to values", type(headers).__name__)
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise _wrong("headers", "a mapping whose keys are header names", repr(name))
        if name.lower() in _RESERVED or name.lower().startswith("sec-websocket-"):
            raise _wrong("headers", "free of what the client sets itself (a credential is api_key)", repr(name))
        if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
            raise _wrong("headers", f"printable ASCII text as the value of {name!r}", "something else")


def _wrong(name: str, expected: str, found: object) -> ConfigError:
    return ConfigError(f"WebSocketConfig.{name}: must be {expected}; found {found}")
