"""Who is calling: from a request's headers to its principal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from holdfast.admission.keys import KeyTable, create_key
from holdfast.admission.origins import OriginRules
from holdfast.admission.principal import Principal
from holdfast.errors import InvalidRequest, Unauthorized

__all__ = ["Authenticator", "Principal", "create_key"]

#: Query parameters that look like credentials: URLs end up in logs, so such a request is refused.
_CREDENTIAL_PARAMETERS = frozenset(
    {
        "access-token",
        "access_token",
        "api-key",
        "api_key",
        "apikey",
        "auth",
        "authorization",
        "bearer",
        "client_token",
        "id_token",
        "jwt",
        "key",
        "token",
        "x-api-key",
    }
)
#: How our own credentials begin, wherever in a query they stand.
_PREFIXES = ("hf_", "hft_")
_USED = frozenset({b"authorization", b"x-api-key", b"origin", b"host"})

_LOCAL = Principal("local")


class Authenticator:
    """Finds the principal of a request. With `is_local` everyone who gets past the origin rules is one caller."""

    def __init__(
        self,
        table: KeyTable,
        origins: OriginRules,
        *,
        is_local: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._origins = origins
        self._is_local = is_local
        self._clock = clock

    def check_origin(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the origin of a page that may call, None for other clients. Raises `Forbidden`."""
        return self._origins.check(_fields(headers))

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]], query: Mapping[str, str]) -> Principal:
        """Return the caller. Raises `Unauthorized`, `Forbidden`, or `InvalidRequest` (credential in the URL)."""
        _refuse_credentials_in_url(query)
        fields = _fields(headers)
        self._origins.check(fields)
        if self._is_local:
            return _LOCAL
        token = _credential(fields)
        if not token:
            raise Unauthorized("send a key as `Authorization: Bearer ...` or `x-api-key: ...`")
        key = self._table.find(token, self._clock())
        if key is None:
            raise Unauthorized("the key is not known here")
        return key.principal


def _refuse_credentials_in_url(query: Mapping[str, str]) -> None:
    """Raises `InvalidRequest`, which names the parameter and never its value."""
    for name, value in query.items():
        if name.lower() in _CREDENTIAL_PARAMETERS or value.startswith(_PREFIXES):
            shown = "a parameter" if name.startswith(_PREFIXES) else f"`{name[:50]}`"
            raise InvalidRequest(
                f"{shown} in the URL looks like a credential; send it as `Authorization: Bearer ...`",
                param=None if name.startswith(_PREFIXES) else name[:50],
            )


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _USED and fields.setdefault(name, value) != value:
            # Two that differ: a proxy may have looked at the other one.
            raise InvalidRequest(f"the header {name.decode()} is there more than once", param=name.decode())
    return fields


def _credential(fields: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        token = fields.get(b"x-api-key", b"")
    return token.strip()
