"""What is wrong with a file: all of it, where it stands, and what would be right."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import Config, examine, parse, survey
from holdfast.config.lines import line_map, line_of
from holdfast.config.names import dotted
from holdfast.config.problems import MAX_SHOWN
from holdfast.errors import ConfigError

PROVIDER = '[providers.a]\nbase_url = "https://a.example/v1"\n{}\n[models.m]\nroute = ["a/x"]\n'


def errors(text: str, **environ: str) -> list[str]:
    """Return the lines of the refusal, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        parse(text, source="f", environ=environ)
    return [line.removeprefix("f:") for line in caught.value.message.split("\n")]


def warnings(text: str, **environ: str) -> list[str]:
    return [line.removeprefix("f:") for line in examine(text, source="f", environ=environ).warnings]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[provider.p]\n", "1: provider: there is no such key; did you mean `providers`?"),
        (
            "[server]\n[logging]\nformat = 'jsn'\n",
            "3: logging.format: expected one of console, json; got",
        ),
        ("providers = 3\n", "1: providers: expected a table"),
        ("[keys.web]\ntenant = 'a'\n", "1: keys.web: needs `hash`"),
        (
            "[models.gpt-4.1.mini]\nroute = ['a/b']\n",
            "1: models.gpt-4.1: there is no such key; a name with a dot is quo",
        ),
        ("[server]\nping_interval = nan\n", "2: server.ping_interval: expected a finite number, got nan"),
        (
            f"[server]\nmax_connections = {10**30}\n",
            "2: server.max_connections: expected a number of at most",
        ),
        ("[server]\nmax_body =\n", "2: is not valid TOML: "),
        ("[server]\ntls_key = 'k'\n", "2: server.tls_key: server.tls_cert and server.tls_key go together"),
        ("a = " + "[" * 5000 + "\n", " is not valid TOML: "),
        (
            '[auth]\nadmin_key = """' + "a" * 40 + '\n"""\n',
            "2: auth.admin_key: ends with a line end, so",
        ),
        (
            '[auth.jwt]\nissuer = "i"\naudience = "a"\njwks_url = "https://h:99999/x"\n',
            "4: auth.jwt.jwks_url: expected https://host/path",
        ),
    ],
)
def test_error_has_its_line_and_what_would_be_right(text: str, said: str) -> None:
    (line,) = errors(text)
    assert line.startswith(said), line


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('api_key = """sk-secret\n"""', "3: providers.a.api_key: ends with a line end"),
        ('api_key = " sk-secret"', "3: providers.a.api_key: begins or ends with a space"),
        ('api_key = "sk-\\u0000secret"', "3: providers.a.api_key: has a control character"),
        ('api_key = "env:KEY"', "3: providers.a.api_key: ends with a line end"),
        ('headers = { x = "secret\\r" }', "3: providers.a.headers.x: ends with a line end"),
        ('headers = { "x y" = "secret" }', '3: providers.a.headers."x y": is not the name of a header'),
        ('headers = { Content-Length = "3" }', "3: providers.a.headers.Content-Length: belongs to the connection"),
        ('proxy = "http://u:secret@h:99999"', "3: providers.a.proxy: expected http://"),
        ('probe = { path = "/a b" }', "3: providers.a.probe.path: expected a path in ASCII without spaces"),
        ("options = { stream_usage = 3 }", "3: providers.a.options.stream_usage: expected `bool`"),
        ("options = { stream_usge = true }", "3: providers.a.options.stream_usge: there is no such key"),
    ],
)
def test_value_that_can_never_work_is_refused_without_being_shown(setting: str, said: str) -> None:
    (line,) = errors(PROVIDER.format(setting), KEY="sk-secret\r\n")
    assert line.startswith(said), line
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example:99999/v1",
        "https://a.example/v1 ",
        "https://a.example/v 1",
        "https://a.example/v1\\n",
        "https://[::1/v1",
        "https://a.example:x/v1",
        "https://user:secret@a.example/v1",
        "ftp://a.example/v1",
        "https:///v1",
        "https://a..example/v1",
        f"https://{'a' * 64}.example/v1",
        "https://a.example/v1?key=secret",
    ],
)
def test_base_url_that_can_never_be_reached_is_refused(url: str) -> None:
    (line,) = errors(f'[providers.a]\nbase_url = "{url}"\n')
    assert line.startswith("2: providers.a.base_url: expected http(s)://host[:port]/path")
    assert "secret" not in line


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "127.0.0.1\\n"])
def test_host_that_can_never_be_listened_on_is_refused(host: str) -> None:
    (line,) = errors(f'[keys.web]\nhash = "sha256:{"1" * 64}"\n[server]\nhost = "{host}"\n')
    assert line.startswith("4: server.host: expected a name or an address")


def test_all_errors_are_told_in_the_order_of_the_file_and_what_follows_from_them_is_not() -> None:
    said = errors(
        '[models.m]\nroute = ["a/x", "c/x"]\n'  # a is there, though broken
        "[providers.a]\nhttp2 = 'never'\n"
        '[server]\nhost = "0.0.0.0"\nport = "80"\n'  # the keys are there, though broken
        '[keys.web]\nhash = 3\n[auth]\nadmin_key = "short"\ntoken_secret = "env:NOT_THERE"\n'
    )
    assert [line.partition(": ")[0] + " " + line.split(": ")[1] for line in said] == [
        "2 models.m.route[1]",
        "3 providers.a",
        "4 providers.a.http2",
        "7 server.port",
        "9 keys.web.hash",
        "11 auth.admin_key",
        "12 auth.token_secret",
    ]


