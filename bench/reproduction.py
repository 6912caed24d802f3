"""Compares two runs: which figures came out the same, and which did not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.record import Record
from bench.report import number
from bench.results import Case
from bench.spread import spread

#: Medians that differ by no more than this factor count as the same.
FACTOR = 1.3


@dataclass(frozen=True)
class Figure:
    """One metric of one case in both runs."""

    suite: str
    case: str
    metric: str
    old: float
    new: float

    @property
    def ratio(self) -> float:
        """New by old; 1 where both are zero, and infinite where only the old one is."""
        if self.old == self.new:
            return 1.0
        return self.new / self.old if self.old else math.inf

    @property
    def is_reproduced(self) -> bool:
        return 1 / FACTOR <= self.ratio <= FACTOR


@dataclass
class Comparison:
    """`missing` names what only one of the runs has: suites, cases and metrics."""

    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def differing(self) -> list[Figure]:
        return [figure for figure in self.figures if not figure.is_reproduced]


def compare(old: Mapping[str, Record], new: Mapping[str, Record]) -> Comparison:
    """Compare the medians of all figures that both runs have."""
    before, after = dict(_medians(old)), dict(_medians(new))
    comparison = Comparison()
    for key, value in before.items():
        if key in after:
            comparison.figures.append(Figure(*key, old=value, new=after[key]))
    for what, some, others in (("the new run", before, after), ("the old run", after, before)):
        comparison.missing += [f"{' / '.join(key)} is not in {what}" for key in some if key not in others]
    return comparison


def _medians(records: Mapping[str, Record]) -> Iterator[tuple[tuple[str, str, str], float]]:
    for suite, record in records.items():
        for case in record.result.cases:
            for metric, values in case.metrics.items():
                if values:
                    yield (suite, _name(case), metric), spread(values).median


def _name(case: Case) -> str:
    return ", ".join(f"{name} {value}" for name, value in case.labels.items())


def text(comparison: Comparison) -> str:
    """What the comparison says, for a terminal."""
    differing = comparison.differing
    lines = [
        f"{figure.suite} / {figure.case} / {figure.metric}: {number(figure.old)} -> {number(figure.new)} "
        f"({figure.ratio:.2f} x)"
        for figure in sorted(differing, key=lambda figure: (figure.suite, figure.case, figure.metric))
    ]
    lines += comparison.missing
    same = len(comparison.figures) - len(differing)
    lines.append(f"{same} of {len(comparison.figures)} figures are the same within {FACTOR} x")
    return "\n".join(lines)
