"""How long a token is on its way from the provider's write to the client's read, by each way of reading it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.gateways import holdfast
from bench.gateways.gateway import Running
from bench.processes import GATEWAY_CORE, Server, simulated_provider
from bench.results import Case, Options, Plot, SuiteResult
from bench.visits import Visits, visit, window_seconds
from holdfast_tools.bench.plan import Pace, Plan, Transport

_ENDLESS = 20_000
#: Streams, and tokens per second of each: so many in all that the slowest way, a request for each token, keeps up.
SIZES = ((1, 50.0), (100, 50.0), (1000, 5.0))
_COLUMNS = (
    *("latency_p50_ms", "latency_p99_ms", "gap_p50_ms", "gap_p99_ms", "cpu_us_per_token", "gateway_core_percent"),
    *("load_core_percent", "tokens_per_second"),
)
#: Clients that come, read one token and go, at a time.
_COMERS = 4


@dataclass(frozen=True)
class Way:
    name: str
    transport: Transport
    poll_interval: float = 1.0
    sockets: int = 0


WAYS = (
    Way("WebSocket", "ws"),
    Way("WebSocket, 4 sockets", "ws", sockets=4),
    Way("SSE", "sse"),
    Way("long polling", "long-poll"),
    Way("polling each 300 ms", "short-poll", poll_interval=0.3),
    Way("polling each second", "short-poll", poll_interval=1.0),
)
#: What it takes to come and go, by the connections that the way needs.
_COMING = ("WebSocket", "SSE", "long polling")


def run(options: Options) -> SuiteResult:
    """Measure each way at each size, then coming and going. Takes four minutes, quick 20 seconds."""
    sizes = SIZES[1:2] if options.quick else SIZES
    ways = [way for way in WAYS if not options.quick or way.name in _COMING]
    windows = 1 if options.quick else options.windows
    seconds = window_seconds(options)
    cases: list[Case] = []
    plot = Plot(
        name="transports",
        title="Provider write to client read, median",
        x_label="streams",
        y_label="ms",
        log_x=True,
        log_y=True,
    )
    with simulated_provider() as provider, holdfast.start(provider.url, GATEWAY_CORE) as gateway:
        for streams, rate in sizes:
            for way in ways:
                if way.sockets <= streams:
                    visited = _read(gateway, provider, way, streams, rate, seconds, windows)
                    cases.append(visited.case(*_COLUMNS))
                    _add_point(plot, way, streams, cases[-1])
        cases += [_come_and_go(gateway, provider, way, seconds, windows) for way in WAYS if way.name in _COMING]
    return SuiteResult(
        name="transports",
        title="Time from the provider's write to the client's read",
        command=f"python -m bench transports{' --quick' if options.quick else ''}",
        cases=cases,
        plots=[plot],
        notes=[
            "Provider and clients share a clock and a core, the gateway has the other. HTTP/2 to the provider.",
            "`coming and going`: each answer of one token has a connection of its own, for long polling two: one "
            "that asks and one that polls. `setup_` is TCP, and for WebSocket handshake and welcome as well; CPU "
            "is that of the gateway for connection, request and answer together.",
        ],
    )


def _read(
    gateway: Running, provider: Server, way: Way, streams: int, rate: float, seconds: float, windows: int
) -> Visits:
    plan = Plan(
        url=gateway.url,
        transport=way.transport,
        streams=streams,
        sockets=way.sockets,
        tokens=_ENDLESS,
        pace=Pace(interval_ms=1000 / rate),
        poll_interval=way.poll_interval,
    )
    visited = Visits({"way": way.name, "streams": streams, "tokens_per_second_each": rate})
    # Polls come in their turn: a window shorter than the interval would see some streams and not others.
    seconds = max(seconds, way.poll_interval) if way.transport == "short-poll" else seconds
    visited.add(visit(gateway, provider, plan, seconds=seconds, windows=windows, warm_up=1.0))
    return visited


def _come_and_go(gateway: Running, provider: Server, way: Way, seconds: float, windows: int) -> Case:
    plan = Plan(
        url=gateway.url,
        transport=way.transport,
        streams=_COMERS,
        tokens=1,
        pace=Pace(interval_ms=0, ttft_ms=0),
        fresh=True,
    )
    visited = Visits({"way": f"{way.name}, coming and going", "streams": _COMERS, "tokens_per_second_each": 0})
    visited.add(visit(gateway, provider, plan, seconds=seconds, windows=windows))
    case = visited.case("setup_p50_ms", "setup_p99_ms", "ttft_p50_ms", "ttft_p99_ms", "gateway_core_percent")
    answers = [(reading.tally.answers, reading) for reading in visited.readings if reading.tally.answers]
    case.metrics["cpu_us_per_answer"] = [reading.gateway_ns / 1000 / count for count, reading in answers]
    case.metrics["answers_per_second"] = [count / reading.tally.seconds for count, reading in answers]
    return case


def _add_point(plot: Plot, way: Way, streams: int, case: Case) -> None:
    values = case.metrics.get("latency_p50_ms")
    if values:
        plot.series.setdefault(way.name, []).append((streams, statistics.median(values), min(values), max(values)))
