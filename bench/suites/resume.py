"""From a lost connection to the next token: how long it takes to come back, and that nothing is lost or doubled.

Connections are reset (TCP RST) by the client, and made again directly to the gateway on loopback after a short
absence, in which tokens gather. Measured is the time from the beginning of the TCP connection to the next token,
handshake, authentication and resumption included. Each answer is read to its end and checked token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.gateways import holdfast
from bench.gateways.gateway import Running
from bench.processes import GATEWAY_CORE, LOAD_CORE, pinned, simulated_provider
from bench.results import Case, Options, Plot, SuiteResult
from bench.spread import spread
from holdfast_tools.bench.plan import Pace, Plan, Transport
from holdfast_tools.bench.tally import Tally
from holdfast_tools.bench.workers import started

_MS = 1e6


@dataclass(frozen=True)
class Way:
    """Who is cut, and how often. `tokens` last until the last cut is over, where the machine is not too slow."""

    title: str
    transport: Transport
    interval_ms: float
    tokens: int
    clients: int = 1
    cuts: int = 1
    #: Seconds between the cut and the next connection.
    away: float = 0.05


def _alone(title: str, transport: Transport, cuts: int) -> Way:
    """One client with a token each 10 ms, away long enough for some to gather."""
    interval_ms, away = 10.0, 0.05
    # Three times as long as the cuts should take.
    tokens = round(cuts * (away * 1000 / interval_ms + 2) * 3)
    return Way(title, transport, interval_ms, tokens, cuts=cuts, away=away)


def ways(options: Options) -> list[Way]:
    cuts, many = (5, 100) if options.quick else (20, 1000)
    return [
        _alone("WebSocket, hello with cursors", "ws", cuts),
        _alone("SSE, Last-Event-ID", "sse", cuts),
        # All at once: what the last of them wait is the time that the gateway needs for them all. Long enough that
        # none ends while the others are still being started, or away.
        Way("WebSocket, hello with cursors", "ws", 200.0, 40 if many > 100 else 10, clients=many, away=0.5),
    ]


def run(options: Options) -> SuiteResult:
    """Cut each way some times in each window. Takes two minutes, quick 10 seconds."""
    quick = " --quick" if options.quick else ""
    result = SuiteResult("resume", "Resuming after a reset", f"python -m bench resume{quick}")
    windows = 2 if options.quick else max(options.windows, 5)
    with (
        simulated_provider() as provider,
        # Streams outlive their clients as long as they do by default.
        holdfast.start(provider.url, GATEWAY_CORE, has_key=True, settings={"streams": {}}) as gateway,
    ):
        for way in ways(options):
            case = Case({"transport": way.title, "clients": way.clients, "cuts": way.cuts})
            for _ in range(windows):
                _add(case, _cut(gateway, way))
            result.cases.append(case)
    result.notes.append("each answer was read to its end: every token once, in order, with the right number")
    result.plots.append(_plot(result.cases))
    return result


def _cut(gateway: Running, way: Way) -> Tally:
    """Cut the clients and read their answers to the end; return what was counted."""
    plan = Plan(
        url=gateway.url,
        transport=way.transport,
        streams=way.clients,
        tokens=way.tokens,
        once=True,
        pace=Pace(interval_ms=way.interval_ms, ttft_ms=0, timestamps=False),
        spread_ms=way.interval_ms if way.clients > 1 else 0.0,
        resumable=True,
        headers=gateway.headers,
    )
    with started(plan, prefix=pinned(LOAD_CORE)) as clients:
        total = clients.wait_until_ready()
        for _ in range(way.cuts):
            total.merge(clients.cut(away=way.away))
        total.merge(clients.finish())
    return total


def _add(case: Case, tally: Tally) -> None:
    """Add a window; raises RuntimeError where anything was lost, doubled or wrong, or failed."""
    if tally.faults or tally.failed:
        raise RuntimeError(f"{case.labels}: {tally.faults}, {tally.failed} failed: {tally.errors}")
    for name, share in (("resume_p50_ms", 0.5), ("resume_p99_ms", 0.99), ("resume_max_ms", 1.0)):
        case.metrics.setdefault(name, []).append((tally.resume.quantile(share) or 0.0) / _MS)
    for name in ("lost", "doubled"):
        case.metrics.setdefault(name, []).append(float(getattr(tally, name)))


def _plot(cases: list[Case]) -> Plot:
    plot = Plot("resume", "From a reset to the next token, p99", "", "ms", kind="bar", log_y=True)
    for place, case in enumerate(cases):
        transport = str(case.labels["transport"]).partition(",")[0]
        count = int(case.labels["clients"])
        label = f"{transport}, {count:,} client{'s at once' if count > 1 else ''}"
        plot.series[label] = [(float(place), *spread(case.metrics["resume_p99_ms"]))]
    return plot
