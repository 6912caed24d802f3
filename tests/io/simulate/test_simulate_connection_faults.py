"""Every fault of a connection, by its effect on the bytes and on the counts."""

from __future__ import annotations

import asyncio
import ssl
from ssl import SSLContext
from typing import Any, Literal

import h2.errors
import h2.events
import httpx
import pytest

from holdfast_tools.simulate import certificate as certificates
from holdfast_tools.simulate import http2_frames as frames
from holdfast_tools.simulate.control import FaultPlan
from holdfast_tools.simulate.faults import (
    BlackHole,
    CloseConnection,
    Goaway,
    HangHandshake,
    LowerSettings,
    NoPingAnswer,
    RandomFailures,
    ResetConnection,
    ResetStreams,
    Silence,
)
from holdfast_tools.simulate.server import SimulatedProvider
from holdfast_tools.simulate.text import text
from tests.support.simulate_client import RawConnection, Serve, chat_body, contents
from tests.support.simulate_http2_client import H2Client

LONG = {"tokens": 1000, "interval_ms": 5}
SHORT = {"tokens": 40, "interval_ms": 5}


@pytest.fixture(scope="module")
def certificate() -> tuple[bytes, bytes]:
    return certificates.self_signed()


@pytest.fixture
def trusting(certificate: tuple[bytes, bytes]) -> SSLContext:
    context = ssl.create_default_context(cadata=certificate[0].decode())
    context.set_alpn_protocols(["h2"])
    return context


async def begun(client: H2Client, *sims: dict[str, int]) -> list[int]:
    """Send a request for each; wait until every one of them has sent a token."""
    ids = [client.post(chat_body(sim)) for sim in sims]
    await client.until(lambda: all(client.body(stream_id) for stream_id in ids))
    return ids


# -- GOAWAY --------------------------------------------------------------------------------------------


