"""`holdfast chat` and `holdfast tail`: the SDK in a terminal."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

# The package's lazy names: `holdfast serve` shares this module's command line and not the client's libraries.
import holdfast
from holdfast.errors import ConfigError, HoldfastError

if TYPE_CHECKING:
    from holdfast import ConnectionState, SyncEventStream, SyncStreamingAIClient, WebSocketConfig

Messages: TypeAlias = list[dict[str, str]]

_DEFAULT_URL = "http://127.0.0.1:8080/v1"
_DEFAULT_KEY = "HOLDFAST_API_KEY"
_INTERRUPTED = 130
_BROKEN_PIPE = 141

#: A model's words must not move the cursor or rename the window: all controls but tab and newline.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="ask this and leave; without it, talk (or read standard input)")
    parser.add_argument("--model", default="demo", help="model to talk to (default: %(default)s)")
    _add_gateway_arguments(parser)


def add_tail_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stream_id", metavar="STREAM_ID", help="id of the stream, running or ended")
    parser.add_argument(
        "--after", type=int, default=-1, metavar="N", help="begin behind entry N (default: from the start)"
    )
    _add_gateway_arguments(parser)


def _add_gateway_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default=os.environ.get("HOLDFAST_URL", _DEFAULT_URL),
        help="the gateway's base URL (default: $HOLDFAST_URL, else " + _DEFAULT_URL + ")",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help=f"environment variable that holds the API key (default: {_DEFAULT_KEY}, if it is set)",
    )


def run_chat(args: argparse.Namespace) -> int:
    """Run `holdfast chat`; return the exit status. Raises `ConfigError` for a wrong URL or a missing key."""
    config = _config(args)
    screen = _Screen()
    with holdfast.SyncStreamingAIClient(config, on_state=screen.show_state) as client:
        if args.prompt is not None:
            return _ask(client, screen, args.model, [_message("user", args.prompt)])
        if sys.stdin.isatty():
            return _talk(client, screen, args.model)
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise ConfigError("standard input is empty; give a prompt there or as an argument")
        return _ask(client, screen, args.model, [_message("user", prompt)])


def run_tail(args: argparse.Namespace) -> int:
    """Run `holdfast tail`; return the exit status. Leaving it does not stop the stream."""
    config = _config(args)
    screen = _Screen()
    with holdfast.SyncStreamingAIClient(config, on_state=screen.show_state) as client:
        stream = client.attach_events(args.stream_id, after=args.after)
        status = _show(stream, screen)
        if status == _INTERRUPTED:
            screen.note(f"left; go on with: holdfast tail {args.stream_id} --after {stream.last_seq}")
        return status


def _config(args: argparse.Namespace) -> WebSocketConfig:
    name = args.api_key_env or _DEFAULT_KEY
    key = os.environ.get(name)
    if key is None and args.api_key_env is not None:
        raise ConfigError(f"--api-key-env: the environment variable {name} is not set")
    return holdfast.WebSocketConfig(args.url, api_key=key or None)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _talk(client: SyncStreamingAIClient, screen: _Screen, model: str) -> int:
    """Take turns until Ctrl-D, or Ctrl-C while nothing runs."""
    try:
        importlib.import_module("readline")  # line editing and history, where the platform has it
    except ImportError:
        pass
    screen.note(f"{model} at {client.config.base_url}; Ctrl-C stops an answer, Ctrl-D leaves")
    messages: Messages = []
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            screen.write("\n")
            return 0
        if prompt.strip():
            messages.append(_message("user", prompt))
            _ask(client, screen, model, messages)


def _ask(client: SyncStreamingAIClient, screen: _Screen, model: str, messages: Messages) -> int:
    """Show the answer and add it to the messages, as far as it came."""
    stream = client.events(messages, model=model)
    status = _show(stream, screen)
    if stream.text:
        messages.append(_message("assistant", stream.text))
    else:
        messages.pop()  # a turn without an answer is no part of the conversation
    return status


def _show(stream: SyncEventStream, screen: _Screen) -> int:
    is_interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        # An exception could strike anywhere in the client or between two halves of a line; closing does not.
        nonlocal is_interrupted
        if is_interrupted:
            raise KeyboardInterrupt
        is_interrupted = True
        stream.close()

    previous = signal.signal(signal.SIGINT, interrupt)
    screen.stream = stream
    try:
        for event in stream:
            if isinstance(event, holdfast.Chunk):
                screen.write(event.text)
            elif isinstance(event, holdfast.StreamQueued):
                if event.retry_in is not None:
                    screen.note(f"{event.code}: trying again in {event.retry_in:.1f} s")
                else:
                    screen.note(f"queued at position {event.position}")
        screen.end_line()
    except BrokenPipeError:
        # The reader of standard output has closed it. Python would flush it again at exit.
        stream.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except HoldfastError as exc:
        screen.end_line()
        screen.note(f"{exc.code}: {exc.message}", is_dim=False)
        return 1
    finally:
        screen.stream = None
        signal.signal(signal.SIGINT, previous)
    return _INTERRUPTED if is_interrupted else 0


class _Screen:
    """Answers on standard output, remarks on standard error, each remark on a line of its own.

    Remarks about the connection come from the client's thread.
    """

    def __init__(self) -> None:
        self.stream: SyncEventStream | None = None
        self._lock = threading.RLock()
        self._is_within_line = False
        self._is_terminal = sys.stdout.isatty()
        self._can_dim = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self._was_lost = False

    def write(self, text: str) -> None:
        if not text:
            return
        if self._is_terminal:
            text = _CONTROLS.sub("\ufffd", text)
        with self._lock:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._is_within_line = not text.endswith("\n")

    def end_line(self) -> None:
        with self._lock:
            if self._is_within_line:
                self.write("\n")

    def note(self, text: str, *, is_dim: bool = True) -> None:
        with self._lock:
            if self._is_within_line and self._is_terminal:
                self.write("\n")
            text = _CONTROLS.sub("\ufffd", text)
            print(f"\x1b[2m{text}\x1b[0m" if is_dim and self._can_dim else text, file=sys.stderr, flush=True)

    def show_state(self, state: ConnectionState) -> None:
        stream = self.stream
        if stream is None:  # nobody waits for the connection
            self._was_lost = False
        elif state is holdfast.ConnectionState.RECONNECTING:
            self._was_lost = True
            self.note("reconnecting...")
        elif state is holdfast.ConnectionState.OPEN and self._was_lost:
            self._was_lost = False
            self.note(f"resumed at {stream.last_seq + 1}")
