from __future__ import annotations

import pytest

from holdfast.config import TargetConfig, parse
from holdfast.config.gateway import Config
from holdfast.errors import ConfigError

PROVIDER = """
[providers.a]
base_url = "https://a.example/v1"
{provider}
[models.m]
route = {route}
{model}
"""


def read(*, provider: str = "", route: str = '["a/x"]', model: str = "") -> Config:
    config = parse(PROVIDER.format(provider=provider, route=route, model=model), environ={})
    assert config is not None
    return config


def test_route_takes_names_and_weighted_targets() -> None:
    config = read(route='[{ target = "a/x", weight = 3 }, { target = "a/y", weight = 0.5 }, "a/z"]')
    assert config.models["m"].targets == [
        TargetConfig("a/x", 3.0),
        TargetConfig("a/y", 0.5),
        TargetConfig("a/z", None),
    ]


def test_tables_within_a_provider_and_a_model_are_read() -> None:
    config = read(
        provider='breaker = { failures = 2 }\nprobe = { path = "/v1/models" }\nretry_budget = { ratio = 0.5 }',
        model="retry = { max_attempts = 2 }",
    )
    provider = config.providers["a"]
    assert provider.breaker.failures == 2
    assert provider.probe is not None
    assert provider.probe.path == "/v1/models"
    assert provider.retry_budget.ratio == 0.5
    assert config.models["m"].retry.max_attempts == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"provider": 'http2 = "maybe"'},
            "providers.a.http2: expected one of auto, prior-knowledge, off; got 'maybe'",
        ),
        ({"provider": 'client_key = "k.pem"'}, "providers.a.client_key: needs client_cert"),
        (
            {"provider": "min_warm = 2\nmax_connections = 1"},
            "providers.a.min_warm: expected at most max_connections, 1",
        ),
        (
            {"provider": "breaker = { open_for = 90 }"},
            "providers.a.breaker.max_open_for: expected at least open_for",
        ),
        ({"provider": "breaker = { error_rate = 2 }"}, "providers.a.breaker.error_rate: expected `float` <= 1.0"),
        ({"provider": 'probe = { path = "models" }'}, "providers.a.probe.path"),
        (
            {"provider": "adaptive_concurrency = { min = 9, max = 8 }"},
            "providers.a.adaptive_concurrency.max: expected at least min, 9",
        ),
        (
            {"provider": "adaptive_concurrency = { initial = 3 }"},
            "providers.a.adaptive_concurrency.initial: expected from 4 to 1000",
        ),
        (
            {"provider": "adaptive_concurrency = { tolerance = 0.5 }"},
            "providers.a.adaptive_concurrency.tolerance: expected `float` >= 1.0",
        ),
        (
            {"provider": "adaptive_concurrency = { enable = true }"},
            "providers.a.adaptive_concurrency.enable: there is no such key",
        ),
        ({"provider": 'proxy = "socks5://user:secret@p:1"'}, "providers.a.proxy: expected http://"),
        ({"provider": 'proxy = "http://user:secret@p:port"'}, "providers.a.proxy: expected http://"),
        (
            {"provider": 'headers = { Accept-Encoding = "gzip" }'},
            "headers.Accept-Encoding: belongs to the connection",
        ),
        ({"route": '[{ target = "b/x" }]'}, r"models.m.route\[0\]: there is no provider \'b\'"),
        ({"route": '[{ target = "a/x", weight = 0 }]'}, r"models.m.route\[0\].weight: expected `float` > 0.0"),
        ({"route": '["a"]'}, r'models.m.route\[0\]: expected "provider/model"'),
        ({"model": "retry = { initial = 9 }"}, "models.m.retry.maximum: expected at least `initial`"),
    ],
)
def test_setting_that_cannot_be_used_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(**changes)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "first"), [("", 20), ("max = 10", 10), ("min = 50", 50), ("min = 2, initial = 3", 3)]
)
def test_adaptive_limit_is_off_and_begins_within_its_bounds(settings: str, first: int) -> None:
    adaptive = read(provider=f"adaptive_concurrency = {{ {settings} }}").providers["a"].adaptive_concurrency
    assert (adaptive.enabled, adaptive.first) == (False, first)


def test_model_name_that_cannot_be_printed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'models."m\\nx": expected a printable name'):
        parse(PROVIDER.format(provider="", route='["a/x"]', model="") + '[models."m\\nx"]\nroute = ["a/x"]')


def test_provider_shows_nothing_secret_of_itself() -> None:
    config = read(provider='api_key = "sk-secret"\nproxy = "http://user:secret@p:1"')
    assert "secret" not in repr(config)
