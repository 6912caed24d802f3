"""The `holdfast` command. With the SDK alone `chat` and `tail` work; the rest needs `holdfast[gateway]`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from holdfast import terminal
from holdfast.admission import command as keys
from holdfast.config import Config, check, examine, read_text, survey
from holdfast.config.problems import lines_of, refuse
from holdfast.core.masking import Masking
from holdfast.errors import ConfigError
from holdfast.version import __version__

try:
    from holdfast.allocator import MemoryReturn
    from holdfast.app import Gateway
    from holdfast.logs import Logs
    from holdfast.preflight import inspect, inspect_modes
    from holdfast.reload import ConfigFile
except ModuleNotFoundError as exc:
    if exc.name is None or exc.name.startswith("holdfast"):
        raise
    HAS_GATEWAY = False  # the SDK was installed without the gateway
else:
    HAS_GATEWAY = True

logger = logging.getLogger("holdfast")

#: Seconds that clients have to take their last bytes when the process ends at once.
_LAST_GRACE = 1.0
#: With so little to look at, a full collection takes about ten milliseconds.
_FEW_PEERS, _FEW_STREAMS = 64, 1000

#: What the distribution `holdfast-tools` brings, named here so that its absence can be told.
_TOOLS = {
    "bench": "put a load on a gateway and check every token",
    "simulate": "serve a simulated OpenAI-compatible provider",
}

_NEEDS_GATEWAY = "needs the gateway: pip install 'holdfast[gateway]'"
_NEEDS_TOOLS = "needs the tools: pip install 'holdfast[demo]'"

_Command = Callable[[argparse.Namespace], int]


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; the reference of the command line is generated from it."""
    parser = argparse.ArgumentParser(
        prog="holdfast", description="A gateway that keeps LLM streams alive.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_check(commands)
    _add_keys(commands)
    chat = commands.add_parser("chat", help="talk to a model in the terminal")
    terminal.add_chat_arguments(chat)
    chat.set_defaults(run=terminal.run_chat)
    tail = commands.add_parser("tail", help="follow a stream by its id")
    terminal.add_tail_arguments(tail)
    tail.set_defaults(run=terminal.run_tail)
    _add_tools(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 failed, 2 wrong usage."""
    parser = make_parser()
    args, unknown = parser.parse_known_args(argv)
    run: _Command = args.run
    if unknown and run is not _missing:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return run(args)
    except ConfigError as exc:
        for line in exc.message.split("\n"):
            print(f"holdfast: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _add_tools(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of other distributions: entry points of the group `holdfast.commands`, a module each."""
    found = {entry.name: entry for entry in entry_points(group="holdfast.commands")} if HAS_GATEWAY else {}
    for name in sorted({*found, *_TOOLS}):
        if name in found:
            try:
                command = found[name].load()
            except ImportError as exc:  # another distribution's fault must not keep the gateway from its work
                _add_missing(commands, name, "cannot be loaded", f"cannot be loaded: {exc}")
                continue
            parser = commands.add_parser(name, help=command.HELP)
            command.add_arguments(parser)
            parser.set_defaults(run=command.run)
        else:
            _add_missing(commands, name, _TOOLS[name], _NEEDS_TOOLS if HAS_GATEWAY else _NEEDS_GATEWAY)


def _add_missing(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_: str, reason: str
) -> None:
    """Add a command that cannot run here. Its options are not known; `main` lets them pass, and it says why."""
    commands.add_parser(name, help=help_).set_defaults(run=_missing, reason=reason)


def _missing(args: argparse.Namespace) -> int:
    print(f"holdfast {args.command} {args.reason}", file=sys.stderr)
    return 2


# -- serve ---------------------------------------------------------------------------------------------


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("serve", help="run the gateway", description="Run the gateway.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; without it the demo is served")
    parser.add_argument("--host", help="address to listen on (overrides server.host)")
    parser.add_argument("--port", type=_port, help="port to listen on, 0 for a free one (overrides server.port)")
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="(overrides logging.level)"
    )
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    if not HAS_GATEWAY:
        return _missing(argparse.Namespace(command=args.command, reason=_NEEDS_GATEWAY))
    warnings: list[str] = []
    file = None if args.config is None else ConfigFile(args.config, lambda text: _parse(args, text, warnings))
    config = _parse(args, "", warnings) if file is None else file.load()
    masking = Masking()
    logs = Logs(config.logging, mask=masking.mask)

    def use(config: Config) -> None:
        logs.configure(config.logging)
        for line in warnings:
            logger.warning("%s", line)

    async def serve() -> None:
        use(config)
        gateway = Gateway(config, masking=masking)
        signals = _Signals()
        if file is not None and hasattr(signal, "SIGHUP"):
            # Until the file is followed it asks for nothing, but must not end the process.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)
        await gateway.start()
        # Each token allocates a few containers that die young without the collector's help; what a connection
        # or a stream leaves in cycles can wait for a rarer look.
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)
        returning = asyncio.create_task(MemoryReturn(lambda: _is_quiet(gateway)).run())
        if file is not None:
            file.follow(gateway, on_reload=use)
        print(_greeting(gateway), flush=True)
        await signals.serve(gateway)
        returning.cancel()

    with logs, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve())
    return 0


