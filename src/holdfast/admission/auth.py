"""Who is calling: API keys to principals. Keys are stored as SHA-256 hashes only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import msgspec

from holdfast.config import KeyConfig, is_loopback
from holdfast.errors import Forbidden, InvalidRequest, Unauthorized

_PREFIX = "hf_"
_HASH_PREFIX = "sha256:"

#: Query parameters that look like credentials: URLs end up in logs, so such a request is refused.
_CREDENTIAL_PARAMETERS = frozenset(
    {"api_key", "apikey", "api-key", "key", "token", "access_token", "authorization"}
)


class Principal(msgspec.Struct, frozen=True):
    """The caller of one request. Streams belong to the tenant."""

    tenant: str
    key_id: str | None = None


_LOCAL = Principal("local")


def create_key() -> tuple[str, str]:
    """Return a new random 256-bit key and the hash to store. The key cannot be recovered from the hash."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """Hash a key for storage. The key is random, so a plain SHA-256 needs no salt or stretching."""
    return _HASH_PREFIX + hashlib.sha256(key.encode()).hexdigest()


class Authenticator:
    """Finds the principal of a request's headers."""

    def __init__(self, keys: Mapping[str, KeyConfig]) -> None:
        self._principals = {
            key.hash: Principal(tenant=key.tenant or name, key_id=name) for name, key in keys.items()
        }

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]], query: Mapping[str, str]) -> Principal:
        """Return the caller. Raises `Unauthorized`, `Forbidden`, or `InvalidRequest` (credential in the URL)."""
        for name in query:
            if name.lower() in _CREDENTIAL_PARAMETERS:
                raise InvalidRequest(
                    f"`{name[:50]}` in the URL looks like a credential; send it as `Authorization: Bearer ...`",
                    param=name[:50],
                )
        fields = {name: value for name, value in headers if name in _USED}
        if not self._principals:
            _check_local_origin(fields)
            return _LOCAL
        scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            token = fields.get(b"x-api-key", b"")
        token = token.strip()
        if not token:
            raise Unauthorized("send a key as `Authorization: Bearer ...` or `x-api-key: ...`")
        digest = _HASH_PREFIX + hashlib.sha256(token).hexdigest()
        # Comparing digests in constant time: what an attacker could learn from the time is no prefix of any key.
        found = None
        for known, principal in self._principals.items():
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise Unauthorized("the key is not known here")
        return found


_USED = frozenset({b"authorization", b"x-api-key", b"origin", b"host"})


def _check_local_origin(fields: Mapping[bytes, bytes]) -> None:
    """Without keys any web page that the user visits could call the gateway: only local pages may.

    The Host check stops a page whose name was made to resolve to this machine (DNS rebinding).
    """
    for name, value in ((b"origin", fields.get(b"origin")), (b"host", fields.get(b"host"))):
        if value is None:
            continue
        text = value.decode("latin-1")
        try:
            host = urlsplit(text if name == b"origin" else f"//{text}").hostname or ""
        except ValueError:  # such as a bracket that does not close
            host = ""
        if not (is_loopback(host) or host.endswith(".localhost")):
            raise Forbidden(
                f"without configured keys only this machine may call; the {name.decode()} is {text[:100]!r}"
            )
