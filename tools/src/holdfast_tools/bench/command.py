"""`holdfast bench`: put a load on a gateway, check every token, and say what it took."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec

from holdfast.errors import ConfigError
from holdfast_tools.bench.load import Target
from holdfast_tools.bench.plan import MAX_TOKENS, Pace, Plan
from holdfast_tools.bench.tally import Tally
from holdfast_tools.bench.workers import WorkerError, Workers, started

_DEFAULT_URL = "http://127.0.0.1:8080/v1"
_DEFAULT_KEY = "HOLDFAST_API_KEY"
#: Seconds that the gateway may take to say which models it has.
_ASK_TIMEOUT = 10.0
_SIMULATED = "demo"
_MIN_WINDOWS = 3
#: A worker that takes more of its core measures itself.
_BUSY = 0.9
_MS = 1e6


HELP = "put a load on a gateway and check every token"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `holdfast bench`."""
    add = parser.add_argument
    add(
        "--url",
        default=os.environ.get("HOLDFAST_URL", _DEFAULT_URL),
        help="the gateway's base URL (default: $HOLDFAST_URL, else " + _DEFAULT_URL + ")",
    )
    add(
        "--api-key-env",
        metavar="NAME",
        help=f"environment variable that holds the API key (default: {_DEFAULT_KEY}, if it is set)",
    )
    add("--model", default=_SIMULATED, help="model to ask for (default: %(default)s)")
    add(
        "--transport",
        choices=["ws", "sse", "long-poll", "short-poll"],
        default="ws",
        help="how tokens are read; sse works with every OpenAI-compatible gateway (default: %(default)s)",
    )
    add("--streams", type=_count, default=10, metavar="N", help="streams at a time (default: %(default)s)")
    add("--sockets", type=_count, metavar="N", help="WebSockets that carry them (default: one for each)")
    add("--seconds", type=_seconds, default=10.0, metavar="S", help="how long to measure (default: %(default)g)")
    add("--tokens", type=_count, default=200, metavar="N", help="most tokens of an answer (default: %(default)s)")
    add("--prompt", default="Count to a hundred.", help="what is asked (default: %(default)s)")
    add(
        "--simulated",
        action=argparse.BooleanOptionalAction,
        help="the model is `holdfast simulate`: check each token's text and time it from the provider's write "
        "(default: if the model is demo)",
    )
    add(
        "--rate",
        type=_seconds,
        default=50.0,
        metavar="N",
        help="simulated tokens/s per stream (default: %(default)g)",
    )
    add("--poll-interval", type=_seconds, default=1.0, metavar="S", help="of short-poll (default: %(default)g)")
    add("--processes", type=_count, default=1, metavar="N", help="processes for the load (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write what was measured to this file as well")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def run(args: argparse.Namespace) -> int:
    """Run `holdfast bench`; return 0 if every token arrived in order exactly once, else 1.

    Raises `ConfigError` for a URL, key or option that cannot be used.
    """
    plan = make_plan(args)
    why = _refusal(plan)
    if why is not None:
        print(f"holdfast bench: {why}", file=sys.stderr)
        return 1
    count = max(_MIN_WINDOWS, round(args.seconds))
    try:
        with started(plan, processes=args.processes) as workers:
            before, windows = _measure(workers, count, args.seconds / count, plan)
    except WorkerError as exc:
        print(f"holdfast bench: {exc}", file=sys.stderr)
        return 1
    if before.failed and not before.tokens:
        print(f"holdfast bench: no stream began: {before.errors[0]}", file=sys.stderr)
        return 1
    total = Tally()
    for tally in (before, *windows):
        total.merge(tally)
    rows = _rows(before, windows)
    print(_table(plan, rows, windows))
    verdict, is_well = _verdict(total, plan)
    print(verdict)
    if args.json is not None:
        _write(args.json, plan, rows, total, is_well=is_well)
    return 0 if is_well else 1


def make_plan(args: argparse.Namespace) -> Plan:
    """Make the plan that options ask for. Raises `ConfigError` where they cannot be used."""
    try:
        Target.of(args.url)
    except ValueError as exc:
        raise ConfigError(f"--url: {exc}") from exc
    if args.sockets is not None and args.transport != "ws":
        raise ConfigError(f"--sockets is for --transport ws; {args.transport} has a connection for each stream")
    if args.tokens > MAX_TOKENS:
        raise ConfigError(f"--tokens: at most {MAX_TOKENS}, not {args.tokens}")
    is_simulated = args.model == _SIMULATED if args.simulated is None else args.simulated
    name = args.api_key_env or _DEFAULT_KEY
    key = os.environ.get(name)
    if key is None and args.api_key_env is not None:
        raise ConfigError(f"--api-key-env: the environment variable {name} is not set")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {name} holds more than printable ASCII characters")
    return Plan(
        url=args.url,
        transport=args.transport,
        streams=args.streams,
        sockets=args.sockets or 0,
        model=args.model,
        prompt=args.prompt,
        tokens=args.tokens,
        pace=Pace(interval_ms=1000 / args.rate) if is_simulated else None,
        poll_interval=args.poll_interval,
        headers={"authorization": f"Bearer {key}"} if key else {},
    )


