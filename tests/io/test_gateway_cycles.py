"""What a request leaves is freed at once: in a cycle it would wait for the collector, with a body of megabytes."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator

import msgspec
import pytest

from holdfast.config.limits import LimitsConfig
from tests.support.gateway_client import Session, ask, chat
from tests.support.gateway_path import MakePath
from tests.support.waiting import eventually

_COMPLETIONS = "/v1/chat/completions"


@pytest.fixture
def left_in_cycles() -> Iterator[list[str]]:
    """Where the frames stand that only the collector could free; filled by the test's last look."""
    gc.collect()
    gc.disable()
    try:
        yield []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def look(found: list[str]) -> list[str]:
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    found += [
        each.f_code.co_qualname
        for each in gc.garbage
        if isinstance(each, types.FrameType)
        and "holdfast/" in each.f_code.co_filename.replace("holdfast_tools/", "")
    ]
    return found


async def test_refused_request_is_freed_at_once(make_path: MakePath, left_in_cycles: list[str]) -> None:
    path = await make_path(limits=msgspec.convert({"tokens_per_minute": 10}, LimitsConfig))
    refused = await ask(path.url, "POST", _COMPLETIONS, chat(prompt="x" * 10_000))
    assert refused.status == 400
    assert look(left_in_cycles) == []


async def test_request_that_cannot_be_read_is_freed_at_once(
    make_path: MakePath, left_in_cycles: list[str]
) -> None:
    path = await make_path()
    refused = await ask(path.url, "POST", _COMPLETIONS, chat(messages=5, prompt="x" * 10_000))
    assert refused.status == 400
    assert look(left_in_cycles) == []


async def test_refused_create_is_freed_at_once(make_path: MakePath, left_in_cycles: list[str]) -> None:
    path = await make_path(limits=msgspec.convert({"tokens_per_minute": 10}, LimitsConfig))
    async with await Session.open(path.url) as session:
        await session.send(type="create", request_id="r", request=chat(prompt="x" * 10_000))
        assert (await session.expect("error"))["code"] == "invalid_request"
    assert look(left_in_cycles) == []


async def test_request_whose_provider_is_away_is_freed_at_once(
    make_path: MakePath, left_in_cycles: list[str]
) -> None:
    path = await make_path(provider={"base_url": "http://127.0.0.1:9/v1"}, model={"retry": {"max_attempts": 1}})
    assert (await ask(path.url, "POST", _COMPLETIONS, chat())).status == 502
    await eventually(lambda: not any(path.gateway.admission.held.values()), "the end of all that is held")
    assert look(left_in_cycles) == []


async def test_unknown_streams_of_a_hello_and_an_attach_are_freed_at_once(
    make_path: MakePath, left_in_cycles: list[str]
) -> None:
    path = await make_path()
    resumed = [{"stream": f"st_{number}", "after": 5} for number in range(100)]
    async with await Session.open(path.url, hello={"streams": resumed}) as session:
        assert {state["status"] for state in session.welcome["streams"]} == {"refused"}
        await session.send(type="attach", stream="st_0")
        assert (await session.expect("error"))["code"] == "unknown_stream"
        assert look(left_in_cycles) == []
