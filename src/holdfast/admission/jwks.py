"""The public keys of a token issuer (RFC 7517), from a URL or a file, refreshed in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jwt
import msgspec

from holdfast.admission.worker import Worker
from holdfast.errors import Overloaded
from holdfast.observe.audit import audit
from holdfast.observe.freshness import Freshness, Source
from holdfast.timers import Deadline, Timers
from holdfast.upstream.fetch import Fetcher

logger = logging.getLogger("holdfast")

#: The least seconds between two fetches that unknown key ids cause, since anyone can make up key ids.
MIN_INTERVAL = 10.0
#: While fetches fail, the next one comes after so many seconds, or after `max_age` where that is less.
RETRY_INTERVAL = 10.0
#: Keys that could not be fetched again for so many times `max_age` are forgotten: the issuer may have withdrawn
#: them, and nobody would know.
MAX_STALE = 12
#: The bounds of one fetch from its start to the last byte, in seconds and bytes.
TIMEOUT = 5.0
_MAX_SIZE = 512 * 1024
_MAX_KEYS = 100
#: A larger key makes each verification slow, a smaller one is weak.
_RSA_BITS = range(2048, 8192 + 1)
#: How many seconds the start of the gateway waits for the first keys. The fetch itself goes on.
_START_WAIT = 1.0

#: The key type of each algorithm and, where there are several, the curve (RFC 7518 section 3.1, RFC 8037).
_KINDS = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}


class KeysPending(Exception):
    """The issuer's keys are being fetched, and the wanted one may be among them: `wait`, then try again."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        super().__init__("the issuer's keys are being fetched")
        self._task = task

    async def wait(self) -> None:
        """Wait for the end of the fetch, whether it succeeds or not; not longer than `TIMEOUT`.

        Cancellation-safe: the fetch goes on.
        """
        await asyncio.wait([self._task], timeout=TIMEOUT)

    @staticmethod
    def refusal() -> Overloaded:
        """The error for a caller who has waited once, and whose key is still pending."""
        return Overloaded("the keys of the token issuer are being fetched", retry_after=1.0)


class Document(Protocol):
    """Where the keys come from."""

    async def fetch(self) -> bytes:
        """Fetch it within a bound of time. Raises `OSError`, `TimeoutError` included, or `ValueError`."""

    async def aclose(self) -> None: ...


