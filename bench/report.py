"""Results as text: a table for the terminal, and a report in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bench.environment import Environment
from bench.record import Record
from bench.results import Case, SuiteResult
from bench.spread import spread


def number(value: float) -> str:
    """Three significant digits, more where the number is large: no window is exact to more."""
    size = abs(value)
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def cell(values: Sequence[float]) -> str:
    """The median, and the least and the most in brackets; a figure that was measured once stands alone."""
    if not values:
        return "-"
    median, least, most = spread(values)
    if least == most:
        return number(median)
    return f"{number(median)} ({number(least)}-{number(most)})"


def groups(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases that have the same columns, in order: each group is a table of its own."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Case]] = {}
    for case in cases:
        found.setdefault((tuple(case.labels), tuple(case.metrics)), []).append(case)
    return list(found.values())


def grid(cases: Sequence[Case], listed: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The columns of cases that have the same, labels first, and their cells.

    Where a case has notes the last column has their places in `listed`, from 1.
    """
    has_notes = any(case.notes for case in cases)
    rows = []
    for case in cases:
        row = [_label(value) for value in case.labels.values()]
        row += [cell(values) for values in case.metrics.values()]
        if has_notes:
            row.append(" ".join(f"[{listed.index(note) + 1}]" for note in case.notes))
        rows.append(row)
    return [*cases[0].labels, *cases[0].metrics, *(["notes"] if has_notes else [])], rows


def _label(value: str | int | float) -> str:
    return value if isinstance(value, str) else number(value)


def notes(cases: Sequence[Case]) -> list[str]:
    """The notes of all cases, each once, in order."""
    return list(dict.fromkeys(note for case in cases for note in case.notes))


def table(result: SuiteResult) -> str:
    """The result for a terminal: figures aligned to the right, notes below."""
    listed = notes(result.cases)
    lines = [f"{result.name}: {result.title}", f"$ {result.command}"]
    for cases in groups(result.cases):
        lines += ["", *_aligned(cases, listed)]
    lines += ["", *(f"[{place}] {note}" for place, note in enumerate(listed, 1)), *result.notes]
    return "\n".join(lines)


def _aligned(cases: Sequence[Case], listed: Sequence[str]) -> list[str]:
    columns, rows = grid(cases, listed)
    widths = [max(len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    # Text to the left, figures to the right.
    is_text = [isinstance(value, str) for value in cases[0].labels.values()]
    is_text += [False] * len(cases[0].metrics) + [True]
    lines = []
    for row in [columns, *rows]:
        cells = zip(row, widths, is_text, strict=False)
        lines.append("  ".join(text.ljust(w) if left else text.rjust(w) for text, w, left in cells).rstrip())
    return lines


def markdown(records: Sequence[Record], failures: Sequence[str], *, has_plots: bool) -> str:
    """The report of one run. `failures` are the suites that did not come to their end, with the reason."""
    parts = ["# Benchmarks", *_where(records)]
    if failures:
        parts.append("\n".join(f"- **failed** - {failure}" for failure in failures))
    for record in records:
        parts += _section(record, has_plots=has_plots)
    return "\n\n".join(parts) + "\n"


def _where(records: Sequence[Record]) -> list[str]:
    described = list(dict.fromkeys(_machine(record.environment) for record in records))
    explained = (
        "Each figure is the median of all windows, with the least and the most in brackets. A figure without "
        "brackets was measured once, or came out the same each time."
    )
    return [*described, explained]


def _machine(environment: Environment) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    cores = f"{environment.cores} core{'s' if environment.cores != 1 else ''}"
    machine = f"{environment.cpu}, {cores}, {environment.memory_gib:g} GiB; {environment.system}"
    return f"{machine}; {versions}."


def _section(record: Record, *, has_plots: bool) -> list[str]:
    result, options = record.result, record.options
    windows = "a quick run" if options.quick else f"{options.windows} windows of {options.seconds:g} s"
    parts = [
        f"## {result.title}",
        f"`{result.command}`, {windows}, {record.environment.date} UTC, took {record.seconds:.0f} s",
    ]
    listed = notes(result.cases)
    for cases in groups(result.cases):
        columns, rows = grid(cases, listed)
        lines = [columns, ["---"] * len(columns), *rows]
        parts.append("\n".join("| " + " | ".join(_escaped(text) for text in line) + " |" for line in lines))
    below = [f"[{place}] {note}" for place, note in enumerate(listed, 1)] + result.notes
    if below:
        parts.append("\n".join(f"- {note}" for note in below))
    if has_plots:
        parts += [f"![{plot.title}]({plot.name}.svg)" for plot in result.plots]
    return parts


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")
