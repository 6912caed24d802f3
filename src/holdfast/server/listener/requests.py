"""HTTP/1.1 requests out of bytes, without I/O: what httptools makes of them, bounded and judged for ambiguity.

A request comes as its head, its body in pieces, and its end, in order. What its path and its credential mean is
not decided here.
"""

from __future__ import annotations

from typing import TypeAlias
from urllib.parse import parse_qsl, unquote

import httptools
import msgspec

from holdfast.core.http.request import Headers
from holdfast.core.websocket.handshake import is_upgrade_request
from holdfast.errors import HoldfastError, InternalError, InvalidRequest
from holdfast.server.listener.exchange import Request

#: Largest request head: request line and all headers.
MAX_HEAD = 32 * 1024
#: Most header fields of a request. No client and no row of proxies comes near, and each takes far more memory than
#: its bytes.
MAX_FIELDS = 128
#: About how many bytes of memory a request takes beside those of its head, and each of its fields.
_REQUEST_SIZE = 512
_FIELD_SIZE = 128
#: Most parameters that one query may have.
_MAX_PARAMETERS = 100
#: A chunked body may take so many bytes more than twice its size: chunk sizes, their extensions, and line ends. No
#: more than that may come at a stretch, as trailers do, of which a parser keeps each until it is whole.
MAX_OVERHEAD = 64 * 1024
#: How many bytes of a known length, and of what may be many requests or chunks, are parsed at a time.
BODY_STEP = 64 * 1024
STEP = 4 * 1024


class Head(msgspec.Struct, frozen=True):
    """A head. `length` is that of the body, None where it comes in chunks; `size` is about its memory."""

    request: Request
    size: int
    length: int | None
    keep_alive: bool
    expects_continue: bool

    @property
    def has_body(self) -> bool:
        return self.length != 0


class Body(msgspec.Struct, frozen=True):
    """A piece of the body of the last head."""

    data: bytes


class End(msgspec.Struct, frozen=True):
    """The request of the last head is complete."""


class Upgrade(msgspec.Struct, frozen=True):
    """A request for a WebSocket, as large as a `Head` is, and the bytes behind it, which are no HTTP any more."""

    request: Request
    size: int
    rest: bytes


class Refused(msgspec.Struct, frozen=True):
    """What came cannot be a request, and nothing behind it can be read. `path` is None where it is not known."""

    status: int
    error: HoldfastError
    path: str | None = None


Event: TypeAlias = Head | Body | End | Upgrade | Refused


