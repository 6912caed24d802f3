"""What a load is, and what its workers can be told to do with it.

A worker gets its plan and then orders, each a line of JSON on its input; it answers each with what it has counted
since its last answer, see `holdfast_tools.bench.tally`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Transport = Literal["ws", "sse", "long-poll", "short-poll"]
#: Most tokens of an answer, and of all expected texts together; these take about 25 MB.
MAX_TOKENS = 2_000_000
#: Different texts; of two answers that are mixed up, one in so many would not be noticed.
_MAX_SEEDS = 64


class Pace(msgspec.Struct, frozen=True):
    """How the simulated provider answers; as the fields of its `sim`, without the seed."""

    interval_ms: float = 20.0
    ttft_ms: float = 100.0
    burst: int = 1
    timestamps: bool = True


class Plan(msgspec.Struct, frozen=True):
    """One worker's load. `pace` None: the provider is not the simulated one, and its texts are not known."""

    #: The gateway's base URL, up to `/v1`.
    url: str
    transport: Transport = "ws"
    streams: Annotated[int, Meta(ge=0)] = 1
    #: WebSockets that carry the streams; 0: one for each.
    sockets: Annotated[int, Meta(ge=0)] = 0
    #: Sessions on WebSockets of their own that ask for nothing.
    idle: Annotated[int, Meta(ge=0)] = 0
    model: str = "demo"
    prompt: str = "bench"
    #: Length of one answer; when it has ended, the next one is asked for in its place.
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 200
    #: No answer follows the first one of a stream.
    once: bool = False
    pace: Pace | None = Pace()
    #: Milliseconds over which the streams begin, one after the other, after `ttft_ms`: clients do not keep step.
    spread_ms: float = 0.0
    #: How the pace gets to the simulated provider: in the field `sim`, or through gateways that drop it.
    steer_by: Literal["field", "prompt"] = "field"
    #: SSE: an answer goes on at Holdfast while its client is away, so that the load can be cut.
    resumable: bool = False
    #: Seconds between two polls of a stream, for `short-poll`.
    poll_interval: float = 1.0
    #: Seconds that all streams may take to begin; those that have not are waited for no longer.
    settle_timeout: float = 30.0
    #: A new connection for each answer, instead of the next answer on the same one.
    fresh: bool = False
    #: Loopback addresses that connections come from in turn; 0: the kernel chooses. One address has about 28,000
    #: ports, and the fewer are left, the longer the kernel looks for one: some 20,000 connections need several.
    addresses: Annotated[int, Meta(ge=0, le=250)] = 0
    #: Sent with every request, the credential among them.
    headers: dict[str, str] = {}
    #: Number of the first answer; those of other workers differ.
    first: int = 0

    @property
    def seeds(self) -> int:
        return max(1, min(_MAX_SEEDS, MAX_TOKENS // self.tokens))


class Begin(msgspec.Struct, tag=True):
    """Measure windows, the first from `at` of the monotonic clock. The answers: a tally then, and one for each."""

    at: float
    windows: int
    seconds: float


class Add(msgspec.Struct, tag=True):
    """Put more on the gateway, as the plan does; the answer comes when all of it has begun or failed."""

    streams: int = 0
    sockets: int = 0
    idle: int = 0


class Cut(msgspec.Struct, tag=True):
    """Reset all connections, and make them again: the first after `away` seconds, and all within `over` seconds.

    The answer comes when each stream has brought the next text, and each idle session is open, or has failed.
    """

    away: float = 0.0
    over: float = 0.0


class Finish(msgspec.Struct, tag=True):
    """For a plan with `once`: the answer comes when all streams have ended, or after `timeout` seconds."""

    timeout: float = 60.0


Order = Begin | Add | Cut | Finish
