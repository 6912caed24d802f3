"""Credentials over HTTP: client tokens for a server's browsers, and the admin API of the key store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from holdfast.admission.client_tokens import ClientTokens, check_size, parse_token_request
from holdfast.admission.key_rows import KeyRecord
from holdfast.admission.key_store import KeyStore, NewKey
from holdfast.admission.key_watcher import KeyWatcher
from holdfast.admission.principal import Principal
from holdfast.errors import InvalidRequest, NotFound
from holdfast.observe.audit import audit
from holdfast.server.listener.exchange import Exchange, Request, respond_json
from holdfast.server.router import Guard, Route


class TokenApi:
    """Serves `POST /v1/client_tokens`: a server makes tokens for its browsers."""

    def __init__(self, tokens: ClientTokens) -> None:
        self._tokens = tokens

    def routes(self) -> Iterable[Route]:
        yield Route(re.compile(r"/v1/client_tokens"), {"POST": self._create}, guard=Guard.SERVER)

    async def _create(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        respond_json(exchange, self._tokens.issue(principal, parse_token_request(request.body)))


class Rotation(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a rotation. `grace` is how long the present secret stays good, in seconds."""

    grace: float = 3600.0


class AdminApi:
    """Administers the key store for whoever has the admin key. A change is in force here when it is answered.

    `watched` is the store and the watcher that brings its changes into force. Without a store every path answers
    404 and says so.
    """

    def __init__(self, watched: tuple[KeyStore, KeyWatcher] | None) -> None:
        self._watched = watched

    def routes(self) -> Iterable[Route]:
        for pattern, methods in (
            (r"/v1/admin/keys", {"GET": self._list, "POST": self._create}),
            (r"/v1/admin/keys/([^/]+)", {"DELETE": self._revoke}),
            (r"/v1/admin/keys/([^/]+)/rotate", {"POST": self._rotate}),
        ):
            yield Route(re.compile(pattern), methods, guard=Guard.ADMIN)

    @property
    def _parts(self) -> tuple[KeyStore, KeyWatcher]:
        if self._watched is None:
            raise NotFound("there is no key store to administer: `auth.key_store` is not configured")
        return self._watched

    async def _list(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        store, watcher = self._parts
        respond_json(exchange, {"object": "list", "data": await watcher.run(store.list)})

    async def _create(self, request: Request, exchange: Exchange, principal: Principal, _: str) -> None:
        store, watcher = self._parts
        new = _decode(request.body, NewKey)
        record, key = await watcher.run(lambda: store.create(new))
        _audit("key_created", exchange, record)
        await watcher.refresh()
        respond_json(exchange, _with_key(record, key), status=201)

    async def _revoke(self, request: Request, exchange: Exchange, principal: Principal, key_id: str) -> None:
        store, watcher = self._parts
        record = await watcher.run(lambda: store.revoke(key_id))
        _audit("key_revoked", exchange, record)
        watcher.revoke(record.id)
        await watcher.refresh()
        respond_json(exchange, record)

    async def _rotate(self, request: Request, exchange: Exchange, principal: Principal, key_id: str) -> None:
        store, watcher = self._parts
        rotation = _decode(request.body or b"{}", Rotation)
        record, key = await watcher.run(lambda: store.rotate(key_id, grace=rotation.grace))
        _audit("key_rotated", exchange, record, grace=rotation.grace)
        if not await watcher.refresh():
            # Then it is done by hand: the secret before this one has its grace, if any; older ones have none.
            watcher.revoke(record.id, before=record.generation - (1 if rotation.grace else 0))
        respond_json(exchange, _with_key(record, key))


def _audit(event: str, exchange: Exchange, record: KeyRecord, **fields: object) -> None:
    audit(
        event,
        actor="admin",
        address=exchange.address,
        connection=exchange.connection_number,
        key=record.id,
        name=record.name,
        tenant=record.tenant,
        models=record.models,
        max_tokens=record.max_tokens,
        limits=None if record.limits is None else msgspec.to_builtins(record.limits),
        **fields,
    )


def _with_key(record: KeyRecord, key: str) -> dict[str, Any]:
    """Make the one answer that holds the key itself."""
    return {**msgspec.structs.asdict(record), "key": key}


_T = TypeVar("_T")


def _decode(raw: bytes, type_: type[_T]) -> _T:
    check_size(raw)
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(str(exc)) from exc
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc
