"""The answers of chat completions: the readers of one that is streamed, and of one that is not.

What an answer is, its first bytes say, and not its content type: that is often wrong. A provider that answers in
the other form than was asked for is understood. An answer in which every choice has its finish reason is complete,
however it ends. What is not needed for splicing is read leniently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from holdfast.core.entries import Usage
from holdfast.core.sse import EventSplitter, EventTooLarge
from holdfast.dialects.beginning import Beginning
from holdfast.dialects.chat_errors import error_in, not_an_answer
from holdfast.dialects.chat_forms import Collector, completion_as_chunk
from holdfast.dialects.chat_lenient import (
    FAULTS,
    MAX_CHOICES,
    Choice,
    Chunk,
    ChunkOfSeveral,
    NumberedChoice,
    chunk_of,
    decode_leniently,
    decoded,
    reason_of,
    shows_something,
    usage_of,
)
from holdfast.errors import UpstreamError, UpstreamMalformed, UpstreamTruncated

_DONE: Final = b"[DONE]"
#: Most that is held back of an answer without any content.
_MAX_HELD: Final = 64 * 1024
_MAX_HELD_ENTRIES: Final = 64
#: Heartbeats that some servers send as events: a word, and no JSON.
_HEARTBEATS: Final = frozenset({b"ping", b"keepalive", b"keep-alive", b"heartbeat"})
_is_word: Final = re.compile(rb"[A-Za-z][\w .,:!-]{0,99}", re.ASCII).fullmatch

_decode_chunk: Callable[[bytes], Chunk] = msgspec.json.Decoder(Chunk).decode
_decode_several: Callable[[bytes], Chunk] = msgspec.json.Decoder(ChunkOfSeveral).decode


class StreamReader:
    """Reads one streamed answer, an event stream.

    `receive` gives entries. After it, `is_finished` says that the terminal event came, and `error` what was wrong.

    What shows nothing yet, such as the role alone, is held back until there is something to show: until then the
    request can be answered by another provider. A whole completion in JSON is given as one chunk.

    Args:
        max_event: the most bytes of an event.
        hide_usage: whether a chunk that only says the usage is no entry.
        requires_finish_reason: whether an answer without one is truncated.
        choices: how many were asked for.
    """

    __slots__ = (
        "_beginning",
        "_choices",
        "_decode",
        "_done",
        "_heard",
        "_held",
        "_hide_usage",
        "_is_leading",
        "_is_several",
        "_max_event",
        "_open",
        "_requires_finish_reason",
        "_splitter",
        "_whole",
        "error",
        "finish_reason",
        "is_answered",
        "is_finished",
        "units",
        "usage",
    )

    def __init__(
        self, *, max_event: int, hide_usage: bool, requires_finish_reason: bool = True, choices: int = 1
    ) -> None:
        self._max_event = max_event
        self._hide_usage = hide_usage
        self._requires_finish_reason = requires_finish_reason
        self._choices = choices
        self._is_several = choices > 1
        self._decode = _decode_several if self._is_several else _decode_chunk
        self._beginning = Beginning()
        # One of them, once it is known what the body is.
        self._splitter: EventSplitter | None = None
        self._whole: CompletionReader | None = None
        # The choices that have begun: those without a finish reason, and those with one.
        self._open: set[int] = set()
        self._done: set[int] = set()
        # Nothing has come that a reader could be shown.
        self._is_leading = True
        self._held: list[bytes] = []
        # What a provider has said instead of an answer.
        self._heard = ""
        self.units = 0
        self.is_answered = False
        self.is_finished = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.error: UpstreamError | None = None

    def begin(self, content_type: bytes) -> None:
        self._beginning.begin(content_type)

    def receive(self, chunks: Sequence[bytes]) -> list[bytes]:
        """Take body bytes, return the entries that they complete. What came before an error is returned too."""
        if self.is_finished or self.error is not None:
            return []
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        splitter = self._splitter
        if splitter is None:
            body = self._receive_beginning(body)
            splitter = self._splitter
            if splitter is None:
                return []
        try:
            payloads = splitter.feed(body)
        except EventTooLarge as exc:
            self._fail(UpstreamMalformed.too_large(str(exc)))
            return []
        opened, is_leading = self._open, self._is_leading
        names = splitter.names
        position, name = 0, b""
        entries: list[bytes] = []
        for payload in payloads:
            if names:
                name = names[position]
                position += 1
            # Entries are spliced into messages as they are, so each must be one JSON object in valid UTF-8.
            # The decoder skips over most of it, and refuses anything that could break out of its envelope.
            try:
                if not payload.isascii():
                    payload.decode()
                chunk = self._decode(payload)
            except FAULTS as exc:
                found = self._read_odd(payload, name, exc)
                if self.is_finished or self.error is not None:
                    break
                if found is None:
                    continue
                chunk, payload = found
            choices = chunk.choices
            if not choices or chunk.error is not None or (names and name == b"error"):
                self.error = error_in(payload, name)
                if self.error is not None:
                    break
            if choices and (choices[0].finish_reason or self._is_several or not opened):
                self._note(choices)
            if chunk.usage is not None:
                self.usage = usage_of(chunk.usage)
                if self._hide_usage and not choices:
                    continue
            if is_leading and self._is_leading:
                self._is_leading = not (self._done or shows_something(payload))
            # Leading and trailing white space is no part of the entry: both sides count credit in its bytes.
            entries.append(payload.strip())
        if is_leading:
            entries = self._released(entries)
        self.units += len(entries)
        return entries

    def end(self) -> list[bytes]:
        """The body is over, or what is missing is not waited for.

        The answer is complete where each of its choices is; else, without the terminal event, it is truncated.
        """
        if self.is_finished or self.error is not None:
            return []
        if self._whole is not None:
            return self._end_whole(self._whole)
        entries: list[bytes] = []
        if self._splitter is not None:
            try:
                rest = self._splitter.eof()
            except EventTooLarge as exc:  # events came before it in the last piece
                self._fail(UpstreamMalformed.too_large(str(exc)))
                return []
            # An event without its blank line may have been cut: it counts where it is whole.
            if rest.strip() == _DONE or _is_whole(rest):
                entries = self.receive([b"\n\n"])
        if self.is_finished or self.error is not None:
            return entries
        if self._done and not self._open:
            self.is_finished = True
        else:
            self.error = self._truncated()
        return entries

    # -- events --------------------------------------------------------------------------------------------

    def _released(self, entries: list[bytes]) -> list[bytes]:
        """Hold back what shows nothing, in bounds; return what may be seen."""
        self._held += entries
        if self._is_leading and not self.is_finished:
            if self.error is not None:
                self._held.clear()
            if len(self._held) <= _MAX_HELD_ENTRIES and sum(map(len, self._held)) <= _MAX_HELD:
                return []
            self._is_leading = False
        held, self._held = self._held, []
        return held

    def _note(self, choices: Sequence[Choice]) -> None:
        """Keep account of which choices have begun, and which have ended."""
        for choice in choices if self._is_several else choices[:1]:
            index = choice.index if isinstance(choice, NumberedChoice) and self._is_several else 0
            reason = reason_of(choice.finish_reason or "")
            if reason is not None and (index in self._open or len(self._open) + len(self._done) < MAX_CHOICES):
                self._open.discard(index)
                self._done.add(index)
                if index == 0 or self.finish_reason is None:
                    self.finish_reason = reason
            elif index not in self._done and len(self._open) + len(self._done) < MAX_CHOICES:
                self._open.add(index)
        self.is_answered = not self._open and len(self._done) >= self._choices

    def _read_odd(self, payload: bytes, name: bytes, fault: Exception) -> tuple[Chunk, bytes] | None:
        """Read an event that is no chunk as it should be; None where it is no entry, or the answer's end."""
        text = payload.strip()
        if name == b"error":
            self.error = error_in(payload, name)
        elif text == _DONE:
            if self._requires_finish_reason and (self._open or not self._done):
                # Servers exist that stop an answer for a newer request and still say that it is done.
                self.error = UpstreamTruncated("the provider ended the answer without a finish reason")
            else:
                self.is_finished = True
        elif (found := decode_leniently(payload)) is not None:
            return chunk_of(found[0]), found[1]
        elif text and name not in _HEARTBEATS and (self._is_leading or text.lower() not in _HEARTBEATS):
            if not (self._is_leading and _is_word(text)):
                self._fail(UpstreamMalformed(f"the provider sent an event that is not a chat chunk: {fault}"))
            elif not self._heard:
                self._heard = text.decode("ascii")
        return None

    def _fail(self, error: UpstreamError) -> None:
        """End the answer with an error; where every choice is complete, what follows is not worth one."""
        if self.is_answered:
            self.is_finished = True
        else:
            self.error = error

    def _truncated(self) -> UpstreamError:
        if self._is_leading and self._heard:
            return UpstreamTruncated(f"the provider ended without an answer; it said {self._heard!r}")
        error = UpstreamTruncated()
        error.same_endpoint_retry = not self._is_leading
        return error

    # -- what is no event stream ---------------------------------------------------------------------------

    def _receive_beginning(self, body: bytes) -> bytes:
        """Find out what the body is. Returns the bytes of an event stream."""
        if self._whole is None:
            try:
                body = self._beginning.receive(body)
            except UpstreamMalformed as exc:
                self.error = exc
                return b""
            if self._beginning.is_events:
                self._splitter = EventSplitter(max_event=self._max_event)
                return body
            if self._beginning.is_events is None:
                return b""
            self._whole = CompletionReader(max_size=self._max_event, choices=self._choices)
        self._whole.receive([body])
        self.error = self._whole.error
        return b""

    def _end_whole(self, whole: CompletionReader) -> list[bytes]:
        said = whole.end_object()
        self.error = whole.error
        if said is None:
            return []
        if not isinstance(said.get("choices"), list):
            self.error = not_an_answer(said)
            return []
        try:
            entry = completion_as_chunk(said, with_usage=not self._hide_usage)
        except (ValueError, RecursionError) as exc:
            self.error = UpstreamMalformed(f"the provider's answer cannot be written as a chunk: {exc}")
            return []
        self.usage, self.finish_reason = whole.usage, whole.finish_reason
        self.is_finished = True
        self.units = 1
        return [entry]


