"""`ClientSession` against `ServerSession` in memory: many streams, two clients, connections that are cut anywhere.

Every message travels in a queue. A cut loses what is still in the queues, in both directions; the server may
notice at once or much later. The server's store may be slow, so that its session holds, or fail, so that it
refuses for the time being; other processes take streams over. Whatever happens, what a client's application gets
is what the log holds, each entry once and in order, or an explicit refusal; the provider sees each request once;
and once the links hold, every stream comes to its end: no credit is lost.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.core.entries import EndBody, EndStatus, Position, error_body
from holdfast.core.log import Cursor, Log
from holdfast.core.session import client, server
from holdfast.core.session import messages as m
from holdfast.core.session.framing import SESSION_FRAMING
from holdfast.errors import (
    Cancelled,
    Draining,
    DuplicateRequest,
    HoldfastError,
    LogTrimmed,
    Overloaded,
    UnknownStream,
)

MAX_ENTRY = 40

#: What a server with a shared store has to look up.
LOOKUPS = (server.HelloReceived, server.CreateReceived, server.AttachReceived, server.CancelReceived)


@dataclass
class Generation:
    request: bytes
    log: Log
    entries: list[bytes] = field(default_factory=list)

    def end(self, status: EndStatus) -> None:
        if self.log.end is None:
            self.log.seal(EndBody(status))


class Gateway:
    """What the server's shell does, at its smallest."""

    def __init__(self) -> None:
        self.generations: dict[str, Generation] = {}  # by stream
        self.by_request: dict[str, str] = {}
        self.started: Counter[str] = Counter()
        self.parked: list[Cursor] = []
        self.connections: list[Connection] = []
        self.is_slow = False
        self.is_failing = False

    def create(self, request_id: str, request: bytes) -> tuple[str, bool]:
        known = self.by_request.get(request_id)
        if known is not None:
            if self.generations[known].request != request:
                raise DuplicateRequest
            return known, True
        stream = self.by_request[request_id] = f"st_{len(self.generations)}"
        self.generations[stream] = Generation(request, Log(stream, max_bytes=1_000_000))
        self.started[request_id] += 1
        return stream, False

    def cursor(self, resume: m.Resume) -> Cursor:
        generation = self.generations.get(resume.stream)
        if generation is None:
            raise UnknownStream
        return generation.log.cursor(Position(resume.after, resume.epoch), credit=resume.credit)


