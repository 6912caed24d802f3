"""Every way to stop a generation.

Each starts one, reads `READ` messages of it, stops it, and calls `then` with the moment at which it did so and the
stream's id, where the client has one. Until `then` returns the client and its connection stay as they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeAlias

from holdfast import StreamingAIClient, SyncStreamingAIClient
from tests.real.clients import MODEL, Mismatch, Question, Server, Socket, events_of, expect

READ = 30

Then: TypeAlias = Callable[[float, str | None], None]


def websocket_cancel(server: Server, question: Question, then: Then) -> None:
    with Socket(server) as socket:
        socket.hello()
        stream_id = socket.create(question)
        _read(socket)
        stopped = time.monotonic()
        expect("messages after the cancel", _cancel(socket, stream_id) < READ, True)
        then(stopped, stream_id)


def websocket_cancel_waiting(server: Server, question: Question, then: Then) -> None:
    """Stop one that still waits for the slot behind another, which goes on; then the other."""
    with Socket(server) as socket, Socket(server) as waiting:
        socket.hello()
        stream_id = socket.create(question)
        _read(socket)
        waiting.hello()
        waiting_id = waiting.create(question)
        _read(socket)
        expect("messages of the stream that waited", _cancel(waiting, waiting_id), 0)
        _read(socket)
        stopped = time.monotonic()
        _cancel(socket, stream_id)
        then(stopped, waiting_id)


def http_delete(server: Server, question: Question, then: Then) -> None:
    with server.http as http, http.stream("POST", "chat/completions", json=question.body(stream=True)) as response:
        stream_id = response.headers["holdfast-stream-id"]
        last = ""
        for number, (_, payload) in enumerate(events_of(response)):
            last = payload
            if number == READ:
                stopped = time.monotonic()
                with server.http as other:
                    other.delete(f"streams/{stream_id}").raise_for_status()
        expect("the last event is an error", '"cancelled"' in last or last, True)
        then(stopped, stream_id)


def sse_closed(server: Server, question: Question, then: Then) -> None:
    with server.http as http:
        with http.stream("POST", "chat/completions", json=question.body(stream=True)) as response:
            for number, _ in enumerate(events_of(response)):
                if number == READ:
                    break
            stopped = time.monotonic()
        then(stopped, response.headers["holdfast-stream-id"])


def openai_closed(server: Server, question: Question, then: Then) -> None:
    with server.openai as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=question.messages, stream=True, **question.options
        )
        for number, _ in enumerate(stream):
            if number == READ:
                break
        stopped = time.monotonic()
        stream.close()
        then(stopped, stream.response.headers["holdfast-stream-id"])


def async_break(server: Server, question: Question, then: Then) -> None:
    async def ask() -> None:
        async with StreamingAIClient(server.config) as client:
            count = 0
            async for _ in client.stream_chat(question.messages, model=MODEL, **question.options):
                count += 1
                if count == READ:
                    break
            await asyncio.to_thread(then, time.monotonic(), None)

    asyncio.run(ask())


def async_cancel(server: Server, question: Question, then: Then) -> None:
    async def ask() -> None:
        async with StreamingAIClient(server.config) as client:
            stream = client.stream_chat(question.messages, model=MODEL, **question.options)
            count, stopped = 0, 0.0
            async for _ in stream:
                count += 1
                if count == READ:
                    stopped = time.monotonic()
                    await client.cancel(stream)
            await asyncio.to_thread(then, stopped, stream.id)

    asyncio.run(ask())


def sync_break(server: Server, question: Question, then: Then) -> None:
    with SyncStreamingAIClient(server.config) as client:
        for count, _ in enumerate(client.stream_chat(question.messages, model=MODEL, **question.options)):
            if count == READ:
                break
        then(time.monotonic(), None)


def _read(socket: Socket) -> None:
    for _ in range(READ):
        if socket.receive()["type"] == "end":
            raise Mismatch("the generation ended before it was stopped")


def _cancel(socket: Socket, stream_id: str) -> int:
    """Cancel, wait for the end, and return how many messages of the stream came before it."""
    socket.send({"type": "cancel", "stream": stream_id})
    count = 0
    while (message := socket.receive())["type"] != "end":
        count += 1
    expect("status", message["status"], "cancelled")
    return count
