"""`holdfast chat` and `holdfast tail` as processes, with and without a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from holdfast.core.session import messages as m
from holdfast.errors import UnknownModel
from tests.support.scripted_gateway import Generation, ScriptedGateway, answers, words

COMMAND = [sys.executable, "-W", "error", "-c", "import sys; from holdfast.cli import main; sys.exit(main())"]


@dataclass
class Terminal:
    """A process and what it has written so far."""

    process: asyncio.subprocess.Process
    out: str = ""
    err: str = ""
    master: int | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    readers: list[asyncio.Task[None]] = field(default_factory=list)

    async def read(self, stream: asyncio.StreamReader, name: str) -> None:
        while True:
            try:
                data = await stream.read(4096)
            except OSError:  # the other side of a pseudo-terminal is gone
                break
            if not data:
                break
            setattr(self, name, getattr(self, name) + data.decode(errors="replace"))
            self.news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def type(self, text: str) -> None:
        assert self.master is not None
        os.write(self.master, text.encode())

    async def status(self) -> int:
        async with asyncio.timeout(10):
            status = await self.process.wait()
            await asyncio.gather(*self.readers)
        return status


Start = Callable[..., Awaitable[Terminal]]


@pytest.fixture
async def start(gateway: ScriptedGateway) -> AsyncIterator[Start]:
    terminals: list[Terminal] = []

    async def start(
        *args: str, stdin: bytes | None = b"", env: dict[str, str] | None = None, in_terminal: bool = False
    ) -> Terminal:
        settings: dict[str, Any] = {"stderr": asyncio.subprocess.PIPE}
        master = slave = None
        if in_terminal:
            master, slave = pty.openpty()
            settings |= {"stdin": slave, "stdout": slave}
        else:
            settings |= {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        variables = {**os.environ, "HOLDFAST_URL": gateway.url, "TERM": "dumb", **(env or {})}
        process = await asyncio.create_subprocess_exec(*COMMAND, *args, env=variables, **settings)
        terminal = Terminal(process, master=master)
        terminals.append(terminal)
        assert process.stderr is not None
        terminal.readers.append(asyncio.create_task(terminal.read(process.stderr, "err")))
        if master is not None and slave is not None:
            os.close(slave)
            output = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(output), os.fdopen(os.dup(master), "rb", buffering=0)
            )
        else:
            assert process.stdout is not None
            assert process.stdin is not None
            output = process.stdout
            if stdin:
                process.stdin.write(stdin)
            process.stdin.close()
        terminal.readers.append(asyncio.create_task(terminal.read(output, "out")))
        return terminal

    yield start
    for terminal in terminals:
        if terminal.process.returncode is None:
            terminal.process.kill()
        await terminal.status()
        if terminal.master is not None:
            os.close(terminal.master)


async def test_chat_answers_the_prompt_of_its_argument(gateway: ScriptedGateway, start: Start) -> None:
    gateway.on_create = answers("Hel", "lo")
    terminal = await start("chat", "hi there", "--model", "m1", env={"HOLDFAST_API_KEY": "k1"})
    assert await terminal.status() == 0
    assert (terminal.out, terminal.err) == ("Hello\n", "")
    assert gateway.generations[0].request == {
        "model": "m1",
        "messages": [{"role": "user", "content": "hi there"}],
    }
    assert gateway.requests[0].headers["Authorization"] == "Bearer k1"


async def test_chat_tells_of_a_wait_before_another_try(gateway: ScriptedGateway, start: Start) -> None:
    def answer(generation: Generation) -> None:
        gateway.last.send(m.Queued(generation.id, 0, attempt=2, delay_ms=1500, code="upstream_status"))
        generation.say("Hello")
        generation.end()

    gateway.on_create = answer
    terminal = await start("chat", "hi there", "--model", "m1")
    assert await terminal.status() == 0
    assert (terminal.out, terminal.err) == ("Hello\n", "upstream_status: trying again in 1.5 s\n")


async def test_chat_answers_the_prompt_of_standard_input(gateway: ScriptedGateway, start: Start) -> None:
    gateway.on_create = answers("\x1b[2Jx")
    terminal = await start("chat", stdin=b"two\nlines\n")
    assert await terminal.status() == 0
    assert terminal.out == "\x1b[2Jx\n"  # a file gets what the model said
    assert gateway.generations[0].request["messages"] == [{"role": "user", "content": "two\nlines\n"}]


async def test_chat_without_a_prompt_says_so(start: Start) -> None:
    terminal = await start("chat")
    assert await terminal.status() == 2
    assert "standard input is empty" in terminal.err


async def test_missing_key_variable_is_named(start: Start) -> None:
    terminal = await start("chat", "hi", "--api-key-env", "NO_SUCH_KEY")
    assert await terminal.status() == 2
    assert "variable NO_SUCH_KEY is not set" in terminal.err


async def test_wrong_url_is_named(start: Start) -> None:
    terminal = await start("chat", "hi", "--url", "localhost:8080")
    assert await terminal.status() == 2
    assert "base_url: must be http://" in terminal.err


async def test_chat_that_fails_says_why(gateway: ScriptedGateway, start: Start) -> None:
    gateway.refusals.append(UnknownModel("there is no model 'x'\x1b[2J"))
    terminal = await start("chat", "hi")
    assert await terminal.status() == 1
    assert (terminal.out, terminal.err) == ("", "model_not_found: there is no model 'x'\ufffd[2J\n")


async def test_chat_tells_of_a_cut_and_carries_on(gateway: ScriptedGateway, start: Start) -> None:
    gateway.on_create = lambda generation: generation.say(*words(42))
    terminal = await start("chat", "hi")
    await terminal.until(lambda: "w41" in terminal.out)
    gateway.last.cut()
    await terminal.until(lambda: "resumed" in terminal.err)
    gateway.generations[0].say("end")
    gateway.generations[0].end()
    assert await terminal.status() == 0
    assert terminal.out == "".join(words(42)) + "end\n"
    assert terminal.err == "reconnecting...\nresumed at 42\n"


async def test_interrupt_of_a_single_answer_cancels_it(gateway: ScriptedGateway, start: Start) -> None:
    gateway.on_create = lambda generation: generation.say("so far")
    terminal = await start("chat", "hi")
    await terminal.until(lambda: "so far" in terminal.out)
    terminal.process.send_signal(signal.SIGINT)
    assert await terminal.status() == 130
    assert (terminal.out, terminal.err) == ("so far\n", "")
    assert gateway.generations[0].is_cancelled


async def test_reader_that_has_enough_ends_the_chat(gateway: ScriptedGateway, start: Start) -> None:
    gateway.on_create = lambda generation: generation.say("a")
    terminal = await start("chat", "hi")
    await terminal.until(lambda: terminal.out)
    terminal.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    gateway.generations[0].say("more")
    await gateway.until(lambda: gateway.generations[0].is_cancelled)
    assert await terminal.process.wait() == 141
    assert terminal.err == ""


async def test_conversation_in_a_terminal_takes_turns(gateway: ScriptedGateway, start: Start) -> None:
    def answer(generation: Generation) -> None:
        if len(gateway.generations) == 2:
            generation.say("never ending")
            return
        gateway.last.send(m.Queued(generation.id, 1))
        generation.say("Hel\x1b[2Jlo ", str(len(gateway.generations)))
        generation.end()

    gateway.on_create = answer
    terminal = await start("chat", in_terminal=True)
    await terminal.until(lambda: terminal.out.endswith("> "))
    terminal.type("\n")
    terminal.type("one\n")
    await terminal.until(lambda: "lo 1" in terminal.out and terminal.out.endswith("> "))
    assert "Hel\ufffd[2Jlo 1" in terminal.out
    assert "queued at position 1" in terminal.err
    terminal.type("two\n")
    await terminal.until(lambda: "never ending" in terminal.out)
    terminal.process.send_signal(signal.SIGINT)
    await gateway.until(lambda: gateway.generations[1].is_cancelled)
    await terminal.until(lambda: terminal.out.endswith("> "))
    terminal.type("three\n")
    await terminal.until(lambda: "lo 3" in terminal.out and terminal.out.endswith("> "))
    assert gateway.generations[2].request["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hel\x1b[2Jlo 1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "never ending"},
        {"role": "user", "content": "three"},
    ]
    terminal.type("\x04")
    assert await terminal.status() == 0


async def test_interrupt_at_the_prompt_leaves(gateway: ScriptedGateway, start: Start) -> None:
    terminal = await start("chat", in_terminal=True)
    await terminal.until(lambda: terminal.out.endswith("> "))
    terminal.type("x")
    await terminal.until(lambda: terminal.out.endswith("x"))
    # A signal that comes just before the line editor waits is only seen with the next one: press again.
    while terminal.process.returncode is None:
        terminal.process.send_signal(signal.SIGINT)
        await asyncio.wait([asyncio.ensure_future(terminal.process.wait())], timeout=2)
    assert await terminal.status() == 0
    assert "Ctrl-D leaves" in terminal.err


async def test_tail_follows_a_stream_and_leaves_it_running(gateway: ScriptedGateway, start: Start) -> None:
    generation = gateway.generate("r1", {"messages": []})
    generation.say(*words(5))
    terminal = await start("tail", generation.id, "--after", "1")
    await terminal.until(lambda: "w4" in terminal.out)
    terminal.process.send_signal(signal.SIGINT)
    assert await terminal.status() == 130
    assert terminal.out == "w2 w3 w4 \n"
    assert f"holdfast tail {generation.id} --after 4" in terminal.err
    assert not generation.is_cancelled
    generation.end()
    terminal = await start("tail", generation.id)
    assert await terminal.status() == 0
    assert terminal.out == "".join(words(5)) + "\n"
    terminal = await start("tail", "st_none")
    assert await terminal.status() == 1
    assert terminal.err.startswith("unknown_stream: ")
