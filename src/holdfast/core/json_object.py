"""JSON objects taken apart into their members, whose values stay the bytes that came.

What a value means is decoded by whoever needs it. To write the object again with some members changed, encode
them: `msgspec.json.encode({**members(text), "model": "x"})`. Each name is then there once, with the value that was
read here, so that no two readers can differ about which of two values counts.
"""

from __future__ import annotations

import codecs
from typing import TypeAlias

import msgspec

from holdfast.errors import InvalidRequest

#: Most members of one object. APIs have a few dozen; a million empty ones would take a hundred times their size.
MAX_MEMBERS = 256

#: An object's members, by name.
Members: TypeAlias = dict[str, msgspec.Raw]

#: Up to so many bytes members are counted when they are all there.
_SMALL = 32 * 1024
#: Text is checked in pieces of so many bytes, since decoded it can take four times its size.
_PIECE = 64 * 1024

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class _Name(str):
    """A member's name. For a type that it does not know the decoder calls back, each time."""

    __slots__ = ()


class _TooManyError(ValueError):
    """Stops the decoder."""


_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def members(text: bytes | msgspec.Raw) -> Members:
    """Split an object into its members, in order. Of a name that comes twice the last value counts.

    Whatever is in it, that takes time in proportion to its size, and next to no memory. The values refer to the
    text, and keep it. That they are UTF-8 is for `check_utf8`; all else is checked here. Raises `InvalidRequest`.
    """
    try:
        found = _members(text) if len(text) <= _SMALL else _counted(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        if isinstance(exc.__cause__, _TooManyError):
            raise _too_many() from exc
        raise invalid_json(exc) from exc
    if len(found) > MAX_MEMBERS:
        raise _too_many()
    return found


def _counted(text: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    count = 0

    def name(_: type, name: str) -> _Name:
        nonlocal count
        count += 1
        if count > MAX_MEMBERS:
            raise _TooManyError
        return _Name(name)

    found: dict[str, msgspec.Raw] = msgspec.json.decode(text, type=dict[_Name, msgspec.Raw], dec_hook=name)
    return found


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"a JSON object has more than {MAX_MEMBERS} fields")


def check_utf8(text: bytes) -> None:
    """Check that bytes are UTF-8, which decoders do of strings alone that they give back. Raises UnicodeError."""
    if text.isascii():
        return
    decoder, view = _Utf8Decoder(), memoryview(text)
    for start in range(0, len(text), _PIECE):
        decoder.decode(view[start : start + _PIECE])
    decoder.decode(b"", final=True)


def invalid_json(error: Exception) -> InvalidRequest:
    """Say what msgspec has found wrong with a body, and name the field."""
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"the body is not valid JSON: {error}")
    text, _, place = str(error).partition(" - at `$")
    place = place.strip("`.")
    if text.startswith("Object missing required field `"):
        place = text.split("`")[1]
        return InvalidRequest(f"`{place}` is missing", param=place)
    if not place:
        return InvalidRequest("the body must be a JSON object")
    return InvalidRequest(f"`{place}`: {text[:1].lower()}{text[1:]}", param=place)
