"""A second API, as unlike chat completions as possible: it is plugged in from outside and proves the seam.

`PUT /echo/NAME` takes `{"say": ["a", "b"], "to": "model", "at_most": 2, "live": true}` and answers with a line of
JSON for each word, `{"word": "a"}`, and a last one, `{"total": {"heard": 2, "said": 2, "why": "all said"}}`. An
entry of a streamed answer is `[0,"a"]`: it is made anew, and no chunk of the provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from holdfast.core.entries import EndBody, Usage
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.core.json_object import Members, members
from holdfast.core.sse import write_event
from holdfast.dialects.ask import Ask, Bounds, RateLeft
from holdfast.dialects.chat import CHAT
from holdfast.dialects.dialect import AnswerReader, header_text
from holdfast.dialects.table import Dialects
from holdfast.errors import (
    HoldfastError,
    InvalidRequest,
    UpstreamError,
    UpstreamMalformed,
    UpstreamStatus,
    UpstreamTruncated,
)


class EchoOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`options` of a provider with `api = "echo"`."""

    loud: bool = False


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    say: list[str]
    to: str
    at_most: int | None = None
    live: bool = True
    backwards: bool = False


class _Total(msgspec.Struct):
    heard: int
    said: int
    why: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    word: str | None = None
    total: _Total | None = None
    oops: str | None = None


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_line = msgspec.json.Decoder(_Line).decode


