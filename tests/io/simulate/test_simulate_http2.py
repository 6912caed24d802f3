from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext
from typing import Any

import h2.events
import h2.settings
import httpx
import openai
import pytest

from holdfast_tools.simulate import certificate as certificates
from holdfast_tools.simulate import http2_frames as frames
from holdfast_tools.simulate.server import SimulatedProvider
from holdfast_tools.simulate.text import text
from tests.support.simulate_client import RawConnection, Serve, chat_body, contents
from tests.support.simulate_http2_client import H2Client

TOKENS = 10


@pytest.fixture(scope="module")
def certificate() -> tuple[bytes, bytes]:
    return certificates.self_signed()


@pytest.fixture
def trusting(certificate: tuple[bytes, bytes]) -> SSLContext:
    """A client's context that trusts the self-signed certificate."""
    context = ssl.create_default_context(cadata=certificate[0].decode())
    context.set_alpn_protocols(["h2"])
    return context


def body_with(kind: str, **fields: Any) -> dict[str, Any]:
    return chat_body({"tokens": TOKENS, "fault": {"kind": kind, **fields}})


async def test_many_streams_share_one_connection_and_each_has_its_text(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        ids = [client.post(chat_body({"tokens": 40, "interval_ms": 1, "seed": seed})) for seed in range(50)]
        for seed, stream_id in enumerate(ids):
            assert contents(await client.answer(stream_id)) == text(seed, 40)
            assert client.status(stream_id) == 200
    counts = await provider.until(lambda s: s.open_connections == 0)
    assert (counts.connections, counts.completed, counts.open_streams) == (1, 50, 0)
    assert counts.requests_by_protocol == {"http2": 50}
    assert counts.connections_by_protocol == {"http2": 1}


async def test_openai_sdk_streams_over_http2_and_tls(
    serve: Serve, certificate: tuple[bytes, bytes], trusting: SSLContext
) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    http: Any = httpx.AsyncClient(http1=False, http2=True, verify=trusting)
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="k", http_client=http) as client:
        stream = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "x"}],
            stream=True,
            extra_body={"sim": {"tokens": 300, "interval_ms": 0, "ttft_ms": 0, "seed": 5}},
        )
        got = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert got == text(5, 300)
    assert provider.statistics().requests_by_protocol == {"http2": 1}


async def test_tls_client_without_http2_gets_http1(
    serve: Serve, certificate: tuple[bytes, bytes], trusting: SSLContext
) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    trusting.set_alpn_protocols(["http/1.1"])
    async with httpx.AsyncClient(verify=trusting) as client:
        answer = await client.post(f"{provider.base_url}/chat/completions", json=chat_body({"tokens": 3000}))
    assert answer.http_version == "HTTP/1.1"
    assert contents(answer.content) == text(7, 3000)


async def test_client_that_does_not_trust_the_certificate_leaves_nothing(
    serve: Serve, certificate: tuple[bytes, bytes]
) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{provider.base_url}/models")
    await provider.until(lambda s: s.connections == 1 and s.open_connections == 0)


async def test_plain_bytes_on_a_tls_port_are_refused(serve: Serve, certificate: tuple[bytes, bytes]) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    async with await RawConnection.open(provider) as client:
        client.writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await client.rest()
    await provider.until(lambda s: s.connections == 1 and s.open_connections == 0)


async def test_closed_tls_answer_ends_with_close_notify(
    serve: Serve, certificate: tuple[bytes, bytes], trusting: SSLContext
) -> None:
    provider = await serve(ssl_context=certificates.context_of(*certificate))
    trusting.set_alpn_protocols(["http/1.1"])
    async with await RawConnection.open(provider, ssl=trusting, server_hostname="localhost") as client:
        client.post(chat_body({"tokens": 3}), headers="connection: close\r\n")
        body, end = await client.rest()  # without close_notify this would be an SSLError
    assert body.endswith(b"0\r\n\r\n")
    assert end == "fin"


async def test_alpn_can_be_limited_to_http1(certificate: tuple[bytes, bytes], trusting: SSLContext) -> None:
    from holdfast_tools.simulate import SimulatedProvider

    provider = SimulatedProvider()
    await provider.start(ssl_context=certificates.context_of(*certificate), alpn=("http/1.1",))
    try:
        async with httpx.AsyncClient(http2=True, verify=trusting) as client:
            trusting.set_alpn_protocols(["h2", "http/1.1"])
            assert (await client.get(f"{provider.base_url}/models")).http_version == "HTTP/1.1"
    finally:
        await provider.aclose()


