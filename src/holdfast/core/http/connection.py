"""What the HTTP/1.1 and the HTTP/2 client connection have in common: events, calls, and the rules for requests.

One I/O shell drives either: it calls `receive_data`, acts on the events in order, and then writes
`data_to_send()`. The peer's faults are events; the caller's misuse raises `HttpMisuse`.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import ClassVar, Final, Protocol, TypeAlias

from msgspec import Struct

from holdfast.core.http.request import Headers


class HttpMisuse(RuntimeError):
    """The caller did what the connection's state or HTTP does not allow; the connection is unchanged."""


class ErrorCode(IntEnum):
    """The error codes of RFC 9113 section 7. HTTP/1.1 connections report their failures by the nearest ones."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def code_name(code: int) -> str:
    """Return an error code's name in lower case, for logs and statistics; `code_N` for an unknown one."""
    try:
        return ErrorCode(code).name.lower()
    except ValueError:
        return f"code_{code}"


class ResponseReceived(Struct, gc=False):
    """The head of the final response has come. Informational (1xx) responses are dropped."""

    stream_id: int
    status: int
    headers: Headers


class DataReceived(Struct, gc=False):
    """The body bytes that one call of `receive_data` brought for one h2 stream; no chunk is empty."""

    stream_id: int
    chunks: list[bytes]


class ResponseEnded(Struct, gc=False):
    """The response is complete, and has the length that it declared. The slot is free."""

    stream_id: int
    trailers: Headers


class StreamFailed(Struct, gc=False):
    """The response will not be completed. The slot is free.

    `processed` is False only if the request was certainly not processed, so that any request may be sent again:
    the RFC guarantees it, or `data_to_send` has not returned a byte of it.

    `was_kept_alive`: the connection had carried a request before, and no byte of this answer came. Over HTTP/1.1
    one cannot tell whether the peer closed it as idle before the request arrived (RFC 9112 section 9.3.1); an
    HTTP/2 peer says so by GOAWAY.

    `is_malformed`: the peer's answer breaks the rules of HTTP, so that another one to the same request would too.
    """

    stream_id: int
    code: int
    reason: str
    processed: bool
    was_kept_alive: bool = False
    is_malformed: bool = False


class GoAwayReceived(Struct, gc=False):
    """The peer takes no new requests here. `StreamFailed` follows for all above `last_stream_id`."""

    last_stream_id: int
    code: int
    debug: bytes


class SettingsChanged(Struct, gc=False):
    """The peer's SETTINGS were applied. The first such event shows that the peer speaks HTTP/2."""

    max_concurrent_streams: int
    initial_window: int


class PongReceived(Struct, gc=False):
    """The peer has answered a `send_ping`."""

    payload: bytes


class ConnectionFailed(Struct, gc=False):
    """The peer broke the protocol or closed the connection. Write `data_to_send()`, then close the socket.

    It is always the last event, after a `StreamFailed` for each h2 stream that was open.
    """

    code: int
    reason: str


Event: TypeAlias = (
    ResponseReceived
    | DataReceived
    | ResponseEnded
    | StreamFailed
    | GoAwayReceived
    | SettingsChanged
    | PongReceived
    | ConnectionFailed
)


class Windows(Struct, frozen=True, gc=False):
    """Flow-control windows in bytes, for statistics: how much the peer may still send, and how much we may."""

    receive: int
    send: int


