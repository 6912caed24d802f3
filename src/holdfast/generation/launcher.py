"""The one place where generations begin: parses, authorizes, admits and starts what a surface is asked for."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Struct

from holdfast.admission.principal import Principal
from holdfast.admission.queue import Admission
from holdfast.core.entries import EndBody, error_body
from holdfast.core.frameless import without_frames
from holdfast.core.json_object import Members
from holdfast.core.limits.budget import Kind
from holdfast.dialects.ask import Ask
from holdfast.dialects.dialect import Dialect
from holdfast.errors import (
    Cancelled,
    Draining,
    DuplicateRequest,
    HoldfastError,
    InvalidRequest,
    Shutdown,
    UnknownModel,
)
from holdfast.generation.generation import Generation
from holdfast.generation.pump import Pump
from holdfast.generation.route import Route
from holdfast.observe.events import Caller, Observer, RequestEnded, RequestRefused, RequestStarted
from holdfast.streams.directory import Directory
from holdfast.streams.store import Claimed, Done
from holdfast.streams.stream import Stream
from holdfast.timers import Timers

#: A request of more bytes is first judged by its size and its caller's rates alone. A smaller one is decoded in no
#: more time than that takes.
_LARGE = 64 * 1024
#: A request is held as it came, for another try, and as it is written for a provider.
_COPIES = 2


class Terms(Struct, frozen=True):
    """What a surface decides about a generation, beside what the request says.

    `detach_grace` is in seconds: how long it goes on without a reader. `stream` overrides the request's own
    choice. `hops` are the gateways that the request has passed. `connection` and `session` are for the log.
    """

    detach_grace: float
    request_id: str | None = None
    stream: bool | None = None
    hops: bytes = b""
    keeps_running: bool = False
    connection: int | None = None
    session: str | None = None


class Started(NamedTuple):
    """The stream that a request has started; of a duplicate, the one that an earlier request had.

    `is_streamed` says whether the request asks for its answer as a stream, or whole.
    """

    stream: Stream
    is_duplicate: bool
    is_streamed: bool


class _Request(NamedTuple):
    """One request while it is looked up whether it is new."""

    principal: Principal
    dialect: Dialect
    ask: Ask
    terms: Terms
    digest: bytes
    #: As it came, in bytes or characters.
    size: int

    @property
    def caller(self) -> Caller:
        return _caller(self.principal, self.terms)


class Launcher:
    """Starts generations, and holds their tickets and pumps until they end.

    `routes` says which endpoints serve a model; a model may get another route while requests for it wait.
    """

    def __init__(
        self,
        directory: Directory,
        routes: Mapping[str, Route],
        admission: Admission,
        timers: Timers,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` tells the wall time, against which tokens expire."""
        self._directory = directory
        self._routes = routes
        self._admission = admission
        self._timers = timers
        self._observer = observer
        self._clock = clock
        self._generations: dict[Stream, Generation] = {}
        self._pumps: dict[Stream, asyncio.Task[None]] = {}
        self.is_draining = False
        # Who waits for generations to let go of their providers, with those that are left for each.
        self._watches: list[tuple[set[Stream], Callable[[], None]]] = []
        directory.on_ended(self._stream_ended)

    @property
    def models(self) -> list[str]:
        """The names of the models that may be asked for."""
        return list(self._routes)

    def create(
        self,
        principal: Principal,
        dialect: Dialect,
        raw: bytes,
        terms: Terms,
        done: Done[Started | HoldfastError],
        found: Members | None = None,
    ) -> None:
        """Start a generation, or find the one that this request id has started.

        It may have to wait in the queue: then its stream has a `queue_position`. `done` is called once: with the
        stream, or with what refuses it (`InvalidRequest`, `Forbidden`, `UnknownModel`, `DuplicateRequest`,
        `RateLimited`, `QueueFull`, `Overloaded`, `Draining`, ...); then nothing was sent to a provider, and
        nothing is held. `found` are the members of the request where they are known already.
        """
        refusal = self._refusal(principal, dialect, raw) if len(raw) > _LARGE else None
        if refusal is None:
            self._decode(principal, dialect, raw, terms, done, found)
            return

        def answer(claimed: Claimed | HoldfastError | None) -> None:
            if isinstance(claimed, Claimed):
                self._decode(principal, dialect, raw, terms, done, found)
                return
            self._observer.observe(RequestRefused(_caller(principal, terms), None, terms.request_id, refusal))
            done(without_frames(refusal))

        if terms.request_id is None:
            answer(None)
        else:
            self._directory.find_claim(principal.owner, terms.request_id, answer)

    def _refusal(self, principal: Principal, dialect: Dialect, raw: bytes) -> HoldfastError | None:
        """Say why a new request is refused, as far as that is known before it is decoded."""
        try:
            principal.check_expiry(self._clock())
            if self.is_draining:
                raise Draining(retry_after=1.0)
            self._admission.check_size(principal.tenant, principal.key_id, dialect.least_text(raw))
        except HoldfastError as exc:
            return exc
        return None

    def _decode(
        self,
        principal: Principal,
        dialect: Dialect,
        raw: bytes,
        terms: Terms,
        done: Done[Started | HoldfastError],
        found: Members | None,
    ) -> None:
        try:
            ask = dialect.parse(raw, stream=terms.stream, found=found)
            principal.authorize(ask.model, ask.bounds, self._clock())
            if terms.hops:
                ask = msgspec.structs.replace(ask, hops=terms.hops)
        except HoldfastError as exc:
            done(without_frames(exc))
            return
        # Without a name of the caller's own nobody can send it again.
        digest = b"" if terms.request_id is None else _digest(raw, ask)
        request = _Request(principal, dialect, ask, terms, digest, len(raw))

        def answer(claimed: Claimed | HoldfastError) -> None:
            result: Started | HoldfastError
            try:
                result = self._answer(request, claimed)
            except HoldfastError as exc:
                self._observer.observe(RequestRefused(request.caller, ask.model, terms.request_id, exc))
                result = without_frames(exc)
            done(result)  # outside: what the surface raises is its own

        self._directory.claim(
            principal.owner, terms.request_id, model=ask.model, digest=request.digest, done=answer
        )

    def _answer(self, request: _Request, claimed: Claimed | HoldfastError) -> Started:
        if isinstance(claimed, HoldfastError):
            raise claimed
        if not claimed.is_new:
            if claimed.claim.digest != request.digest:
                raise DuplicateRequest(param="request_id")
            stream = self._directory.follow(claimed)
        else:
            try:
                stream = self._start(request, claimed)
            except BaseException:
                self._directory.unclaim(claimed)
                raise
        if request.terms.keeps_running:
            stream.keep_running()
        return Started(stream, not claimed.is_new, request.ask.stream)

    def _start(self, request: _Request, claimed: Claimed) -> Stream:
        ask, caller = request.ask, request.caller
        route = self._route(ask)
        if self.is_draining:
            raise Draining(retry_after=1.0)
        account = self._directory.check_room(claimed.claim.owner.tenant)
        size = _COPIES * request.size
        if not account.take(Kind.REQUESTS, size):
            raise account.refusal(size)
        try:
            ticket = self._admission.enter(caller.tenant, caller.key, ask)
        except BaseException:
            account.free(Kind.REQUESTS, size)
            raise
        stream = self._directory.add(claimed, detach_grace=request.terms.detach_grace)
        generation = Generation(stream, ask, caller, ticket, self._timers, self._observer)
        generation.size = size
        self._generations[stream] = generation
        self._observer.observe(
            RequestStarted(
                stream.id,
                stream.origin.request_id,
                caller,
                ask.model,
                ask.dialect,
                lambda: request.dialect.prompt_of(ask),
            )
        )
        if ticket.position is None:
            self._run(generation, route)
        else:
            generation.wait(ticket.position, partial(self._admitted, route))
        return stream

    def _route(self, ask: Ask) -> Route:
        """Find the endpoints for a request. Raises `UnknownModel`; `InvalidRequest` where none answers its API."""
        route = self._routes.get(ask.model)
        if route is None:
            raise UnknownModel(f"there is no model {ask.model[:100]!r}; see GET /v1/models", param="model")
        if not route.accepts(ask.dialect):
            raise InvalidRequest(
                f"no provider of the model {ask.model[:100]!r} can answer a request of the API `{ask.dialect}`",
                param="model",
            )
        return route

    def _admitted(self, route: Route, generation: Generation) -> None:
        # The model may have another route by now; or none that can answer, where the one that was found still can.
        ask = generation.ask
        newer = self._routes.get(ask.model)
        self._run(generation, newer if newer is not None and newer.accepts(ask.dialect) else route)

    def _run(self, generation: Generation, route: Route) -> None:
        stream = generation.stream
        pump = Pump(generation, route, self._timers, self._observer)
        task = self._pumps[stream] = pump.start()
        task.add_done_callback(partial(self._pump_ended, stream, pump))

    def _pump_ended(self, stream: Stream, pump: Pump, _: asyncio.Task[None]) -> None:
        """The provider is let go of, so what the stream held of its capacity is free."""
        # A task that is cancelled before its first step never gets to say so.
        stream.seal(EndBody("cancelled", error=error_body(Cancelled())))
        del self._pumps[stream]
        self._generations[stream].ticket.close(pump.usage, pump.units)
        if stream.is_ended:
            self._forget(stream)

    def _stream_ended(self, stream: Stream) -> None:
        generation = self._generations.get(stream)
        end = stream.end
        if generation is None or end is None:
            return
        log = stream.log
        self._observer.observe(
            RequestEnded(
                stream.id,
                stream.origin.request_id,
                generation.caller,
                stream.origin.model,
                end,
                duration=self._timers.now() - stream.created,
                queued=generation.queued,
                entries=log.next - 1,
                answer=lambda size: log.slice(log.first, size),
            )
        )
        if stream not in self._pumps:  # it was still waiting in the queue, or its end had to be stored
            generation.ticket.close(None, 0)
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        """The stream has its end, and its provider is let go of."""
        stream.account.free(Kind.REQUESTS, self._generations.pop(stream).size)
        if self._watches:
            self._count_down(stream)

    def after_running(self, done: Callable[[], None]) -> None:
        """Call `done` once every generation that runs or waits now has ended and let go of its provider.

        Where there is none, that is in this turn.
        """
        if self._generations:
            self._watches.append((set(self._generations), done))
        else:
            done()

    def _count_down(self, stream: Stream) -> None:
        watches, self._watches = self._watches, []
        for left, done in watches:
            left.discard(stream)
            if left:
                self._watches.append((left, done))
            else:
                done()

    # -- the end of the process --

    def drain(self) -> None:
        """Take no new work; running streams go on."""
        self.is_draining = True

    def seal(self) -> None:
        """End what still runs, with an end that its readers can tell from the provider's."""
        self.drain()
        # What other processes own is not ours to end: its readers find it there.
        for stream in list(self._generations):
            stream.seal(EndBody("incomplete", error=error_body(Shutdown())))

    async def aclose(self) -> None:
        """End what still runs, and wait until every pump has let go of its provider."""
        self.seal()
        pumps = list(self._pumps.values())
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._directory.aclose()


def _caller(principal: Principal, terms: Terms) -> Caller:
    return Caller(principal.tenant, principal.key_id, terms.connection, terms.session)


def _digest(raw: bytes, ask: Ask) -> bytes:
    """The same bytes ask for something else of another API, or over a session, where they are streamed."""
    how = b"stream" if ask.stream else b"whole"
    return b"%b %b %b" % (hashlib.sha256(raw).digest(), ask.dialect.encode(), how)
