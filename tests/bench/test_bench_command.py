"""`holdfast bench` against a real gateway with the simulated provider, and what it says where it cannot."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import socket
from pathlib import Path

import msgspec
import pytest

from holdfast.cli import main
from holdfast.config.auth import KeyConfig
from holdfast_tools.bench import command
from holdfast_tools.bench.plan import Pace, Plan
from holdfast_tools.bench.tally import Tally
from holdfast_tools.bench.workers import started
from tests.support.gateway_path import GatewayPath, MakePath

KEY = "hf_" + "k" * 40
SHORT = ["--seconds", "0.3", "--streams", "6", "--tokens", "5", "--rate", "1000"]


async def bench(*arguments: str) -> int:
    """Run the command in a thread: the gateway that it measures runs in this one."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(arguments)
    return await asyncio.to_thread(command.run, args)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_API_KEY", raising=False)


@pytest.mark.parametrize(
    "how",
    [
        ("--transport", "ws"),
        ("--transport", "ws", "--sockets", "2"),
        ("--transport", "sse"),
        ("--transport", "long-poll"),
        ("--transport", "short-poll", "--poll-interval", "0.02"),
        ("--transport", "ws", "--sockets", "2", "--processes", "2"),
    ],
    ids=lambda how: "-".join(how[1:]),
)
async def test_every_token_is_checked_by_each_transport(
    path: GatewayPath, capsys: pytest.CaptureFixture[str], tmp_path: Path, how: tuple[str, ...]
) -> None:
    file = tmp_path / "out.json"
    assert await bench("--url", f"{path.url}/v1", *SHORT, *how, "--json", str(file)) == 0
    record = json.loads(file.read_text())
    assert record["is_well"]
    assert (record["failed"], record["faults"], record["errors"]) == (0, {}, [])
    assert record["tokens"] >= 6
    assert len(record["windows"]["tokens/s"]) == 3
    out = capsys.readouterr().out
    assert f"every one of {record['tokens']} tokens arrived exactly once and in order" in out


async def test_model_that_is_not_simulated_is_checked_by_numbers(
    path: GatewayPath, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await bench("--url", f"{path.url}/v1", *SHORT, "--no-simulated") == 0
    assert "every sequence number exactly once" in capsys.readouterr().out


async def test_key_comes_from_the_environment_and_goes_nowhere_else(
    make_path: MakePath, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    path = await make_path(keys={"bench": KeyConfig(hash=f"sha256:{digest}")})
    monkeypatch.setenv("BENCH_KEY", KEY)
    file = tmp_path / "out.json"
    url = f"{path.url}/v1"
    assert await bench("--url", url, *SHORT, "--api-key-env", "BENCH_KEY", "--json", str(file)) == 0
    assert KEY not in file.read_text() + "".join(capsys.readouterr())
    assert await bench("--url", url, *SHORT) == 1
    error = capsys.readouterr().err
    assert "401" in error
    assert "--api-key-env" in error


async def test_unknown_model_is_named_with_those_that_there_are(
    path: GatewayPath, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await bench("--url", f"{path.url}/v1", *SHORT, "--model", "gpt-9") == 1
    assert "no model 'gpt-9'; it has demo" in capsys.readouterr().err


def test_nobody_listening_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as sock:  # bound, and never listening
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        assert main(["bench", "--url", url]) == 1
    assert f"cannot connect to {url}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--url", "127.0.0.1:8080"], "--url"),
        (["--transport", "sse", "--sockets", "2"], "--sockets"),
        (["--tokens", "3000000"], "--tokens"),
        (["--api-key-env", "NOT_SET_AT_ALL"], "NOT_SET_AT_ALL"),
    ],
)
def test_option_that_cannot_be_used_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["bench", *arguments]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--streams", "0"], ["--seconds", "0"], ["--rate", "inf"]])
def test_number_out_of_range_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *arguments])
    assert arguments[0] in capsys.readouterr().err


async def test_refused_stream_is_a_failure_with_its_reason(
    make_path: MakePath, capsys: pytest.CaptureFixture[str]
) -> None:
    path = await make_path(provider={"retry_budget": {"ratio": 0, "floor": 0}})
    await path.provider.aclose()
    assert await bench("--url", f"{path.url}/v1", *SHORT, "--transport", "sse") == 1
    assert "upstream_connect_error" in capsys.readouterr().err


async def test_fresh_connections_and_the_prompt_steer_the_provider(path: GatewayPath) -> None:
    plan = Plan(
        url=f"{path.url}/v1",
        streams=3,
        tokens=3,
        pace=Pace(interval_ms=1, ttft_ms=1),
        fresh=True,
        steer_by="prompt",
    )
    for transport in ("ws", "sse", "long-poll"):
        total = await asyncio.to_thread(counted, msgspec.structs.replace(plan, transport=transport))
        assert (total.faults, total.failed) == ({}, 0)
        assert total.answers >= 1
        assert total.opened > 3  # each answer had a connection of its own


def counted(plan: Plan) -> Tally:
    with started(plan) as workers:
        total = workers.wait_until_ready()
        for tally in workers.windows(2, 0.15):
            total.merge(tally)
    return total
