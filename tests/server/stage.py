"""What the server stands on, without sockets and providers: tests turn the loop and feed the streams."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from holdfast.admission.principal import Principal
from holdfast.core.entries import EndBody, Owner
from holdfast.core.json_object import Members
from holdfast.core.limits.budget import Budget
from holdfast.core.limits.rate_limit import Concurrency, Lease
from holdfast.core.log import Log
from holdfast.core.moderation import ReadModeration
from holdfast.core.session.messages import SUBPROTOCOL
from holdfast.dialects.chat import CHAT
from holdfast.dialects.dialect import Dialect
from holdfast.errors import HoldfastError, UnknownStream
from holdfast.generation.launcher import Launcher, Started, Terms
from holdfast.observe.events import Event
from holdfast.server.delivery.flusher import Flusher
from holdfast.server.delivery.sse import SseDelivery
from holdfast.server.handshakes import Handshake
from holdfast.server.listener.exchange import Exchange, Request
from holdfast.server.listener.turns import Turns
from holdfast.server.listener.websocket import Liveness
from holdfast.server.peers import Peers
from holdfast.server.services import Services, SurfaceLimits
from holdfast.server.surfaces.holdfast_session import SessionProtocol, Sessions
from holdfast.streams.directory import Directory
from holdfast.streams.store import Claim, Done
from holdfast.streams.stream import Stream
from holdfast.timers import Timers
from holdfast_tools.bench.frames import CLOSE, TEXT, FrameSplitter, client_frame

LIMITS = SurfaceLimits(
    max_message=1 << 16,
    max_streams=4,
    log_bytes=1 << 20,
    hello_timeout=10.0,
    detach_grace=60.0,
    detach_grace_http=0.0,
    liveness=Liveness(20.0, 10.0),
)
TENANT = Principal("tenant", key_id="key")


class ManualLoop:
    """As much of an event loop as timers and the flusher use. Its clock moves by `pass_time` alone."""

    def __init__(self) -> None:
        self._now = 0.0
        self._soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._later: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self._now + delay, callback, args, cast(Any, self))
        heapq.heappush(self._later, (handle.when(), next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # asyncio's handles tell their loop

    def get_debug(self) -> bool:
        return False

    def turn(self) -> None:
        """Call what is due, and what becomes due by it."""
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)

    def pass_time(self, seconds: float) -> None:
        end = self._now + seconds
        while self._later and self._later[0][0] <= end:
            self._now, _, handle = heapq.heappop(self._later)
            if not handle.cancelled():
                handle._run()
            self.turn()
        self._now = end
        self.turn()


class MemoryTransport(asyncio.Transport):
    """Keeps what is written. While it is `stalled` its peer takes nothing: writes wait in its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.taken = bytearray()
        self.buffer = bytearray()
        self.is_stalled = False
        self.is_read = True
        self.is_aborted = False
        self.has_eof = False
        self._is_paused = False
        self._high = 64 * 1024

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        if not self.is_stalled:
            self.taken += data
            return
        self.buffer += data
        self._maybe_pause()

    def _maybe_pause(self) -> None:
        if len(self.buffer) > self._high and not self._is_paused:
            self._is_paused = True
            self.protocol.pause_writing()

    def stall(self) -> None:
        self.is_stalled = True

    def unstall(self) -> None:
        """The peer takes everything."""
        self.is_stalled = False
        self.taken += self.buffer
        self.buffer.clear()
        if self._is_paused:
            self._is_paused = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._maybe_pause()

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 40_000) if name == "peername" else default

    def abort(self) -> None:
        self.is_aborted = True

    close = abort


