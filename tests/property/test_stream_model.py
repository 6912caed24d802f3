"""A stateful model of streams in a store that answers late: writing, reading, losing, returning, and short memory.

Each reader sees an exact prefix of what was offered, or an explicit refusal. The memory in use is what the streams
hold, at every step, and nothing once they are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast.config import StreamsConfig
from holdfast.core.entries import EndBody, Position
from holdfast.core.limits.budget import Budget
from holdfast.errors import LogTrimmed
from holdfast.streams.directory import Directory
from holdfast.streams.memory_store import MemoryStore
from holdfast.streams.store import Claim, Claimed
from holdfast.streams.stored import StoredStream
from holdfast.streams.stream import Stream
from holdfast.streams.writer import StoreWriter
from holdfast.timers import Timers
from tests.support.clock import Clock
from tests.support.reading import ACME, Reading
from tests.support.stores import LateStore, Line

GRACE = 10.0
LOG_BYTES = 30_000
MEMORY = 40_000


@dataclass
class Client:
    """It keeps what it has received over all its connections."""

    received: list[bytes] = field(default_factory=list)
    acknowledged: int = -1
    reading: Reading | None = None


class Source:
    """A provider that offers until it is told to wait, and stops when it is told to."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.is_paused = False
        self.is_over = False
        stream.source = self

    def seal(self, end: EndBody) -> None:
        self.is_over = True
        self.stream.seal(end)

    def cancel(self, reason: str) -> None:
        self.seal(EndBody("cancelled"))

    def abandon(self) -> None:
        self.cancel("")

    def resume(self) -> None:
        assert self.is_paused, "resumed without having been told to wait"
        self.is_paused = False


