"""All streams of this process: creation (once per request id), lookup by owner, retention and the memory bound."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.config import StreamsConfig
from holdfast.core.log import Log
from holdfast.errors import Draining, DuplicateRequest, Overloaded, UnknownModel, UnknownStream
from holdfast.streams.memory import LogMemory
from holdfast.streams.pump import Pump
from holdfast.streams.route import Route
from holdfast.streams.stream import Origin, Stream
from holdfast.timers import Timers
from holdfast.upstream.providers.openai import ChatRequest


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

    def __init__(self, config: StreamsConfig, models: Mapping[str, Route], timers: Timers) -> None:
        self._config = config
        self._models = models
        self._timers = timers
        self._streams: dict[str, Stream] = {}
        self._by_request: dict[tuple[str, str], Stream] = {}
        # Ended streams in the order of their end: the first to go when memory runs short.
        self._ended: dict[str, Stream] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self.memory = LogMemory(config.memory_bytes)
        self.memory.evict = self._evict_oldest
        self._created = 0
        self._ended_total = 0
        self._is_draining = False

    @property
    def models(self) -> list[str]:
        return list(self._models)

    def create(
        self,
        tenant: str,
        request: ChatRequest,
        *,
        request_id: str | None = None,
        detach_grace: float,
        keeps_running: bool = False,
    ) -> tuple[Stream, bool]:
        """Start a generation, or find the one that this request id has started; the flag says which.

        Raises `UnknownModel`, `DuplicateRequest` (same id, other request), `Overloaded` or `Draining`; then
        nothing was sent to a provider.
        """
        # Over a session the same bytes ask for a stream that over HTTP ask for a whole answer.
        digest = request.digest + (b"stream" if request.stream else b"whole")
        if request_id is not None:
            known = self._by_request.get((tenant, request_id))
            if known is not None:
                if known.origin.digest != digest:
                    raise DuplicateRequest(param="request_id")
                known.keeps_running |= keeps_running
                return known, True
        route = self._models.get(request.model)
        if route is None:
            raise UnknownModel(f"there is no model {request.model[:100]!r}; see GET /v1/models", param="model")
        self._admit()
        stream_id = "st_" + secrets.token_hex(16)
        stream = Stream(
            stream_id=stream_id,
            origin=Origin(tenant, request_id or stream_id, request.model, digest),
            log=Log(stream_id, max_bytes=self._config.log_bytes),
            memory=self.memory,
            detach_grace=detach_grace,
            timers=self._timers,
        )
        stream.keeps_running = keeps_running
        stream.on_end = self._stream_ended
        self._streams[stream_id] = stream
        self._by_request[tenant, stream.origin.request_id] = stream
        self._created += 1
        self.memory.running += 1
        task = Pump(stream, request, route, self._timers).start()
        self._pumps[stream_id] = task
        task.add_done_callback(lambda _: self._pumps.pop(stream_id, None))
        return stream, False

    def get(self, tenant: str, stream_id: str) -> Stream:
        """Find a stream of this tenant. Raises `UnknownStream`, the same for an absent and a foreign one."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.origin.tenant != tenant:
            raise UnknownStream
        return stream

    def find_request(self, tenant: str, request_id: str) -> Stream | None:
        return self._by_request.get((tenant, request_id))

    def acknowledged(self, tenant: str, stream_id: str) -> None:
        """The creator has the end: it is kept for the shorter retention."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.origin.tenant == tenant and stream.is_ended:
            self._schedule_expiry(stream, min(self._config.retention_acknowledged, self._config.retention))

    # -- bounds --

    def _admit(self) -> None:
        if self._is_draining:
            raise Draining
        if len(self._streams) >= self._config.max_streams:
            self._evict_oldest()
            if len(self._streams) >= self._config.max_streams:
                raise Overloaded(f"{self._config.max_streams} streams are running", retry_after=1.0)
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
        self.memory.running -= 1
        self._schedule_expiry(stream, self._config.retention)

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
        self._by_request.pop((stream.origin.tenant, stream.origin.request_id), None)
        self.memory.free(stream.log.bytes)

    # -- the end of the process --

    def drain(self) -> None:
        """Take no new work; running streams go on."""
        self._is_draining = True

    async def aclose(self) -> None:
        """Cancel what still runs, and wait until every pump has let go of its provider."""
        self.drain()
        pumps = list(self._pumps.values())
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for stream in list(self._streams.values()):
            self._forget(stream)

    def statistics(self) -> RegistryStatistics:
        return RegistryStatistics(
            streams=len(self._streams),
            running=len(self._streams) - len(self._ended),
            log_bytes=self.memory.used,
            memory_bytes=self.memory.limit,
            created=self._created,
            ended=self._ended_total,
        )
