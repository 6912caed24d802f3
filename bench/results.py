"""What a suite is asked for and what it gives back. Reports are made of this and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

#: x, then the median, the least and the most of y.
Point = tuple[float, float, float, float]


@dataclass(frozen=True)
class Options:
    """How long and how often is measured.

    `seconds` is the length of one window, and `windows` is how many count: at least 5 but in a quick run, which is
    a smoke run with fewer cases and smaller numbers. `peers` names the gateways to compare; empty means all that
    are found.
    """

    seconds: float = 1.0
    windows: int = 5
    quick: bool = False
    peers: tuple[str, ...] = ()


@dataclass
class Case:
    """One row: what was run, and of each metric one value for each window.

    The name of a metric ends with its unit: `cpu_us_per_event`, `latency_p99_ms`. Notes say what went wrong, what
    limits, or why something is missing.
    """

    labels: dict[str, str | int | float]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Plot:
    """A picture: for each label of `series` its points. `kind` is `line` or `bar`."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: dict[str, list[Point]] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    kind: str = "line"


@dataclass
class SuiteResult:
    """All that a suite has measured, and the command that measures it again."""

    name: str
    title: str
    command: str
    cases: list[Case] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