def _is_quiet(gateway: Gateway) -> bool:
    return len(gateway.peers) <= _FEW_PEERS and gateway.directory.statistics().streams <= _FEW_STREAMS


class _Signals:
    """SIGTERM drains; SIGINT, or a second SIGTERM, ends at once. Make it before what the signals shall end."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._leave, self._stop = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)

    def _terminate(self) -> None:
        (self._stop if self._leave.is_set() else self._leave).set()

    async def serve(self, gateway: Gateway) -> None:
        """Return when the gateway is closed."""
        loop = asyncio.get_running_loop()
        stopping, leaving = loop.create_task(self._stop.wait()), loop.create_task(self._leave.wait())
        await asyncio.wait([stopping, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not self._stop.is_set():
            draining = loop.create_task(gateway.drain())
            await asyncio.wait([stopping, draining], return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            await asyncio.wait([draining])
        stopping.cancel()
        leaving.cancel()
        await asyncio.wait([stopping, leaving])
        await gateway.aclose(grace=_LAST_GRACE)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _parse(args: argparse.Namespace, text: str, warnings: list[str]) -> Config:
    """Read the text of a configuration, and let the options override it. Raises `ConfigError`.

    `warnings` get a line for each thing that is surely not meant, instead of those of the last text.
    """
    source = str(args.config or "command line")
    config, warnings[:] = examine(text, source=source)
    if args.config is not None:
        warnings += lines_of(inspect_modes(args.config, tomllib.loads(text), config), source, text)
    changes = {key: getattr(args, key) for key in ("host", "port") if getattr(args, key) is not None}
    if args.log_level is not None:
        log = msgspec.structs.replace(config.logging, level=args.log_level)
        config = msgspec.structs.replace(config, logging=log)
    if changes:
        config = msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **changes))
        check(config, source=source)
    return config


def _port(text: str) -> int:
    """Read the option of a port."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, 0 for a free one, got {text!r}")
    return int(text)


def _greeting(gateway: Gateway) -> str:
    url, model = gateway.url, gateway.launcher.models[0]
    authorization = ' -H "Authorization: Bearer $HOLDFAST_API_KEY"' if gateway.config.has_callers else ""
    api_key, imports = (
        (', api_key=os.environ["HOLDFAST_API_KEY"]', "import os\n") if gateway.config.has_callers else ("", "")
    )
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "hi"}}]}}'
    # The snippet stands at the margin: Python takes no indented paste.
    return f"""\
Holdfast serves on {url}

  health   curl {url}/healthz
  chat     {_program("holdfast")} chat --url {url}/v1 --model {model}
  curl     curl -N{authorization} {url}/v1/chat/completions \\
             -H 'content-type: application/json' -d '{body}'
  Python   {_program("python")}, and then:

{imports}from holdfast import SyncStreamingAIClient, WebSocketConfig
client = SyncStreamingAIClient(WebSocketConfig(base_url="{url}/v1"{api_key}))
for text in client.stream_chat(model="{model}", messages=[{{"role": "user", "content": "hi"}}]):
    print(text, end="", flush=True)

Ctrl-C stops the gateway."""


def _program(name: str) -> str:
    """How a program of this environment is called from here: by name where the PATH leads to it, else by path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not path.exists() or (found is not None and Path(found) == path):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# -- check and keys ------------------------------------------------------------------------------------


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "check",
        help="validate a configuration file",
        description="Validate a configuration file, and open whatever `serve` would open.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", required=True)
    parser.add_argument("--strict", action="store_true", help="fail on warnings, too")
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    text, source = read_text(args.config), str(args.config)
    config, found = survey(text, source=source)
    if HAS_GATEWAY:  # without it, nothing here could be opened by a start either
        found += inspect(config, found)
        found += inspect_modes(args.config, tomllib.loads(text), config)
    warnings = lines_of([problem for problem in found if problem.is_warning], source, text)
    for line in warnings:
        print(f"holdfast: warning: {line}", file=sys.stderr)
    refuse(found, source, text)
    if warnings and args.strict:
        return 2
    print(
        f"{args.config}: valid; {len(config.providers)} providers, {len(config.models)} models, "
        f"{len(config.keys)} keys, listens on {config.server.host}:{config.server.port}"
    )
    return 0


def _add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("keys", help="make keys for callers", description="Make keys for callers.")
    keys.add_arguments(parser)


if __name__ == "__main__":
    sys.exit(main())
