"""What providers do wrong, seen from both sides of the gateway: a documented end, and all that came before it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from holdfast_tools.simulate.faults import BlackHole, ResetConnection, Silence
from tests.support.gateway_client import (
    ONCE,
    Http,
    Session,
    answer,
    ask,
    chat,
    content,
    own_code,
    read_stream,
    unharmed,
)
from tests.support.gateway_path import GatewayPath, MakePath

TOKENS = 12
COMPLETIONS = "/v1/chat/completions"
AFTER_5 = {"after_tokens": 5}

#: name: fault, further fields of `sim`, error code, tokens that are delivered (None: nothing at all, not even the
#: role), further settings
FAULTS = {
    "stall": ({"kind": "stall", **AFTER_5}, {}, "idle_timeout", 5),
    "stall at once": ({"kind": "stall", "after_tokens": 0}, {}, "idle_timeout", None),
    "no answer": ({"kind": "no_answer"}, {}, "first_byte_timeout", None),
    "head alone": (None, {"early_head": True, "ttft_ms": 60_000}, "first_byte_timeout", None),
    "slow head": ({"kind": "slow_headers", "ms": 60_000}, {}, "first_byte_timeout", None),
    "cut": ({"kind": "cut", **AFTER_5}, {}, "upstream_reset", 5),
    "cut before the head": ({"kind": "cut", "before_head": True}, {}, "upstream_reset", None),
    "reset before the head": ({"kind": "reset", "before_head": True}, {}, "upstream_reset", None),
    "end early": ({"kind": "end_early", **AFTER_5}, {}, "upstream_truncated", 5),
    "end at the last token": ({"kind": "end_early", "after_tokens": TOKENS}, {}, "upstream_truncated", TOKENS),
    "error event": ({"kind": "error_event", **AFTER_5}, {}, "upstream_error", 5),
    "error event and [DONE]": ({"kind": "error_event", "done": True, **AFTER_5}, {}, "upstream_error", 5),
    "invalid JSON": ({"kind": "malformed", "variant": "invalid_json", **AFTER_5}, {}, "upstream_malformed", 5),
    "break-out": ({"kind": "malformed", "variant": "breakout", **AFTER_5}, {}, "upstream_malformed", 5),
    "huge event": ({"kind": "huge_event", "bytes": 300_000, **AFTER_5}, {}, "upstream_malformed", 5),
    "status 400": ({"kind": "status", "status": 400}, {}, "upstream_status", None),
    "status 429": ({"kind": "status", "status": 429, "retry_after": 3}, {}, "upstream_status", None),
    "status 503": ({"kind": "status", "status": 503, "retry_after": "nonsense"}, {}, "upstream_status", None),
}
faults = pytest.mark.parametrize(("fault", "sim", "code", "tokens"), FAULTS.values(), ids=FAULTS.keys())
TIMEOUTS = {"first_byte": 0.3, "idle": 0.2}


@pytest.fixture
async def path(make_path: MakePath) -> GatewayPath:
    return await make_path(streams={"log_bytes": 256 * 1024}, provider={**ONCE, "timeouts": TIMEOUTS})


def request_of(fault: dict[str, Any] | None, sim: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return chat({"tokens": TOKENS, **sim, **({"fault": fault} if fault else {})}, **fields)


def assert_end(end: dict[str, Any], code: str, tokens: int | None) -> None:
    """The end says what went wrong, and whether anything came before it."""
    assert (end["status"], end["error"]["code"]) == ("failed" if tokens is None else "incomplete", code)
    assert end["error"]["message"]
    (attempt,) = end["attempts"]
    assert (attempt["provider"], attempt["model"], attempt["error"]) == ("sim", "demo", code)
    assert "finish_reason" not in end


def assert_delivered(payloads: list[Any], tokens: int | None) -> None:
    assert len(payloads) == (0 if tokens is None else tokens + 1)
    assert content(payloads) == answer(tokens or 0)


async def assert_readable(path: GatewayPath, stream: str, code: str, tokens: int | None) -> None:
    """Whoever comes late gets the same, in each form."""
    *events, last = await read_stream(path.url, stream)
    assert_delivered([event.data for event in events], tokens)
    assert last.event == "end"
    assert_end(json.loads(last.data), code, tokens)
    batch = (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none")).json()
    assert_delivered([entry["data"] for entry in batch["entries"]], tokens)
    assert_end(batch["end"], code, tokens)
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert statistics.requests == 1


@faults
async def test_fault_ends_the_stream_of_a_session(
    path: GatewayPath, fault: dict[str, Any] | None, sim: dict[str, Any], code: str, tokens: int | None
) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", request_of(fault, sim)))["stream"]
        entries, end = await session.read()
        assert_delivered(entries, tokens)
        assert_end(end, code, tokens)
        # One stream's failure never closes the connection.
        await session.send(type="ping")
        await session.expect("pong")
    await assert_readable(path, stream, code, tokens)


@faults
async def test_fault_ends_the_answer_to_a_post(
    path: GatewayPath, fault: dict[str, Any] | None, sim: dict[str, Any], code: str, tokens: int | None
) -> None:
    async with await Http.open(path.url) as http:
        http.request("POST", COMPLETIONS, request_of(fault, sim))
        if tokens is None:
            response = await http.response()
            status = fault.get("status", 504 if "timeout" in code else 502) if fault else 504
            assert (response.status, response.code) == (status, code)
            assert response.headers.get("retry-after") == ("3" if status == 429 else None)
        else:
            response = await http.head()
            *events, last = [event async for event in http.events()]
            assert response.status == 200
            assert_delivered([event.data for event in events], tokens)
            error = json.loads(last.data)["error"]
            assert own_code(error) == code
            assert error["message"]
            assert last.seq == len(events)
        # The connection is still good.
        assert (await http.ask("GET", "/healthz")).status == 200
    await assert_readable(path, response.headers["holdfast-stream-id"], code, tokens)


async def test_reset_in_the_middle_ends_the_stream_as_incomplete(path: GatewayPath) -> None:
    """How much came before the reset is up to the sockets: it may overtake what was sent before it."""
    async with await Session.open(path.url) as session:
        fault = {"kind": "reset", "after_tokens": 5}
        stream = (await session.create("r-1", chat({"tokens": TOKENS, "interval_ms": 5, "fault": fault})))[
            "stream"
        ]
        entries, end = await session.read()
    assert (end["status"], end["error"]["code"]) == ("incomplete", "upstream_reset")
    assert answer(5).startswith(content(entries))
    events = await read_stream(path.url, stream)
    assert [json.loads(event.data) for event in events[:-1]] == entries


@pytest.mark.parametrize("kind", ["status", "cut", "reset", "end_early", "stall", "malformed", "huge_event"])
async def test_fault_ends_the_answer_that_is_not_streamed(make_path: MakePath, kind: str) -> None:
    path = await make_path(
        streams={"log_bytes": 256 * 1024}, provider={**ONCE, "timeouts": {"total": 0.3, "first_byte": 0.3}}
    )
    size = {"bytes": 300_000} if kind == "huge_event" else {}
    response = await ask(
        path.url, "POST", COMPLETIONS, chat({"tokens": 3, "fault": {"kind": kind, **size}}, stream=False)
    )
    code = {
        "status": "upstream_status",
        "cut": "upstream_reset",
        "reset": "upstream_reset",
        "end_early": "upstream_malformed",
        "stall": "total_timeout",
        "malformed": "upstream_malformed",
        "huge_event": "upstream_malformed",
    }[kind]
    assert (response.status, response.code) == (
        {"status": 503, "stall": 504}.get(kind, 502),
        code,
    )


@pytest.mark.parametrize(("interval_ms", "burst"), [(2, 1), (0, 100)])
async def test_answer_that_takes_too_long_is_ended(make_path: MakePath, interval_ms: int, burst: int) -> None:
    path = await make_path(streams={"log_bytes": 1 << 20}, provider={**ONCE, "timeouts": {"total": 0.3}})
    async with await Session.open(path.url) as session:
        request = chat({"tokens": 10_000_000, "interval_ms": interval_ms, "burst": burst})
        stream = (await session.create("r-1", request))["stream"]
        entries: list[Any] = []
        while (message := await session.receive())["type"] != "end":
            entries += [message["data"]] if message["type"] == "event" else message["data"]
            await session.send(type="ack", streams={stream: len(entries) - 1})
    assert (message["status"], message["error"]["code"]) == ("incomplete", "total_timeout")
    assert content(entries) == answer(len(entries) - 1)
    assert (await path.provider.until(lambda s: s.streaming == 0)).cancelled == 1


# -- what is not fatal ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drip"},
        {"kind": "slow_headers", "ms": 50},
        {"kind": "malformed", "variant": "rubbish", **AFTER_5},  # lines without a field are to be ignored
    ],
    ids=lambda fault: fault["kind"],
)
async def test_odd_but_whole_answer_is_delivered_whole(path: GatewayPath, fault: dict[str, Any]) -> None:
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat({"tokens": TOKENS, "fault": fault}))
        entries, end = await session.read()
    assert (content(entries), end["status"]) == (answer(TOKENS), "completed")


async def test_bytes_that_are_not_utf_8_cost_no_more_than_their_characters(path: GatewayPath) -> None:
    fault = {"kind": "malformed", "variant": "invalid_utf8", **AFTER_5}
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": TOKENS, "fault": fault})))["stream"]
        entries, end = await session.read()
    whole = answer(TOKENS).replace(answer(5), answer(5) + "\ufffd\ufffd\ufffd(", 1)
    assert (content(entries), end["status"]) == (whole, "completed")
    events = await read_stream(path.url, stream)
    assert content([json.loads(event.data) for event in events[:-1]]) == whole


async def test_event_of_5_mb_is_delivered_whole(make_path: MakePath) -> None:
    path = await make_path()
    fault = {"kind": "huge_event", "after_tokens": 3, "bytes": 5 * 1024 * 1024}
    async with unharmed(path.url), await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat({"tokens": 6, "fault": fault})))["stream"]
        entries, end = await session.read()
        assert end["status"] == "completed"
        assert max(len(content([entry])) for entry in entries if entry["choices"]) > 5_000_000
        assert [json.loads(event.data) for event in (await read_stream(path.url, stream))[:-1]] == entries


async def test_pauses_shorter_than_the_idle_timeout_are_no_fault(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat({"tokens": 5, "interval_ms": 120}))
        entries, end = await session.read()
    assert (content(entries), end["status"]) == (answer(5), "completed")


async def test_idle_timeout_counts_from_the_last_byte_whatever_the_first_may_take(make_path: MakePath) -> None:
    """By default the first byte may take far longer than a pause."""
    path = await make_path(provider={**ONCE, "timeouts": {"idle": 0.2}})
    async with await Session.open(path.url) as session, asyncio.timeout(3):
        await session.create("r-1", chat({"tokens": 9, "ttft_ms": 300, "fault": {"kind": "stall", **AFTER_5}}))
        entries, end = await session.read()
    assert_delivered(entries, 5)
    assert_end(end, "idle_timeout", 5)


# -- connections ---------------------------------------------------------------------------------------


async def test_provider_that_nobody_listens_for_is_an_error(make_path: MakePath) -> None:
    path = await make_path(provider={**ONCE, "base_url": "http://127.0.0.1:1/v1"})
    response = await ask(path.url, "POST", COMPLETIONS, chat())
    assert (response.status, response.code) == (502, "upstream_connect_error")
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat())
        assert (await session.expect("end"))["error"]["code"] == "upstream_connect_error"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Silence(), "first_byte_timeout"),
        (BlackHole(after_bytes=1500), "idle_timeout"),
        (ResetConnection(), "upstream_reset"),
        (ResetConnection(after_bytes=1500), "upstream_reset"),
    ],
)
async def test_connection_that_fails_ends_its_stream_and_the_next_is_served(
    path: GatewayPath, fault: BlackHole | ResetConnection | Silence, code: str
) -> None:
    path.provider.arm(fault)
    async with await Session.open(path.url) as session:
        await session.create("r-1", chat({"tokens": TOKENS, "interval_ms": 2}))
        entries, end = await session.read()
        assert end["error"]["code"] == code
        assert answer(TOKENS).startswith(content(entries))
        await session.create("r-2", chat({"tokens": TOKENS}))
        entries, end = await session.read()
        assert (content(entries), end["status"]) == (answer(TOKENS), "completed")