class EchoReader:
    """Reads the lines of one answer. One that is not streamed is a single entry, `{"said": ["a", "b"]}`."""

    def __init__(self, *, streamed: bool, max_entry: int) -> None:
        self._streamed = streamed
        self._max_entry = max_entry
        self._rest = b""
        self._words: list[str] = []
        self.is_answered = False
        self.is_finished = False
        self.error: UpstreamError | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.units = 0

    def begin(self, content_type: bytes) -> None:
        if content_type != b"application/x-ndjson":
            self.error = UpstreamMalformed(f"the answer is {content_type!r}, and no echo")

    def receive(self, chunks: Sequence[bytes]) -> list[bytes]:
        *lines, self._rest = (self._rest + b"".join(chunks)).split(b"\n")
        entries: list[bytes] = []
        for line in lines:
            if self.is_finished or self.error is not None:
                break
            entries += self._read(line)
        if len(self._rest) > self._max_entry and self.error is None:
            self.error = UpstreamMalformed(f"a line is longer than {self._max_entry} bytes")
        return entries

    def end(self) -> list[bytes]:
        if not self.is_finished and self.error is None:
            self.error = UpstreamTruncated()
        return []

    def _read(self, text: bytes) -> list[bytes]:
        try:
            line = _decode_line(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            self.error = UpstreamMalformed(f"the provider sent a line that is no echo: {exc}")
            return []
        if line.oops is not None:
            self.error = UpstreamError(line.oops)
        elif line.total is not None:
            self.is_finished = True
            self.finish_reason = line.total.why
            self.usage = Usage(line.total.heard, line.total.said)
            return [] if self._streamed else [msgspec.json.encode({"said": self._words})]
        elif line.word is not None:
            self._words.append(line.word)
            self.units += 1
            return [msgspec.json.encode([self.units - 1, line.word])] if self._streamed else []
        return []


class EchoFraming:
    """Named events: each word is an event `word`, the last one is `said` or `oops`.

    It has no form for a reader who may not read on.
    """

    starts_at_once = True

    def entry(self, stream: bytes, epoch: int, seq: int, payload: bytes) -> bytes:
        return write_event(payload, event=b"word", id=b"%d.%d" % (epoch, seq))

    def entries(self, stream: bytes, epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
        return b"".join(self.entry(stream, epoch, seq, payload) for seq, payload in enumerate(payloads, first))

    def end(self, stream: bytes, epoch: int, seq: int, payload: bytes, end: EndBody) -> bytes:
        if end.status == "completed":
            return write_event(msgspec.json.encode({"why": end.finish_reason}), event=b"said")
        code = end.error.code if end.error is not None else end.status
        return write_event(msgspec.json.encode({"why": code}), event=b"oops")

    def failure(self, error: HoldfastError) -> bytes | None:
        return None


class EchoDialect:
    """The dialect `echo`."""

    name = "echo"
    framing = EchoFraming()

    def parse(self, raw: bytes | str, *, stream: bool | None = None, found: Members | None = None) -> Ask:
        try:
            known = _decode_request(raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise InvalidRequest(f"that is nothing to say: {exc}") from exc
        at_most = known.at_most
        return Ask(
            dialect=self.name,
            model=known.to,
            stream=known.live if stream is None else stream,
            body=raw.encode() if isinstance(raw, str) else raw,
            bounds=Bounds(
                max_output=at_most if at_most is not None and at_most > 0 else None,
                choices=1,
                media=0,
                size=sum(map(len, known.say)),
                output_field="at_most",
                unclear="at_most" if at_most is not None and at_most < 1 else None,
            ),
            wants_usage=False,
        )

    def least_text(self, raw: bytes) -> int:
        return len(raw)

    def prompt_of(self, ask: Ask) -> object:
        return _decode_request(ask.body).say

    def error_body(self, error: HoldfastError, status: int) -> bytes:
        return msgspec.json.encode({"oops": error.code, "why": error.message})

    def rate_headers(self, rates: Sequence[RateLeft]) -> Headers:
        return [(f"echo-left-{rate.what}".encode(), str(rate.remaining).encode()) for rate in rates]

    def options(self, raw: Mapping[str, Any]) -> EchoOptions:
        return msgspec.convert(raw, EchoOptions)

    def credentials(self, key: str) -> Headers:
        return [(b"x-echo-key", key.encode())]

    def request(self, ask: Ask, model: str, options: EchoOptions, *, path: str, stream_id: str) -> HttpRequest:
        body = {**members(ask.body), "to": model.upper() if options.loud else model}
        return HttpRequest("PUT", f"{path}/echo/{stream_id}", [], msgspec.json.encode(body))

    def reader(self, ask: Ask, options: EchoOptions, *, max_entry: int) -> AnswerReader:
        return EchoReader(streamed=ask.stream, max_entry=max_entry)

    def request_id(self, headers: Headers) -> str | None:
        return header_text(headers, b"x-echo-trace")

    def judged(self, error: UpstreamError) -> UpstreamError:
        return error

    def status_error(self, status: int, body: bytes, *, retry_after: float | None) -> UpstreamStatus:
        text = body[:100].decode("ascii", "replace")
        return UpstreamStatus(text, status=status, retry_after=retry_after, body=body)


class EchoByChat:
    """Lets clients of `echo` be answered by a provider of chat completions."""

    def ask(self, ask: Ask) -> Ask:
        said = _decode_request(ask.body)
        if said.backwards:
            raise InvalidRequest("a chat model does not speak backwards", param="backwards")
        body = {
            "model": ask.model,
            "messages": [{"role": "user", "content": " ".join(said.say)}],
            "max_tokens": said.at_most,
        }
        return CHAT.parse(msgspec.json.encode(body), stream=ask.stream)

    def reader(self, ask: Ask, reader: AnswerReader) -> AnswerReader:
        return _ChatAsEcho(reader, streamed=ask.stream)


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class _ChatAsEcho:
    """Reads the answer as chat completions, and writes its entries as those of `echo`."""

    def __init__(self, inner: AnswerReader, *, streamed: bool) -> None:
        self._inner = inner
        self._streamed = streamed
        self.is_answered = False
        self.is_finished = False
        self.error: UpstreamError | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.units = 0

    def begin(self, content_type: bytes) -> None:
        self._inner.begin(content_type)

    def receive(self, chunks: Sequence[bytes]) -> list[bytes]:
        return self._translated(self._inner.receive(chunks))

    def end(self) -> list[bytes]:
        return self._translated(self._inner.end())

    def _translated(self, payloads: list[bytes]) -> list[bytes]:
        inner = self._inner
        entries = [entry for payload in payloads for entry in self._written(payload)]
        self.is_finished, self.error, self.finish_reason = inner.is_finished, inner.error, inner.finish_reason
        self.usage, self.is_answered = inner.usage, inner.is_answered
        return entries

    def _written(self, payload: bytes) -> list[bytes]:
        choices = _decode_chunk(payload).choices
        if not self._streamed:
            words = [choice.message.content for choice in choices if choice.message is not None]
            return [msgspec.json.encode({"said": words})]
        entries = []
        for choice in choices:
            if choice.delta is not None and choice.delta.content:
                entries.append(msgspec.json.encode([self.units, choice.delta.content]))
                self.units += 1
        return entries


ECHO = EchoDialect()

#: What a gateway is given that serves both.
BOTH = Dialects([CHAT, ECHO], {("echo", "chat"): EchoByChat()})
