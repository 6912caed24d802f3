"""The session protocol `holdfast.v1` after PROTOCOL.md, on a plain WebSocket: many streams on one connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from chaos.clients.entries import text_of
from chaos.journal import Record, StreamJournal
from chaos.schedule import body_of

#: A slow reader has so many bytes of credit, and grants what it took after so many seconds.
_SLOW_WINDOW = 4096
_SLOW_GRANT = 0.3
_RETRY = 0.3
#: Said again on the next connection, which is about to be made.
_AGAIN = {"draining"}


class _Running:
    """A request and where it stands."""

    def __init__(self, plan: Record, journal: StreamJournal) -> None:
        self.plan = plan
        self.journal = journal
        self.credit = 0  # taken and not granted again yet
        self.is_over = asyncio.Event()

    def end(self, status: str, code: str | None, seq: int | None = None, message: str = "") -> None:
        self.journal.end(status, code, seq, message)
        self.is_over.set()


class SessionClient:
    """One connection while there is a stream, made again whenever it breaks."""

    def __init__(self, url: str) -> None:
        self._url = f"ws{url.removeprefix('http')}/v1/ws/stream"
        self._running: dict[str, _Running] = {}  # by request id
        self._socket: ClientConnection | None = None
        self._session: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._acks: dict[str, int] = {}
        self._grants: set[asyncio.Task[None]] = set()

    async def run(self, plan: Record, journal: StreamJournal) -> None:
        running = self._running[plan["id"]] = _Running(plan, journal)
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._keep_connected())
            elif self._socket is not None:
                await self._begin(self._socket, running)
            over = asyncio.create_task(running.is_over.wait())
            await asyncio.wait([over, self._task], return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if self._task.done() and not running.is_over.is_set():
                self._task.result()  # raises what the connection's task died of
        finally:
            self._running.pop(plan["id"], None)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # -- the connection --

    async def _keep_connected(self) -> None:
        while True:
            try:
                async with connect(
                    self._url,
                    subprotocols=[Subprotocol("holdfast.v1")],
                    ping_interval=2,
                    ping_timeout=2,
                    open_timeout=4,
                    close_timeout=1,
                    compression=None,
                ) as socket:
                    await self._converse(socket)
            except (OSError, EOFError, TimeoutError, WebSocketException) as exc:
                for running in self._running.values():
                    running.journal.lost(repr(exc))
            finally:
                self._socket = None
            await asyncio.sleep(_RETRY)

    async def _converse(self, socket: ClientConnection) -> None:
        resumed = [running for running in self._running.values() if running.journal.stream_id is not None]
        hello: Record = {"type": "hello", "version": 1, "client": "chaos/1"}
        if self._session is not None:
            hello["session"] = self._session
        hello["streams"] = [self._position(running) for running in resumed]
        await socket.send(json.dumps(hello))
        async with asyncio.timeout(5):
            welcome = json.loads(await socket.recv())
        if welcome["type"] != "welcome":
            raise OSError(f"instead of a welcome: {welcome}")
        self._session = welcome["session"]
        self._take_welcome(welcome, resumed)
        self._socket = socket
        for running in list(self._running.values()):
            if running.journal.stream_id is None:
                await self._begin(socket, running)
        acks = asyncio.create_task(self._acknowledge(socket))
        try:
            async for message in socket:
                await self._take(socket, json.loads(message))
        finally:
            acks.cancel()

    def _position(self, running: _Running) -> Record:
        running.credit = 0
        position: Record = {"stream": running.journal.stream_id, "after": running.journal.after}
        return {**position, "credit": _SLOW_WINDOW} if running.plan["slow"] else position

    def _take_welcome(self, welcome: Any, resumed: list[_Running]) -> None:
        answers = {answer["stream"]: answer for answer in welcome.get("streams", [])}
        for running in resumed:
            answer = answers.get(running.journal.stream_id)
            if answer is None:
                running.end("failed", "not_in_welcome")
            elif answer["status"] == "refused":
                running.end("failed", answer["error"]["code"], message=answer["error"]["message"])
            else:
                running.journal.read_from(answer.get("next", 0) - 1)
                if answer.get("next", 0) != running.journal.after + 1 and not running.journal.is_over:
                    # The journal has the gap or the repetition now, and the checker finds it.
                    running.journal.lost(f"resumed at {answer['next']}")

    async def _begin(self, socket: ClientConnection, running: _Running) -> None:
        """Create, or attach to what a killed client left."""
        try:
            if running.journal.stream_id is not None:
                await socket.send(json.dumps({"type": "attach", **self._position(running)}))
                return
            create: Record = {"type": "create", "request_id": running.plan["id"], "request": body_of(running.plan)}
            if running.plan["slow"]:
                create["credit"] = _SLOW_WINDOW
            await socket.send(json.dumps(create))
        except ConnectionClosed:
            pass  # sent again on the next connection

    async def _acknowledge(self, socket: ClientConnection) -> None:
        try:
            while True:
                await asyncio.sleep(0.5)
                await self._send_acks(socket)
        except ConnectionClosed:
            pass

    async def _send_acks(self, socket: ClientConnection) -> None:
        acks, self._acks = self._acks, {}
        if acks:
            await socket.send(json.dumps({"type": "ack", "streams": acks}))

    # -- messages --

    async def _take(self, socket: ClientConnection, message: Any) -> None:
        kind = message["type"]
        if kind == "accepted":
            running = self._running.get(message["request_id"])
            if running is not None:
                running.journal.identify(message["stream"])
                running.journal.read_from(-1)
            return
        if kind == "error":
            self._take_error(message)
            return
        running = next(
            (each for each in self._running.values() if each.journal.stream_id == message.get("stream")), None
        )
        if running is None or kind == "queued":
            return
        if kind == "attached":
            running.journal.read_from(message.get("next", 0) - 1)
        elif kind in ("event", "events"):
            entries = message["data"] if kind == "events" else [message["data"]]
            running.journal.got(message["seq"], [text_of(entry) for entry in entries])
            self._acks[message["stream"]] = running.journal.after
            if running.plan["slow"]:
                self._grant_later(socket, running, entries)
        elif kind == "end":
            self._acks[message["stream"]] = message["seq"]
            await self._send_acks(socket)
            running.end(
                message["status"],
                (message.get("error") or {}).get("code"),
                message["seq"],
                str(message.get("error")),
            )

    def _take_error(self, error: Any) -> None:
        for running in list(self._running.values()):
            if error.get("request_id") == running.plan["id"] or (
                error.get("stream") is not None and error.get("stream") == running.journal.stream_id
            ):
                if error["code"] in _AGAIN:
                    running.journal.lost(error["code"])
                else:
                    running.end("failed", error["code"], message=error["message"])

    def _grant_later(self, socket: ClientConnection, running: _Running, entries: list[Any]) -> None:
        # As it stands in the message: the simulated provider writes JSON without spaces and in ASCII.
        size = sum(len(json.dumps(entry, separators=(",", ":"))) for entry in entries)
        stream = running.journal.stream_id

        async def grant() -> None:
            await asyncio.sleep(_SLOW_GRANT)
            try:
                await socket.send(json.dumps({"type": "credit", "stream": stream, "bytes": size}))
            except ConnectionClosed:
                pass  # the next connection states its credit afresh

        task = asyncio.create_task(grant())
        self._grants.add(task)
        task.add_done_callback(self._grants.discard)
