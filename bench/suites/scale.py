"""What many of something cost: idle connections, running streams, and tokens as streams become more.

Clients are authenticated, live in a process of their own, and check the number and the token of every entry.
Memory is resident memory of the gateway, CPU the kernel's account of its threads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.children import Crowd, Server, crowd, gateway, max_connections, provider
from bench.results import Case, Options, Plot, Point, SuiteResult
from bench.spread import fit_power_law, spread

#: The largest number of idle connections, whatever the machine allows, so that the suite stays within its time.
_MOST_CONNECTIONS = 50_000
_STORM_CONNECTIONS, _STORM_SECONDS = 10_000, 10.0
#: Silence after which the gateway pings, its default; a window of heartbeats is one such interval.
_PING_INTERVAL = 20.0
#: Tokens per second of all streams together.
_TOTAL_RATE = 5000.0
#: Streams of one socket where memory is measured, so that the sockets count little.
_STREAMS_PER_SOCKET = 100
#: Opened before those that count: they fill what the interpreter took at its start and has not used since.
_WARM_CONNECTIONS = 1000
_WARM_STREAMS = 300
_ROOM = {"max_connections": 1_000_000, "max_streams_per_session": 20_000}
#: Parts in which connections or streams are added: each is a window.
_PARTS = 5


def run(options: Options) -> SuiteResult:
    quick = " --quick" if options.quick else ""
    result = SuiteResult("scale", "Many connections, many streams", f"python -m bench scale{quick}")
    result.notes.append(
        "memory is what each fifth of the connections or streams has added, divided by their number"
    )
    _idle(options, result)
    _storms(options, result)
    _streams(options, result)
    _growth(options, result)
    return result


# -- idle connections ----------------------------------------------------------------------------------


def _idle(options: Options, result: SuiteResult) -> None:
    most = min(max_connections() - _WARM_CONNECTIONS, _MOST_CONNECTIONS)
    steps = [500, 2000] if options.quick else [step for step in (1000, 10_000) if step < most] + [most]
    plot = Plot("idle-memory", "Memory of an idle session", "connections", "bytes per connection", log_x=True)
    points: list[Point] = []
    interval = 2.0 if options.quick else _PING_INTERVAL
    # A connection is not pinged again before the time for its answer has passed: half an interval by default.
    server = {**_ROOM, "ping_interval": interval, "ping_timeout": interval / 2}
    with gateway(server=server) as measured, crowd(measured) as clients:
        clients.ask("open", count=_WARM_CONNECTIONS)
        count = 0
        for step in steps:
            case = _open(measured, clients, step - count)
            case.labels = {"what": "idle connections", "number": step}
            case.metrics["rss_mib"] = [measured.resident() / 2**20]
            points.append((float(step), *spread(case.metrics["memory_bytes_each"])))
            result.cases.append(case)
            count = step
        if not options.quick:
            result.cases[-1].notes.append(_limit(most))
        result.cases.append(_heartbeats(measured, clients, count + _WARM_CONNECTIONS, interval, options))
    plot.series["idle session"] = points
    result.plots.append(plot)


def _limit(most: int) -> str:
    if most == _MOST_CONNECTIONS:
        return f"no more than {_MOST_CONNECTIONS} connections are tried"
    return f"the limit of open files of a process ({max_connections() + 512}) allows no more connections"


def _open(measured: Server, clients: Crowd, count: int) -> Case:
    memory, cpu = [], []
    for part in range(_PARTS):
        added = count // _PARTS + (part < count % _PARTS)
        before, cpu_before = measured.resident(), measured.cpu_seconds()
        clients.ask("open", count=added)
        memory.append((measured.resident() - before) / added)
        cpu.append((measured.cpu_seconds() - cpu_before) / added * 1e6)
    return Case({}, {"memory_bytes_each": memory, "cpu_us_each": cpu})


def _heartbeats(measured: Server, clients: Crowd, count: int, interval: float, options: Options) -> Case:
    """CPU of the Pings of connections on which nothing else happens; a window is one interval, in which each is
    pinged once."""
    case = Case({"what": f"heartbeats each {interval:g} s", "number": count})
    shares, pings = [], []
    time.sleep(interval)  # the first interval has the connections' opening in it
    before = clients.ask("pings")
    for _ in range(1 if options.quick else max(options.windows, 5)):
        start, cpu_before = time.perf_counter(), measured.cpu_seconds()
        time.sleep(interval)
        seconds = time.perf_counter() - start
        shares.append((measured.cpu_seconds() - cpu_before) / seconds * 100)
        after = clients.ask("pings")
        pings.append((after["pings"] - before["pings"]) / seconds)
        before = after
    case.metrics = {"cpu_percent_of_a_core": shares, "pings_per_second": pings, "lost": [before["lost"]]}
    if before["lost"]:
        case.notes.append(f"{before['lost']} connections were lost while idle")
    return case


def _storms(options: Options, result: SuiteResult) -> None:
    """All are reset at once and come back over some seconds."""
    count = 2000 if options.quick else _STORM_CONNECTIONS
    # A gateway may have yet to see that the old ones are gone when the new ones come: both need a descriptor.
    if count > max_connections() // 2:
        count = max_connections() // 2
        result.notes.append(f"the limit of open files allows a storm of {count} connections")
    seconds = 2.0 if options.quick else _STORM_SECONDS
    case = Case({"what": f"all reset, and back within {seconds:g} s", "number": count})
    with gateway(server=_ROOM) as measured, crowd(measured) as clients:
        clients.ask("open", count=count)
        for _ in range(1 if options.quick else max(options.windows, 5)):
            answer = clients.ask("storm", seconds=seconds)
            for name in ("lost", "welcome_p50_ms", "welcome_p99_ms"):
                case.metrics.setdefault(name, []).append(answer[name])
            case.metrics.setdefault("storm_s", []).append(answer["seconds"])
            if answer["lost"]:
                raise RuntimeError(
                    f"{answer['lost']} of {count} connections did not come back: {answer['errors']}"
                )
    result.cases.append(case)


# -- running streams -----------------------------------------------------------------------------------


def _streams(options: Options, result: SuiteResult) -> None:
    """Memory of slow streams, one token a second each, read over few sockets."""
    steps = (10, 100, 500) if options.quick else (10, 100, 1000, 10_000)
    pace: dict[str, object] = {"tokens": 1_000_000, "interval_ms": 1000}
    plot = Plot("stream-memory", "Memory of a running stream", "streams", "bytes per stream", log_x=True)
    points: list[Point] = []
    with provider() as source, gateway(source, server=_ROOM) as measured, crowd(measured) as clients:
        clients.ask("create", count=_WARM_STREAMS, sockets=3, sim=pace, spread_ms=0)
        count = 0
        for step in steps:
            memory, added = [], (step - count) // _PARTS
            for _ in range(_PARTS):
                sockets = -(-added // _STREAMS_PER_SOCKET)
                before = measured.resident()
                clients.ask("create", count=added, sockets=sockets, sim=pace, spread_ms=0)
                memory.append((measured.resident() - before) / added)
                count += added
            case = Case({"what": "running streams, 1 token/s each", "number": count})
            case.metrics = {"memory_bytes_each": memory, "rss_mib": [measured.resident() / 2**20]}
            _verify(case, clients.ask("tally"))
            points.append((float(count), *spread(memory)))
            result.cases.append(case)
    result.notes += [
        "a running stream's memory holds its log, here the first tokens of it, and its part of a socket",
        "at 10 streams a window has two of them, and memory comes in pages of 4,096 bytes",
    ]
    plot.series["running stream"] = points
    result.plots.append(plot)


def _growth(options: Options, result: SuiteResult) -> None:
    """CPU per token as the same number of tokens comes from more and more streams."""
    counts = (10, 100, 1000) if options.quick else (10, 30, 100, 300, 1000, 3000, 10_000)
    title = f"CPU per token at {_TOTAL_RATE:,.0f} tokens/s of all streams together"
    plot = Plot("growth", title, "running streams", "µs of CPU per token", log_x=True, log_y=True)
    most = max_connections() // 2
    for label, sockets in (("10 sockets", 10), ("a socket each", most)):
        points: list[Point] = []
        for count in counts:
            if count > sockets > 10:
                result.notes.append(
                    f"{count} streams with a socket each are beyond the limit of open files; left out"
                )
                continue
            case = _tokens(count, min(sockets, count), options)
            case.labels = {"what": f"5,000 tokens/s, {label}", "number": count}
            result.cases.append(case)
            points.append((float(count), *spread(case.metrics["cpu_us_per_token"])))
        plot.series[label] = points
        fit = fit_power_law([(x, median) for x, median, _, _ in points])
        result.notes.append(
            f"{label}: CPU per token grows as streams to the power of {fit.exponent:.3f} "
            f"(least squares in logarithms, r2 {fit.r2:.2f})"
        )
        line = [(x, fit.factor * x**fit.exponent) for x, *_ in points]
        plot.series[f"{label}: streams^{fit.exponent:.2f}"] = [(x, y, y, y) for x, y in line]
    result.plots.append(plot)


def _tokens(count: int, sockets: int, options: Options) -> Case:
    """One number of streams: windows of CPU per token, after a second that does not count."""
    interval = count / _TOTAL_RATE * 1000
    pace: dict[str, object] = {"tokens": 10_000_000, "interval_ms": interval}
    case = Case({})
    costs: list[float] = []
    rates: list[float] = []
    with provider() as source, gateway(source, server=_ROOM) as measured, crowd(measured) as clients:
        clients.ask("create", count=count, sockets=sockets, sim=pace, spread_ms=interval)
        time.sleep(min(options.seconds, 1.0))
        before, cpu_before = clients.ask("tally"), measured.cpu_seconds()
        for _ in range(2 if options.quick else max(options.windows, 5)):
            time.sleep(options.seconds / (2 if options.quick else 1))
            after, cpu_after = clients.ask("tally"), measured.cpu_seconds()
            entries = after["entries"] - before["entries"]
            costs.append((cpu_after - cpu_before) / entries * 1e6)
            rates.append(entries / (after["time"] - before["time"]))
            before, cpu_before = after, cpu_after
        _verify(case, before)
    case.metrics = {"cpu_us_per_token": costs, "tokens_per_second": rates, **case.metrics}
    if spread(rates).median < 0.9 * _TOTAL_RATE:
        case.notes.append(f"the {_TOTAL_RATE:,.0f} tokens/s were not reached: a core is saturated")
    return case


def _verify(case: Case, tally: dict[str, object]) -> None:
    """Every entry was read once, in order and with the right token; else the figures are worth nothing."""
    wrong = {name: tally[name] for name in ("lost", "doubled", "faults") if tally[name]}
    if wrong:
        raise RuntimeError(f"the clients of {case.labels} read {wrong}: {_first(tally['errors'])}")
    case.metrics["lost_or_doubled"] = [0.0]


def _first(errors: object) -> str:
    return str(errors[0]) if isinstance(errors, Sequence) and errors else "no reason was given"
