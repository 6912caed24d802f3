"""Which texts of a configuration are masked wherever others write."""

from __future__ import annotations

import base64

import pytest

from holdfast.config import parse, secrets_of

BASIC = base64.b64encode(b"user:basic-password").decode()
CONFIG = f"""
[providers.one]
base_url = "https://one.example/v1"
api_key = "env:ONE_KEY"
proxy = "http://me:proxy%2Fpassword@proxy.example:3128"
[providers.one.headers]
x-api-key = "header-key"
Authorization = "Bearer bearer-token"
X-Gateway = "Basic {BASIC}"
Proxy-Thing = "Basic not-base64!"
User-Agent = "our-public-name"
anthropic-version = "2023-06-01"

[providers.two]
base_url = "http://127.0.0.1:9/v1"

[models.demo]
route = ["one/large", "two/large"]

[auth]
admin_key = "{"a" * 40}"
token_secret = "{"t" * 40}"
"""


@pytest.fixture
def found() -> set[str]:
    config = parse(CONFIG, environ={"ONE_KEY": "key-of-the-environment"})
    return set(
        secrets_of(config, {"HTTPS_PROXY": "other:environment-password@proxy:1", "https_proxy": "http://[bad"})
    )


@pytest.mark.parametrize(
    "secret",
    [
        "key-of-the-environment",
        "header-key",
        "Bearer bearer-token",
        "bearer-token",
        BASIC,
        "user:basic-password",
        "basic-password",
        "not-base64!",
        "proxy%2Fpassword",
        "proxy/password",
        "me:proxy/password",
        "environment-password",
        "a" * 40,
        "t" * 40,
    ],
)
def test_secret_of_a_configuration_is_found(found: set[str], secret: str) -> None:
    assert secret in found


@pytest.mark.parametrize("public", ["our-public-name", "2023-06-01", "https://one.example/v1"])
def test_what_is_public_is_no_secret(found: set[str], public: str) -> None:
    assert public not in found


def test_hash_of_the_admin_key_is_no_secret() -> None:
    config = parse(CONFIG.replace("a" * 40, "sha256:" + "0" * 64), environ={"ONE_KEY": "k"})
    assert not [secret for secret in secrets_of(config, {}) if secret.startswith("sha256:")]
