"""From a lost connection to the next token: how long it takes to come back, and that nothing is lost or doubled.

Connections are reset (TCP RST) by the client, and made again directly to the gateway on loopback after a short
absence, in which tokens gather. Measured is the time from the beginning of the TCP connection to the next token,
handshake, authentication and resumption included. Each answer is read to its end and checked token by token.
"""

from __future__ import annotations

from bench.children import Crowd, crowd, gateway, provider
from bench.results import Case, Options, Plot, SuiteResult
from bench.spread import percentile, spread

#: One client: a token each 10 ms, away long enough for some to gather.
_INTERVAL_MS = 10.0
_AWAY = 0.05
#: Many clients: each has a token each 200 ms.
_MANY_INTERVAL_MS = 200.0
_MANY_AWAY = 0.5


def run(options: Options) -> SuiteResult:
    quick = " --quick" if options.quick else ""
    result = SuiteResult("resume", "Resuming after a reset", f"python -m bench resume{quick}")
    windows = 2 if options.quick else max(options.windows, 5)
    cuts, many = (5, 100) if options.quick else (20, 1000)
    with provider() as source, gateway(source) as measured, crowd(measured) as clients:
        result.cases.append(_websocket(clients, windows, cuts))
        result.cases.append(_sse(clients, windows, cuts))
        result.cases.append(_herd(clients, windows, many))
    result.notes.append("each answer was read to its end: every token once, in order, with the right number")
    result.plots.append(_plot(result.cases))
    return result


def _websocket(clients: Crowd, windows: int, cuts: int) -> Case:
    case = Case({"transport": "WebSocket, hello with cursors", "clients": 1, "cuts": cuts})
    tokens = _tokens(cuts, _AWAY, _INTERVAL_MS)
    for _ in range(windows):
        sim: dict[str, object] = {"tokens": tokens, "interval_ms": _INTERVAL_MS}
        clients.ask("create", count=1, sockets=1, sim=sim, spread_ms=0)
        waits: list[float] = []
        for _ in range(cuts):
            waits += clients.ask("cut_all", away=_AWAY)["resume"]
        _add(case, waits, clients.ask("finish", tokens=tokens))
    return case


def _sse(clients: Crowd, windows: int, cuts: int) -> Case:
    case = Case({"transport": "SSE, Last-Event-ID", "clients": 1, "cuts": cuts})
    tokens = _tokens(cuts, _AWAY, _INTERVAL_MS)
    for _ in range(windows):
        sim: dict[str, object] = {"tokens": tokens, "interval_ms": _INTERVAL_MS}
        waits = clients.ask("sse", cuts=cuts, away=_AWAY, sim=sim)["resume"]
        _add(case, waits, clients.ask("tally"))
    return case


def _herd(clients: Crowd, windows: int, many: int) -> Case:
    """All at once: what the last of them wait is the time that the gateway needs for them all."""
    case = Case({"transport": "WebSocket, hello with cursors", "clients": many, "cuts": 1})
    # Long enough that none ends while the others are still being started, or away.
    tokens = 40 if many > 100 else 10
    for _ in range(windows):
        sim: dict[str, object] = {"tokens": tokens, "interval_ms": _MANY_INTERVAL_MS}
        clients.ask("create", count=many, sockets=many, sim=sim, spread_ms=_MANY_INTERVAL_MS)
        waits = clients.ask("cut_all", away=_MANY_AWAY)["resume"]
        _add(case, waits, clients.ask("finish", tokens=tokens))
    return case


def _tokens(cuts: int, away: float, interval_ms: float) -> int:
    """So many that the answer outlasts its cuts, three times as long as they should take."""
    return round(cuts * (away * 1000 / interval_ms + 2) * 3)


def _add(case: Case, waits: list[float], tally: dict[str, object]) -> None:
    """Add a window; raises RuntimeError where anything was lost, doubled or wrong since the suite began."""
    for name, q in (("resume_p50_ms", 0.5), ("resume_p99_ms", 0.99), ("resume_max_ms", 1.0)):
        case.metrics.setdefault(name, []).append(percentile(waits, q))
    for name in ("lost", "doubled"):
        case.metrics.setdefault(name, []).append(float(str(tally[name])))
    if tally["faults"]:
        raise RuntimeError(f"{case.labels}: {tally['faults']} faults, among them {tally['errors']}")


def _plot(cases: list[Case]) -> Plot:
    plot = Plot("resume", "From a reset to the next token, p99", "", "ms", kind="bar", log_y=True)
    for place, case in enumerate(cases):
        transport = str(case.labels["transport"]).partition(",")[0]
        count = int(case.labels["clients"])
        label = f"{transport}, {count:,} client{'s at once' if count > 1 else ''}"
        plot.series[label] = [(float(place), *spread(case.metrics["resume_p99_ms"]))]
    return plot
