"""Single operations and the whole way of a token, without sockets: nanoseconds, and instructions by valgrind.

    python -m bench micro              times and counts
    python -m bench micro --check      only counts, and fails where one is above 1.15 x its baseline
    python -m bench micro --update     writes the baseline

Times are CPU time of this thread, so that other load on the machine is counted little. Operations take turns, one
window each, so that a slow moment of the machine does not fall on one of them alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bench.micro import instructions
from bench.micro.operation import Operation, Run
from bench.micro.operations import OPERATIONS
from bench.results import Case, Options, Plot, SuiteResult
from bench.spread import spread

BASELINE = Path(__file__).parents[1] / "baseline.json"
#: Of the seconds of a window: operations are many, and their times spread little.
_WINDOW_SHARE = 0.1
#: What stands beside ours for comparison has no baseline.
_OURS = [operation.name for operation in OPERATIONS.values() if not operation.name.startswith("h2_")]


def run(options: Options) -> SuiteResult:
    result = SuiteResult("micro", "Single operations, without sockets", "python -m bench micro")
    window = options.seconds * _WINDOW_SHARE / (5 if options.quick else 1)
    times = _time(window, 1 if options.quick else max(options.windows, 5))
    counts: dict[str, int] = {}
    if options.quick:
        result.notes.append("a quick run does not count instructions")
    else:
        try:
            counts = instructions.count(_OURS)
        except instructions.CannotCount as exc:
            result.notes.append(f"instructions are not counted: {exc}")
    for operation in OPERATIONS.values():
        case = Case({"operation": operation.what}, {"ns": times[operation.name]})
        if operation.name in counts:
            case.metrics["instructions"] = [float(counts[operation.name])]
        if operation.beside:
            ratio = spread(times[operation.beside]).median / spread(times[operation.name]).median
            case.notes.append(f"the h2 package takes {ratio:.1f} x as long")
        result.cases.append(case)
    result.plots.append(_plot(times))
    result.notes.append("event loop and system calls are left out; an instruction count is one exact value")
    return result


def _time(window: float, windows: int) -> dict[str, list[float]]:
    """Return nanoseconds per operation for each window of about `window` seconds."""
    prepared = []
    for operation in OPERATIONS.values():
        run = operation.build()
        run(operation.counted)
        per_operation = _elapsed(run, operation.counted) / operation.counted
        steps = max(round(window * 1e9 / per_operation / operation.step), 1)
        prepared.append((operation, run, steps * operation.step))
    times: dict[str, list[float]] = {operation.name: [] for operation in OPERATIONS.values()}
    for _ in range(windows):
        for operation, run, count in prepared:
            times[operation.name].append(_elapsed(run, count) / count)
    return times


def _elapsed(run: Run, count: int) -> int:
    start = time.thread_time_ns()
    run(count)
    return time.thread_time_ns() - start


def _plot(times: dict[str, list[float]]) -> Plot:
    plot = Plot("hot-path", "The whole way of a token, without sockets", "", "µs per token", kind="bar")
    for place, operation in enumerate(_hot_paths()):
        values = spread([value / 1000 for value in times[operation.name]])
        plot.series[operation.what.removeprefix("a token, ")] = [(float(place), *values)]
    return plot


def _hot_paths() -> list[Operation]:
    return [operation for name, operation in OPERATIONS.items() if name.startswith("hot_path")]


# -- the baseline --------------------------------------------------------------------------------------


def check(path: Path = BASELINE) -> int:
    """Compare the instruction counts with the baseline, and return the exit status: 1 where one is too high.

    Where they cannot be compared, it says why and returns 0: another interpreter has other counts.
    """
    try:
        baseline = instructions.read_baseline(path)
        python, machine = instructions.here()
        if (baseline.python, baseline.machine) != (python, machine):
            raise instructions.CannotCount(
                f"the baseline is of {baseline.python} on {baseline.machine}; this is {python} on {machine}"
            )
        counts = instructions.count(_OURS)
    except instructions.CannotCount as exc:
        print(f"skipped: {exc}")
        return 0
    for name, now in counts.items():
        before = baseline.instructions.get(name)
        print(f"{name:<20}{now:>10,}" + (f"{now / before:>8.3f} x" if before else ""))
    faults = instructions.compare(baseline.instructions, counts)
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(counts)} operations, {len(faults)} of them faulty; the limit is {instructions.TOLERANCE} x")
    return 1 if faults else 0


def update(path: Path = BASELINE) -> int:
    """Write the baseline anew; returns the exit status."""
    try:
        counts = instructions.count(_OURS)
    except instructions.CannotCount as exc:
        print(f"the baseline was not written: {exc}", file=sys.stderr)
        return 1
    instructions.write_baseline(path, counts)
    print(f"{path}: {len(counts)} counts of {instructions.here()[0]}")
    return 0
