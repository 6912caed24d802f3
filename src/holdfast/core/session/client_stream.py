"""One stream of a client, and the events that a client session reports to its shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from holdfast.core.session import messages as m
from holdfast.errors import HoldfastError

#: Entries are acknowledged at once when so many bytes of them were received.
ACK_BYTES = 64 * 1024


class ClientStream:
    """A stream of a `ClientSession`, which alone calls the methods.

    `last_seq` is the last sequence number that was received, -1 before the first. `id` is None until the server
    has accepted the request. After `is_ended` nothing more is reported. With a `window` the server may run at
    most that many bytes (and one entry) ahead of what the application has consumed.
    """

    __slots__ = (
        "_acked",
        "_unacked_bytes",
        "_unconsumed",
        "_ungranted",
        "epoch",
        "id",
        "is_cancelled",
        "is_detached",
        "is_ended",
        "is_live",
        "is_sent",
        "last_seq",
        "request",
        "request_id",
        "was_read",
        "window",
    )

    def __init__(
        self,
        *,
        id_: str | None = None,
        epoch: int | None = None,
        after: int = -1,
        request_id: str | None = None,
        request: bytes = b"",
        window: int | None = None,
    ) -> None:
        _check_name(id_, "stream id")
        _check_name(request_id, "request id")
        if not -1 <= after <= m.MAX_SEQ:
            raise ValueError(f"`after` is -1 to {m.MAX_SEQ}, not {after}")
        if window is not None and not 1 <= window <= m.MAX_CREDIT:
            raise ValueError(f"window must be 1 to {m.MAX_CREDIT} bytes, not {window}")
        self.id = id_
        self.epoch = epoch
        self.last_seq = after
        self.request_id = request_id
        self.request = request
        self.window = window
        self.is_ended = False
        self.is_cancelled = False
        self.is_detached = False
        #: `create` was sent on some connection, so the server may know the request.
        self.is_sent = False
        #: The server has said on this connection that it delivers the stream. Entries that come before that belong
        #: to an older attachment.
        self.is_live = False
        #: Some connection has delivered the stream. Until then a refusal is the answer to the application's call.
        self.was_read = False
        self._acked = after
        self._unacked_bytes = 0
        self._unconsumed = 0
        self._ungranted = 0

    def delivered_in(self, epoch: int) -> None:
        """Note that the server delivers the stream on this connection from now on."""
        self.epoch = epoch
        self.is_live = self.was_read = True

    def start_credit(self) -> int | None:
        """Return the credit of a new attachment: the window less what the application has yet to consume."""
        if self.window is None:
            return None
        # One large entry may have overdrawn the window. Credit is never negative, so the debt is kept here.
        self._ungranted = min(self.window - self._unconsumed, 0)
        return max(self.window - self._unconsumed, 0)

    def resume_credit(self) -> int | None:
        """Return the credit of a resumption. A stream that will be detached needs no entries."""
        return 0 if self.is_detached else self.start_credit()

    def take(self, seq: int, payloads: list[msgspec.Raw]) -> list[bytes]:
        """Count entries from `seq` on as received, and return those that are new. There must be no gap."""
        skip = self.last_seq + 1 - seq
        if skip:
            # The server has spent credit on them, and nobody will consume them again.
            self._ungranted += sum(len(bytes(payload)) for payload in payloads[:skip])
            payloads = payloads[skip:]
        new = [bytes(payload) for payload in payloads]
        size = sum(map(len, new))
        self.last_seq += len(new)
        self._unconsumed += size
        self._unacked_bytes += size
        return new

    @property
    def needs_ack(self) -> bool:
        return self._unacked_bytes >= ACK_BYTES

    def take_ack(self) -> int | None:
        """Return the number to acknowledge, None where nothing came since the last time."""
        self._unacked_bytes = 0
        if self.last_seq == self._acked:
            return None
        self._acked = self.last_seq
        return self.last_seq

    def consume(self, size: int) -> None:
        """Count payload that the application has taken. Raises ValueError for more than was received."""
        if size > self._unconsumed:
            raise ValueError(f"{size} bytes consumed of {self._unconsumed} received")
        self._unconsumed -= size
        self._ungranted += size

    def take_grant(self) -> int:
        """Return the credit to grant, 0 while that is less than half a window."""
        if self.window is None or self._ungranted * 2 < self.window:
            return 0
        grant, self._ungranted = self._ungranted, 0
        return grant


def _check_name(name: str | None, what: str) -> None:
    if name is None:
        return
    if not 1 <= len(name) <= m.MAX_NAME:
        raise ValueError(f"a {what} has 1 to {m.MAX_NAME} characters")
    name.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError


# -- events for the shell -----------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Welcomed:
    """The session is open, and `resumed` streams carry on.

    Each stream that was refused follows as `StreamFailed` or `StreamDeferred`.
    """

    welcome: m.Welcome
    resumed: list[ClientStream]


@dataclass(slots=True, frozen=True)
class StreamAccepted:
    stream: ClientStream
    duplicate: bool


@dataclass(slots=True, frozen=True)
class StreamQueued:
    """The request waits. `retry_in` is in seconds, None where it waits in the queue."""

    stream: ClientStream
    position: int
    retry_in: float | None = None
    attempt: int | None = None
    code: str | None = None

    @classmethod
    def of(cls, stream: ClientStream, queued: m.Queued) -> StreamQueued:
        """Read the message about this stream."""
        retry_in = None if queued.delay_ms is None else queued.delay_ms / 1000
        return cls(stream, queued.position, retry_in, queued.attempt, queued.code)


@dataclass(slots=True)  # not frozen: that would double the cost of what is made per token
class EntriesReceived:
    """New consecutive entries, each exactly once; the last has the number `stream.last_seq`."""

    stream: ClientStream
    payloads: list[bytes]


@dataclass(slots=True, frozen=True)
class StreamEnded:
    stream: ClientStream
    end: m.End


@dataclass(slots=True, frozen=True)
class StreamFailed:
    """The request or its resumption was refused: nothing more will come. The generation may still run."""

    stream: ClientStream
    error: HoldfastError


@dataclass(slots=True, frozen=True)
class StreamDeferred:
    """The server cannot resume the stream for now; the session asks again in `delay` seconds."""

    stream: ClientStream
    error: HoldfastError
    delay: float


@dataclass(slots=True, frozen=True)
class SessionError:
    """An error that concerns the whole connection; the server closes it where it cannot go on."""

    error: HoldfastError


@dataclass(slots=True, frozen=True)
class GoawayReceived:
    """Where `streams` is `stay`, the session takes no new request; those that run stay until they end."""

    reason: str
    window_ms: tuple[int, int]
    streams: m.StreamsOnGoaway


@dataclass(slots=True, frozen=True)
class StreamReturned:
    """The server goes, and has not started this request: the session forgets it. Ask another connection."""

    stream: ClientStream


@dataclass(slots=True, frozen=True)
class ConnectionFailed:
    """The connection is of no further use: the peer is silent or broke the protocol.

    The session has forgotten it already; close it and make a new one.
    """

    reason: str


Event: TypeAlias = (
    Welcomed
    | StreamAccepted
    | StreamQueued
    | EntriesReceived
    | StreamEnded
    | StreamFailed
    | StreamDeferred
    | SessionError
    | GoawayReceived
    | StreamReturned
    | ConnectionFailed
)
