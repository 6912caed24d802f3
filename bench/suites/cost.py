"""What relaying a token costs the gateway, and what it adds to the token's way, beside nginx in the same run."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass

from bench.gateways import direct, holdfast, nginx
from bench.gateways.gateway import Running
from bench.processes import GATEWAY_CORE, simulated_provider
from bench.results import Case, Options, Plot, SuiteResult
from bench.visits import Visits, visit, window_seconds
from holdfast_tools.bench.plan import Pace, Plan, Transport

STREAMS = 200
#: An answer that does not end while it is measured.
_ENDLESS = 20_000


@dataclass(frozen=True)
class Way:
    """One way for a token: through which gateway, how clients read, and how the provider is spoken to."""

    gateway: str
    transport: Transport
    sockets: int
    provider: str
    is_brief: bool = False  # only the loads that tell the provider's protocols apart

    @property
    def clients(self) -> str:
        return f"{self.transport}, {self.sockets} sockets" if self.sockets else self.transport


WAYS = (
    Way("direct", "sse", 0, "HTTP/1.1"),
    Way("nginx", "sse", 0, "HTTP/1.1"),
    Way("holdfast", "sse", 0, "HTTP/2"),
    Way("holdfast", "ws", 0, "HTTP/2"),
    Way("holdfast", "ws", 4, "HTTP/2"),
    Way("holdfast", "sse", 0, "HTTP/1.1", is_brief=True),
    Way("holdfast", "ws", 0, "HTTP/1.1", is_brief=True),
    Way("holdfast", "ws", 4, "HTTP/1.1", is_brief=True),
)


@dataclass(frozen=True)
class Load:
    title: str
    pace: Pace
    streams: int = STREAMS
    tokens: int = _ENDLESS
    warm_up: float = 0.5
    #: All windows in one visit: it takes a while until such a load has become steady.
    is_long: bool = False


LOADS = {
    "light": Load("5 tokens/s", Pace(interval_ms=200)),
    "paced": Load("50 tokens/s", Pace(interval_ms=20)),
    "double": Load("100 tokens/s", Pace(interval_ms=10)),
    "burst": Load("50 tokens/s, 5 in each write", Pace(interval_ms=100, burst=5)),
    # Few at a time, since they keep step: what is measured is the way of a request, not how it waits for others.
    "short answers": Load("10 tokens, then the next", Pace(interval_ms=20, ttft_ms=10), streams=8, tokens=10),
    # Logs fill first.
    "saturated": Load(
        "as fast as it goes", Pace(interval_ms=0, timestamps=False), tokens=200_000, warm_up=3.0, is_long=True
    ),
}
_BRIEF = ("paced", "saturated")
_QUICK = ("paced", "short answers")
_COLUMNS = (
    *("cpu_us_per_token", "tokens_per_second", "tokens_per_cpu_second", "gateway_core_percent"),
    *("latency_p50_ms", "latency_p99_ms", "gap_p50_ms", "gap_p99_ms", "gap_p999_ms", "ttft_p50_ms", "ttft_p99_ms"),
    *("load_core_percent", "resident_mib"),
)
#: What a gateway adds is the difference to `direct` in the same round.
_ADDED = ("latency_p50_ms", "latency_p99_ms", "ttft_p50_ms", "ttft_p99_ms")


def run(options: Options) -> SuiteResult:
    """Visit all ways in turn, load by load. Takes seven minutes, quick 25 seconds."""
    notes = [reason for reason in (nginx.available(),) if reason]
    ways = [way for way in WAYS if not (notes and way.gateway == "nginx")]
    if options.quick:
        ways = [way for way in ways if not way.is_brief and (way.gateway != "holdfast" or way.transport == "ws")]
    rounds = 1 if options.quick else options.windows
    seconds = window_seconds(options)
    visits: dict[tuple[str, Way], Visits] = {}
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(simulated_provider())
        gateways = _start(stack, ways, provider.url)
        for name, load in LOADS.items():
            if options.quick and name not in _QUICK:
                continue
            chosen = [way for way in ways if name in _BRIEF or not way.is_brief]
            for way in chosen:
                visits[name, way] = Visits(_labels(name, load, way))
            windows = rounds if load.is_long else 1
            for _ in range(rounds // windows):
                for way in chosen:
                    gateway = gateways[way.gateway, way.provider]
                    plan = _plan(gateway, way, load)
                    visits[name, way].add(
                        visit(gateway, provider, plan, seconds=seconds, windows=windows, warm_up=load.warm_up)
                    )
    return SuiteResult(
        name="cost",
        title=f"CPU per token and added latency, {STREAMS} streams",
        command=f"python -m bench cost{' --quick' if options.quick else ''}",
        cases=[_case(visits, name, way) for name, way in visits],
        plots=[_plot(visits)],
        notes=[
            *notes,
            f"The gateway has core {GATEWAY_CORE} for itself; provider and clients share the other one. CPU is "
            "that of the gateway's processes, all threads, as the scheduler counts it.",
            "Each window is a visit of its own, and the ways are visited in turn. Those of the "
            "saturated load follow each other. `added_` is the difference to the window without a gateway in the "
            "same round.",
        ],
    )


def _start(stack: contextlib.ExitStack, ways: list[Way], provider_url: str) -> dict[tuple[str, str], Running]:
    gateways: dict[tuple[str, str], Running] = {}
    for way in ways:
        key = (way.gateway, way.provider)
        if key in gateways:
            continue
        if way.gateway == "holdfast":
            started = holdfast.start(provider_url, GATEWAY_CORE, http2=way.provider == "HTTP/2")
        else:
            started = {"direct": direct, "nginx": nginx}[way.gateway].start(provider_url, GATEWAY_CORE)
        gateways[key] = stack.enter_context(started)
    return gateways


def _plan(gateway: Running, way: Way, load: Load) -> Plan:
    return Plan(
        url=gateway.url,
        transport=way.transport,
        streams=load.streams,
        sockets=way.sockets,
        tokens=load.tokens,
        pace=load.pace,
        headers=gateway.headers,
    )


def _labels(name: str, load: Load, way: Way) -> dict[str, str | int | float]:
    return {
        "load": name,
        "streams": load.streams,
        "each": load.title,
        "gateway": way.gateway,
        "clients": way.clients,
        "provider": way.provider,
    }


def _case(visits: dict[tuple[str, Way], Visits], name: str, way: Way) -> Case:
    case = visits[name, way].case(*_COLUMNS)
    reference = visits.get((name, WAYS[0]))
    if reference is not None and way.gateway != "direct":
        plain = reference.case(*_ADDED).metrics
        for metric in _ADDED:
            pairs = zip(case.metrics.get(metric, []), plain.get(metric, []), strict=False)
            added = [through - without for through, without in pairs]
            if added:
                case.metrics[f"added_{metric}"] = added
    return case


def _plot(visits: dict[tuple[str, Way], Visits]) -> Plot:
    """CPU per token by the rate of the streams, for each way."""
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, rate in (("light", 5.0), ("paced", 50.0), ("double", 100.0)):
        for (load, way), visited in visits.items():
            costs = visited.case("cpu_us_per_token").metrics.get("cpu_us_per_token")
            if load == name and costs:
                label = f"{way.gateway}, {way.clients}, {way.provider}"
                series.setdefault(label, []).append((rate, statistics.median(costs), min(costs), max(costs)))
    return Plot(
        name="cost",
        title=f"CPU of the gateway per token, {STREAMS} streams",
        x_label="tokens per second and stream",
        y_label="µs",
        series=series,
    )
