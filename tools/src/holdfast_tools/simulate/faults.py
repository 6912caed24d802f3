"""What can be made to go wrong: faults of one request, faults of one connection, and random failures for storms.

Plain typed records; `generation`, `connection` and the protocol files carry them out. All counts are exact and
all randomness is seeded, so a test can say beforehand what it will see.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

Count: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Milliseconds: TypeAlias = Annotated[float, Meta(ge=0, le=86_400_000)]
ErrorCode: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Probability: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


# -- of one request: the field `sim.fault` -------------------------------------------------------------


class RequestFault(msgspec.Struct, tag_field="kind", forbid_unknown_fields=True):
    """`times`: only the first so many requests with the same key (`user` or `x-request-id`) are hit."""

    times: Annotated[int, Meta(ge=1)] | None = None


class Stall(RequestFault, tag="stall"):
    """Send `after_tokens` tokens, then nothing more; the connection stays open."""

    after_tokens: Count = 0


class EndEarly(RequestFault, tag="end_early"):
    """End the body in the protocol's regular way (last chunk, END_STREAM), without finish chunk and [DONE]."""

    after_tokens: Count = 0


class Cut(RequestFault, tag="cut"):
    """HTTP/1.1: close the socket (FIN) in the middle of the body. HTTP/2: END_STREAM, as `end_early`."""

    after_tokens: Count = 0
    before_head: bool = False


class Reset(RequestFault, tag="reset"):
    """HTTP/1.1: TCP RST. HTTP/2: RST_STREAM with `error_code` (2 is INTERNAL_ERROR)."""

    after_tokens: Count = 0
    before_head: bool = False
    error_code: ErrorCode = 2


class Status(RequestFault, tag="status"):
    """Answer with an error status. `retry_after`: seconds, sent as such or as a date; a string goes verbatim."""

    status: Annotated[int, Meta(ge=400, le=599)] = 503
    retry_after: Annotated[int, Meta(ge=0, le=31_536_000)] | Annotated[str, Meta(max_length=200)] | None = None
    retry_after_form: Literal["seconds", "date"] = "seconds"
    message: str = "The simulated provider was told to fail."


class ErrorEvent(RequestFault, tag="error_event"):
    """Send `data: {"error": ...}` and end the body; `done` adds [DONE], as some servers do."""

    after_tokens: Count = 0
    message: str = "The simulated provider was told to fail in the middle."
    type: str = "server_error"
    code: str | None = None
    done: bool = False


class Malformed(RequestFault, tag="malformed"):
    """Send one event that is not what it should be, then carry on to the regular end."""

    after_tokens: Count = 0
    variant: Literal["invalid_json", "breakout", "invalid_utf8", "rubbish"] = "invalid_json"


class SlowHeaders(RequestFault, tag="slow_headers"):
    """HTTP/1.1: the head byte by byte over `ms`. HTTP/2: after `ms`, a HEADERS frame and 1-byte CONTINUATIONs."""

    ms: Milliseconds = 1000


class Drip(RequestFault, tag="drip"):
    """Write the body byte by byte, `gap_ms` apart (0: one in each turn of the event loop)."""

    gap_ms: Milliseconds = 0


class HugeEvent(RequestFault, tag="huge_event"):
    """Send one event of exactly `bytes` bytes, then carry on."""

    after_tokens: Count = 0
    bytes: Annotated[int, Meta(ge=1024, le=256 * 1024 * 1024)] = 5 * 1024 * 1024


class NoAnswer(RequestFault, tag="no_answer"):
    """Take the request and never answer."""


AnyRequestFault: TypeAlias = (
    Stall | EndEarly | Cut | Reset | Status | ErrorEvent | Malformed | SlowHeaders | Drip | HugeEvent | NoAnswer
)


# -- of one connection ---------------------------------------------------------------------------------


class ConnectionFault(msgspec.Struct, tag_field="kind", forbid_unknown_fields=True):
    """Happens at once, or when `after_streams` requests were begun or `after_bytes` bytes were sent, since armed.

    Bytes are counted on the wire, below TLS.
    """

    after_streams: Count = 0
    after_bytes: Count = 0


class Goaway(ConnectionFault, tag="goaway"):
    """Send GOAWAY; its last-stream-id leaves out the newest `unprocessed` requests, which are dropped.

    The connection closes when the other requests are done, or at once if `close`. On HTTP/1.1 the next answer
    says `connection: close`.
    """

    unprocessed: Count = 0
    error_code: ErrorCode = 0
    close: bool = False


class ResetStreams(ConnectionFault, tag="reset_streams"):
    """RST_STREAM for running requests. On HTTP/1.1 a TCP RST if one is running."""

    which: Literal["oldest", "newest", "all"] = "oldest"
    error_code: ErrorCode = 2


class LowerSettings(ConnectionFault, tag="settings"):
    """Send SETTINGS in the middle of things. HTTP/2 only."""

    max_concurrent_streams: Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)] | None = None
    initial_window_size: Annotated[int, Meta(ge=0, le=0x7FFF_FFFF)] | None = None


class NoPingAnswer(ConnectionFault, tag="no_ping_answer"):
    """Never answer a PING. HTTP/2 only."""


class HangHandshake(ConnectionFault, tag="hang_handshake"):
    """Never answer the TLS ClientHello; on a plain connection the same as `silence`."""


class Silence(ConnectionFault, tag="silence"):
    """Accept (with TLS, if it is on), read everything, and send nothing."""


class BlackHole(ConnectionFault, tag="black_hole"):
    """From here on send nothing and ignore what comes; the socket stays open."""


class ResetConnection(ConnectionFault, tag="reset"):
    """TCP RST."""


class CloseConnection(ConnectionFault, tag="close"):
    """TCP FIN without any goodbye of the protocol."""


AnyConnectionFault: TypeAlias = (
    Goaway
    | ResetStreams
    | LowerSettings
    | NoPingAnswer
    | HangHandshake
    | Silence
    | BlackHole
    | ResetConnection
    | CloseConnection
)


class RandomFailures(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A storm: each request fails with a status of `status` by its probability, each connection in its own ways.

    A connection chosen by `reset` gets a TCP RST after a random number of bytes below 20,000.
    """

    status: dict[Annotated[int, Meta(ge=400, le=599)], Probability] = {}
    retry_after: Annotated[int, Meta(ge=0)] | None = None
    hang_handshake: Probability = 0.0
    reset: Probability = 0.0
    seed: int = 1


class ConnectionFaultOrder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Body of `POST /control/connection-faults`."""

    fault: AnyConnectionFault
    #: "next": the next `count` accepted connections, one each; "current": all others that are open now.
    connections: Literal["next", "current"] = "next"
    count: Annotated[int, Meta(ge=1, le=100_000)] = 1
