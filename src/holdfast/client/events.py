"""What a stream yields: typed events, and the text within a provider's chunk."""

from __future__ import annotations

import enum
from typing import Any, TypeAlias

import msgspec

from holdfast.core.entries import AttemptRecord, EndStatus, Usage
from holdfast.errors import ProtocolError


class ConnectionState(enum.Enum):
    """The state of a client's connection to its gateway."""

    DISCONNECTED = "disconnected"  # nothing runs; the next call connects
    CONNECTING = "connecting"
    OPEN = "open"
    RECONNECTING = "reconnecting"  # calls wait, and will carry on where they were
    CLOSED = "closed"  # `aclose` was called


class Chunk(msgspec.Struct, frozen=True):
    """One entry of the stream. `data` is the provider's JSON, untouched; `text` is what it adds to the answer."""

    seq: int
    data: Any
    text: str


class StreamQueued(msgspec.Struct, frozen=True):
    """The request waits at the gateway; `position` 0 is next.

    After a failure with `code` it waits for its attempt number `attempt`, which begins in `retry_in` seconds.
    """

    position: int
    retry_in: float | None = None
    attempt: int | None = None
    code: str | None = None


class StreamEnd(msgspec.Struct, frozen=True):
    """The last event of a stream that completed or that this client cancelled."""

    seq: int
    status: EndStatus
    finish_reason: str | None
    usage: Usage | None
    attempts: list[AttemptRecord]


StreamEvent: TypeAlias = Chunk | StreamQueued | StreamEnd


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    index: int = 0


class _ChatChunk(msgspec.Struct):
    choices: list[_Choice] = []


_chat_decoder = msgspec.json.Decoder(_ChatChunk)
_any_decoder = msgspec.json.Decoder()


def text_of(payload: bytes) -> str:
    """Return what a chat completion chunk adds to its first choice, "" for any other JSON.

    Raises `ProtocolError` for what is not JSON.
    """
    try:
        chunk = _chat_decoder.decode(payload)
    except msgspec.ValidationError:
        return ""
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise ProtocolError(f"an entry of the stream is not JSON: {exc}") from exc
    for choice in chunk.choices:
        if choice.index == 0 and choice.delta is not None:
            return choice.delta.content or ""
    return ""


def json_of(payload: bytes) -> Any:
    """Decode an entry. Raises `ProtocolError` for what is not JSON."""
    try:
        return _any_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise ProtocolError(f"an entry of the stream is not JSON: {exc}") from exc