# -- flow control --------------------------------------------------------------------------------------


async def test_windows_of_both_kinds_are_never_exceeded(provider: SimulatedProvider) -> None:
    # `h2` raises if a DATA frame exceeds a window.
    async with await H2Client.open(provider) as client:
        ids = [client.post(chat_body({"tokens": 3000, "seed": seed})) for seed in range(5)]
        for seed, stream_id in enumerate(ids):
            assert contents(await client.answer(stream_id)) == text(seed, 3000)


async def test_stream_whose_window_is_shut_does_not_hold_the_others(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider, credits=False) as client:
        client.h2.increment_flow_control_window(10_000_000)
        shut = client.post(chat_body({"tokens": 3000, "seed": 1}))
        await client.until(lambda: len(client.body(shut)) == 65_535)
        other = client.post(chat_body({"tokens": 200, "seed": 2}))
        assert contents(await client.answer(other)) == text(2, 200)
        assert len(client.body(shut)) == 65_535
        assert provider.statistics().streaming == 1
        client.h2.increment_flow_control_window(10_000_000, shut)
        client.flush()
        assert contents(await client.answer(shut)) == text(1, 3000)


async def test_shut_connection_window_holds_all_streams_and_they_share_what_is_granted(
    provider: SimulatedProvider,
) -> None:
    async with await H2Client.open(provider, credits=False) as client:
        ids = [client.post(chat_body({"tokens": 1000, "seed": seed})) for seed in range(3)]
        for stream_id in ids:
            client.h2.increment_flow_control_window(10_000_000, stream_id)
        client.flush()
        await client.until(lambda: sum(len(client.body(i)) for i in ids) == 65_535)
        assert await client.is_silent()

        async def has_come(total: int) -> None:
            await client.until(lambda: sum(len(client.body(i)) for i in ids) == total)

        for granted in range(1, 9):
            client.h2.increment_flow_control_window(50_000)
            client.flush()
            await has_come(65_535 + granted * 50_000)
        assert all(len(client.body(stream_id)) > 100_000 for stream_id in ids)
        client.h2.increment_flow_control_window(10_000_000)
        client.flush()
        for seed, stream_id in enumerate(ids):
            assert contents(await client.answer(stream_id)) == text(seed, 1000)


async def test_small_initial_window_gives_byte_by_byte_progress(provider: SimulatedProvider) -> None:
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1}
    async with await H2Client.open(provider, settings=settings) as client:
        stream_id = client.post(chat_body({"tokens": 1}))
        assert contents(await client.answer(stream_id)) == text(7, 1)
        assert max(len(event.data) for event in client.of(h2.events.DataReceived)) == 1


async def test_window_that_turns_negative_is_waited_for(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider, credits=False) as client:
        stream_id = client.post(chat_body({"tokens": 2000}))
        await client.until(lambda: len(client.body(stream_id)) == 65_535)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        client.h2.increment_flow_control_window(60_000, stream_id)
        client.h2.increment_flow_control_window(10_000_000)
        client.flush()
        assert await client.is_silent(0.02) or client.of(h2.events.SettingsAcknowledged)
        assert len(client.body(stream_id)) == 65_535
        client.h2.increment_flow_control_window(10_000_000, stream_id)
        client.flush()
        assert contents(await client.answer(stream_id)) == text(7, 2000)


async def test_larger_frames_are_used_where_the_client_allows_them(provider: SimulatedProvider) -> None:
    settings = {
        h2.settings.SettingCodes.MAX_FRAME_SIZE: 60_000,
        h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20,
    }
    async with await H2Client.open(provider, settings=settings) as client:
        stream_id = client.post(chat_body({"tokens": 1000}))
        await client.answer(stream_id)
        assert max(len(event.data) for event in client.of(h2.events.DataReceived)) > 40_000


@pytest.mark.parametrize("window", [1, 1000, 65_535, 10_000_000])
async def test_request_body_larger_than_the_window_is_taken(serve: Serve, window: int) -> None:
    provider = await serve(initial_window_size=window)
    big = json.dumps(chat_body({"tokens": 2}, padding="x" * min(300_000, window * 300))).encode()
    async with await H2Client.open(provider) as client:
        await client.until(lambda: bool(client.of(h2.events.RemoteSettingsChanged)))
        assert contents(await client.answer(await client.post_large(big))) == text(7, 2)