def test_file_of_another_kind_is_not_told_line_by_line() -> None:
    said = errors("\n".join(f"key{n} = {n}" for n in range(MAX_SHOWN + 20)))
    assert len(said) == MAX_SHOWN + 1
    assert said[-1] == " and 20 more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            PROVIDER.format("[limits.keys.wbe]\nconnections = 1\n[keys.web]\nhash = 'H1'"),
            "3: limits.keys.wbe: there is no key",
        ),
        (
            PROVIDER.format("[limits.tenants.x]\nconnections = 1"),
            "3: limits.tenants.x: there is no",
        ),
        (
            PROVIDER.format("[keys.web]\nhash = 'H1'\nmodels = ['n', 'm']"),
            "5: keys.web.models[0]: there",
        ),
        (
            PROVIDER.format("[keys.a]\nhash = 'H1'\n[keys.b]\nhash = 'H1'"),
            "6: keys.b.hash: is that of",
        ),
        (
            PROVIDER.format('api_key = "env:EMPTY"'),
            "3: providers.a.api_key: the environment",
        ),
        (PROVIDER.format('api_key = ""'), "3: providers.a.api_key: is empty, so none is sent"),
        (
            PROVIDER.format("").replace("/v1", "/v1/chat/completions"),
            "2: providers.a.base_url: ends with",
        ),
        (PROVIDER.format("").replace("/v1", ""), "2: providers.a.base_url: has no path"),
        (
            '[providers.a]\nbase_url = "https://a.example/v1"\n',
            "1: providers: there are no [models], ",
        ),
        (
            PROVIDER.format("[providers.b]\nbase_url = 'https://b/v1'"),
            "3: providers.b: no model has",
        ),
        (
            PROVIDER.format("").replace("https://a.example", "http://localhost:8080"),
            "is the address",
        ),
        (
            PROVIDER.format("[auth]\ntoken_secret = '" + "s" * 40 + " '"),
            "4: auth.token_secret: begins",
        ),
    ],
)
def test_what_is_surely_not_meant_is_warned_of(text: str, said: str) -> None:
    text = text.replace("H1", "sha256:" + "1" * 64)
    found = warnings(text, EMPTY="")
    assert len([line for line in found if said in line]) == 1, found


def test_whole_configuration_has_no_warning() -> None:
    hash_ = "sha256:" + "1" * 64
    text = PROVIDER.format(f'[keys.web]\nhash = "{hash_}"\ntenant = "t"\nmodels = ["m"]')
    assert warnings(text + "[limits.keys.web]\nconnections = 1\n[limits.tenants.t]\nconnections = 1\n") == []
    # Whom a key store or an issuer knows is not known here.
    assert warnings(PROVIDER.format("[auth]\nkey_store = 'k.db'\n[limits.keys.x]\nconnections = 1")) == []


def test_line_is_that_of_the_setting_whatever_stands_around_it() -> None:
    text = (
        '# [server]\nlong = """\n[server]\nport = 1\n"""\nlist = [\n  1,\n\n  [2,\n   3],\n]\n'
        '\n[server] # port\n\nhost.x = 1\nport = 2\n[models."a.b"]\nx = { y = 3,'
        " z = 4 }\n[[many]]\na = 1\n[[many]]\nb = 2\n"
    )
    found = {
        path: line_of(line_map(text), path)
        for path in (
            ("long",),
            ("list",),
            ("list", 2),
            ("server",),
            ("server", "host", "x"),
            ("server", "port"),
            ("server", "nothing"),
            ("models", "a.b", "x", "z"),
            ("many", 1, "b"),
            ("nothing",),
            (),
        )
    }
    assert list(found.values()) == [2, 6, 6, 13, 15, 16, 13, 18, 22, None, None]
    assert line_of(line_map("a = 1\r\nb = 2\r\n"), ("b",)) == 2
    nested = line_map("[[models.m.route]]\ntarget = 'a'\n[[models.m.route]]\ntarget = 'b'\n[models.m.retry]\n")
    assert line_of(nested, ("models", "m", "route", 1, "target")) == 4
    assert line_of(nested, ("models", "m", "retry")) == 5


def test_lines_of_a_large_file_are_found_in_one_pass() -> None:
    text = "".join(f"[keys.k{n}]\nhash = 'x'\nmodels = [\n'a',\n]\n" for n in range(2000))
    places = line_map(text)
    assert places[("keys", "k1999", "models", 0)] == 1999 * 5 + 3
    assert len(errors(text)) == MAX_SHOWN + 1


def test_name_of_a_setting_is_written_as_in_the_file() -> None:
    assert dotted(("models", "gpt-4.1", "route", 0)) == 'models."gpt-4.1".route[0]'
    assert dotted(("a\n", "ä", "x" * 300))[:12] == '"a\\n"."ä".xx'


@given(st.text("[]=.\"'\n abkeysmodelsproviders0123,{}", max_size=200))
def test_any_text_is_taken_or_refused_by_the_one_error(text: str) -> None:
    try:
        config, problems = survey(text, environ={})
        places = line_map(text)
        lines = [line_of(places, problem.path) for problem in problems]
    except ConfigError:
        return
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config
    assert all(line is None or 1 <= line <= text.count("\n") + 1 for line in lines)
