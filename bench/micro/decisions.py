"""What keeps and decides: the log, the rate limit, the concurrency limit and the fair queue."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from bench.micro.operation import Operation, Run
from holdfast.core.limits.budget import Account, Budget, Kind
from holdfast.core.limits.fair_queue import FairQueue
from holdfast.core.limits.rate_limit import Concurrency, RateLimit
from holdfast.core.log import Log
from holdfast.core.session.framing import SESSION_FRAMING

PAYLOAD = b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * 200 + b'"}}]}'
TENANTS = 64
WAITING = 1024


def _log_append(readers: int) -> Run:
    """Append one entry and read it with every cursor; all is consumed every 256 entries and trimmed."""
    log = Log("st_" + "0" * 32, max_bytes=1 << 20)
    cursors = [log.cursor() for _ in range(readers)]
    entry = [PAYLOAD]

    def run(count: int) -> None:
        read = 0
        for number in range(count):
            log.append(entry)
            for cursor in cursors:
                message = cursor.read(SESSION_FRAMING, 32_768)
                read += message is not None
            if number % 256 == 255:
                for cursor in cursors:
                    cursor.consume()
                log.trim()
        if read != count * readers:
            raise RuntimeError(f"{read} messages were read of {count * readers}")

    return run


def _log_replay() -> Run:
    """Read a log of 1,024 entries from its start in messages of 32 KiB, as a client that comes back does."""
    log = Log("st_" + "0" * 32, max_bytes=1 << 24)
    log.append([PAYLOAD] * 1024)

    def run(count: int) -> None:
        for _ in range(count // 1024):
            cursor = log.cursor()
            while cursor.read(SESSION_FRAMING, 32_768) is not None:
                pass
            if cursor.position != 1024:
                raise RuntimeError(f"the replay ended at {cursor.position} of 1024")
            cursor.close()

    return run


def _limiter() -> Run:
    """Reserve tokens, begin, and settle, at 100 requests a second; the window is always in motion."""
    limit, tick = RateLimit(1_000_000), itertools.count()

    def run(count: int) -> None:
        for _ in range(count):
            now = next(tick) * 0.01
            reservation = limit.reserve(now, 100)
            if reservation is None:
                raise RuntimeError("the limit refused what it should grant")
            reservation.start(now)
            reservation.settle(now, 80)

    return run


def _concurrency() -> Run:
    held = Concurrency(8)

    def run(count: int) -> None:
        for _ in range(count):
            lease = held.acquire()
            if lease is None:
                raise RuntimeError("the limit refused what it should grant")
            lease.release()
        if held.used:
            raise RuntimeError(f"{held.used} leases were not given back")

    return run


def _fair_queue() -> Run:
    """Serve one and let one come, while 1,024 of 64 tenants wait."""
    queue: FairQueue[int] = FairQueue(max_waiting=2 * WAITING, timeout=60.0)
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    numbers = itertools.count()
    for number in range(WAITING):
        queue.push("model", tenants[number % TENANTS], number, now=0.0, cost=100.0)

    def run(count: int) -> None:
        for _ in range(count):
            place = queue.pop("model")
            if place is None:
                raise RuntimeError("the queue served nobody although many wait")
            queue.settle(place, 150.0)
            number = next(numbers)
            queue.push("model", tenants[number % TENANTS], number, now=0.0, cost=100.0)
        if len(queue) != WAITING:
            raise RuntimeError(f"{len(queue)} wait in the queue, not {WAITING}")

    return run


def _eviction(ended: int) -> Run:
    """Let the largest user's oldest log go and have another one end, while so many of four tenants are kept."""
    numbers = itertools.count()

    def account_of(log: Hashable) -> Account:
        return accounts[hash(log) % 4]

    def let_go(log: Hashable) -> None:
        account_of(log).free(Kind.LOGS, 1000)

    budget = Budget(1 << 30, let_go=let_go)
    accounts = [budget.account(f"tenant-{number}") for number in range(4)]

    def end() -> None:
        log = next(numbers)
        account_of(log).add(Kind.LOGS, 1000)
        account_of(log).may_go(log, 1000)

    for _ in range(ended):
        end()

    def run(count: int) -> None:
        for _ in range(count):
            if not budget.reclaim():
                raise RuntimeError("nothing was let go of although logs have ended")
            end()
        if budget.used != 1000 * ended:
            raise RuntimeError(f"{budget.used} bytes are held, not those of {ended} logs")

    return run


OPERATIONS = (
    Operation(
        "log_append", "an entry appended and read by 1 cursor", lambda: _log_append(1), step=256, counted=512
    ),
    Operation("log_fan_out", "an entry appended and read by 4", lambda: _log_append(4), step=256, counted=512),
    Operation("log_replay", "an entry of a long log read again", _log_replay, step=1024, counted=2048),
    Operation("rate_limit", "tokens reserved, begun and settled", _limiter),
    Operation("concurrency", "a lease acquired and released", _concurrency),
    Operation("evict_of_10", "one of 10 ended logs let go, another ended", lambda: _eviction(10)),
    Operation(
        "evict_of_100k",
        "the same of 100,000",
        lambda: _eviction(100_000),
    ),
    Operation("fair_queue", "one served and one come, 1,024 waiting", _fair_queue),
)
