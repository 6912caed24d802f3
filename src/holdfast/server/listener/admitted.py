"""What the listener is told of a request by its head, and the bounds of a connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from holdfast.admission.keys import SecretId
from holdfast.core.http.request import Headers
from holdfast.core.limits.budget import Account
from holdfast.errors import HoldfastError, PayloadTooLarge
from holdfast.server.listener.exchange import ErrorShape, Exchange, Request

#: Seconds that a request waits for the keys that its credential needs.
KEYS_TIMEOUT = 10.0
#: After so many refused credentials in a row a connection closes behind the answer: guessing costs handshakes.
MAX_REFUSED = 10
#: Seconds that a connection in one of the slots for probes has for its request.
_PROBE_TIMEOUT = 2.0


@dataclass(slots=True)
class Admitted:
    """What the application makes of a head.

    `refusal` is the answer where the request is not served, and may come to be until its body is complete.
    `account` is the caller's, None for callers without a credential; `max_body` None is the listener's own bound.
    """

    shape: ErrorShape
    answer: Callable[[Request, Exchange], Awaitable[None]] | None = None
    refusal: HoldfastError | None = None
    #: Headers of any answer, errors included.
    headers: Headers = field(default_factory=list)
    account: Account | None = None
    max_body: int | None = None
    secret: SecretId | None = None
    #: Whether anyone may ask it, as probes do.
    is_public: bool = False
    #: Notes that the head was refused, for whom it came from, and says whether that was for its credential.
    failed: Callable[..., bool] | None = None
    #: Whether the connection closes behind the answer.
    closes: bool = False


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one connection: times in seconds, sizes in bytes."""

    max_body: int
    header_timeout: float
    body_timeout: float
    keep_alive_timeout: float

    def first_head(self, *, is_limited: bool) -> float:
        """How long a new connection has for its first head; `is_limited` where it has a probe's slot."""
        return min(self.header_timeout, _PROBE_TIMEOUT) if is_limited else self.header_timeout

    def body_of(self, admitted: Admitted) -> int:
        """How large the body of a request may be that was judged by its head."""
        return self.max_body if admitted.max_body is None else admitted.max_body

    def too_large(self, admitted: Admitted) -> PayloadTooLarge:
        where = " (server.max_body)" if admitted.max_body is None else " that this path takes"
        return PayloadTooLarge(f"the body is larger than the {self.body_of(admitted)} bytes{where}")
