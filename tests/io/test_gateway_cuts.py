"""Cut connections: whatever is cut and wherever, the text is whole and the provider was asked once per stream."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import pytest

from tests.support.gateway_client import ResumingClient, answer, chat
from tests.support.gateway_path import GatewayPath
from tests.support.relay import Cut, Direction, Relay

#: Tokens, pace and seed of the streams of one session: they interleave, and differ in length.
STREAMS = [(9, 2, 1), (14, 1, 2), (5, 3, 3)]


def requests() -> list[dict[str, Any]]:
    return [
        chat({"tokens": tokens, "interval_ms": pace, "seed": seed}, user=f"user-{seed}")
        for tokens, pace, seed in STREAMS
    ]


async def run_session(path: GatewayPath, plan: Callable[[int], Cut | None], *, window: int | None = None) -> Relay:
    """Run one session of several streams through the relay; everything must come exactly once."""
    provider = path.provider
    provider.counters.reset()
    async with Relay(path.gateway.port, plan) as relay:
        client = ResumingClient(relay.url)
        results = [client.create(request, window=window) for request in requests()]
        await client.run()
    for (tokens, _, seed), result in zip(STREAMS, results, strict=True):
        assert result.error is None
        assert result.text == answer(tokens, seed)
        assert result.numbers == list(range(result.numbers[-1] + 1))
        assert result.end is not None
        assert (result.end.status, result.end.finish_reason) == ("completed", "stop")
        assert result.end.usage is not None
        assert result.end.usage.completion_tokens == tokens
    statistics = await provider.until(lambda s: s.streaming == 0)
    assert statistics.requests_by_key == {f"user-{seed}": 1 for _, _, seed in STREAMS}
    assert (statistics.requests, statistics.completed) == (len(STREAMS), len(STREAMS))
    return relay


async def test_session_without_cut_is_whole(path: GatewayPath) -> None:
    relay = await run_session(path, lambda _: None)
    assert (relay.connections, relay.cuts) == (1, 0)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("direction", ["down", "up"])
async def test_connection_cut_at_each_message_boundary_loses_nothing(
    path: GatewayPath, direction: Direction, how: Literal["fin", "rst"]
) -> None:
    uncut = await run_session(path, lambda _: None)
    count = uncut.messages[direction]
    assert count >= (8 if direction == "down" else 4)
    cuts = 0
    for boundary in range(count):
        cut = Cut(direction, messages=boundary, how=how)
        relay = await run_session(path, {0: cut}.get)
        cuts += relay.cuts
    # How entries are batched into messages depends on timing: some sessions end before their cut.
    assert cuts >= count // 2


async def test_every_connection_cut_behind_few_messages_still_ends_whole(path: GatewayPath) -> None:
    relay = await run_session(path, lambda number: Cut("down", messages=2 + number % 3))
    assert relay.cuts >= 4


async def test_each_connection_cut_one_message_later_still_ends_whole(path: GatewayPath) -> None:
    relay = await run_session(path, lambda number: Cut("up", messages=number))
    assert relay.cuts >= 4


@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("seed", range(4))
async def test_connections_cut_at_random_bytes_lose_nothing(
    path: GatewayPath, seed: int, window: int | None
) -> None:
    rng = random.Random(seed)

    def plan(number: int) -> Cut | None:
        if number >= 12:
            return None
        directions: list[Direction] = ["up", "down", "down"]
        how: list[Literal["fin", "rst"]] = ["fin", "rst"]
        return Cut(rng.choice(directions), offset=rng.randrange(1, 2500), how=rng.choice(how))

    cuts = 0
    for _ in range(6):
        cuts += (await run_session(path, plan, window=window)).cuts
    assert cuts >= 20
