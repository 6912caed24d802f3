"""`WebSocketConfig` and the package's exports."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import ssl
import subprocess
import sys

import pytest

import holdfast
from holdfast import ConfigError, WebSocketConfig


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://127.0.0.1:8080/v1", "ws://127.0.0.1:8080/v1/ws/stream"),
        ("http://host", "ws://host/v1/ws/stream"),
        ("https://host/", "wss://host/v1/ws/stream"),
        ("ws://host/v1/", "ws://host/v1/ws/stream"),
        ("wss://host:8443/v1", "wss://host:8443/v1/ws/stream"),
        ("HTTPS://host/v1/ws/stream", "wss://host/v1/ws/stream"),
        ("http://[::1]:8080/ai/v1", "ws://[::1]:8080/ai/v1/ws/stream"),
        ("http://host/ai", "ws://host/ai/v1/ws/stream"),
    ],
)
def test_base_url_in_all_forms_gives_the_websocket_url(base_url: str, url: str) -> None:
    assert WebSocketConfig(base_url).url == url


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "host:8080"}, "must be http://, https://, ws:// or wss://"),
        ({"base_url": "ftp://host"}, "must be http://"),
        ({"base_url": "http://"}, "a URL with a host"),
        ({"base_url": "http://:80"}, "a URL with a host"),
        ({"base_url": "http://host:0"}, "a URL with a host"),
        ({"base_url": "http://host:99999"}, "a URL such as"),
        ({"base_url": "http://ho st"}, "a URL with a host"),
        ({"base_url": "http://hóst"}, "a URL with a host"),
        ({"base_url": "http://[::1"}, "a URL such as"),
        ({"base_url": None}, "a URL such as .* found NoneType"),
        ({"base_url": "https://me:s3cret@host"}, "pass them as api_key"),
        ({"base_url": "https://host/v1?token=s3cret"}, "belongs into api_key"),
        ({"base_url": "https://host/v1#s3cret"}, "belongs into api_key"),
        ({"api_key": ""}, "api_key: must be a non-empty string"),
        ({"api_key": "s3cret\r\nX: y"}, "without spaces"),
        ({"api_key": 5}, "api_key"),
        ({"max_retries": -1}, "max_retries: must be an integer from 0"),
        ({"max_retries": True}, "max_retries"),
        ({"initial_backoff": 0}, "initial_backoff: must be a positive, finite number"),
        ({"max_backoff": float("inf")}, "max_backoff"),
        ({"max_backoff": 0.5}, r"at least initial_backoff \(1.0\)"),
        ({"ping_interval": float("nan")}, "ping_interval"),
        ({"ping_timeout": "10"}, "ping_timeout"),
        ({"connect_timeout": None}, "connect_timeout"),
        ({"stream_window": 10}, "stream_window: must be an integer from 1024"),
        ({"max_message": 2**31}, "max_message"),
        ({"headers": []}, "headers: must be a mapping"),
        ({"headers": {"a b": "c"}}, "header names; found 'a b'"),
        ({"headers": {"a": "b\n"}}, "printable ASCII text as the value of 'a'"),
        ({"headers": {"Authorization": "Bearer s3cret"}}, "api_key"),
        ({"headers": {"Sec-WebSocket-Key": "x"}}, "sets itself"),
        ({"ssl": True}, "ssl.SSLContext or None; found bool"),
        ({"ssl": ssl.create_default_context()}, "https:// or wss://"),
    ],
)
def test_wrong_setting_is_refused_with_what_would_be_right(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        WebSocketConfig(**settings)  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
    assert str(caught.value).startswith("WebSocketConfig.")


def test_config_is_frozen_and_hides_its_secrets() -> None:
    headers = {"X-Secret": "s3cret"}
    config = WebSocketConfig(api_key="s3cret", headers=headers)
    headers["X-Other"] = "later"
    assert dict(config.headers) == {"X-Secret": "s3cret"}
    assert "s3cret" not in repr(config)
    assert hash(config) == hash(WebSocketConfig(api_key="s3cret"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.api_key = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.headers["x"] = "y"  # type: ignore[index]


def test_package_exports_what_it_names() -> None:
    for name in holdfast.__all__:
        assert getattr(holdfast, name) is not None
        assert name in dir(holdfast)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        holdfast.nonsense  # noqa: B018
    assert holdfast.__version__ == importlib.metadata.version("holdfast")


def test_import_of_the_package_loads_no_client_library() -> None:
    program = "import holdfast, holdfast.terminal, json, sys; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(subprocess.check_output([sys.executable, "-c", program])))
    assert modules.isdisjoint({"websockets", "asyncio", "holdfast.client.aio"})


def test_client_needs_only_its_two_libraries() -> None:
    program = """
import sys
for name in ("h2", "hpack", "httptools", "uvloop"):
    sys.modules[name] = None  # makes its import fail
import holdfast
for name in holdfast.__all__:
    getattr(holdfast, name)
print(sorted(name for name in sys.modules if name.startswith("holdfast.")))
"""
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert "holdfast.client.sync" in loaded
    assert "holdfast.server" not in loaded