class Connection:
    """One connection: the server's end of it, and the two queues. Without `is_up` nothing arrives any more."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.session = server.ServerSession(negotiated=True, max_streams=1000)
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []
        self.is_up = True
        self.is_draining = False
        self.looked_up: server.Event | None = None  # while the session holds
        gateway.connections.append(self)

    def receive(self, text: bytes) -> None:
        self.take(self.session.receive_text(text))

    def take(self, event: server.Event | None) -> None:
        if self.gateway.is_slow and isinstance(event, LOOKUPS):
            assert self.looked_up is None
            self.session.hold()
            self.looked_up = event
        else:
            self.handle(event)

    def answer(self) -> None:
        """The store answers."""
        event, self.looked_up = self.looked_up, None
        self.handle(event)
        for event in self.session.resume():
            self.take(event)
        self.flush()
        assert self.session.is_holding == (self.looked_up is not None)

    def handle(self, event: server.Event | None) -> None:
        match event:
            case server.HelloReceived():
                states = [self.resume(resume) for resume in event.streams]
                heartbeat, limits = m.Heartbeat(20_000, 10_000), m.Limits(1_000_000, 1000, 1_000_000)
                self.session.send(m.Welcome(1, "s1", "model/1", heartbeat, limits, streams=states))
            case server.CreateReceived():
                self.create(event)
            case server.AttachReceived():
                try:
                    cursor = self.look_up(event.resume)
                    status: m.StreamStatus = "ended" if cursor.log.end is not None else "running"
                    attached = m.Attached(event.resume.stream, status, cursor.log.epoch, cursor.position)
                    self.session.send(attached)
                except HoldfastError as exc:
                    self.session.send_error(exc, stream=event.resume.stream)
            case server.DetachReceived():
                event.cursor.close()
            case server.CancelReceived():
                stream = event.stream or self.gateway.by_request.get(event.request_id or "")
                if event.stream is not None and self.gateway.is_failing and stream not in self.session.cursors:
                    self.session.send_error(Overloaded(), stream=event.stream)
                elif stream is not None:
                    self.gateway.generations[stream].end("cancelled")
            case server.CloseRequired():
                raise AssertionError(f"the client was closed with {event}")
        self.flush()

    def create(self, event: server.CreateReceived) -> None:
        request_id = event.request_id or ""
        try:
            if self.is_draining:
                raise Draining
            if self.gateway.is_failing:
                raise Overloaded
            stream, duplicate = self.gateway.create(request_id, event.request)
            cursor = self.attach(m.Resume(stream, credit=event.credit))
            self.session.send(m.Accepted(request_id, stream, cursor.log.epoch, duplicate))
        except HoldfastError as exc:
            self.session.send_error(exc, request_id=request_id)

    def resume(self, resume: m.Resume) -> m.StreamState:
        try:
            cursor = self.look_up(resume)
        except HoldfastError as exc:
            return m.StreamState(resume.stream, "refused", error=error_body(exc))
        status: m.StreamStatus = "ended" if cursor.log.end is not None else "running"
        return m.StreamState(resume.stream, status, cursor.log.epoch, cursor.position)

    def look_up(self, resume: m.Resume) -> Cursor:
        if self.gateway.is_failing:
            raise Overloaded(retry_after=0.5)
        return self.attach(resume)

    def attach(self, resume: m.Resume) -> Cursor:
        cursor = self.gateway.cursor(resume)
        older = self.session.attach(resume.stream, cursor)
        if older is not None:
            older.close()
        return cursor

    def read(self, pick: int, max_bytes: int) -> bool:
        """Send the next message of one stream; False where nothing is due."""
        ready = [stream for stream, cursor in self.session.cursors.items() if cursor.is_ready]
        if not ready:
            return False
        stream = ready[pick % len(ready)]
        cursor = self.session.cursors[stream]
        message = cursor.read(SESSION_FRAMING, max_bytes)
        assert message is not None
        if self.is_up:
            self.to_client.append(message)
        if cursor.is_done:
            self.session.retire(stream)
            if self.is_up:
                cursor.close()
            else:
                self.gateway.parked.append(cursor)
        return True

    def flush(self) -> None:
        sent = self.session.data_to_send()
        assert not any(json.loads(text).get("code") == "invalid_message" for text in sent)
        if self.is_up:
            self.to_client += sent

    def notice(self) -> None:
        """The server learns that the connection is gone: its cursors hold their place for the grace period."""
        self.gateway.parked += self.session.connection_lost()
        self.looked_up = None


@dataclass
class Reading:
    """What the application knows of one stream."""

    stream: client.ClientStream
    start: int
    received: list[bytes] = field(default_factory=list)
    waiting: int = 0  # bytes that were received and not consumed
    end: m.End | None = None
    error: HoldfastError | None = None
    is_left: bool = False
    may_be_trimmed: bool = False

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.error is not None or self.is_left


class Client:
    def __init__(self, name: str, gateway: Gateway) -> None:
        self.name = name
        self.gateway = gateway
        self.session = client.ClientSession(client=name, rng=random.Random(0), max_retries=1000, max_backoff=4.0)
        self.connection: Connection | None = None
        self.readings: list[Reading] = []
        self.now = 0.0
        self.last_heard = 0.0

    def connect(self) -> None:
        if self.connection is None:
            self.last_heard = self.now
            self.connection = Connection(self.gateway)
            self.session.connection_made(self.now)

    def lose(self) -> Connection | None:
        """The connection is cut. Return the server's end, which may not have noticed."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.is_up = False
            connection.to_client.clear()
            connection.to_server.clear()
            self.session.connection_lost()
        return connection

    def deliver_to_server(self, count: int) -> None:
        connection = self.connection
        if connection is not None:
            connection.to_server += self.session.data_to_send()
            for _ in range(count):
                if connection.to_server and not connection.session.must_pause:
                    connection.receive(connection.to_server.pop(0))

    def deliver_to_client(self, count: int) -> None:
        connection = self.connection
        if connection is not None:
            for text in connection.to_client[:count]:
                self.last_heard = self.now
                self.handle(self.session.receive_text(text, self.now))
            del connection.to_client[:count]

    def reading(self, stream: client.ClientStream) -> Reading:
        (reading,) = [reading for reading in self.readings if reading.stream is stream]
        return reading

    def handle(self, events: list[client.Event]) -> None:
        for event in events:
            match event:
                case client.EntriesReceived():
                    self.take(self.reading(event.stream), event.payloads)
                case client.StreamEnded():
                    reading = self.reading(event.stream)
                    assert not reading.is_over
                    reading.end = event.end
                case client.StreamFailed():
                    reading = self.reading(event.stream)
                    assert reading.end is None
                    assert reading.error is None
                    reading.error = event.error
                case client.ConnectionFailed() | client.SessionError():
                    raise AssertionError(f"both sides keep to the protocol, but: {event}")

    def take(self, reading: Reading, payloads: list[bytes]) -> None:
        assert not reading.is_over
        reading.received += payloads
        reading.waiting += sum(map(len, payloads))
        window = reading.stream.window
        if window is not None:
            # Whatever was granted, re-granted or lost: never more than the window, and one entry.
            assert reading.waiting - len(payloads[-1]) < window

    def consume(self, reading: Reading, size: int) -> None:
        size = min(size, reading.waiting)
        if size:
            reading.waiting -= size
            self.session.consume(reading.stream, size)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.handle(self.session.handle_timeout(self.now))


