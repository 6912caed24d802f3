"""The answers of chat completions: the readers of one that is streamed, and of one that is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast.core.entries import Usage
from holdfast.core.sse import EventSplitter, EventTooLarge
from holdfast.dialects.chat_errors import error_within, told_in
from holdfast.errors import UpstreamError, UpstreamMalformed, UpstreamTruncated

_DONE = b"[DONE]"


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class StreamReader:
    """Reads one streamed answer.

    `receive` gives entries. After it, `is_finished` says that the terminal event came, and `error` what was wrong.
    """

    __slots__ = (
        "_has_answer",
        "_hide_usage",
        "_requires_finish_reason",
        "_splitter",
        "error",
        "finish_reason",
        "is_finished",
        "units",
        "usage",
    )
    content_type = b"text/event-stream"

    def __init__(self, *, max_event: int, hide_usage: bool, requires_finish_reason: bool = True) -> None:
        self._splitter = EventSplitter(max_event=max_event)
        self._hide_usage = hide_usage
        self._requires_finish_reason = requires_finish_reason
        self._has_answer = False
        self.units = 0
        self.is_finished = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.error: UpstreamError | None = None

    def receive(self, chunks: Sequence[bytes]) -> list[bytes]:
        """Take body bytes, return the entries that they complete. What came before an error is returned too."""
        if self.is_finished or self.error is not None:
            return []
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        try:
            payloads = self._splitter.feed(body)
        except EventTooLarge as exc:
            self.error = UpstreamMalformed(str(exc))
            return []
        entries = []
        for payload in payloads:
            if payload == _DONE:
                if self._has_answer and self.finish_reason is None and self._requires_finish_reason:
                    # Servers exist that stop an answer for a newer request and still say that it is done.
                    self.error = UpstreamTruncated("the provider ended the answer without a finish reason")
                else:
                    self.is_finished = True
                break
            # Entries are spliced into messages as they are, so each must be one JSON object in valid UTF-8.
            # The decoder skips over most of it, and refuses anything that could break out of its envelope.
            try:
                if not payload.isascii():
                    payload.decode()
                chunk = _decode_chunk(payload)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
                self.error = UpstreamMalformed(f"the provider sent an event that is not a chat chunk: {exc}")
                break
            choices = chunk.choices
            if chunk.error is not None:
                self.error = error_within(told_in(payload))
                break
            if choices:
                self._has_answer = True
                if choices[0].finish_reason is not None:
                    self.finish_reason = choices[0].finish_reason
            if chunk.usage is not None:
                self.usage = _usage(chunk.usage)
                if self._hide_usage and not choices:
                    continue
            # Leading and trailing white space is no part of the entry: both sides count credit in its bytes.
            entries.append(payload.strip())
        self.units += len(entries)
        return entries

    def end(self) -> list[bytes]:
        """The body is over: without the terminal event the answer is truncated, whatever was received."""
        if self.is_finished or self.error is not None:
            return []
        try:
            self._splitter.eof()
        except EventTooLarge as exc:  # events came before it in the last piece
            self.error = UpstreamMalformed(str(exc))
        else:
            self.error = UpstreamTruncated()
        return []


class CompletionReader:
    """Reads one answer that is not streamed: a single JSON object, kept to the letter as one entry."""

    __slots__ = ("_chunks", "_max_size", "_size", "error", "finish_reason", "is_finished", "units", "usage")
    content_type = b"application/json"

    def __init__(self, *, max_size: int) -> None:
        self._chunks: list[bytes] = []
        self._max_size = max_size
        self._size = 0
        self.units = 0
        self.is_finished = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.error: UpstreamError | None = None

    def receive(self, chunks: Sequence[bytes]) -> list[bytes]:
        self._chunks += chunks
        self._size += sum(map(len, chunks))
        if self._size > self._max_size:
            self._chunks.clear()
            self.error = UpstreamMalformed(f"the provider's answer is larger than {self._max_size} bytes")
        return []

    def end(self) -> list[bytes]:
        """The body is over: return it as an entry where it is a completion, else set `error`."""
        if self.error is not None:
            return []
        body = b"".join(self._chunks).strip()
        try:
            body.decode()
            completion = _decode_chunk(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            self.error = UpstreamMalformed(f"the provider's answer is not a chat completion: {exc}")
            return []
        if completion.error is not None:
            self.error = error_within(told_in(body))
            return []
        if completion.usage is not None:
            self.usage = _usage(completion.usage)
        if completion.choices:
            self.finish_reason = completion.choices[0].finish_reason
        self.units = 1
        self.is_finished = True
        return [body]


def _usage(usage: _Usage) -> Usage:
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        cached_tokens=_detail(usage.prompt_tokens_details, "cached_tokens"),
        reasoning_tokens=_detail(usage.completion_tokens_details, "reasoning_tokens"),
    )


def _detail(details: object, name: str) -> int:
    """Read how the tokens divide where a provider says it as OpenAI does; an answer is not malformed for it."""
    value = details.get(name) if isinstance(details, dict) else None
    return value if type(value) is int else 0
