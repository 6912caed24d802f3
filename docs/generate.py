"""Write the generated parts of the documents: `python docs/generate.py`, or `--check` to find stale ones.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from holdfast import StreamingAIClient, SyncStreamingAIClient, WebSocketConfig, config
from holdfast.cli import make_parser
from holdfast.client.events import Chunk, ConnectionState, StreamEnd, StreamQueued
from holdfast.client.streams import EventStream, TextStream
from holdfast.config.units import Count, Grace, Seconds, Size
from holdfast.core.entries import AttemptRecord, Usage
from holdfast.core.http.http1 import Http1Connection
from holdfast.core.http.http2 import Http2Connection
from holdfast.core.limits import budget
from holdfast.dialects.table import DIALECTS
from holdfast.errors import ERRORS, ConfigError, ConnectionLost, HoldfastError, ProtocolError, StreamFailed
from holdfast.server import router
from holdfast.server.delivery import outlet, sse
from holdfast.server.listener import admitted, http, requests
from holdfast.server.surfaces import streams
from holdfast_tools.simulate.faults import AnyConnectionFault, AnyRequestFault, ConnectionFault, RequestFault
from holdfast_tools.simulate.request import Simulation

ROOT = Path(__file__).resolve().parent.parent

#: Raised by the SDK or the command line, never sent.
_LOCAL = {ConfigError, ConnectionLost, ProtocolError, StreamFailed}

#: The module of a name of ours.
_HOME = re.compile(r"\bholdfast\.[a-z_.]*(?=[A-Z])")

_PART = re.compile(r"(<!-- generated: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# -- errors ----------------------------------------------------------------------------------------------


def _sent() -> list[type[HoldfastError]]:
    return [cls for cls in ERRORS.values() if cls not in _LOCAL]


def error_table() -> str:
    rows = ["| code | HTTP | close | retry | meaning |", "|---|---|---|---|---|"]
    for cls in _sent():
        close = "" if cls.close_code is None else cls.close_code
        retry = "yes" if cls.retryable else "no"
        rows.append(f"| `{cls.code}` | {cls.http_status} | {close} | {retry} | {cls.meaning} |")
    return "\n".join(rows) + "\n"


def close_code_table() -> str:
    rows = ["| close code | error | connect again |", "|---|---|---|"]
    codes = sorted((cls.close_code, cls.code) for cls in _sent() if cls.close_code is not None)
    for close, code in codes:
        is_final = 4400 <= close <= 4499 or close == 1009
        rows.append(f"| {close} | `{code}` | {'no' if is_final else 'yes'} |")
    return "\n".join(rows) + "\n"


def exception_tree() -> str:
    lines = ["```text", "HoldfastError"]

    def add(parent: type[HoldfastError], depth: int) -> None:
        for cls in parent.__subclasses__():
            lines.append(f"{'  ' * depth}{cls.__name__:<{28 - 2 * depth}}{cls.code}")
            add(cls, depth + 1)

    add(HoldfastError, 1)
    return "\n".join([*lines, "```"]) + "\n"


def local_error_table() -> str:
    rows = ["| class | code | retry | meaning |", "|---|---|---|---|"]
    for cls in (cls for cls in ERRORS.values() if cls in _LOCAL):
        retry = "yes" if cls.retryable else "no"
        rows.append(f"| `{cls.__name__}` | `{cls.code}` | {retry} | {cls.meaning} |")
    return "\n".join(rows) + "\n"


# -- the configuration file ------------------------------------------------------------------------------

#: What a type alias of the configuration is called; it is known again by its constraint, the very same object.
_UNITS = [
    (get_args(Seconds)[1], "seconds, > 0"),
    (get_args(Grace)[1], "seconds, ≥ 0"),
    (get_args(Size)[1], "bytes, ≥ 1024"),
    (get_args(Count)[1], "integer, ≥ 1"),
]
#: Plain numbers whose constraint cannot be told from that of a duration: `typing` shares equal annotations.
_UNITLESS = {"weight"}
_WORDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"


def configuration() -> str:
    """Every table of the file, in the order in which the structs name each other."""
    return "\n".join(_tables(config.Config, "", "", {}))


def _tables(cls: type[msgspec.Struct], path: str, purpose: str, shown: dict[object, str]) -> Iterator[str]:
    title = f"An entry of `{path.removesuffix('[]')}`" if path.endswith("[]") else f"`[{path}]`"
    if cls in shown:
        yield f"### {title}\n\n{purpose} The keys are those of `[{shown[cls]}]`.\n"
        return
    shown[cls] = path
    rows, inner = [], []
    for field, type_, metas in _fields(cls):
        structs, is_list = _structs_in(type_), get_origin(type_) is list
        meaning = _meaning(metas)
        place = f"{path}.{field.name}".lstrip(".") + {dict: ".NAME", list: "[]"}.get(get_origin(type_), "")
        inner += [(struct, place, meaning) for struct in structs]
        if not structs or is_list:
            rows.append(_row(field, type_, metas))
    if rows:
        lead, _, text = inspect.cleandoc(cls.__doc__ or "").partition(": ")
        # A docstring begins with the name of its table, which is the title already.
        text = purpose or (f"{text[:1].upper()}{text[1:]}" if text else lead)
        yield f"### {title}\n\n{text}\n\n{_HEAD}" + "\n".join(rows)
        yield ""
    if cls is config.ProviderConfig:
        yield from _options_of_apis()
    for struct, place, meaning in inner:
        yield from _tables(struct, place, "" if place.endswith("[]") else meaning, shown)


def _options_of_apis() -> Iterator[str]:
    """`options` of a provider are what the dialect of its API makes of them."""
    for name in DIALECTS.names:
        cls = type(DIALECTS.get(name).options({}))
        rows = [_row(field, type_, metas) for field, type_, metas in _fields(cls)]
        yield f"### Options of `{name}`\n\n{_text(cls)}\n\n{_HEAD}" + "\n".join(rows) + "\n"


def _fields(cls: type[msgspec.Struct]) -> Iterator[tuple[msgspec.structs.FieldInfo, Any, list[msgspec.Meta]]]:
    for field in msgspec.structs.fields(cls):
        yield field, *_unwrapped(field.type)


def _meaning(metas: list[msgspec.Meta]) -> str:
    return next((meta.description for meta in metas if meta.description), "")


def _row(field: msgspec.structs.FieldInfo, type_: Any, metas: list[msgspec.Meta]) -> str:
    kind = _kind(type_, metas)
    if field.name in _UNITLESS:
        kind = kind.replace("seconds", "number")
    cells = (f"`{field.name}`", kind, _default(field, in_bytes=kind.startswith("bytes")), _meaning(metas))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _unwrapped(type_: Any) -> tuple[Any, list[msgspec.Meta]]:
    if get_origin(type_) is Annotated:
        inner, *metas = get_args(type_)
        return inner, metas
    return type_, []


def _structs_in(type_: Any) -> list[type[msgspec.Struct]]:
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return [type_]
    return [struct for arg in get_args(type_) for struct in _structs_in(arg)]


def _kind(type_: Any, metas: list[msgspec.Meta]) -> str:
    """Say in words what a key takes."""
    origin, args = get_origin(type_), get_args(type_)
    for alias, words in _UNITS:
        if any(meta is alias for meta in metas):
            return words
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in args)
    if origin in (Union, UnionType):
        # The bounds of `float | None` are those of the number.
        choices = [_unwrapped(arg) for arg in args if arg is not NoneType]
        return " or ".join(_kind(inner, [*own, *metas]) for inner, own in choices)
    if origin is list:
        return f"list of {_kind(args[0], [])}"
    if origin is dict:
        return "table" if args[1] is Any else f"table of {_kind(args[1], [])}s"
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return "table"
    return f"{_WORDS[type_]}{''.join(_bounds(meta) for meta in metas)}"


def _bounds(meta: msgspec.Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f", {meta.ge:.10g} to {meta.le:.10g}"
    bounds = ((">", meta.gt), ("≥", meta.ge), ("≤", meta.le))
    return "".join(f", {sign} {value:.10g}" for sign, value in bounds if value is not None)


def _default(field: msgspec.structs.FieldInfo, *, in_bytes: bool) -> str:
    if field.required:
        return "required"
    made = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else None
    if made and isinstance(made, list):
        return f"`{msgspec.json.encode(made).decode()}`"
    if field.default is msgspec.NODEFAULT or field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, str):
        return f'`"{field.default}"`'
    value = field.default
    for size, unit in ((1024**2, "MiB"), (1024, "KiB")):
        if in_bytes and value >= size and value % size == 0:
            return f"`{value}` ({value // size} {unit})"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def fixed_bounds() -> str:
    rows = {
        "head of an HTTP request": f"{_size(requests.MAX_HEAD)}, and {requests.MAX_FIELDS} header fields",
        "bytes behind the request that is being answered (pipelining); then the socket is not read": _size(
            http.MAX_BACKLOG
        ),
        "a long poll": f"{streams.MAX_POLL:g} s",
        "entries in one JSON answer of `GET /v1/streams/{id}`": f"about {_size(streams.READ_BYTES)}",
        "what one WebSocket connection is sent at a time, and in one turn": (
            f"about {_size(outlet.WRITE_BYTES)}, {_size(outlet.MAX_WRITES * outlet.WRITE_BYTES)}"
        ),
        "what one SSE response is sent at a time, and in one turn": (
            f"about {_size(sse._READ_BYTES)}, {_size(sse._MAX_WRITES * sse._READ_BYTES)}"
        ),
        "control messages that wait for a WebSocket client which does not read": (
            f"{outlet.MAX_WAITING}, and {_size(outlet.MAX_WAITING_BYTES)}; then it is dropped"
        ),
        "body of a request that is not for a generation; public paths take none": _size(router.SMALL_BODY),
        "bytes of a body in chunks, with what frames them": (
            f"twice those of the body, and {_size(requests.MAX_OVERHEAD)}"
        ),
        "time that a request or handshake waits for the keys of its token's issuer": (
            f"{admitted.KEYS_TIMEOUT:g} s"
        ),
        "what a running stream may always keep, however short memory is": _size(budget.MIN_SHARE),
        "an event of a provider, or a whole answer that is not streamed": "`streams.log_bytes`",
        "head of a provider's HTTP/1.1 answer": _size(_default_of(Http1Connection, "max_head_size")),
        "what a provider may send ahead on one HTTP/2 stream": _size(
            _default_of(Http2Connection, "initial_window")
        ),
        "the same for all streams of a connection": _size(_default_of(Http2Connection, "connection_window")),
    }
    return (
        "| what | bound |\n|---|---|\n" + "\n".join(f"| {what} | {bound} |" for what, bound in rows.items()) + "\n"
    )


def _size(value: int) -> str:
    return f"{value // 1024**2} MiB" if value % 1024**2 == 0 else f"{value // 1024} KiB"


def _default_of(cls: type, name: str) -> int:
    return int(inspect.signature(cls).parameters[name].default)


# -- the command line ------------------------------------------------------------------------------------


def command_line() -> str:
    return "\n".join(_commands(make_parser()))


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                inner = list(_commands(command))
                yield from inner or _command(command, helps[name] or "")


def _command(parser: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    """Describe one command. argparse's own help differs from one version of Python to the next."""
    rows, usage = [], [parser.prog]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = str(action.metavar or action.dest.upper()) if action.nargs != 0 else ""
        if action.choices is not None:
            value = "{" + ",".join(action.choices) + "}"
        if action.option_strings and action.nargs == "?":
            value = f"[{value}]"
        written = " ".join([*action.option_strings, value]).strip()
        usage.append(written if action.required else f"[{written}]")
        text = (action.help or "").replace("%(default)s", str(action.default)).replace("|", "\\|")
        rows.append(f"| `{written}` | {text} |")
    description = parser.description or f"{summary[:1].upper()}{summary[1:]}."
    yield f"### `{parser.prog}`\n\n{description}\n\n```text\n{_folded(usage)}\n```\n"
    yield "| option | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _folded(words: list[str], width: int = 100) -> str:
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append(" " * len(words[0]))
        lines[-1] += f" {word}"
    return "\n".join(lines)