def _refusal(plan: Plan) -> str | None:
    """Ask for the models, once and before any stream: why this gateway cannot be measured, None if it can."""
    request = urllib.request.Request(f"{plan.url.rstrip('/')}/models", headers=plan.headers)  # noqa: S310 - checked
    # Without a proxy of the environment: the streams use none either.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ASK_TIMEOUT) as answer:
            body = answer.read()
    except urllib.error.HTTPError as exc:
        if exc.code in (401, 403):
            return (
                f"the gateway refused the credential (HTTP {exc.code}): {_message(exc.read())}\n"
                f"put the key into {_DEFAULT_KEY}, or name its environment variable with --api-key-env"
            )
        return None  # a gateway may have no list of models
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        return f"cannot connect to {plan.url}: {reason}; is the gateway running, and is --url right?"
    try:
        names = [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return None
    if names and plan.model not in names:
        return f"the gateway has no model {plan.model!r}; it has {', '.join(sorted(names)[:20])} (--model)"
    return None


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def _measure(workers: Workers, count: int, seconds: float, plan: Plan) -> tuple[Tally, list[Tally]]:
    print(f"opening {plan.streams} streams at {plan.url} ...", file=sys.stderr, flush=True)
    before = workers.wait_until_ready()
    if before.failed and not before.tokens:
        return before, []
    lead, *windows = workers.windows(count, seconds)
    before.merge(lead)
    return before, windows


# -- what is shown -----------------------------------------------------------------------------------------


def _rows(before: Tally, windows: Sequence[Tally]) -> dict[str, list[float]]:
    """Each metric, with its unit, and a value for each window that has one; else for their opening."""
    rows = {
        "tokens/s": [tally.tokens / tally.seconds for tally in windows],
        "answers/s": [tally.answers / tally.seconds for tally in windows],
    }
    for title, name, shares in (
        ("provider write to client read", "latency", (0.5, 0.99)),
        ("time to first token", "first_token", (0.5, 0.99)),
        ("gap between tokens", "gap", (0.5, 0.99, 0.999)),
        ("connection set-up", "setup", (0.5, 0.99)),
    ):
        for share in shares:
            some = [tally for tally in windows if getattr(tally, name).counts] or [before]
            found = [getattr(tally, name).quantile(share) for tally in some]
            values = [value / _MS for value in found if value is not None]
            if values:
                rows[f"{title}, p{share * 100:g}, ms"] = values
    rows["load generator, % of a core"] = [100 * tally.busiest for tally in windows]
    return rows


def _table(plan: Plan, rows: dict[str, list[float]], windows: Sequence[Tally]) -> str:
    sockets = f" on {plan.sockets} sockets" if plan.sockets else ""
    seconds = statistics.mean(tally.seconds for tally in windows)
    lines = [
        f"{plan.streams} streams by {plan.transport}{sockets}, {len(windows)} windows of {seconds:.2g} s",
        f"{'':40}{'median':>12}{'min':>12}{'max':>12}",
    ]
    for name, values in rows.items():
        shown = "".join(f"{_number(f(values)):>12}" for f in (statistics.median, min, max))
        lines.append(f"{name:40}{shown}")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _verdict(total: Tally, plan: Plan) -> tuple[str, bool]:
    """Say in words whether all is well."""
    lines = []
    if total.busiest > _BUSY:
        lines.append("the load generator's core was full: what it measured is partly itself; try --processes")
    is_well = not total.faults and not total.failed and total.tokens > 0
    if is_well and plan.pace is not None:
        lines.append(f"every one of {total.tokens} tokens arrived exactly once and in order")
    elif is_well:
        numbers = "" if plan.transport == "sse" else ", every sequence number exactly once and in order"
        lines.append(f"{total.tokens} deltas, {total.answers} answers came to an orderly end{numbers}")
    else:
        faults = [f"{count} {name}" for name, count in total.faults.items()]
        faults += [f"{total.failed} failed answers or connections"] if total.failed else []
        lines.append(f"NOT well, of {total.tokens} tokens: {', '.join(faults) or 'none came'}")
        lines += [f"  {error}" for error in total.errors]
    return "\n".join(lines), is_well


def _write(path: Path, plan: Plan, rows: dict[str, list[float]], total: Tally, *, is_well: bool) -> None:
    record = {
        # Without the headers: they hold the credential.
        "plan": msgspec.to_builtins(msgspec.structs.replace(plan, headers={})),
        "windows": rows,
        "tokens": total.tokens,
        "answers": total.answers,
        "failed": total.failed,
        "faults": total.faults,
        "errors": total.errors,
        "is_well": is_well,
    }
    try:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"--json {path}: {exc}") from exc
