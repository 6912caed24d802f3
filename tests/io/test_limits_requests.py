"""Limits of keys and tenants over real sockets: what is let in, what a refusal says, and what is given back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from holdfast.admission.auth import create_key
from holdfast.config import KeyConfig
from holdfast.config.limits import LimitsConfig
from tests.support.gateway_client import ONCE, Http, Session, ask, chat
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

#: An answer whose first token comes at once, and the second never.
ENDLESS = {"tokens": 2, "interval_ms": 3_600_000}
QUICK = {"tokens": 3}
COMPLETIONS = "/v1/chat/completions"


def limits(**settings: Any) -> LimitsConfig:
    return msgspec.convert(settings, LimitsConfig)


def asked(path: GatewayPath) -> int:
    return path.provider.statistics().requests


async def nothing_is_held(path: GatewayPath) -> None:
    await eventually(lambda: not any(path.gateway.admission.held.values()), "the end of all that is held")


async def used_tokens(path: GatewayPath) -> int:
    bounds = (await ask(path.url, "GET", "/v1/limits")).json()
    return int(bounds["key"]["tokens"]["used"])


async def test_requests_beyond_the_limit_get_429_and_are_not_sent(make_path: MakePath) -> None:
    path = await make_path(limits=limits(requests_per_minute=2))
    for left in (1, 0):
        answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK, stream=left == 1))
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in answer.headers
    refused = await ask(path.url, "POST", COMPLETIONS, chat(QUICK))
    assert (refused.status, refused.error["code"]) == (429, "rate_limited")
    assert "requests_per_minute" in refused.error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert asked(path) == 2


async def test_refusal_over_a_session_tells_when_and_ends_nothing_else(make_path: MakePath) -> None:
    path = await make_path(limits=limits(requests_per_minute=1))
    async with await Session.open(path.url) as session:
        first = await session.create("r-1", chat(ENDLESS))
        begun = await session.entries(2)
        await session.send(type="create", request_id="r-2", request=chat(QUICK))
        error = await session.expect("error")
        assert (error["code"], error["request_id"], error["retryable"]) == ("rate_limited", "r-2", True)
        assert 0 < error["retry_after"] <= 60
        await session.send(type="cancel", stream=first["stream"])
        _, end = await session.read(start=len(begun))
        assert end["status"] == "cancelled"
    assert asked(path) == 1


async def test_repeated_request_id_is_not_charged_twice(make_path: MakePath) -> None:
    path = await make_path(limits=limits(requests_per_minute=2))
    for _ in range(5):
        answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK), holdfast_request_id="same")
        assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, "1")
    assert asked(path) == 1


async def test_refused_request_is_not_charged(make_path: MakePath) -> None:
    path = await make_path(limits=limits(requests_per_minute=2))
    for body in (chat(QUICK, model="nothing"), {"model": "demo"}):
        assert (await ask(path.url, "POST", COMPLETIONS, body)).status in (400, 404)
    assert (await ask(path.url, "GET", "/v1/limits")).json()["key"]["requests"]["used"] == 0


async def test_tokens_are_reserved_by_estimate_and_settled_from_usage(make_path: MakePath) -> None:
    path = await make_path(limits=limits(tokens_per_minute=1000))
    async with await Session.open(path.url) as session:
        first = await session.create("r-1", chat({**QUICK, "ttft_ms": 3_600_000}, max_tokens=900))
        assert 900 < await used_tokens(path) <= 1000
        refused = await ask(path.url, "POST", COMPLETIONS, chat(QUICK, max_tokens=500))
        assert (refused.status, refused.error["code"]) == (429, "rate_limited")
        assert "tokens_per_minute" in refused.error["message"]
        assert refused.headers["x-ratelimit-limit-tokens"] == "1000"
        await session.send(type="cancel", stream=first["stream"])
        await session.read()
    # Nothing had been delivered, so nothing was used.
    await eventually(lambda: asked(path) == 1)
    assert await used_tokens(path) == 0
    answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK, max_tokens=500, stream=False))
    assert answer.status == 200
    assert await used_tokens(path) == answer.json()["usage"]["total_tokens"]


async def test_answer_that_was_left_is_settled_by_what_was_delivered(make_path: MakePath) -> None:
    path = await make_path(limits=limits(tokens_per_minute=1000))
    async with await Http.open(path.url) as http:
        http.request(
            "POST", COMPLETIONS, chat({"tokens": 9, "interval_ms": 3_600_000, "burst": 5}, max_tokens=700)
        )
        events = http.events()
        assert (await http.head()).status == 200
        for _ in range(5):
            await anext(events)
    await nothing_is_held(path)
    assert 5 <= await used_tokens(path) < 100


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 500}, {"kind": "reset", "before_head": True}])
async def test_tokens_of_a_failed_request_are_released(make_path: MakePath, fault: dict[str, Any]) -> None:
    path = await make_path(
        limits=limits(tokens_per_minute=1000), provider=ONCE, model={"retry": {"max_attempts": 1}}
    )
    answer = await ask(path.url, "POST", COMPLETIONS, chat({**QUICK, "fault": fault}))
    assert answer.status >= 500
    await nothing_is_held(path)
    assert await used_tokens(path) == 0


async def test_request_that_alone_exceeds_the_token_limit_is_invalid(make_path: MakePath) -> None:
    path = await make_path(limits=limits(tokens_per_minute=1000))
    tries: list[tuple[str, dict[str, Any]]] = [
        ("max_tokens", {"max_tokens": 1000}),
        ("max_completion_tokens", {"max_completion_tokens": 300, "n": 4}),
    ]
    for name, fields in tries:
        refused = await ask(path.url, "POST", COMPLETIONS, chat(QUICK, **fields))
        assert (refused.status, refused.error["param"]) == (400, name)
    assert asked(path) == 0


async def test_answer_without_a_bound_is_taken_to_fit_the_limit(make_path: MakePath) -> None:
    path = await make_path(limits=limits(tokens_per_minute=500))
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat(ENDLESS))
        assert await used_tokens(path) == 500


async def test_encoded_image_does_not_count_by_its_size(make_path: MakePath) -> None:
    path = await make_path(limits=limits(tokens_per_minute=10_000))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, image]}]
    answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK, messages=messages, max_tokens=10))
    assert answer.status == 200


async def test_key_has_no_more_streams_than_it_may(make_path: MakePath) -> None:
    path = await make_path(limits=limits(concurrent_streams=2))
    async with await Session.open(path.url) as session:
        accepted = [await session.create(f"r-{n}", chat({**ENDLESS, "ttft_ms": 3_600_000})) for n in range(2)]
        refused = await ask(path.url, "POST", COMPLETIONS, chat(QUICK))
        assert (refused.status, refused.error["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        await session.send(type="cancel", stream=accepted[0]["stream"])
        await session.expect("end")
        await eventually(lambda: path.gateway.admission.held["models"] == 1)
        assert (await ask(path.url, "POST", COMPLETIONS, chat(QUICK))).status == 200


async def test_key_has_no_more_connections_than_it_may(make_path: MakePath) -> None:
    path = await make_path(limits=limits(connections=1))
    async with await Session.open(path.url):
        with pytest.raises(InvalidStatus) as refused:
            await Session.open(path.url)
        response = refused.value.response
        assert (response.status_code, json.loads(response.body)["error"]["code"]) == (429, "rate_limited")
        assert response.headers["retry-after"] == "1"
        assert (await ask(path.url, "GET", "/v1/models")).status == 200
    await nothing_is_held(path)
    async with await Session.open(path.url):
        assert path.gateway.admission.held["connections"] == 2  # of the key, and of its tenant


async def test_connections_beyond_the_rate_of_an_address_get_429(make_path: MakePath) -> None:
    path = await make_path(server={"max_connections_per_second_per_address": 3})
    answers = [await ask(path.url, "GET", "/healthz") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert answers[3].headers["retry-after"] == "1"


async def test_keys_of_a_tenant_share_its_limit_and_have_their_own(make_path: MakePath) -> None:
    keys = {name: create_key() for name in ("one", "two", "other")}
    tenants = {"one": "us", "two": "us", "other": "them"}
    path = await make_path(
        keys={name: KeyConfig(hash=keys[name][1], tenant=tenants[name]) for name in keys},
        limits=limits(
            requests_per_minute=3,
            keys={"two": {"requests_per_minute": 1}},
            tenant={"requests_per_minute": 0},
            tenants={"us": {"requests_per_minute": 3}},
        ),
    )

    async def statuses(name: str, count: int) -> list[int]:
        header = {"authorization": f"Bearer {keys[name][0]}"}
        return [(await ask(path.url, "POST", COMPLETIONS, chat(QUICK), **header)).status for _ in range(count)]

    assert await statuses("two", 2) == [200, 429]
    assert await statuses("one", 3) == [200, 200, 429]
    assert await statuses("other", 4) == [200, 200, 200, 429]
    assert asked(path) == 6


async def test_status_page_shows_bounds_with_their_use(make_path: MakePath) -> None:
    path = await make_path(
        limits=limits(requests_per_minute=10, concurrent_streams=5), model={"max_concurrency": 1}
    )
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat(ENDLESS))
        await session.entries(1)
        await session.create("r-2", chat(ENDLESS))
        page = (await ask(path.url, "GET", "/v1/limits")).json()
        bounds = {bound["name"]: bound for bound in page["bounds"]}
        assert bounds["connections"]["used"] == 2
        assert bounds["streams that are kept"]["used"] == 2
        assert bounds["waiting requests"]["used"] == 1
        assert bounds["waiting requests of a tenant"]["used"] == 1
        assert bounds["streams that a session reads"]["used"] == 2
        assert 0 < bounds["bytes of a log"]["used"] <= page["memory"]["kinds"]["logs"]
        assert bounds["bytes that clients make it hold"]["limit"] == path.gateway.config.server.memory_bytes
        memory = page["memory"]
        assert memory["kinds"]["requests"] > 0
        assert sum(memory["kinds"].values()) == memory["used"] == memory["tenant"]["used"] < memory["limit"]
        assert memory["tenant"]["limit"] == 4 * (15 * memory["limit"] // 16 - memory["used"])
        assert memory["strangers"] == {"limit": memory["limit"] // 16, "used": 0}
        assert "largest" not in memory
        assert page["models"] == [{"model": "demo", "limit": 1, "running": 1, "waiting": 1}]
        assert (page["key"]["requests"]["used"], page["key"]["streams"]) == (2, {"limit": 5, "used": 2})
        assert page["key"]["tokens"] is None
        assert page["tenant"]["waiting"] == 1


async def test_without_limits_there_are_no_headers(path: GatewayPath) -> None:
    answer = await ask(path.url, "POST", COMPLETIONS, chat(QUICK))
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
