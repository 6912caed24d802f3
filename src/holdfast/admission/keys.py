"""API keys: random, kept as SHA-256 hashes, and looked up in a table in memory.

Keys come from the configuration and from `key_store`; both fill the one `KeyTable`.
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
from holdfast.config.auth import KeyConfig
from holdfast.config.limits import LimitConfig

PREFIX = "hf_"
HASH_PREFIX = "sha256:"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")

#: A secret's key id and generation: each rotation gives a key its next generation.
SecretId: TypeAlias = tuple[str, int]

#: The message for a caller whose secret becomes invalid while it is in use.
REVOKED = "the key was revoked, or its secret replaced"

#: Compared with if no key was found, so that this case does as much work as the other.
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
    """One secret of one principal. `expires` is in Unix seconds; None is never."""

    digest: bytes
    principal: Principal
    expires: float | None = None

    @property
    def id(self) -> SecretId:
        return self.principal.key_id or "", self.principal.generation

    def __repr__(self) -> str:
        return f"Key(principal={self.principal!r}, expires={self.expires!r})"


class KeySet:
    """The keys of one source, indexed for look-ups, without expired ones. Another thread may construct it."""

    __slots__ = ("by_digest", "by_id", "limits", "next_expiry")

    def __init__(self, keys: Iterable[Key], now: float) -> None:
        good = [key for key in keys if key.expires is None or key.expires > now]
        self.by_digest = {key.digest: key for key in good}
        self.by_id = {key.id: key for key in good}
        self.limits = {key.id[0]: limits for key in good if (limits := key.principal.limits) is not None}
        self.next_expiry = min((key.expires for key in good if key.expires is not None), default=float("inf"))

    def without(self, key_id: str, *, before: int | None = None) -> KeySet:
        """Return these keys without the secrets of one, or without those of them `before` a generation."""
        left = (
            key
            for key in self.by_id.values()
            if key.id[0] != key_id or (before is not None and key.id[1] >= before)
        )
        return KeySet(left, 0.0)


class KeyTable:
    """The valid keys of all sources. Use it from the loop's thread only.

    `on_removed` is called with the ids of secrets that have become invalid, for whatever reason; `on_limits` when
    the limits of a key that stays may have changed.
    """

    def __init__(self) -> None:
        self._sources: dict[str, KeySet] = {}
        self.on_removed: Callable[[set[SecretId]], None] | None = None
        self.on_limits: Callable[[], None] | None = None

    def __len__(self) -> int:
        return sum(len(keys.by_digest) for keys in self._sources.values())

    def find(self, token: bytes, now: float) -> Key | None:
        """Return the key that this token is; None if it is not valid.

        The look-up is by the token's hash. Its time reveals nothing about any key, since nobody can choose a token
        by its hash. The whole digest is then compared in constant time.
        """
        digest = hashlib.sha256(token).digest()
        key = None
        for keys in self._sources.values():
            key = keys.by_digest.get(digest, key)
        is_equal = hmac.compare_digest(digest, _NOBODY if key is None else key.digest)
        if not is_equal or key is None or (key.expires is not None and key.expires <= now):
            return None
        return key

    def get(self, secret: SecretId) -> Key | None:
        for keys in self._sources.values():
            key = keys.by_id.get(secret)
            if key is not None:
                return key
        return None

    def limits_of(self, key_id: str) -> LimitConfig | None:
        """Return the limits that are stored with a key; None if it has only those of the configuration."""
        for keys in self._sources.values():
            limits = keys.limits.get(key_id)
            if limits is not None:
                return limits
        return None

    def replace(self, source: str, keys: KeySet) -> None:
        """Replace all keys of a source."""
        before = self._sources.get(source)
        self._sources[source] = keys
        if before is not None:
            removed = before.by_id.keys() - keys.by_id.keys()
            if removed and self.on_removed is not None:
                self.on_removed(removed)
            if self.on_limits is not None and before.limits != keys.limits:
                self.on_limits()

    def expire(self, now: float) -> None:
        """Remove the keys that have expired."""
        for source, keys in list(self._sources.items()):
            if keys.next_expiry <= now:
                self.replace(source, KeySet(keys.by_digest.values(), now))


def config_keys(keys: Mapping[str, KeyConfig]) -> list[Key]:
    """Return the keys of the configuration file. A key's id is its name."""
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
