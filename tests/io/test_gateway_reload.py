"""What a new configuration changes in a running gateway, what it leaves alone, and what it may not."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.admission.keys import create_key
from holdfast.app import Gateway
from holdfast.config import Config, parse
from holdfast.errors import ConfigError
from holdfast.reload import ConfigFile
from holdfast_tools.simulate.certificate import self_signed
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


class Clock:
    """Unix seconds that a test moves on."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Running:
    """A gateway that follows a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = ConfigFile(path, lambda text: parse(text, source=str(path)))
        self.gateway = Gateway(self.file.load())
        self.now = 0.0

    async def start(self) -> None:
        await self.gateway.start()
        self.file.attach(self.gateway)

    @property
    def url(self) -> str:
        return self.gateway.url

    def write(self, config: str) -> None:
        replacement = self.path.with_suffix(".new")
        replacement.write_text(config)
        replacement.replace(self.path)

    def look(self, after: float = 1.0) -> None:
        """Look at the file, so many seconds after the last look."""
        self.now += after
        self.file.look(self.gateway, self.now)

    def reload(self, config: str) -> None:
        """Replace the file, and say so by SIGHUP, in effect."""
        self.write(config)
        self.file.ask()
        self.look()
        self.look()


@pytest.fixture
async def running(providers: list[SimulatedProvider], tmp_path: Path) -> AsyncIterator[Running]:
    path = tmp_path / "holdfast.toml"
    path.write_text(text(providers[0]))
    running = Running(path)
    await running.start()
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
    await running.start()
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


async def test_keys_are_not_given_up_for_callers_that_only_a_start_lets_in(
    tmp_path: Path, providers: list[SimulatedProvider], caplog: pytest.LogCaptureFixture
) -> None:
    """Else the gateway would run with neither, and take only what this machine may send."""
    key, hashed = create_key()
    path = tmp_path / "holdfast.toml"
    path.write_text(text(providers[0], rest=f'[keys.web]\nhash = "{hashed}"\n'))
    running = Running(path)
    await running.start()
    headers = {"authorization": f"Bearer {key}", "host": "gateway.example"}
    try:
        running.reload(text(providers[0], rest=f'[keys]\n[auth]\nkey_store = "{tmp_path / "keys.db"}"\n'))
        assert "only at its start" in caplog.text
        assert (await ask(running.url, "GET", "/v1/models", **headers)).status == 200
    finally:
        await running.gateway.aclose()


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
    running: Running, providers: list[SimulatedProvider]
) -> None:
    running.path.unlink()
    running.look()
    assert (running.gateway.launcher.models, running.gateway.freshness.is_stale) == (["demo"], False)
    running.write(text(providers[0], model="back"))
    running.look()
    running.look()
    assert running.gateway.launcher.models == ["back"]


async def test_file_that_is_gone_for_good_is_told_and_coming_back_ends_that(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    old = running.path.read_text()
    running.path.unlink()
    running.look()
    running.look()
    ready = await ask(running.url, "GET", "/readyz")
    state = ready.json()["sources"]["configuration"]
    assert (ready.status, ready.json()["stale"], state["reason"]) == (200, True, "unreadable")
    running.write(old)
    running.look()
    running.look()
    assert (await ask(running.url, "GET", "/readyz")).json()["stale"] is False


async def test_file_that_is_being_written_is_not_taken_though_its_beginning_is_valid(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    limited = text(providers[0], rest="[limits]\nrequests_per_minute = 1\n")
    running.reload(limited)
    new = limited.replace("[server]", "[server]\nmax_body = 4096")
    cut = new.index("[limits]")
    running.path.write_text(new[:cut])  # in place, and then the writer pauses
    running.look()
    running.look()
    running.look()
    assert running.gateway.config.limits.requests_per_minute == 1
    assert (await whole_answer(running.url)).status == 200
    assert (await whole_answer(running.url)).status == 429
    running.path.write_text(new)
    running.look()
    running.look()
    assert running.gateway.config.server.max_body == 4096
    assert running.gateway.config.limits.requests_per_minute == 1


async def test_file_written_in_pieces_at_any_byte_leaves_the_old_or_the_new_in_force_whole(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    """The writer pauses for longer than the file has to be at rest, at each byte."""
    rest = "[limits]\nrequests_per_minute = {0}\n[limits.tenant]\ntokens_per_minute = {0}\n"
    rest += "[queue]\ndeadline = {0}.5\n"
    texts = [text(providers[0], rest=rest.format(n)) for n in (771, 992)]
    whole = [parse(one) for one in texts]
    running.reload(texts[0])
    gateway = running.gateway
    for cut in range(len(texts[1])):
        old, new = whole[cut % 2], texts[(cut + 1) % 2]
        running.path.write_text(new[:cut])
        running.look()
        running.look()
        config = gateway.config
        in_force = gateway.admission.limiter.accounts("t", None, 0.0)
        assert config.limits in (old.limits, parse(new).limits)
        assert config in (old, parse(texts[0]), parse(texts[1])) or config == parse(new[:cut])
        key, tenant = in_force
        assert key.requests is not None
        assert tenant.tokens is not None
        assert (key.requests.limit, tenant.tokens.limit) == (
            config.limits.requests_per_minute,
            config.limits.tenant.tokens_per_minute,
        )
        assert gateway.admission.queue.timeout == config.queue.deadline
        running.path.write_text(new)
        running.look()
        running.look()
        assert gateway.config == parse(new)
    assert (await whole_answer(running.url)).status == 200


def edited(text: str, rng: random.Random) -> str:
    """Cut a line out, write another digit, or put anything in place of anything."""
    kind = rng.randrange(3)
    if kind == 0:
        lines = text.splitlines(keepends=True)
        del lines[rng.randrange(len(lines))]
        return "".join(lines)
    if kind == 1:
        digits = [index for index, char in enumerate(text) if char.isdigit()]
        place = rng.choice(digits)
        return text[:place] + rng.choice("0123456789") + text[place + 1 :]
    start, length = rng.randrange(len(text)), rng.randrange(40)
    put = "".join(rng.choices("[]=.\"'\n #0123456789abcmodelimts", k=rng.randrange(6)))
    return text[:start] + put + text[start + length :]


async def test_file_edited_at_random_leaves_the_old_or_the_new_in_force_with_every_limit(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    rng = random.Random(7)
    rest = "[limits]\nrequests_per_minute = 500\nconnections = 50\n[limits.tenant]\ntokens_per_minute = 70000\n"
    base = text(providers[0], rest=rest, server="ping_interval = 5.0")
    running.reload(base)
    gateway = running.gateway
    taken = 0
    for _ in range(150):
        before, new = gateway.config, base
        for _ in range(rng.randint(1, 3)):
            new = edited(new, rng)
        running.path.write_text(new)
        running.look()
        running.look()
        if gateway.config is not before:
            taken += 1
            read = parse(new)
            assert msgspec.structs.replace(read, server=gateway.config.server) == gateway.config
            assert set(gateway.launcher.models) == set(read.models)
        key, tenant = gateway.admission.limiter.accounts("t", None, 0.0)
        assert None not in (key.requests, tenant.tokens, key.connections.limit)
        assert gateway.freshness.is_stale == (running.file._in_use is None or running.file._in_use[0] != new)
    assert taken > 10
    assert (await ask(running.url, "GET", "/healthz")).status == 200


async def test_refused_file_is_told_to_probes_and_said_again_each_minute(
    running: Running, providers: list[SimulatedProvider], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    good = running.path.read_text()
    version = (await ask(running.url, "GET", "/readyz")).json()["sources"]["configuration"]["version"]
    assert version == hashlib.sha256(good.encode()).hexdigest()[:12]
    clock = Clock()
    running.file._clock = clock
    missing = tmp_path / "authority.pem"
    bad = text(providers[0], rest=f"[providers.b]\nbase_url = 'https://b.example/v1'\nca_file = '{missing}'\n")
    running.write(bad)

    def errors() -> int:
        return len([record for record in caplog.records if record.levelno == logging.ERROR])

    running.look()
    running.look()
    ready = await ask(running.url, "GET", "/readyz")
    state = ready.json()["sources"]["configuration"]
    assert (ready.status, ready.json()["status"], ready.json()["stale"]) == (200, "ready", True)
    assert (state["stale"], state["reason"], state["version"]) == (True, "refused", version)
    assert str(missing) not in ready.body.decode()
    assert errors() == 1
    for _ in range(30):
        running.look()
    assert errors() == 1
    clock.now += 61
    running.look(61)
    assert errors() == 2
    missing.write_bytes(self_signed()[0])
    running.look(61)
    assert running.gateway.config.providers.keys() == {"sim", "b"}
    assert (await ask(running.url, "GET", "/readyz")).json()["stale"] is False


async def test_log_and_audit_say_what_has_changed_without_secrets(
    running: Running, providers: list[SimulatedProvider], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running.reload(text(providers[0], server="ping_interval = 5.0"))
    new = text(providers[0], server="ping_interval = 5.0").replace(
        "[models", 'api_key = "sk-very-secret"\n[models'
    )
    running.reload(new)
    assert "providers.sim.api_key changed" in caplog.text
    assert "secret" not in caplog.text
    lines = [record for record in caplog.records if record.name == "holdfast.audit"]
    assert [record.getMessage() for record in lines][-1] == "reload"
    fields = lines[-1].__dict__["fields"]
    assert (fields["outcome"], fields["cause"], fields["changes"]) == (
        "taken",
        "signal",
        "providers.sim.api_key changed",
    )


async def test_file_that_changes_between_the_looks_after_a_signal_is_told_and_taken_later(
    running: Running, providers: list[SimulatedProvider], caplog: pytest.LogCaptureFixture
) -> None:
    new = text(providers[0], model="new")
    running.file.ask()
    running.path.write_text(new[:-20])
    running.look()
    running.path.write_text(new)
    running.look()
    assert "is being written still" in caplog.text
    assert running.gateway.launcher.models == ["demo"]
    running.look()
    assert running.gateway.launcher.models == ["new"]


async def test_failing_look_is_survived_and_told(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(running.gateway, "reload", fail)
    running.path.write_text(running.path.read_text() + "[limits]\nrequests_per_minute = 3\n")
    running.look()
    running.look()
    assert running.gateway.freshness.is_stale
    assert "planted" in caplog.text
    monkeypatch.undo()
    running.look(61)
    assert running.gateway.config.limits.requests_per_minute == 3


async def test_nothing_of_a_configuration_is_used_where_one_of_its_files_fails(
    running: Running, providers: list[SimulatedProvider], tmp_path: Path
) -> None:
    gateway, process = running.gateway, running.gateway.process
    bad = tmp_path / "bad.pem"
    bad.write_text("garbage")
    before = (gateway.config, dict(process.routes), process.listener._limits, process.services.limits)
    for provider in (f"ca_file = '{bad}'", f"client_cert = '{bad}'", "proxy = 'http://:0'"):
        rest = (
            f"[providers.b]\nbase_url = 'https://b.example/v1'\n{provider}\n"
            "[models.b]\nroute = ['b/b']\n[limits]\nrequests_per_minute = 1\n"
        )
        running.reload(text(providers[0], server="max_body = 2048", rest=rest, model="other"))
        after = (gateway.config, dict(process.routes), process.listener._limits, process.services.limits)
        assert after == before
        assert gateway.admission.limiter.accounts("t", None, 0.0)[0].requests is None
    assert (await whole_answer(running.url)).status == 200


async def test_step_that_fails_halfway_is_taken_back(
    running: Running, providers: list[SimulatedProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, process = running.gateway, running.gateway.process

    def in_force() -> tuple[object, ...]:
        key, _ = gateway.admission.limiter.accounts("t", None, 0.0)
        services, queue = process.services, gateway.admission.queue
        rate = None if key.requests is None else key.requests.limit
        return gateway.config, process.config, process.listener._limits, services.limits, queue.timeout, rate

    rest = "[limits]\nrequests_per_minute = 5\n[queue]\ndeadline = 9.0\n"
    for owner in (gateway.directory, gateway.admission, gateway.access, gateway.peers, process.routes):
        before, routes, set_up = (
            in_force(),
            dict(process.routes),
            "replace" if owner is process.routes else "configure",
        )
        whole, calls = getattr(owner, set_up), 0

        def failing(*args: object, whole: Any = whole, **options: object) -> None:
            nonlocal calls
            calls += 1
            whole(*args, **options)
            if calls == 1:
                raise RuntimeError("planted")

        if owner is process.routes:

            def failing(*args: object, **options: object) -> None:  # type: ignore[misc]
                nonlocal calls
                calls += 1
                if calls == 1:
                    raise RuntimeError("planted")

        monkeypatch.setattr(owner, set_up, failing)
        running.reload(text(providers[0], server="max_body = 2048", rest=rest, model="other"))
        monkeypatch.undo()
        assert calls == 2
        assert in_force() == before
        assert dict(process.routes) == routes
    assert (await whole_answer(running.url)).status == 200


async def test_interval_beyond_what_the_kernel_takes_is_no_fault(
    running: Running, providers: list[SimulatedProvider]
) -> None:
    running.reload(text(providers[0], server="ping_interval = 1e9\nping_timeout = 1e9"))
    assert running.gateway.config.server.ping_interval == 1e9
    assert (await whole_answer(running.url)).status == 200


async def test_renewed_authority_of_a_provider_is_taken_from_its_file(
    running: Running, providers: list[SimulatedProvider], tmp_path: Path
) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_bytes(self_signed()[0])
    rest = (
        f"[providers.b]\nbase_url = 'https://b.example/v1'\nca_file = '{authority}'\n[models.b]\nroute = ['b/b']\n"
    )
    running.reload(text(providers[0], rest=rest))
    routes = running.gateway.process.routes
    before = routes["b"].targets[0].upstream
    unchanged = routes["demo"].targets[0].upstream
    running.look()
    running.look()
    assert routes["b"].targets[0].upstream is before
    authority.write_bytes(self_signed()[0])
    running.look()
    running.look()
    assert routes["b"].targets[0].upstream is not before
    assert routes["demo"].targets[0].upstream is unchanged


async def test_configuration_from_a_pipe_is_read_once(
    providers: list[SimulatedProvider], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    config = text(providers[0])
    writer = asyncio.create_task(asyncio.to_thread(path.write_text, config))
    file = ConfigFile(path, parse)
    gateway = Gateway(await asyncio.to_thread(file.load))
    await writer
    await gateway.start()
    try:
        file.attach(gateway)
        file.ask()
        for now in range(4):
            file.look(gateway, float(now))
        assert "no file that could be read again" in caplog.text
        assert not gateway.freshness.is_stale
        assert (await whole_answer(gateway.url)).status == 200
    finally:
        await gateway.aclose()


@pytest.mark.parametrize(("content", "says"), [(b"#" * 2_000_000, "larger than"), (b"\xff", "not UTF-8")])
def test_file_that_cannot_be_followed_is_refused_at_the_start(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        ConfigFile(path, parse).load()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ConfigFile(tmp_path / "none.toml", parse).load()


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
