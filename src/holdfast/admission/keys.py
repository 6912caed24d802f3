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
from holdfast.config.auth import KeyConfig
from holdfast.config.limits import LimitConfig

PREFIX = "hf_"
HASH_PREFIX = "sha256:"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")

#: Which secret of which key: rotation gives a key its next generation.
SecretId: TypeAlias = tuple[str, int]

#: What the holder of a secret that has ceased to be good is told in the middle of things.
REVOKED = "the key was revoked, or its secret replaced"

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


class KeySet:
    """All keys of one source, ready for look-ups. It may be made in another thread; expired keys are left out."""

    __slots__ = ("by_digest", "by_id", "limits", "next_expiry")

    def __init__(self, keys: Iterable[Key], now: float) -> None:
        good = [key for key in keys if key.expires is None or key.expires > now]
        self.by_digest = {key.digest: key for key in good}
        self.by_id = {key.id: key for key in good}
        self.limits = {key.id[0]: limits for key in good if (limits := key.principal.limits) is not None}
        self.next_expiry = min((key.expires for key in good if key.expires is not None), default=float("inf"))


class KeyTable:
    """The keys in force, from all sources. It belongs to the loop's thread.

    `on_removed` is called with the ids of secrets that ceased to be good, whatever the cause.
    """

    def __init__(self) -> None:
        self._sources: dict[str, KeySet] = {}
        self.on_removed: Callable[[set[SecretId]], None] = _ignore

    def __len__(self) -> int:
        return sum(len(keys.by_digest) for keys in self._sources.values())

    def find(self, token: bytes, now: float) -> Key | None:
        """Return the key that this token is, if it is in force.

        The sources are asked for the token's hash: how long that takes tells nothing about any key, since nobody
        can choose a token by its hash. The comparison then covers the whole digest in constant time.
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
        """The limits that a key brings along, None for those of the configuration alone."""
        for keys in self._sources.values():
            limits = keys.limits.get(key_id)
            if limits is not None:
                return limits
        return None

    def replace(self, source: str, keys: KeySet) -> None:
        """Put these keys in the place of all that the source gave before."""
        before = self._sources.get(source)
        self._sources[source] = keys
        if before is not None:
            removed = before.by_id.keys() - keys.by_id.keys()
            if removed:
                self.on_removed(removed)

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        for source, keys in list(self._sources.items()):
            if keys.next_expiry <= now:
                self.replace(source, KeySet(keys.by_digest.values(), now))


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