async def test_goaway_lets_running_streams_finish_then_closes(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        first, second = await begun(client, SHORT, SHORT)
        assert provider.arm_current(Goaway()) == 1
        assert contents(await client.answer(first)) == text(7, 40)
        assert contents(await client.answer(second)) == text(7, 40)
        await client.until(lambda: False)
    assert client.end == "fin"
    goaway = client.of(h2.events.ConnectionTerminated)[0]
    assert (goaway.last_stream_id, goaway.error_code) == (second, 0)
    assert provider.statistics().completed == 2
    assert provider.statistics().connection_faults == {"goaway": 1}


async def test_goaway_on_an_idle_connection_closes_it_at_once(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        await client.until(lambda: bool(client.of(h2.events.SettingsAcknowledged)))
        provider.arm_current(Goaway())
        await client.until(lambda: False)
    assert client.of(h2.events.ConnectionTerminated)[0].last_stream_id == 0
    assert client.end == "fin"


async def test_goaway_with_lowered_last_stream_id_drops_the_newest(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        ids = await begun(client, SHORT, SHORT, SHORT)
        provider.arm_current(Goaway(unprocessed=2, error_code=11))
        assert contents(await client.answer(ids[0])) == text(7, 40)
        await client.until(lambda: False)
    goaway = client.of(h2.events.ConnectionTerminated)[0]
    assert (goaway.last_stream_id, goaway.error_code) == (ids[0], 11)
    assert not client.has_ended(ids[1])
    counts = await provider.until(lambda s: s.open_connections == 0)
    assert (counts.completed, counts.cancelled) == (1, 2)


async def test_goaway_after_k_streams_leaves_the_last_request_unprocessed(provider: SimulatedProvider) -> None:
    provider.arm(Goaway(after_streams=3, unprocessed=1))
    async with await H2Client.open(provider) as client:
        ids = [client.post(chat_body({"tokens": 5}, user=f"user {number}")) for number in range(3)]
        await client.until(lambda: False)
        assert client.of(h2.events.ConnectionTerminated)[0].last_stream_id == ids[1]
        assert [client.has_ended(stream_id) for stream_id in ids] == [True, True, False]
    assert provider.statistics().requests_by_key == {"user 0": 1, "user 1": 1}


async def test_goaway_after_k_bytes_comes_in_mid_stream_between_frames(provider: SimulatedProvider) -> None:
    provider.arm(Goaway(after_bytes=2000))
    async with await H2Client.open(provider) as client:
        (stream_id,) = await begun(client, SHORT)
        assert contents(await client.answer(stream_id)) == text(7, 40)
        at = client.raw.index(frames.goaway_frame(stream_id, 0))
        assert 2000 <= at < 10_000
        await client.until(lambda: False)
        assert client.end == "fin"


async def test_goaway_that_closes_ends_running_streams(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        (stream_id,) = await begun(client, LONG)
        provider.arm_current(Goaway(close=True))
        await client.until(lambda: False)
    assert client.end == "fin"
    assert not client.has_ended(stream_id)
    assert provider.statistics().cancelled == 1


async def test_streams_after_a_goaway_are_ignored(provider: SimulatedProvider) -> None:
    # By hand, since `h2` opens no stream after a GOAWAY; a client may have sent one before it came.
    late = (
        frames.frame_header(6, frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 99)
        + b"\x83\x86\x84\x41\x01x"
    )
    async with await H2Client.open(provider) as client:
        (stream_id,) = await begun(client, SHORT)
        provider.arm_current(Goaway())
        client.writer.write(late)
        assert contents(await client.answer(stream_id)) == text(7, 40)
    assert provider.statistics().requests == 1


async def test_goaway_on_http1_closes_after_the_answer(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body({"tokens": 3, "ttft_ms": 60}))
        await provider.until(lambda s: s.streaming == 1)
        provider.arm_current(Goaway())
        _, headers = await client.head()
        assert headers["connection"] == "close"
        body, end = await client.rest()
    assert body.endswith(b"0\r\n\r\n")
    assert end == "fin"


# -- streams and settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "hit"), [("oldest", [0]), ("newest", [2]), ("all", [0, 1, 2])])
async def test_reset_streams_hits_the_chosen_ones_alone(
    provider: SimulatedProvider, which: Literal["oldest", "newest", "all"], hit: list[int]
) -> None:
    async with await H2Client.open(provider) as client:
        ids = await begun(client, SHORT, SHORT, SHORT)
        provider.arm_current(ResetStreams(which=which, error_code=7))
        await client.until(lambda: len(client.of(h2.events.StreamReset)) == len(hit))
        resets = client.of(h2.events.StreamReset)
        assert {reset.stream_id for reset in resets} == {ids[number] for number in hit}
        assert {reset.error_code for reset in resets} == {h2.errors.ErrorCodes.REFUSED_STREAM}
        for number in {0, 1, 2} - set(hit):
            assert contents(await client.answer(ids[number])) == text(7, 40)
    assert provider.statistics().connection_faults == {"reset_streams": 1}


async def test_reset_streams_on_http1_resets_the_connection(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.post(chat_body(LONG))
        await client.head()
        provider.arm_current(ResetStreams())
        assert (await client.rest())[1] == "rst"


async def test_lowered_stream_limit_is_announced_and_enforced(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        ids = await begun(client, SHORT, SHORT)
        provider.arm_current(LowerSettings(max_concurrent_streams=2))
        refused = client.post(chat_body(SHORT))  # sent before the client has seen the new limit
        await client.until(lambda: bool(client.of(h2.events.StreamReset)))
        reset = client.of(h2.events.StreamReset)[0]
        assert (reset.stream_id, reset.error_code) == (refused, h2.errors.ErrorCodes.REFUSED_STREAM)
        assert client.h2.remote_settings.max_concurrent_streams == 2
        for stream_id in ids:
            assert contents(await client.answer(stream_id)) == text(7, 40)
        assert contents(await client.answer(client.post(chat_body(SHORT)))) == text(7, 40)


async def test_lowered_window_makes_windows_negative_and_uploads_still_arrive(provider: SimulatedProvider) -> None:
    body = (
        b" " * 200_000 + b'{"model":"m","stream":true,"messages":[{"role":"user"}],"sim":{"tokens":1,"ttft_ms":0}}'
    )
    async with await H2Client.open(provider) as client:
        await client.until(lambda: bool(client.of(h2.events.RemoteSettingsChanged)))
        stream_id = client.post(b" " * 10_000, end=False)
        provider.arm_current(LowerSettings(initial_window_size=1000))
        await client.until(lambda: len(client.of(h2.events.RemoteSettingsChanged)) == 2)
        assert client.h2.remote_settings.initial_window_size == 1000
        second = await client.post_large(body)
        assert (await client.answer(second)).count(b'"content":') == 2
        client.h2.reset_stream(stream_id)
        client.flush()


async def test_ping_is_answered_unless_the_fault_is_armed(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        client.h2.ping(b"12345678")
        client.flush()
        await client.until(lambda: bool(client.of(h2.events.PingAckReceived)))
        provider.arm_current(NoPingAnswer())
        client.h2.ping(b"12345678")
        client.flush()
        assert contents(await client.answer(client.post(chat_body(SHORT)))) == text(7, 40)
        assert len(client.of(h2.events.PingAckReceived)) == 1


# -- sockets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [HangHandshake(), Silence(), BlackHole()])
async def test_plain_connection_can_be_accepted_and_silent(
    provider: SimulatedProvider, fault: BlackHole | HangHandshake | Silence
) -> None:
    provider.arm(fault)
    async with await H2Client.open(provider) as dark:
        dark.post(chat_body(SHORT))
        assert await dark.is_silent()
        assert dark.raw == b""
        async with await H2Client.open(provider) as client:  # the next one is well
            assert contents(await client.answer(client.post(chat_body(SHORT)))) == text(7, 40)
    counts = await provider.until(lambda s: s.open_connections == 0)
    assert sum(counts.connection_faults.values()) == 1


async def test_tls_handshake_hangs(serve: Serve, certificate: tuple[bytes, bytes], trusting: SSLContext) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    provider.arm(HangHandshake())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await H2Client.open(provider, ssl_context=trusting)
    await provider.until(lambda s: s.connections == 1 and s.open_connections == 0)
    async with await H2Client.open(provider, ssl_context=trusting) as client:
        assert contents(await client.answer(client.post(chat_body(SHORT)))) == text(7, 40)


async def test_tls_silence_comes_after_the_handshake(
    serve: Serve, certificate: tuple[bytes, bytes], trusting: SSLContext
) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    provider.arm(Silence())
    async with await H2Client.open(provider, ssl_context=trusting) as client:
        client.post(chat_body(SHORT))
        assert await client.is_silent()
        assert client.raw == b""


@pytest.mark.parametrize("limit", [1, 500, 5000])
@pytest.mark.parametrize(
    ("fault", "expected"), [(BlackHole, None), (ResetConnection, "rst"), (CloseConnection, "fin")]
)
async def test_socket_fails_after_exactly_k_bytes(
    provider: SimulatedProvider,
    fault: type[BlackHole] | type[CloseConnection] | type[ResetConnection],
    expected: str | None,
    limit: int,
) -> None:
    provider.arm(fault(after_bytes=limit))
    async with await H2Client.open(provider) as client:
        client.post(chat_body(LONG))
        client.post(chat_body({"tokens": 3000}))
        await client.until(lambda: len(client.raw) >= limit)
        if expected is None:
            assert await client.is_silent()
            assert provider.statistics().open_connections == 1
        else:
            await client.until(lambda: False)
            assert client.end == expected
        assert len(client.raw) == limit
    counts = await provider.until(lambda s: s.open_connections == 0)
    assert counts.cancelled == counts.requests


@pytest.mark.parametrize(("fault", "expected"), [(ResetConnection, "rst"), (CloseConnection, "fin")])
async def test_http1_socket_fails_after_exactly_k_bytes(
    provider: SimulatedProvider, fault: type[CloseConnection] | type[ResetConnection], expected: str
) -> None:
    provider.arm(fault(after_bytes=1234))
    async with await RawConnection.open(provider) as client:
        client.post(chat_body(LONG))
        got, end = await client.rest()
    assert (len(got), end) == (1234, expected)


async def test_tls_connection_goes_dark_in_mid_stream(
    serve: Serve, certificate: tuple[bytes, bytes], trusting: SSLContext
) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    provider.arm(BlackHole(after_bytes=8000))
    async with await H2Client.open(provider, ssl_context=trusting) as client:
        (stream_id,) = await begun(client, LONG)
        await provider.until(lambda s: s.connection_faults == {"black_hole": 1})
        while not await client.is_silent():
            pass
        assert client.end is None
        assert 0 < client.body(stream_id).count(b"\n\n") < 40
    assert (await provider.until(lambda s: s.open_connections == 0)).cancelled == 1


async def test_dark_connection_of_several_leaves_the_others_alone(provider: SimulatedProvider) -> None:
    dark = await H2Client.open(provider)
    (lost,) = await begun(dark, LONG)
    provider.arm_current(BlackHole())
    async with dark, await H2Client.open(provider) as client:
        (stream_id,) = await begun(client, SHORT)
        assert contents(await client.answer(stream_id)) == text(7, 40)
        while not await dark.is_silent():
            pass
        assert dark.body(lost).count(b"\n\n") < 1000


async def test_reset_of_current_connections(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as first, await RawConnection.open(provider) as second:
        await begun(first, LONG)
        second.post(chat_body(LONG))
        await second.head()
        assert provider.arm_current(ResetConnection()) == 2
        await first.until(lambda: False)
        assert (first.end, (await second.rest())[1]) == ("rst", "rst")
    await provider.until(lambda s: s.cancelled == 2)


async def test_faults_are_given_to_as_many_connections_as_were_ordered(provider: SimulatedProvider) -> None:
    provider.arm(CloseConnection(), count=2)
    provider.arm(ResetConnection())
    ends = []
    for _ in range(4):
        async with await RawConnection.open(provider) as client:
            client.writer.write(b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
            got, end = await client.rest()
            ends.append(end if not got else "answer")
    assert ends[3] == "answer"
    assert provider.statistics().connection_faults == {"close": 2, "reset": 1}


async def test_disarm_takes_faults_back(provider: SimulatedProvider) -> None:
    provider.arm(CloseConnection(), count=5)
    provider.disarm()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{provider.base_url}/models")).status_code == 200


# -- the control endpoints -----------------------------------------------------------------------------


async def test_faults_are_armed_over_http(provider: SimulatedProvider) -> None:
    url = provider.base_url.removesuffix("/v1") + "/control/connection-faults"
    async with httpx.AsyncClient() as control:
        order = {"fault": {"kind": "reset", "after_bytes": 100}, "count": 2}
        assert (await control.post(url, json=order)).json() == {"armed": 2}
        async with await RawConnection.open(provider) as client:
            client.post(chat_body(LONG))
            got, end = await client.rest()
            assert (len(got), end) == (100, "rst")
        assert (await control.delete(url)).status_code == 200
        async with await H2Client.open(provider) as client:
            await begun(client, LONG)
            order = {"fault": {"kind": "goaway", "close": True}, "connections": "current"}
            assert (await control.post(url, json=order)).json() == {"armed": 1}
            await client.until(lambda: False)
            assert client.end == "fin"
        stats = (await control.get(provider.base_url.removesuffix("/v1") + "/stats")).json()
    assert stats["connection_faults"] == {"reset": 1, "goaway": 1}


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ({}, "fault"),
        ({"fault": {"kind": "no"}}, "fault.kind"),
        ({"fault": {"kind": "goaway", "x": 1}}, "fault.x"),
        ({"fault": {"kind": "goaway"}, "count": 0}, "count"),
    ],
)
async def test_invalid_order_is_refused_and_names_the_field(
    provider: SimulatedProvider, order: dict[str, Any], param: str
) -> None:
    url = provider.base_url.removesuffix("/v1") + "/control/connection-faults"
    async with httpx.AsyncClient() as client:
        answer = await client.post(url, json=order)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert (await client.post(url, content=b"{")).status_code == 400


# -- storms --------------------------------------------------------------------------------------------


async def storm_statuses(provider: SimulatedProvider, count: int) -> list[int]:
    async with httpx.AsyncClient() as client:
        url = f"{provider.base_url}/chat/completions"
        return [(await client.post(url, json=chat_body({"tokens": 1}))).status_code for _ in range(count)]


async def test_storm_refuses_requests_by_its_seed(provider: SimulatedProvider) -> None:
    failures = RandomFailures(status={429: 0.3, 503: 0.3}, retry_after=1, seed=1)
    provider.storm(failures)
    first = await storm_statuses(provider, 100)
    provider.storm(failures)
    assert await storm_statuses(provider, 100) == first
    assert set(first) == {200, 429, 503}
    assert 20 < first.count(429) < 40
    provider.storm(None)
    assert set(await storm_statuses(provider, 20)) == {200}


async def test_storm_hangs_and_resets_connections(provider: SimulatedProvider) -> None:
    failures = RandomFailures(hang_handshake=0.5, reset=0.5, seed=1)
    foretold = FaultPlan()
    foretold.storm(failures)
    provider.storm(failures)
    for _ in range(10):
        (fault,) = foretold.for_connection()
        async with await H2Client.open(provider) as client:
            client.post(chat_body({"tokens": 500}))
            if isinstance(fault, ResetConnection):
                await client.until(lambda: False)
                assert (client.end, len(client.raw)) == ("rst", fault.after_bytes)
            else:
                assert await client.is_silent()
    faults = provider.statistics().connection_faults
    assert set(faults) == {"reset", "hang_handshake"}
    assert sum(faults.values()) == 10


async def test_storm_is_begun_and_ended_over_http(provider: SimulatedProvider) -> None:
    url = provider.base_url.removesuffix("/v1") + "/control/random-failures"
    async with httpx.AsyncClient() as client:
        await client.post(url, json={"status": {"500": 1.0}})
        assert await storm_statuses(provider, 3) == [500, 500, 500]
        await client.delete(url)
        assert await storm_statuses(provider, 1) == [200]
        assert (await client.post(url, json={"status": {"500": 2.0}})).status_code == 400
