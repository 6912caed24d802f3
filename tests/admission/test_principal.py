"""What a principal may ask for, and whose its streams are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from holdfast.admission.origins import OriginRules, cors_headers, preflight_headers
from holdfast.admission.principal import Principal, Scopes
from holdfast.dialects.ask import Bounds
from holdfast.dialects.chat import CHAT
from holdfast.errors import Forbidden, Unauthorized


def bounds(body: dict[str, Any]) -> Bounds:
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    return CHAT.parse(json.dumps(request).encode()).bounds


NARROW = Principal("t", scopes=Scopes(models=frozenset({"small"}), max_tokens=100))


def test_model_outside_the_scope_is_refused_by_name() -> None:
    with pytest.raises(Forbidden, match="does not allow the model 'large'") as caught:
        NARROW.authorize("large", bounds({"max_tokens": 1}), 0)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 100},
        {"max_completion_tokens": 100},
        {"max_tokens": 50, "n": 2},
        {"max_tokens": 1, "max_completion_tokens": None},
    ],
)
def test_request_within_the_scope_is_let_through(body: dict[str, Any]) -> None:
    NARROW.authorize("small", bounds(body), 0)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens": None},
        {"max_tokens": 101},
        {"max_completion_tokens": 101},
        {"max_tokens": 1, "max_completion_tokens": 101},
        {"max_tokens": 51, "n": 2},
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": True},
        {"max_tokens": 1.5},
        {"max_tokens": "1"},
        {"max_tokens": 1, "n": -1},
        {"max_tokens": 1, "n": "2"},
    ],
)
def test_request_beyond_the_token_scope_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Forbidden):
        NARROW.authorize("small", bounds(body), 0)


def test_principal_without_scopes_may_ask_for_everything() -> None:
    Principal("t").authorize("any", bounds({"max_tokens": 10**9}), 0)


def test_expired_token_is_refused() -> None:
    principal = Principal("t", expires=10.0)
    principal.authorize("any", bounds({}), 9.0)
    with pytest.raises(Unauthorized, match="expired"):
        principal.authorize("any", bounds({}), 10.0)


def test_tenant_owns_what_its_subjects_own_and_not_the_other_way_round() -> None:
    tenant, ann, bob = Principal("t"), Principal("t", subject="ann"), Principal("t", subject="bob")
    other = Principal("t2", subject="ann")
    assert tenant.owner.may_read(ann.owner)
    assert ann.owner.may_read(ann.owner)
    for owner, by in [(tenant, ann), (ann, bob), (ann, other), (other, tenant)]:
        assert not by.owner.may_read(owner.owner)


# -- origins -------------------------------------------------------------------------------------------

RULES = OriginRules(["https://app.example", "http://localhost:3000"], is_local=False)


def allowed(rules: OriginRules, origin: str, host: str = "api.example") -> bool:
    try:
        return rules.check({b"origin": origin.encode("latin-1"), b"host": host.encode()}) == origin
    except Forbidden:
        return False


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://app.example", "api.example"),
        ("http://localhost:3000", "api.example"),
        ("https://api.example", "api.example"),
        ("https://api.example:8443", "api.example"),
        ("https://api.example:8443", "api.example:8443"),
        ("https://API.example", "api.EXAMPLE"),
    ],
)
def test_listed_and_own_origins_may_call(origin: str, host: str) -> None:
    assert allowed(RULES, origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://app.example.evil", "api.example"),
        ("https://app.example:444", "api.example"),
        ("http://app.example", "api.example"),
        ("https://xapp.example", "api.example"),
        ("https://api.example", "api.example:8443"),
        ("null", "null"),
        ("null", "api.example"),
        ("", ""),
        ("https://", ""),
        ("file://api.example", "api.example"),
        ("\xff", "api.example"),
    ],
)
def test_other_origins_may_not_call(origin: str, host: str) -> None:
    assert not allowed(RULES, origin, host)


def test_star_lets_every_origin_in() -> None:
    assert allowed(OriginRules(["*"], is_local=False), "https://any.example")


def test_client_without_origin_is_no_page() -> None:
    assert RULES.check({b"host": b"api.example"}) is None
    assert cors_headers(None) == []


def test_preflight_repeats_only_what_can_be_header_names() -> None:
    headers = dict(preflight_headers("https://app.example", ["POST", "GET"], b"authorization, x-stainless-os"))
    assert headers[b"access-control-allow-headers"] == b"authorization, x-stainless-os"
    assert headers[b"access-control-allow-methods"] == b"GET, POST"
    for bad in (b"a\r\nset-cookie: x", b'"', b"x" * 3000):
        assert b"access-control-allow-headers" not in dict(preflight_headers("https://app.example", ["GET"], bad))
