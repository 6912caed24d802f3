"""Reads what is not quite JSON, or not quite a chat completion, as far as it can be understood.

An entry is spliced into messages of the gateway, so it must be one JSON object in valid UTF-8. Nothing else is
demanded of a provider: a number in an odd form, an unknown type of field, half a character or a `NaN` must not
cost the caller an answer that is otherwise whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from holdfast.core.entries import MAX_COUNT, Usage

#: Reading so much slowly takes some twenty milliseconds at the worst: nobody else is served meanwhile.
_MAX_SLOW: Final = 64 * 1024
#: More commas and brackets than these are not decoded to objects: that takes over 0.1 s, and 0.1 GB.
_MAX_PARTS: Final = 300_000
_PARTS: Final = (b",", b"[", b"{")
_MAX_REASON: Final = 100
_MAX_DIGITS: Final = 400
#: Most choices of an answer that are looked at; there is no API that gives more.
MAX_CHOICES: Final = 128


#: What the decoder raises.
FAULTS: Final = (msgspec.DecodeError, UnicodeError, RecursionError)

#: How a count comes, most often.
_Count = int | float | str | None


class Choice(msgspec.Struct, gc=False):
    """The only choice of an answer."""

    finish_reason: str | None = None


class NumberedChoice(Choice, gc=False):
    """One of several choices."""

    index: int = 0


class _CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: _Count = None


class _ReasoningTokens(msgspec.Struct, gc=False):
    reasoning_tokens: _Count = None


class SaidUsage(msgspec.Struct, gc=False):
    """The usage as it is said, where its fields have the expected types."""

    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    prompt_tokens_details: _CachedTokens | None = None
    completion_tokens_details: _ReasoningTokens | None = None


class _Error(msgspec.Struct, gc=False):
    """An error of which only is read that there is one."""


class Chunk(msgspec.Struct, gc=False):
    """What is read of a chunk or a completion; all else is only checked to be JSON."""

    choices: Sequence[Choice] | None = None
    usage: SaidUsage | None = None
    error: _Error | str | bool | int | float | None = None


class ChunkOfSeveral(Chunk, gc=False):
    """A chunk or a completion of an answer with several choices."""

    choices: Sequence[NumberedChoice] | None = None


class _Shown(msgspec.Struct):
    delta: Any = None
    message: Any = None
    text: Any = None


class _ShownChunk(msgspec.Struct):
    choices: list[_Shown] | None = None


_decode_shown = msgspec.json.Decoder(_ShownChunk).decode


def decode_leniently(payload: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Decode a JSON object that has faults; return it, and its bytes as they can be spliced. None if it has none.

    Where they can be spliced, the bytes are the same to the letter: so a surrogate without its other half, where
    a provider has cut a character in two, is passed on. Otherwise they are written anew: bytes that are not UTF-8
    become U+FFFD, as in every decoder; raw control characters become escapes; NaN, infinities and endless numbers
    become null.
    """
    try:
        said = decode(payload)
    except FAULTS:
        return _decode_slowly(payload) if len(payload) <= _MAX_SLOW else None
    return (said, payload.strip()) if isinstance(said, dict) else None


def decode(payload: bytes) -> Any:
    """Decode any JSON of a provider, unless so many objects would come of it that all others would wait for them.

    Raises one of `FAULTS`.
    """
    if len(payload) > _MAX_SLOW and sum(map(payload.count, _PARTS)) > _MAX_PARTS:
        raise msgspec.DecodeError("it has too many parts")
    return msgspec.json.decode(payload)


def encode(said: dict[str, Any]) -> bytes:
    """Encode what `decode_leniently` has decoded, unpaired surrogates included."""
    try:
        return json.dumps(said, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(said, separators=(",", ":"), allow_nan=False).encode()


def _decode_slowly(payload: bytes) -> tuple[dict[str, Any], bytes] | None:
    text = payload.decode(errors="replace")
    is_changed = "\ufffd" in text and text.encode() != payload

    def constant(_: str) -> None:
        nonlocal is_changed
        is_changed = True

    try:
        try:
            said = json.loads(text, parse_constant=constant)
            entry = encode(said) if is_changed else payload.strip()
        except ValueError:
            said = json.loads(text, strict=False, parse_constant=constant, parse_float=_float, parse_int=_int)
            entry = encode(said)
    except (ValueError, RecursionError):
        return None
    return (said, entry) if isinstance(said, dict) else None


def decoded(payload: bytes) -> Any:
    """Decode any JSON, leniently; None for what is none."""
    try:
        return decode(payload)
    except FAULTS:
        found = decode_leniently(payload)
        return None if found is None else found[0]


def chunk_of(said: dict[str, Any]) -> Chunk:
    """Read a chunk whose fields have unexpected types."""
    choices = said.get("choices")
    found = []
    for choice in choices[:MAX_CHOICES] if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            found.append(NumberedChoice(_reason(choice.get("finish_reason")), count_of(choice.get("index"))))
    return Chunk(found or None, _usage_in(said.get("usage")), said.get("error"))


def shows_something(payload: bytes) -> bool:
    """Whether a chunk has more to show than who speaks."""
    if len(payload) > _MAX_SLOW:
        return True
    try:
        choices = _decode_shown(payload).choices
    except FAULTS:
        return True
    for choice in choices or ():
        if choice.text or choice.message:
            return True
        delta = choice.delta
        if delta and (not isinstance(delta, dict) or any(delta[name] for name in delta if name != "role")):
            return True
    return False


def usage_of(said: SaidUsage) -> Usage:
    """Read the usage, as far as it can be read."""
    cached, reasoning = said.prompt_tokens_details, said.completion_tokens_details
    return Usage(
        count_of(said.prompt_tokens),
        count_of(said.completion_tokens),
        count_of(said.total_tokens),
        cached_tokens=0 if cached is None else count_of(cached.cached_tokens),
        reasoning_tokens=0 if reasoning is None else count_of(reasoning.reasoning_tokens),
    )


def _usage_in(said: Any) -> SaidUsage | None:
    """Return the usage whose fields have unexpected types."""
    if not isinstance(said, dict):
        return None
    cached, reasoning = said.get("prompt_tokens_details"), said.get("completion_tokens_details")
    return SaidUsage(
        said.get("prompt_tokens"),
        said.get("completion_tokens"),
        said.get("total_tokens"),
        _CachedTokens(cached.get("cached_tokens")) if isinstance(cached, dict) else None,
        _ReasoningTokens(reasoning.get("reasoning_tokens")) if isinstance(reasoning, dict) else None,
    )


def count_of(value: object) -> int:
    """Read a count, which some servers write as a float or a text; 0 where it is none."""
    if isinstance(value, str) and len(value) <= 30:
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, float):
        # A NaN is no number to compare with.
        return int(min(max(value, 0.0), float(MAX_COUNT))) if not math.isnan(value) else 0
    return min(max(value, 0), MAX_COUNT) if type(value) is int else 0


def reason_of(reason: str) -> str | None:
    """Return a finish reason, bounded and such that it can be written; None for what stands for none."""
    if reason in ("", "null"):
        return None
    return reason[:_MAX_REASON].encode(errors="replace").decode()


def _reason(value: object) -> str | None:
    if isinstance(value, str):
        return value
    # A number of any length would take long to write.
    return str(value) if type(value) is int and abs(value) < 1 << 64 else None


def _float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _int(text: str) -> int | None:
    return int(text) if len(text) <= _MAX_DIGITS else None
