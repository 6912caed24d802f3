"""Credentials over HTTP: client tokens for a server's browsers, and the admin API of the key store."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from typing import Any, TypeVar

import msgspec

from holdfast.admission.auth import bearer_of
from holdfast.admission.client_tokens import ClientTokens, parse_token_request
from holdfast.admission.key_store import KeyRecord, KeyStore, NewKey
from holdfast.admission.key_watcher import KeyWatcher
from holdfast.admission.keys import HASH_PREFIX, hash_key, parse_hash
from holdfast.admission.principal import Principal
from holdfast.errors import InvalidRequest, Unauthorized
from holdfast.server.listener.exchange import Exchange, Request
from holdfast.server.routes import Routes

_JSON = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class TokenApi:
    """`POST /v1/client_tokens`."""

    def __init__(self, tokens: ClientTokens) -> None:
        self._tokens = tokens

    @property
    def routes(self) -> Routes:
        return [(re.compile(r"/v1/client_tokens"), {"POST": self._create})]

    async def _create(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        principal.require_server()
        issued = self._tokens.issue(principal, parse_token_request(request.body))
        exchange.respond(200, _JSON, msgspec.json.encode(issued))


class Rotation(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How long the present secret stays good, in seconds."""

    grace: float = 3600.0


class AdminApi:
    """The keys of the store, for who has the admin key. A change is in force here when it is answered."""

    def __init__(self, admin_key: str, store: KeyStore, watcher: KeyWatcher) -> None:
        hashed = admin_key if admin_key.startswith(HASH_PREFIX) else hash_key(admin_key)
        self._digest = parse_hash(hashed)
        self._store = store
        self._watcher = watcher

    @property
    def routes(self) -> Routes:
        return [
            (re.compile(r"/v1/admin/keys"), {"GET": self._list, "POST": self._create}),
            (re.compile(r"/v1/admin/keys/([^/]+)"), {"DELETE": self._revoke}),
            (re.compile(r"/v1/admin/keys/([^/]+)/rotate"), {"POST": self._rotate}),
        ]

    def authenticate(self, request: Request) -> Principal:
        """Let the admin key alone in; a caller's key is none. Raises `Unauthorized`."""
        digest = hashlib.sha256(bearer_of(request.headers).encode("latin-1")).digest()
        if not hmac.compare_digest(digest, self._digest):
            raise Unauthorized("this needs the admin key, as `Authorization: Bearer ...`")
        return Principal("admin")

    async def _list(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        records = await asyncio.to_thread(self._store.list)
        _respond(exchange, {"object": "list", "data": records})

    async def _create(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        new = _decode(request.body, NewKey)
        record, key = await asyncio.to_thread(self._store.create, new)
        await self._watcher.refresh()
        _respond(exchange, _with_key(record, key), status=201)

    async def _revoke(self, request: Request, exchange: Exchange, principal: Principal, key_id: str) -> None:
        record = await asyncio.to_thread(self._store.revoke, key_id)
        await self._watcher.refresh()
        _respond(exchange, record)

    async def _rotate(self, request: Request, exchange: Exchange, principal: Principal, key_id: str) -> None:
        rotation = _decode(request.body or b"{}", Rotation)
        record, key = await asyncio.to_thread(self._store.rotate, key_id, grace=rotation.grace)
        await self._watcher.refresh()
        _respond(exchange, _with_key(record, key))


def _with_key(record: KeyRecord, key: str) -> dict[str, Any]:
    """The only answer that holds the key itself."""
    return {**msgspec.structs.asdict(record), "key": key}


_T = TypeVar("_T")


def _decode(raw: bytes, type_: type[_T]) -> _T:
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(str(exc)) from exc
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc


def _respond(exchange: Exchange, body: object, *, status: int = 200) -> None:
    exchange.respond(status, _JSON, msgspec.json.encode(body))