class RequestParser:
    """Takes the bytes of one connection. Behind `Upgrade` or `Refused`, no more must be passed to it.

    Call `close` when it is done with: what it has taken would be kept until the next collection.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._events: list[Event] = []
        self._url = b""
        self._headers: Headers = []
        #: Bytes of the head or of the trailers so far.
        self.head_size = 0
        # About how much memory the request takes whose head has come.
        self._size = 0
        self.is_in_body = False
        # Bytes of the body that are yet to come, None where it is in chunks.
        self._left: int | None = None
        # Bytes of a chunked body, on the wire and without what frames them.
        self._raw_size = 0
        self._body_size = 0
        # Bytes since the last one of a chunked body.
        self._bare_size = 0

    @property
    def size(self) -> int:
        """About how much memory is taken by what has come of a head, or of the trailers of a body."""
        if self.is_in_body:
            return self._bare_size
        return self.head_size and self.head_size + _FIELD_SIZE * len(self._headers)

    @property
    def is_between(self) -> bool:
        """Whether no request has begun."""
        return not self.is_in_body and self.head_size == 0

    @property
    def step(self) -> int:
        """How many bytes to pass at a time, so that no step takes long."""
        return min(max(self._left or 0, STEP), BODY_STEP) if self.is_in_body else STEP

    def close(self) -> None:
        """Take no more bytes. httptools' parser has the methods that it calls, and with them this object."""
        del self._parser

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes, not many more than `step`, and return what they complete."""
        while data:
            if not self.is_in_body:
                self.head_size += len(data)
            elif self._left is None:
                self._raw_size += len(data)
                self._bare_size += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                rest = data[exc.args[0] :]
                if is_upgrade_request(self._headers):
                    self._events.append(self._upgrade(rest))
                    break
                # RFC 9110 section 7.8: any other upgrade (`h2c`) is an offer, not taken here. The parser stops
                # behind its head, so it gets the request again without it, and goes on to the body.
                data = self._head_without_upgrade() + rest
                self._parser = httptools.HttpRequestParser(self)
                self.is_in_body = False
                self.head_size = 0
                continue
            except httptools.HttpParserError as exc:
                self._events.append(self._refusal(exc))
            else:
                if not self.is_in_body and self.head_size > MAX_HEAD:
                    self._events.append(Refused(431, _head_too_large(), self._path()))
                elif self.is_in_body and (
                    self._raw_size > 2 * self._body_size + MAX_OVERHEAD or self._bare_size > MAX_OVERHEAD
                ):
                    error = InvalidRequest("the body's chunks are framed by more bytes than they carry")
                    self._events.append(Refused(400, error, self._path()))
            break
        events, self._events = self._events, []
        return events

    # -- httptools callbacks --

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_in_body:
            # A trailer field. It is no header field and must not be merged with them, RFC 9110 section 6.5.1.
            self.head_size += len(name) + len(value) + 4
            if self.head_size > MAX_HEAD:
                raise _RefusedError(431, InvalidRequest(f"the trailer section is larger than {MAX_HEAD} bytes"))
            return
        if len(self._headers) == MAX_FIELDS:
            raise _RefusedError(431, InvalidRequest(f"the request has more than {MAX_FIELDS} header fields"))
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        self.is_in_body = True
        self.head_size = self._raw_size = self._body_size = self._bare_size = 0
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)
        if size > MAX_HEAD:
            raise _RefusedError(431, _head_too_large())
        self._size = _REQUEST_SIZE + size + _FIELD_SIZE * len(self._headers)
        if parser.get_method() == b"CONNECT":
            raise _RefusedError(400, InvalidRequest("CONNECT is for proxies, and this is none"))
        self._check_framing(parser.get_http_version())
        is_chunked = any(name == b"transfer-encoding" for name, _ in self._headers)
        self._left = None if is_chunked else int(self._header(b"content-length") or b"0")
        if parser.should_upgrade():
            return  # the parser stops here; `receive_data` decides how it goes on
        # RFC 9110 section 10.1.1: an expectation in an HTTP/1.0 request is ignored.
        expects = parser.get_http_version() == "1.1" and self._header(b"expect").lower() == b"100-continue"
        self._events.append(Head(self._request(), self._size, self._left, parser.should_keep_alive(), expects))

    def on_body(self, body: bytes) -> None:
        if self._left is None:
            self._body_size += len(body)
            self._bare_size = 0
        else:
            self._left -= len(body)
        self._events.append(Body(body))

    def on_message_complete(self) -> None:
        self.is_in_body = False
        self.head_size = 0
        if not self._parser.should_upgrade():
            self._events.append(End())

    # -- judging --

    def _header(self, name: bytes) -> bytes:
        return next((value for key, value in self._headers if key == name), b"")

    def _check_framing(self, version: str) -> None:
        """Refuse a request whose end or host is ambiguous: a proxy might have read it differently."""
        if version not in ("1.0", "1.1"):
            raise _RefusedError(505, InvalidRequest(f"HTTP/{version} is not spoken here; this is HTTP/1.1"))
        hosts = sum(name == b"host" for name, _ in self._headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):  # RFC 9112 section 3.2
            raise _RefusedError(400, InvalidRequest(f"the request has {hosts} Host headers and should have one"))
        codings = [value.lower() for name, value in self._headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == "1.0"):  # RFC 9112 section 6.1
            raise _RefusedError(400, InvalidRequest("the only transfer coding is `chunked`, and only in HTTP/1.1"))
        if self._header(b"content-encoding").lower() not in (b"", b"identity"):
            # A few bytes could stand for gigabytes; no SDK compresses its requests.
            error = InvalidRequest("send the body without content coding", param="content-encoding")
            raise _RefusedError(415, error)

    def _target(self) -> tuple[bytes, bytes]:
        """Return path and query."""
        if self._url[:1] == b"/":
            path, _, query = self._url.partition(b"?")
            return path, query
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserError as exc:
            raise _RefusedError(400, InvalidRequest("the request target is not a valid URL")) from exc
        # RFC 9112 section 3.2.2: the Host of a target in absolute form is that of the target. Whoever has judged
        # the other one before us has judged another request.
        scheme, authority = self._url.partition(b"://")[0].lower(), self._url.partition(b"://")[2]
        for end in b"/", b"?", b"#":
            authority = authority.partition(end)[0]
        if scheme not in (b"http", b"https") or authority.lower() != self._header(b"host").lower():
            raise _RefusedError(400, InvalidRequest("the request target is at another scheme or host than Host"))
        return url.path or b"/", url.query or b""

    def _request(self) -> Request:
        raw_path, raw_query = self._target()
        try:
            query = parse_qsl(raw_query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
        except ValueError as exc:
            raise _RefusedError(
                400, InvalidRequest(f"the query has more than {_MAX_PARAMETERS} parameters")
            ) from exc
        return Request(
            method=self._parser.get_method().decode("ascii"),
            path=unquote(raw_path.decode("latin-1")),
            query=dict(query),
            headers=self._headers,
            body=b"",
            http_version=self._parser.get_http_version(),
        )

    def _head_without_upgrade(self) -> bytes:
        parser = self._parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _upgrade(self, rest: bytes) -> Upgrade | Refused:
        try:
            return Upgrade(self._request(), self._size, rest)
        except _RefusedError as exc:
            return Refused(exc.status, exc.error, self._path())

    def _refusal(self, exc: httptools.HttpParserError) -> Refused:
        cause = exc.__context__
        if isinstance(cause, _RefusedError):
            return Refused(cause.status, cause.error, self._path())
        if isinstance(exc, httptools.HttpParserCallbackError):
            raise InternalError from cause
        return Refused(400, InvalidRequest(f"not a valid HTTP/1.1 request: {exc}"), self._path())

    def _path(self) -> str | None:
        """Return the path of the request that is being received; None while it is incomplete."""
        if not self._url or not (self._headers or self.is_in_body):
            return None
        return unquote(self._url.partition(b"?")[0].decode("latin-1"))


def _head_too_large() -> InvalidRequest:
    return InvalidRequest(f"the request head is larger than {MAX_HEAD} bytes")


class _RefusedError(Exception):
    """Carries a refusal out of the parser's callbacks, which cannot answer themselves."""

    def __init__(self, status: int, error: HoldfastError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
