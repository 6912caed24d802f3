"""A WebSocket client that knows no protocol: one send, then events. After a break it reads the rest over HTTP."""

from __future__ import annotations

import asyncio
import json

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from chaos.clients.entries import text_of
from chaos.clients.over_http import end_with, follow, make_http
from chaos.journal import Record, StreamJournal
from chaos.schedule import body_of

_SLOW_READ = 0.04
_RETRY = 0.3


class BareClient:
    """Bare mode has no request id: what breaks before `accepted` is given up, never asked again."""

    def __init__(self, url: str) -> None:
        self._http = make_http(url)
        self._url = f"ws{url.removeprefix('http')}/v1/ws/stream"

    async def run(self, plan: Record, journal: StreamJournal) -> None:
        if journal.stream_id is None:
            if journal.was_sent:
                journal.end("given_up", "not_accepted")
                return
            while await self._ask(plan, journal):  # noqa: ASYNC110 - nothing tells when the gateway is back
                await asyncio.sleep(_RETRY)
        if journal.stream_id is None and not journal.is_over:
            journal.end("given_up", "not_accepted")
        await follow(self._http, journal, slow=plan["slow"])

    async def _ask(self, plan: Record, journal: StreamJournal) -> bool:
        """Ask once; return whether to ask again: nothing was sent, or the gateway says that it did nothing."""
        try:
            socket = await connect(
                self._url,
                ping_interval=2,
                ping_timeout=2,
                open_timeout=4,
                close_timeout=1,
                compression=None,
                max_queue=4,
            )
        except (OSError, EOFError, TimeoutError, WebSocketException) as exc:
            journal.lost(repr(exc))
            return True
        async with socket:
            try:
                await socket.send(json.dumps(body_of(plan)))
                async with asyncio.timeout(8):
                    first = json.loads(await socket.recv())
                if first["type"] == "error":
                    if first["code"] == "draining":
                        journal.lost("draining")
                        return True
                    journal.end("failed", first["code"], message=first["message"])
                    return False
                journal.identify(first["stream"])
                journal.read_from(-1)
                while not journal.is_over:
                    message = json.loads(await socket.recv())
                    if message["type"] == "event":
                        journal.got(message["seq"], [text_of(message["data"])])
                    elif message["type"] == "end":
                        end_with(message, journal, message["seq"])
                    if plan["slow"]:
                        await asyncio.sleep(_SLOW_READ)
            except (ConnectionClosed, TimeoutError) as exc:
                journal.lost(repr(exc))
        return False

    async def aclose(self) -> None:
        await self._http.aclose()
