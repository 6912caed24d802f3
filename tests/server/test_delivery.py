"""Streams over HTTP: as Server-Sent Events, and as answers that come whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from holdfast.core.entries import EndBody, ErrorBody, Position
from holdfast.dialects.chat import CHAT
from holdfast.errors import HoldfastError, LogTrimmed, Unauthorized
from holdfast.server.delivery.sse import SseReader
from holdfast.server.delivery.waiter import Waiter
from holdfast.server.surfaces.streams import STREAMS_FRAMING
from tests.server.stage import HttpClient, ScriptedSource, Stage


class Silent:
    """A form of a stream that writes nothing at all."""

    starts_at_once = True

    def entry(self, stream: bytes, epoch: int, seq: int, payload: bytes) -> bytes:
        return b""

    def entries(self, stream: bytes, epoch: int, first: int, payloads: Sequence[bytes]) -> bytes:
        return b""

    def end(self, stream: bytes, epoch: int, seq: int, payload: bytes, end: EndBody) -> bytes:
        return b""

    def failure(self, error: HoldfastError) -> bytes | None:
        return None


@pytest.fixture
def stage() -> Stage:
    return Stage()


def reading(
    stage: Stage, framing: Any = CHAT.framing, *, grace: float = 60.0, **options: Any
) -> tuple[HttpClient, ScriptedSource]:
    """A client that reads a stream by SSE, and the stream's source."""
    source = stage.streams.make("st_a", grace=grace)
    client = HttpClient()
    stage.services.sse.send(source.stream, client.exchange, framing, **options)
    stage.loop.turn()
    return client, source


# -- Server-Sent Events --------------------------------------------------------------------------------


def test_entries_come_as_events_up_to_the_end(stage: Stage) -> None:
    client, source = reading(stage)
    assert client.answer == b""
    source.say(1, 2)
    stage.loop.turn()
    assert b"holdfast-stream-id: st_a\r\n" in client.answer
    source.end()
    stage.loop.turn()
    assert client.body == b'id: 1-0\ndata: {"n":1}\n\nid: 1-1\ndata: {"n":2}\n\nid: 1-2\ndata: [DONE]\n\n'
    assert client.is_finished
    assert source.stream.reader_count == 0
    assert stage.timers.pending == 0


def test_failure_before_the_first_entry_is_the_answers_status(stage: Stage) -> None:
    client, source = reading(stage)
    source.end("failed", error=ErrorBody("upstream_status", "no such model", status=404))
    stage.loop.turn()
    assert (client.status, json.loads(client.body)["error"]["message"]) == (404, "no such model")
    assert b"holdfast-stream-id: st_a\r\n" in client.answer
    assert stage.timers.pending == 0


def test_failure_behind_an_entry_is_an_event(stage: Stage) -> None:
    client, source = reading(stage)
    source.say(1)
    source.end("failed", error=ErrorBody("upstream_reset", "cut"))
    stage.loop.turn()
    assert client.status == 200
    assert b'"code":"upstream_reset"' in client.body
    assert client.is_finished


def test_form_that_starts_at_once_has_its_head_before_any_entry(stage: Stage) -> None:
    client, source = reading(stage, STREAMS_FRAMING)
    assert client.status == 200
    source.end("failed", error=ErrorBody("upstream_reset", "cut"))
    stage.loop.turn()
    assert client.body.startswith(b"event: end\nid: 1-0\n")


def test_silent_stream_gets_comments(stage: Stage) -> None:
    client, source = reading(stage)
    stage.loop.pass_time(14.0)
    assert client.answer == b""
    stage.loop.pass_time(1.2)
    assert client.body == b": keep-alive\n"
    source.say(1)
    stage.loop.pass_time(14.0)
    assert client.body.count(b"keep-alive") == 1
    stage.loop.pass_time(1.2)
    assert client.body.count(b"keep-alive") == 2


def test_reader_begins_behind_its_position_and_is_refused_where_that_is_gone(stage: Stage) -> None:
    source = stage.streams.make("st_a")
    source.say(1, 2)
    client = HttpClient()
    stage.services.sse.send(source.stream, client.exchange, STREAMS_FRAMING, position=Position(0))
    stage.loop.turn()
    assert client.body == b'id: 1-1\ndata: {"n":2}\n\n'
    source.stream.log.first = 2
    with pytest.raises(LogTrimmed):
        stage.services.sse.send(source.stream, HttpClient().exchange, STREAMS_FRAMING, position=Position(0))
    assert source.stream.reader_count == 1


