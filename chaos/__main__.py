"""`python -m chaos`: play a schedule, judge it, print the sum. The exit status is 0 only if all is 0.

With `--hostile` it is attackers that are played, see `chaos.hostile`; the other options are then theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from chaos.hostile import command as hostile
from chaos.journal import Record, read
from chaos.run import Run, judge
from chaos.schedule import KINDS, LINKS, make_schedule

_SHOWN = 40


def main() -> int:
    if "--hostile" in sys.argv[1:]:
        return hostile.main([argument for argument in sys.argv[1:] if argument != "--hostile"])
    args = _parser().parse_args()
    if args.judge is not None:
        return _report(args.judge)
    if args.schedule is not None:
        schedule = json.loads(args.schedule.read_text())
    else:
        seed = args.seed if args.seed is not None else secrets.randbelow(1 << 31)
        schedule = make_schedule(seed, args.minutes * 60, args.width)
    folder = args.out or Path(tempfile.mkdtemp(prefix="holdfast-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.jsonl")):
        print(f"chaos: {folder} has the files of another run", file=sys.stderr)
        return 2
    (folder / "schedule.json").write_text(json.dumps(schedule, indent=1) + "\n")
    print(
        f"seed {schedule['seed']}, {schedule['seconds']:g} s, {len(schedule['faults'])} faults, files in {folder}"
    )
    print(f"again: python -m chaos --schedule {folder / 'schedule.json'}", flush=True)
    try:
        asyncio.run(_play(Run(schedule, folder, kinds=tuple(args.clients or KINDS))))
    except asyncio.CancelledError:
        print("chaos: ended by a signal; nothing was judged", file=sys.stderr)
        return 130
    return _report(folder)


async def _play(run: Run) -> None:
    """Play it; SIGINT and SIGTERM end it with all its processes."""
    playing = asyncio.ensure_future(run.play())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, playing.cancel)
    await playing


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Run Holdfast in bad weather.")
    parser.add_argument(
        "--hostile", action="store_true", help="play attackers instead; --hostile --help says more"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the schedule and of all requests (default: a new one)")
    parser.add_argument(
        "--width", type=int, default=4, help="streams at a time in each client (default: %(default)s)"
    )
    parser.add_argument("--clients", nargs="+", choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="play this schedule instead of a new one")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to leave the files (default: a temporary one)"
    )
    parser.add_argument("--judge", type=Path, metavar="DIR", help="only check the files of an earlier run")
    return parser


def _report(folder: Path) -> int:
    verdict = judge(folder)
    faults: list[Record] = [each for name in ("faults", *LINKS) for each in read(folder / f"{name}.jsonl")]
    counts = Counter(f"{each['target']} {each['kind']}" for each in faults if each["kind"] != "ended")
    print("faults: " + (", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"))
    print("ends: " + ", ".join(f"{name} {count}" for name, count in verdict.endings.most_common()))
    print(f"readings {verdict.readings}; generations asked for again of a new process {verdict.asked_anew}")
    for finding in verdict.findings[:_SHOWN]:
        print(finding)
    if len(verdict.findings) > _SHOWN:
        print(f"... and {len(verdict.findings) - _SHOWN} more")
    print(verdict)
    return 0 if verdict.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