#: What can happen, and how often. Each takes a client, a choice and a size.
WEIGHTS = {
    "create": 2,
    "attach": 2,
    "cancel": 1,
    "detach": 1,
    "attach_anew": 1,
    "consume": 8,
    "append": 8,
    "complete": 1,
    "connect": 4,
    "cut": 2,
    "server_notices": 1,
    "server_writes_into_the_void": 1,
    "client_writes": 6,
    "server_reads": 10,
    "client_reads": 8,
    "round_trip": 6,
    "goaway": 1,
    "store_slows": 2,
    "store_fails": 2,
    "store_answers": 3,
    "take_over": 2,
    "time_passes": 3,
    "grace_is_over": 1,
    "trim": 2,
}
OPERATIONS = [name for name, weight in WEIGHTS.items() for _ in range(weight)]


class World:
    def __init__(self) -> None:
        self.gateway = Gateway()
        self.clients = [Client("a", self.gateway), Client("b", self.gateway)]
        self.half_open: list[Connection] = []
        self.requests = 0
        for me in self.clients:
            self.create(me, 0, 30)
            self.create(me, 1, 0)
            self.round_trip(me, 0, 2)

    def generation(self, choice: int) -> Generation:
        generations = list(self.gateway.generations.values())
        return generations[choice % len(generations)]

    # -- the applications --

    def create(self, me: Client, choice: int, size: int) -> None:
        self.requests += 1
        request_id = f"r{self.requests}"
        request = b'{"model":"%b"}' % request_id.encode()
        stream = me.session.create(request_id, request, window=size or None)
        me.readings.append(Reading(stream, 0))

    def attach(self, me: Client, choice: int, size: int) -> None:
        """Read a stream that the other client has created."""
        (other,) = [other for other in self.clients if other is not me]
        mine = {reading.stream.id for reading in me.readings if not reading.is_over}
        ids = [reading.stream.id for reading in other.readings if reading.stream.request_id is not None]
        free = sorted(id_ for id_ in ids if id_ is not None and id_ not in mine)
        if free:
            stream_id = free[choice % len(free)]
            after = min(choice % 8, self.gateway.generations[stream_id].log.next) - 1
            stream = me.session.attach(stream_id, after=after, window=size or None)
            me.readings.append(Reading(stream, after + 1, may_be_trimmed=True))

    def cancel(self, me: Client, choice: int, size: int) -> None:
        me.handle(me.session.cancel(me.readings[choice % len(me.readings)].stream))

    def detach(self, me: Client, choice: int, size: int) -> None:
        reading = me.readings[choice % len(me.readings)]
        me.session.detach(reading.stream)
        reading.is_left = True

    def attach_anew(self, me: Client, choice: int, size: int) -> None:
        """Leave a stream and read it again at once, while its entries are still on their way."""
        readings = [reading for reading in me.readings if reading.stream.id is not None and not reading.is_over]
        if readings:
            old = readings[choice % len(readings)]
            me.session.detach(old.stream)
            old.is_left = True
            start = old.start + len(old.received)
            stream = me.session.attach(old.stream.id or "", after=start - 1, window=size or None)
            me.readings.append(Reading(stream, start, may_be_trimmed=True))

    def consume(self, me: Client, choice: int, size: int) -> None:
        waiting = [reading for reading in me.readings if reading.waiting]
        if waiting:
            me.consume(waiting[choice % len(waiting)], size)

    # -- the provider --

    def append(self, me: Client, choice: int, size: int) -> None:
        running = [generation for generation in self.gateway.generations.values() if generation.log.end is None]
        if running:
            generation = running[choice % len(running)]
            # Every entry is another one, so that a swap or a repetition cannot pass unseen.
            first = len(generation.entries)
            width = 1 + (choice + size) % (MAX_ENTRY - 2)
            payloads = [b'"%b"' % str(first + i).zfill(width).encode() for i in range(1 + choice % 6)]
            generation.entries += payloads
            generation.log.append(payloads)

    def complete(self, me: Client, choice: int, size: int) -> None:
        self.generation(choice).end("completed")

    # -- the network --

    def connect(self, me: Client, choice: int, size: int) -> None:
        me.connect()

    def cut(self, me: Client, choice: int, size: int) -> None:
        connection = me.lose()
        if connection is not None and choice % 2:
            connection.notice()
        elif connection is not None:
            self.half_open.append(connection)

    def server_notices(self, me: Client, choice: int, size: int) -> None:
        if self.half_open:
            self.half_open.pop(0).notice()

    def server_writes_into_the_void(self, me: Client, choice: int, size: int) -> None:
        if self.half_open:
            self.half_open[choice % len(self.half_open)].read(choice, 1 + size)

    def client_writes(self, me: Client, choice: int, size: int) -> None:
        me.deliver_to_server(1 + choice % 4)

    def server_reads(self, me: Client, choice: int, size: int) -> None:
        for i in range(1 + choice % 4):
            if me.connection is not None:
                me.connection.read(choice + i, 1 + size)

    def client_reads(self, me: Client, choice: int, size: int) -> None:
        me.deliver_to_client(1 + choice % 5)

    def round_trip(self, me: Client, choice: int, size: int) -> None:
        me.connect()
        for _ in range(1 + size % 3):
            me.deliver_to_server(100)
            me.deliver_to_client(100)

    def goaway(self, me: Client, choice: int, size: int) -> None:
        connection = me.connection
        if connection is not None and connection.session.state is server.State.OPEN and not connection.is_draining:
            connection.is_draining = True
            connection.session.send(m.Goaway("drain"))
            connection.flush()

    def time_passes(self, me: Client, choice: int, size: int) -> None:
        # Never so long that a client gives up: cuts have an operation of their own.
        me.pass_time(min(size / 20, 5.0))
        if me.session.next_deadline() is not None and me.now > me.last_heard + 15:
            self.gateway.is_slow = False
            self.store_answers(me, choice, size)
            self.round_trip(me, choice, 2)

    # -- the store, and other processes --

    def store_slows(self, me: Client, choice: int, size: int) -> None:
        self.gateway.is_slow = choice % 3 > 0

    def store_fails(self, me: Client, choice: int, size: int) -> None:
        self.gateway.is_failing = choice % 2 == 0

    def store_answers(self, me: Client, choice: int, size: int) -> None:
        for connection in self.gateway.connections:
            if connection.looked_up is not None:
                connection.answer()

    def take_over(self, me: Client, choice: int, size: int) -> None:
        """Another process carries a stream on: readers are told before its first entry."""
        generation = self.generation(choice)
        if generation.log.end is None:
            generation.log.begin_epoch(generation.log.epoch + 1)
            stream = generation.log.stream.decode()
            for connection in self.gateway.connections:
                if stream in connection.session.cursors:
                    connection.session.send(m.Epoch(stream, generation.log.epoch))
                    connection.flush()

    # -- memory --

    def grace_is_over(self, me: Client, choice: int, size: int) -> None:
        while self.gateway.parked:
            self.gateway.parked.pop().close()
        for me in self.clients:
            for reading in me.readings:
                reading.may_be_trimmed = True

    def trim(self, me: Client, choice: int, size: int) -> None:
        self.generation(choice).log.trim()

    # -- what must hold --

    def check(self) -> None:
        assert all(count == 1 for count in self.gateway.started.values())
        for me in self.clients:
            for reading in me.readings:
                self.check_reading(reading)

    def check_reading(self, reading: Reading) -> None:
        if reading.stream.id is None:
            assert reading.received == []
            assert reading.end is None
        else:
            generation = self.gateway.generations[reading.stream.id]
            position = reading.start + len(reading.received)
            assert reading.received == generation.entries[reading.start : position]
            if reading.end is not None:
                log = generation.log
                assert log.end is not None
                assert reading.end.seq == log.next - 1
                assert reading.end.status == log.end.status
                # Whoever had the end already gets nothing else.
                assert position in (reading.end.seq, reading.end.seq + 1)
        if isinstance(reading.error, LogTrimmed):
            assert reading.may_be_trimmed
            if reading.stream.id is not None:
                assert generation.log.first > position
        elif isinstance(reading.error, Overloaded):
            # That is the answer to the application's own call; what was read before is asked for again.
            assert not reading.stream.was_read
            assert reading.stream.id is None or not reading.stream.is_cancelled
        elif reading.error is not None:
            assert isinstance(reading.error, Cancelled | Draining)
            assert reading.stream.is_cancelled

    def finish(self) -> None:
        """Let the links and the store hold and the applications read: everything comes to its end."""
        self.gateway.is_slow = self.gateway.is_failing = False
        self.store_answers(self.clients[0], 0, 0)
        for me in self.clients:
            if me.connection is not None and me.connection.is_draining:
                me.lose()
        for _ in range(3):
            for me in self.clients:
                self.exchange(me)
        for me in self.clients:
            for reading in me.readings:
                if reading.stream.is_cancelled and reading.error is None and reading.stream.id is not None:
                    log = self.gateway.generations[reading.stream.id].log
                    # A refused resume takes the cancel along, and of a reading that was left it is not reported.
                    was_trimmed = reading.is_left and log.first > reading.start + len(reading.received)
                    assert log.end is not None or was_trimmed
        for generation in self.gateway.generations.values():
            generation.end("completed")
        is_stuck = 0
        while is_stuck < 4 and not all(me.session.is_idle for me in self.clients):
            before = self.progress()
            for me in self.clients:
                self.exchange(me)
            is_stuck = is_stuck + 1 if self.progress() == before else 0
        for me in self.clients:
            assert all(reading.is_over for reading in me.readings)
            assert me.session.is_idle
        self.check()

    def exchange(self, me: Client) -> None:
        me.connect()
        me.pass_time(5.0)  # longer than any client waits before it asks again
        me.deliver_to_server(1000)
        while me.connection is not None and me.connection.read(0, 1000):
            pass
        me.deliver_to_client(1000)
        for reading in me.readings:
            me.consume(reading, 1000)

    def progress(self) -> int:
        readings = [reading for me in self.clients for reading in me.readings]
        return sum(len(reading.received) + reading.is_over for reading in readings)


STEPS = st.tuples(
    st.sampled_from(OPERATIONS), st.integers(0, 1), st.integers(0, 50), st.one_of(st.just(0), st.integers(0, 90))
)


@given(st.lists(STEPS, min_size=70, max_size=250))
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
def test_every_reading_is_exact_and_comes_to_its_end(steps: list[tuple[str, int, int, int]]) -> None:
    world = World()
    for name, who, choice, size in steps:
        getattr(world, name)(world.clients[who], choice, size)
        world.check()
    world.finish()
