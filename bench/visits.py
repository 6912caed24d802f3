"""Visits: a load is put on a gateway for one window, and everything that the window cost is read.

Gateways that are compared run all the while and are visited in turn, round after round, so that a machine that
grows faster or slower meanwhile does so for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.gateways.gateway import Running
from bench.processes import LOAD_CORE, Server, cpu_ns, pinned, resident
from bench.results import Case, Options
from holdfast_tools.bench.plan import Plan
from holdfast_tools.bench.tally import Tally
from holdfast_tools.bench.workers import started

#: A process rests when it took less than this share of a core for so long; waited for no longer than the last.
_RESTING_SHARE, _RESTING_FOR, _RESTING_WITHIN = 0.05, 0.05, 5.0
_MS = 1e6


@dataclass
class Reading:
    """One window: what the load counted, and CPU in ns that the gateway and the provider took meanwhile."""

    tally: Tally
    gateway_ns: int
    provider_ns: int
    resident: int
    #: How long the window should have been, in seconds.
    nominal: float

    def metrics(self) -> dict[str, float]:
        """All that can be said of the window; what was not measured is left out."""
        tally = self.tally
        found = {
            "tokens_per_second": tally.tokens / tally.seconds,
            "load_core_percent": 100 * (tally.cpu_ns + self.provider_ns) / 1e9 / tally.seconds,
        }
        if self.gateway_ns:
            found["gateway_core_percent"] = 100 * self.gateway_ns / 1e9 / tally.seconds
            found["resident_mib"] = self.resident / 2**20
        if self.gateway_ns and tally.tokens:
            found["cpu_us_per_token"] = self.gateway_ns / 1000 / tally.tokens
            found["tokens_per_cpu_second"] = tally.tokens * 1e9 / self.gateway_ns
        for name, histogram, shares in (
            ("latency", tally.latency, (0.5, 0.99)),
            ("gap", tally.gap, (0.5, 0.99, 0.999)),
            ("ttft", tally.first_token, (0.5, 0.99)),
            ("setup", tally.setup, (0.5, 0.99)),
        ):
            for share in shares:
                value = histogram.quantile(share)
                if value is not None:
                    digits = f"{share * 100:g}".replace(".", "")
                    found[f"{name}_p{digits}_ms"] = value / _MS
        return found


@dataclass
class Visits:
    """The readings of one gateway under one load, and what went wrong meanwhile."""

    labels: dict[str, str | int | float]
    readings: list[Reading] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            self.readings.append(reading)
            tally = reading.tally
            self.note([f"{count} {name}" for name, count in tally.faults.items()])
            self.note([f"{tally.failed} failed"] if tally.failed else [])
            self.note(tally.errors)
            if abs(tally.seconds - reading.nominal) > 0.2 * reading.nominal:
                self.note([f"a window of {reading.nominal:g} s took {tally.seconds:.2f} s: the machine was busy"])
            busy = 100 * (tally.cpu_ns + reading.provider_ns) / 1e9 / tally.seconds
            if busy > 92:
                self.note(["the core of provider and load was full, so the gateway may carry more"])

    def note(self, notes: Iterable[str]) -> None:
        self.notes += [note for note in notes if note not in self.notes]

    def case(self, *names: str) -> Case:
        """One row with these metrics, or with all."""
        found = [reading.metrics() for reading in self.readings]
        columns = list(dict.fromkeys(name for metrics in found for name in metrics))
        values = {
            name: [metrics[name] for metrics in found if name in metrics]
            for name in columns
            if not names or name in names
        }
        return Case(self.labels, values, self.notes)


def visit(
    gateway: Running, provider: Server, plan: Plan, *, seconds: float, windows: int = 1, warm_up: float = 0.5
) -> list[Reading]:
    """Put a load on a gateway for some windows; the load is gone, and the gateway at rest, when this returns."""
    readings = []
    with started(plan, prefix=pinned(LOAD_CORE)) as workers:
        before = workers.wait_until_ready()
        gateway_ns = provider_ns = 0
        for number, tally in enumerate(workers.windows(windows, seconds, warm_up=warm_up)):
            now = (0 if gateway.pid is None else cpu_ns(gateway.pid), cpu_ns(provider.pid))
            if not number:
                before.merge(tally)
            else:
                if number == 1:  # what went wrong before is told with the first window
                    _carry_over(before, tally)
                held = 0 if gateway.pid is None else resident(gateway.pid)
                readings.append(Reading(tally, now[0] - gateway_ns, now[1] - provider_ns, held, seconds))
            gateway_ns, provider_ns = now
    wait_for_rest([pid for pid in (gateway.pid, provider.pid) if pid is not None])
    return readings


def _carry_over(before: Tally, tally: Tally) -> None:
    tally.failed += before.failed
    for name, count in before.faults.items():
        setattr(tally, name, getattr(tally, name) + count)
    for error in before.errors:
        tally.note(error)


def window_seconds(options: Options) -> float:
    """How long a window is: in a smoke run, as short as will do."""
    return min(options.seconds, 0.4) if options.quick else options.seconds


def wait_for_rest(pids: Iterable[int]) -> None:
    """Wait until processes have done what a load has left behind."""
    deadline = time.monotonic() + _RESTING_WITHIN
    for pid in pids:
        busy = True
        while busy and time.monotonic() < deadline:
            before = cpu_ns(pid)
            time.sleep(_RESTING_FOR)
            busy = cpu_ns(pid) - before > _RESTING_SHARE * _RESTING_FOR * 1e9
