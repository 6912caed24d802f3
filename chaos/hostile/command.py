"""`python -m chaos --hostile`: play the rows that are asked for, a line for each. Exit status 0: all held."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chaos.hostile
from bench.processes import LOAD_CORE, raise_descriptor_limit, simulated_provider
from chaos.hostile.attack import Attack
from chaos.hostile.catalogue import ATTACKS, BY_NAME, SAMPLE
from chaos.hostile.run import Suite
from chaos.hostile.verdict import MIB, Row

#: What a row takes beside its attack, in seconds: a gateway's start, its warm-up, and until it is at rest.
_OVERHEAD = 10.0
_QUIET = 5.0
_LEAST = 3.0
_SETTLE = 15.0


def plan(args: argparse.Namespace) -> list[tuple[str, tuple[Attack, ...], float]]:
    """Return the rows: names, attacks, seconds."""
    chosen = tuple(BY_NAME[name] for name in args.only) if args.only else ATTACKS
    tls = tuple(attack for attack in chosen if attack.needs_tls)
    crowds = tuple(attack for attack in chosen if attack.crowds and not attack.needs_tls)
    plain = tuple(attack for attack in chosen if not (attack.crowds or attack.needs_tls))
    if args.minutes is not None:
        sample = [(name, tuple(BY_NAME[each] for each in names)) for name, names in SAMPLE]
        rows = [(attack.name, (attack,)) for attack in chosen] if args.only else sample
        each = (args.minutes * 60 - _QUIET) / len(rows) - _OVERHEAD
        return [(name, attacks, max(_LEAST, each)) for name, attacks in rows]
    alone = [] if args.together else [(attack.name, (attack,), args.seconds) for attack in chosen]
    together = [] if args.only and not args.together else [("together", plain), ("crowds", crowds), ("tls", tls)]
    return alone + [(name, attacks, args.seconds) for name, attacks in together if attacks]


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if args.list:
        for attack in ATTACKS:
            print(f"{attack.name:24} {attack.origin.value:13} {attack.does}")
        return 0
    raise_descriptor_limit()
    folder = args.out or Path(tempfile.mkdtemp(prefix="holdfast-hostile-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = plan(args)
    print(
        f"{len(rows)} rows, {sum(len(attacks) for _, attacks, _ in rows)} attacks; files in {folder}", flush=True
    )
    with simulated_provider(_core()) as calm, simulated_provider(_core()) as busy:
        try:
            # Honest answers must come in time, whatever the attackers' provider does.
            os.setpriority(os.PRIO_PROCESS, calm.pid, -10)
        except PermissionError:
            print("no right to give honest processes priority: figures may have outliers", flush=True)
        suite = Suite(folder, calm.url, busy.url, settle=_SETTLE)
        return asyncio.run(_play(suite, rows, folder))


def _core() -> int | None:
    return LOAD_CORE if (os.cpu_count() or 1) > 1 else None


async def _play(suite: Suite, rows: list[tuple[str, tuple[Attack, ...], float]], folder: Path) -> int:
    quiet = await suite.measure_quiet(min(_QUIET, rows[0][2]))
    print(f"quiet: gap p99 {quiet.gap:.1f} ms, probe p99 {quiet.probe:.1f} ms, stolen {quiet.stolen:.0%}")
    print(
        f"{'attack':24} {'from':13} {'gap p99':>8} {'probe p99':>9} {'stolen':>6} "
        f"{'peak':>6} {'start':>6} {'after':>6}  verdict   (ms, MiB)",
        flush=True,
    )
    failed = 0
    results: list[dict[str, Any]] = []
    for name, attacks, seconds in rows:
        began = time.monotonic()
        row = await suite.play(name, attacks, seconds)
        failed += bool(row.findings)
        print(line(row), flush=True)
        results.append({**_record(row), "took": time.monotonic() - began})
        # After each row, so that a run that is ended leaves what it found.
        (folder / "results.json").write_text(
            json.dumps({"quiet": _times(quiet), "rows": results}, indent=1) + "\n"
        )
    print(f"hostile: {len(rows)} rows, {failed} failed")
    return 1 if failed else 0


def line(row: Row) -> str:
    """Write a row of the table; what failed stands below it."""
    origins = {attack.origin.value for attack in row.attacks}
    after = f"{row.after.memory / MIB:6.0f}" if row.after is not None else "     -"
    text = (
        f"{row.name:24} {origins.pop() if len(origins) == 1 else 'all':13} {row.times.gap:8.1f} "
        f"{row.times.probe:9.1f} {row.times.stolen:6.0%} {(row.peak - row.start.memory) / MIB:+6.0f} "
        f"{row.start.memory / MIB:6.0f} {after}  {'FAILED' if row.findings else 'ok'}"
    )
    return "\n".join([text, *(f"    {finding}" for finding in row.findings)])


def _times(times: Any) -> dict[str, Any]:
    def shown(value: float) -> float | None:
        return None if math.isinf(value) else round(value, 2)

    return {
        "gap_p99_ms": shown(times.gap),
        "gap_max_ms": shown(max(times.gaps, default=math.inf)),
        "probe_p99_ms": shown(times.probe),
        "probe_max_ms": shown(max(times.probes, default=math.inf)),
        "stolen": round(times.stolen, 4),
    }


def _record(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "attacks": [attack.name for attack in row.attacks],
        "seconds": row.seconds,
        "quiet_probe_p99_ms": row.quiet_probe,
        **_times(row.times),
        "streams": str(row.streams),
        "memory": {
            "budget": row.budget,
            "start": row.start.memory,
            "peak": row.peak,
            "after": None if row.after is None else row.after.memory,
        },
        "tallies": row.tallies,
        "findings": row.findings,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos --hostile",
        description=chaos.hostile.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=sorted(BY_NAME), metavar="NAME", help="of these attacks")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each attack (default: %(default)s)")
    parser.add_argument("--together", action="store_true", help="only all at the same time")
    parser.add_argument(
        "--minutes", type=float, help="a sample in four groups, or those chosen, so that it takes about so long"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to leave the files (default: a temporary one)"
    )
    return parser
