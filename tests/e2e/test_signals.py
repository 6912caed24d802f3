"""What the gateway as a process makes of signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import Signals

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from holdfast import StreamingAIClient, WebSocketConfig
from holdfast.errors import HoldfastError
from holdfast_tools.simulate.certificate import self_signed
from holdfast_tools.simulate.text import text
from tests.support.slow_issuer import SlowIssuer
from tests.support.waiting import eventually

HELLO = [{"role": "user", "content": "hi"}]


@dataclass
class Command:
    """`holdfast serve` as a process. Without models it serves `demo` from its built-in provider."""

    process: Process
    url: str

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    async def until_draining(self) -> None:
        async with asyncio.timeout(10):
            while await asyncio.to_thread(self.status, "/readyz") != 503:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    async def exit_code(self) -> int:
        async with asyncio.timeout(10):
            return await self.process.wait()


Serve = Callable[..., Coroutine[None, None, Command]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    processes = []

    async def start(config: str = "", started: Callable[[Process], None] | None = None) -> Command:
        file = tmp_path / "holdfast.toml"
        file.write_text(f"[server]\nport = 0\n{config}")
        command = [sys.executable, "-m", "holdfast.cli", "serve", "--config", str(file)]
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environ)
        processes.append(process)
        if started is not None:
            started(process)
        assert process.stdout is not None
        async with asyncio.timeout(20):
            match = re.search(r"https?://[0-9.:]+", (await process.stdout.readline()).decode())
        assert match is not None
        return Command(process, match[0])

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle_gateway_exits_at_once_and_cleanly(serve: Serve, number: Signals) -> None:
    gateway = await serve()
    gateway.process.send_signal(number)
    assert await gateway.exit_code() == 0


async def test_gateway_whose_issuer_drips_its_keys_starts_and_exits_at_once(serve: Serve) -> None:
    async with SlowIssuer(b"{}", "drip body") as issuer:
        gateway = await serve(
            f'[auth.jwt]\nissuer = "https://idp.example"\naudience = "holdfast"\njwks_url = "{issuer.url}"\n'
        )
        assert await asyncio.to_thread(gateway.status, "/healthz") == 200
        gateway.process.send_signal(signal.SIGTERM)
        start = asyncio.get_running_loop().time()
        assert await gateway.exit_code() == 0
        assert asyncio.get_running_loop().time() - start < 3.0


async def test_sighup_while_the_gateway_starts_does_not_end_it(serve: Serve) -> None:
    async with SlowIssuer(b"{}", "silent") as issuer:
        keys = f'[auth.jwt]\nissuer = "https://idp.example"\naudience = "holdfast"\njwks_url = "{issuer.url}"\n'
        processes: list[Process] = []
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(serve(keys, processes.append))
            await eventually(lambda: issuer.requests == 1, within=20.0)
            processes[0].send_signal(signal.SIGHUP)
        gateway = starting.result()
        assert await asyncio.to_thread(gateway.status, "/healthz") == 200


async def test_sigterm_lets_a_running_stream_finish(serve: Serve) -> None:
    gateway = await serve()
    async with StreamingAIClient(WebSocketConfig(gateway.url)) as client:
        stream = client.stream_chat(HELLO, model="demo", sim={"tokens": 100, "interval_ms": 10, "seed": 3})
        pieces = [await anext(stream)]
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.until_draining()
        assert await asyncio.to_thread(gateway.status, "/healthz") == 200
        pieces += [piece async for piece in stream]
    assert "".join(pieces) == text(3, 100)
    assert await gateway.exit_code() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_running_streams_as_incomplete(serve: Serve, second: Signals) -> None:
    gateway = await serve()
    async with connect(f"{gateway.url}/v1/ws/stream".replace("http", "ws", 1), proxy=None) as socket:
        sim = {"tokens": 100_000, "interval_ms": 10}
        await socket.send(json.dumps({"model": "demo", "messages": HELLO, "sim": sim}))
        assert json.loads(await socket.recv())["type"] == "accepted"
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.until_draining()
        gateway.process.send_signal(second)
        messages = []
        try:
            while True:
                messages.append(json.loads(await socket.recv()))
        except ConnectionClosedError:
            pass  # it is not told as a clean end
        assert socket.close_code == 1012
    assert messages[-1]["type"] == "end"
    assert (messages[-1]["status"], messages[-1]["error"]["code"]) == ("incomplete", "shutdown")
    assert await gateway.exit_code() == 0


async def test_drain_timeout_ends_running_streams_as_incomplete(serve: Serve) -> None:
    gateway = await serve("drain_timeout = 0.5\n")
    async with StreamingAIClient(WebSocketConfig(gateway.url)) as client:
        stream = client.stream_chat(HELLO, model="demo", sim={"tokens": 100_000, "interval_ms": 10})
        first = await anext(stream)
        gateway.process.send_signal(signal.SIGTERM)
        with pytest.raises(HoldfastError) as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "shutdown"
        assert caught.value.partial.startswith(first)
    assert await gateway.exit_code() == 0


async def test_sighup_reloads_and_an_invalid_file_is_refused(serve: Serve, tmp_path: Path) -> None:
    model = '\n[providers.a]\nbase_url = "http://127.0.0.1:9/v1"\n[models.{}]\nroute = ["a/a"]\n'
    gateway = await serve(model.format("first"))

    def models() -> list[str]:
        with urllib.request.urlopen(f"{gateway.url}/v1/models", timeout=5) as answer:
            return [entry["id"] for entry in json.load(answer)["data"]]

    assert models() == ["first"]
    for config, line in ((model.format("second"), b"was reloaded"), ("nonsense", b"the old one stays")):
        (tmp_path / "holdfast.toml").write_text(f"[server]\nport = 0\n{config}")
        gateway.process.send_signal(signal.SIGHUP)
        assert gateway.process.stderr is not None
        async with asyncio.timeout(10):
            while line not in await gateway.process.stderr.readline():
                pass
        assert await asyncio.to_thread(models) == ["second"]


async def test_renewed_certificate_of_the_demo_is_served_without_a_signal(serve: Serve, tmp_path: Path) -> None:
    """In the loop that the command uses, which has a TLS of its own."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew() -> str:
        made = self_signed()
        cert.write_bytes(made[0])
        key.write_bytes(made[1])
        return made[0].decode()

    first = renew()
    gateway = await serve(f'tls_cert = "{cert}"\ntls_key = "{key}"\n')
    port = int(gateway.url.rpartition(":")[2])
    shown = partial(asyncio.to_thread, partial(ssl.get_server_certificate, ("127.0.0.1", port)))
    assert await shown() == first
    second = renew()
    assert gateway.process.stderr is not None
    async with asyncio.timeout(10):
        while b"the certificates were read again" not in await gateway.process.stderr.readline():
            pass
    assert await shown() == second
