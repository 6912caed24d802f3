"""What happens in the life of a request and of a connection, as frozen records, and who is told.

Times are in seconds; `after` counts from when the request came. Nothing here says what is done with it: the
request log, metrics, a ledger or traces are observers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeAlias

from msgspec import Struct

from holdfast.core.entries import AttemptRecord, EndBody, Usage
from holdfast.errors import HoldfastError, UpstreamError

logger = logging.getLogger("holdfast")


class Caller(Struct, frozen=True):
    """Who asks, for limits and logs. `key` is None for callers that are not told apart.

    `connection` is the number of a connection of this process, `session` the beginning of its session's token.
    """

    tenant: str
    key: str | None = None
    connection: int | None = None
    session: str | None = None


class RequestRefused(Struct, frozen=True):
    """Limits, queue, room or model refused a request: nothing was started or sent to a provider.

    It is not told of a request that does not parse, or that its credential does not allow. `model` is None for one
    that was refused before it was decoded.
    """

    caller: Caller
    model: str | None
    request_id: str | None
    error: HoldfastError


class RequestQueued(Struct, frozen=True):
    """A request waits in the queue: at first, or again, for a provider that has room."""

    stream: str
    request_id: str
    position: int


class RequestStarted(Struct, frozen=True):
    """A stream was created. `prompt` is what the caller asked, and may be large: keep no reference to it."""

    stream: str
    request_id: str
    caller: Caller
    model: str
    dialect: str
    prompt: Callable[[], object]


class FirstEntry(Struct, frozen=True):
    """The first entry of an answer is here."""

    stream: str
    request_id: str
    provider: str
    after: float


class AttemptEnded(Struct, frozen=True):
    """One try at a provider is over. `error` is None where it succeeded, or was cancelled: see `record.error`.

    `first_entry` is in seconds from the attempt's start. `provider_request_id` is what the provider calls it.
    `usage` is what this try took, as far as the provider has said so: also one that broke off may be charged for.
    `units` is about how many tokens came, for tries without it. Of a request that is cancelled while it runs,
    `RequestEnded` comes first, since its readers have the end at once.
    """

    stream: str
    request_id: str
    caller: Caller
    record: AttemptRecord
    error: UpstreamError | None
    usage: Usage | None
    units: int
    first_entry: float | None
    provider_request_id: str | None


class RequestEnded(Struct, frozen=True):
    """A stream has its end. `queued` is how long it waited in the queue, all in all."""

    stream: str
    request_id: str
    caller: Caller | None
    model: str
    end: EndBody
    duration: float
    queued: float
    entries: int
    answer: Callable[[int], list[bytes]]


class ConnectionOpened(Struct, frozen=True):
    """A client has opened a connection that lasts: a WebSocket."""

    connection: int
    caller: Caller


class ConnectionEnded(Struct, frozen=True):
    """It is closed. `streams_left` were being read then."""

    connection: int
    caller: Caller
    duration: float
    close_code: int | None
    streams_left: int


Event: TypeAlias = (
    RequestRefused
    | RequestQueued
    | RequestStarted
    | FirstEntry
    | AttemptEnded
    | RequestEnded
    | ConnectionOpened
    | ConnectionEnded
)


class Observer(Protocol):
    """Is told of each event in the turn in which it happens: it notes it and returns."""

    def observe(self, event: Event) -> None: ...


class Observers:
    """Tells every observer. What one of them raises is logged, and harms neither the request nor the others."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer.observe(event)
            except Exception:
                logger.exception("an observer failed")