# -- cancelling and refusing ---------------------------------------------------------------------------


async def test_reset_by_the_client_cancels_that_stream_alone(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        gone = client.post(chat_body({"tokens": 1000, "interval_ms": 5}))
        stays = client.post(chat_body({"tokens": 30, "interval_ms": 5}))
        await client.until(lambda: bool(client.body(gone)) and bool(client.body(stays)))
        client.h2.reset_stream(gone, 8)
        client.flush()
        await provider.until(lambda s: s.cancelled == 1 and s.open_streams == 1)
        assert contents(await client.answer(stays)) == text(7, 30)


async def test_answer_that_the_window_holds_back_counts_as_cancelled_not_completed(
    provider: SimulatedProvider,
) -> None:
    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}
    async with await H2Client.open(provider, settings=settings) as client:
        stream_id = client.post(chat_body({"tokens": 5}))
        await provider.until(lambda s: s.streaming == 1)
        client.h2.reset_stream(stream_id, 8)
        client.flush()
        assert (await provider.until(lambda s: s.cancelled == 1)).completed == 0


async def test_connection_that_the_client_drops_cancels_all_its_streams(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        for _ in range(10):
            client.post(chat_body({"tokens": 1000, "interval_ms": 20}))
        await provider.until(lambda s: s.streaming == 10)
    counts = await provider.until(lambda s: s.cancelled == 10)
    assert counts.open_streams == 0


async def test_streams_above_the_limit_are_refused(serve: Serve) -> None:
    provider = await serve(max_concurrent_streams=2)
    async with await RawConnection.open(provider) as client:
        settings = frames.settings_frame({})
        request = b"\x83\x86\x84\x41\x01x"  # POST http / with authority x
        opened = b"".join(
            frames.frame_header(len(request), frames.HEADERS, frames.END_HEADERS, stream_id) + request
            for stream_id in (1, 3, 5)
        )
        client.writer.write(frames.PREFACE + settings + opened)
        async with asyncio.timeout(5):
            refusal = frames.rst_stream_frame(5, frames.REFUSED_STREAM)
            await client.reader.readuntil(refusal)
    await provider.until(lambda s: s.open_streams == 0)


# -- faults of a request -------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 4])
async def test_stall_leaves_the_stream_open(provider: SimulatedProvider, after: int) -> None:
    async with await H2Client.open(provider) as client:
        stream_id = client.post(body_with("stall", after_tokens=after))
        await client.until(lambda: client.body(stream_id).count(b"\n\n") == after + 1)
        assert await client.is_silent()
        assert contents(client.body(stream_id)) == text(7, after)
        assert provider.statistics().open_streams == 1


@pytest.mark.parametrize("kind", ["cut", "end_early"])
async def test_cut_ends_the_stream_without_done(provider: SimulatedProvider, kind: str) -> None:
    async with await H2Client.open(provider) as client:
        stream_id = client.post(body_with(kind, after_tokens=4))
        body = await client.answer(stream_id)
        assert contents(body) == text(7, 4)
        assert b"DONE" not in body
    assert provider.statistics().failed == 1


@pytest.mark.parametrize("before_head", [False, True])
async def test_reset_is_rst_stream_and_spares_the_other_streams(
    provider: SimulatedProvider, before_head: bool
) -> None:
    async with await H2Client.open(provider) as client:
        other = client.post(chat_body({"tokens": 20, "interval_ms": 2}))
        stream_id = client.post(body_with("reset", after_tokens=4, error_code=11, before_head=before_head))
        await client.until(lambda: bool(client.of(h2.events.StreamReset)))
        reset = client.of(h2.events.StreamReset)[0]
        assert (reset.stream_id, reset.error_code) == (stream_id, 11)
        assert contents(client.body(stream_id)) == ("" if before_head else text(7, 4))
        assert len(client.of(h2.events.ResponseReceived, stream_id)) == (not before_head)
        assert contents(await client.answer(other)) == text(7, 20)


async def test_status_and_retry_after_are_sent(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        stream_id = client.post(body_with("status", status=429, retry_after=9))
        body = await client.answer(stream_id)
        headers = dict(client.of(h2.events.ResponseReceived, stream_id)[0].headers)
    assert (headers[":status"], headers["retry-after"]) == ("429", "9")
    assert json.loads(body)["error"]["code"] == "simulated_429"


@pytest.mark.parametrize("kind", ["error_event", "malformed", "huge_event"])
async def test_odd_events_come_as_over_http1(provider: SimulatedProvider, kind: str) -> None:
    async with await H2Client.open(provider) as client:
        stream_id = client.post(body_with(kind, after_tokens=4))
        events = (await client.answer(stream_id)).split(b"\n\n")
    expected: dict[str, Callable[[bytes], bool]] = {
        "error_event": lambda event: "error" in json.loads(event[6:]),
        "malformed": lambda event: event.endswith(b"unclosed}"),
        "huge_event": lambda event: len(event) + 2 == 5 * 1024 * 1024,
    }
    assert expected[kind](events[5])


async def test_slow_headers_come_late_and_in_pieces(provider: SimulatedProvider) -> None:
    loop = asyncio.get_running_loop()
    async with await H2Client.open(provider) as client:
        start = loop.time()
        stream_id = client.post(body_with("slow_headers", ms=100))
        await client.until(lambda: bool(client.of(h2.events.ResponseReceived)))
        assert loop.time() - start >= 0.09
        assert client.raw.count(b"\x00\x00\x01\x09") > 20  # CONTINUATION frames of one byte
        assert contents(await client.answer(stream_id)) == text(7, TOKENS)


async def test_drip_sends_data_frames_of_one_byte(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        stream_id = client.post(chat_body({"tokens": 1, "fault": {"kind": "drip"}}))
        assert contents(await client.answer(stream_id)) == text(7, 1)
        assert {len(event.data) for event in client.of(h2.events.DataReceived)} <= {0, 1}


async def test_no_answer_is_silent_and_can_be_cancelled(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        stream_id = client.post(body_with("no_answer"))
        await provider.until(lambda s: s.streaming == 1)
        client.h2.reset_stream(stream_id, 8)
        client.flush()
        await provider.until(lambda s: s.cancelled == 1 and s.open_streams == 0)
        assert not client.of(h2.events.ResponseReceived)


# -- clients that break the protocol -------------------------------------------------------------------


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return frames.frame_header(len(payload), kind, flags, stream_id) + payload


POST = b"\x83\x86\x84\x41\x01x"
OPEN = frame(frames.HEADERS, frames.END_HEADERS, 1, POST)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(frames.PING, 0, 0, b"short"), frames.FRAME_SIZE_ERROR),
        (frame(frames.PING, 0, 1, b"8 bytes!"), frames.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 0, b"12345"), frames.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, frames.ACK, 0, b"123456"), frames.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, frames.ACK, 0) * 2, frames.PROTOCOL_ERROR),
        (frames.settings_frame({frames.INITIAL_WINDOW_SIZE: 1 << 31}), frames.FLOW_CONTROL_ERROR),
        (frames.settings_frame({frames.MAX_FRAME_SIZE: 100}), frames.PROTOCOL_ERROR),
        (frames.settings_frame({frames.ENABLE_PUSH: 2}), frames.PROTOCOL_ERROR),
        (frames.window_update_frame(0, 0), frames.PROTOCOL_ERROR),
        (frames.window_update_frame(0, 0x7FFFFFFF), frames.FLOW_CONTROL_ERROR),
        (frames.window_update_frame(1, 1), frames.PROTOCOL_ERROR),
        (frame(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
        (frame(frames.DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (OPEN + frame(frames.DATA, frames.PADDED, 1, b"\x05abc"), frames.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 1, b"1234"), frames.PROTOCOL_ERROR),
        (OPEN + frame(frames.RST_STREAM, 0, 1, b"123"), frames.FRAME_SIZE_ERROR),
        (frame(frames.PUSH_PROMISE, 0, 1, b"1234"), frames.PROTOCOL_ERROR),
        (frame(frames.CONTINUATION, 0, 1), frames.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, POST) + frame(frames.PING, 0, 0, b"8 bytes!"), frames.PROTOCOL_ERROR),
        (frame(frames.HEADERS, frames.END_HEADERS, 2, POST), frames.PROTOCOL_ERROR),
        (frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
        (frames.frame_header(16_385, frames.DATA, 0, 1), frames.FRAME_SIZE_ERROR),
        (
            frame(frames.HEADERS, 0, 1, POST) + frame(frames.CONTINUATION, 0, 1, b"x" * 16_000) * 5,
            frames.ENHANCE_YOUR_CALM,
        ),
    ],
)
async def test_breach_of_the_protocol_gets_goaway_with_the_code(
    provider: SimulatedProvider, sent: bytes, code: int
) -> None:
    async with await RawConnection.open(provider) as client:
        client.writer.write(frames.PREFACE + frames.settings_frame({}) + sent)
        body, _ = await client.rest()
    at = body.rindex(struct.pack(">BBL", frames.GOAWAY, 0, 0))
    assert struct.unpack_from(">L", body, at + 10)[0] == code
    counts = await provider.until(lambda s: s.open_connections == 0)
    assert counts.open_streams == 0


@pytest.mark.parametrize(
    "block",
    [
        b"\x83\x86",  # no path
        POST + b"\x40\x01X\x01y",  # upper case
        POST + b"\x40\x0aconnection\x05close",
        POST + b"\x83",  # a second method
        POST + b"\x40\x06:other\x01x",
        POST + b"\x5c\x011",  # content-length that is not the length
    ],
)
async def test_malformed_request_resets_its_stream_alone(provider: SimulatedProvider, block: bytes) -> None:
    async with await RawConnection.open(provider) as client:
        bad = frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block)
        ping = frame(frames.PING, 0, 0, b"8 bytes!")
        client.writer.write(frames.PREFACE + frames.settings_frame({}) + bad + ping)
        async with asyncio.timeout(5):
            got = await client.reader.readuntil(frame(frames.PING, frames.ACK, 0, b"8 bytes!"))
    assert frames.rst_stream_frame(1, frames.PROTOCOL_ERROR) in got
    assert provider.statistics().requests == 0


