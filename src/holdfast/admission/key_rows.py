"""The rows of a key store, as the gateway and its administrators see them.

Anybody who may write the file can have put anything into a row: one without sense is left out, and named.
"""

from __future__ import annotations

import sqlite3
from typing import TypeVar

import msgspec

from holdfast.admission.keys import Key, parse_hash
from holdfast.admission.principal import Principal, Scopes, is_name
from holdfast.config.limits import LimitConfig
from holdfast.errors import NotFound

_ACTIVE = """
SELECT secrets.hash, secrets.generation, secrets.expires,
    keys.id, keys.tenant, keys.models, keys.max_tokens, keys.limits
FROM secrets JOIN keys ON keys.id = secrets.key_id WHERE keys.revoked IS NULL
"""


class KeyRecord(msgspec.Struct, frozen=True):
    """The public part of a key. Times are in Unix seconds.

    `previous_expires` is set while the secret before the last rotation is still valid. `problem` says what is
    wrong with a row that somebody has edited; gateways leave such a key out.
    """

    id: str
    name: str
    tenant: str
    models: list[str] | None
    max_tokens: int | None
    limits: LimitConfig | None
    generation: int
    created: float
    rotated: float | None
    previous_expires: float | None
    revoked: float | None
    problem: str | None = None


class _Row(msgspec.Struct, frozen=True):
    """A row of `_ACTIVE`. Even its types are checked: tables can be made anew, and files damaged."""

    hash: str
    generation: int
    expires: float | None
    id: str
    tenant: str
    models: str | None
    max_tokens: int | None
    limits: str | None


class BadKey(msgspec.Struct, frozen=True):
    """A key that is left out, and what is wrong with it."""

    id: str
    problem: str


def read_active(connection: sqlite3.Connection) -> tuple[list[Key], list[BadKey]]:
    """Return the valid keys, for a `KeyTable`, and those that are left out. Raises `sqlite3.Error`.

    One row without sense, as after an edit by hand, costs its own key and no other.
    """
    keys, bad = [], []
    for values in connection.execute(_ACTIVE):
        raw = dict(zip(_Row.__struct_fields__, values, strict=True))
        try:
            row = msgspec.convert(raw, _Row)
            _check_names(row.id, row.tenant)
            allowed = _decode_models(row.models)
            _check_max_tokens(row.max_tokens)
            principal = Principal(
                tenant=row.tenant,
                key_id=row.id,
                scopes=Scopes(models=None if allowed is None else frozenset(allowed), max_tokens=row.max_tokens),
                limits=_decode_limits(row.limits),
                generation=row.generation,
            )
            keys.append(Key(_digest(row.hash), principal, row.expires))
        except (ValueError, msgspec.ValidationError) as exc:
            bad.append(BadKey(_printable(str(raw["id"])), str(exc)))
    return keys, bad


def read_record(connection: sqlite3.Connection, key_id: str, now: float) -> KeyRecord:
    """Return the public part of one key. Raises `NotFound`, or `sqlite3.Error`."""
    raw_id = key_id.encode("utf-8", "surrogateescape")  # a text of SQLite's may be no UTF-8
    row = connection.execute(
        "SELECT id, name, tenant, models, max_tokens, limits, created, revoked FROM keys"
        " WHERE id = CAST(? AS TEXT)",
        (raw_id,),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no key {key_id[:100]!r}")
    generation, rotated, previous, newest = 1, None, None, None
    for number, created, expires, hashed in connection.execute(
        "SELECT generation, created, expires, hash FROM secrets"
        " WHERE key_id = CAST(? AS TEXT) ORDER BY generation",
        (raw_id,),
    ):
        if expires is None:
            generation, rotated, newest = number, created if number > 1 else None, hashed
        elif expires > now:
            previous = expires
    problem, models, limits = None, None, None
    try:
        _check_names(row[0], row[2])
        models, limits = _decode_models(row[3]), _decode_limits(row[5])
        _check_max_tokens(row[4])
        if newest is not None:
            _digest(newest)
    except ValueError as exc:
        problem = str(exc)
    return KeyRecord(
        id=_printable(row[0]),
        name=_printable(row[1]),
        tenant=_printable(row[2]),
        models=models,
        max_tokens=row[4],
        limits=limits,
        generation=generation,
        created=row[6],
        rotated=rotated,
        previous_expires=previous if row[7] is None else None,
        revoked=row[7],
        problem=problem,
    )


def _digest(hashed: str) -> bytes:
    try:
        return parse_hash(hashed)
    except ValueError as exc:
        raise ValueError(f"hash: {exc}") from exc


def _check_names(key_id: str, tenant: str) -> None:
    if not is_name(key_id):
        raise ValueError("the id must have 1 to 256 printable characters")
    if not is_name(tenant):
        raise ValueError("the tenant must have 1 to 256 printable characters")


def _check_max_tokens(max_tokens: int | None) -> None:
    if max_tokens is not None and not 1 <= max_tokens < 2**53:
        raise ValueError("max_tokens must be at least 1")


def encode(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _decode_models(text: str | None) -> list[str] | None:
    models = None if text is None else _decode(text, list[str], "models")
    if models is not None and not (models and all(map(is_name, models))):
        raise ValueError("models must hold at least one model's name")
    return models


def _decode_limits(text: str | None) -> LimitConfig | None:
    return None if text is None else _decode(text, LimitConfig, "limits")


_T = TypeVar("_T")


def _decode(text: str, type_: type[_T], column: str) -> _T:
    """Decode a column. Raises `ValueError`, which names it."""
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"), type=type_)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise ValueError(f"{column}: {exc}") from exc


def _printable(text: str) -> str:
    """Make a text that can be shown and sent of whatever stands in a column."""
    return text if text.isprintable() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
