"""The requests of chat completions: read for what limits and routes go by, and written for a provider.

Nothing is decoded that does not decide something here; the rest reaches the provider to the letter, and it is the
provider who judges it.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec

from holdfast.core.json_object import Members, check_utf8, invalid_json, members
from holdfast.dialects.ask import Ask, Bounds
from holdfast.errors import InvalidRequest

#: Longest name of a model, in characters: it comes back in errors and log lines.
_MAX_MODEL = 256
#: Parts of a message whose encoded size says nothing about their tokens, as their `type` is written.
_MEDIA = frozenset({b'"image_url"', b'"input_audio"', b'"file"', b'"image"', b'"document"'})
#: What `_MEDIA` begin with: without one of these there are none.
_MEDIA_MARKS = (b'"image', b'"input_audio"', b'"file"', b'"document"')
#: Messages with more commas than this are not looked into for media. To look takes up to a microsecond for each,
#: and a text that has so many is larger than what models read.
_MAX_COMMAS = 30_000
#: Prompts of more bytes than this are logged as the beginning of their text.
_MAX_PROMPT = 64 * 1024

#: The members of a larger request are kept: to look through it takes longer than what it costs to have them.
_LARGE = 64 * 1024
#: The first character of the first message, and the shortest value that begins so.
_FIRST_MESSAGE = re.compile(rb"\[[ \t\r\n]*(.)", re.DOTALL)
_LIKE = {b"{": b"{}", b"[": b"[]", b'"': b'""', b"t": b"true", b"f": b"false", b"n": b"null", b"]": b""}

_ABSENT = msgspec.Raw()
_NULL = msgspec.Raw(b"null")
_ARRAY, _OBJECT = b"[{"
#: A count that every reader reads alike: larger ones lose digits where numbers are floats.
_COUNT = re.compile(rb"[1-9][0-9]{0,14}")


class _Object(msgspec.Struct, gc=False):
    """Any object; none of it is kept."""


class _Messages(msgspec.Struct, array_like=True, gc=False):
    """At least one message. The provider looks at the others: there may be millions."""

    first: _Object


class _Options(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Request(msgspec.Struct, gc=False):
    """What decides something here. Each `max_...` bounds the answer; which one counts is the provider's matter."""

    model: str
    messages: _Messages
    stream: bool | None = None
    stream_options: _Options | None = None
    max_completion_tokens: msgspec.Raw = _NULL
    max_tokens: msgspec.Raw = _NULL
    n: msgspec.Raw = _NULL


class _Prompt(msgspec.Struct, gc=False):
    messages: msgspec.Raw


class _Part(msgspec.Struct, gc=False):
    type: msgspec.Raw = _ABSENT


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = _ABSENT


class _Contents(msgspec.Struct, gc=False):
    messages: list[_Message]


#: What is read here. Some providers do not look at the case of names, and of two take the one that comes last: the
#: model that they served would not be the one that was allowed.
_READ = frozenset(_Request.__struct_fields__)

_decode_request = msgspec.json.Decoder(_Request).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_decode_contents = msgspec.json.Decoder(_Contents).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_part = msgspec.json.Decoder(_Part).decode


