"""A connection that is cut anywhere loses nothing, doubles nothing and asks for nothing twice."""

from __future__ import annotations

import asyncio
import random

import pytest

from holdfast import Chunk, StreamingAIClient
from tests.support.relay import Cut, Relay
from tests.support.scripted_gateway import Generation, MakeClient, ScriptedGateway

HELLO = [{"role": "user", "content": "hi"}]
STREAMS = 3
ENTRIES = 12


def speak(gateway: ScriptedGateway) -> None:
    """Answer with interleaved streams: each says its next word when all have said the one before."""

    def word(generation: Generation, number: int) -> str:
        return f"{generation.request['model']}:{number} "

    def start(_: Generation) -> None:
        if len(gateway.generations) < STREAMS:
            return
        for number in range(ENTRIES):
            for generation in gateway.generations:
                generation.say(word(generation, number))
        for generation in gateway.generations:
            generation.end()

    gateway.on_create = start


async def read_all(client: StreamingAIClient) -> list[tuple[str, list[int]]]:
    async def read(number: int) -> tuple[str, list[int]]:
        text, seqs = "", []
        async for event in client.events(HELLO, model=str(number)):
            if isinstance(event, Chunk):
                text += event.text
                seqs.append(event.seq)
        return text, seqs

    return await asyncio.gather(*map(read, range(STREAMS)))


EXPECTED = [
    ("".join(f"{stream}:{number} " for number in range(ENTRIES)), list(range(ENTRIES)))
    for stream in range(STREAMS)
]


async def run(gateway: ScriptedGateway, make_client: MakeClient, cuts: list[int], window: int) -> Relay:
    gateway.generations.clear()
    gateway.by_id.clear()
    gateway.by_request.clear()
    speak(gateway)

    def plan(number: int) -> Cut | None:
        return Cut("down", offset=cuts[number]) if number < len(cuts) else None

    async with Relay(gateway.port, plan) as relay:
        # A cut within the handshake or the welcome counts as a failure of its own.
        client = make_client(base_url=relay.url, stream_window=window, max_retries=len(cuts) + 1)
        assert await read_all(client) == EXPECTED
        await client.aclose()
    assert len(gateway.generations) == STREAMS
    return relay


@pytest.mark.timeout(120)
async def test_cut_anywhere_in_a_session_is_survived(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    whole = await run(gateway, make_client, [], 256 * 1024)
    cuts = range(1, whole.bytes["down"], 13)  # the messages are alike, so all places within one are met
    reached = [(await run(gateway, make_client, [cut], 256 * 1024)).connections == 2 for cut in cuts]
    # How entries are batched depends on timing: a session may be shorter than the first was.
    assert all(reached[: len(reached) // 2])


async def test_many_cuts_of_one_session_are_survived(gateway: ScriptedGateway, make_client: MakeClient) -> None:
    rng = random.Random(20260118)
    for _ in range(40):
        cuts = [rng.randrange(1, 1500) for _ in range(rng.randrange(2, 12))]
        await run(gateway, make_client, cuts, rng.choice([1024, 4096, 256 * 1024]))
