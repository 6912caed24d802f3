"""The public keys of a token issuer (RFC 7517), from a URL or a file, refreshed in the background."""

from __future__ import annotations

import asyncio
import http.client
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import msgspec

from holdfast.errors import Overloaded
from holdfast.timers import Deadline, Timers

logger = logging.getLogger("holdfast")

#: The least seconds between two fetches that unknown key ids cause, since anyone can make up key ids.
MIN_INTERVAL = 10.0
#: The bounds of one fetch, in seconds and bytes.
_TIMEOUT = 5.0
_MAX_SIZE = 512 * 1024
_MAX_KEYS = 100
_MIN_RSA_BITS = 2048

#: The key type of each algorithm and, where there are several, the curve (RFC 7518 section 3.1, RFC 8037).
_KINDS = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}


class KeysPending(Exception):
    """The issuer's keys are being fetched, and the wanted one may be among them: `wait`, then try again."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        super().__init__("the issuer's keys are being fetched")
        self._task = task

    async def wait(self) -> None:
        """Wait for the end of the fetch, whether it succeeds or not. Cancellation-safe: the fetch goes on."""
        await asyncio.wait([self._task])

    @staticmethod
    def refusal() -> Overloaded:
        """The error for a caller who has waited once, and whose key is still pending."""
        return Overloaded("the keys of the token issuer are being fetched", retry_after=1.0)


class Jwks:
    """The keys of one issuer, as last fetched. Use it from the loop's thread only; `fetch` runs in another one."""

    def __init__(self, fetch: Callable[[], bytes], *, source: str, max_age: float, timers: Timers) -> None:
        self._fetch = fetch
        self._source = source
        self._max_age = max_age
        self._timers = timers
        self._keys: list[tuple[str | None, str, jwt.PyJWK]] = []
        self._has_keys = False
        self._fetched = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._timer: Deadline | None = None
        self._is_closed = False
        self._is_failing = False

    @property
    def has_keys(self) -> bool:
        """Whether a key set was ever fetched."""
        return self._has_keys

    async def start(self) -> None:
        """Fetch once. A failure is only logged: the gateway must start even if the issuer is down."""
        await asyncio.wait([self._refresh()])

    async def aclose(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with this id; without an id, the only key for the algorithm. None if there is none.

        Raises `KeysPending` if the keys are being fetched, or a fetch has just been started, and `Overloaded` if
        no key set was ever fetched.
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
        try:
            raw = await asyncio.to_thread(self._fetch)
            self._keys = parse_jwks(raw)
        except (OSError, ValueError) as exc:
            if not self._is_failing:
                logger.error(
                    "%s: the keys cannot be fetched, so the old ones stay in use: %r", self._source, str(exc)
                )
            self._is_failing = True
        else:
            self._has_keys, self._is_failing = True, False
        finally:
            self._task = None
            if not self._is_closed:
                if self._timer is not None:
                    self._timer.cancel()
                # So a key that the issuer has withdrawn is refused after `max_age` at the latest.
                self._timer = self._timers.after(self._max_age, self._refresh_again)

    def _refresh_again(self) -> None:
        if not self._is_closed:
            self._refresh()


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
        if algorithm == "RS256" and key.key.key_size < _MIN_RSA_BITS:
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


def url_fetcher(url: str) -> Callable[[], bytes]:
    """Return a function that fetches a URL. It blocks, and raises `OSError` or `ValueError`."""
    opener = urllib.request.build_opener(_NoRedirects)

    def fetch() -> bytes:
        # The configuration check ensures that the scheme is https, or http on this machine.
        request = urllib.request.Request(url, headers={"accept": "application/json", "user-agent": "holdfast"})  # noqa: S310
        try:
            with opener.open(request, timeout=_TIMEOUT) as response:
                raw: bytes = response.read(_MAX_SIZE + 1)
        except http.client.HTTPException as exc:
            raise ValueError(f"the answer is not valid HTTP: {exc!r}") from exc
        if len(raw) > _MAX_SIZE:
            raise ValueError(f"the key set is larger than {_MAX_SIZE} bytes")
        return raw

    return fetch


def file_fetcher(path: str) -> Callable[[], bytes]:
    """Return a function that reads a file. It blocks, and raises `OSError` or `ValueError`."""

    def fetch() -> bytes:
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_SIZE + 1)
        if len(raw) > _MAX_SIZE:
            raise ValueError(f"the key set is larger than {_MAX_SIZE} bytes")
        return raw

    return fetch


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it could lead from https to http, or into the gateway's own network."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
