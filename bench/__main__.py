"""Run benchmarks: `python -m bench micro`."""

from __future__ import annotations

import sys

from bench.results import Options
from bench.spread import spread
from bench.suites import micro


def main() -> int:
    if "--check" in sys.argv:
        return micro.check()
    if "--update" in sys.argv:
        return micro.update()
    for case in micro.run(Options(quick="--quick" in sys.argv)).cases:
        figures = [f"{name} {spread(values).median:,.0f}" for name, values in case.metrics.items()]
        print(f"{case.labels['operation']:<70}", "  ".join(figures), *case.notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
