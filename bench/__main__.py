"""All benchmarks, with one command and one report.

    python -m bench                         all suites, in half an hour on two cores
    python -m bench scale resume --quick    two of them, as a smoke run
    python -m bench --against OLD           compare the results of --out with older ones; runs nothing
    python -m bench micro --check           fail where an operation needs more instructions than it may

Tables are printed as the suites complete; figures, plots and `report.md` are written to `--out`. The exit status
is 1 where a suite failed, figures differ, or a check did not pass.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
import time
import traceback
from pathlib import Path

from bench import environment, record, report, reproduction
from bench.leftovers import end_descendants
from bench.results import Options, Plot
from bench.suites import micro

try:
    from bench import plots
except ImportError:
    plots = None  # type: ignore[assignment] # `make bench` installs what they are drawn with

HERE = Path(__file__).parent
#: In the order in which they run.
SUITES = ("transports", "cost", "scale", "compare", "resume", "micro")


def suites() -> list[str]:
    """The suites that there are."""
    return [name for name in SUITES if importlib.util.find_spec(f"bench.suites.{name}") is not None]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(suites())}; default: all")
    parser.add_argument("--quick", action="store_true", help="a smoke run: fewer cases, smaller numbers")
    parser.add_argument("--windows", type=int, default=5, help="windows that count, at least 5 (default 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a window (default 1)")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where results go (bench/results)")
    parser.add_argument("--peers", default="", help="gateways to compare, separated by commas; default: all found")
    parser.add_argument(
        "--against", type=Path, metavar="OLD", help="compare --out with a file or folder; run nothing"
    )
    parser.add_argument(
        "--check", action="store_true", help="micro: count instructions, compare with the baseline"
    )
    parser.add_argument("--update", action="store_true", help="micro: write the baseline of instructions anew")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.suites if name not in suites()]
    if unknown:
        parser.error(f"there is no suite {unknown[0]!r}; there are {', '.join(suites())}")
    if args.windows < 5:
        parser.error(f"--windows: a spread takes at least 5, not {args.windows}")
    if args.seconds <= 0:
        parser.error(f"--seconds must be above 0, not {args.seconds:g}")
    if (args.check or args.update) and args.suites != ["micro"]:
        parser.error("--check and --update belong to the suite micro: python -m bench micro --check")
    return args


def run_suites(names: list[str], options: Options, out: Path) -> int:
    """Run suites one after the other and write their results; return how many failed."""
    out.mkdir(parents=True, exist_ok=True)
    where = environment.describe()
    failures: list[str] = []
    drawn: list[Plot] = []
    if plots is None:
        print("matplotlib is not installed, so there will be no plots; `make bench` installs it", file=sys.stderr)
    for name in names:
        begun = time.monotonic()
        try:
            result = importlib.import_module(f"bench.suites.{name}").run(options)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - the supervisor of a suite: others go on without it
            traceback.print_exc()
            failures.append(f"{name}: {type(exc).__name__}: {exc}")
            continue
        finally:
            end_descendants()
        took = time.monotonic() - begun
        record.write(record.Record(where, options, round(took, 1), result), out)
        drawn += result.plots
        print(f"\n{report.table(result)}\n  took {took:.0f} s", flush=True)
    if plots is not None:
        for plot in drawn:
            plots.draw(plot, out)
    _write_report(names, failures, out)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return len(failures)


def _write_report(names: list[str], failures: list[str], out: Path) -> None:
    """The report is of all results in the folder, so that a suite may be run again alone."""
    found = {path.stem for path in out.glob("*.json")} - {failure.partition(":")[0] for failure in failures}
    records = [record.read(out / f"{name}.json") for name in SUITES if name in found]
    path = out / "report.md"
    path.write_text(report.markdown(records, failures, has_plots=plots is not None))
    print(f"\n{path}")


def compare(old: Path, new: Path) -> int:
    try:
        comparison = reproduction.compare(record.read_all(old), record.read_all(new))
    except record.UnreadableRecord as exc:
        print(exc, file=sys.stderr)
        return 1
    print(reproduction.text(comparison))
    return 1 if comparison.differing or not comparison.figures else 0


def main() -> int:
    args = parse()
    if args.check:
        return micro.check()
    if args.update:
        return micro.update()
    if args.against is not None:
        return compare(args.against, args.out)
    peers = tuple(name for name in args.peers.split(",") if name)
    options = Options(seconds=args.seconds, windows=args.windows, quick=args.quick, peers=peers)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, leaves no process behind
    try:
        return 1 if run_suites(args.suites or suites(), options, args.out) else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
