"""What a new configuration changes in a running gateway, what it leaves alone, and what it may not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.app import Gateway
from holdfast.config import Config, load
from holdfast.errors import ConfigError
from holdfast.reload import ConfigFile
from holdfast_tools.simulate.server import SimulatedProvider
from tests.support.gateway_client import Response, Session, answer, ask, chat, content
from tests.support.waiting import eventually


@pytest.fixture
async def providers() -> AsyncIterator[list[SimulatedProvider]]:
    """Two simulated providers."""
    made = [SimulatedProvider(), SimulatedProvider()]
    for provider in made:
        await provider.start()
    yield made
    for provider in made:
        await provider.aclose()


def text(provider: SimulatedProvider, *, server: str = "", rest: str = "", model: str = "demo") -> str:
    return f"""
[server]
port = 0
{server}
[providers.sim]
base_url = "{provider.base_url}"
[models.{model}]
route = ["sim/demo"]
{rest}
"""


class Running:
    """A gateway that follows a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = ConfigFile(path, lambda: load(path))
        self.gateway = Gateway(load(path))

    @property
    def url(self) -> str:
        return self.gateway.url

    def write(self, config: str) -> None:
        replacement = self.path.with_suffix(".new")
        replacement.write_text(config)
        replacement.replace(self.path)

    def reload(self, config: str) -> None:
        self.write(config)
        self.file.reload(self.gateway)


@pytest.fixture
async def running(providers: list[SimulatedProvider], tmp_path: Path) -> AsyncIterator[Running]:
    path = tmp_path / "holdfast.toml"
    path.write_text(text(providers[0]))
    running = Running(path)
    await running.gateway.start()
    yield running
    running.file.close()
    await running.gateway.aclose()


async def whole_answer(url: str, model: str = "demo") -> Response:
    return await ask(url, "POST", "/v1/chat/completions", chat({"tokens": 5}, stream=False, model=model))


