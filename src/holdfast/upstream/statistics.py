"""What the pools show of themselves: frozen records, in seconds, bytes and counts."""

from __future__ import annotations

from msgspec import Struct


class ConnectionStatistics(Struct, frozen=True):
    """`capacity` is how many streams may run at a time; windows are 0 for HTTP/1.1; `rtt` is of the last PING."""

    protocol: str
    state: str
    age: float
    streams: int
    capacity: int
    rtt: float | None
    receive_window: int
    send_window: int


class PoolStatistics(Struct, frozen=True):
    """The connections to one origin and what has happened on them since the start.

    `resets` counts answers that were cut short, by cause.
    """

    origin: str
    connections: list[ConnectionStatistics]
    connecting: int
    waiting: int
    streams: int
    requests: int
    connects: int
    connect_failures: dict[str, int]
    wait_timeouts: int
    goaways: int
    resets: dict[str, int]


class HealthStatistics(Struct, frozen=True):
    """The breaker of one endpoint, and what was decided because of failures.

    `retry_after` is in seconds until an open breaker lets a trial through. `budget_refusals` counts repetitions
    that the budget did not allow; `resent_unprocessed` and `resent_stale`, what was sent again at once: because it
    was certainly not processed, or because it met the end of a kept-alive connection.
    """

    breaker: str
    retry_after: float
    opened: int
    attempts: int
    failures: dict[str, int]
    retries: int
    resent_unprocessed: int
    resent_stale: int
    failovers: int
    budget_refusals: int
    probes: int
    probe_failures: int


class ConcurrencyStatistics(Struct, frozen=True):
    """The limit of one endpoint, in requests at a time.

    TTFT, in seconds, is what it should be and the median of late; None before it was measured. `is_measuring`: the
    limit is lowered to measure the baseline. `overloads` counts how often the endpoint's own signals lowered it.
    """

    limit: int
    in_flight: int
    baseline_ttft: float | None = None
    recent_ttft: float | None = None
    is_measuring: bool = False
    overloads: int = 0


class ProviderStatistics(Struct, frozen=True):
    """`concurrency` is None where the provider has no limit."""

    provider: str
    pool: PoolStatistics
    health: HealthStatistics
    concurrency: ConcurrencyStatistics | None = None
