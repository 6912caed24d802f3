"""Server-sent events with Last-Event-ID, and long polling, over plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from chaos.clients.entries import code_of, text_of
from chaos.journal import Record, StreamJournal
from chaos.schedule import body_of

#: The gateway is told to write something each second, so a silence of this many seconds is a dead connection.
READ_TIMEOUT = 4.0
_RETRY = 0.3
_SLOW_READ = 0.04
#: Refusals after which the same request may be sent again.
_AGAIN = {"draining", "overloaded"}


def make_http(url: str) -> httpx.AsyncClient:
    timeout = httpx.Timeout(READ_TIMEOUT, connect=READ_TIMEOUT)
    return httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False)


async def sse_events(response: httpx.Response) -> AsyncIterator[tuple[str, str, str]]:
    """Yield id, name and data of each event (HTML section 9.2.6); one that was cut short is dropped."""
    id_ = name = ""
    lines: list[str] = []
    async for line in response.aiter_lines():
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if lines:
                yield id_, name, "\n".join(lines)
            name, lines = "", []
        elif field == "id":
            id_ = value
        elif field == "event":
            name = value
        elif field == "data":
            lines.append(value)


async def read_sse(response: httpx.Response, journal: StreamJournal, *, slow: bool) -> None:
    """Take a response's events until its end or its break; the journal knows which."""
    async for id_, name, data in sse_events(response):
        seq = int(id_.rpartition("-")[2])
        if data == "[DONE]":
            journal.end("completed", seq=seq)
            return
        body = json.loads(data)
        if name == "end":
            end_with(body, journal, seq)
            return
        if "error" in body:
            journal.end("failed", code_of(body), seq=seq, message=str(body))
            return
        journal.got(seq, [text_of(body)])
        if slow:
            await asyncio.sleep(_SLOW_READ)


def end_with(end: Any, journal: StreamJournal, seq: int | None) -> None:
    journal.end(end["status"], (end.get("error") or {}).get("code"), seq=seq, message=str(end.get("error")))


async def refuse(response: httpx.Response, journal: StreamJournal) -> None:
    """Note why a request was refused, unless it may be sent again."""
    await response.aread()
    try:
        body = response.json()
    except ValueError:
        body = {}
    code = code_of(body) or f"http_{response.status_code}"
    if code in _AGAIN:
        journal.lost(code)
    else:
        journal.end("failed", code, message=response.text)


async def poll(http: httpx.AsyncClient, journal: StreamJournal) -> None:
    """Read the rest of a stream by long polling."""
    while not journal.is_over:
        query = {"live": "long-poll", "timeout": "2", "after": str(journal.after)}
        try:
            response = await http.get(f"/v1/streams/{journal.stream_id}", params=query)
        except httpx.TransportError as exc:
            journal.lost(repr(exc))
            await asyncio.sleep(_RETRY)
            continue
        if response.status_code != 200:
            await refuse(response, journal)
            continue
        page = response.json()
        if page["entries"]:
            journal.read_from(journal.after)
        for entry in page["entries"]:
            journal.got(entry["seq"], [text_of(entry["data"])])
        if page["end"] is not None:
            end_with(page["end"], journal, page["next"] - 1)


async def follow(http: httpx.AsyncClient, journal: StreamJournal, *, slow: bool = False) -> None:
    """Read the rest of a stream as server-sent events, with Last-Event-ID after each break."""
    while not journal.is_over:
        headers = {"last-event-id": str(journal.after)} if journal.after >= 0 else {}
        try:
            async with http.stream("GET", f"/v1/streams/{journal.stream_id}", headers=headers) as response:
                if response.status_code != 200:
                    await refuse(response, journal)
                else:
                    journal.read_from(journal.after)
                    await read_sse(response, journal, slow=slow)
            if not journal.is_over:
                journal.lost("the response ended without an end")
        except httpx.TransportError as exc:
            journal.lost(repr(exc))
        if not journal.is_over:
            await asyncio.sleep(_RETRY)


class HttpClient:
    """Asks with POST, the request id in a header; carries on with GET."""

    def __init__(self, url: str, *, polls: bool) -> None:
        self._http = make_http(url)
        self._polls = polls

    async def run(self, plan: Record, journal: StreamJournal) -> None:
        while journal.stream_id is None and not journal.is_over:
            await self._ask(plan, journal)
        if self._polls:
            await poll(self._http, journal)
        else:
            await follow(self._http, journal, slow=plan["slow"])

    async def _ask(self, plan: Record, journal: StreamJournal) -> None:
        headers = {"holdfast-request-id": plan["id"], "holdfast-on-disconnect": "continue"}
        body = {**body_of(plan), "stream": True}
        try:
            async with self._http.stream("POST", "/v1/chat/completions", headers=headers, json=body) as response:
                if response.status_code == 200:
                    journal.identify(response.headers["holdfast-stream-id"])
                    if not self._polls:
                        journal.read_from(-1)
                        await read_sse(response, journal, slow=plan["slow"])
                    return
                await refuse(response, journal)
        except httpx.TransportError as exc:
            journal.lost(repr(exc))
        if not journal.is_over:
            await asyncio.sleep(_RETRY)

    async def aclose(self) -> None:
        await self._http.aclose()
