"""The Python SDK, asynchronous and synchronous: reconnecting and resuming are the SDK's own work."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chaos.journal import Record, StreamJournal
from chaos.schedule import body_of
from holdfast import StreamEnd, StreamingAIClient, SyncStreamingAIClient, WebSocketConfig
from holdfast.client.events import Chunk
from holdfast.errors import HoldfastError

#: A slow reader takes an entry each so many seconds, out of a window of so many bytes.
_SLOW_READ = 0.04
_SLOW_WINDOW = 4096
_MAX_THREADS = 256


def _config(url: str, *, slow: bool) -> WebSocketConfig:
    return WebSocketConfig(
        f"{url}/v1",
        max_retries=100_000,  # the run decides how long is too long
        initial_backoff=0.1,
        max_backoff=1.0,
        ping_interval=2.0,
        ping_timeout=2.0,
        connect_timeout=4.0,
        stream_window=_SLOW_WINDOW if slow else 256 * 1024,
    )


def _arguments(plan: Record) -> dict[str, Any]:
    body = body_of(plan)
    return {"messages": body.pop("messages"), "model": body.pop("model"), "request_id": plan["id"], **body}


class SdkClient:
    """`StreamingAIClient`; slow readers have a client with a small window."""

    def __init__(self, url: str) -> None:
        self._clients = {slow: StreamingAIClient(_config(url, slow=slow)) for slow in (False, True)}

    async def run(self, plan: Record, journal: StreamJournal) -> None:
        client = self._clients[plan["slow"]]
        if journal.stream_id is not None:
            events = client.attach_events(journal.stream_id, after=journal.after)
            journal.read_from(journal.after)
        else:
            events = client.events(**_arguments(plan))
            journal.read_from(-1)
        try:
            async with events:
                async for event in events:
                    _note(event, events.id, journal)
                    if plan["slow"]:
                        await asyncio.sleep(_SLOW_READ)
        except HoldfastError as exc:
            journal.end("failed", exc.code, message=str(exc))

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()


class SyncSdkClient:
    """`SyncStreamingAIClient`, used by as many threads as there are streams."""

    def __init__(self, url: str) -> None:
        self._clients = {slow: SyncStreamingAIClient(_config(url, slow=slow)) for slow in (False, True)}
        # The loop's own pool has a few threads per processor, and a stream that waits for one would seem to hang.
        self._threads = ThreadPoolExecutor(_MAX_THREADS)

    async def run(self, plan: Record, journal: StreamJournal) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._run, plan, journal)

    def _run(self, plan: Record, journal: StreamJournal) -> None:
        client = self._clients[plan["slow"]]
        if journal.stream_id is not None:
            events = client.attach_events(journal.stream_id, after=journal.after)
            journal.read_from(journal.after)
        else:
            events = client.events(**_arguments(plan))
            journal.read_from(-1)
        try:
            with events:
                for event in events:
                    _note(event, events.id, journal)
                    if plan["slow"]:
                        time.sleep(_SLOW_READ)
        except HoldfastError as exc:
            journal.end("failed", exc.code, message=str(exc))

    async def aclose(self) -> None:
        for client in self._clients.values():
            client.close()


def _note(event: object, stream_id: str | None, journal: StreamJournal) -> None:
    if stream_id is not None:
        journal.identify(stream_id)
    if isinstance(event, Chunk):
        journal.got(event.seq, [event.text])
    elif isinstance(event, StreamEnd):
        journal.end(event.status, seq=event.seq)
