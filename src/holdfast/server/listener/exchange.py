"""One HTTP request and its answer, whatever connection carries them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from holdfast.admission.keys import SecretId
from holdfast.core.http.request import Headers
from holdfast.core.limits.rate_limit import Lease
from holdfast.errors import HoldfastError
from holdfast.server.listener.charge import Charge

_REASONS = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    416: b"Range Not Satisfiable",
    426: b"Upgrade Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    508: b"Loop Detected",
}

#: A larger chunk takes longer to be copied than to be written in three parts.
_SMALL_CHUNK = 64 * 1024


class Request(msgspec.Struct, frozen=True):
    """One complete request. Header names are lower case; `path` is decoded, without the query."""

    method: str
    path: str
    query: dict[str, str]
    headers: Headers
    body: bytes
    http_version: str

    def header(self, name: bytes) -> str | None:
        """Return the first header of that name."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None


class ErrorShape(Protocol):
    """Writes errors as the clients of a path read them. Every dialect is one."""

    def error_body(self, error: HoldfastError, status: int) -> bytes:
        """Write an error as the body of an HTTP answer with this status."""


class Connection(Protocol):
    """The connection that carries an exchange."""

    number: int
    is_limited: bool

    @property
    def address(self) -> str:
        """The client's address without its port."""

    @property
    def is_writable(self) -> bool:
        """Whether the socket takes more."""

    def write(self, data: bytes) -> None: ...

    def exchange_finished(self, *, keep_alive: bool) -> None:
        """The answer is complete."""

    def abort(self) -> None: ...


class Exchange:
    """One request's answer: either `respond` or `refuse`, or `start`, any number of `write` and `end`.

    `shape` is that of the errors on the request's path. Writing never blocks: a caller that produces much asks
    `is_writable` and is told by `on_writable`. `on_disconnect` is called once if the client leaves before the
    answer is complete. `on_revoked` is, with the error to tell, if the credential ceases to be good before; it
    completes the answer or cuts it. Without it the answer is the error.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_connection",
        "_head_only",
        "_keep_alive",
        "_leases",
        "headers",
        "is_complete",
        "is_started",
        "on_disconnect",
        "on_revoked",
        "on_writable",
        "secret",
        "shape",
    )

    def __init__(
        self,
        connection: Connection,
        request: Request,
        *,
        shape: ErrorShape,
        keep_alive: bool,
        body: Charge | None = None,
    ) -> None:
        """`body` is the memory that the request's body is charged with."""
        self._connection = connection
        self._body = body
        self.shape = shape
        self._head_only = request.method == "HEAD"
        self._chunked = request.http_version == "1.1"
        self._keep_alive = keep_alive
        #: Headers of any answer, errors included.
        self.headers: Headers = []
        self.is_started = False
        self.is_complete = False
        self.on_writable: Callable[[], None] | None = None
        self.on_disconnect: Callable[[], None] | None = None
        self.on_revoked: Callable[[HoldfastError], None] | None = None
        #: The secret that authenticated the request; None for callers without a key.
        self.secret: SecretId | None = None
        self._leases: Sequence[Lease] = ()

    def hold(self, leases: Sequence[Lease]) -> None:
        """Hold these until the answer is complete, or the client is gone."""
        self._leases = leases
        if self.is_complete:
            self._release()

    def _release(self) -> None:
        leases, self._leases = self._leases, ()
        for lease in leases:
            lease.release()

    @property
    def connection(self) -> Connection:
        """The connection that carries it."""
        return self._connection

    def body_used(self) -> None:
        """The request's body is needed no longer, or is charged by whoever needs it. Idempotent."""
        body, self._body = self._body, None
        if body is not None:
            body.free()

    @property
    def connection_number(self) -> int:
        return self._connection.number

    @property
    def address(self) -> str:
        """The client's address without its port."""
        return self._connection.address

    @property
    def is_writable(self) -> bool:
        return self._connection.is_writable and not self.is_complete

    def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes = b"") -> None:
        """Send a whole answer. Does nothing if the client is gone."""
        if self.is_started or self.is_complete:
            return
        self.is_started = True
        keep_alive = self._keep_alive
        fixed = [*headers, *self.headers]
        if status != 204:
            fixed.append((b"content-length", b"%d" % len(body)))
        if not keep_alive:
            fixed.append((b"connection", b"close"))
        self._connection.write(response_head(status, fixed) + (b"" if self._head_only else body))
        self._finish()

    def refuse(
        self,
        error: HoldfastError,
        *,
        status: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send an error as the whole answer, with further headers."""
        status, own, body = error_response(error, self.shape, status=status)
        self.respond(status, [*own, *headers], body)

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Send the head of an answer whose length is not known."""
        if self.is_started or self.is_complete:
            return
        self.is_started = True
        fixed = [*headers, *self.headers]
        if self._chunked:
            fixed.append((b"transfer-encoding", b"chunked"))
        else:
            self._keep_alive = False
        if not self._keep_alive:
            fixed.append((b"connection", b"close"))
        self._connection.write(response_head(status, fixed))

    def write(self, data: bytes) -> None:
        if self.is_complete or not data or self._head_only:
            return
        if not self._chunked:
            self._connection.write(data)
        elif len(data) <= _SMALL_CHUNK:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:  # not copied; the transport puts the writes of a turn together
            self._connection.write(b"%x\r\n" % len(data))
            self._connection.write(data)
            self._connection.write(b"\r\n")

    def end(self) -> None:
        """Complete the answer. Idempotent."""
        if self.is_complete:
            return
        if self._chunked and not self._head_only:
            self._connection.write(b"0\r\n\r\n")
        self._finish()

    def abort(self) -> None:
        """Cut the connection: the client sees an incomplete answer, never a short one that looks whole."""
        if not self.is_complete:
            self._complete()
            self._connection.abort()

    def _finish(self) -> None:
        self._complete()
        self._connection.exchange_finished(keep_alive=self._keep_alive)

    def _complete(self) -> None:
        self.is_complete = True
        self.on_disconnect = self.on_writable = self.on_revoked = None
        if self._leases:
            self._release()

    def disconnected(self) -> None:
        if not self.is_complete:
            callback = self.on_disconnect
            self._complete()
            if callback is not None:
                callback()

    def revoke(self, error: HoldfastError) -> None:
        """End the answer that is under way: its credential is no longer good."""
        callback, self.on_revoked = self.on_revoked, None
        if callback is not None:
            callback(error)
        else:
            # Nobody is reading yet: what the request is about is still looked up.
            self.refuse(error)


#: Headers of answers that nobody may cache.
JSON_HEADERS = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


def respond_json(exchange: Exchange, body: object, *, status: int = 200) -> None:
    """Send a whole answer as JSON."""
    exchange.respond(status, JSON_HEADERS, msgspec.json.encode(body))


def error_response(
    error: HoldfastError, shape: ErrorShape, *, status: int | None = None
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of the answer for an error."""
    status = status or error.http_status
    headers: Headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(math.ceil(error.retry_after), 1)))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if not error.retryable and (status in (408, 409, 429) or status >= 500):
        # SDKs repeat these by themselves unless they are told not to.
        headers.append((b"x-should-retry", b"false"))
    return status, headers, shape.error_body(error, status)


def response_head(status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b"Unknown"))]
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"
