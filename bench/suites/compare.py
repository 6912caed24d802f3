"""Side by side: the same load on the same core for each gateway that is found, and the streams that it carries."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from dataclasses import dataclass

from bench.gateways.gateway import Running
from bench.gateways.registry import found
from bench.processes import GATEWAY_CORE, ProcessFailed, Server, simulated_provider
from bench.results import Case, Options, Plot, SuiteResult
from bench.visits import Reading, Visits, visit, window_seconds
from holdfast_tools.bench.plan import Pace, Plan, Transport
from holdfast_tools.bench.workers import WorkerError

RATE = 50.0
_ENDLESS = 20_000
#: A stream counts as carried while the 99th percentile of what the gateway adds stays below this.
ADDED_P99_MS = 50.0
#: Less than this share of the tokens means that somebody fell behind.
_KEEPS_UP = 0.97
#: Seconds that the search may take for each gateway, and how near it comes.
_SEARCH_SECONDS = 18.0
_NEAR = 1.15
#: A gateway that gets through less than this share of a load is not visited again; and not at all where its cost
#: under the small load foretells so many times a core.
_FALLS_BEHIND, _HOPELESS = 0.5, 6.0
#: Seconds in which all streams must have begun.
_PATIENCE = 5.0
#: Streams at most: the load and the provider have one core as well.
_MOST = 4096


@dataclass(frozen=True)
class Entrant:
    """A gateway and how clients read from it."""

    name: str
    running: Running
    transport: Transport = "sse"
    sockets: int = 0

    def plan(self, streams: int, rate: float) -> Plan:
        return Plan(
            url=self.running.url,
            transport=self.transport,
            streams=streams,
            sockets=min(self.sockets, streams),
            tokens=_ENDLESS,
            pace=Pace(interval_ms=1000 / rate, ttft_ms=200),
            headers=self.running.headers,
            steer_by=self.running.steer_by,
            settle_timeout=_PATIENCE,
        )


#: Name, streams and tokens per second of each. Every gateway gets the first; the second where it is up to it.
LOADS = (("small", 20, 20.0), ("paced", 200, RATE))


def run(options: Options) -> SuiteResult:
    """Compare all that are found. Takes about six minutes with all of them, quick 15 seconds without LiteLLM."""
    adapters, notes = found(options.peers)
    if options.quick and not options.peers:
        adapters = {name: adapter for name, adapter in adapters.items() if name in ("direct", "nginx", "holdfast")}
        notes.append("quick: only direct, nginx and holdfast; name others with --peers")
    cases: list[Case] = []
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(simulated_provider())
        entrants = []
        for name, adapter in adapters.items():
            try:
                running = stack.enter_context(adapter.start(provider.url, GATEWAY_CORE))
            except ProcessFailed as exc:
                notes.append(f"{name}: skipped: {exc}")
                continue
            entrants.append(Entrant(name, running))
            if name == "holdfast":
                entrants.append(Entrant("holdfast, WebSocket, 4 sockets", running, "ws", 4))
        loaded = _same_load(entrants, provider, options)
        cases += [visited.case() for visited in loaded.values() if visited.readings or visited.notes]
        searched = [_search(entrant, provider, loaded, options) for entrant in entrants]
        cases += searched
    return SuiteResult(
        name="compare",
        title="Side by side with other gateways",
        command=f"python -m bench compare{' --quick' if options.quick else ''}",
        cases=cases,
        plots=[_cost_plot(loaded), _streams_plot(searched)],
        notes=[
            *notes,
            f"Core {GATEWAY_CORE} is the gateway's, the other one that of provider and load. SSE unless said "
            "otherwise, HTTP/1.1 to the provider but for Holdfast (HTTP/2). All gateways as their documentation "
            "starts them, with one process or one thread per core of theirs.",
            f"`streams carried`: streams of {RATE:g} tokens/s, of which at least {_KEEPS_UP:.0%} come, with the "
            f"99th percentile of the latency within {ADDED_P99_MS:g} ms of that without a gateway. Where the core "
            "of provider and load was full, it is a lower bound.",
        ],
    )


# -- the same load ---------------------------------------------------------------------------------------------

_Loaded = dict[tuple[str, str], Visits]


def _same_load(entrants: list[Entrant], provider: Server, options: Options) -> _Loaded:
    visits: _Loaded = {}
    for load, streams, rate in LOADS[:1] if options.quick else LOADS:
        for entrant in entrants:
            labels: dict[str, str | int | float] = {"what": load, "gateway": entrant.name, "streams": streams}
            visits[load, entrant.name] = Visits({**labels, "tokens_per_second_each": rate})
        for _ in range(1 if options.quick else options.windows):
            for entrant in entrants:
                visited = visits[load, entrant.name]
                if load != LOADS[0][0] and _is_beyond(visits, entrant, visited, streams * rate):
                    continue
                plan = entrant.plan(streams, rate)
                try:
                    visited.add(visit(entrant.running, provider, plan, seconds=window_seconds(options)))
                except WorkerError as exc:  # one gateway's trouble is no reason not to measure the others
                    visited.note([str(exc)])
    return visits


def _cost_us(visits: _Loaded, entrant: Entrant) -> float | None:
    """CPU per token under the small load; none without a gateway."""
    costs = visits[LOADS[0][0], entrant.name].case("cpu_us_per_token").metrics.get("cpu_us_per_token")
    return statistics.median(costs) if costs else None


def _is_beyond(visits: _Loaded, entrant: Entrant, visited: Visits, tokens_per_second: float) -> bool:
    """Whether there is no use in putting so much on a gateway, or in doing it again; the visits say why."""
    if visited.readings:
        last = visited.readings[-1].tally
        if last.tokens / last.seconds < _FALLS_BEHIND * tokens_per_second:
            visited.note(["it fell behind, and was not visited again"])
            return True
        return False
    cost = _cost_us(visits, entrant)
    # Under more load a token costs less: reads and writes carry more, and code that is often run gets compiled.
    share = 0.0 if cost is None else cost * tokens_per_second / 1e6
    if share > _HOPELESS:
        visited.note([f"left out: by the cost under the small load it would take {100 * share:.0f} % of a core"])
    return share > _HOPELESS


# -- how many streams a core carries ------------------------------------------------------------------------------


def _search(entrant: Entrant, provider: Server, loaded: _Loaded, options: Options) -> Case:
    """Double until it fails, then halve the distance, for as long as there is time."""
    deadline = time.monotonic() + (1.0 if options.quick else _SEARCH_SECONDS)
    direct = loaded.get((LOADS[0][0], "direct"))
    plain = direct.case("latency_p99_ms").metrics if direct is not None else {}
    without = statistics.median(plain.get("latency_p99_ms", [0.0]))
    visited = Visits(
        {"what": "streams carried", "gateway": entrant.name, "streams": "most", "tokens_per_second_each": RATE}
    )
    carried, failed = 0, math.inf
    best: list[Reading] = []
    streams = _first_guess(_cost_us(loaded, entrant))
    why: str | None
    while time.monotonic() < deadline and 1 <= streams <= _MOST and failed > max(carried, 1) * _NEAR:
        try:
            plan = entrant.plan(streams, RATE)
            readings = visit(entrant.running, provider, plan, seconds=window_seconds(options))
        except WorkerError as exc:
            readings, why = [], str(exc)
        else:
            why = _why_not(readings[0], streams, without)
        if why is None:
            carried, best = max(carried, streams), readings
        else:
            failed = min(failed, streams)
            visited.note([f"{streams} streams: {why}"])
        if failed == math.inf:
            streams = carried * 2
        else:
            streams = int((carried + failed) / 2) if carried else int(failed // 2)
            if streams <= carried:
                break
    if failed == math.inf:
        visited.note(["no limit was found in the time"])
    visited.readings += best
    case = visited.case()
    case.metrics["streams_carried"] = [float(carried)]
    return case


def _first_guess(cost_us: float | None) -> int:
    """Half of what the cost of the small load lets expect, as a power of two."""
    if cost_us is None:
        return 128
    return 1 << int(math.log2(max(1.0, 1e6 / cost_us / RATE / 2)))


def _why_not(reading: Reading, streams: int, without_ms: float) -> str | None:
    """Why so many streams are too many; None if they are carried."""
    tally, metrics = reading.tally, reading.metrics()
    reasons = [f"{count} {name}" for name, count in tally.faults.items()]
    if tally.failed:
        reasons.append(f"{tally.failed} failed: {tally.errors[0] if tally.errors else 'no reason was given'}")
    share = metrics["tokens_per_second"] / (streams * RATE)
    if share < _KEEPS_UP:
        reasons.append(f"only {100 * share:.0f} % of the tokens came")
    added = metrics.get("latency_p99_ms", math.inf) - without_ms
    if added >= ADDED_P99_MS:
        reasons.append(f"p99 {added:.0f} ms later")
    if not reasons:
        return None
    if metrics["load_core_percent"] > 92:
        reasons.append(f"the core of provider and load was full, the gateway's at {_core(metrics)}")
    return ", ".join(reasons)


def _core(metrics: dict[str, float]) -> str:
    return f"{metrics.get('gateway_core_percent', 0.0):.0f} %"


# -- pictures --------------------------------------------------------------------------------------------------


def _cost_plot(loaded: _Loaded) -> Plot:
    plot = Plot("compare-cost", "CPU of the gateway per token", "", "µs", log_y=True, kind="bar")
    for (load, name), visited in loaded.items():
        costs = visited.case("cpu_us_per_token").metrics.get("cpu_us_per_token")
        if costs:
            index = float([title for title, _, _ in LOADS].index(load))
            plot.series.setdefault(name, []).append((index, statistics.median(costs), min(costs), max(costs)))
    return plot


def _streams_plot(searched: list[Case]) -> Plot:
    plot = Plot("compare-streams", f"Streams of {RATE:g} tokens/s on one core", "", "streams", kind="bar")
    for case in searched:
        carried = case.metrics["streams_carried"][0]
        plot.series[str(case.labels["gateway"])] = [(0.0, carried, carried, carried)]
    return plot
