"""An object is split into its members to the letter, and what is no JSON object in UTF-8 is refused."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.core.json_object import MAX_MEMBERS, check_utf8, invalid_json, members
from holdfast.errors import InvalidRequest

#: Makes an object so large that its members are counted while they are read.
FILLER = b'"filler":"' + b"x" * 40_000 + b'"'


def split(text: bytes) -> dict[str, bytes]:
    return {str(name): bytes(value) for name, value in members(text).items()}


@pytest.mark.parametrize("filler", [b'"filler":1', FILLER])
def test_values_stay_as_they_came(filler: bytes) -> None:
    text = b' {"a" : [1, 2 ] ,\n"b":{"x":1,"x":2},"c":"\\u00e9\\"}","\\u0064":1e400, "" : null,%b}\t' % filler
    found = split(text)
    del found["filler"]
    assert found == {"a": b"[1, 2 ]", "b": b'{"x":1,"x":2}', "c": b'"\\u00e9\\"}"', "d": b"1e400", "": b"null"}
    assert members(b"{}") == {}


@pytest.mark.parametrize("filler", [b'"filler":1', FILLER])
def test_of_a_name_that_comes_twice_the_last_value_counts(filler: bytes) -> None:
    found = members(b'{"a":1,"b":2,"\\u0061":3,%b}' % filler)
    assert bytes(found["a"]) == b"3"
    assert msgspec.json.encode({**found, "filler": 1}) == b'{"a":3,"b":2,"filler":1}'


@pytest.mark.parametrize("filler", [b'"filler":1', FILLER])
def test_members_of_a_value_are_split_likewise(filler: bytes) -> None:
    inner = members(b'{"a":{"b": [ ],%b}}' % filler)["a"]
    assert bytes(members(inner)["b"]) == b"[ ]"


@pytest.mark.parametrize("filler", [b'"filler":1', FILLER])
def test_object_has_at_most_so_many_members(filler: bytes) -> None:
    most = b",".join(b'"%d":0' % number for number in range(MAX_MEMBERS - 1))
    assert len(members(b"{%b,%b}" % (most, filler))) == MAX_MEMBERS
    with pytest.raises(InvalidRequest, match=f"more than {MAX_MEMBERS} fields"):
        members(b'{%b,%b,"one more":0}' % (most, filler))


@pytest.mark.parametrize("filler", [b'"filler":1', FILLER])
@pytest.mark.parametrize(
    "rest",
    [
        b'"a":1}}',
        b'"a":1,}',
        b'"a":01}',
        b'"a":"\x01"}',
        b'"a":"\\x"}',
        b'"a":"\\ud800"}',
        b'"a":[1 2]}',
        b'"a":NaN}',
        b"'a':1}",
        b'"a":' + b"[" * 100_000,
        b'"a":1',
        b'"a":1}\x00',
    ],
)
def test_what_is_no_json_is_refused(filler: bytes, rest: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^the body is not valid JSON: "):
        members(b"{%b,%b" % (filler, rest))


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"a"', b"[" * 40_000])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^the body must be a JSON object$"):
        members(text)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
def test_text_is_utf8_wherever_its_pieces_end(size: int) -> None:
    start = b"x" * size
    for good in (b"", b"a", "\u00e9".encode(), "\u20ac".encode(), "\U0001f600".encode() * 2):
        check_utf8(start + good + start)
    for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf0\x9f\x98"):
        for text in (start + bad, start + bad + start + b"y"):
            with pytest.raises(UnicodeError):
                check_utf8(text)


class _Known(msgspec.Struct):
    inner: dict[str, bool]


@pytest.mark.parametrize(
    ("text", "message", "param"),
    [
        (b"{", "the body is not valid JSON: Input data was truncated", None),
        (b"[]", "the body must be a JSON object", None),
        (b"{}", "`inner` is missing", "inner"),
        (b'{"inner":1}', "`inner`: expected `object`, got `int`", "inner"),
        (b'{"inner":{"a":1}}', "`inner[...]`: expected `bool`, got `int`", "inner[...]"),
    ],
)
def test_error_names_the_field(text: bytes, message: str, param: str | None) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text, type=_Known)
    error = invalid_json(caught.value)
    assert (error.message, error.param) == (message, param)