class CompletionReader:
    """Reads one answer that is not streamed: a single JSON object, kept to the letter as one entry.

    An event stream is collected into one.
    """

    __slots__ = (
        "_beginning",
        "_choices",
        "_chunks",
        "_collector",
        "_events",
        "_max_size",
        "_requires_finish_reason",
        "_size",
        "error",
        "finish_reason",
        "is_answered",
        "is_finished",
        "units",
        "usage",
    )

    def __init__(self, *, max_size: int, requires_finish_reason: bool = True, choices: int = 1) -> None:
        self._beginning = Beginning()
        self._chunks: list[bytes] = []
        self._choices = choices
        self._requires_finish_reason = requires_finish_reason
        self._max_size = max_size
        self._size = 0
        self._events: StreamReader | None = None
        self._collector = Collector()
        self.units = 0
        self.is_answered = False
        self.is_finished = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.error: UpstreamError | None = None

    def begin(self, content_type: bytes) -> None:
        self._beginning.begin(content_type)

    def receive(self, chunks: Sequence[bytes]) -> list[bytes]:
        if self.is_finished or self.error is not None:
            return []
        if self._beginning.is_events is None:
            try:
                chunks = [self._beginning.receive(b"".join(chunks))]
            except UpstreamMalformed as exc:
                self.error = exc
                return []
            if self._beginning.is_events:
                self._events = StreamReader(
                    max_event=self._max_size,
                    hide_usage=False,
                    requires_finish_reason=self._requires_finish_reason,
                    choices=self._choices,
                )
                self._events.begin(b"text/event-stream")
        if self._events is not None:
            return self._collect(self._events, self._events.receive(chunks))
        self._count(sum(map(len, chunks)))
        if self.error is None:
            self._chunks += chunks
        return []

    def end(self) -> list[bytes]:
        """The body is over: return it as an entry where it is a completion, else set `error`."""
        if self.is_finished or self.error is not None:
            return []
        if self._events is not None:
            return self._collect(self._events, self._events.end())
        body = self._end_body()
        self._chunks.clear()
        if body is None:
            return []
        self.units = 1
        self.is_finished = True
        return [body]

    def end_object(self) -> dict[str, Any] | None:
        """End as `end` does, and return the completion decoded; None with `error` set where it is none."""
        body = self._end_body()
        said: dict[str, Any] | None = None if body is None else decoded(body)
        if said is None and self.error is None:
            self.error = UpstreamMalformed.too_large("the provider's answer has too many parts to be streamed")
        return said

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._max_size:
            self._chunks.clear()
            self.error = UpstreamMalformed.too_large(
                f"the provider's answer is larger than {self._max_size} bytes"
            )

    def _end_body(self) -> bytes | None:
        body = b"".join(self._chunks).strip()
        if not body:
            self.error = UpstreamTruncated()
            return None
        try:
            body.decode()
            completion = _decode_chunk(body)
        except FAULTS as exc:
            found = decode_leniently(body)
            if found is None:
                said = decoded(body)  # it may be a list
                self.error = not_an_answer(said) if said is not None else _not_json(exc)
                return None
            completion, body = chunk_of(found[0]), found[1]
        choices = completion.choices
        if completion.error is not None or not choices:
            self.error = error_in(body, b"")
            if self.error is not None:
                return None
        self.usage = None if completion.usage is None else usage_of(completion.usage)
        if choices:
            self.finish_reason = reason_of(choices[0].finish_reason or "")
        return body

    def _collect(self, events: StreamReader, entries: list[bytes]) -> list[bytes]:
        """Take the chunks of an event stream; return the completion once they are all there."""
        for entry in entries:
            self._collector.add(entry)
        self._count(sum(map(len, entries)))
        if self.error is not None:
            # What came in the same read must not count where it would not have been read.
            self.usage = self.finish_reason = None
            return []
        self.error, self.is_answered = events.error, events.is_answered
        self.usage, self.finish_reason, self.units = events.usage, events.finish_reason, events.units
        if self.error is not None or not events.is_finished:
            return []
        try:
            completion = self._collector.completion()
        except (ValueError, RecursionError) as exc:
            self.error = UpstreamMalformed(f"the provider's answer cannot be written as a completion: {exc}")
            return []
        self.is_finished = True
        return [completion]


def _not_json(fault: Exception) -> UpstreamMalformed:
    return UpstreamMalformed(f"the provider's answer is not a chat completion: {fault}")


def _is_whole(payload: bytes) -> bool:
    try:
        _decode_chunk(payload)
    except FAULTS:
        return False
    return True
