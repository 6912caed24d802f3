"""OpenAI-compatible chat completions: what is sent, and what the bytes that come back mean.

Pure: it turns requests into `HttpRequest`s and response bytes into log entries. Entries are the provider's events
to the letter; they are checked, not re-encoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from holdfast.core.http.request import Headers, HttpRequest
from holdfast.core.session.messages import Usage
from holdfast.core.sse import EventSplitter, EventTooLarge
from holdfast.errors import InvalidRequest, UpstreamError, UpstreamMalformed, UpstreamStatus, UpstreamTruncated

_DONE = b"[DONE]"


class ChatRequest(msgspec.Struct, frozen=True):
    """What the gateway itself needs of a chat request; `body` is all of it, unknown fields included."""

    model: str
    stream: bool
    body: dict[str, Any]
    #: Whether the caller asked for the usage chunk.
    wants_usage: bool
    #: SHA-256 of the request as it came: tells a repetition from another request under the same id.
    digest: bytes
    #: Length of the request as it came, in bytes or characters; an estimate of its tokens is made of it.
    size: int = 0


class _Known(msgspec.Struct):
    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None


def parse_request(raw: bytes | str, *, stream: bool | None = None) -> ChatRequest:
    """Check a chat request and keep it whole. `stream` overrides the request's own field.

    Raises `InvalidRequest` that names the field and what was expected.
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        known = msgspec.convert(body, _Known)
    except msgspec.ValidationError as exc:
        text, _, place = str(exc).partition(" - at `$.")
        place = place.rstrip("`")
        if text.startswith("Object missing required field `"):
            place = text.split("`")[1]
            raise InvalidRequest(f"`{place}` is missing", param=place) from exc
        raise InvalidRequest(f"`{place}`: {text[:1].lower()}{text[1:]}", param=place) from exc
    if not known.messages:
        raise InvalidRequest("`messages` must hold at least one message", param="messages")
    if not known.model:
        raise InvalidRequest("`model` must name a model", param="model")
    streaming = bool(known.stream) if stream is None else stream
    options = known.stream_options or {}
    digest = hashlib.sha256(raw.encode() if isinstance(raw, str) else raw).digest()
    return ChatRequest(known.model, streaming, body, bool(options.get("include_usage")), digest, len(raw))


class Endpoint:
    """How to ask one provider for a completion."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str | None,
        headers: dict[str, str],
        stream_usage: bool,
        requires_finish_reason: bool = True,
    ) -> None:
        self._path = urlsplit(base_url).path.rstrip("/")
        self._stream_usage = stream_usage
        self.requires_finish_reason = requires_finish_reason
        self._headers: Headers = [(b"content-type", b"application/json"), (b"user-agent", b"holdfast")]
        if api_key:
            self._headers.append((b"authorization", b"Bearer " + api_key.encode()))
        self._headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    def completion(self, request: ChatRequest, model: str, *, stream_id: str) -> HttpRequest:
        """Make the request for a completion. `stream_id` lets the provider's logs be matched with ours.

        They get it without its prefix: servers exist that refuse a request whose `x-request-id` is not a UUID.
        """
        body = dict(request.body)
        body["model"] = model
        body["stream"] = request.stream
        if not request.stream:
            body.pop("stream_options", None)
        elif self._stream_usage:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        headers = [
            *self._headers,
            (b"accept", b"text/event-stream" if request.stream else b"application/json"),
            (b"x-request-id", stream_id.removeprefix("st_").encode()),
        ]
        return HttpRequest("POST", f"{self._path}/chat/completions", headers, msgspec.json.encode(body))


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class _ErrorDetail(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail | str | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_error_decoder = msgspec.json.Decoder(_ErrorBody)


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
        "usage",
    )

    def __init__(self, *, max_event: int, hide_usage: bool, requires_finish_reason: bool = True) -> None:
        self._splitter = EventSplitter(max_event=max_event)
        self._hide_usage = hide_usage
        self._requires_finish_reason = requires_finish_reason
        self._has_answer = False
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
                self.error = UpstreamError(_error_text(payload) or "the provider reported an error")
                break
            if choices:
                self._has_answer = True
                if choices[0].finish_reason is not None:
                    self.finish_reason = choices[0].finish_reason
            if chunk.usage is not None:
                self.usage = chunk.usage
                if self._hide_usage and not choices:
                    continue
            # Leading and trailing white space is no part of the entry: both sides count credit in its bytes.
            entries.append(payload.strip())
        return entries

    def end(self) -> None:
        """The body is over: without the terminal event the answer is truncated, whatever was received."""
        if not self.is_finished and self.error is None:
            self.error = UpstreamTruncated()


class CompletionReader:
    """Reads one answer that is not streamed: a single JSON object, kept to the letter as one entry."""

    __slots__ = ("_chunks", "_max_size", "_size", "error", "finish_reason", "is_finished", "usage")

    def __init__(self, *, max_size: int) -> None:
        self._chunks: list[bytes] = []
        self._max_size = max_size
        self._size = 0
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

    def end(self) -> bytes | None:
        """The body is over: return it as an entry where it is a completion, else set `error`."""
        body = b"".join(self._chunks).strip()
        try:
            body.decode()
            completion = _decode_chunk(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            self.error = UpstreamMalformed(f"the provider's answer is not a chat completion: {exc}")
            return None
        if completion.error is not None:
            self.error = UpstreamError(_error_text(body) or "the provider reported an error")
            return None
        self.usage = completion.usage
        if completion.choices:
            self.finish_reason = completion.choices[0].finish_reason
        self.is_finished = True
        return body


def status_error(status: int, body: bytes, *, retry_after: float | None) -> UpstreamStatus:
    """Make the error for an answer with an error status; the provider's own message is kept."""
    text = _error_text(body) or f"the provider answered with status {status}"
    return UpstreamStatus(text, status=status, retry_after=retry_after, body=body)


def _error_text(body: bytes) -> str | None:
    try:
        error = _error_decoder.decode(body).error
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if isinstance(error, str):
        return error[:1000]
    return error.message[:1000] if error is not None and error.message else None