async def test_first_frame_that_is_not_settings_is_refused(provider: SimulatedProvider) -> None:
    async with await RawConnection.open(provider) as client:
        client.writer.write(frames.PREFACE + frame(frames.PING, 0, 0, b"8 bytes!"))
        body, _ = await client.rest()
    assert struct.pack(">BBL", frames.GOAWAY, 0, 0) in body


async def test_preface_in_single_bytes_is_recognised(provider: SimulatedProvider) -> None:
    async with await H2Client.open(provider) as client:
        assert client.h2 is not None
    async with await RawConnection.open(provider) as client:
        for byte in frames.PREFACE + frames.settings_frame({}):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(9) == frames.frame_header(18, frames.SETTINGS, 0, 0)


async def test_priority_padding_and_unknown_frames_are_accepted(provider: SimulatedProvider) -> None:
    data = json.dumps(chat_body({"tokens": 2})).encode()
    path = b"\x04\x14/v1/chat/completions"
    block = b"\x83\x86" + path
    padded = bytes([3]) + b"\x00\x00\x00\x00\x10" + block + bytes(3)
    flags = frames.END_HEADERS | frames.PADDED | frames.HAS_PRIORITY
    sent = (
        frame(frames.HEADERS, flags, 1, padded)
        + frame(frames.PRIORITY, 0, 1, bytes(5))
        + frame(0x77, 0, 1, b"whatever")
        + frame(frames.DATA, frames.PADDED, 1, bytes([9]) + data + bytes(9))
        + frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, b"\x40\x01t\x01v")  # trailers
    )
    async with await RawConnection.open(provider) as client:
        client.writer.write(frames.PREFACE + frames.settings_frame({}) + sent)
        async with asyncio.timeout(5):
            got = await client.reader.readuntil(frame(frames.DATA, frames.END_STREAM, 1))
    assert got.count(b'"content":') == 3


# -- other people's clients ----------------------------------------------------------------------------


async def run(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out


@pytest.mark.skipif(shutil.which("nghttp") is None, reason="nghttp is not installed")
async def test_nghttp_gets_the_whole_answer(provider: SimulatedProvider, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps(chat_body({"tokens": 5000})))
    out = await run("nghttp", "-d", str(body), f"{provider.base_url}/chat/completions")
    assert contents(out) == text(7, 5000)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
async def test_h2load_finds_no_error(provider: SimulatedProvider, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps(chat_body({"tokens": 100})))
    url = f"{provider.base_url}/chat/completions"
    out = await run("h2load", "-n", "200", "-c", "2", "-m", "20", "-d", str(body), url)
    assert b"200 succeeded, 0 failed, 0 errored" in out