def test_client_that_takes_nothing_holds_its_cursor_and_no_more(stage: Stage) -> None:
    client, source = reading(stage)
    source.say(1)
    stage.loop.turn()
    client.is_writable = False
    source.say(2)
    stage.loop.pass_time(20.0)
    assert b'{"n":2}' not in client.body
    assert b"keep-alive" not in client.body
    client.is_writable = True
    assert client.exchange.on_writable is not None
    client.exchange.on_writable()
    stage.loop.turn()
    assert b'{"n":2}' in client.body


def test_reader_that_leaves_is_lost_to_the_stream(stage: Stage) -> None:
    client, source = reading(stage, grace=0.0)
    client.exchange.disconnected()
    assert source.calls == ["abandon"]
    assert source.stream.reader_count == 0
    assert stage.timers.pending == 0


def test_client_that_was_gone_before_its_request_began_reads_nothing(stage: Stage) -> None:
    source = stage.streams.make("st_a", grace=0.0)
    client = HttpClient()
    client.exchange.disconnected()
    stage.services.sse.send(source.stream, client.exchange, CHAT.framing)
    stage.loop.turn()
    assert source.calls == ["abandon"]
    assert client.answer == b""


@pytest.mark.parametrize("has_begun", [False, True])
def test_revoked_reader_is_told_in_the_dialects_form(stage: Stage, has_begun: bool) -> None:
    client, source = reading(stage)
    if has_begun:
        source.say(1)
        stage.loop.turn()
    client.exchange.revoke(Unauthorized("revoked"))
    assert client.status == (200 if has_begun else 401)
    assert b'"code":"unauthorized"' in client.body
    assert client.is_finished
    assert source.stream.reader_count == 0


def test_revoked_reader_of_a_form_without_errors_is_cut_off(stage: Stage) -> None:
    client, source = reading(stage, STREAMS_FRAMING)
    client.exchange.revoke(Unauthorized("revoked"))
    assert client.is_aborted
    assert not client.is_finished
    assert source.stream.reader_count == 0


@pytest.mark.parametrize("has_begun", [False, True])
def test_reader_whose_log_goes_is_told_in_the_dialects_form(stage: Stage, has_begun: bool) -> None:
    client, source = reading(stage)
    if has_begun:
        source.say(1)
        stage.loop.turn()
    client.is_writable = False
    source.say(2)
    source.end()
    source.stream.forget(LogTrimmed("gone"))
    assert client.status == (200 if has_begun else 410)
    assert b'"code":"log_trimmed"' in client.body
    assert client.is_finished
    stage.loop.turn()
    assert client.body.count(b"log_trimmed") == 1
    assert stage.timers.pending == 0


@pytest.mark.parametrize("framing", [CHAT.framing, STREAMS_FRAMING])
def test_log_that_goes_for_the_memory_of_its_own_last_write_loses_nothing(stage: Stage, framing: Any) -> None:
    client, source = reading(stage, framing)
    source.say(1)
    source.end()
    write = client.write

    def write_for_which_the_log_goes(data: bytes) -> None:
        write(data)
        if source.stream.end is not None and client.body:
            source.stream.forget(LogTrimmed("gone"))

    client.write = write_for_which_the_log_goes  # type: ignore[method-assign]
    stage.loop.turn()
    assert (client.is_finished, client.is_aborted) == (True, False)
    assert b"log_trimmed" not in client.body
    assert stage.timers.pending == 0


def test_reader_of_a_form_without_errors_whose_log_goes_is_cut_off(stage: Stage) -> None:
    client, source = reading(stage, STREAMS_FRAMING)
    source.end()
    source.stream.forget(LogTrimmed("gone"))
    assert client.is_aborted
    assert not client.is_finished


def test_queue_and_takeover_have_no_form(stage: Stage) -> None:
    client, source = reading(stage)
    source.stream.wait_at(3)
    source.stream.wait_at(None)
    source.stream.begin_epoch(2)
    source.say(1)
    stage.loop.turn()
    assert client.body == b'id: 2-0\ndata: {"n":1}\n\n'


def test_entries_and_end_without_a_form_write_nothing_and_break_no_silence(stage: Stage) -> None:
    client, source = reading(stage, Silent())
    stage.loop.turn()
    head = bytes(client.answer)
    assert head.endswith(b"\r\n\r\n")
    stage.loop.pass_time(14.0)
    source.say(1)
    source.say(2, 3)
    stage.loop.turn()
    assert client.answer == head
    stage.loop.pass_time(1.2)
    assert client.body == b": keep-alive\n"
    source.end()
    stage.loop.turn()
    assert client.answer == head + b"d\r\n: keep-alive\n\r\n0\r\n\r\n"
    assert client.is_finished


def test_long_answer_is_left_to_later_turns_in_part(stage: Stage) -> None:
    client, source = reading(stage)
    (reader,) = source.stream._readers.values()
    assert isinstance(reader, SseReader)
    source.say(*range(200_000))
    assert 0 < reader.flush() < 200_000
    stage.loop.turn()
    assert client.body.count(b"id: ") == 200_000


