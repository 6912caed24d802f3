"""What a load is: how many streams, by which transport, asking for what. A worker gets it as JSON on its input."""

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
    streams: Annotated[int, Meta(ge=1)] = 1
    #: WebSockets that carry the streams; 0: one for each.
    sockets: Annotated[int, Meta(ge=0)] = 0
    model: str = "demo"
    prompt: str = "bench"
    #: Length of one answer; when it has ended, the next one is asked for in its place.
    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 200
    pace: Pace | None = Pace()
    #: How the pace gets to the simulated provider: in the field `sim`, or through gateways that drop it.
    steer_by: Literal["field", "prompt"] = "field"
    #: Seconds between two polls of a stream, for `short-poll`.
    poll_interval: float = 1.0
    #: Seconds that all streams may take to begin; those that have not are waited for no longer.
    settle_timeout: float = 30.0
    #: A new connection for each answer, instead of the next answer on the same one.
    fresh: bool = False
    #: Sent with every request, the credential among them.
    headers: dict[str, str] = {}
    #: Number of the first answer; those of other workers differ.
    first: int = 0

    @property
    def seeds(self) -> int:
        return max(1, min(_MAX_SEEDS, MAX_TOKENS // self.tokens))


class Ready(msgspec.Struct):
    """A worker says that each stream has begun or failed; `tally` is what happened until then."""

    tally: msgspec.Raw


class Begin(msgspec.Struct):
    """The worker's windows: the first begins at `at` of the monotonic clock."""

    at: float
    windows: int
    seconds: float
