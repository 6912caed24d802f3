"""More than one reader of a stream: over WebSocket, SSE, long polling and plain JSON, from any place and time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.gateway_client import (
    DEADLINE,
    Http,
    ServerEvent,
    Session,
    answer,
    ask,
    chat,
    content,
    read_stream,
    stream_of,
    whole,
)
from tests.support.gateway_path import GatewayPath, MakePath
from tests.support.relay import Cut, Relay
from tests.support.waiting import eventually

TOKENS = 20
#: The role, the tokens and the finish reason; then comes the end.
ENTRIES = TOKENS + 2


class Creator(Session):
    """A session, and the stream that it has created."""

    stream = ""


@pytest.fixture
async def creator(path: GatewayPath) -> AsyncIterator[Creator]:
    """A session that has created a stream of 20 tokens, one each 5 ms."""
    async with await Creator.open(path.url) as session:
        accepted = await session.create("r-1", chat({"tokens": TOKENS, "interval_ms": 5}))
        session.stream = accepted["stream"]
        yield session


@pytest.fixture
async def ended(creator: Creator) -> str:
    """A stream that has ended."""
    await creator.read()
    return creator.stream


# -- WebSocket -----------------------------------------------------------------------------------------


async def test_second_session_attaches_to_a_running_stream_and_gets_all(
    path: GatewayPath, creator: Creator
) -> None:
    first = await creator.entries(5)
    async with await Session.open(path.url) as other:
        attached = await other.attach(creator.stream)
        assert attached["status"] == "running"
        assert "next" not in attached  # 0, the default
        (theirs, end), (rest, own_end) = await asyncio.gather(other.read(), creator.read(start=len(first)))
    assert content(theirs) == content(first + rest) == answer(TOKENS)
    assert end == own_end
    assert (await path.provider.until(lambda s: s.streaming == 0)).requests == 1


async def test_second_session_attaches_to_an_ended_stream_and_gets_all(path: GatewayPath, ended: str) -> None:
    async with await Session.open(path.url) as other:
        attached = await other.attach(ended)
        entries, end = await other.read()
    assert attached["status"] == "ended"
    assert content(entries) == answer(TOKENS)
    assert (end["status"], end["finish_reason"]) == ("completed", "stop")


@pytest.mark.parametrize("after", [0, 7, ENTRIES - 1])
async def test_attach_behind_an_entry_gets_the_rest(path: GatewayPath, ended: str, after: int) -> None:
    async with await Session.open(path.url) as other:
        attached = await other.attach(ended, after=after, epoch=1)
        entries, end = await other.read(start=after + 1)
    assert attached["next"] == after + 1
    assert len(entries) == ENTRIES - after - 1
    assert end["seq"] == ENTRIES


async def test_attach_behind_the_end_gets_the_end_again(path: GatewayPath, ended: str) -> None:
    async with await Session.open(path.url) as other:
        await other.attach(ended, after=ENTRIES)
        assert (await other.expect("end"))["seq"] == ENTRIES


async def test_attaching_twice_in_a_session_starts_the_delivery_anew(path: GatewayPath, creator: Creator) -> None:
    await creator.entries(3)
    await creator.send(type="attach", stream=creator.stream, after=0)
    while (message := await creator.receive())["type"] != "attached":
        pass  # what was on its way
    assert message["next"] == 1
    entries, _ = await creator.read(start=1)
    assert len(entries) == ENTRIES - 1


async def test_bare_session_may_attach_too(path: GatewayPath, ended: str) -> None:
    async with await Session.open_bare(path.url) as bare:
        await bare.socket.send(json.dumps(chat({"tokens": 1})))
        accepted = await bare.expect("accepted")
        entries, _ = await bare.read()
        assert content(entries) == answer(1)
        assert accepted["stream"] != ended
        await bare.attach(ended)
        entries, _ = await bare.read()
        assert content(entries) == answer(TOKENS)


# -- SSE -----------------------------------------------------------------------------------------------


async def test_sse_of_a_running_stream_is_whole(path: GatewayPath, creator: Creator) -> None:
    await creator.entries(4)
    assert whole(await read_stream(path.url, creator.stream)) == answer(TOKENS)


async def test_sse_of_an_ended_stream_is_whole(path: GatewayPath, ended: str) -> None:
    events = await read_stream(path.url, ended)
    assert whole(events) == answer(TOKENS)
    end = json.loads(events[-1].data)
    assert (end["finish_reason"], end["usage"]["completion_tokens"]) == ("stop", TOKENS)
    assert not {"type", "stream", "seq"} & set(end)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?after=7", {}),
        ("?after=1-7", {}),
        ("", {"last_event_id": "7"}),
        ("", {"last_event_id": "1-7"}),
        ("?after=2", {"last_event_id": "1-7"}),  # an EventSource keeps its URL when it comes back
        ("?after=7&live=sse", {"last_event_id": ""}),
    ],
)
async def test_sse_behind_an_entry_gives_the_rest(
    path: GatewayPath, ended: str, query: str, headers: dict[str, str]
) -> None:
    events = await read_stream(path.url, ended, query=query, **headers)
    assert answer(TOKENS).endswith(whole(events, start=8))
    assert len(events) == ENTRIES + 1 - 8


async def test_event_source_that_has_the_end_is_told_to_stop(path: GatewayPath, ended: str) -> None:
    events = await read_stream(path.url, ended)
    response = await ask(path.url, "GET", f"/v1/streams/{ended}", last_event_id=events[-1].id)
    assert (response.status, response.body) == (204, b"")
    assert "content-length" not in response.headers


async def test_event_source_that_is_cut_again_and_again_gets_all(path: GatewayPath, creator: Creator) -> None:
    rng = random.Random(5)
    events: list[ServerEvent] = []
    relay = Relay(path.gateway.port, lambda _: Cut("down", offset=rng.randrange(300, 1200)))
    async with asyncio.timeout(DEADLINE), relay:
        while not events or events[-1].event != "end":
            last = {"last_event_id": events[-1].id} if events else {}
            try:
                async with await Http.open(relay.url) as http:
                    http.request("GET", f"/v1/streams/{creator.stream}", **last)
                    await http.head()
                    async for event in http.events():
                        events.append(event)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                pass
        assert relay.cuts >= 5
    assert whole(events) == answer(TOKENS)


async def test_sse_comments_come_while_the_stream_is_silent(make_path: MakePath) -> None:
    path = await make_path(server={"sse_keep_alive": 0.05})
    async with await Http.open(path.url) as http:
        http.request("POST", "/v1/chat/completions", chat({"tokens": 2, "ttft_ms": 250}))
        assert (await http.head()).status == 200
        events = [event async for event in http.events()]
    assert 2 <= http.comments <= 6
    assert content([event.data for event in events[:-1]]) == answer(2)


async def test_head_of_a_running_stream_is_answered_at_once(path: GatewayPath) -> None:
    request = chat({"tokens": 5, "fault": {"kind": "stall", "after_tokens": 2}})
    async with await Session.open(path.url) as session, await Http.open(path.url) as http:
        accepted = await session.create("r-1", request)
        http.request("HEAD", f"/v1/streams/{accepted['stream']}")
        response = await http.response(has_body=False)
        assert (response.status, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        # The connection is free for the next request, though the stream runs on.
        assert (await http.ask("GET", "/healthz")).status == 200
        assert path.gateway.directory.statistics().running == 1


# -- long polling and plain JSON -----------------------------------------------------------------------


async def test_long_polls_one_behind_the_other_give_all(path: GatewayPath, creator: Creator) -> None:
    entries, after, polls = [], -1, 0
    async with await Http.open(path.url) as http:
        while True:
            response = await http.ask("GET", f"/v1/streams/{creator.stream}?live=long-poll&after={after}")
            batch = response.json()
            assert response.status == 200
            assert (batch["stream"], batch["epoch"]) == (creator.stream, 1)
            numbers = [entry["seq"] for entry in batch["entries"]]
            assert numbers == list(range(after + 1, after + 1 + len(numbers)))
            entries += [entry["data"] for entry in batch["entries"]]
            after = batch["next"] - 1
            polls += 1
            if batch["end"] is not None:
                break
            assert numbers  # none came back empty before its time
            assert batch["status"] == "running"
    assert content(entries) == answer(TOKENS)
    assert (batch["status"], batch["end"]["status"], batch["next"]) == ("completed", "completed", ENTRIES + 1)
    assert polls > 3


async def test_long_poll_waits_no_longer_than_it_is_told(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        request = chat({"tokens": 5, "fault": {"kind": "stall", "after_tokens": 2}})
        stream = (await session.create("r-1", request))["stream"]
        await session.entries(3)
        for timeout in ("0", "0.05"):
            response = await ask(path.url, "GET", f"/v1/streams/{stream}?live=long-poll&after=2&timeout={timeout}")
            assert response.json() == {
                "stream": stream,
                "status": "running",
                "epoch": 1,
                "next": 3,
                "entries": [],
                "end": None,
            }


async def test_long_poll_of_an_ended_stream_answers_at_once(path: GatewayPath, ended: str) -> None:
    response = await ask(path.url, "GET", f"/v1/streams/{ended}?live=long-poll&after={ENTRIES}")
    assert (response.json()["status"], response.json()["next"]) == ("completed", ENTRIES + 1)


@pytest.mark.parametrize("after", [-1, 7])
async def test_plain_json_gives_what_there_is(path: GatewayPath, ended: str, after: int) -> None:
    response = await ask(path.url, "GET", f"/v1/streams/{ended}?live=none&after={after}")
    batch = response.json()
    assert response.headers["content-type"] == "application/json"
    assert [entry["seq"] for entry in batch["entries"]] == list(range(after + 1, ENTRIES))
    assert answer(TOKENS).endswith(content([entry["data"] for entry in batch["entries"]]))
    assert (batch["end"]["status"], batch["next"]) == ("completed", ENTRIES + 1)


async def test_plain_json_of_a_running_stream_does_not_wait(path: GatewayPath, creator: Creator) -> None:
    (first, *_) = await creator.entries(1)
    batch = (await ask(path.url, "GET", f"/v1/streams/{creator.stream}?live=none")).json()
    assert (batch["status"], batch["end"]) == ("running", None)
    assert batch["entries"][0] == {"seq": 0, "data": first}


async def test_json_of_a_large_log_comes_in_portions(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        fault = {"kind": "huge_event", "after_tokens": 3, "bytes": 1_500_000}
        stream = (await session.create("r-1", chat({"tokens": 6, "fault": fault})))["stream"]
        expected, _ = await session.read()
    found, sizes, after = [], [], -1
    while True:
        batch = (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none&after={after}")).json()
        found += [entry["data"] for entry in batch["entries"]]
        sizes.append(len(batch["entries"]))
        after = batch["next"] - 1
        if batch["end"] is not None:
            break
    assert found == expected
    assert 1 in sizes  # the large one came alone


async def test_whole_completion_can_be_read_again(path: GatewayPath) -> None:
    first = await ask(path.url, "POST", "/v1/chat/completions", chat({"tokens": 4}, stream=False))
    stream = first.headers["holdfast-stream-id"]
    completion, end = await read_stream(path.url, stream)
    assert completion.data.encode() == first.body
    assert json.loads(end.data)["status"] == "completed"
    batch = (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none")).json()
    assert batch["entries"] == [{"seq": 0, "data": first.json()}]


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cursor", "status", "code"),
    [
        (f"{ENTRIES + 1}", 416, "ahead_of_log"),
        ("9007199254740991", 416, "ahead_of_log"),
        ("2-3", 409, "unknown_epoch"),
        ("0-3", 409, "unknown_epoch"),
        (f"2-{ENTRIES}", 409, "unknown_epoch"),  # not 204: the reader's end is another's
        ("-2", 400, "invalid_request"),
        ("x", 400, "invalid_request"),
        ("1-", 400, "invalid_request"),
        ("1.5", 400, "invalid_request"),
        ("%D9%A3", 400, "invalid_request"),  # a digit, but not of ASCII
        ("99999999999999999", 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("live", ["sse", "long-poll", "none"])
async def test_cursor_that_the_log_cannot_serve_is_refused(
    path: GatewayPath, ended: str, cursor: str, status: int, code: str, live: str
) -> None:
    response = await ask(path.url, "GET", f"/v1/streams/{ended}?after={cursor}&live={live}")
    assert (response.status, response.error["code"]) == (status, code)
    assert response.error["param"] == ("epoch" if code == "unknown_epoch" else "after")


@pytest.mark.parametrize(
    ("query", "param"),
    [("live=x", "live"), ("live=long-poll&timeout=61", "timeout"), ("live=long-poll&timeout=nan", "timeout")],
)
async def test_query_that_is_not_understood_is_refused(
    path: GatewayPath, creator: Creator, query: str, param: str
) -> None:
    response = await ask(path.url, "GET", f"/v1/streams/{creator.stream}?{query}")
    assert response.status == 400
    assert (response.error["code"], response.error["param"]) == ("invalid_request", param)


async def test_unknown_stream_is_not_found(path: GatewayPath) -> None:
    for method, query in [("GET", ""), ("GET", "?live=none"), ("GET", "?live=long-poll"), ("DELETE", "")]:
        response = await ask(path.url, method, f"/v1/streams/st_unknown{query}")
        assert (response.status, response.error["code"]) == (404, "unknown_stream")


# -- cancelling ----------------------------------------------------------------------------------------

ENDLESS = {"tokens": 1_000_000, "interval_ms": 1}


async def assert_cancelled(path: GatewayPath, session: Session) -> dict[str, Any]:
    """The stream of the session ends as cancelled, and the provider has noticed."""
    _, end = await session.read()
    assert (end["status"], end["error"]["code"]) == ("cancelled", "cancelled")
    statistics = await path.provider.until(lambda s: s.streaming == 0)
    assert (statistics.cancelled, statistics.completed) == (1, 0)
    return end


async def test_delete_cancels_and_the_provider_counts_it(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat(ENDLESS)))["stream"]
        await path.provider.until(lambda s: s.streaming == 1)
        for _ in range(2):  # it is idempotent
            response = await ask(path.url, "DELETE", f"/v1/streams/{stream}")
            assert (response.status, response.json()) == (200, {"stream": stream, "status": "cancelled"})
        end = await assert_cancelled(path, session)
    batch = (await ask(path.url, "GET", f"/v1/streams/{stream}?live=none&after={end['seq'] - 1}")).json()
    assert batch["end"]["status"] == "cancelled"


async def test_delete_of_an_ended_stream_leaves_its_end(path: GatewayPath, ended: str) -> None:
    response = await ask(path.url, "DELETE", f"/v1/streams/{ended}")
    assert response.json() == {"stream": ended, "status": "completed"}
    assert whole(await read_stream(path.url, ended)) == answer(TOKENS)


@pytest.mark.parametrize("by", ["stream", "request_id"])
async def test_cancel_message_cancels_and_the_provider_counts_it(path: GatewayPath, by: str) -> None:
    async with await Session.open(path.url) as session:
        stream = (await session.create("r-1", chat(ENDLESS)))["stream"]
        await path.provider.until(lambda s: s.streaming == 1)
        await session.send(type="cancel", **{by: stream if by == "stream" else "r-1"})
        await assert_cancelled(path, session)


async def test_cancel_sent_right_behind_create_reaches_nobody_but_ends_the_stream(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.send(type="create", request_id="r-1", request=chat(ENDLESS))
        await session.send(type="cancel", request_id="r-1")
        await session.expect("accepted")
        _, end = await session.read()
        assert end["status"] == "cancelled"
    await path.provider.until(lambda s: s.streaming == 0)


async def test_cancel_of_an_unknown_stream_is_an_error_of_an_unknown_request_nothing(path: GatewayPath) -> None:
    async with await Session.open(path.url) as session:
        await session.send(type="cancel", request_id="never")
        await session.send(type="cancel", stream="st_never")
        error = await session.expect("error")
        assert (error["code"], error["stream"]) == ("unknown_stream", "st_never")


async def test_delete_ends_the_answers_of_all_readers(path: GatewayPath) -> None:
    """Cancelling is for all readers: the SSE of the creator and a long poll end too."""
    async with await Http.open(path.url) as http, asyncio.timeout(DEADLINE):
        fault = {"kind": "stall", "after_tokens": 2}
        http.request("POST", "/v1/chat/completions", chat({"tokens": 5, "fault": fault}))
        stream = (await http.head()).headers["holdfast-stream-id"]
        poll = asyncio.create_task(ask(path.url, "GET", f"/v1/streams/{stream}?live=long-poll&after=2"))
        await eventually(lambda: stream_of(path.gateway, stream).reader_count == 2)
        await ask(path.url, "DELETE", f"/v1/streams/{stream}")
        *_, last = [event async for event in http.events()]
        assert json.loads(last.data)["error"]["code"] == "cancelled"
        assert (await poll).json()["end"]["status"] == "cancelled"
