"""Judges what was measured of one row. It decides alone: no process, no clock, nothing of Holdfast.

A row fails where an honest caller was hurt, where the gateway took more than its budget or kept something, and
where the attack did not take place, since then nothing was shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.checker import Verdict
from chaos.hostile.attack import BROKEN, Attack

MIB = 1024 * 1024
#: ms between two tokens of an honest stream, and what a probe may take beyond its quiet value, each for 99 of 100.
MAX_GAP_MS = 50.0
MAX_PROBE_MS = 50.0
#: So much of the gateway's time may be stolen by other processes before these bounds are widened.
ALLOWED_THEFT = 0.1
#: What the gateway may take in memory beyond its budget and what it had at the start.
BEYOND_BUDGET = 64 * MIB
#: What may be left of memory when all guests have gone: a tenth more than at the start. A gateway that has just
#: started is small, and the pools of CPython go back only whole: so much may be fragments. A leak grows beyond it.
MAX_KEPT = 1.10
FRAGMENTS = 12 * MIB
#: By what the bounds of times and of memory beyond the budget are wider while several attacks run at a time: on
#: few cores these show what stalls, grows or stays, and one attack alone shows by how much.
CROWDED_TIMES = 5.0
CROWDED_MEMORY = 2
#: Times of honest callers that there must be for each second: 100 tokens and 100 probes are asked for.
_LEAST_TIMES = 20


def expanded(times: Iterable[float], pace: float) -> list[float]:
    """Add to each time that is longer than the pace those of the askers that it kept from asking."""
    result = []
    for time in times:
        result.append(time)
        while (time := time - pace) >= pace:
            result.append(time)
    return result


def percentile(times: Sequence[float], share: float) -> float:
    """Return the smallest of `times` that so large a share of them does not exceed; infinity if there are none."""
    if not times:
        return math.inf
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)]


@dataclass(frozen=True)
class Held:
    """What the gateway holds at one moment: bytes of memory, descriptors, and each bound's use by its name."""

    memory: int
    descriptors: int
    uses: Mapping[str, float]

    def beyond(self, start: Held) -> list[str]:
        """Say what is more than at the start."""
        more = [
            f"{name} {self.uses[name]:g}, at the start {start.uses.get(name, 0):g}"
            for name in self.uses
            if self.uses[name] > start.uses.get(name, 0)
        ]
        if self.descriptors > start.descriptors:
            more.append(f"descriptors {self.descriptors}, at the start {start.descriptors}")
        return more

    def keeps_memory(self, start: Held, fragments: int = FRAGMENTS) -> bool:
        return self.memory > max(MAX_KEPT * start.memory, start.memory + fragments)


@dataclass(frozen=True)
class Times:
    """Times of honest callers in ms, stalls expanded, and over how many seconds they were taken."""

    gaps: Sequence[float]
    probes: Sequence[float]
    count: int
    seconds: float
    #: The share of the time in which the gateway was ready to run and other processes had its core.
    stolen: float
    refused: Sequence[str] = ()

    @property
    def gap(self) -> float:
        return percentile(self.gaps, 0.99)

    @property
    def probe(self) -> float:
        return percentile(self.probes, 0.99)

    @property
    def allowance(self) -> float:
        """By what the bounds are multiplied: the gateway had less time, and the attackers had not."""
        return max(1.0, (1.0 - ALLOWED_THEFT) / max(1.0 - self.stolen, ALLOWED_THEFT))


@dataclass
class Row:
    """One row: the attacks of it, and all that was measured."""

    name: str
    attacks: Sequence[Attack]
    seconds: float
    budget: int
    quiet_probe: float
    times: Times
    streams: Verdict
    tallies: Mapping[str, Mapping[str, Any]]
    start: Held
    peak: int
    after: Held | None
    #: Lines of the gateway's log that tell of a fault of its own.
    faults: Sequence[str] = ()
    findings: list[str] = field(default_factory=list)

    @property
    def is_crowded(self) -> bool:
        """Whether several attacks ran at a time."""
        return len(self.attacks) > 1


def judge(row: Row) -> list[str]:
    """Return what is wrong with this row, in words."""
    hurt = _hurt(row)
    return [*hurt, *_taken(row), *_kept(row), *([] if hurt else _too_few(row)), *_vacuous(row)]


def _hurt(row: Row) -> list[str]:
    """What honest callers have suffered."""
    times, findings = row.times, []
    allowance = times.allowance * (CROWDED_TIMES if row.is_crowded else 1.0)
    if times.gap > (most := MAX_GAP_MS * allowance):
        findings.append(f"honest gap p99 {times.gap:.0f} ms, at most {most:.0f}")
    if times.probe > row.quiet_probe + MAX_PROBE_MS * allowance:
        findings.append(f"probe p99 {times.probe:.0f} ms, quiet {row.quiet_probe:.1f}")
    if times.refused:
        findings.append(f"probes refused: {len(times.refused)}, such as {times.refused[0]}")
    if not row.streams.is_clean:
        findings.append(f"honest streams: {'; '.join(row.streams.findings[:3]) or 'there was none'}")
    return findings


def _taken(row: Row) -> list[str]:
    most = row.budget + BEYOND_BUDGET * (CROWDED_MEMORY if row.is_crowded else 1)
    more = row.peak - row.start.memory
    if more > most:
        return [f"memory +{more / MIB:.0f} MiB at its peak, at most +{most / MIB:.0f}"]
    return []


def _kept(row: Row) -> list[str]:
    """What is left when all guests have gone."""
    if row.after is None:
        return ["the gateway does not answer afterwards"]
    findings = [f"left over: {', '.join(more)}"] if (more := row.after.beyond(row.start)) else []
    if row.after.keeps_memory(row.start, FRAGMENTS * (CROWDED_MEMORY if row.is_crowded else 1)):
        findings.append(f"memory {row.after.memory / MIB:.0f} MiB afterwards, {row.start.memory / MIB:.0f} before")
    if row.faults:
        findings.append(f"faults in the log: {len(row.faults)}, such as {row.faults[0]}")
    return findings


def _too_few(row: Row) -> list[str]:
    """Whether honest callers have measured too seldom to show anything; those that were held up showed enough."""
    if row.times.count < _LEAST_TIMES * row.times.seconds:
        return [f"honest callers measured {row.times.count} times in {row.times.seconds:.0f} s"]
    return []


def _vacuous(row: Row) -> list[str]:
    """Which attacks did not take place."""
    findings = []
    for attack in row.attacks:
        tally = row.tallies.get(attack.name)
        if tally is None:
            findings.append(f"{attack.name} did not take place")
        elif broken := [note for note in tally["notes"] if note.startswith(BROKEN)]:
            findings.append(f"{attack.name} is {broken[0]}")
        elif len(row.attacks) == 1:
            findings += _not_enough(attack, tally)
        elif not tally["connections"]:
            # Guests take each other's places, so of each it is asked only that it came.
            findings.append(f"{attack.name} has never connected")
    return findings


def _not_enough(attack: Attack, tally: Mapping[str, Any]) -> list[str]:
    findings = []
    if tally["connections"] < attack.connections:
        findings.append(f"the attack had {tally['connections']} connections, meant were {attack.connections}")
    if tally["sent"] < attack.sent:
        findings.append(f"the attack sent {tally['sent']} bytes, meant were {attack.sent}")
    missing = [proof for proof in attack.proofs if not tally["notes"].get(proof)]
    if missing:
        findings.append(f"the attack never saw {', '.join(missing)}; it saw {dict(tally['notes'])}")
    return findings
