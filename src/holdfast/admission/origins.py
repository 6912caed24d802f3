"""Which web pages may call: the list of allowed origins, and the CORS headers for their pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from holdfast.config import is_loopback
from holdfast.core.http.request import Headers
from holdfast.errors import Forbidden

#: Response headers that a page's script may read. The Fetch standard has no wildcard for prefixes.
_EXPOSED = (
    b"holdfast-stream-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, "
    b"x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, "
    b"x-ratelimit-reset-tokens"
)
#: How many seconds a browser may cache a preflight's answer; Chromium caps it at two hours.
_MAX_AGE = b"600"
#: A host as in `Host` and in an origin: a name, an IPv4 address, or an IPv6 address in brackets (RFC 3986 section
#: 3.2.2); then perhaps a port. No user, path or backslash: what reads them otherwise could be told another host.
_AUTHORITY = re.compile(r"(?:([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?")
#: What precedes the host of an origin (RFC 6454 section 6.1). Applications in a window have schemes of their own.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FIELD_NAMES = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z, ]{0,2048}")


class OriginRules:
    """Checks the Origin header, which browsers send and pages cannot choose.

    Pages of the same origin and those of the list may call. Without credentials (`is_local`) any page that the
    user visits could call, so then only pages of this machine may.
    """

    def __init__(self, allowed: Iterable[str], *, is_local: bool) -> None:
        self._allowed = frozenset(allowed)
        self._is_local = is_local

    def check(self, fields: Mapping[bytes, bytes]) -> str | None:
        """Return the origin of a page that may call; None for other clients. Raises `Forbidden`."""
        raw = fields.get(b"origin")
        host = None if b"host" not in fields else fields[b"host"].decode("latin-1")
        origin = None if raw is None else raw.decode("latin-1")
        if self._is_local:
            _check_local(origin, host)
        elif origin is not None and not self._is_allowed(origin, host or ""):
            raise Forbidden(f"the origin {origin[:100]!r} is not in server.allowed_origins")
        return origin

    def _is_allowed(self, origin: str, host: str) -> bool:
        if origin in self._allowed or "*" in self._allowed:
            return True
        # A proxy may terminate TLS and drop the port from the Host header, so neither is compared.
        scheme, _, authority = origin.lower().partition("://")
        if scheme not in ("http", "https") or not host:
            return False
        return host.lower() in (authority, re.sub(r":[0-9]+$", "", authority))


def _check_local(origin: str | None, host: str | None) -> None:
    """Raise `Forbidden` unless origin and host are on this machine. The host check stops DNS rebinding."""
    for name, value in (("origin", origin), ("host", host)):
        if value is None:
            continue
        hostname = _hostname_of_origin(value) if name == "origin" else _hostname(value)
        if not (is_loopback(hostname) or hostname.endswith(".localhost")):
            raise Forbidden(f"without configured keys only this machine may call; the {name} is {value[:100]!r}")


def _hostname_of_origin(origin: str) -> str:
    scheme = _SCHEME.match(origin)
    return "" if scheme is None else _hostname(origin[scheme.end() :])


def _hostname(authority: str) -> str:
    """Return the host's name or address in lower case; nothing for what is no host."""
    match = _AUTHORITY.fullmatch(authority)
    return "" if match is None else (match[1] or match[2]).lower()


def cors_headers(origin: str | None) -> Headers:
    """Return the headers that let a page's script read the answer; none for other clients."""
    if origin is None:
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"origin"),
    ]


def preflight_headers(origin: str, methods: Iterable[str], requested: bytes) -> Headers:
    """Return the headers of the answer to a preflight (Fetch standard, section 3.2.2).

    All requested headers are allowed: a wildcard would not cover `authorization`, and SDKs send their own headers.
    """
    headers = [
        *cors_headers(origin)[:1],
        (b"access-control-allow-methods", ", ".join(sorted(methods)).encode()),
        (b"access-control-max-age", _MAX_AGE),
        (b"vary", b"origin, access-control-request-headers"),
    ]
    if requested and _FIELD_NAMES.fullmatch(requested):
        headers.append((b"access-control-allow-headers", requested))
    return headers
