"""No interleaving of arrivals, ends, failures, cancels and time exceeds a limit or leaves anything behind."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from holdfast.admission.queue import Admission, Ticket
from holdfast.config.limits import LimitConfig, LimitsConfig, QueueConfig
from holdfast.core.entries import Usage
from holdfast.dialects.ask import Ask, Bounds
from holdfast.errors import HoldfastError, QueueFull, QueueTimeout, RateLimited

KEYS = {"k0": "t0", "k1": "t0", "k2": "t1", "k3": "t2"}
MODELS = {"small": 1, "large": 3, "free": None}


class Clock:
    """Timers that the test drives."""

    def __init__(self) -> None:
        self.time = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.time

    def after(self, delay: float, callback: Callable[[], None]) -> None:
        self._due.append((self.time + delay, callback))

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while due := [entry for entry in self._due if entry[0] <= end]:
            entry = min(due, key=lambda entry: entry[0])
            self._due.remove(entry)
            self.time = max(self.time, entry[0])
            entry[1]()
        self.time = end


class Asked:
    """A request as the registry would treat it: its ticket, and what became of its turn."""

    def __init__(self, key: str, model: str) -> None:
        self.key = key
        self.model = model
        self.ticket: Ticket | None = None
        self.state = "queued"
        self.positions: list[int] = []

    def admitted(self) -> None:
        assert self.state == "queued"
        self.state = "running"

    def expired(self, error: HoldfastError) -> None:
        assert self.state == "queued"
        assert isinstance(error, QueueTimeout)
        self.state = "expired"
        assert self.ticket is not None
        self.ticket.close(None, 0)

    def position_changed(self, position: int) -> None:
        assert self.state == "queued"
        assert self.positions[-1] != position
        self.positions.append(position)


step = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 11), st.integers(1, 400)),
    st.tuples(st.just("ask"), st.integers(0, 11), st.integers(1, 400)),
    st.tuples(st.just("end"), st.integers(0, 99), st.integers(0, 600)),
    st.tuples(st.just("fail"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 99), st.integers(0, 50)),
    st.tuples(st.just("wait"), st.integers(0, 40), st.just(0)),
)


@given(st.lists(step, max_size=100))
def test_no_interleaving_exceeds_a_limit_or_leaves_anything_behind(steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    limits = LimitsConfig(
        requests_per_minute=6,
        tokens_per_minute=1000,
        concurrent_streams=4,
        tenant=LimitConfig(requests_per_minute=9, concurrent_streams=2),
        keys={"k1": LimitConfig(priority="high"), "k3": LimitConfig(priority="low", requests_per_minute=0)},
    )
    admission = Admission(
        limits,
        QueueConfig(max_waiting=5, max_waiting_per_tenant=3, deadline=20.0),
        MODELS,
        clock,  # type: ignore[arg-type]
    )
    alive: list[Asked] = []
    granted: list[tuple[float, str]] = []
    for kind, number, amount in steps:
        if kind == "ask":
            key, model = list(KEYS)[number % 4], list(MODELS)[number // 4]
            asked = Asked(key, model)
            bounds = Bounds(amount, 1, 0, 40, "max_tokens")
            request = Ask("chat", model, True, b"{}", bounds, False)
            before = admission.held
            try:
                asked.ticket = admission.enter(KEYS[key], key, request)
            except (RateLimited, QueueFull) as error:
                wait = error.retry_after
                assert admission.held == before
                assert wait is not None and 0 < wait <= 60  # noqa: PT018
            else:
                granted.append((clock.time, key))
                alive.append(asked)
                if asked.ticket.position is None:
                    asked.state = "running"
                else:
                    asked.positions.append(asked.ticket.position)
                    asked.ticket.wait(asked)
        elif kind == "wait":
            clock.advance(number)
        else:
            able = [asked for asked in alive if kind == "cancel" or asked.state == "running"]
            if able:
                asked = able[number % len(able)]
                assert asked.ticket is not None
                asked.state = "ended"
                usage = Usage(amount, 0, amount) if kind == "end" else None
                for _ in range(2):
                    asked.ticket.close(usage, amount)
        alive = [asked for asked in alive if asked.state in ("queued", "running")]
        check(admission, alive, granted, clock.time)
    for asked in alive:
        assert asked.ticket is not None
        asked.state = "ended"
        asked.ticket.close(None, 0)
    assert set(admission.held.values()) == {0}
    clock.advance(60.0)
    for account in [*admission.limiter.keys, *admission.limiter.tenants]:
        assert account.is_idle(clock.time)


def check(admission: Admission, alive: list[Asked], granted: list[tuple[float, str]], now: float) -> None:
    running = [asked for asked in alive if asked.state == "running"]
    queued = [asked for asked in alive if asked.state == "queued"]
    for model, limit in MODELS.items():
        count = sum(asked.model == model for asked in running)
        assert admission.models[model].used == count
        assert limit is None or count <= limit
    tenants = {tenant: sum(KEYS[asked.key] == tenant for asked in running) for tenant in KEYS.values()}
    assert max(tenants.values()) <= 2
    assert len(queued) == len(admission.queue) <= 5
    for key in KEYS:
        assert sum(asked.key == key for asked in alive) <= 4
        if key != "k3":
            assert sum(asked == key and now - 60 < when for when, asked in granted) <= 6
    for tenant in set(KEYS.values()):
        assert sum(KEYS[asked] == tenant and now - 60 < when for when, asked in granted) <= 9
    for asked in queued:
        # Nobody waits for what is free.
        limit = MODELS[asked.model]
        model_full = limit is not None and admission.models[asked.model].used >= limit
        assert model_full or tenants[KEYS[asked.key]] >= 2
    for account in admission.limiter.keys:
        assert account.tokens is not None
        assert account.tokens.held == sum((KEYS[asked.key], asked.key) == account.name for asked in queued)