# -- answers that come whole ---------------------------------------------------------------------------


async def test_waiter_for_the_end_returns_at_the_end_alone(stage: Stage) -> None:
    source, client = stage.streams.make("st_a"), HttpClient()
    waiter = Waiter(source.stream, client.exchange, wants_end=True)
    source.say(1)
    await waiter.wait(0.001)
    assert waiter.read() == [b'{"n":1}']
    waiter = Waiter(source.stream, client.exchange, wants_end=True)
    source.end()
    await waiter.wait()
    assert len(waiter.read()) == 2
    assert source.stream.reader_count == 0


async def test_waiter_for_an_entry_returns_with_it(stage: Stage) -> None:
    source, client = stage.streams.make("st_a"), HttpClient()
    source.say(1)
    waiter = Waiter(source.stream, client.exchange, Position(0))
    source.say(2)
    await waiter.wait(60.0)
    assert waiter.read() == [b'{"n":2}']


async def test_waiter_has_its_entries_where_a_full_log_drops_them_as_it_leaves(stage: Stage) -> None:
    source, client, other = stage.streams.make("st_a"), HttpClient(), HttpClient()
    stream = source.stream
    stream.log.max_bytes = 1000
    source.say(0)
    waiter = Waiter(stream, client.exchange, Position(0))
    stage.services.sse.send(stream, other.exchange, CHAT.framing)
    source.say(*range(1, 30))
    assert stream.is_full
    stage.loop.turn()  # the other client has them all
    await waiter.wait(60.0, max_bytes=20)
    assert waiter.read() == [b'{"n":1}', b'{"n":2}']
    assert stream.log.first == 30


async def test_waiter_on_an_ended_stream_returns_at_once(stage: Stage) -> None:
    source, client = stage.streams.make("st_a"), HttpClient()
    source.end()
    await Waiter(source.stream, client.exchange, wants_end=True).wait()
    assert source.stream.reader_count == 0


async def test_waiter_whose_log_goes_behind_the_end_answers_all_the_same(stage: Stage) -> None:
    source, client = stage.streams.make("st_a"), HttpClient()
    waiter = Waiter(source.stream, client.exchange, wants_end=True)
    source.say(1)
    source.end()
    source.stream.forget(LogTrimmed("gone"))
    await waiter.wait()
    assert waiter.read()[0] == b'{"n":1}'
    assert len(waiter.read()) == 2


async def test_waiters_client_that_leaves_ends_the_wait(stage: Stage) -> None:
    source, client = stage.streams.make("st_a", grace=0.0), HttpClient()
    waiter = Waiter(source.stream, client.exchange, wants_end=True)
    client.exchange.disconnected()
    await waiter.wait()
    assert source.calls == ["abandon"]
    gone = HttpClient()
    gone.exchange.disconnected()
    await Waiter(source.stream, gone.exchange, wants_end=True).wait()
    assert source.stream.reader_count == 0


async def test_waiter_whose_key_is_revoked_is_refused(stage: Stage) -> None:
    source, client = stage.streams.make("st_a"), HttpClient()
    waiter = Waiter(source.stream, client.exchange, wants_end=True)
    client.exchange.revoke(Unauthorized("revoked"))
    await waiter.wait()
    assert (client.status, source.stream.reader_count) == (401, 0)


# -- keys that are revoked while something is looked up ------------------------------------------------


@pytest.mark.parametrize("how", ["whole", "streamed"])
async def test_answer_whose_key_is_revoked_before_its_stream_is_found_is_refused(stage: Stage, how: str) -> None:
    source, client = stage.streams.make("st_a", grace=0.0), HttpClient()
    client.exchange.revoke(Unauthorized("revoked"))
    assert (client.status, client.is_finished) == (401, True)
    if how == "whole":
        await Waiter(source.stream, client.exchange, wants_end=True).wait()
    else:
        stage.services.sse.send(source.stream, client.exchange, CHAT.framing)
    source.say(1)
    stage.loop.turn()
    assert (client.body.count(b"revoked"), source.stream.reader_count) == (1, 0)
    assert source.calls == ["abandon"]


def test_answer_that_is_cut_keeps_no_reader(stage: Stage) -> None:
    """What the exchange would call refers to it as well, and to the log: no cycle may keep that."""
    client, source = reading(stage, STREAMS_FRAMING)
    source.say(1)
    stage.loop.turn()
    client.exchange.revoke(Unauthorized("revoked"))
    assert client.is_aborted
    exchange = client.exchange
    assert (exchange.on_disconnect, exchange.on_writable, exchange.on_revoked) == (None, None, None)