# -- the simulated provider ------------------------------------------------------------------------------


def simulation() -> str:
    rows = ["| field | type | default |", "|---|---|---|"]
    for field in msgspec.structs.fields(Simulation):
        type_, metas = _unwrapped(field.type)
        kind = "an object, see below" if field.name == "fault" else _kind(type_, metas)
        rows.append(f"| `{field.name}` | {kind} | {_default(field, in_bytes=False)} |")
    return "\n".join(rows) + "\n"


def request_faults() -> str:
    return _faults(get_args(AnyRequestFault), RequestFault)


def connection_faults() -> str:
    return _faults(get_args(AnyConnectionFault), ConnectionFault)


def _faults(kinds: tuple[type[msgspec.Struct], ...], base: type[msgspec.Struct]) -> str:
    rows = ["| kind | fields and defaults | |", "|---|---|---|"]
    for cls in kinds:
        fields = [
            f"`{field.name}` {msgspec.json.encode(field.default).decode()}"
            for field in msgspec.structs.fields(cls)
            if field.name not in base.__struct_fields__
        ]
        rows.append(f"| `{cls.__struct_config__.tag}` | {', '.join(fields)} | {' '.join(_text(cls).split())} |")
    return "\n".join(rows) + "\n"


# -- the Python SDK --------------------------------------------------------------------------------------


