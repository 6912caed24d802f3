"""Reads what TOML gave as the types of the configuration, and finds everything in it that does not fit."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec

from holdfast.config.names import Path
from holdfast.config.problems import Problem, suggestion

#: Stands for a value that does not fit.
BROKEN: Final = object()

_PART = re.compile(r"\[(\d+)\]|\.([A-Za-z0-9_]+)|\[\.\.\.\]")


def read(value: Any, type_: Any, path: Path, problems: list[Problem]) -> Any:
    """Return the value without what does not fit its type, or `BROKEN`; append a problem for each such part.

    `type_` is a struct, a table of structs, or what msgspec can convert to.
    """
    struct, entry = _struct_of(type_), _entry_of(type_)
    if struct is None and entry is None:
        return _leaf(value, type_, path, problems)
    if not isinstance(value, dict):
        problems.append(Problem(path, "expected a table"))
        return BROKEN
    if entry is not None:
        read_entries = {name: read(item, entry, (*path, name), problems) for name, item in value.items()}
        return {name: item for name, item in read_entries.items() if item is not BROKEN}
    return _table(value, struct, path, problems)


def _table(value: Mapping[str, Any], struct: Any, path: Path, problems: list[Problem]) -> Any:
    fields = _fields(struct)
    for name in value:
        if name not in fields:
            hint = _quoting(value, name, path, fields) or suggestion(name, fields)
            problems.append(Problem((*path, name), f"there is no such key{hint}"))
            if hint.endswith("]"):
                return BROKEN  # what is missing besides is missing because of that
    result = {}
    is_whole = True
    for name, field in fields.items():
        part = read(value[name], field.type, (*path, name), problems) if name in value else BROKEN
        if part is not BROKEN:
            result[name] = part
        elif field.required:
            is_whole = False
            if name not in value:
                problems.append(Problem(path, f"needs `{name}`"))
    return result if is_whole else BROKEN


@cache
def _fields(struct: Any) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the fields of a struct by name; to find their types takes a while."""
    return {field.name: field for field in msgspec.structs.fields(struct)}


def _quoting(value: Mapping[str, Any], name: str, path: Path, fields: Mapping[str, Any]) -> str:
    """Say how a name with a dot is written, where a table of free names seems to hold one without quotes."""
    if len(path) != 2 or path[0] not in ("models", "providers", "keys") or not isinstance(value[name], dict):
        return ""
    parts, node = [str(path[1]), name], value[name]
    while (
        len(node) == 1 and isinstance(inner := next(iter(node.values())), dict) and next(iter(node)) not in fields
    ):
        parts.append(next(iter(node)))
        node = inner
    return f'; a name with a dot is quoted: [{path[0]}."{".".join(parts)}"]'


def _leaf(value: Any, type_: Any, path: Path, problems: list[Problem]) -> Any:
    if (number := _impossible(value)) is not None:
        problems.append(Problem(path, number))
        return BROKEN
    try:
        msgspec.convert(value, type_)
    except msgspec.ValidationError as exc:
        problems.append(of_validation(exc, type_).within(path))
        return BROKEN
    return value


def _impossible(value: Any) -> str | None:
    """TOML has numbers that no setting can have."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, got {value}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "expected a number of at most 64 bits"
    return None


def of_validation(exc: msgspec.ValidationError, type_: Any = None) -> Problem:
    """Say msgspec's "... - at `$.port`" with its place, and what a choice may be."""
    text, _, place = str(exc).partition(" - at `$")
    path: Path = tuple(int(index) if index else name or "..." for index, name in _PART.findall(place.rstrip("`")))
    unknown = re.fullmatch(r"Object contains unknown field `(.+)`", text)
    if unknown:
        return Problem((*path, unknown[1]), "there is no such key")
    choice = re.fullmatch(r"Invalid enum value '?(.*?)'?", text)
    allowed = _choices(type_) if choice else []
    if choice and allowed:
        names = ", ".join(map(str, allowed))
        return Problem(path, f"expected one of {names}; got {choice[1]!r}{suggestion(choice[1], allowed)}")
    return Problem(path, f"{text[:1].lower()}{text[1:]}")


def _choices(type_: Any) -> list[Any]:
    if get_origin(type_) is Literal:
        return list(get_args(type_))
    for part in get_args(type_):
        found = _choices(part)
        if found:
            return found
    return []


def _struct_of(type_: Any) -> Any:
    """Return the struct that a table must be, also where it may be left out; None for other types."""
    if get_origin(type_) is Annotated:
        return _struct_of(get_args(type_)[0])
    if get_origin(type_) in (Union, types.UnionType):
        parts = [part for part in get_args(type_) if part is not types.NoneType]
        return _struct_of(parts[0]) if len(parts) == 1 else None
    return type_ if isinstance(type_, type) and issubclass(type_, msgspec.Struct) else None


def _entry_of(type_: Any) -> Any:
    """Return what the entries of a table with free names must be; None for other types."""
    if get_origin(type_) is Annotated:
        return _entry_of(get_args(type_)[0])
    if get_origin(type_) is dict:
        return _struct_of(get_args(type_)[1])
    return None
