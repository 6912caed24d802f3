"""The statistics of pools and providers: frozen records, in seconds, bytes and counts."""

from __future__ import annotations

from msgspec import Struct


class ConnectionStatistics(Struct, frozen=True):
    """One connection. `capacity` is its limit of concurrent streams, `rtt` that of the last PING.

    Windows are 0 for HTTP/1.1.
    """

    protocol: str
    state: str
    age: float
    streams: int
    capacity: int
    rtt: float | None
    receive_window: int
    send_window: int


class PoolStatistics(Struct, frozen=True):
    """The connections to one origin, and what has happened on them since the start.

    `resets` counts responses that were cut short, by cause.
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
    """The breaker of one endpoint, and the counters of its attempts.

    `reason` says why a breaker that is not closed has opened. `waiting` counts attempts that have no byte of an
    answer yet, and `oldest_wait` is how long the oldest of them waits, in seconds. `retry_after` is the time until
    an open breaker permits a trial. `budget_refusals` counts repetitions that the retry budget did not allow.
    `resent_unprocessed` and `resent_stale` count requests that were sent again at once, because they were
    certainly not processed, or because a kept-alive connection had been closed.
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
    reason: str | None = None
    waiting: int = 0
    oldest_wait: float = 0.0


class ConcurrencyStatistics(Struct, frozen=True):
    """The limit of one endpoint, in requests at a time.

    `baseline_ttft` and `recent_ttft` are the expected time to first token and its recent median; None before they
    were measured. `is_measuring`: the limit is lowered to measure the baseline. `overloads` counts how often the
    endpoint's own signals lowered it.
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