def sdk_settings() -> str:
    rows = ["| setting | type | default |", "|---|---|---|"]
    for field in dataclasses.fields(WebSocketConfig):
        default = "`{}`" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        type_ = str(field.type).replace("ssl_module.", "ssl.").replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{type_}` | {default} |")
    return "\n".join(rows) + "\n"


def sdk_client() -> str:
    return "\n".join(_class(StreamingAIClient))


def sdk_streams() -> str:
    return "\n".join([*_class(TextStream), *_class(EventStream)])


def sdk_twin() -> str:
    return "\n".join(_class(SyncStreamingAIClient, members=False))


def sdk_events() -> str:
    parts = []
    for cls in (Chunk, StreamQueued, StreamEnd, Usage, AttemptRecord):
        fields = [f"    {field.name}: {_annotation(field.type)}" for field in msgspec.structs.fields(cls)]
        # Without a docstring of its own a struct would show the one of its base.
        text = inspect.cleandoc(vars(cls).get("__doc__") or "")
        code = "\n".join([f"class {cls.__name__}:", *fields])
        parts.append("\n\n".join(filter(None, [f"### `{cls.__name__}`", text, f"```python\n{code}\n```\n"])))
    states = ", ".join(f"`{state.name}`" for state in ConnectionState)
    parts.append(f"### `ConnectionState`\n\n{_text(ConnectionState)} {states}.\n")
    return "\n".join(parts)


def _annotation(type_: Any) -> str:
    if get_origin(type_) is Literal:
        return " | ".join(f'"{value}"' for value in get_args(type_))
    # A user imports every name from `holdfast`, wherever it is defined.
    return _HOME.sub("", inspect.formatannotation(_unwrapped(type_)[0]))


def _class(cls: type, *, members: bool = True) -> Iterator[str]:
    yield f"### `{cls.__name__}`\n\n{_text(cls)}\n"
    names = [name for base in reversed(cls.__mro__[:-1]) for name in vars(base) if not name.startswith("_")]
    properties, methods = [], []
    for name in dict.fromkeys(names) if members else ():
        member = inspect.getattr_static(cls, name)
        if isinstance(member, property):
            properties.append(
                f"| `{name}` | `{_result(member)}` | {_text(member)} |".replace(" | None", " \\| None")
            )
        elif inspect.isfunction(member):
            prefix = "async def " if inspect.iscoroutinefunction(member) else "def "
            methods.append(f"```python\n{prefix}{name}{_signature(member)}\n```\n\n{_text(member)}\n")
    if properties:
        yield "| property | type | |\n|---|---|---|\n" + "\n".join(properties) + "\n"
    yield from methods


def _result(member: property) -> str:
    return str(member.fget.__annotations__["return"]) if member.fget is not None else ""


def _signature(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    parts = []
    for name, parameter in signature.parameters.items():
        if name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(str(parameter).replace("'", ""))  # annotations are strings
    line = f"({', '.join(parts)}) -> {signature.return_annotation}"
    if len(line) <= 80:
        return line
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {signature.return_annotation}"


def _text(member: object) -> str:
    return inspect.getdoc(member) or ""


# -- putting them in -------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], str]] = {
    "errors": error_table,
    "close codes": close_code_table,
    "exceptions": exception_tree,
    "local errors": local_error_table,
    "configuration": configuration,
    "fixed bounds": fixed_bounds,
    "command line": command_line,
    "simulation": simulation,
    "request faults": request_faults,
    "connection faults": connection_faults,
    "sdk settings": sdk_settings,
    "sdk client": sdk_client,
    "sdk streams": sdk_streams,
    "sdk twin": sdk_twin,
    "sdk events": sdk_events,
}


def generate(text: str) -> str:
    """Return a document with its generated parts renewed. Raises KeyError for a part of an unknown name."""
    return _PART.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], text)


def stale_documents(*, write: bool) -> list[Path]:
    """Return the documents whose generated parts differ from the code; with `write`, renew them."""
    stale = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        renewed = generate(text)
        if renewed != text:
            stale.append(path.relative_to(ROOT))
            if write:
                path.write_text(renewed, encoding="utf-8")
    return stale


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = stale_documents(write=not check)
    for path in stale:
        print(f"{path}: {'is stale; run python docs/generate.py' if check else 'renewed'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
