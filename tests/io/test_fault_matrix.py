"""Every fault, before the first byte and mid-stream, over each protocol.

The stream ends as documented, a stream on another connection does not notice, and afterwards the pool holds what a
new one holds.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from holdfast_tools.simulate import faults as f
from tests.support.pool_world import ONCE, PROTOCOLS, QUICK, World

COMPLETED = ("completed", None)
TRUNCATED = "upstream_truncated"
MALFORMED = "upstream_malformed"
RESET = "upstream_reset"
STATUS = "upstream_status"
FIRST_BYTE = "first_byte_timeout"
IDLE = "idle_timeout"

#: About half of the victim's answer, on the wire.
_MIDDLE = 8_000
_TOKENS = 100

Outcome = tuple[str, str | None]
Case = tuple[str, Any, Outcome | dict[str, Outcome]]


def failed(code: str) -> Outcome:
    return "failed", code


def incomplete(code: str) -> Outcome:
    return "incomplete", code


#: Name, fault, outcome: one for all protocols, or HTTP/1.1's and HTTP/2's.
BEFORE: list[Case] = [
    ("no answer", f.NoAnswer(), failed(FIRST_BYTE)),
    # Over HTTP/2 it comes in 1-byte CONTINUATION frames, which are a flood and end the connection.
    ("slow headers", f.SlowHeaders(ms=200), {"h1": COMPLETED, "h2": failed(MALFORMED)}),
    ("too slow headers", f.SlowHeaders(ms=5000), failed(FIRST_BYTE)),
    ("cut", f.Cut(before_head=True), failed(RESET)),
    ("reset", f.Reset(before_head=True), failed(RESET)),
    ("status 500", f.Status(status=500), failed(STATUS)),
    ("status 503", f.Status(status=503, retry_after=1), failed(STATUS)),
    ("status 429", f.Status(status=429, retry_after=1, retry_after_form="date"), failed(STATUS)),
    ("status 408", f.Status(status=408), failed(STATUS)),
    ("status 404", f.Status(status=404), failed(STATUS)),
    ("hung handshake", f.HangHandshake(), {"h1": failed(FIRST_BYTE), "h2": COMPLETED}),
    ("silence", f.Silence(), {"h1": failed(FIRST_BYTE), "h2": COMPLETED}),
    ("goaway", f.Goaway(after_streams=1), COMPLETED),
    ("goaway unprocessed", f.Goaway(after_streams=1, unprocessed=1), COMPLETED),
    ("goaway and close", f.Goaway(after_streams=1, close=True), failed(RESET)),
    ("streams reset", f.ResetStreams(after_streams=1), failed(RESET)),
    ("streams refused", f.ResetStreams(after_streams=1, error_code=7), {"h1": failed(RESET), "h2": COMPLETED}),
    ("no streams", f.LowerSettings(after_streams=1, max_concurrent_streams=0), COMPLETED),
    ("no window", f.LowerSettings(after_streams=1, initial_window_size=0), COMPLETED),
    ("no pong", f.NoPingAnswer(), {"h1": COMPLETED, "h2": failed(RESET)}),
    ("black hole", f.BlackHole(after_streams=1), {"h1": failed(FIRST_BYTE), "h2": failed(RESET)}),
    ("connection reset", f.ResetConnection(after_streams=1), failed(RESET)),
    ("connection closed", f.CloseConnection(after_streams=1), failed(RESET)),
]
MIDDLE: list[Case] = [
    ("stall", f.Stall(after_tokens=20), incomplete(IDLE)),
    ("early end", f.EndEarly(after_tokens=20), incomplete(TRUNCATED)),
    ("cut", f.Cut(after_tokens=20), {"h1": incomplete(RESET), "h2": incomplete(TRUNCATED)}),
    ("reset", f.Reset(after_tokens=20), incomplete(RESET)),
    ("error event", f.ErrorEvent(after_tokens=20), incomplete("upstream_error")),
    ("invalid JSON", f.Malformed(after_tokens=20), incomplete(MALFORMED)),
    ("breakout", f.Malformed(after_tokens=20, variant="breakout"), incomplete(MALFORMED)),
    ("rubbish", f.Malformed(after_tokens=20, variant="rubbish"), COMPLETED),
    ("huge event", f.HugeEvent(after_tokens=20, bytes=600_000), incomplete(MALFORMED)),
    ("drip", f.Drip(), COMPLETED),
    ("goaway", f.Goaway(after_bytes=_MIDDLE), COMPLETED),
    (
        "goaway unprocessed",
        f.Goaway(after_bytes=_MIDDLE, unprocessed=1),
        {"h1": COMPLETED, "h2": incomplete(RESET)},
    ),
    ("goaway and close", f.Goaway(after_bytes=_MIDDLE, close=True), incomplete(RESET)),
    ("streams reset", f.ResetStreams(after_bytes=_MIDDLE, which="all"), incomplete(RESET)),
    ("streams refused", f.ResetStreams(after_bytes=_MIDDLE, error_code=7), incomplete(RESET)),
    ("no streams", f.LowerSettings(after_bytes=_MIDDLE, max_concurrent_streams=0), COMPLETED),
    ("small window", f.LowerSettings(after_bytes=_MIDDLE, initial_window_size=1), COMPLETED),
    ("no pong", f.NoPingAnswer(after_bytes=_MIDDLE), COMPLETED),
    ("silence", f.Silence(after_bytes=_MIDDLE), {"h1": incomplete(IDLE), "h2": incomplete(RESET)}),
    ("black hole", f.BlackHole(after_bytes=_MIDDLE), {"h1": incomplete(IDLE), "h2": incomplete(RESET)}),
    ("connection reset", f.ResetConnection(after_bytes=_MIDDLE), incomplete(RESET)),
    ("connection closed", f.CloseConnection(after_bytes=_MIDDLE), incomplete(RESET)),
]


async def run(protocol: str, fault: Any, *, before: bool) -> Outcome | str:
    """One fault, and a bystander whose connection has none."""
    settings = {**QUICK, **ONCE, "streams_per_connection": 1, "spread": 1}
    async with await World.start(protocol, settings=settings, streams={"log_bytes": 400_000}) as world:
        bystander = await world.stream(tokens=60, interval_ms=20, seed=3).first()
        options: dict[str, Any] = {"interval_ms": 3, "burst": 1}
        if isinstance(fault, f.RequestFault):
            options["fault"] = msgspec.to_builtins(fault)
        else:
            world.provider.arm(fault)
        if before:
            options["ttft_ms"] = 700 if isinstance(fault, f.NoPingAnswer) else 50
        victim = world.stream(tokens=_TOKENS, **options)
        outcome = await victim.outcome()
        if await bystander.outcome() != COMPLETED:
            return f"{outcome}, but the bystander ended {await bystander.outcome()}"
        await world.is_like_new()
        return outcome


def expected(outcome: Outcome | dict[str, Outcome], protocol: str) -> Outcome:
    return outcome if isinstance(outcome, tuple) else outcome["h1" if protocol == "http1" else "h2"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stage", ["before the first byte", "mid-stream"])
async def test_every_fault_ends_its_stream_as_documented_and_no_other(protocol: str, stage: str) -> None:
    before = stage != "mid-stream"
    cases = BEFORE if before else MIDDLE
    # A few at a time: where handshakes take over a second the pool begins spare ones, which the faults would meet.
    places = asyncio.Semaphore(4)

    async def in_turn(fault: Any) -> Outcome | str:
        async with places:
            return await run(protocol, fault, before=before)

    outcomes = await asyncio.gather(*[in_turn(fault) for _, fault, _ in cases])
    found = {name: outcome for (name, _, _), outcome in zip(cases, outcomes, strict=True)}
    assert found == {name: expected(outcome, protocol) for name, _, outcome in cases}
