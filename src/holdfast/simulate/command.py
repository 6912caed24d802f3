"""`holdfast simulate`: the simulated provider as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from holdfast.simulate.server import SimulatedProvider

try:
    import uvloop
except ImportError:  # not on every platform
    uvloop = None  # type: ignore[assignment]

DEFAULT_PORT = 8089


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `holdfast simulate`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="port, 0 for a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="model that /v1/models lists; repeatable (default: demo)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    try:
        if uvloop is not None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(args))
        else:
            asyncio.run(_serve(args))
    except OSError as exc:
        print(f"holdfast simulate: cannot listen on {args.host}:{args.port}: {exc}", file=sys.stderr)
        return 1
    return 0


async def _serve(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    provider = SimulatedProvider(models=tuple(args.model or ("demo",)))
    await provider.start(args.host, args.port)
    print(_greeting(provider), flush=True)
    try:
        await stop.wait()
    finally:
        await provider.aclose()


def _greeting(provider: SimulatedProvider) -> str:
    return f"""simulated provider at {provider.base_url}
try:
  curl -N {provider.base_url}/chat/completions -H 'content-type: application/json' -d '{{"model":"demo",
    "stream":true,"messages":[{{"role":"user","content":"hi"}}],"sim":{{"tokens":20,"interval_ms":50,"seed":7}}}}'
counts: {provider.base_url.removesuffix("/v1")}/stats    stop: Ctrl-C"""