def read_request(dialect: str, raw: bytes | str, *, stream: bool | None, found: Members | None = None) -> Ask:
    """Read a request; of a large one the members are kept.

    Raises `InvalidRequest` that names the field and what was expected.
    """
    try:
        text = raw.encode() if isinstance(raw, str) else raw
        check_utf8(text)
        if found is None and len(text) > _LARGE:
            found = members(text)
        request = _decode_request(text if found is None else _head(found) or text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise invalid_json(exc) from exc
    model, options = request.model, request.stream_options
    if not 0 < len(model) <= _MAX_MODEL:
        raise InvalidRequest(f"`model` must name a model, in at most {_MAX_MODEL} characters", param="model")
    return Ask(
        dialect=dialect,
        model=model,
        stream=bool(request.stream) if stream is None else stream,
        body=text,
        bounds=_bounds(request, text),
        wants_usage=options is not None and options.include_usage is True,
        members=found,
    )


def _head(found: Members) -> bytes | None:
    """Write what is read of a request, with as much of its messages as shows whether there is an object first.

    None where that is large: it is not copied.
    """
    head: dict[str, Any] = {name: value for name, value in found.items() if name in _READ}
    messages = head.get("messages")
    if messages is not None and (begin := _FIRST_MESSAGE.match(messages)) is not None:
        head["messages"] = msgspec.Raw(b"[%b]" % _LIKE.get(begin[1], b"0"))
    return msgspec.json.encode(head) if sum(map(len, head.values())) <= _LARGE else None


def write_request(ask: Ask, model: str, *, with_usage: bool) -> bytes:
    """Write the provider's request: the caller's, with another model, streamed or not as the surface wants it.

    `with_usage` says whether a streamed answer shall end with its usage. Raises `InvalidRequest` for too many
    fields, and for one that a provider may take for another.
    """
    body: dict[str, Any] = members(ask.body) if ask.members is None else dict(ask.members)
    for name in body:
        if name not in _READ and name.casefold() in _READ:
            raise InvalidRequest(f"`{name}` must be spelled `{name.casefold()}`", param=name)
    body["model"] = model
    body["stream"] = ask.stream
    if not ask.stream:
        body.pop("stream_options", None)
    elif with_usage and not ask.wants_usage:
        own = body.get("stream_options", _NULL)
        body["stream_options"] = {**({} if own == _NULL else members(own)), "include_usage": True}
    return msgspec.json.encode(body)


def least_text(raw: bytes) -> int:
    """Return how many bytes of a request are no media for certain; see `Dialect.least_text`."""
    return 0 if _may_have_media(raw) else len(raw)


def prompt_of(ask: Ask) -> object:
    """Return the messages of a request; of large or deeply nested ones the beginning, as text."""
    messages = _decode_prompt(ask.body).messages if ask.members is None else ask.members["messages"]
    if len(messages) <= _MAX_PROMPT:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):  # the stack and numbers have their limits
            return msgspec.json.decode(messages)
    return bytes(memoryview(messages)[:_MAX_PROMPT]).decode(errors="ignore")


def _bounds(request: _Request, raw: bytes) -> Bounds:
    newer, older, choices = _count(request.max_completion_tokens), _count(request.max_tokens), _count(request.n)
    counts = ((newer, "max_completion_tokens"), (older, "max_tokens"), (choices, "n"))
    media, encoded = _media(raw) if _may_have_media(raw) else (0, 0)
    return Bounds(
        max_output=max(newer, older, 0) or None,
        choices=max(choices, 1),
        media=media,
        size=len(raw) - encoded,
        output_field="max_completion_tokens" if newer > older and newer > 0 else "max_tokens",
        choices_field="n",
        unclear=next((name for count, name in counts if count < 0), None),
    )


def _count(value: msgspec.Raw) -> int:
    """Return a count; 0 where there is none, -1 for what is no count."""
    if value is _NULL or value == _NULL:
        return 0
    return int(bytes(value)) if _COUNT.fullmatch(value) else -1


def _may_have_media(raw: bytes) -> bool:
    return b'"type"' in raw and raw.count(b",") <= _MAX_COMMAS and any(mark in raw for mark in _MEDIA_MARKS)


def _media(raw: bytes) -> tuple[int, int]:
    """Return how many parts of the messages are media, and their size in bytes."""
    count = size = 0
    try:
        contents = [content for message in _decode_contents(raw).messages if (content := message.content)]
    except (msgspec.DecodeError, RecursionError):
        return count, size  # one of them is no object
    for content in contents:
        for part in _decode_parts(content) if memoryview(content)[0] == _ARRAY else ():
            if memoryview(part)[0] == _OBJECT and bytes(_decode_part(part).type) in _MEDIA:
                count += 1
                size += len(part)
    return count, size
