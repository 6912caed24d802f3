"""All streams of this process: creation (once per request id), lookup by owner, retention and the memory bound."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from holdfast.config import StreamsConfig
from holdfast.core.entries import Owner
from holdfast.core.log import Log
from holdfast.dialects.ask import Ask
from holdfast.errors import (
    Cancelled,
    Draining,
    DuplicateRequest,
    HoldfastError,
    Overloaded,
    Shutdown,
    UnknownModel,
    UnknownStream,
)
from holdfast.generation.pump import Pump
from holdfast.generation.route import Route
from holdfast.generation.ticket import Admission, Caller, Ticket
from holdfast.streams.memory import LogMemory
from holdfast.streams.request_log import RequestLog
from holdfast.streams.stream import Origin, Stream
from holdfast.timers import Timers

_T = TypeVar("_T")
#: Is called once with what was asked for: in the same turn, unless it has to be looked up elsewhere.
Done: TypeAlias = Callable[[_T], None]


@dataclass(slots=True, frozen=True)
class RegistryStatistics:
    """Sizes are in bytes; `streams` counts running and retained streams."""

    streams: int
    running: int
    log_bytes: int
    memory_bytes: int
    created: int
    ended: int


class Registry:
    """Owns the streams. All methods are synchronous but `aclose`, and belong to the loop's thread."""

    def __init__(
        self, config: StreamsConfig, models: Mapping[str, Route], timers: Timers, admission: Admission
    ) -> None:
        self._config = config
        self._models = models
        self._timers = timers
        self._admission = admission
        self._tickets: dict[str, Ticket] = {}
        self._streams: dict[str, Stream] = {}
        self._by_request: dict[tuple[Owner, str], Stream] = {}
        # Ended streams in the order of their end: the first to go when memory runs short.
        self._ended: dict[str, Stream] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self.memory = LogMemory(config.memory_bytes)
        self.memory.evict = self._evict_oldest
        self.requests = RequestLog()
        self._created = 0
        self._ended_total = 0
        self._is_draining = False

    def configure(self, config: StreamsConfig) -> None:
        """Use new bounds and times for streams to come, and for what has ended from now on."""
        self._config = config
        self.memory.limit = config.memory_bytes

    def running(self) -> list[Stream]:
        """The streams that have not ended, those that wait for their turn among them."""
        return [stream for stream in self._streams.values() if not stream.is_ended]

    @property
    def models(self) -> list[str]:
        return list(self._models)

    def create(
        self,
        owner: Owner,
        ask: Ask,
        *,
        request_id: str | None = None,
        detach_grace: float,
        keeps_running: bool = False,
        caller: Caller | None = None,
    ) -> tuple[Stream, bool]:
        """Start a generation, or find the one that this request id has started; the flag says which.

        It may have to wait for its turn: then it has a `queue_position`. `caller` is whose limits it counts
        against; without one those of a tenant of the owner's name. Raises `UnknownModel`, `DuplicateRequest`
        (same id, other request), `RateLimited`, `QueueFull`, `Overloaded` or `Draining`; then nothing was sent to
        a provider.
        """
        caller = caller or Caller(owner.tenant)
        try:
            stream, is_known = self._create(owner, ask, request_id, detach_grace, caller)
        except HoldfastError as exc:
            self.requests.refused(caller, ask, request_id, exc)
            raise
        stream.keeps_running |= keeps_running
        if not is_known:
            self.requests.accepted(stream, ask)
        return stream, is_known

    def _create(
        self, owner: Owner, ask: Ask, request_id: str | None, detach_grace: float, caller: Caller
    ) -> tuple[Stream, bool]:
        # Over a session the same bytes ask for a stream that over HTTP ask for a whole answer.
        digest = ask.digest + (b"stream" if ask.stream else b"whole")
        if request_id is not None:
            known = self._by_request.get((owner, request_id))
            if known is not None:
                if known.origin.digest != digest:
                    raise DuplicateRequest(param="request_id")
                return known, True
        route = self._models.get(ask.model)
        if route is None:
            raise UnknownModel(f"there is no model {ask.model[:100]!r}; see GET /v1/models", param="model")
        self._check_room()
        ticket = self._admission.enter(caller.tenant, caller.key, ask)
        stream_id = "st_" + secrets.token_hex(16)
        stream = Stream(
            stream_id=stream_id,
            origin=Origin(owner, request_id or stream_id, ask.model, digest),
            log=Log(stream_id, max_bytes=self._config.log_bytes),
            memory=self.memory,
            detach_grace=detach_grace,
            timers=self._timers,
        )
        stream.caller = caller
        stream.on_end = self._stream_ended
        self._streams[stream_id] = stream
        self._by_request[owner, stream.origin.request_id] = stream
        self._created += 1
        self.memory.running += 1
        self._tickets[stream_id] = ticket
        if ticket.position is None:
            self._start(stream, ask, route, ticket)
        else:
            stream.queue_position = ticket.position
            stream.on_abandoned = lambda: stream.finish("cancelled", error=Cancelled())
            ticket.wait(_Turn(self, stream, ask, route, ticket))
        return stream, False

    def _start(self, stream: Stream, ask: Ask, route: Route, ticket: Ticket) -> None:
        task = Pump(stream, ask, route, self._timers, ticket).start()
        self._pumps[stream.id] = task
        task.add_done_callback(lambda _: self._pump_ended(stream))

    def _pump_ended(self, stream: Stream) -> None:
        """The provider is let go of, so what the stream held of its capacity is free."""
        del self._pumps[stream.id]
        # A task that is cancelled before its first step never gets to say so.
        stream.finish("cancelled", error=Cancelled())
        self._close_ticket(stream)

    def _close_ticket(self, stream: Stream) -> None:
        ticket = self._tickets.pop(stream.id, None)
        end = stream.end
        if ticket is not None:
            ticket.close(None if end is None else end.usage, stream.log.next - 1)

    def get(self, owner: Owner, stream_id: str) -> Stream:
        """Find a stream of this owner. Raises `UnknownStream`, the same for an absent and a foreign one."""
        stream = self._streams.get(stream_id)
        if stream is None or not owner.may_read(stream.origin.owner):
            raise UnknownStream
        return stream

    def open(self, owner: Owner, wanted: Sequence[str], done: Done[list[Stream | HoldfastError]]) -> None:
        """Find streams that this owner may read: `done` gets one answer for each, in the same order."""
        found: list[Stream | HoldfastError] = []
        for stream_id in wanted:
            try:
                found.append(self.get(owner, stream_id))
            except UnknownStream as exc:
                found.append(exc)
        done(found)

    def find_request(self, owner: Owner, request_id: str, done: Done[Stream | None]) -> None:
        """Find the stream that a request id has started."""
        done(self._by_request.get((owner, request_id)))

    def acknowledged(self, owner: Owner, stream_id: str) -> None:
        """The creator has the end: it is kept for the shorter retention."""
        stream = self._streams.get(stream_id)
        if stream is not None and owner.may_read(stream.origin.owner) and stream.is_ended:
            self._schedule_expiry(stream, min(self._config.retention_acknowledged, self._config.retention))

    # -- bounds --

    def _check_room(self) -> None:
        if self._is_draining:
            raise Draining(retry_after=1.0)
        if len(self._streams) >= self._config.max_streams:
            self._evict_oldest()
            if len(self._streams) >= self._config.max_streams:
                raise Overloaded(f"{self._config.max_streams} streams are running", retry_after=1.0)
        while self.memory.is_short and self._evict_oldest():
            pass  # what had a reader when memory ran short may have none now
        if self.memory.is_short:
            raise Overloaded("the memory for logs is used up by running streams", retry_after=1.0)

    def _evict_oldest(self) -> bool:
        for stream in self._ended.values():
            if stream.reader_count == 0:
                self._forget(stream)
                return True
        return False

    # -- the end of streams --

    def _stream_ended(self, stream: Stream) -> None:
        self._ended_total += 1
        self._ended[stream.id] = stream
        self.requests.ended(stream, self._timers.now())
        self.memory.running -= 1
        self._schedule_expiry(stream, self._config.retention)
        if stream.id not in self._pumps:  # it was still waiting for its turn
            self._close_ticket(stream)

    def _schedule_expiry(self, stream: Stream, delay: float) -> None:
        if stream.expiry is not None:
            stream.expiry.cancel()
        stream.expiry = self._timers.after(delay, lambda: self._expire(stream))

    def _expire(self, stream: Stream) -> None:
        if stream.reader_count:
            # Somebody is still reading: not before they are done or gone.
            self._schedule_expiry(stream, max(self._config.retention_acknowledged, 1.0))
        else:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if stream.expiry is not None:
            stream.expiry.cancel()
            stream.expiry = None
        self._streams.pop(stream.id, None)
        self._ended.pop(stream.id, None)
        self._by_request.pop((stream.origin.owner, stream.origin.request_id), None)
        self.memory.free(stream.log.bytes)

    # -- the end of the process --

    def drain(self) -> None:
        """Take no new work; running streams go on."""
        self._is_draining = True

    @property
    def unfinished(self) -> int:
        """Streams that run, and those whose reader is gone and may yet come back for the end."""
        return sum(map(self._is_unfinished, self._streams.values()))

    def has_unfinished(self, owner: Owner) -> bool:
        return any(
            self._is_unfinished(stream) for stream in self._streams.values() if stream.origin.owner == owner
        )

    def _is_unfinished(self, stream: Stream) -> bool:
        return not stream.is_ended or stream.is_awaited(self._timers.now())

    def seal(self) -> None:
        """End what still runs, with an end that its readers can tell from the provider's."""
        self.drain()
        for stream in list(self._streams.values()):
            stream.finish("incomplete", error=Shutdown())

    async def aclose(self) -> None:
        """End what still runs, and wait until every pump has let go of its provider."""
        self.seal()
        pumps = list(self._pumps.values())
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for stream in list(self._streams.values()):
            self._forget(stream)

    @property
    def largest_log(self) -> int:
        """Bytes of the log that has most. It looks at all of them."""
        return max((stream.log.bytes for stream in self._streams.values()), default=0)

    def statistics(self) -> RegistryStatistics:
        return RegistryStatistics(
            streams=len(self._streams),
            running=len(self._streams) - len(self._ended),
            log_bytes=self.memory.used,
            memory_bytes=self.memory.limit,
            created=self._created,
            ended=self._ended_total,
        )


class _Turn:
    """A stream that waits for its turn."""

    __slots__ = ("_ask", "_registry", "_route", "_stream", "_ticket")

    def __init__(self, registry: Registry, stream: Stream, ask: Ask, route: Route, ticket: Ticket) -> None:
        self._registry = registry
        self._stream = stream
        self._ask = ask
        self._route = route
        self._ticket = ticket

    def admitted(self) -> None:
        self._stream.queue_position = None
        # The model may have another route by now.
        route = self._registry._models.get(self._ask.model, self._route)
        self._registry._start(self._stream, self._ask, route, self._ticket)

    def expired(self, error: HoldfastError) -> None:
        self._stream.finish("failed", error=error)

    def position_changed(self, position: int) -> None:
        self._stream.move(position)
