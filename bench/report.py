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


def grid(cases: Sequence[Case]) -> tuple[list[str], list[list[str]]]:
    """The columns of all cases, labels first, and their cells. The last may be of notes.

    The numbers are the places in `notes`.
    """
    labels = list(dict.fromkeys(name for case in cases for name in case.labels))
    metrics = list(dict.fromkeys(name for case in cases for name in case.metrics))
    numbers = {note: place for place, note in enumerate(notes(cases), 1)}
    rows = []
    for case in cases:
        row = [str(case.labels.get(name, "")) for name in labels]
        row += [cell(case.metrics.get(name, ())) for name in metrics]
        if numbers:
            row.append(" ".join(f"[{numbers[note]}]" for note in case.notes))
        rows.append(row)
    return [*labels, *metrics, *(["notes"] if numbers else [])], rows


def notes(cases: Sequence[Case]) -> list[str]:
    """The notes of all cases, each once, in order."""
    return list(dict.fromkeys(note for case in cases for note in case.notes))


def table(result: SuiteResult) -> str:
    """The result for a terminal: figures aligned to the right, notes below."""
    lines = [f"{result.name}: {result.title}", f"$ {result.command}"]
    columns, rows = grid(result.cases)
    texts = max((len(case.labels) for case in result.cases), default=0)
    widths = [max(len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            text.ljust(width) if place < texts or columns[place] == "notes" else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"  [{place}] {note}" for place, note in enumerate(notes(result.cases), 1)]
    lines += [f"  {note}" for note in result.notes]
    return "\n".join(lines)


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
    columns, rows = grid(result.cases)
    if rows:
        lines = [columns, ["---"] * len(columns), *rows]
        parts.append("\n".join("| " + " | ".join(_escaped(text) for text in line) + " |" for line in lines))
    listed = [f"[{place}] {note}" for place, note in enumerate(notes(result.cases), 1)] + result.notes
    if listed:
        parts.append("\n".join(f"- {note}" for note in listed))
    if has_plots:
        parts += [f"![{plot.title}]({plot.name}.svg)" for plot in result.plots]
    return parts


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")