class HttpConnection(Protocol):
    """A client connection without I/O; implemented by `Http1Connection` and `Http2Connection`."""

    #: The protocol's ALPN name (RFC 7301).
    alpn: ClassVar[str]

    @property
    def is_established(self) -> bool:
        """Whether the peer has shown that it speaks this protocol. HTTP/1.1 has no such sign: always true."""

    @property
    def is_usable(self) -> bool:
        """Whether new requests may be sent, now or when a slot comes free.

        The shell closes a connection that is not usable and has no open h2 stream.
        """

    @property
    def is_closed(self) -> bool:
        """Whether the connection failed or was closed: it takes no more bytes and reports no more events."""

    @property
    def can_ping(self) -> bool:
        """Whether `send_ping` may be called."""

    @property
    def open_streams(self) -> int:
        """How many requests have neither ended nor failed."""

    @property
    def available_streams(self) -> int:
        """How many requests may be sent now."""

    @property
    def keep_alive_timeout(self) -> float | None:
        """For how many seconds the peer keeps an idle connection; None if its last answer did not say."""

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the network. Any split of the same bytes gives the same events, but for joined DATA."""

    def receive_eof(self) -> list[Event]:
        """Take the peer's end of the connection, or its loss."""

    def data_to_send(self) -> bytes:
        """Return the bytes to write, each once; b"" if there are none."""

    def send_request(  # one parameter per part of an HTTP request
        self, method: bytes, scheme: bytes, authority: bytes, path: bytes, headers: Headers, body: bytes = b""
    ) -> int:
        """Send a request with its whole body and return its stream id.

        The connection sets `host`, `content-length` and the fields that belong to one connection; those in
        `headers` are dropped.

        Raises:
            HttpMisuse: no stream is available, or a part of the request cannot be sent in HTTP.
        """

    def reset_stream(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        """Give up a request. Its slot is free at once, and no event of it follows. No effect after its end."""

    def grant(self, stream_id: int, n: int) -> None:
        """Let the peer send `n` more bytes, which the application has consumed. No effect after the end."""

    def send_ping(self, payload: bytes) -> None:
        """Send a PING of 8 bytes; the peer's answer is a `PongReceived` with the same payload."""

    def send_goaway(self, code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        """Stop sending requests; those that are open go on."""

    def close(self, code: int = ErrorCode.NO_ERROR) -> list[Event]:
        """End the connection at once, and return `StreamFailed` for each open h2 stream."""

    def windows(self) -> Windows:
        """Return the connection's windows; 0 where the protocol has none."""

    def stream_windows(self, stream_id: int) -> Windows:
        """Return an h2 stream's windows; 0 where the protocol has none or the stream has ended."""


# -- the rules for requests ------------------------------------------------------------------------------

# RFC 9110 section 5.6.2. RFC 9113 section 8.2: "Field names MUST be converted to lowercase when constructing an
# HTTP/2 message."
_is_token: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
# RFC 9110 section 5.5: no control characters, so no CR, LF or NUL, and no white space at the ends.
_is_value: Final = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?").fullmatch
# RFC 3986 section 3.2 without the user information, which RFC 9113 section 8.3.1 forbids.
_is_authority: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]+").fullmatch
# RFC 9112 section 3.2.1 and 3.2.4 (OPTIONS *); a fragment is never sent.
_is_path: Final = re.compile(rb"/[!\"$-~]*|\*").fullmatch

#: RFC 9113 section 8.2.2 and RFC 9110 section 7.6.1: these belong to one connection, and we choose them.
CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)
#: What the connection sets itself, or drops.
OWN_FIELDS: Final = CONNECTION_FIELDS | {b"host", b"content-length"}
_WITH_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})


def check_request_target(method: bytes, scheme: bytes, authority: bytes, path: bytes) -> None:
    """Raise `HttpMisuse` unless all of these are valid in a request."""
    if not _is_token(method) or method == b"CONNECT":
        raise HttpMisuse(f"{method!r} is not a method that can be sent here")
    if scheme not in (b"http", b"https"):
        raise HttpMisuse(f"the scheme is {scheme!r} and should be b'http' or b'https'")
    if not _is_authority(authority):
        raise HttpMisuse(f"{authority!r} is not a host with an optional port")
    if not _is_path(path):
        raise HttpMisuse("the path should start with '/' and have visible ASCII characters only")


def request_fields(method: bytes, headers: Headers, body: bytes) -> Headers:
    """Check and lower-case the header fields of a request and add its content-length.

    Raises `HttpMisuse`, which names the field but never shows its value: that may be a secret.
    """
    fields: Headers = []
    for name, value in headers:
        if not _is_token(name):
            raise HttpMisuse(f"{name!r} is not the name of a header field")
        name = name.lower()
        if name in OWN_FIELDS:
            continue
        if not _is_value(value):
            raise HttpMisuse(
                f"the value of header field {name.decode()!r} has a control character or white space at an end"
            )
        fields.append((name, value))
    if body or method in _WITH_CONTENT:
        fields.append((b"content-length", b"%d" % len(body)))
    return fields