class Jwks:
    """The keys of one issuer, as last fetched. Use it from the loop's thread only.

    Keys are refreshed each `max_age` seconds, and a refresh replaces them all: one that the issuer has withdrawn
    is refused from then on. `freshness` is told of each success and failure. `clock` gives Unix seconds.
    """

    def __init__(
        self,
        document: Document,
        *,
        source: str,
        max_age: float,
        timers: Timers,
        freshness: Freshness,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._document = document
        self._source = source
        self._max_age = max_age
        self._timers = timers
        self._freshness = freshness
        self._clock = clock
        self._keys: list[tuple[str | None, str, jwt.PyJWK]] = []
        self._has_keys = False
        self._fetched = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._refreshing: Deadline | None = None
        self._forgetting: Deadline | None = None
        self._is_closed = False

    @property
    def has_keys(self) -> bool:
        """Whether there is a key set that is not too old."""
        return self._has_keys

    async def start(self, *, wait: float = _START_WAIT) -> None:
        """Begin to fetch, and wait a moment for the keys. The gateway must start even if the issuer is down."""
        await asyncio.wait([self._refresh()], timeout=wait)

    async def aclose(self) -> None:
        self._is_closed = True
        for timer in (self._refreshing, self._forgetting):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._document.aclose()

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with this id; without an id, the only key for the algorithm. None if there is none.

        Raises `KeysPending` if the keys are being fetched, or a fetch has just been started, and `Overloaded` if
        there is no key set: none was ever fetched, or the last one is too old.
        """
        found = [key for name, fits, key in self._keys if fits == algorithm and (kid is None or name == kid)]
        if len(found) == 1:
            return found[0]
        if self._task is not None:
            raise KeysPending(self._task)
        if not self._is_closed and self._timers.now() - self._fetched >= MIN_INTERVAL:
            raise KeysPending(self._refresh())
        if not self._has_keys:
            raise Overloaded("the keys of the token issuer cannot be fetched at present", retry_after=MIN_INTERVAL)
        return None

    def _refresh(self) -> asyncio.Task[None]:
        if self._task is None:
            self._fetched = self._timers.now()
            self._task = asyncio.get_running_loop().create_task(self._run(), name="jwks")
        return self._task

    async def _run(self) -> None:
        wait = self._max_age
        try:
            keys = parse_jwks(await self._document.fetch())
        except (OSError, ValueError) as exc:
            wait = min(wait, RETRY_INTERVAL)
            self._failed(str(exc))
        else:
            self._take(keys)
        finally:
            self._task = None
            if not self._is_closed:
                if self._refreshing is not None:
                    self._refreshing.cancel()
                self._refreshing = self._timers.after(wait, self._refresh_again)

    def _take(self, keys: list[tuple[str | None, str, jwt.PyJWK]]) -> None:
        before, after = _names(self._keys), _names(keys)
        if before != after or not self._has_keys:
            audit("issuer_keys_changed", added=sorted(after - before), withdrawn=sorted(before - after) or None)
        self._keys, self._has_keys = keys, True
        if self._freshness.taken(Source.ISSUER_KEYS, self._clock()):
            logger.warning("%s: the issuer's keys can be fetched again", self._source)
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = self._timers.after(MAX_STALE * self._max_age, self._forget)

    def _failed(self, why: str) -> None:
        if self._freshness.failed(Source.ISSUER_KEYS, "the keys cannot be fetched", self._clock(), detail=why):
            meanwhile = "the old ones stay in use for now" if self._has_keys else "its tokens are refused"
            logger.error("%s: the issuer's keys cannot be fetched, %s: %r", self._source, meanwhile, why)

    def _forget(self) -> None:
        """Refuse tokens rather than trust keys that may have been withdrawn long ago."""
        audit("issuer_keys_forgotten", withdrawn=sorted(_names(self._keys)), seconds=MAX_STALE * self._max_age)
        self._keys, self._has_keys = [], False
        logger.error(
            "%s: the issuer's keys could not be fetched for %g s and are forgotten: its tokens are refused",
            self._source,
            MAX_STALE * self._max_age,
        )

    def _refresh_again(self) -> None:
        if not self._is_closed:
            self._refresh()


def _names(keys: list[tuple[str | None, str, jwt.PyJWK]]) -> set[str]:
    return {f"{algorithm} {kid or 'without an id'}" for kid, algorithm, _ in keys}


def parse_jwks(raw: bytes) -> list[tuple[str | None, str, jwt.PyJWK]]:
    """Return id, algorithm and key of each usable entry. Others, such as HMAC secrets, are left out.

    Raises `ValueError` if the bytes are not a key set.
    """
    try:
        decoded: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ValueError(f"not valid JSON: {exc}") from exc
    entries = decoded.get("keys") if isinstance(decoded, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JSON Web Key Set: there is no list `keys`")
    keys = []
    for entry in entries[:_MAX_KEYS]:
        algorithm = _algorithm(entry)
        if algorithm is None:
            continue
        try:
            key = jwt.PyJWK(entry, algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        if algorithm == "RS256" and key.key.key_size not in _RSA_BITS:
            continue
        kid = entry.get("kid")
        keys.append((kid if isinstance(kid, str) else None, algorithm, key))
    return keys


def _algorithm(entry: object) -> str | None:
    """Return the algorithm of a published key; None if we do not use it."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    for algorithm, (kind, curve) in _KINDS.items():
        if entry.get("kty") == kind and (curve is None or entry.get("crv") == curve):
            return algorithm if entry.get("alg", algorithm) == algorithm else None
    return None


def url_document(url: str, timers: Timers) -> Document:
    """Return the key set at a URL. The configuration check ensures https, or http on this machine."""
    return Fetcher(url, timers, timeout=TIMEOUT, max_size=_MAX_SIZE)


class FileDocument:
    """The key set in a file. A thread reads it, since the disk may be slow or gone."""

    def __init__(self, path: str) -> None:
        self._read = file_fetcher(path)
        self._worker = Worker("jwks")

    async def fetch(self) -> bytes:
        return await self._worker.run(self._read, timeout=TIMEOUT)

    async def aclose(self) -> None:
        self._worker.close()


def file_fetcher(path: str) -> Callable[[], bytes]:
    """Return a function that reads a file. It blocks, and raises `OSError` or `ValueError`."""

    def fetch() -> bytes:
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_SIZE + 1)
        if len(raw) > _MAX_SIZE:
            raise ValueError(f"it is larger than {_MAX_SIZE} bytes")
        return raw

    return fetch
