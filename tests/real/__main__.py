"""The whole path against a model server that is not ours: `make test-real`.

llama-cpp-python serves a model with random weights; `holdfast serve` stands in front of it; every kind of client
asks it, is cut off, carries on and cancels. What is printed is the report; the exit status says whether all of it
held.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import openai

from holdfast import SyncStreamingAIClient, UpstreamError
from tests.real import cancels, clients, model
from tests.real.clients import Answer, Mismatch, Question, Server, expect
from tests.real.processes import GatewayProcess, ModelServer, Process
from tests.support.relay import ThreadedRelay

TOKENS = 400
#: Text pieces after which a client's connection is cut.
CUTS = (50, 170, 290)
#: Tokens of a generation that is stopped early. Undisturbed it takes the server some ten seconds.
LONG = 3000

_PROVIDER_KEY = "provider-key"
_CONFIG = """\
[providers.llama]
base_url = "{base_url}"
api_key = "env:LLAMA_API_KEY"
[models.random]
route = ["llama/random"]
[keys.test]
hash = "{hash}"
"""


class Report:
    """Prints a line per check and remembers what failed."""

    def __init__(self) -> None:
        self.checks = 0
        self.failures = 0

    def heading(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def line(self, name: str, *columns: str, result: str = "") -> None:
        line = f"  {name:<43}" + "".join(f"{column:>12}" for column in columns)
        print(f"{line:<105} {result}".rstrip(), flush=True)

    def check(self, name: str, run: Callable[[], tuple[str, ...]]) -> None:
        """Run one check; what it returns are the columns of its line."""
        self.checks += 1
        try:
            self.line(name, *run(), result="ok")
        except Exception as exc:
            self.failures += 1
            self.line(name, result="FAILED")
            print(f"      {type(exc).__name__}: {exc}", flush=True)

    def conclude(self, *processes: Process) -> int:
        """Print the sum, and after a failure what the processes had to say; return the exit status."""
        print(f"\n{self.checks} checks, {self.failures} failed")
        if not self.failures:
            return 0
        for process in processes:
            print(f"\n{process.log.name} ends:\n{process.tail()}")
        return 1


class Stage:
    """The servers, and what their clients must get."""

    def __init__(self, folder: Path) -> None:
        self.report = Report()
        path = folder / "random.gguf"
        started = time.monotonic()
        model.write_model(path)
        self.made = f"{path.stat().st_size / 1e6:.0f} MB, made in {time.monotonic() - started:.1f} s"
        self._start_models = partial(ModelServer, path, context=model.CONTEXT, api_key=_PROVIDER_KEY)
        self.models = self._start_models(folder / "models.log")
        key, hashed = _create_key()
        config = folder / "holdfast.toml"
        config.write_text(_CONFIG.format(base_url=self.models.base_url, hash=hashed))
        try:
            self.gateway_process = GatewayProcess(
                config, folder / "gateway.log", env={"LLAMA_API_KEY": _PROVIDER_KEY}
            )
        except BaseException:
            self.models.stop()
            raise
        self.direct = Server(self.models.port, _PROVIDER_KEY)
        self.gateway = Server(self.gateway_process.port, key)

    def restart_models(self) -> None:
        self.models = self._start_models(self.models.log.with_suffix(".2.log"), port=self.models.port)

    def close(self) -> None:
        self.gateway_process.stop()
        self.models.stop()

    @contextmanager
    def requests(self, expected: int) -> Iterator[None]:
        """Check how many requests reach the model server meanwhile."""
        before = self.models.requests
        yield
        expect("requests that reached the server", self.models.requests - before, expected)


def main() -> int:
    # The SDKs heed proxies of the environment; everything here is on loopback.
    os.environ["NO_PROXY"] = "127.0.0.1"
    print("Holdfast against a real model server")
    with tempfile.TemporaryDirectory(prefix="holdfast-real-") as folder:
        stage = Stage(Path(folder))
        try:
            _print_versions(stage)
            _same_text(stage)
            _cut_and_carried_on(stage)
            _cancelled(stage)
            _server_fails(stage)
            return stage.report.conclude(stage.gateway_process, stage.models)
        finally:
            stage.close()


def _create_key() -> tuple[str, str]:
    holdfast = Path(sys.executable).with_name("holdfast")
    created = subprocess.run([holdfast, "keys", "create", "test"], capture_output=True, text=True, check=True)
    return created.stdout.strip(), created.stderr.split('hash = "')[1].split('"')[0]


def _print_versions(stage: Stage) -> None:
    version = importlib.metadata.version
    print(
        f"  machine   {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}\n"
        f"  server    llama-cpp-python {version('llama-cpp-python')} (llama.cpp), uvicorn {version('uvicorn')}; "
        f"one slot, requests wait for it\n"
        f"  model     llama architecture with random weights: {model.LAYERS} layers, width {model.WIDTH}, "
        f"context {model.CONTEXT}; {stage.made}\n"
        f"  gateway   holdfast {version('holdfast')}, `holdfast serve` with a key and one provider\n"
        f"  clients   openai {version('openai')}, httpx {version('httpx')}, websockets {version('websockets')}, "
        f"holdfast {version('holdfast')}"
    )


# -- 1 -------------------------------------------------------------------------------------------------


def _same_text(stage: Stage) -> None:
    report, question = stage.report, Question(TOKENS)
    clients.ask_whole(stage.direct, question)  # the very first answer also pays for reading the model from disk
    reference = clients.ask_sse(stage.direct, question)
    whole = clients.ask_whole(stage.direct, question)
    digest = hashlib.sha256(reference.text.encode()).hexdigest()[:16]
    report.heading(
        f"1. The same text on every path: {TOKENS} tokens, {len(reference.text)} characters, temperature 0.8, "
        f"seed {question.seed},\n   SHA-256 {digest}..., starts {reference.text[:60]!r}.\n"
        "   This server counts usage only in answers that are not streamed"
    )
    report.line("", "first token", "whole text", "pieces", "finish", "usage")
    report.line("the server itself, stream", *_columns(reference))
    report.line("the server itself, not streamed", *_columns(whole))
    report.check("its two texts are equal", lambda: _compare_text(whole, reference))
    for name, ask, expected in (
        ("WebSocket, holdfast.v1", clients.ask_websocket, reference),
        ("WebSocket, bare payload", clients.ask_bare, reference),
        ("SSE", clients.ask_sse, reference),
        ("HTTP, not streamed", clients.ask_whole, whole),
        ("openai SDK, stream", clients.ask_openai_stream, reference),
        ("openai SDK, not streamed", clients.ask_openai_whole, whole),
        ("openai SDK, async, stream", clients.ask_openai_async, reference),
        ("holdfast SDK, async", clients.ask_async, reference),
        ("holdfast SDK, sync", clients.ask_sync, reference),
    ):
        report.check(name, partial(_ask_once, stage, ask, question, expected))
    report.check("3 at once on a connection, each read twice", partial(_ask_many, stage))


def _ask_once(
    stage: Stage, ask: Callable[[Server, Question], Answer], question: Question, expected: Answer
) -> tuple[str, ...]:
    with stage.requests(1):
        answer = ask(stage.gateway, question)
    _compare(answer, expected)
    return _columns(answer)


def _ask_many(stage: Stage) -> tuple[str, ...]:
    questions = [Question(120, seed=seed) for seed in (11, 12, 13)]
    expected = [clients.ask_sse(stage.direct, question) for question in questions]
    expect("three different texts", len({answer.text for answer in expected}), 3)
    with stage.requests(3):
        answers = clients.ask_many(stage.gateway, questions)
    for answer, reference in zip(answers, expected, strict=True):
        _compare(answer, reference)
    return "", f"{max(answer.seconds for answer in answers):.2f} s", *_columns(answers[0])[2:]


def _columns(answer: Answer) -> tuple[str, ...]:
    usage = answer.usage
    return (
        "" if answer.first is None or len(answer.pieces) == 1 else f"{answer.first * 1000:.0f} ms",
        f"{answer.seconds:.2f} s",
        str(len(answer.pieces)),
        answer.finish_reason or "none",
        f"{usage['prompt_tokens']} + {usage['completion_tokens']}" if usage else "not sent",
    )


def _compare_text(answer: Answer, expected: Answer) -> tuple[str, ...]:
    if answer.text != expected.text:
        place = next(
            (i for i, (a, b) in enumerate(zip(answer.text, expected.text, strict=False)) if a != b),
            min(len(answer.text), len(expected.text)),
        )
        raise Mismatch(
            f"the text differs at character {place}: "
            f"{answer.text[place : place + 20]!r}, not {expected.text[place : place + 20]!r}"
        )
    return ()


def _compare(answer: Answer, expected: Answer) -> None:
    _compare_text(answer, expected)
    expect("pieces", len(answer.pieces), len(expected.pieces))
    expect("finish_reason", answer.finish_reason, expected.finish_reason)
    expect("usage", answer.usage, expected.usage)


# -- 2 -------------------------------------------------------------------------------------------------


def _cut_and_carried_on(stage: Stage) -> None:
    report, question = stage.report, Question(TOKENS)
    reference = clients.ask_sse(stage.direct, question)
    report.heading(
        f"2. The client's connection is reset after {', '.join(map(str, CUTS))} pieces; the text is the same, "
        "every entry came once,\n   and the server saw one request"
    )
    report.line("", "whole text", "connections", "cuts")
    for name, ask, cuts in (
        ("WebSocket, hello with the position", clients.ask_websocket, CUTS),
        ("SSE, Last-Event-ID", clients.ask_sse, CUTS),
        ("holdfast SDK, async", clients.ask_async, CUTS),
        ("holdfast SDK, sync", clients.ask_sync, CUTS),
        ("openai SDK, asked again with the same key", clients.ask_openai_again, CUTS[:1]),
    ):
        report.check(name, partial(_ask_cut, stage, ask, question, reference, cuts))


def _ask_cut(
    stage: Stage,
    ask: Callable[[Server, Question, clients.OnPiece], Answer],
    question: Question,
    expected: Answer,
    cuts: tuple[int, ...],
) -> tuple[str, ...]:
    relay = ThreadedRelay(stage.gateway.port)
    planned, made = list(cuts), 0

    def cut(pieces: int) -> None:
        nonlocal made
        if planned and pieces >= planned[0]:
            planned.pop(0)
            made += relay.reset()

    try:
        with stage.requests(1):
            answer = ask(Server(relay.port, stage.gateway.key), question, cut)
    finally:
        relay.close()
    _compare(answer, expected)
    expect("connections that were cut", made, len(cuts))
    expect("connections that were made", answer.connections, len(cuts) + 1)
    return f"{answer.seconds:.2f} s", str(answer.connections), str(made)


# -- 3 -------------------------------------------------------------------------------------------------


def _cancelled(stage: Stage) -> None:
    report = stage.report
    report.heading(
        f"3. A generation of {LONG} tokens is stopped after {cancels.READ} messages. The server has one slot, and "
        "once it is free\n   the next request gets its first token"
    )
    report.line("", "first token", "its end")
    waited: list[float] = []
    report.check("next request on an idle server", partial(_idle, stage))
    report.check(f"behind {TOKENS} tokens that nobody stops", partial(_behind_another, stage, waited))
    if not waited:
        return
    for name, stop in (
        ("WebSocket cancel", cancels.websocket_cancel),
        ("WebSocket cancel of one that still waits", cancels.websocket_cancel_waiting),
        ("DELETE /v1/streams/{id}", cancels.http_delete),
        ("SSE, client leaves", cancels.sse_closed),
        ("openai SDK, stream.close()", cancels.openai_closed),
        ("holdfast SDK, async, break", cancels.async_break),
        ("holdfast SDK, async, client.cancel(stream)", cancels.async_cancel),
        ("holdfast SDK, sync, break", cancels.sync_break),
    ):
        report.check(name, partial(_stop, stage, stop, waited[0]))


def _next_request(stage: Stage) -> float:
    """Ask for a few tokens; return the seconds to the first of them."""
    question = Question(4, prompt="And now?")
    answer = clients.ask_sse(stage.gateway, question)
    expect("pieces", len(answer.pieces), question.tokens)
    return answer.first or 0.0


def _idle(stage: Stage) -> tuple[str, ...]:
    median = sorted(_next_request(stage) for _ in range(5))[2]
    return (f"{median * 1000:.0f} ms",)


def _behind_another(stage: Stage, waited: list[float]) -> tuple[str, ...]:
    with clients.Socket(stage.gateway) as socket:
        socket.hello()
        stream_id = socket.create(Question(TOKENS))
        socket.receive()
        waited.append(_next_request(stage))
    return f"{waited[0] * 1000:.0f} ms", _read(stage, stream_id)["status"]


def _stop(stage: Stage, stop: Callable[[Server, Question, cancels.Then], None], waited: float) -> tuple[str, ...]:
    first, end = 0.0, ""

    def then(stopped: float, stream_id: str | None) -> None:
        nonlocal first, end
        begun = time.monotonic()
        first = _next_request(stage) + (begun - stopped)
        if stream_id is not None:
            end = _read(stage, stream_id)["status"]
            expect("the stream's end", end, "cancelled")

    stop(stage.gateway, Question(LONG, seed=21), then)
    if first >= waited:
        raise Mismatch(f"the next request waited {first:.1f} s, no less than behind {TOKENS} tokens")
    return f"{first * 1000:.0f} ms", end


def _read(stage: Stage, stream_id: str) -> dict[str, Any]:
    with stage.gateway.http as http:
        response = http.get(f"streams/{stream_id}", params={"live": "none"})
        response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


# -- 4 -------------------------------------------------------------------------------------------------


def _server_fails(stage: Stage) -> None:
    report = stage.report
    report.heading("4. What goes wrong at the server is said, and what came before stays readable")
    report.line("", "HTTP status")
    report.check("prompt beyond its context, not streamed", partial(_too_long, stage))
    report.check("killed in the middle of a stream", partial(_killed, stage))
    report.check("started again: the same text again", partial(_back_again, stage))
    report.check("prompt beyond its context, streamed", partial(_too_long_streamed, stage))


_TOO_LONG = Question(5, prompt="x" * (model.CONTEXT + 1))


def _too_long(stage: Stage) -> tuple[str, ...]:
    """The server's refusal is passed on with its status and its own words."""
    try:
        clients.ask_openai_whole(stage.gateway, _TOO_LONG)
    except openai.BadRequestError as exc:
        words = "This model's maximum context length is"
        expect("the server's own words", words if words in exc.message else exc.message, words)
        return str(exc.status_code), f"   {words} ..."
    raise Mismatch("the prompt was taken")


