"""What an answer needs from HTTP/1.1 and HTTP/2: one request, and the way back to who sent it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

#: No more than this is written to a connection at once on behalf of one answer.
BATCH_BYTES = 48 * 1024

Headers: TypeAlias = Sequence[tuple[str, str]]


class Request(msgspec.Struct, frozen=True):
    """One HTTP request, whole. Header names are in lower case; of equal names the last one counts."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    protocol: str


class Wire(Protocol):
    """The connection below HTTP/1.1 or HTTP/2. What is written is sent at the end of the turn."""

    @property
    def is_paused(self) -> bool:
        """Whether more should be written only after the handler's `resume_writing` was called."""

    def write(self, data: bytes | memoryview) -> None: ...

    def close(self) -> None:
        """Send what was written, then FIN."""

    def reset(self) -> None:
        """Send what was written, then RST."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def request_began(self) -> None:
        """Count a request of this connection; a fault that waits for it happens now."""


class Handles(Protocol):
    def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer a request, now or over time."""


class Answering(Protocol):
    """Who writes to an exchange."""

    def resume(self) -> None:
        """The exchange is writable again."""

    def cancel(self) -> None:
        """The client went away, or took its request back."""

    def done(self) -> None:
        """The exchange was ended, cut or reset as asked for; all that was sent has gone."""


class Exchange(abc.ABC):
    """One request's way back. `answering` is told when the exchange becomes writable again, ends or goes away."""

    __slots__ = ("answering", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.answering: Answering | None = None

    @property
    @abc.abstractmethod
    def room(self) -> int:
        """How many bytes may be sent now; what is sent beyond is kept until it can go."""

    @abc.abstractmethod
    def send_head(self, status: int, headers: Headers, length: int | None = None) -> None: ...

    @abc.abstractmethod
    def send_body(self, data: bytes) -> None: ...

    @abc.abstractmethod
    def end(self) -> None:
        """End the body in the protocol's regular way."""

    @abc.abstractmethod
    def cut(self) -> None:
        """End abruptly, after what was sent: FIN (HTTP/1.1) or END_STREAM (HTTP/2)."""

    @abc.abstractmethod
    def reset(self, error_code: int) -> None:
        """Reset after what was sent: TCP RST (HTTP/1.1) or RST_STREAM (HTTP/2)."""

    @abc.abstractmethod
    def slow_head(self, ms: float) -> float:
        """Let the head that is sent next take so long; return how many of those ms the caller is to wait."""

    @abc.abstractmethod
    def drip(self, gap_ms: float) -> None:
        """From now on write the body byte by byte."""

    def tell_done(self) -> None:
        answering, self.answering = self.answering, None
        if answering is not None:
            answering.done()

    def reply(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer in one go."""
        self.send_head(status, (("content-type", "application/json"), *headers), len(body))
        self.send_body(body)
        self.end()
