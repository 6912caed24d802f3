"""What is told of a change by name, and what a new file may not lose without a word."""

from __future__ import annotations

import pytest

from holdfast.config import parse
from holdfast.reload.changes import changes, lost_limits, refusal

HASHES = [f"sha256:{n:064x}" for n in range(4)]
BASE = f"""
[server]
max_connections_per_second_per_address = 11
max_connections_per_address = 12
[providers.a]
base_url = "https://a.example/v1"
api_key = "sk-secret-one"
max_concurrency = 5
[models."gpt-4.1"]
route = ["a/x"]
max_concurrency = 3
[auth]
token_secret = "{"s" * 32}"
[keys.web]
hash = "{HASHES[0]}"
tenant = "big"
models = ["gpt-4.1"]
max_tokens = 100
[keys.other]
hash = "{HASHES[1]}"
[limits]
requests_per_minute = 10
[limits.tenant]
concurrent_streams = 4
[limits.keys.web]
tokens_per_minute = 1000
[limits.tenants.big]
connections = 7
"""


def judged(new: str, *, old: str = BASE, is_asked: bool = False) -> str | None:
    return refusal((old, parse(old)), (new, parse(new)), is_asked=is_asked)


def without(*lines: str, text: str = BASE) -> str:
    for line in lines:
        assert f"{line}\n" in text
        text = text.replace(f"{line}\n", "")
    return text


def test_changes_are_named_and_secret_values_are_not_shown() -> None:
    new = BASE.replace("sk-secret-one", "sk-secret-two").replace(
        "requests_per_minute = 10", "requests_per_minute = 20"
    )
    new = new.replace("[keys.other]", "[keys.new]").replace("max_concurrency = 3\n", "")
    said = changes(parse(BASE), parse(new))
    assert said == [
        "providers.a.api_key changed",
        'models."gpt-4.1".max_concurrency: 3 -> none',
        "keys.other removed",
        "keys.new added",
        "limits.requests_per_minute: 10 -> 20",
    ]
    assert changes(parse(BASE), parse(BASE)) == []


@pytest.mark.parametrize("section", ["limits", "keys", "auth"])
def test_section_that_is_gone_is_refused_also_when_asked_unless_it_is_there_empty(section: str) -> None:
    lines = BASE.splitlines(keepends=True)
    kept, keeps = [], True
    for line in lines:
        if line.startswith("["):
            keeps = not line.startswith((f"[{section}]", f"[{section}."))
        if keeps:
            kept.append(line)
    new = "".join(kept)
    for is_asked in (False, True):
        assert f"[{section}] is gone altogether" in (judged(new, is_asked=is_asked) or "")
    assert judged(f"{new}[{section}]\n", is_asked=True) is None


def test_section_that_was_empty_may_go() -> None:
    assert judged("[server]\n", old="[limits]\n[keys]\n") is None


def test_file_without_a_line_end_is_taken_when_asked_only() -> None:
    assert "line end" in (judged(BASE.rstrip()) or "")
    assert judged(BASE.rstrip(), is_asked=True) is None


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("requests_per_minute = 10", "limits.requests_per_minute"),
        ("concurrent_streams = 4", "limits.tenant.concurrent_streams"),
        ("tokens_per_minute = 1000", "limits.keys.web.tokens_per_minute"),
        ("connections = 7", "limits.tenants.big.connections"),
        ('models = ["gpt-4.1"]', "keys.web.models"),
        ("max_tokens = 100", "keys.web.max_tokens"),
        ('tenant = "big"', "keys.web.tenant"),
        ("max_concurrency = 5", "providers.a.max_concurrency"),
        ("max_concurrency = 3", 'models."gpt-4.1".max_concurrency'),
        ("max_connections_per_second_per_address = 11", "server.max_connections_per_second_per_address"),
        ("max_connections_per_address = 12", "server.max_connections_per_address"),
    ],
)
def test_limit_that_is_gone_is_refused_unless_asked(line: str, named: str) -> None:
    new = without(line)
    if "tenant" in line:  # what names it as well would be lost too
        new = without("[limits.tenants.big]", "connections = 7", text=new)
        old = without("[limits.tenants.big]", "connections = 7")
        assert list(lost_limits(parse(old), parse(new))) == [named]
        return
    assert named in (judged(new) or "")
    assert judged(new, is_asked=True) is None


def test_limit_that_is_said_to_be_none_or_another_is_no_loss() -> None:
    assert judged(BASE.replace("requests_per_minute = 10", "requests_per_minute = 0")) is None
    assert judged(BASE.replace("connections = 7", "connections = 900")) is None
    assert judged(BASE.replace("tokens_per_minute = 1000", "tokens_per_minute = 0")) is None
    one_for_all = without("tokens_per_minute = 1000").replace("[limits]\n", "[limits]\ntokens_per_minute = 5\n")
    assert judged(one_for_all) is None, "another limit holds in its place"


def test_limit_goes_with_the_key_that_it_was_for() -> None:
    key = without(
        "[keys.web]", f'hash = "{HASHES[0]}"', 'tenant = "big"', 'models = ["gpt-4.1"]', "max_tokens = 100"
    )
    limits = without(
        "[limits.keys.web]", "tokens_per_minute = 1000", "[limits.tenants.big]", "connections = 7", text=key
    )
    assert judged(limits) is None


def test_all_keys_at_once_are_taken_away_on_a_word_only() -> None:
    old = f'[auth]\nkey_store = "keys.db"\n[keys.web]\nhash = "{HASHES[0]}"\n'
    new = '[auth]\nkey_store = "keys.db"\n[keys]\n'
    assert "every key" in (judged(new, old=old) or "")
    assert judged(new, old=old, is_asked=True) is None