def _too_long_streamed(stage: Stage) -> tuple[str, ...]:
    """Here the server answers 200, and ends the answer without an event."""
    try:
        clients.ask_openai_stream(stage.gateway, _TOO_LONG)
    except openai.APIStatusError as exc:
        expect("code", exc.code, "upstream_truncated")
        return str(exc.status_code), f"   {exc.code}"
    raise Mismatch("the prompt was taken")


def _killed(stage: Stage) -> tuple[str, ...]:
    question = Question(TOKENS)
    reference = clients.ask_sse(stage.direct, question)
    with SyncStreamingAIClient(stage.gateway.config) as client:
        stream = client.stream_chat(question.messages, model=clients.MODEL, **question.options)
        pieces = 0
        try:
            for _ in stream:
                pieces += 1
                if pieces == CUTS[0]:
                    stage.models.kill()
        except UpstreamError as exc:
            error = exc
        else:
            raise Mismatch("the stream ended as if it were complete")
        kept = _read(stage, stream.id or "")
    answer = Answer()
    for entry in kept["entries"]:
        answer.add_chunk(entry["data"])
    expect("the stream's end", kept["end"]["status"], "incomplete")
    expect("its text, read again", answer.text, error.partial)
    expect("it begins like the whole", reference.text.startswith(answer.text), True)
    expect("all that was read is in it", pieces == len(answer.pieces) >= CUTS[0], True)
    return "", f"   incomplete, {error.code}; {pieces} pieces kept"


def _back_again(stage: Stage) -> tuple[str, ...]:
    question = Question(120)
    stage.restart_models()
    _compare(clients.ask_sync(stage.gateway, question), clients.ask_sse(stage.direct, question))
    return "200", ""


if __name__ == "__main__":
    sys.exit(main())
