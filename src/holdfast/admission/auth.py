"""Authentication: finds the principal of a request by its headers."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from holdfast.admission.keys import HASH_PREFIX, KeyTable, create_key, hash_key, parse_hash
from holdfast.admission.origins import OriginRules
from holdfast.admission.principal import Principal, Scopes
from holdfast.errors import InvalidRequest, Unauthorized

__all__ = ["Authenticator", "Principal", "create_key"]

#: The prefix of an entry of `Sec-WebSocket-Protocol` that carries a token: browsers can set no other header.
TOKEN_SUBPROTOCOL = "holdfast.token."  # noqa: S105 - a prefix
#: The prefix of client tokens; see `client_tokens`.
_CLIENT_TOKEN = "hft_"  # noqa: S105 - a prefix

#: Query parameters that look like credentials. URLs end up in logs, so a request with one is refused.
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
#: The prefixes of our own credentials, which are refused anywhere in a query.
_PREFIXES = ("hf_", _CLIENT_TOKEN, TOKEN_SUBPROTOCOL)
#: What a key looks like.
_KEY = re.compile(r"hf_[A-Za-z0-9_-]{43}")
_USED = frozenset({b"authorization", b"x-api-key", b"origin", b"host"})

_LOCAL = Principal("local")
#: It may ask for no model: what a generation takes counts against a tenant, and the admin is none.
_ADMIN = Principal("admin", scopes=Scopes(models=frozenset(), is_admin=True))


class TokenReader(Protocol):
    """Reads the tokens that `ClientTokens` issues."""

    def read(self, token: str, origin: str | None) -> Principal: ...


class TokenVerifier(Protocol):
    """Verifies an external issuer's tokens. Raises `KeysPending` if its keys must be fetched first."""

    def verify(self, token: str) -> Principal: ...


class Authenticator:
    """Finds the principal of a request.

    With `is_local`, every request that the origin rules allow has the same principal, whatever its credential.
    Only client tokens and the admin key are still read, so that a page can be tried out with them. `admin_key` is
    the key or its hash; None where nobody is an admin.
    """

    def __init__(
        self,
        table: KeyTable,
        origins: OriginRules,
        client_tokens: TokenReader,
        verifier: TokenVerifier | None = None,
        *,
        is_local: bool,
        admin_key: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._admin = None if admin_key is None else _digest_of(admin_key)
        self._table = table
        self._origins = origins
        self._client_tokens = client_tokens
        self._verifier = verifier
        self._is_local = is_local
        self._clock = clock

    def use_origins(self, origins: OriginRules) -> None:
        """Use other origin rules from now on."""
        self._origins = origins

    def check_origin(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the origin of a page that may call; None for other clients. Raises `Forbidden`."""
        return self._origins.check(_fields(headers))

    def authenticate(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        query: Mapping[str, str],
        subprotocols: Iterable[str] = (),
    ) -> Principal:
        """Return the caller. `subprotocols` are those that a WebSocket client offers; one may carry a token.

        Raises `Unauthorized`, `Forbidden`, `InvalidRequest` (a credential in the URL, contradicting headers), or
        `KeysPending`.
        """
        _refuse_credentials_in_url(query)
        fields = _fields(headers)
        origin = self._origins.check(fields)
        credential = _credential(fields)
        is_subprotocol = False
        if not credential:
            credential = _token_of(subprotocols)
            is_subprotocol = bool(credential)
        if self._is_admin_key(credential) and not is_subprotocol:
            return _ADMIN
        if self._is_local:
            return self._client_tokens.read(credential, origin) if credential.startswith(_CLIENT_TOKEN) else _LOCAL
        if not credential:
            raise Unauthorized("send a key as `Authorization: Bearer ...` or `x-api-key: ...`")
        if credential.startswith(_CLIENT_TOKEN):
            return self._client_tokens.read(credential, origin)
        if self._verifier is not None and credential.count(".") == 2:
            return self._verifier.verify(credential)
        if is_subprotocol:
            raise Unauthorized("a subprotocol carries tokens only: a key does not belong in a browser")
        key = self._table.find(credential.encode("latin-1"), self._clock())
        if key is None:
            raise Unauthorized("the key is not known here")
        return key.principal

    def describe(self, headers: Iterable[tuple[bytes, bytes]], subprotocols: Iterable[str] = ()) -> str:
        """Say of which kind a request's credential is, for the audit log: never the secret.

        Only of what looks like one of our random keys there is the beginning of its hash, which the key store and
        the configuration hold as well; a hash of something shorter could be guessed.
        """
        try:
            credential = _credential(_fields(headers)) or _token_of(subprotocols)
        except InvalidRequest:
            return "contradicting"
        if not credential:
            return "none"
        if credential.startswith(_CLIENT_TOKEN):
            return "client token"
        if _KEY.fullmatch(credential):
            return f"key {hash_key(credential)[:15]}"
        return "jwt" if credential.count(".") == 2 else "unknown"

    def _is_admin_key(self, credential: str) -> bool:
        """Compare in constant time, and digests, so that the time taken tells nothing about the key."""
        if self._admin is None or not credential:
            return False
        return hmac.compare_digest(hashlib.sha256(credential.encode("latin-1")).digest(), self._admin)


def _digest_of(key: str) -> bytes:
    return parse_hash(key if key.startswith(HASH_PREFIX) else hash_key(key))


def _refuse_credentials_in_url(query: Mapping[str, str]) -> None:
    """Raise `InvalidRequest` for a credential in the query. It names the parameter, but never its value."""
    for name, value in query.items():
        is_name_secret = name.startswith(_PREFIXES)
        if is_name_secret or name.lower() in _CREDENTIAL_PARAMETERS or value.startswith(_PREFIXES):
            shown = "a parameter" if is_name_secret else f"`{name[:50]}`"
            raise InvalidRequest(
                f"{shown} in the URL looks like a credential; send it as `Authorization: Bearer ...`",
                param=None if is_name_secret else name[:50],
            )


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _USED and fields.setdefault(name, value) != value:
            # Two that differ are refused: a proxy may have checked the other one.
            raise InvalidRequest(f"the header {name.decode()} is there more than once", param=name.decode())
    return fields


def _credential(fields: Mapping[bytes, bytes]) -> str:
    scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        token = fields.get(b"x-api-key", b"")
    return token.strip().decode("latin-1")


def _token_of(subprotocols: Iterable[str]) -> str:
    tokens = [name.removeprefix(TOKEN_SUBPROTOCOL) for name in subprotocols if name.startswith(TOKEN_SUBPROTOCOL)]
    if len(tokens) > 1:
        raise InvalidRequest("more than one subprotocol carries a token")
    return tokens[0] if tokens else ""
