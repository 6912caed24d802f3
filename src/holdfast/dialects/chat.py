"""OpenAI-compatible chat completions, `POST /v1/chat/completions`.

Entries of a streamed answer are the provider's chunks to the letter: they are checked, not encoded again. An
answer that is not streamed is one entry, the completion. Its reference is OpenAI's "Create chat completion".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from holdfast.core.entries import EndBody
from holdfast.core.http.request import Headers, HttpRequest
from holdfast.core.json_object import Members
from holdfast.core.sse import write_entries, write_event
from holdfast.dialects import chat_requests as requests
from holdfast.dialects.ask import Ask, RateLeft
from holdfast.dialects.chat_answers import CompletionReader, StreamReader
from holdfast.dialects.chat_errors import told_in
from holdfast.dialects.chat_judgement import judged
from holdfast.dialects.dialect import AnswerReader, header_text
from holdfast.dialects.failure import end_error, end_http_status
from holdfast.errors import HoldfastError, UpstreamError, UpstreamStatus

_DONE = b"[DONE]"


class ChatOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`options` of a provider with `api = "chat"`."""

    stream_usage: Annotated[
        bool, msgspec.Meta(description="Ask for usage on every stream (`stream_options.include_usage`).")
    ] = True
    requires_finish_reason: Annotated[
        bool,
        msgspec.Meta(
            description="A streamed answer that ends without a `finish_reason` is `incomplete`. Switch it off for "
            "a provider that never sends one."
        ),
    ] = True


class ChatFraming:
    """Chat completions as Server-Sent Events, as OpenAI's SDKs read them.

    `[DONE]` follows a completed answer, an `error` object any other. Each event carries the id `<epoch>-<number>`.
    """

    __slots__ = ()
    starts_at_once = False

    def entry(self, stream: bytes, epoch: int, seq: int, payload: bytes) -> bytes:
        return write_entries(epoch, seq, (payload,))

    def entries(self, stream: bytes, epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
        return write_entries(epoch, first, payloads)

    def end(self, stream: bytes, epoch: int, seq: int, payload: bytes, end: EndBody) -> bytes:
        id_ = b"%d-%d" % (epoch, seq)
        if end.status == "completed":
            return write_event(b"[DONE]", id=id_)
        return write_event(error_body(end_error(end), end_http_status(end)), id=id_)

    def failure(self, error: HoldfastError) -> bytes | None:
        return write_event(error_body(error, error.http_status))


def error_body(error: HoldfastError, status: int) -> bytes:
    """Write an error in the shape of OpenAI's API, so that its SDKs read it: the provider's code is its `code`."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "api_error"
    detail = {
        "message": error.message,
        "type": error.provider_type or kind,
        "code": error.provider_code or error.code,
        "param": error.param,
    }
    if error.provider_code is not None:
        detail["holdfast_code"] = error.code
    if error.provider_request_id is not None:
        detail["provider_request_id"] = error.provider_request_id
    return msgspec.json.encode({"error": detail})


class ChatDialect:
    """The dialect `chat`."""

    name = "chat"
    framing = ChatFraming()

    def parse(self, raw: bytes | str, *, stream: bool | None = None, found: Members | None = None) -> Ask:
        return requests.read_request(self.name, raw, stream=stream, found=found)

    def least_text(self, raw: bytes) -> int:
        return requests.least_text(raw)

    def prompt_of(self, ask: Ask) -> object:
        return requests.prompt_of(ask)

    def error_body(self, error: HoldfastError, status: int) -> bytes:
        return error_body(error, status)

    def rate_headers(self, rates: Sequence[RateLeft]) -> Headers:
        return [
            (f"x-ratelimit-{name}-{rate.what}".encode(), value.encode())
            for rate in rates
            for name, value in (
                ("limit", str(rate.limit)),
                ("remaining", str(rate.remaining)),
                ("reset", _duration(rate.reset)),
            )
        ]

    def options(self, raw: Mapping[str, Any]) -> ChatOptions:
        return msgspec.convert(raw, ChatOptions)

    def credentials(self, key: str) -> Headers:
        return [(b"authorization", b"Bearer " + key.encode())]

    def request(self, ask: Ask, model: str, options: ChatOptions, *, path: str, stream_id: str) -> HttpRequest:
        headers = [
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if ask.stream else b"application/json"),
            # Without its prefix: servers exist that refuse an `x-request-id` that is no UUID.
            (b"x-request-id", stream_id.removeprefix("st_").encode()),
        ]
        body = requests.write_request(ask, model, with_usage=options.stream_usage)
        return HttpRequest("POST", f"{path}/chat/completions", headers, body)

    def reader(self, ask: Ask, options: ChatOptions, *, max_entry: int) -> AnswerReader:
        choices, is_strict = ask.bounds.choices, options.requires_finish_reason
        if not ask.stream:
            return CompletionReader(max_size=max_entry, requires_finish_reason=is_strict, choices=choices)
        return StreamReader(
            max_event=max_entry,
            hide_usage=not ask.wants_usage,
            requires_finish_reason=is_strict,
            choices=choices,
        )

    def request_id(self, headers: Headers) -> str | None:
        return header_text(headers, b"x-request-id")

    def status_error(self, status: int, body: bytes, *, retry_after: float | None) -> UpstreamStatus:
        told = told_in(body)
        text = (told and told.message) or f"the provider answered with status {status}"
        return UpstreamStatus(text, status=status, retry_after=retry_after, body=body, told=told)

    def judged(self, error: UpstreamError) -> UpstreamError:
        return judged(error)


def _duration(seconds: float) -> str:
    """Write a duration as OpenAI does: `0s`, `120ms`, `1.5s`, `6m0s`. Rounded up."""
    ms = math.ceil(seconds * 1000)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    text = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{text}" if minutes else text


CHAT = ChatDialect()
