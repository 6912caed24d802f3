"""Changing members of an object's text gives what decoding, changing and encoding gives; rubbish is refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.core.json_object import MAX_MEMBERS, check_utf8, members
from holdfast.errors import InvalidRequest

# Names that are changed, names that look like them, and whatever else; duplicates come by `pairs`.
names = st.sampled_from(["model", "stream", "Model", "model ", '"model":', "\\", "\u2028"]) | st.text(max_size=6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"model":"x"', '{"model":1}', "\\", '\\"', "]}", "\\u0022", "\U0001f600", "\u00e9"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
pairs = st.lists(st.tuples(names, values), max_size=8)
spaces = st.text(" \t\r\n", max_size=3)
changes = st.dictionaries(st.sampled_from(["model", "stream", "of_tomorrow"]), values, max_size=3)


@st.composite
def objects(draw: st.DrawFn) -> str:
    """Write an object with white space anywhere, names that come twice, and characters escaped or not."""

    def write(value: Any) -> str:
        space = draw(spaces)
        if isinstance(value, dict):
            return write_pairs(list(value.items()))
        if isinstance(value, list):
            return "[" + space + ",".join(write(item) + space for item in value) + "]"
        return json.dumps(value, ensure_ascii=draw(st.booleans()))

    def write_pairs(items: list[tuple[str, Any]]) -> str:
        written = []
        for name, value in items:
            key = json.dumps(name, ensure_ascii=draw(st.booleans()))
            if name.isalnum() and draw(st.booleans()):
                key = '"' + "".join(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else char for char in name) + '"'
            written.append(draw(spaces) + key + draw(spaces) + ":" + draw(spaces) + write(value) + draw(spaces))
        return "{" + draw(spaces) + ",".join(written) + "}"

    return draw(spaces) + write_pairs(draw(pairs)) + draw(spaces)


@given(objects(), changes, st.sampled_from([0, 40_000]))
def test_changed_text_decodes_to_the_changed_object(text: str, changes: dict[str, Any], padding: int) -> None:
    try:
        raw = (text + " " * padding).encode()  # a large text is read in another way
        msgspec.json.decode(raw)
    except (UnicodeEncodeError, msgspec.DecodeError):  # a surrogate on its own is no text that could be sent
        return
    found = members(raw)
    assert all(bytes(value) in raw for value in found.values())
    expected = json.loads(text)
    assert {str(name): json.loads(bytes(value)) for name, value in found.items()} == expected
    assert list(found) == list(expected)
    changed = msgspec.json.encode({**found, **changes})
    assert json.loads(changed) == {**expected, **changes}
    assert changed.count(b'"stream"') >= ("stream" in expected or "stream" in changes)
    assert [str(name) for name in members(changed)] == list({**expected, **changes})


@given(st.binary(max_size=40) | objects().map(lambda text: text.encode("utf-8", "replace")), st.data())
@example(b'{"a":1}', None)
def test_garbage_is_refused_or_an_object_as_any_parser_reads_it(text: bytes, data: st.DataObject | None) -> None:
    if data is not None and text:
        place = data.draw(st.integers(0, len(text) - 1))
        text = text[:place] + data.draw(st.binary(max_size=3)) + text[place + data.draw(st.integers(0, 2)) :]
    try:
        check_utf8(text)
        found = members(text)
    except (InvalidRequest, UnicodeError):
        return
    expected = json.loads(text.decode())
    assert isinstance(expected, dict)
    assert {str(name) for name in found} == set(expected)
    assert len(found) <= MAX_MEMBERS
    for name, value in found.items():
        assert repr(json.loads(bytes(value))) == repr(expected[name])