class Generated:
    """One stream, and what its provider has offered so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.source = Source(stream)
        self.offered: list[bytes] = []
        self.end: EndBody | None = None
        self.clients = [Client(), Client()]


class StreamModel(RuleBasedStateMachine):
    """Two streams in one memory. `is_shared` and how late the store answers are drawn by the subclasses."""

    is_shared = True

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()  # type: ignore[abstract] # what it lacks is never called
        self.timers = Timers(self.clock)
        self.line = Line()
        memory_store = MemoryStore(self.timers, is_shared=self.is_shared)
        config = StreamsConfig(log_bytes=LOG_BYTES, retention=5.0, retention_acknowledged=1.0)
        budget = Budget(MEMORY)
        if self.is_shared:
            store = LateStore(memory_store, self.line)
            writer = StoreWriter(store, self.clock, lambda stream, error: None)
            self.directory = Directory(config, self.timers, store, budget, writer=writer)
        else:
            self.directory = Directory(config, self.timers, memory_store, budget)
        self.ends: list[Stream] = []
        self.directory.on_ended(self.ends.append)
        self.number = 0
        self.streams = [self.begin(), self.begin()]

    def begin(self) -> Generated:
        self.number += 1
        claims: list[Claimed] = []

        def done(claimed: object) -> None:
            assert isinstance(claimed, Claimed)
            claims.append(claimed)

        self.directory.claim(ACME, f"r-{self.number}", model="demo", digest=b"", done=done)
        self.line.settle()
        assert isinstance(claims[0].claim, Claim)
        return Generated(self.directory.add(claims[0], detach_grace=GRACE))

    def pick(self, number: int) -> tuple[Generated, Client]:
        generated = self.streams[number // 2]
        return generated, generated.clients[number % 2]

    # -- the provider --

    @rule(which=st.integers(0, 1), sizes=st.lists(st.integers(1, 8000), min_size=1, max_size=4))
    def offer(self, which: int, sizes: list[int]) -> None:
        generated = self.streams[which]
        payloads = [b"%d:" % len(generated.offered) + b"x" * size for size in sizes]
        if generated.source.is_over:
            # What was on its way when it ended: nothing comes of it.
            generated.stream.offer(payloads)
            assert not generated.stream.is_full
            return
        if generated.source.is_paused:
            return
        generated.offered += payloads
        generated.stream.offer(payloads)
        generated.source.is_paused = generated.stream.is_full

    @rule(which=st.integers(0, 1), status=st.sampled_from(["completed", "failed"]))
    def seal(self, which: int, status: str) -> None:
        self.streams[which].source.seal(EndBody("completed" if status == "completed" else "failed"))

    @rule(which=st.integers(0, 1))
    def cancel(self, which: int) -> None:
        self.streams[which].stream.cancel()

    # -- the store and time --

    @rule(steps=st.integers(1, 4))
    def store_answers(self, steps: int) -> None:
        for _ in range(steps):
            self.line.step()

    @rule()
    def turn_ends(self) -> None:
        self.clock.settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # -- the clients --

    @rule(number=st.integers(0, 3))
    def attach(self, number: int) -> None:
        generated, client = self.pick(number)
        if client.reading is not None:
            return
        after = len(client.received) - 1
        try:
            client.reading = Reading(generated.stream, Position(after, 1), is_slow=True)
        except LogTrimmed:
            # Refused, not served with a gap; and only where others have gone on without it.
            assert after + 1 < generated.stream.log.first
        else:
            client.acknowledged = after

    @rule(number=st.integers(0, 3))
    def read(self, number: int) -> None:
        _, client = self.pick(number)
        if client.reading is not None:
            client.received += client.reading.cursor.read_payloads(6000)

    @rule(number=st.integers(0, 3))
    def acknowledge(self, number: int) -> None:
        generated, client = self.pick(number)
        if client.reading is not None:
            client.reading.cursor.consume()
            client.acknowledged = client.reading.cursor.consumed
            generated.stream.resume_source()

    @rule(number=st.integers(0, 3), how=st.sampled_from(["lose", "detach", "release"]))
    def leave(self, number: int, how: str) -> None:
        generated, client = self.pick(number)
        if client.reading is not None:
            cursor, client.reading = client.reading.cursor, None
            getattr(generated.stream, how)(cursor)

    @rule(which=st.integers(0, 1))
    @precondition(lambda self: any(self.is_forgotten(generated) for generated in self.streams))
    def begin_another(self, which: int) -> None:
        if self.is_forgotten(self.streams[which]):
            self.streams[which] = self.begin()

    def is_forgotten(self, generated: Generated) -> bool:
        return generated.stream.id not in self.directory._streams

    # -- what always holds --

    @invariant()
    def every_client_has_an_exact_prefix(self) -> None:
        for generated in self.streams:
            for client in generated.clients:
                entries = client.received[: len(generated.offered)]
                assert entries == generated.offered[: len(entries)]
                assert len(client.received) <= generated.stream.log.next

    @invariant()
    def what_is_visible_was_accepted(self) -> None:
        for generated in self.streams:
            stream = generated.stream
            assert stream.log.next - stream.is_ended <= stream.accepted - stream.is_ended == len(generated.offered)

    @invariant()
    def memory_in_use_is_what_the_streams_hold(self) -> None:
        budget = self.directory.budget
        known = list(self.directory._streams.values())
        assert budget.used == sum(stream.charged for stream in known)
        assert all(stream.charged >= stream.held for stream in known)
        assert budget.running == sum(not stream.is_ended for stream in known)
        assert all(stream in known and not stream.is_ended for stream in budget.waiting)
        assert budget.reclaimable == sum(stream.charged for stream in known if stream.is_ended)

    @invariant()
    def who_waits_for_room_is_resumed_where_there_is_some(self) -> None:
        for generated in self.streams:
            if generated.source.is_paused and not generated.source.is_over:
                assert generated.stream in self.directory.budget.waiting

    @invariant()
    def each_end_comes_once(self) -> None:
        assert len(self.ends) == len(set(self.ends))

    def teardown(self) -> None:
        """All clients leave, everything is stored, time passes: nothing is left."""
        for generated in self.streams:
            for client in generated.clients:
                if client.reading is not None:
                    generated.stream.release(client.reading.cursor)
            generated.stream.cancel()
        while self.line or self.clock._ready:
            self.clock.settle()
            self.line.settle()
        for generated in self.streams:
            stream = generated.stream
            assert stream.is_ended
            assert stream.log.next == len(generated.offered) + 1
            if isinstance(stream, StoredStream):
                assert stream.held == stream.log.bytes
        self.clock.advance(30.0)
        self.line.settle()
        use = self.directory.statistics()
        assert (use.streams, use.log_bytes, self.directory.budget.running) == (0, 0, 0)
        assert not self.directory.budget.waiting
        assert self.timers.pending == 0
        self.timers.close()


class OwnStoreModel(StreamModel):
    """With the store of one process, whose streams are visible at once."""

    is_shared = False


MODEL = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
StreamModel.TestCase.settings = MODEL
OwnStoreModel.TestCase.settings = MODEL
TestStreamModel = StreamModel.TestCase
TestOwnStoreModel = OwnStoreModel.TestCase