class ScriptedSource:
    """Feeds one stream by hand. It notes what it is asked for, and ends a cancelled stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.calls: list[str] = []

    def cancel(self, reason: str) -> None:
        self.calls.append("cancel")
        self.end("cancelled")

    def abandon(self) -> None:
        self.calls.append("abandon")

    def resume(self) -> None:
        self.calls.append("resume")

    def say(self, *numbers: int) -> None:
        self.stream.offer([b'{"n":%d}' % number for number in numbers])

    def end(self, status: Any = "completed", **fields: Any) -> None:
        self.stream.seal(EndBody(status, **fields))


class ScriptedStreams:
    """Stands for launcher and directory. While it is `late`, answers wait for `answer`."""

    models = ("demo",)
    is_shared = False

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.budget = Budget(1 << 30)
        self._waiting: deque[Callable[[], None]] = deque()
        self.is_late = False
        self.streams: dict[str, Stream] = {}
        self.requests: dict[str, Stream] = {}
        self.acknowledgements: list[str] = []
        #: Raised for requests that come.
        self.refusal: HoldfastError | None = None
        self.terms: list[Terms] = []

    def make(self, stream_id: str, *, owner: Owner = TENANT.owner, grace: float = 60.0) -> ScriptedSource:
        """Make a stream that runs."""
        stream = Stream(
            origin=Claim(owner, f"request of {stream_id}", stream_id, "demo", b""),
            log=Log(stream_id, max_bytes=LIMITS.log_bytes),
            account=self.budget.account(owner.tenant),
            detach_grace=grace,
            timers=self._timers,
            on_end=lambda stream: None,
        )
        source = ScriptedSource(stream)
        stream.source = source
        self.streams[stream_id] = stream
        return source

    def source(self, stream_id: str) -> ScriptedSource:
        source = self.streams[stream_id].source
        assert isinstance(source, ScriptedSource)
        return source

    def _answer(self, answer: Callable[[], None]) -> None:
        if self.is_late:
            self._waiting.append(answer)
        else:
            answer()

    def answer(self) -> None:
        """Give the oldest answer that is outstanding."""
        self._waiting.popleft()()

    @property
    def outstanding(self) -> int:
        return len(self._waiting)

    # -- the launcher --

    def create(
        self,
        principal: Principal,
        dialect: Dialect,
        raw: bytes | str,
        terms: Terms,
        done: Done[Started | HoldfastError],
        found: Members | None = None,
    ) -> None:
        self.terms.append(terms)
        self._answer(lambda: done(self._create(principal, json.loads(raw), terms)))

    def _create(self, principal: Principal, body: Any, terms: Terms) -> Started | HoldfastError:
        if self.refusal is not None:
            return self.refusal
        number = len(self.streams) + 1
        stream_id = f"st_{number}"
        stream = self.make(stream_id, owner=principal.owner, grace=terms.detach_grace).stream
        self.requests[terms.request_id or stream_id] = stream
        is_streamed = bool(body.get("stream")) if terms.stream is None else terms.stream
        return Started(stream, False, is_streamed)

    # -- the directory --

    def open(self, owner: Owner, wanted: Sequence[str], done: Done[list[Stream | HoldfastError]]) -> None:
        self._answer(lambda: done([self._find(owner, stream_id) for stream_id in wanted]))

    def _find(self, owner: Owner, stream_id: str) -> Stream | HoldfastError:
        stream = self.streams.get(stream_id)
        return stream if stream is not None and owner.may_read(stream.origin.owner) else UnknownStream()

    def find_request(self, owner: Owner, request_id: str, done: Done[Stream | HoldfastError | None]) -> None:
        self._answer(lambda: done(self.requests.get(request_id)))

    def acknowledged(self, owner: Owner, stream_id: str) -> None:
        self.acknowledgements.append(stream_id)


class Client:
    """A client's end of a session."""

    def __init__(self, stage: Stage, principal: Principal, *, negotiated: bool) -> None:
        self._stage = stage
        self._splitter = FrameSplitter()
        self.counted = Concurrency()
        lease = self.counted.acquire()
        assert isinstance(lease, Lease)
        self.transport = MemoryTransport()
        self.session: SessionProtocol = stage.sessions.open(
            Handshake(
                self.transport,
                principal,
                Request("GET", "/v1/ws/stream", {}, [], b"", "1.1"),
                subprotocol=SUBPROTOCOL if negotiated else None,
                number=7,
                leases=[lease],
            )
        )
        stage.peers.add(self.session)
        self.close: tuple[int, str] | None = None

    def say(self, type: str | None = None, **fields: Any) -> None:
        """Send a message, without a turn of the loop behind it."""
        message = fields if type is None else {"type": type, **fields}
        self.session.data_received(client_frame(json.dumps(message).encode()))

    def hear(self) -> list[dict[str, Any]]:
        """Turn the loop, and return the messages that have come."""
        self._stage.loop.turn()
        messages, data = [], bytes(self.transport.taken)
        self.transport.taken.clear()
        for first, payload in self._splitter.feed(data):
            if first == TEXT:
                messages.append(json.loads(payload))
            elif first == CLOSE:
                self.close = int.from_bytes(payload[:2], "big"), payload[2:].decode()
        return messages

    def types(self) -> list[str]:
        return [message["type"] for message in self.hear()]

    def hang_up(self) -> None:
        """The connection is gone."""
        self.session.connection_lost(None)


class Stage:
    """The services of one process over scripted streams."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.timers = Timers(loop)
        self.flusher = Flusher(ReadModeration(max_hold=0.0), loop)
        self.turns = Turns(loop, clock=loop.time)
        self.streams = ScriptedStreams(self.timers)
        self.budget = self.streams.budget
        self.peers = Peers(self.timers, max_connections=100)
        self.events: list[Event] = []
        self.services = Services(
            launcher=cast(Launcher, self.streams),
            directory=cast(Directory, self.streams),
            timers=self.timers,
            turns=self.turns,
            budget=self.budget,
            flusher=self.flusher,
            sse=SseDelivery(self.timers, self.flusher, keep_alive=15.0),
            peers=self.peers,
            observer=self,
            limits=LIMITS,
            clock=lambda: 1000.0,
        )
        self.sessions = Sessions(self.services, CHAT)

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def connect(self, principal: Principal = TENANT, *, negotiated: bool = True) -> Client:
        return Client(self, principal, negotiated=negotiated)

    def greet(self, principal: Principal = TENANT, **hello: Any) -> Client:
        """Connect and say hello; the welcome is left to be heard."""
        client = self.connect(principal)
        client.say("hello", version=1, **hello)
        return client


class HttpClient:
    """What carries one exchange: `answer` is all that was written to it."""

    number = 7
    address = "192.0.2.7"
    is_limited = False

    def __init__(self, method: str = "GET", path: str = "/", *, headers: Any = (), body: bytes = b"") -> None:
        self.answer = bytearray()
        self.refused = 0
        self.is_writable = True
        self.is_aborted = False
        self.is_finished = False
        self.request = Request(method, path, {}, list(headers), body, "1.1")
        self.exchange = Exchange(self, self.request, shape=CHAT, keep_alive=True)

    def write(self, data: bytes) -> None:
        self.answer += data

    def exchange_finished(self, *, keep_alive: bool) -> None:
        self.is_finished = True

    def abort(self) -> None:
        self.is_aborted = True

    @property
    def status(self) -> int | None:
        return int(self.answer[9:12]) if self.answer else None

    @property
    def body(self) -> bytes:
        """The body, its chunks put together."""
        head, _, rest = bytes(self.answer).partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" not in head:
            return rest
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return body
