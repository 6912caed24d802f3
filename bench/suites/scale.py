"""What many of something cost: idle connections, running streams, and tokens as streams become more.

Clients are authenticated, live in a process of their own, and check the number and the token of every entry.
Memory is resident memory of the gateway, CPU the kernel's account of its threads.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from bench.gateways import holdfast
from bench.gateways.gateway import Running
from bench.processes import (
    GATEWAY_CORE,
    LOAD_CORE,
    cpu_ns,
    max_connections,
    pinned,
    raise_descriptor_limit,
    resident,
    simulated_provider,
)
from bench.results import Case, Options, Plot, Point, SuiteResult
from bench.spread import fit_power_law, spread
from holdfast_tools.bench.plan import Pace, Plan
from holdfast_tools.bench.tally import Tally
from holdfast_tools.bench.workers import Workers, started

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
#: An answer that does not end while it is measured.
_ENDLESS = 200_000
#: Loopback addresses that connections come from in turn, and seconds that opening them may take.
_ADDRESSES, _PATIENCE = 50, 120.0
_MS = 1e6


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


@contextlib.contextmanager
def _gateway(
    provider_url: str | None = None, server: Mapping[str, object] | None = None
) -> Iterator[tuple[Running, int]]:
    """Run a gateway with room for all, and give its process id as well."""
    settings: holdfast.Tables = {"server": {**_ROOM, **(server or {})}, "streams": {}}
    with holdfast.start(provider_url, GATEWAY_CORE, has_key=True, settings=settings) as gateway:
        if gateway.pid is None:
            raise RuntimeError("a gateway that was started has no process")
        yield gateway, gateway.pid


def _plan(gateway: Running, **load: Any) -> Plan:
    plan = Plan(
        url=gateway.url,
        tokens=_ENDLESS,
        addresses=_ADDRESSES,
        settle_timeout=_PATIENCE,
        headers=gateway.headers,
    )
    return msgspec.structs.replace(plan, **load)


@contextlib.contextmanager
def _clients(plan: Plan) -> Iterator[Workers]:
    """Run the clients, and wait until they are there."""
    with started(plan, prefix=pinned(LOAD_CORE)) as clients:
        _verify(clients.wait_until_ready())
        yield clients


# -- idle connections ----------------------------------------------------------------------------------


def _idle(options: Options, result: SuiteResult) -> None:
    most = min(max_connections() - _WARM_CONNECTIONS, _MOST_CONNECTIONS)
    steps = [500, 2000] if options.quick else [step for step in (1000, 10_000) if step < most] + [most]
    plot = Plot("idle-memory", "Memory of an idle session", "connections", "bytes per connection", log_x=True)
    points: list[Point] = []
    interval = 2.0 if options.quick else _PING_INTERVAL
    # A connection is not pinged again before the time for its answer has passed: half an interval by default.
    server = {"ping_interval": interval, "ping_timeout": interval / 2}
    with (
        _gateway(server=server) as (gateway, pid),
        _clients(_plan(gateway, streams=0, idle=_WARM_CONNECTIONS)) as clients,
    ):
        count = 0
        for step in steps:
            case = _open(pid, clients, step - count)
            case.labels = {"what": "idle connections", "number": step}
            case.metrics["rss_mib"] = [resident(pid) / 2**20]
            points.append((float(step), *spread(case.metrics["memory_bytes_each"])))
            result.cases.append(case)
            count = step
        if not options.quick:
            result.cases[-1].notes.append(_limit(most))
        result.cases.append(_heartbeats(pid, clients, count + _WARM_CONNECTIONS, interval, options))
    plot.series["idle session"] = points
    result.plots.append(plot)


def _limit(most: int) -> str:
    if most == _MOST_CONNECTIONS:
        return f"no more than {_MOST_CONNECTIONS} connections are tried"
    return f"the limit of open files of a process ({raise_descriptor_limit()}) allows no more connections"


def _open(pid: int, clients: Workers, count: int) -> Case:
    memory, cpu = [], []
    for part in range(_PARTS):
        added = count // _PARTS + (part < count % _PARTS)
        before, cpu_before = resident(pid), cpu_ns(pid)
        _verify(clients.add(idle=added))
        memory.append((resident(pid) - before) / added)
        cpu.append((cpu_ns(pid) - cpu_before) / added / 1000)
    return Case({}, {"memory_bytes_each": memory, "cpu_us_each": cpu})


def _heartbeats(pid: int, clients: Workers, count: int, interval: float, options: Options) -> Case:
    """CPU of the Pings of connections on which nothing else happens; a window is one interval, in which each is
    pinged once."""
    case = Case({"what": f"heartbeats each {interval:g} s", "number": count})
    shares, pings, lost, cpu_before = [], [], 0, 0
    windows = 1 if options.quick else max(options.windows, 5)
    # The first interval has the connections' opening in it.
    for number, tally in enumerate(clients.windows(windows, interval, warm_up=interval)):
        cpu = cpu_ns(pid)
        if number:
            shares.append((cpu - cpu_before) / 1e9 / tally.seconds * 100)
            pings.append(tally.pings / tally.seconds)
        lost += tally.failed
        cpu_before = cpu
    case.metrics = {"cpu_percent_of_a_core": shares, "pings_per_second": pings, "lost": [float(lost)]}
    if lost:
        case.notes.append(f"{lost} connections were lost while idle")
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
    with _gateway() as (gateway, _), _clients(_plan(gateway, streams=0, idle=count)) as clients:
        for _ in range(1 if options.quick else max(options.windows, 5)):
            begun = time.perf_counter()
            tally = clients.cut(over=seconds)
            took = time.perf_counter() - begun
            if tally.failed:
                raise RuntimeError(f"{tally.failed} of {count} connections did not come back: {tally.errors}")
            for name, share in (("welcome_p50_ms", 0.5), ("welcome_p99_ms", 0.99)):
                case.metrics.setdefault(name, []).append((tally.setup.quantile(share) or 0.0) / _MS)
            case.metrics.setdefault("storm_s", []).append(took)
    case.metrics = {"lost": [0.0] * len(case.metrics["storm_s"]), **case.metrics}
    result.cases.append(case)


# -- running streams -----------------------------------------------------------------------------------


def _streams(options: Options, result: SuiteResult) -> None:
    """Memory of slow streams, one token a second each, read over few sockets."""
    steps = (10, 100, 500) if options.quick else (10, 100, 1000, 10_000)
    pace = Pace(interval_ms=1000, ttft_ms=0, timestamps=False)
    plot = Plot("stream-memory", "Memory of a running stream", "streams", "bytes per stream", log_x=True)
    points: list[Point] = []
    with (
        simulated_provider() as provider,
        _gateway(provider.url) as (gateway, pid),
        _clients(_plan(gateway, streams=_WARM_STREAMS, sockets=3, pace=pace)) as clients,
    ):
        count = 0
        for step in steps:
            memory, added = [], (step - count) // _PARTS
            for _ in range(_PARTS):
                sockets = -(-added // _STREAMS_PER_SOCKET)
                before = resident(pid)
                _verify(clients.add(streams=added, sockets=sockets))
                memory.append((resident(pid) - before) / added)
                count += added
            case = Case({"what": "running streams, 1 token/s each", "number": count})
            case.metrics = {
                "memory_bytes_each": memory,
                "rss_mib": [resident(pid) / 2**20],
                "lost_or_doubled": [0.0],
            }
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
    pace = Pace(interval_ms=interval, ttft_ms=0, timestamps=False)
    case = Case({})
    costs: list[float] = []
    rates: list[float] = []
    windows = 2 if options.quick else max(options.windows, 5)
    seconds = options.seconds / (2 if options.quick else 1)
    with (
        simulated_provider() as provider,
        _gateway(provider.url) as (gateway, pid),
        _clients(_plan(gateway, streams=count, sockets=sockets, pace=pace, spread_ms=interval)) as clients,
    ):
        cpu_before = 0
        for number, tally in enumerate(clients.windows(windows, seconds, warm_up=min(options.seconds, 1.0))):
            cpu = cpu_ns(pid)
            _verify(tally)
            if number:
                costs.append((cpu - cpu_before) / 1000 / tally.tokens)
                rates.append(tally.tokens / tally.seconds)
            cpu_before = cpu
    case.metrics = {"cpu_us_per_token": costs, "tokens_per_second": rates, "lost_or_doubled": [0.0]}
    if spread(rates).median < 0.9 * _TOTAL_RATE:
        case.notes.append(f"the {_TOTAL_RATE:,.0f} tokens/s were not reached: a core is saturated")
    return case


def _verify(tally: Tally) -> None:
    """Raise RuntimeError unless every entry was read once, in order and with the right token.

    Else the figures are worth nothing.
    """
    if tally.faults or tally.failed:
        raise RuntimeError(f"the clients read {tally.faults}, {tally.failed} failed: {tally.errors}")
