"""`holdfast keys`: creates keys for the configuration file, and manages those of a key store."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import msgspec

from holdfast.admission.key_rows import KeyRecord
from holdfast.admission.key_store import KeyStore, NewKey
from holdfast.admission.keys import create_key
from holdfast.config.limits import LimitConfig
from holdfast.errors import HoldfastError, InvalidRequest

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a key that TOML accepts without quotes

# A string, because argparse's class is generic only for type checkers.
_Actions: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_create(actions)
    listing = actions.add_parser("list", help="list the keys of a store", description="List the keys of a store.")
    _add_store(listing)
    listing.set_defaults(run=_list)
    revoke = actions.add_parser(
        "revoke",
        help="end a key of a store",
        description="End a key for good. Running gateways refuse it, and close its sessions, within a second.",
    )
    revoke.add_argument("id", help="id of the key, as `list` shows it")
    _add_store(revoke)
    revoke.set_defaults(run=_revoke)
    rotate = actions.add_parser(
        "rotate",
        help="give a key of a store a new secret",
        description="Give a key a new secret, which is shown once. Its id, tenant and limits stay.",
    )
    rotate.add_argument("id", help="id of the key, as `list` shows it")
    _add_store(rotate)
    rotate.add_argument(
        "--grace",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long the present secret stays good, at most 30 days (default: 3600)",
    )
    rotate.set_defaults(run=_rotate)
    backup = actions.add_parser(
        "backup",
        help="copy a store, also while it is in use",
        description="Write a consistent copy of a store, readable for its owner alone, also while it is in use.",
    )
    _add_store(backup)
    backup.add_argument("target", type=Path, help="file to write; there must be none of that name")
    backup.set_defaults(run=_backup)


def _add_create(actions: _Actions) -> None:
    create = actions.add_parser(
        "create",
        help="make a key",
        description="Make a random 256-bit key. It is shown once; the configuration or the store gets its hash.",
    )
    create.add_argument("name", nargs="?", default="web", help="name of the caller (default: web)")
    _add_store(create, required=False, text="put the key into this store instead of printing a configuration")
    create.add_argument("--tenant", help="with --store: keys of one tenant share streams (default: the name)")
    create.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="with --store: a model that the key may ask for; may be repeated (default: all)",
    )
    create.add_argument(
        "--max-tokens", type=int, metavar="N", help="with --store: most tokens that a request may ask for"
    )
    create.add_argument(
        "--limit",
        action="append",
        metavar="NAME=VALUE",
        help="with --store: a limit of this key, such as requests_per_minute=60; may be repeated",
    )
    create.set_defaults(run=_create)


def _add_store(
    parser: argparse.ArgumentParser, *, required: bool = True, text: str = "SQLite file, `auth.key_store`"
) -> None:
    parser.add_argument("--store", type=Path, metavar="FILE", required=required, help=text)


def _create(args: argparse.Namespace) -> int:
    if args.store is None:
        if args.tenant or args.model or args.max_tokens or args.limit:
            return _fail("these options go with --store; without it write them into the configuration")
        return _create_for_config(args.name)
    store = KeyStore(args.store)
    store.prepare()
    try:
        record, key = store.create(
            NewKey(
                name=args.name,
                tenant=args.tenant,
                models=args.model,
                max_tokens=args.max_tokens,
                limits=_limits(args.limit),
            )
        )
    except HoldfastError as exc:
        return _fail(exc.message)
    _show_key(key)
    print(f"\nIts id is {record.id}; it is in force.", file=sys.stderr)
    return 0


def _limits(options: list[str] | None) -> LimitConfig | None:
    if not options:
        return None
    values: dict[str, int | str] = {}
    for option in options:
        name, _, value = option.partition("=")
        values[name] = int(value) if value.isascii() and value.isdigit() else value
    try:
        return msgspec.convert(values, LimitConfig)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"--limit: {exc}") from exc


def _create_for_config(name: str) -> int:
    if _BARE_KEY.fullmatch(name) is None:
        return _fail("a key's name is made of letters, digits, `-` and `_`")
    key, hashed = create_key()
    _show_key(key)
    print(f'\nAdd this to the configuration file:\n\n[keys.{name}]\nhash = "{hashed}"', file=sys.stderr)
    return 0


def _show_key(key: str) -> None:
    # Only the key goes to standard output, so that it can be piped into a secret store.
    print("Give this key to the caller; it is not shown again:", file=sys.stderr)
    print(key)
    sys.stdout.flush()


def _list(args: argparse.Namespace) -> int:
    try:
        records = _open(args).list()
    except HoldfastError as exc:
        return _fail(exc.message)
    rows = [("ID", "NAME", "TENANT", "CREATED", "STATE"), *map(_row, records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(record: KeyRecord) -> tuple[str, str, str, str, str]:
    state = "in force"
    if record.revoked is not None:
        state = f"revoked {_date(record.revoked)}"
    elif record.problem is not None:
        state = f"left out: {record.problem}"
    elif record.previous_expires is not None:
        state = f"rotated, the secret before ends {_date(record.previous_expires)}"
    return record.id, record.name, record.tenant, _date(record.created), state


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _revoke(args: argparse.Namespace) -> int:
    try:
        record = _open(args).revoke(args.id)
    except HoldfastError as exc:
        return _fail(exc.message)
    print(f"{record.id} ({record.name}) is revoked", file=sys.stderr)
    return 0


def _rotate(args: argparse.Namespace) -> int:
    try:
        record, key = _open(args).rotate(args.id, grace=args.grace)
    except HoldfastError as exc:
        return _fail(exc.message)
    _show_key(key)
    print(f"\n{record.id} ({record.name}): the secret before ends in {args.grace:g} s", file=sys.stderr)
    return 0


def _backup(args: argparse.Namespace) -> int:
    try:
        store = _open(args)
        store.backup(args.target)
        count = len(KeyStore(args.target).list())
    except HoldfastError as exc:
        return _fail(exc.message)
    print(f"{args.target}: a copy of {count} keys", file=sys.stderr)
    return 0


def _open(args: argparse.Namespace) -> KeyStore:
    store = KeyStore(args.store)
    store.prepare(create=False)
    return store


def _fail(message: str) -> int:
    print(f"holdfast: {message}", file=sys.stderr)
    return 2