async def test_new_provider_serves_new_requests_while_running_streams_end_on_the_old_one(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    old, new = providers
    async with await Session.open(running.url) as session:
        await session.create("old", chat({"tokens": 100, "interval_ms": 5}))
        entries = await session.entries(1)
        running.reload(text(new))
        assert (await whole_answer(running.url)).status == 200
        assert (old.statistics().requests, new.statistics().requests) == (1, 1)
        rest, end = await session.read(start=len(entries))
        assert (content(entries + rest), end["status"]) == (answer(100), "completed")
    await eventually(lambda: old.statistics().open_connections == 0)  # the pool of the old one is closed
    assert [provider.provider for provider in running.gateway.pool_statistics()] == ["sim"]


async def test_unchanged_provider_keeps_its_connections(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    assert (await whole_answer(running.url)).status == 200
    before = running.gateway.pool_statistics()[0].pool.connects
    running.reload(text(providers[0], server="ping_interval = 5.0"))
    assert (await whole_answer(running.url)).status == 200
    assert running.gateway.pool_statistics()[0].pool.connects == before == 1


async def test_models_come_and_go(running: Running, providers: list[SimulatedProvider]) -> None:
    running.reload(text(providers[0], model="other"))
    assert (await whole_answer(running.url, "other")).status == 200
    refused = await whole_answer(running.url)
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")


async def test_new_connection_is_told_new_intervals_and_an_old_one_stays(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    async with await Session.open(running.url) as before:
        running.reload(text(providers[0], server="ping_interval = 5.0\nmax_body = 2048"))
        async with await Session.open(running.url) as after:
            assert after.welcome["heartbeat"]["interval_ms"] == 5000
            assert after.welcome["limits"]["max_message"] == 2048
        await before.create("still", chat({"tokens": 3}))
        assert (await before.read())[1]["status"] == "completed"
    assert (await ask(running.url, "POST", "/v1/chat/completions", b"x" * 4000)).status == 413


async def test_limits_apply_to_the_next_request(running: Running, providers: list[SimulatedProvider]) -> None:
    running.reload(text(providers[0], rest="[limits]\nrequests_per_minute = 1"))
    assert (await whole_answer(running.url)).status == 200
    assert (await whole_answer(running.url)).status == 429


async def test_removed_key_ends_its_session(tmp_path: Path, providers: list[SimulatedProvider]) -> None:
    def keys(*names: str) -> str:
        tables = [f'[keys.{n}]\nhash = "sha256:{hashlib.sha256(n.encode()).hexdigest()}"' for n in names]
        return text(providers[0], rest="\n".join(tables))

    path = tmp_path / "holdfast.toml"
    path.write_text(keys("one", "two"))
    running = Running(path)
    await running.gateway.start()
    try:
        headers = {"additional_headers": {"authorization": "Bearer one"}}
        async with await Session.open(running.url, **headers) as session:
            running.reload(keys("two", "three"))
            assert (await session.closed())[0] == 4401
        assert (await ask(running.url, "GET", "/v1/models", authorization="Bearer one")).status == 401
        assert (await ask(running.url, "GET", "/v1/models", authorization="Bearer three")).status == 200
        running.reload(text(providers[0]))  # would let everybody in
        assert (await ask(running.url, "GET", "/v1/models")).status == 401
    finally:
        await running.gateway.aclose()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("[server]\nport = 'high'", "server.port"),
        ("nonsense", "not valid TOML"),
        ("[server]\nport = 0\n", "models"),
        ("[server]\nport = 0\n[models.a]\nroute = ['none/a']", "there is no provider"),
        (
            "[server]\nport = 0\n[providers.a]\nbase_url = 'https://a/v1'\nca_file = '/nowhere.pem'\n"
            "[models.a]\nroute = ['a/a']",
            "/nowhere.pem",
        ),
    ],
)
async def test_invalid_file_is_refused_and_the_old_one_kept(
    running: Running, caplog: pytest.LogCaptureFixture, config: str, says: str
) -> None:
    before = running.gateway.config
    running.reload(config)
    assert running.gateway.config is before
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "the old one stays" in record.getMessage()
    assert says in record.getMessage()
    assert (await whole_answer(running.url)).status == 200


async def test_what_only_a_start_can_change_is_said_and_stays(
    running: Running, providers: list[SimulatedProvider], caplog: pytest.LogCaptureFixture
) -> None:
    port = running.gateway.port
    running.reload(text(providers[0]).replace("port = 0", "port = 1\nhost = '127.0.0.2'"))
    assert (running.gateway.port, running.gateway.config.server.port) == (port, 0)
    said = caplog.text
    assert "server.port takes effect at the next start" in said
    assert "server.host takes effect at the next start" in said


async def test_changed_file_is_found_without_a_signal(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    running.file.follow(running.gateway, interval=0.05)
    running.write(text(providers[0], model="found"))
    await eventually(lambda: running.gateway.launcher.models == ["found"])


async def test_file_that_is_gone_for_a_moment_changes_nothing(
    running: Running, providers: list[SimulatedProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = running.file._signature, 0

    def counted() -> Any:
        nonlocal looks
        looks += 1
        return look()

    running.file.follow(running.gateway, interval=0.05)
    running.path.unlink()
    monkeypatch.setattr(running.file, "_signature", counted)
    await eventually(lambda: looks == 2)  # at the second look the first has been dealt with
    assert running.gateway.launcher.models == ["demo"]
    running.write(text(providers[0], model="back"))
    await eventually(lambda: running.gateway.launcher.models == ["back"])


async def test_demo_can_be_replaced_by_configured_models(providers: list[SimulatedProvider]) -> None:
    gateway = Gateway(msgspec.convert({"server": {"port": 0}}, Config))
    await gateway.start()
    try:
        assert (await whole_answer(gateway.url)).status == 200
        gateway.reload(
            msgspec.convert(
                {"providers": {"a": {"base_url": providers[0].base_url}}, "models": {"m": {"route": ["a/demo"]}}},
                Config,
            )
        )
        assert (await whole_answer(gateway.url, "m")).status == 200
        with pytest.raises(ConfigError, match="demo needs a start of its own"):
            gateway.reload(Config())
    finally:
        await gateway.aclose()
