"""Memory over real sockets: what one tenant holds takes nothing from another, and who loses what is told."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from holdfast.admission.keys import create_key
from holdfast.config import AuthConfig, KeyConfig, LimitsConfig
from tests.support.gateway_client import Session, answer, ask, chat, content
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("no_descriptor_left")

COMPLETIONS = "/v1/chat/completions"
KEYS = {name: create_key() for name in ("greedy", "modest")}
ADMIN = "the-key-of-the-admin-of-this-test-is-long"
MEMORY = {"memory_bytes": 1_000_000, "max_body": 100_000}
ROOMY = {"memory_bytes": 8_000_000, "max_body": 100_000}


def header(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0] if name in KEYS else name}"}


async def two_tenants(make_path: MakePath, memory: dict[str, int]) -> GatewayPath:
    """Make a gateway for two tenants; the greedy one has every limit."""
    limits: dict[str, Any] = {
        "keys": {"greedy": {"requests_per_minute": 1000, "concurrent_streams": 2, "connections": 5}},
        "tenants": {"greedy": {"requests_per_minute": 1000, "concurrent_streams": 2, "connections": 5}},
    }
    return await make_path(
        server=memory,
        keys={name: KeyConfig(hash=key[1]) for name, key in KEYS.items()},
        auth=AuthConfig(admin_key=ADMIN),
        limits=msgspec.convert(limits, LimitsConfig),
    )


async def test_tenant_that_holds_ended_streams_without_reading_them_refuses_nobody(make_path: MakePath) -> None:
    path = await two_tenants(make_path, MEMORY)
    async with AsyncExitStack() as stack:
        greedy = await stack.enter_async_context(await Session.open(path.url, additional_headers=header("greedy")))
        held = []
        for number in range(11):
            accepted = await greedy.create(f"r-{number}", chat({"tokens": 200}), credit=0)
            held.append(accepted["stream"])
            await eventually(lambda: not path.gateway.directory.running(), "the stream's end")
        assert path.gateway.directory.budget.account("greedy").used > 500_000
        for number in range(10):
            response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 200}), **header("modest"))
            assert response.status == 200, number
        # Whoever reads what had to go is told, and what is left is whole.
        error = await greedy.expect("error")
        assert (error["code"], error["stream"]) == ("log_trimmed", held[0])
        await greedy.send(type="credit", stream=held[-1], bytes=2**30)
        while (message := await greedy.receive()).get("stream") != held[-1]:
            assert (message["type"], message["code"]) == ("error", "log_trimmed")
        data = message["data"]
        while (message := await greedy.receive())["type"] != "end":
            data += message["data"]
        assert content(data) == answer(200)
        page = (await ask(path.url, "GET", "/v1/limits", **header("modest"))).json()
        assert page["memory"]["used"] <= MEMORY["memory_bytes"]
        assert "largest" not in page["memory"]
        page = (await ask(path.url, "GET", "/v1/limits", **header(ADMIN))).json()
        assert {user["tenant"] for user in page["memory"]["largest"]} == {"greedy", "modest"}


async def test_providers_of_a_tenant_over_its_share_wait_and_those_of_others_do_not(make_path: MakePath) -> None:
    # What one read brings, up to 256 KiB, has to be little beside the room that is left for newcomers.
    path = await two_tenants(make_path, ROOMY)
    async with AsyncExitStack() as stack:
        for number in range(2):
            session = await stack.enter_async_context(
                await Session.open(path.url, additional_headers=header("greedy"))
            )
            await session.create(f"r-{number}", chat({"tokens": 100_000}), credit=0)
        account = path.gateway.directory.budget.account("greedy")
        await eventually(lambda: len(account.waiting) == 2, "both providers wait")
        assert path.gateway.directory.budget.used < ROOMY["memory_bytes"]
        refused = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 1}), **header("greedy"))
        assert (refused.status, refused.error["code"]) in ((503, "overloaded"), (429, "rate_limited"))
        for _ in range(5):
            response = await ask(path.url, "POST", COMPLETIONS, chat({"tokens": 300}), **header("modest"))
            assert response.status == 200
        assert len(account.waiting) == 2
