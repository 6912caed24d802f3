"""The chat-completions request as the simulated provider reads it, and the errors it answers with."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from holdfast_tools.simulate.faults import AnyRequestFault, Milliseconds


class RequestError(Exception):
    """A request that cannot be answered; becomes an error answer in OpenAI's shape."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code


class Simulation(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The extra body field `sim`, which steers one answer.

    `burst` tokens are written together each `interval_ms`; with an interval of 0 the answer is written as fast as
    the connection takes it. The head comes with the first token, after `ttft_ms`, or at once if `early_head`.
    """

    tokens: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 200
    interval_ms: Milliseconds = 20.0
    ttft_ms: Milliseconds = 100.0
    seed: Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)] = 0
    burst: Annotated[int, Meta(ge=1, le=100_000)] = 1
    timestamps: bool = False
    early_head: bool = False
    fault: AnyRequestFault | None = None


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Return the text of the message, whichever way it is written."""
        if isinstance(self.content, list):
            parts = [part.get("text") for part in self.content]
            return " ".join(part for part in parts if isinstance(part, str))
        return self.content or ""


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """The body of `POST /v1/chat/completions`; fields that are not listed are ignored."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    sim: Simulation | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def last_user_text(self) -> str:
        """Return the text of the last user message, or of the last message if no user spoke."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.text()
        return self.messages[-1].text()


#: A prompt that begins so steers the answer by the JSON behind it, as the field `sim` does: many gateways drop
#: fields that they do not know, and none drops the prompt.
STEERING = "sim:"

_decoder = msgspec.json.Decoder(ChatRequest)
_sim_decoder = msgspec.json.Decoder(Simulation)
_PATH = re.compile(r"`\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`|contains unknown field `([^`]+)`")


def decode_request(body: bytes) -> ChatRequest:
    """Decode and check a request body.

    Raises RequestError (400) that names the field, for anything that is not a valid request.
    """
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as exc:
        message = str(exc)
        raise RequestError(f"Invalid request: {message}", param=field_of(message)) from exc
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise RequestError(f"The request body is not valid JSON: {exc}") from exc
    prompt = request.last_user_text() if request.sim is None else ""
    if prompt.startswith(STEERING):
        return msgspec.structs.replace(request, sim=_steering(prompt[len(STEERING) :]))
    return request


def _steering(text: str) -> Simulation:
    try:
        return _sim_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise RequestError(f"Invalid `{STEERING}` in the prompt: {exc}", param="messages") from exc


def field_of(message: str) -> str | None:
    """Return the dotted path of the field that a msgspec validation message speaks of."""
    path = _PATH.search(message)
    where = path.group(1) if path else ""
    missing = _MISSING.search(message)
    if missing:
        field = missing.group(1) or missing.group(2)
        where = f"{where}.{field}" if where else field
    return where or None


def error_body(
    message: str, *, type_: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> bytes:
    """Return an error answer in OpenAI's shape."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def error_type(status: int) -> str:
    """Return the `type` that OpenAI uses for an error status."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
