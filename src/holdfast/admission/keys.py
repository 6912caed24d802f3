"""API keys: made at random, kept as SHA-256 hashes, found in a table in memory.

Where keys come from is the business of the configuration and of `key_store`; both fill the one `KeyTable`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import msgspec

from holdfast.admission.principal import Principal, Scopes
from holdfast.config_auth import KeyConfig
from holdfast.config_limits import LimitConfig

PREFIX = "hf_"
HASH_PREFIX = "sha256:"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")

#: Which secret of which key: rotation gives a key its next generation.
SecretId: TypeAlias = tuple[str, int]

#: Compared with where no key was found, so that this case does no less work than a find.
_NOBODY = bytes(32)


def create_key() -> tuple[str, str]:
    """Return a new random 256-bit key and the hash to store. The key cannot be recovered from the hash."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """Hash a key for storage. The key is random, so a plain SHA-256 needs no salt or stretching."""
    return HASH_PREFIX + hashlib.sha256(key.encode()).hexdigest()


def parse_hash(text: str) -> bytes:
    """Return the digest of a stored hash. Raises `ValueError`, without the text, for anything else."""
    if _HASH.fullmatch(text) is None:
        raise ValueError("expected `sha256:` and 64 hex digits")
    return bytes.fromhex(text.removeprefix(HASH_PREFIX))


class Key(msgspec.Struct, frozen=True):
    """One secret that is good for one principal. `expires` is in Unix seconds."""

    digest: bytes
    principal: Principal
    expires: float | None = None

    @property
    def id(self) -> SecretId:
        return self.principal.key_id or "", self.principal.generation

    def __repr__(self) -> str:
        return f"Key(principal={self.principal!r}, expires={self.expires!r})"


class KeyTable:
    """The keys in force, from all sources. It belongs to the loop's thread.

    `on_removed` is called with the ids of secrets that ceased to be good, whatever the cause.
    """

    def __init__(self) -> None:
        self._sources: dict[str, dict[bytes, Key]] = {}
        self._by_digest: dict[bytes, Key] = {}
        self._by_id: dict[SecretId, Key] = {}
        self._limits: dict[str, LimitConfig] = {}
        self.on_removed: Callable[[set[SecretId]], None] = _ignore

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, token: bytes, now: float) -> Key | None:
        """Return the key that this token is, if it is in force.

        The table is asked for the token's hash: how long that takes tells nothing about any key, since nobody
        can choose a token by its hash. The comparison then covers the whole digest in constant time.
        """
        digest = hashlib.sha256(token).digest()
        key = self._by_digest.get(digest)
        is_equal = hmac.compare_digest(digest, _NOBODY if key is None else key.digest)
        if not is_equal or key is None or (key.expires is not None and key.expires <= now):
            return None
        return key

    def get(self, secret: SecretId) -> Key | None:
        return self._by_id.get(secret)

    def limits_of(self, key_id: str) -> LimitConfig | None:
        """The limits that a key brings along, None for those of the configuration alone."""
        return self._limits.get(key_id)

    def replace(self, source: str, keys: Iterable[Key], now: float) -> None:
        """Put these keys in the place of all that the source gave before; expired ones do not count."""
        self._sources[source] = {key.digest: key for key in keys if key.expires is None or key.expires > now}
        self._rebuild()

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        is_stale = False
        for source, keys in self._sources.items():
            if any(key.expires is not None and key.expires <= now for key in keys.values()):
                self._sources[source] = {
                    digest: key for digest, key in keys.items() if key.expires is None or key.expires > now
                }
                is_stale = True
        if is_stale:
            self._rebuild()

    def _rebuild(self) -> None:
        self._by_digest = {digest: key for keys in self._sources.values() for digest, key in keys.items()}
        before, self._by_id = self._by_id, {key.id: key for key in self._by_digest.values()}
        self._limits = {
            key.id[0]: key.principal.limits for key in self._by_id.values() if key.principal.limits is not None
        }
        removed = before.keys() - self._by_id.keys()
        if removed:
            self.on_removed(removed)


def config_keys(keys: Mapping[str, KeyConfig]) -> list[Key]:
    """The keys of the configuration file; the key's id is its name."""
    return [
        Key(
            parse_hash(key.hash),
            Principal(
                tenant=key.tenant or name,
                key_id=name,
                scopes=Scopes(
                    models=None if key.models is None else frozenset(key.models), max_tokens=key.max_tokens
                ),
            ),
        )
        for name, key in keys.items()
    ]


def _ignore(removed: set[SecretId]) -> None:
    pass
