"""The messages of PROTOCOL.md: typed structs, and strict decoding.

Who may send what, and when, is decided by `server.py` and `client.py` beside this file.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec

from holdfast.core.entries import AttemptRecord, EndStatus, ErrorBody, Usage
from holdfast.core.json_object import Members, members
from holdfast.errors import HoldfastError, InvalidMessage, InvalidRequest

SUBPROTOCOL: Final = "holdfast.v1"
VERSION: Final = 1

#: Longest request id, session token, stream id and client name that are accepted, in characters.
MAX_NAME: Final = 256
#: Most streams that one `hello` may resume and one `ack` may name.
MAX_STREAMS_PER_MESSAGE: Final = 1024
#: Largest sequence number: what a JavaScript number holds exactly.
MAX_SEQ: Final = 2**53 - 1
#: Longest `t` of a `ping`, in characters where it is a string.
MAX_PING: Final = 256
#: Of an invalid message, an error quotes so many characters of the fault and of where it is.
_MAX_FAULT: Final = 100
_MAX_PLACE: Final = 100
#: Largest credit that may be outstanding on one stream, in bytes (the bound of an HTTP/2 window).
MAX_CREDIT: Final = 2**31 - 1

StreamStatus = Literal["queued", "running", "ended"]
ResumeStatus = Literal["queued", "running", "ended", "refused"]
StreamsOnGoaway = Literal["move", "stay"]

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
PingText = Annotated[str, msgspec.Meta(max_length=MAX_PING)]
Seq = Annotated[int, msgspec.Meta(ge=-1, le=MAX_SEQ)]
CreditBytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_CREDIT)]


class Message(msgspec.Struct, tag_field="type", omit_defaults=True):
    """Base of all messages. Unknown fields are ignored, so that the protocol can grow."""


# -- from the client -----------------------------------------------------------------------------------


class Resume(msgspec.Struct, omit_defaults=True):
    """One running stream in a `hello`: the client has every entry up to and including `after`."""

    stream: Name
    after: Seq = -1
    epoch: int | None = None
    credit: CreditBytes | None = None


class Hello(Message, tag="hello"):
    version: int
    client: Name | None = None
    session: Name | None = None
    streams: Annotated[list[Resume], msgspec.Meta(max_length=MAX_STREAMS_PER_MESSAGE)] = []


class Create(Message, tag="create"):
    request_id: Name
    request: msgspec.Raw
    credit: CreditBytes | None = None


class Attach(Message, tag="attach"):
    stream: Name
    after: Seq = -1
    epoch: int | None = None
    credit: CreditBytes | None = None


class Detach(Message, tag="detach"):
    stream: Name


class Ack(Message, tag="ack"):
    streams: Annotated[dict[Name, Seq], msgspec.Meta(min_length=1, max_length=MAX_STREAMS_PER_MESSAGE)]


class Credit(Message, tag="credit"):
    stream: Name
    bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_CREDIT)]


class Cancel(Message, tag="cancel"):
    """Names the stream, or the request id where `accepted` has not come yet."""

    stream: Name | None = None
    request_id: Name | None = None


class Ping(Message, tag="ping"):
    t: int | float | PingText | None = None


class Pong(Message, tag="pong"):
    t: int | float | PingText | None = None


# -- from the server -----------------------------------------------------------------------------------


class StreamState(msgspec.Struct, omit_defaults=True):
    """How one stream of a `hello` stands. `next` is the first sequence number that will be sent."""

    stream: Name
    status: ResumeStatus
    epoch: int = 1
    next: int = 0
    error: ErrorBody | None = None


class Heartbeat(msgspec.Struct):
    interval_ms: int
    timeout_ms: int


class Limits(msgspec.Struct):
    max_message: int
    max_streams: int
    log_bytes: int


class Welcome(Message, tag="welcome"):
    version: int
    session: Name
    server: str
    heartbeat: Heartbeat
    limits: Limits
    resumed: bool = False
    streams: list[StreamState] = []


class Accepted(Message, tag="accepted"):
    request_id: Name
    stream: Name
    epoch: int = 1
    duplicate: bool = False
    queue_position: int | None = None


class Queued(Message, tag="queued"):
    """The request waits: in the queue, or `delay_ms` for attempt number `attempt`, since one failed by `code`."""

    stream: str
    position: int
    attempt: int | None = None
    delay_ms: int | None = None
    code: str | None = None


class Attached(Message, tag="attached"):
    stream: str
    status: StreamStatus
    epoch: int = 1
    next: int = 0


class Detached(Message, tag="detached"):
    stream: str


class Event(Message, tag="event"):
    """One entry: `data` is what the provider sent, to the letter."""

    stream: str
    seq: int
    data: msgspec.Raw


class Events(Message, tag="events"):
    """Consecutive entries, the first of which has the number `seq`."""

    stream: str
    seq: int
    data: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


class End(Message, tag="end"):
    stream: str
    seq: int
    status: EndStatus
    finish_reason: str | None = None
    usage: Usage | None = None
    error: ErrorBody | None = None
    attempts: list[AttemptRecord] = []


class Epoch(Message, tag="epoch"):
    """Another process carries the stream on: from here on a reader that resumes states this epoch."""

    stream: str
    epoch: int


class Error(Message, tag="error"):
    code: str
    message: str
    retryable: bool = False
    retry_after: float | None = None
    param: str | None = None
    request_id: str | None = None
    stream: str | None = None


class Goaway(Message, tag="goaway"):
    """Connect again at a random moment of `window_ms` = [from, to].

    Running streams `move` to that connection, or `stay` on this one until they end.
    """

    reason: str
    window_ms: tuple[int, int] = (0, 0)
    streams: StreamsOnGoaway = "move"


ClientMessage = Hello | Create | Attach | Detach | Ack | Credit | Cancel | Ping | Pong
ServerMessage = (
    Welcome | Accepted | Queued | Attached | Detached | Event | Events | End | Epoch | Error | Goaway | Ping | Pong
)

#: Longest message but `create`, in bytes. A `hello` of all the streams that one may have takes less than half of
#: it; decoded, as many small members as fit into a larger one would take many times its size.
MAX_SMALL_MESSAGE: Final = 256 * 1024

_client_decoder = msgspec.json.Decoder(ClientMessage)
_create_decoder = msgspec.json.Decoder(Create)
_server_decoder = msgspec.json.Decoder(ServerMessage)
# A surrogate without its other half (RFC 8259 section 8.2) is in the group; all other escapes match as a whole.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
# What stands before and behind the request of a `create`, each member written as clients write it.
_MEMBER = rb'\s*"(?:type|request_id|credit)"\s*:\s*(?:"[^"\\]{0,256}"|[0-9]{1,10})\s*'
_BEFORE_REQUEST = re.compile(rb'\s*\{(?:%b,){0,4}\s*"request"\s*:\s*(?=\{)' % _MEMBER)
_BEHIND_REQUEST = re.compile(rb"(?<=\})\s*(?:,%b){0,4}\}\s*\Z" % _MEMBER)
# Behind the request there may be so many bytes.
_MAX_BEHIND = 1024
_encoder = msgspec.json.Encoder()


def decode_client_message(text: str | bytes) -> ClientMessage:
    """Decode what a client sent. Raises `InvalidMessage` that names the field and what was expected."""
    if len(text) <= MAX_SMALL_MESSAGE:
        return _decode(_client_decoder, text)  # type: ignore[no-any-return]
    try:
        return _decode(_create_decoder, text)  # type: ignore[no-any-return]
    except InvalidMessage as exc:
        what = f"{exc.message} (only a `create` may have more than {MAX_SMALL_MESSAGE} bytes)"
        raise InvalidMessage(what) from exc


def cut_create(text: bytes) -> tuple[Create, Members] | None:
    """Read a large `create` in one pass: with its request, and the members of that.

    None where it is not written as clients write it, or anything is wrong with it: then it is read as all others
    are. Where the rest is a message with `{}` as its request, and the request an object, the whole is a message.
    """
    before = _BEFORE_REQUEST.match(text)
    behind = _BEHIND_REQUEST.search(text, max(len(text) - _MAX_BEHIND, 0))
    if before is None or behind is None or before.end() >= behind.start():
        return None
    request = text[before.end() : behind.start()]
    try:
        create = _create_decoder.decode(b"%b{}%b" % (before[0], behind[0]))
        found = members(request)
    except (msgspec.DecodeError, UnicodeError, InvalidRequest):
        return None
    return Create(create.request_id, msgspec.Raw(request), create.credit), found


def decode_server_message(text: str | bytes) -> ServerMessage:
    """Decode what a server sent. Raises `InvalidMessage` that names the field and what was expected.

    Where a provider has cut a character in two, each of its halves becomes U+FFFD: no decoder here takes a half.
    """
    try:
        return _decode(_server_decoder, text)  # type: ignore[no-any-return]
    except InvalidMessage:
        raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        whole = _ESCAPE.sub(lambda found: b"\\ufffd" if found[1] else found[0], raw)
        if whole == raw:
            raise
        return _decode(_server_decoder, whole)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.json.Decoder[Any], text: str | bytes) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        # A ValidationError is a DecodeError. msgspec's text says what, and `$.path` says where.
        raise InvalidMessage(f"invalid message: {_shortened(str(exc))}") from exc


def _shortened(fault: str) -> str:
    """Leave out the middle of what may quote a client's whole message; where the fault is stands at the end."""
    if len(fault) <= _MAX_FAULT + _MAX_PLACE:
        return fault
    return f"{fault[:_MAX_FAULT]}...{fault[-_MAX_PLACE:]}"


def encode(message: Message | msgspec.Struct) -> bytes:
    return _encoder.encode(message)


def error_message(error: HoldfastError, *, request_id: str | None = None, stream: str | None = None) -> Error:
    return Error(
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        retry_after=error.retry_after,
        param=error.param,
        request_id=request_id,
        stream=stream,
    )
