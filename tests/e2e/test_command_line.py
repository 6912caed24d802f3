"""Commands that check and make things, and what `serve` refuses to do."""

from __future__ import annotations

import re
import signal
import socket
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import httpx
import pytest

from holdfast.cli import main
from tests.support.command_line import COMMAND, Server, run, serve

GOOD = """
[providers.openai]
base_url = "https://api.openai.com/v1"
api_key = "env:PATH"
[models."gpt-4o"]
route = ["openai/gpt-4o"]
"""


WriteConfig = Callable[[str], str]


@pytest.fixture
def config(tmp_path: Path) -> WriteConfig:
    """Writes a configuration file."""

    def write(text: str) -> str:
        path = tmp_path / "holdfast.toml"
        path.write_text(text)
        return str(path)

    return write


def test_check_of_a_valid_file_says_what_is_in_it(config: WriteConfig) -> None:
    result = run("check", "--config", config(GOOD))
    assert (result.returncode, result.stderr) == (0, "")
    assert "valid" in result.stdout
    assert "1 providers, 1 models" in result.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server", ["not valid TOML"]),
        ('[server]\nport = "80"', ["server.port", "expected `int`"]),
        ("[sever]", ["sever", "no such key"]),
        (GOOD + '[providers.other]\nbase_url = "ftp://x"\n', ["providers.other.base_url", "http"]),
        (GOOD + "[models.m]\nroute = []\n", ["models.m.route"]),
        ("auth = 3\n", ["auth", "expected a table"]),
        ("providers = 3\n", ["providers", "expected a table"]),
        ('[providers]\nother = "x"\n', ["providers.other", "expected a table"]),
        ("[auth]\nadmin_key = 3\n", ["auth.admin_key", "expected `str"]),
        (GOOD.replace('"env:PATH"', "5"), ["providers.openai.api_key", "expected `str"]),
        (GOOD + "[providers.openai.headers]\nauthorization = 5\n", ["providers.openai.headers", "expected `str`"]),
        (GOOD + '[server]\ntls_cert = "cert.pem"\n', ["server.tls_cert", "server.tls_key"]),
        ("[server]\nprot = 80", ["server.prot", "no such key"]),
        (GOOD + "[streams]\nmemory_bytes = 1000000\n", ["streams.memory_bytes", "server.memory_bytes"]),
        (GOOD + "[server]\nmemory_bytes = 1000000\n", ["server.memory_bytes", "server.max_body", "33554432"]),
        (GOOD + "[providers.other]\n", ["providers.other", "base_url"]),
        (GOOD + '[models.m]\nroute = ["nobody/m"]\n', ["models.m.route[0]", "nobody", "openai"]),
        (GOOD.replace("env:PATH", "env:HOLDFAST_NO_SUCH"), ["providers.openai.api_key", "HOLDFAST_NO_SUCH"]),
        (GOOD + '[keys.web]\nhash = "secret-key"\n', ["keys.web.hash", "holdfast keys create"]),
        (GOOD + '[server]\nhost = "0.0.0.0"\n', ["server.host", "holdfast keys create"]),
    ],
)
def test_check_of_a_wrong_file_names_file_key_and_what_is_right(
    config: WriteConfig, capsys: pytest.CaptureFixture[str], text: str, says: list[str]
) -> None:
    """In this process, because there are many."""
    path = config(text)
    assert main(["check", "--config", path]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = [line for line in output.err.splitlines() if not line.startswith("holdfast: warning: ")]
    assert re.match(rf"holdfast: {re.escape(path)}(:[0-9]+)?: ", line)
    for part in says:
        assert part in line
    assert "secret-key" not in output.err


def test_check_tells_every_error_at_once_with_its_line(
    config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(
        '[sever]\n[server]\nport = 99999\ntls_cert = "nowhere.pem"\ntls_key = "nowhere.key"\n'
        '[models.gpt-4.1]\nroute = ["a/x"]\n'
        '[models.m]\nroute = [\n  "nobody/m",\n]\n[logging]\nlevel = "verbose"\n'
    )
    assert main(["check", "--config", path]) == 2
    lines = [line.removeprefix(f"holdfast: {path}:") for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "1: sever: there is no such key; did you mean `server`?",
        "3: server.port: expected `int` <= 65535",
        "4: server.tls_cert: nowhere.pem cannot be read: No such file or directory",
        "5: server.tls_key: nowhere.key cannot be read: No such file or directory",
        '6: models.gpt-4.1: there is no such key; a name with a dot is quoted: [models."gpt-4.1"]',
        "9: models.m.route[0]: there is no provider 'nobody' (none is configured)",
        "13: logging.level: expected one of debug, info, warning, error; got 'verbose'",
    ]


def test_warnings_fail_a_strict_check_alone(config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(GOOD + "[limits.tenants.nobody]\nconnections = 1\n")
    assert main(["check", "--config", path]) == 0
    output = capsys.readouterr()
    assert "valid" in output.out
    assert output.err == f"holdfast: warning: {path}:7: limits.tenants.nobody: there is no tenant of that name\n"
    assert main(["check", "--strict", "--config", path]) == 2
    assert capsys.readouterr() == ("", output.err)
    assert main(["check", "--strict", "--config", config(GOOD)]) == 0


def test_serve_says_the_warnings_of_check_in_its_log(config: WriteConfig, tmp_path: Path) -> None:
    with serve("--config", config("[limits.tenants.nobody]\nconnections = 1\n"), cwd=tmp_path) as server:
        server.stop(signal.SIGINT)
        assert "limits.tenants.nobody: there is no tenant of that name" in server.errors


@pytest.mark.parametrize("port", ["70000", "-1", "http", "65536"])
def test_port_beyond_the_range_is_wrong_usage(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--port", port])
    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_serve_refuses_a_wrong_file_in_the_words_of_check(config: WriteConfig) -> None:
    path = config("[server]\nport = 99999")
    checked, served = run("check", "--config", path), run("serve", "--port", "0", "--config", path)
    assert "server.port" in served.stderr
    assert (served.returncode, served.stdout, served.stderr) == (2, "", checked.stderr)


def test_check_refuses_a_file_that_is_too_large_for_serve(config: WriteConfig) -> None:
    path = config("#" * 2**20 + "\n")
    for command in ("check", "serve"):
        result = run(command, "--config", path)
        assert (result.returncode, result.stdout) == (2, "")
        assert "is larger than 1048576 bytes" in result.stderr


def test_check_of_a_file_that_is_not_there_says_so() -> None:
    result = run("check", "--config", "nowhere.toml")
    assert result.returncode == 2
    assert "nowhere.toml: cannot be read: No such file" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["serve", "--prot", "1"]])
def test_wrong_usage_exits_with_2_and_the_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: holdfast" in result.stderr


def test_key_that_was_created_opens_the_gateway_that_has_its_hash(config: WriteConfig, tmp_path: Path) -> None:
    result = run("keys", "create", "app")
    assert result.returncode == 0
    key = result.stdout.strip()
    assert re.fullmatch(r"hf_[A-Za-z0-9_-]{43}", key)
    snippet = result.stderr[result.stderr.index("[keys.app]") :]
    assert key not in result.stderr
    assert set(tomllib.loads(snippet)["keys"]) == {"app"}
    with serve("--config", config(snippet), cwd=tmp_path) as server, httpx.Client(trust_env=False) as client:
        assert client.get(f"{server.url}/v1/models").status_code == 401
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            assert client.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_key_of_an_impossible_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "a.b]"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "letters, digits" in output.err


def test_serve_refuses_an_open_address_without_keys() -> None:
    result = run("serve", "--port", "0", "--host", "0.0.0.0")
    assert (result.returncode, result.stdout) == (2, "")
    assert "server.host: is '0.0.0.0', but there are no [keys]" in result.stderr
    assert "holdfast keys create" in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_takes_an_open_address_with_keys(config: WriteConfig, tmp_path: Path) -> None:
    snippet = run("keys", "create").stderr.partition("[keys.")[2]
    with serve("--host", "0.0.0.0", "--config", config(f"[keys.{snippet}"), cwd=tmp_path) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200


def test_serve_on_a_port_in_use_says_so() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run("serve", "--port", str(port))
    assert (result.returncode, result.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "another process" in result.stderr
    assert "--port 0" in result.stderr
    assert "Traceback" not in result.stderr


def test_simulate_serves_what_its_greeting_says_and_stops(tmp_path: Path) -> None:
    with Server("simulate", "--port", "0", cwd=tmp_path, last_line="Ctrl-C") as server:
        models = httpx.get(f"{server.url}/v1/models", trust_env=False).json()
        assert [model["id"] for model in models["data"]] == ["demo"]
        status, seconds = server.stop(signal.SIGINT)
    assert status in (0, 130)
    assert seconds < 2


def test_command_is_the_one_of_this_environment() -> None:
    assert Path(COMMAND[0]).exists()


def test_command_that_cannot_be_loaded_says_why_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("broken", "no_such_module", "holdfast.commands")
    monkeypatch.setattr("holdfast.cli.entry_points", lambda *, group: [*entry_points(group=group), broken])
    assert main(["broken", "--any", "option"]) == 2
    assert capsys.readouterr().err == "holdfast broken cannot be loaded: No module named 'no_such_module'\n"
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "--help"])
    assert caught.value.code == 0
