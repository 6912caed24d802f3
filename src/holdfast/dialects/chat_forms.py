"""The two forms of an answer of chat completions, written one as the other.

Providers exist that stream although a completion was asked for, and the other way round. The answer has been
generated and will be paid for, so it is taken.
"""

from __future__ import annotations

from typing import Any

from holdfast.dialects.chat_lenient import MAX_CHOICES, count_of, decoded, encode

#: Fields of a completion that a chunk has in another form.
_OWN_FORM = frozenset({"object", "choices", "usage"})


def completion_as_chunk(completion: dict[str, Any], *, with_usage: bool) -> bytes:
    """Write a whole completion as the only chunk of a streamed answer.

    Raises ValueError or RecursionError for what cannot be written.
    """
    chunk = {name: value for name, value in completion.items() if name not in _OWN_FORM}
    chunk["object"] = "chat.completion.chunk"
    chunk["choices"] = [
        _as_delta(choice) for choice in completion["choices"][:MAX_CHOICES] if isinstance(choice, dict)
    ]
    if with_usage:
        chunk["usage"] = completion.get("usage")
    return encode(chunk)


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    said = choice.get("message")
    delta = dict(said) if isinstance(said, dict) else {}
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        delta["tool_calls"] = [
            {"index": index, **call} for index, call in enumerate(calls) if isinstance(call, dict)
        ]
    rest = {name: value for name, value in choice.items() if name != "message"}
    return {**rest, "delta": delta}


class Collector:
    """Puts the chunks of a streamed answer together as a completion. Linear in their size."""

    __slots__ = ("_choices", "_head", "_is_whole", "_usage")

    def __init__(self) -> None:
        self._is_whole = True
        self._head: dict[str, Any] = {}
        self._usage: object = None
        self._choices: dict[int, _Choice] = {}

    def add(self, entry: bytes) -> None:
        """Take one entry, which is a JSON object."""
        said = decoded(entry)
        if said is None:
            self._is_whole = False
            return
        for name, value in said.items():
            if name not in _OWN_FORM and len(self._head) < MAX_CHOICES:
                self._head.setdefault(name, value)
        self._usage = said.get("usage") or self._usage
        choices = said.get("choices")
        for choice in choices[:MAX_CHOICES] if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                index = count_of(choice.get("index"))
                if index in self._choices or len(self._choices) < MAX_CHOICES:
                    self._choices.setdefault(index, _Choice()).add(choice)

    def completion(self) -> bytes:
        """Write what has come. Raises ValueError or RecursionError for what cannot be written."""
        if not self._is_whole:
            raise ValueError("a chunk of it has too many parts")
        choices = [{"index": index, **choice.written()} for index, choice in sorted(self._choices.items())]
        completion = {**self._head, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            completion["usage"] = self._usage
        return encode(completion)


class _Choice:
    __slots__ = ("_calls", "_message", "_rest")

    def __init__(self) -> None:
        self._message = _Parts()
        self._calls: dict[int, tuple[_Parts, _Parts]] = {}
        self._rest = _Parts()

    def add(self, choice: dict[str, Any]) -> None:
        said = choice.get("delta") or choice.get("message")
        delta = said if isinstance(said, dict) else {}
        calls = delta.get("tool_calls")
        for position, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                self._add_call(count_of(call.get("index", position)), call)
        self._message.add(delta, once=("role",), but=("tool_calls",))
        self._rest.add(choice, once=("finish_reason",), but=("index", "delta", "message"))

    def _add_call(self, index: int, call: dict[str, Any]) -> None:
        if index not in self._calls and len(self._calls) >= MAX_CHOICES:
            return
        rest, function = self._calls.setdefault(index, (_Parts(), _Parts()))
        rest.add(call, once=("id", "type"), but=("index", "function"))
        said = call.get("function")
        if isinstance(said, dict):
            function.add(said, once=("name",))

    def written(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": None, **self._message.joined()}
        if self._calls:
            message["tool_calls"] = [
                {**rest.joined(), "function": function.joined()}
                for _, (rest, function) in sorted(self._calls.items())
            ]
        return {"message": message, "finish_reason": None, **self._rest.joined()}


class _Parts:
    """Fields that come in parts: texts and lists grow, objects are merged, of all else the last one counts."""

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}

    def add(self, said: dict[str, Any], *, once: tuple[str, ...] = (), but: tuple[str, ...] = ()) -> None:
        """Add the fields of one part. A field of `once` comes whole and is not joined; those of `but` are left."""
        fields = self._fields
        for name, value in said.items():
            if name in but or value is None:
                continue
            before = fields.get(name)
            if name in once:
                fields[name] = value or before
            elif isinstance(value, str):
                if isinstance(before, _Text):
                    before.append(value)
                else:
                    fields[name] = _Text([value])
            elif isinstance(value, dict):
                if not isinstance(before, _Parts):
                    before = fields[name] = _Parts()
                before.add(value)
            elif isinstance(value, list) and type(before) is list:
                before += value
            else:
                fields[name] = value

    def joined(self) -> dict[str, Any]:
        return {name: _joined(value) for name, value in self._fields.items()}


class _Text(list[str]):
    """The parts of one text."""


def _joined(value: object) -> object:
    if isinstance(value, _Text):
        return "".join(value)
    return value.joined() if isinstance(value, _Parts) else value
