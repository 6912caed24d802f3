"""`holdfast simulate` as a process."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import ssl
import sys
from argparse import Namespace
from pathlib import Path
from signal import Signals

import httpx
import pytest

from holdfast_tools.simulate import certificate as certificates
from holdfast_tools.simulate.command import add_arguments, run
from holdfast_tools.simulate.text import text
from tests.support.simulate_client import chat_body, contents

SCRIPT = """
import argparse, sys
from holdfast_tools.simulate import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
sys.exit(command.run(parser.parse_args()))
"""


class Served:
    """A running `holdfast simulate`."""

    def __init__(self, *options: str) -> None:
        self.options = options

    async def __aenter__(self) -> Served:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SCRIPT, "--port", "0", *self.options, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(20):
            found = re.search(r"https?://\S+/v1", (await self.line()).decode())
        assert found is not None
        self.base_url = found.group()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()

    async def stop(self, number: Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(10):
            return await self.process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_process_serves_until_a_signal_even_with_a_stream_running(number: Signals) -> None:
    async with Served() as served, httpx.AsyncClient() as client:
        url = f"{served.base_url}/chat/completions"
        assert contents((await client.post(url, json=chat_body({"tokens": 9}))).content) == text(7, 9)
        async with client.stream("POST", url, json=chat_body({"tokens": 999, "interval_ms": 50})) as answer:
            assert answer.status_code == 200
            assert await served.stop(number) == 0


async def test_example_that_is_printed_works() -> None:
    async with Served("--model", "m1", "--model", "m2") as served:
        printed = b""
        while b"stop: Ctrl-C" not in printed:
            printed += await served.line()
        command = printed.decode().split("try:\n")[1].split("counts:")[0]
        curl = await asyncio.create_subprocess_shell(
            f"{command.strip()}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await curl.communicate()
        if curl.returncode == 127:
            pytest.skip("curl is not installed")
        assert contents(out) == text(7, 20)
        async with httpx.AsyncClient() as client:
            models = (await client.get(f"{served.base_url}/models")).json()
        assert [model["id"] for model in models["data"]] == ["m1", "m2"]


async def test_self_signed_certificate_is_written_and_can_be_trusted(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    async with Served("--tls-self-signed", str(path), "--http1-only") as served:
        context = ssl.create_default_context(cafile=path)
        async with httpx.AsyncClient(verify=context, http2=True) as client:
            answer = await client.post(f"{served.base_url}/chat/completions", json=chat_body({"tokens": 9}))
    assert (answer.http_version, contents(answer.content)) == ("HTTP/1.1", text(7, 9))


async def test_certificate_from_files_and_faults_from_options(tmp_path: Path) -> None:
    certificate, key = certificates.self_signed()
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    options = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    options += ["--random-failures", '{"status":{"429":1.0}}']
    options += ["--connection-fault", '{"kind":"settings","max_concurrent_streams":5}']
    async with Served(*options) as served:
        context = ssl.create_default_context(cadata=certificate.decode())
        async with httpx.AsyncClient(verify=context, http2=True) as client:
            answer = await client.post(f"{served.base_url}/chat/completions", json=chat_body({"tokens": 9}))
            stats = (await client.get(served.base_url.removesuffix("/v1") + "/stats")).json()
    assert (answer.http_version, answer.status_code) == ("HTTP/2", 429)
    assert stats["connection_faults"] == {"settings": 1}


def parsed(*options: str) -> Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--port", "0", *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-key", "k"], "--tls-key needs --tls-cert"),
        (["--tls-cert", "/nowhere.pem"], "--tls-cert /nowhere.pem"),
        (["--tls-cert", "x", "--tls-self-signed"], "either"),
        (["--connection-fault", '{"kind":"x"}'], "--connection-fault"),
        (["--random-failures", "{"], "--random-failures"),
    ],
)
def test_option_that_cannot_be_used_is_explained(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(parsed(*options)) == 2
    assert message in capsys.readouterr().err


def test_self_signed_without_cryptography_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("holdfast_tools.simulate.certificate")
    monkeypatch.setitem(sys.modules, "holdfast_tools.simulate.certificate", None)
    assert run(parsed("--tls-self-signed")) == 2
    assert "pip install cryptography" in capsys.readouterr().err


def test_address_that_cannot_be_bound_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parsed("--host", "203.0.113.1")) == 1
    assert "cannot listen on 203.0.113.1" in capsys.readouterr().err


async def test_log_has_a_line_for_each_completion_that_begins_ends_or_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    refusal = {"tokens": 3, "fault": {"kind": "status", "status": 503, "times": 1}}
    async with Served("--log", str(log)) as served, httpx.AsyncClient() as client:
        url = f"{served.base_url}/chat/completions"
        for _ in range(2):
            await client.post(url, json={**chat_body(refusal), "user": "one"}, headers={"x-request-id": "r"})
        assert await served.stop(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    times = [line.pop("at") for line in lines]
    assert times == sorted(times)
    assert lines == [
        {"event": "refused", "number": 1, "key": "one", "request_id": "r", "fault": "status"},
        {"event": "began", "number": 2, "key": "one", "request_id": "r"},
        {"event": "ended", "number": 2, "key": "one", "outcome": "completed", "tokens": 3},
    ]


async def test_log_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    served = Served("--log", str(tmp_path / "absent" / "log"))
    served.process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, "--port", "0", *served.options, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        _, stderr = await served.process.communicate()
    assert served.process.returncode == 2
    assert stderr.startswith(b"holdfast simulate: --log ")
