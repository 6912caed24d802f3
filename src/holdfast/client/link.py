"""One WebSocket connection to the gateway, and what its failure means. Exceptions of `websockets` end here."""

from __future__ import annotations

import math
import ssl
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from holdfast.client.config import WebSocketConfig
from holdfast.core.session.messages import SUBPROTOCOL
from holdfast.errors import (
    ERRORS,
    ConnectionLost,
    Forbidden,
    HoldfastError,
    InvalidRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
    RateLimited,
    Unauthorized,
    UpstreamError,
)
from holdfast.version import __version__

#: Seconds that a peer gets for its half of the closing handshake.
CLOSE_TIMEOUT = 2.0

_CLIENT = f"python/{__version__}"
_MESSAGE_TOO_BIG = 1009
#: Answers to a handshake that would come again.
_FINAL_STATUSES = {400, 401, 403}

_by_status: dict[int, type[HoldfastError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    429: RateLimited,
    503: Overloaded,
}
# The first class of a code is the most general one. 1002 is left out: whichever side broke the protocol, this
# connection is over and the next one may do better.
_by_close_code: dict[int, type[HoldfastError]] = {
    cls.close_code: cls for cls in reversed(ERRORS.values()) if cls.close_code not in (None, 1002)
}


class LinkFailed(Exception):
    """A connection ended or was not made. A failure that `is_final` would come again, and is not retried."""

    def __init__(
        self, error: HoldfastError, *, is_final: bool = False, cause: BaseException | None = None
    ) -> None:
        super().__init__(error.message)
        error.__cause__ = cause
        self.error = error
        self.is_final = is_final


class Link(ClientConnection):
    """A connection that notes when bytes last came: part of a large message is a sign of life, too."""

    last_heard = -math.inf

    def data_received(self, data: bytes) -> None:
        self.last_heard = self.loop.time()
        super().data_received(data)

    async def receive(self) -> bytes:
        """Return the next message. Raises `LinkFailed`. Cancelling it loses nothing."""
        try:
            return await self.recv(decode=False)
        except ConnectionClosed as exc:
            raise _failure_of(exc) from exc

    async def transmit(self, message: bytes) -> bool:
        """Send one text message; False where the connection is gone, which `receive` reports."""
        try:
            await self.send(message, text=True)
        except ConnectionClosed:
            return False
        return True

    def abort(self) -> None:
        """Drop the connection at once. Idempotent."""
        self.transport.abort()


async def open_link(config: WebSocketConfig, *, was_welcomed: bool) -> Link:
    """Connect and shake hands. Raises `LinkFailed`; cancelling it leaves nothing behind."""
    headers = Headers(config.headers)
    headers["X-Client-Version"] = _CLIENT
    if config.api_key is not None:
        headers["Authorization"] = f"Bearer {config.api_key}"
    options: dict[str, Any] = {} if config.ssl is None else {"ssl": config.ssl}
    try:
        link = await connect(
            config.url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            # The gateway writes each token once for all readers; compressing per connection would undo that.
            compression=None,
            additional_headers=headers,
            user_agent_header=f"holdfast-{_CLIENT}",
            open_timeout=None,  # the caller's deadline covers the handshake and the welcome together
            ping_interval=None,  # the session has a heartbeat of its own
            close_timeout=CLOSE_TIMEOUT,
            max_size=config.max_message,
            create_connection=Link,
            **options,
        )
    except InvalidStatus as exc:
        raise _refusal(exc, config.url, was_welcomed=was_welcomed) from exc
    except (OSError, EOFError, WebSocketException) as exc:
        error = ConnectionLost(f"no connection to {config.url}: {exc or type(exc).__name__}")
        is_final = isinstance(exc, ssl.SSLCertVerificationError)
        raise LinkFailed(error, is_final=is_final, cause=exc) from exc
    except (ImportError, ValueError) as exc:  # a proxy of the environment or a redirect that cannot be used
        error = ConnectionLost(f"cannot connect to {config.url}: {exc}")
        raise LinkFailed(error, is_final=True, cause=exc) from exc
    if not isinstance(link, Link) or link.subprotocol != SUBPROTOCOL:
        link.transport.abort()
        message = f"{config.url} did not agree to the subprotocol {SUBPROTOCOL}; is it a Holdfast gateway?"
        raise LinkFailed(ProtocolError(message), is_final=True)
    return link


def _failure_of(exc: ConnectionClosed) -> LinkFailed:
    received, sent = exc.rcvd, exc.sent
    if received is None and sent is not None and sent.code == _MESSAGE_TOO_BIG:
        # The gateway would send the same entry again.
        error = PayloadTooLarge("the gateway sent a message larger than WebSocketConfig.max_message")
        return LinkFailed(error, is_final=True, cause=exc)
    if received is None:
        return LinkFailed(ConnectionLost("the connection to the gateway was cut"), cause=exc)
    code, reason = received.code, received.reason
    cls = _by_close_code.get(code, ConnectionLost)
    message = f"the gateway closed the connection with code {code}" + (f": {reason}" if reason else "")
    return LinkFailed(cls(message), is_final=4400 <= code <= 4499 or code == _MESSAGE_TOO_BIG, cause=exc)


class _Problem(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class _Answer(msgspec.Struct):
    error: _Problem


_answer_decoder = msgspec.json.Decoder(_Answer)


def _refusal(exc: InvalidStatus, where: str, *, was_welcomed: bool) -> LinkFailed:
    response = exc.response
    status = response.status_code
    try:
        problem = _answer_decoder.decode(response.body or b"").error
    except (msgspec.DecodeError, UnicodeError, RecursionError):  # the answer of a proxy, or of something else
        problem = _Problem()
    cls = _by_status.get(status, ConnectionLost)
    named = ERRORS.get(problem.code or "")
    if named is not None and named.http_status == status and not issubclass(named, UpstreamError):
        cls = named
    message = f"{where} answered the handshake with HTTP {status}"
    error = cls(
        f"{message}: {problem.message}" if problem.message else message,
        retry_after=_retry_after(response.headers),
    )
    # A proxy answers 404 while a gateway is being replaced; before the first welcome it is a wrong URL.
    is_final = status in _FINAL_STATUSES or (status == NotFound.http_status and not was_welcomed)
    return LinkFailed(error, is_final=is_final, cause=exc)


def _retry_after(headers: Headers) -> float | None:
    # RFC 9110 section 10.2.3 also has a date, which needs both clocks to agree: the backoff does without it.
    values = headers.get_all("Retry-After")
    try:
        seconds = float(values[0]) if values else -1.0
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
