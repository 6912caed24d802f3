"""`holdfast serve` as a process: its greeting works as it stands, and it comes and goes as it should."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from signal import Signals
from typing import Any

import httpx
import pytest
from httpx import Response

from holdfast import SyncStreamingAIClient, WebSocketConfig
from holdfast_tools.simulate.text import text
from tests.support.command_line import DEADLINE, Server, environment, run, serve

ROOT = Path(__file__).parents[2]
HELLO = [{"role": "user", "content": "hi"}]


def sim(**fields: Any) -> dict[str, Any]:
    return {"interval_ms": 0, "ttft_ms": 0, "seed": 7, **fields}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": HELLO, "stream": True, "sim": sim(**fields)}


def head_of(request: bytes) -> bytes:
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(request)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve(cwd=tmp_path) as server:
        yield server
        assert server.errors == "" or "WARNING" in server.errors
        assert "Traceback" not in server.errors


@contextlib.contextmanager
def streaming(url: str, **fields: Any) -> Iterator[tuple[Response, Iterator[str]]]:
    """A streamed completion that has begun."""
    with (
        httpx.Client(trust_env=False, timeout=DEADLINE) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body(**fields)) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("id: 1-0")
        yield response, lines


def contents(events: Iterable[str]) -> str:
    """The text of SSE lines; they must end as a completion does."""
    payloads = [line[6:] for line in events if line.startswith("data: ")]
    assert payloads[-1] == "[DONE]"
    chunks = [json.loads(payload) for payload in payloads[:-1]]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# -- the greeting --------------------------------------------------------------------------------------


def greeting_part(greeting: str, name: str) -> str:
    """What stands behind a name of the greeting, as it would be copied."""
    start = greeting.index(f"\n  {name}") + 1
    lines = greeting[start:].split("\n")
    command = [lines[0].partition(name)[2].strip()]
    while command[-1].endswith("\\"):
        command.append(lines[len(command)].strip())
    return "\n".join(command)


def greeting_snippet(greeting: str) -> str:
    start = greeting.index("\n\n", greeting.index("\n  Python")) + 2
    return greeting[start : greeting.index("\n\nCtrl-C")]


def test_greeting_works_as_it_stands(tmp_path: Path) -> None:
    """Without keys and with, and all of it at once, because the demo takes its time."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    created = run("keys", "create")
    (tmp_path / "keyed").mkdir()
    (tmp_path / "keyed" / "holdfast.toml").write_text(created.stderr[created.stderr.index("[keys.") :])
    variables = {"HOLDFAST_API_KEY": created.stdout.strip()}
    with (
        serve(cwd=tmp_path) as plain,
        serve("--config", "holdfast.toml", cwd=tmp_path / "keyed", nofile=None, **variables) as keyed,
    ):
        processes = [
            *start_greeting(plain, ["health", "chat", "curl"], tmp_path),
            *start_greeting(keyed, ["curl"], tmp_path / "keyed", **variables),
        ]
        outputs = [process.communicate("hi", timeout=DEADLINE) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, outputs
    health, chat, curl, python, keyed_curl, keyed_python = outputs
    answer = contents(curl[0].split("\n"))
    assert len(answer) > 100
    assert json.loads(health[0]) == {"status": "ok"}
    assert answer in chat[0]
    assert contents(keyed_curl[0].split("\n")) == answer
    assert python == keyed_python == (answer, "")


def start_greeting(server: Server, names: list[str], cwd: Path, **variables: str) -> list[subprocess.Popen[str]]:
    """Start these commands of a greeting, and its Python lines."""
    commands = [["sh", "-c", greeting_part(server.greeting, name)] for name in names]
    return [
        subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in [*commands, [sys.executable, "-c", greeting_snippet(server.greeting)]]
    ]


# -- coming and going ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_gateway_ends_within_two_seconds_of_a_signal(server: Server, number: Signals) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):  # an idle connection does not hold it
        assert httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200
        status, seconds = server.stop(number)
    assert status == 0
    assert seconds < 2


def test_killed_gateway_is_found_again_and_says_that_its_streams_are_lost(tmp_path: Path) -> None:
    with serve(cwd=tmp_path) as first:
        with streaming(first.url, tokens=1_000_000, interval_ms=5) as (response, _):
            stream = response.headers["holdfast-stream-id"]
            first.kill()
        with Server("serve", "--port", str(first.port), cwd=tmp_path, last_line="Ctrl-C stops") as second:
            response = httpx.get(f"{second.url}/v1/streams/{stream}", trust_env=False)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_stream")
            config = WebSocketConfig(base_url=f"{second.url}/v1")
            with SyncStreamingAIClient(config) as client:
                whole = "".join(client.stream_chat(model="demo", messages=HELLO, sim=sim(tokens=20)))
    assert whole == text(7, 20)


# -- the process under load ----------------------------------------------------------------------------


def test_reader_that_stops_does_not_make_the_process_grow(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text("[streams]\nlog_bytes = 1048576\n")
    request = json.dumps(body(tokens=400_000)).encode()  # an answer of about 100 MB
    with serve("--config", "holdfast.toml", cwd=tmp_path) as server, socket.socket() as blocked:
        with streaming(server.url, tokens=2_000) as (_, lines):
            assert contents(lines) == text(7, 2_000)
        before = server.resident
        blocked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        blocked.connect(("127.0.0.1", server.port))
        blocked.sendall(head_of(request) + request)
        found = re.search(rb"holdfast-stream-id: (\S+)", blocked.recv(2048))
        assert found is not None
        # Meanwhile others are served as ever: far longer than an answer of that size takes.
        with streaming(server.url, tokens=300, interval_ms=5) as (_, lines):
            assert contents(lines) == text(7, 300)
        grown = server.resident - before
        running = httpx.delete(f"{server.url}/v1/streams/{found[1].decode()}", trust_env=False).json()
    assert running["status"] == "cancelled"
    assert grown < 24 * 1024 * 1024


def test_clients_that_leave_right_behind_their_request_leave_nothing(tmp_path: Path) -> None:
    """Also where request and end of the connection are seen in one turn of the loop."""
    with Server("simulate", "--port", "0", cwd=tmp_path, last_line="Ctrl-C") as provider:
        (tmp_path / "holdfast.toml").write_text(
            f'[providers.sim]\nbase_url = "{provider.url}/v1"\n[models.demo]\nroute = ["sim/demo"]\n'
        )
        gateway_folder = tmp_path / "gateway"
        gateway_folder.mkdir()
        with serve("--config", "../holdfast.toml", cwd=gateway_folder) as server:
            with streaming(server.url, tokens=1) as (_, lines):
                contents(lines)
            before = server.descriptors
            for whole in (True, False):
                request = json.dumps(body(tokens=1_000_000, interval_ms=5) | {"stream": not whole}).encode()
                for _ in range(50):
                    with socket.create_connection(("127.0.0.1", server.port)) as client:
                        client.sendall(head_of(request) + request)
            deadline = time.monotonic() + DEADLINE
            with httpx.Client(trust_env=False) as client:
                while True:
                    statistics = client.get(f"{provider.url}/stats").json()
                    if statistics["streaming"] == 0 and server.descriptors <= before + 3:
                        break
                    assert time.monotonic() < deadline, (statistics, server.descriptors, before)
                # What is listed as running would be in the way of a drain.
                status, seconds = server.stop()
    assert status == 0
    assert seconds < 2


# -- the listener's WebSocket --------------------------------------------------------------------------


def test_echo_server_of_the_gateways_listener_passes_the_conformance_suite(tmp_path: Path) -> None:
    """Its codec is put through all of it elsewhere; here it is about the way to and from the sockets."""
    command = f"{sys.executable} {ROOT / 'tests' / 'conformance' / 'echo_gateway.py'}"
    selected = "in_one_write or handshake or vanish"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selected, "tests/conformance"],
        cwd=ROOT,
        env=environment(HOLDFAST_ECHO_COMMAND=command),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "passed" in result.stdout
    assert "failed" not in result.stdout
