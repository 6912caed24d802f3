"""`holdfast simulate`: the simulated provider as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import msgspec

from holdfast_tools.simulate.faults import AnyConnectionFault, RandomFailures
from holdfast_tools.simulate.request_log import RequestLog
from holdfast_tools.simulate.server import SimulatedProvider
from holdfast_tools.simulate.tls import server_context

try:
    import uvloop
except ImportError:  # not on every platform
    uvloop = None  # type: ignore[assignment]

DEFAULT_PORT = 8089


class UsageError(Exception):
    """An option that cannot be used; the message says which, and what would be right."""


HELP = "serve a simulated OpenAI-compatible provider"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `holdfast simulate`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="port, 0 for a free one (default: %(default)s)")
    add("--model", action="append", metavar="NAME", help="model that /v1/models lists; repeatable (default: demo)")
    add("--http1-only", action="store_true", help="do not speak HTTP/2")
    add("--max-concurrent-streams", type=int, default=128, metavar="N", help="HTTP/2 limit (default: %(default)s)")
    add("--initial-window-size", type=int, default=65_535, metavar="N", help="HTTP/2 window for request bodies")
    add("--tls-cert", metavar="FILE", help="serve TLS with this certificate chain (PEM)")
    add("--tls-key", metavar="FILE", help="its private key (PEM), if it is not in the same file")
    add(
        "--tls-self-signed",
        nargs="?",
        const="",
        metavar="FILE",
        help="serve TLS with a new self-signed certificate for localhost; FILE receives it, for clients to trust",
    )
    add(
        "--connection-fault",
        action="append",
        metavar="JSON",
        help='fault of every connection, such as \'{"kind": "goaway", "after_streams": 100}\'; repeatable',
    )
    add(
        "--random-failures",
        metavar="JSON",
        help='a storm, such as \'{"status": {"429": 0.3}, "hang_handshake": 0.01, "reset": 0.01, "seed": 1}\'',
    )
    add(
        "--log",
        metavar="FILE",
        help="append one JSON line for each chat completion that begins, is refused or ends",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    factory = None if uvloop is None else uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(args))
    except UsageError as exc:
        print(f"holdfast simulate: {exc}", file=sys.stderr)
        return 2
    except OSError as exc:
        print(f"holdfast simulate: cannot listen on {args.host}:{args.port}: {exc}", file=sys.stderr)
        return 1
    return 0


async def _serve(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    faults = [_decode("--connection-fault", text, AnyConnectionFault) for text in args.connection_fault or ()]
    storm = args.random_failures and _decode("--random-failures", args.random_failures, RandomFailures)
    context = _ssl_context(args)
    log = _open_log(args.log) if args.log is not None else None
    provider = SimulatedProvider(
        models=tuple(args.model or ("demo",)),
        max_concurrent_streams=args.max_concurrent_streams,
        initial_window_size=args.initial_window_size,
        connection_faults=faults,
        random_failures=storm or None,
        log=log,
    )
    alpn = ("http/1.1",) if args.http1_only else ("h2", "http/1.1")
    await provider.start(args.host, args.port, ssl_context=context, alpn=alpn)
    print(_greeting(provider), flush=True)
    try:
        await stop.wait()
    finally:
        await provider.aclose()
        if log is not None:
            log.close()


def _open_log(path: str) -> RequestLog:
    try:
        return RequestLog(path)
    except OSError as exc:
        raise UsageError(f"--log {path}: {exc}") from exc


def _decode(option: str, text: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as exc:
        raise UsageError(f"{option}: {exc}") from exc


def _ssl_context(args: argparse.Namespace) -> ssl.SSLContext | None:
    if args.tls_key is not None and args.tls_cert is None:
        raise UsageError("--tls-key needs --tls-cert")
    if args.tls_cert is not None:
        if args.tls_self_signed is not None:
            raise UsageError("give either --tls-cert or --tls-self-signed")
        try:
            return server_context(args.tls_cert, args.tls_key)
        except (OSError, ssl.SSLError) as exc:
            raise UsageError(f"--tls-cert {args.tls_cert}: {exc}") from exc
    if args.tls_self_signed is None:
        return None
    try:
        # Here, not above: `cryptography` need not be installed, and takes longer to import than all the rest.
        from holdfast_tools.simulate import certificate
    except ImportError as exc:
        raise UsageError("--tls-self-signed needs the package cryptography: pip install cryptography") from exc
    pem, key = certificate.self_signed()
    if args.tls_self_signed:
        try:
            Path(args.tls_self_signed).write_bytes(pem)
        except OSError as exc:
            raise UsageError(f"--tls-self-signed {args.tls_self_signed}: {exc}") from exc
    return certificate.context_of(pem, key)


def _greeting(provider: SimulatedProvider) -> str:
    insecure = "" if provider.ssl_context is None else "k"
    return f"""simulated provider at {provider.base_url}
try:
  curl -N{insecure} {provider.base_url}/chat/completions -H 'content-type: application/json' -d '{{"model":"demo",
    "stream":true,"messages":[{{"role":"user","content":"hi"}}],"sim":{{"tokens":20,"interval_ms":50,"seed":7}}}}'
counts: {provider.base_url.removesuffix("/v1")}/stats    stop: Ctrl-C"""
