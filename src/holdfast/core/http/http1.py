"""An HTTP/1.1 client connection (RFC 9112) without I/O, built on `httptools`: one request at a time, keep-alive.

It reports the same events as `http2`, with a new stream id for each request. There is no flow control: a shell
that has no room stops reading from the socket.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from holdfast.core.http.connection import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    HttpMisuse,
    ResponseEnded,
    ResponseReceived,
    StreamFailed,
    Windows,
    check_request_target,
    request_fields,
)
from holdfast.core.http.request import Headers

#: The size of a field beside its name and value, as HTTP/2 counts it (RFC 9113 section 6.5.2).
_FIELD_OVERHEAD: Final = 32
# A list of parameters: `timeout=5, max=100` (RFC 2068 section 19.7.1.1).
_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"(?:^|[,;])[ \t]*timeout[ \t]*=[ \t]*\"?(\d{1,9})", re.IGNORECASE)


class _ResponseFault(Exception):
    """The peer's response cannot be parsed."""


class _ResponseReader:
    """Parses one response, and the informational ones before it. The parser calls the `on_*` methods."""

    __slots__ = (
        "_chunks",
        "_fault",
        "_fields",
        "_fields_size",
        "_head_size",
        "_is_bodiless",
        "_is_interim",
        "_max_head_size",
        "_parser",
        "events",
        "has_head",
        "is_done",
        "is_kept_alive",
        "is_overrun",
        "keep_alive_timeout",
        "stream_id",
        "until_eof",
    )

    def __init__(self, stream_id: int, *, is_head: bool, max_head_size: int) -> None:
        self.stream_id = stream_id
        self.events: list[Event] = []
        self.has_head = False
        self.is_done = False
        self.is_kept_alive = False
        self.is_overrun = False  # bytes came after the end
        self.keep_alive_timeout: float | None = None
        self.until_eof = False
        self._is_bodiless = is_head
        self._is_interim = False
        self._fault = ""
        self._fields: Headers = []
        self._fields_size = 0
        self._head_size = 0
        self._max_head_size = max_head_size
        self._chunks: list[bytes] | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes and return their events. `events` has them also if this raises `_ResponseFault`."""
        assert self._parser is not None  # noqa: S101 - a reader that is done is not fed
        self.events = []
        self._chunks = None  # one list collects all that one read brings
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as exc:
            if not self.is_done:
                raise _ResponseFault(self._fault or f"not HTTP/1.1: {exc}") from exc
            self.is_overrun = True
        if not self.has_head:
            self._head_size += len(data)
            if self._head_size > self._max_head_size:
                raise _ResponseFault("the response's head is too large")
        if self.is_done:
            self.close()
        return self.events

    def close(self) -> None:
        """Take no more bytes."""
        self._parser = None  # it refers to this object's methods: no cycle may remain

    def _refuse(self, reason: str) -> None:
        self._fault = reason
        raise _ResponseFault(reason)

    def on_message_begin(self) -> None:
        if self.is_done:
            self._refuse("bytes after the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields_size += len(name) + len(value) + _FIELD_OVERHEAD
        if self._fields_size > self._max_head_size:
            self._refuse("the response's head is too large")
        self._fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None  # noqa: S101 - it is the caller
        status = parser.get_status_code()
        fields, self._fields = self._fields, []
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._refuse(f"HTTP version {parser.get_http_version()}")
        if status < 100 or status == 101:
            self._refuse(f"status {status}, which nothing asked for")
        if status < 200:
            self._is_interim = True
            return
        self.has_head = True
        self._is_bodiless = self._is_bodiless or status in (204, 304)
        codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
        if codings and codings != [b"chunked"]:
            self._refuse("a transfer coding that the request did not allow")
        self.keep_alive_timeout = _keep_alive_timeout(fields)
        self.until_eof = not (codings or any(name == b"content-length" for name, _ in fields))
        self.events.append(ResponseReceived(self.stream_id, status, fields))
        if self._is_bodiless:
            # The parser would wait for the body that the fields declare (RFC 9112 section 6.3, rule 1).
            self._end(parser)

    def on_body(self, body: bytes) -> None:
        if self.is_done:
            self._refuse("a body where none may be")
        if self._chunks is None:
            self._chunks = [body]
            self.events.append(DataReceived(self.stream_id, self._chunks))
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
        elif not self.is_done:
            assert self._parser is not None  # noqa: S101 - it is the caller
            self._end(self._parser)

    def _end(self, parser: HttpResponseParser) -> None:
        self.is_done = True
        self.is_kept_alive = parser.should_keep_alive() and self.keep_alive_timeout != 0
        self.events.append(ResponseEnded(self.stream_id, self._fields))


def _keep_alive_timeout(fields: Headers) -> float | None:
    for name, value in fields:
        if name == b"keep-alive" and (found := _KEEP_ALIVE_TIMEOUT.search(value)) is not None:
            return float(found[1])
    return None


class Http1Connection:
    """The client's side of one HTTP/1.1 connection; implements `HttpConnection`.

    Args:
        max_head_size: the most bytes of a response's head, with informational responses and trailers.
    """

    alpn: ClassVar[str] = "http/1.1"

    def __init__(self, *, max_head_size: int = 65_536) -> None:
        self._max_head_size = max_head_size
        self._out: list[bytes] = []
        self._next_id = 1
        self._reader: _ResponseReader | None = None
        self._is_handed_over = False  # whether `data_to_send` has returned a part of the open request
        self._is_silent = True  # whether nothing has come since it was sent
        self._keep_alive_timeout: float | None = None
        self._usable = True
        self._closed = False

    # -- state ---------------------------------------------------------------------------------------------

    @property
    def is_established(self) -> bool:
        return True

    @property
    def is_usable(self) -> bool:
        return self._usable

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def can_ping(self) -> bool:
        return False

    @property
    def open_streams(self) -> int:
        return 0 if self._reader is None else 1

    @property
    def available_streams(self) -> int:
        return 1 if self._usable and self._reader is None else 0

    @property
    def keep_alive_timeout(self) -> float | None:
        return self._keep_alive_timeout

    def windows(self) -> Windows:
        return Windows(0, 0)

    def stream_windows(self, stream_id: int) -> Windows:
        self._is_open(stream_id)
        return Windows(0, 0)

    # -- from the application ------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        self._is_handed_over = True
        return data

    def send_request(
        self, method: bytes, scheme: bytes, authority: bytes, path: bytes, headers: Headers, body: bytes = b""
    ) -> int:
        if self.available_streams < 1:
            raise HttpMisuse("the connection is busy or not usable")
        check_request_target(method, scheme, authority, path)
        fields = request_fields(method, headers, body)
        head = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, path, authority)]
        head += [b"%b: %b\r\n" % field for field in fields]
        head += (b"\r\n", body)
        self._out += head
        self._is_handed_over = False
        self._is_silent = True
        stream_id = self._next_id
        self._next_id += 1
        self._reader = _ResponseReader(stream_id, is_head=method == b"HEAD", max_head_size=self._max_head_size)
        return stream_id

    def reset_stream(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        # RFC 9112 section 9.5: the only way to give up a response is to close the connection.
        if self._is_open(stream_id):
            self._end()

    def grant(self, stream_id: int, n: int) -> None:
        if n < 0:
            raise HttpMisuse(f"stream {stream_id} is granted {n} bytes")
        self._is_open(stream_id)

    def send_ping(self, payload: bytes) -> None:
        raise HttpMisuse("HTTP/1.1 has no PING")

    def send_goaway(self, code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> None:
        self._usable = False

    def close(self, code: int = ErrorCode.NO_ERROR) -> list[Event]:
        events: list[Event] = []
        if not self._closed:
            self._fail_stream(ErrorCode.CANCEL, "the connection was closed on this side", events)
            self._end()
        return events

    def _is_open(self, stream_id: int) -> bool:
        if not 0 < stream_id < self._next_id:
            raise HttpMisuse(f"there never was a stream {stream_id}")
        return self._reader is not None and self._reader.stream_id == stream_id

    # -- from the network ----------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[Event]:
        if self._closed or not data:
            return []
        reader = self._reader
        if reader is None:
            # Old servers add an empty line after a body; it is ignored, as the parser ignores it.
            if not data.strip(b"\r\n"):
                return []
            return self._fail(ErrorCode.PROTOCOL_ERROR, "bytes that answer no request", [])
        self._is_silent = False
        try:
            events = reader.feed(data)
        except _ResponseFault as fault:
            return self._fail(ErrorCode.PROTOCOL_ERROR, str(fault), reader.events, is_malformed=True)
        if reader.is_done:
            self._reader = None
            self._usable = self._usable and reader.is_kept_alive
            self._keep_alive_timeout = reader.keep_alive_timeout
            if reader.is_overrun:
                self._fail(ErrorCode.PROTOCOL_ERROR, "bytes after the response", events)
        return events

    def receive_eof(self) -> list[Event]:
        events: list[Event] = []
        if self._closed:
            return events
        reader = self._reader
        if reader is not None and reader.has_head and reader.until_eof:
            # RFC 9112 section 6.3, rule 8: without a length, the end of the connection ends the body.
            events.append(ResponseEnded(reader.stream_id, []))
            self._drop_reader()
        return self._fail(ErrorCode.NO_ERROR, "the peer closed the connection", events)

    def _fail(
        self, code: ErrorCode, reason: str, events: list[Event], *, is_malformed: bool = False
    ) -> list[Event]:
        self._fail_stream(code, reason, events, is_malformed=is_malformed)
        self._end()
        events.append(ConnectionFailed(code, reason))
        return events

    def _fail_stream(
        self, code: ErrorCode, reason: str, events: list[Event], *, is_malformed: bool = False
    ) -> None:
        if self._reader is not None:
            if not self._is_handed_over:
                self._out.clear()  # it is reported as not processed, so it must not be sent
            stream_id = self._reader.stream_id
            was_kept_alive = stream_id > 1 and self._is_silent
            events.append(
                StreamFailed(stream_id, code, reason, self._is_handed_over, was_kept_alive, is_malformed)
            )

    def _end(self) -> None:
        self._usable = False
        self._closed = True
        self._drop_reader()

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
