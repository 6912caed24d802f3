"""An HTTP/2 client for the tests, on the independent `h2` package: strict, and it shows every event."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hyperframe.frame

from holdfast_tools.simulate import SimulatedProvider
from tests.support.simulate_client import DEADLINE


class H2Client:
    """One HTTP/2 connection. `h2` raises if the server breaks the protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, credits: bool) -> None:
        self.reader = reader
        self.writer = writer
        self.credits = credits
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []
        self.raw = b""
        self._buffer = b""
        self._late: dict[int, bytes] = {}
        self._late_ends: set[int] = set()
        self.end: str | None = None

    @classmethod
    async def open(
        cls,
        provider: SimulatedProvider,
        *,
        ssl_context: ssl.SSLContext | None = None,
        credits: bool = True,
        settings: dict[h2.settings.SettingCodes, int] | None = None,
    ) -> H2Client:
        """`credits`: give back every byte received to the windows."""
        name = "localhost" if ssl_context is not None else None
        streams = await asyncio.open_connection("127.0.0.1", provider.port, ssl=ssl_context, server_hostname=name)
        client = cls(*streams, credits)
        if settings is not None:
            initial = {h2.settings.SettingCodes.ENABLE_PUSH: 0, **settings}
            client.h2.max_inbound_frame_size = initial.get(h2.settings.SettingCodes.MAX_FRAME_SIZE, 16_384)
            client.h2.local_settings = h2.settings.Settings(client=True, initial_values=initial)
        client.h2.initiate_connection()
        client.flush()
        return client

    async def __aenter__(self) -> H2Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except (OSError, ssl.SSLError):
            pass

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.writer.write(data)

    def post(self, body: dict[str, Any] | bytes, *, end: bool = True) -> int:
        """Send a chat request that fits the windows; return its stream id."""
        stream_id = self.h2.get_next_available_stream_id()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/v1/chat/completions"),
            (":authority", "x"),
            ("content-type", "application/json"),
        ]
        self.h2.send_headers(stream_id, headers)
        self.h2.send_data(stream_id, data, end_stream=end)
        self.flush()
        return stream_id

    async def post_large(self, body: bytes) -> int:
        """Send a chat request in pieces, as the windows allow; return its stream id."""
        stream_id = self.post(b"", end=False)
        while body:
            await self.until(lambda: self.h2.local_flow_control_window(stream_id) > 0)
            size = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            self.h2.send_data(stream_id, body[:size], end_stream=size >= len(body))
            body = body[size:]
            self.flush()
        return stream_id

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until `condition` holds or the connection ends (`end` then says how: "fin" or "rst")."""
        async with asyncio.timeout(DEADLINE):
            while not condition() and self.end is None:
                await self._read()

    async def is_silent(self, seconds: float = 0.05) -> bool:
        """Whether nothing comes and the connection stays open."""
        try:
            async with asyncio.timeout(seconds):
                await self._read()
        except TimeoutError:
            return True
        return False

    def of(self, kind: type[h2.events.Event], stream_id: int | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (stream_id is None or getattr(event, "stream_id", None) == stream_id)
        ]

    def body(self, stream_id: int) -> bytes:
        early = b"".join(event.data for event in self.of(h2.events.DataReceived, stream_id))
        return early + self._late.get(stream_id, b"")

    def status(self, stream_id: int) -> int:
        headers = dict(self.of(h2.events.ResponseReceived, stream_id)[0].headers)
        return int(headers[":status"])

    def has_ended(self, stream_id: int) -> bool:
        return stream_id in self._late_ends or bool(self.of(h2.events.StreamEnded, stream_id))

    async def answer(self, stream_id: int) -> bytes:
        """The whole body of a stream that ends regularly."""
        await self.until(lambda: self.has_ended(stream_id))
        assert self.has_ended(stream_id), self.events
        return self.body(stream_id)

    async def _read(self) -> None:
        try:
            data = await self.reader.read(1 << 16)
        except ConnectionResetError:
            self.end = "rst"
            return
        if not data:
            self.end = "fin"
            return
        self.raw += data
        self._buffer += data
        while len(self._buffer) >= 9:
            end = 9 + int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < end:
                break
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            if self.of(h2.events.ConnectionTerminated):
                self._receive_late(frame)
            else:
                self._receive(frame)
        self.flush()

    def _receive(self, frame: bytes) -> None:
        events = self.h2.receive_data(frame)
        for event in events:
            if isinstance(event, h2.events.DataReceived) and self.credits and event.flow_controlled_length:
                self.h2.increment_flow_control_window(event.flow_controlled_length)
                try:
                    self.h2.increment_flow_control_window(event.flow_controlled_length, event.stream_id)
                except h2.exceptions.StreamClosedError:
                    pass  # it ended in the same read
        self.events += events

    def _receive_late(self, frame: bytes) -> None:
        # After GOAWAY `h2` takes nothing more, although the streams that run go on (RFC 9113 section 6.8).
        parsed, _ = hyperframe.frame.Frame.parse_frame_header(memoryview(frame[:9]))
        parsed.parse_body(memoryview(frame[9:]))
        if isinstance(parsed, hyperframe.frame.DataFrame):
            self._late[parsed.stream_id] = self._late.get(parsed.stream_id, b"") + parsed.data
            if "END_STREAM" in parsed.flags:
                self._late_ends.add(parsed.stream_id)
